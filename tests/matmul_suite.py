# SPDX-License-Identifier: Apache-2.0
"""The tests every product passes; each test_matmul_*.py runs them for its operator."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cases
import qutlass
import truth
from cases import GemmCase, GemmInputs
from harness import PROPERTY, call, run_row


def cancelling(case: GemmCase, device: str) -> GemmInputs:
    """A product whose exact result is +0 everywhere, with any other order of rounding, contraction
    or factor leaving a residue: equal rows of a, and a bias that is minus the float32 product."""
    x = cases.make(replace(case, bias="f32"), device)
    values = x.a_values[:1].expand(case.m, -1).contiguous()
    vectors = dict(x.vectors)
    for name in ("a_scale", "a_zero"):
        if name in vectors:
            vectors[name] = vectors[name].flatten()[:1].expand(case.m).contiguous()
    a = cases.pack_by_hand(values) if case.op == "w4a4" else values
    x = replace(x, a=a, a_values=values, vectors=vectors)
    t = truth.accumulator(x)[0].to(torch.float32)
    t = t * vectors["b_scale"].float().flatten()
    t = t * vectors["a_scale"].float().flatten()[0]
    vectors["bias"] = -t
    return x


class MatmulSuite:
    """`op` is one of cases.OPERATORS."""

    op: str

    def plain(self, m: int, n: int, k: int, **changes) -> list[GemmCase]:
        return cases.plain_cases(self.op, m, n, k, **changes)

    def exact(self, m: int, n: int, k: int, **changes) -> list[GemmCase]:
        found = [case for case in self.plain(m, n, k, **changes) if case.exact]
        if not found:
            pytest.skip("the contract fixes the bits of integer products only")
        return found

    def test_result(self, gemm_device: str, gemm_case: GemmCase) -> None:
        x = cases.make(gemm_case, gemm_device)
        truth.assert_right(call(x), x)

    def test_same_bits_every_time(self, device: str) -> None:
        for case in self.plain(130, 257, 2048):
            x = cases.make(case, device)
            first = call(x)
            for _ in range(4):
                truth.assert_same_bits(call(x), first, case.id)

    def test_sums_that_float32_holds_are_exact(self, device: str) -> None:
        """Small integers and scales that are powers of two: every sum fits, in any order, so even
        the products that sum in float32 owe the exact result."""
        for case in self.plain(37, 75, 512, bias=""):
            x = cases.make(case, device)
            g = cases.generator(case.id, device)
            values = torch.randint(-8, 8, x.a_values.shape, generator=g, device=device)
            x.a_values = values.to(x.a_values.dtype)
            x.a = cases.pack_by_hand(x.a_values) if self.op == "w4a4" else x.a_values
            for name, v in x.vectors.items():
                if "scale" in name:
                    power = torch.randint(-2, 1, v.shape, generator=g, device=device)
                    x.vectors[name] = torch.exp2(power).to(v.dtype)
            if "a_zero" in x.vectors:
                x.vectors["a_zero"].clamp_(-8, 8)
            if "b_zero" in x.vectors:
                x.vectors["b_zero"].clamp_(-8, 8)
            want = truth.float_product(x)
            assert torch.equal(want, want.float().double())
            truth.assert_same_bits(call(x), want.to(torch.bfloat16), case.id)

    def test_the_reference_agrees(self, device: str) -> None:
        from qutlass import reference

        operator = getattr(reference, cases.OPERATORS[self.op])
        for case in self.plain(35, 70, 384) + cases.option_cases(self.op)[::17]:
            x = cases.make(case, device)
            truth.assert_right(call(x, operator), x)

    @pytest.mark.gpu
    def test_every_row_gives_the_same_bits(self, gemm_row) -> None:
        """Each row of the table at its own edges, with and without a split of K."""
        m, n, k = gemm_row["m"], gemm_row["n"], gemm_row["k"]
        chosen = [
            case
            for rows, columns in itertools.product((1, m - 1, m, m + 1), (1, n - 1, n, n + 1))
            for case in self.plain(rows, columns, 3 * k + 128)
            for case in cases.with_group_sizes(case)[-2:]
        ]
        ran = [self._force(gemm_row, case, splits=(1, 2, 3, 0)) for case in chosen]
        # Several tiles in each direction, and many more k-steps than stages.
        chosen = self.plain(2 * m + 3, 3 * n + 8, 4096) + self.plain(m, 2 * n, 256)
        chosen = [sized for case in chosen for sized in cases.with_group_sizes(case)]
        ran += [self._force(gemm_row, case, splits=(1, 2, 3, 7, 0)) for case in chosen]
        assert sum(ran) >= 16, "the row hardly ran"

    @pytest.mark.gpu
    @pytest.mark.compact
    def test_every_row_compactly(self, gemm_row) -> None:
        m, n, k = gemm_row["m"], gemm_row["n"], gemm_row["k"]
        chosen = self.plain(m + 1, n + 3, 2 * k + 64)
        chosen = [sized for case in chosen for sized in cases.with_group_sizes(case)]
        ran = [self._force(gemm_row, case, splits=(1, 2, 0), truth_on="cpu") for case in chosen]
        assert sum(ran) >= 1, "the row ran nothing"

    def _force(
        self, row, case: GemmCase, *, splits: tuple[int, ...], truth_on: str = "cuda"
    ) -> int:
        """Runs a case on one row; 1 if the row takes it."""
        if case.kernels != row["op"]:
            return 0
        x = cases.make(case, truth_on)
        on_gpu = x.to("cuda")
        outputs = {split: run_row(on_gpu, row, split) for split in splits}
        if outputs[1] is None:
            return 0
        for split, out in outputs.items():
            if out is not None:
                truth.assert_right(out.to(truth_on), x)
                truth.assert_same_bits(run_row(on_gpu, row, split), out, f"{case.id} again")
        return 1

    @settings(PROPERTY, max_examples=60)
    @given(data=st.data())
    def test_any_shape_against_int64(self, data: st.DataObject) -> None:
        """The CPU operator against NumPy's int64 product, on shapes hypothesis thinks of."""
        step = cases.K_STEP[self.op]
        m = data.draw(st.integers(0, 20), "m")
        n = data.draw(st.integers(1, 40), "n")
        k = data.draw(st.integers(1, 12), "k / step") * step
        choices = cases.option_sets(self.op)
        choice = data.draw(st.sampled_from(choices), "options")
        x = cases.make(cases.case_for(self.op, m, n, k, choice))
        out = call(x)
        if not x.case.exact:
            truth.assert_right(out, x)
            return

        def column(name: str) -> np.ndarray:
            v = x.vectors.get(name)
            return np.int64(0) if v is None else v.numpy().astype(np.int64).reshape(-1, 1)

        a = x.a_values.numpy().astype(np.int64) - column("a_zero")
        b = x.b_values.numpy().astype(np.int64)
        if x.case.multiplier:
            runs = x.case.group
            if "b_zero" in x.vectors:
                b = b - np.repeat(x.vectors["b_zero"].numpy().astype(np.int64), runs, axis=1)
            b = b * np.repeat(x.vectors["b_multiplier"].numpy().astype(np.int64), runs, axis=1)
        else:
            b = b - column("b_zero")
        t = torch.from_numpy((a @ b.T).astype(np.float32))
        t = t * x.vectors["b_scale"].float().reshape(1, -1)
        t = t * x.vectors["a_scale"].float().reshape(-1, 1)
        if x.case.bias:
            t = t + x.vectors["bias"].float()
        truth.assert_same_bits(out, t.to(torch.bfloat16).reshape(x.out_shape), x.case.id)


class IntegerSuite(MatmulSuite):
    """What only integer activations have: their scales, and results fixed bit for bit."""

    def exact(self, m: int, n: int, k: int, **changes) -> list[GemmCase]:
        return [case for case in self.plain(m, n, k, **changes) if case.exact]

    def test_the_batch_changes_no_row(self, device: str) -> None:
        for case in self.exact(259, 136, 1024):
            x = cases.make(case, device)
            whole = call(x)
            for rows in (slice(0, 1), slice(258, 259), slice(3, 20), slice(17, 82), slice(0, 256)):
                truth.assert_same_bits(call(x.with_rows(rows)), whole[rows], f"{case.id} {rows}")

    def test_each_step_is_rounded_by_itself(self, device: str) -> None:
        for data in ("full", "extreme"):
            for case in self.exact(19, 200, 8192, data=data):
                x = cancelling(case, device)
                zero = torch.zeros(x.out_shape, dtype=torch.bfloat16, device=device)
                truth.assert_same_bits(truth.exact_product(x), zero, "the test itself")
                truth.assert_same_bits(call(x), zero, case.id)

    @pytest.mark.parametrize("scale", [2.0**-140, 2.0**-20, 2.0**118], ids="{:.0e}".format)
    def test_tiny_and_huge_results(self, device: str, scale: float) -> None:
        """Subnormal bfloat16 values stay, and too large ones become infinite."""
        for case in self.exact(17, 40, 512, data="extreme"):
            x = cases.make(case, device)
            x.vectors["a_scale"] = torch.full_like(x.vectors["a_scale"], scale)
            x.vectors.pop("bias")
            want = truth.exact_product(x)
            assert want.isinf().any() == (scale > 1)
            tiny = (want != 0) & (want.abs() < torch.finfo(torch.bfloat16).tiny)
            assert tiny.any() == (scale < 2.0**-100)
            truth.assert_same_bits(call(x), want, case.id)

    @pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
    def test_quantized_activations_go_straight_in(self, device: str, symmetric: bool) -> None:
        """What quantize returns for a batch of sequences is what the product takes; a token with a
        NaN gives NaN, and touches no other."""
        quantize = qutlass.quantize_int4 if self.op == "w4a4" else qutlass.quantize_int8
        g = cases.generator(f"{self.op} straight in")
        activations = torch.randn((3, 7, 256), generator=g) + 0.5
        activations[1, 4, 100] = torch.nan
        q, a_scale, a_zero = quantize(activations.to(device), symmetric=symmetric)
        for case in self.exact(21, 40, 256, a_zero="row.i32" if a_zero is not None else ""):
            x = cases.make(case, device)
            values = truth.unpack(q) if self.op == "w4a4" else q
            x = replace(x, a=q, a_values=values.reshape(21, 256))
            vectors = {**x.vectors, "a_scale": a_scale}
            x.vectors = vectors if symmetric else {**vectors, "a_zero": a_zero}
            out = call(x)
            truth.assert_same_bits(out, truth.exact_product(x), case.id)
            spoilt = out.isnan().any(-1)
            assert spoilt.nonzero().tolist() == [[1, 4]] and out[1, 4].isnan().all()

    def test_expanded_vectors(self, device: str) -> None:
        """One value expanded to a vector is read as the vector it shows."""
        for case in self.exact(18, 50, 128):
            x = cases.make(case, device)
            names = ["a_scale", "a_zero", *([] if case.group else ["b_scale", "b_zero"])]
            for name in names:
                v = x.vectors[name]
                x.vectors[name] = v[:1].expand(v.shape)
            truth.assert_right(call(x), x)

    def test_one_token_without_leading_dims(self, device: str) -> None:
        for case in self.exact(1, 50, 128):
            x = cases.make(case, device)
            flat = replace(x, a=x.a[0])
            assert flat.out_shape == (50,)
            truth.assert_right(call(flat), flat)

    @pytest.mark.gpu
    def test_cpu_and_gpu_agree(self) -> None:
        for case in cases.option_cases(self.op)[::5] + self.exact(129, 260, 1536):
            if case.exact:
                x = cases.make(case, "cpu")
                truth.assert_same_bits(call(x.to("cuda")).cpu(), call(x), case.id)
