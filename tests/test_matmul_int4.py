# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch

import cases
import qutlass
import truth
from cases import GemmCase, GemmInputs
from harness import call
from matmul_suite import MatmulSuite
from qutlass import reference


class TestInt4(MatmulSuite):
    op = "int4"

    @pytest.mark.parametrize("group", [32, 64, 128, "K"])
    @pytest.mark.parametrize("zero", ["", "row.i8", "row.f32"], ids=["none", "int", "fraction"])
    def test_the_error_stays_bounded_at_any_k(self, device: str, group, zero: str) -> None:
        case = cases.case_for("int4", 9, 40, 49152, {"group": group, "b_zero": zero})
        x = cases.make(case, device)
        truth.assert_right(call(x), x)

    @pytest.mark.parametrize("mean", [1.0, 16.0])
    def test_activations_with_a_mean(self, device: str, mean: float) -> None:
        """Zero points taken out after the product would have to cancel two large sums; the bound
        holds whichever way the operator takes."""
        for zero in ("row.i8", "row.bf16", "row.f32"):
            x = cases.make(GemmCase("int4", 18, 72, 2048, 64, b_zero=zero), device)
            shifted = (x.a_values.float() * 0.25 + mean).to(torch.bfloat16)
            x = replace(x, a=shifted, a_values=shifted)
            truth.assert_right(call(x), x)

    def test_each_weight_meets_its_own_activation(self, device: str) -> None:
        """With the identity for activations the output is the dequantized weight, transposed."""
        k, n = 256, 48
        for group in (32, 64, 128, 256):
            x = cases.make(GemmCase("int4", k, n, k, group, b_zero="row.i32"), device)
            eye = torch.eye(k, dtype=torch.bfloat16, device=device)
            x = replace(x, a=eye, a_values=eye)
            out, want = call(x).float(), truth.float_product(x).float()
            # A weight dequantized in bfloat16 and then multiplied by 1 is rounded only once.
            assert ((out - want).abs() <= want.abs() * 2.0**-8).all()

    @pytest.mark.parametrize("m", [1, 16, 64, 300])
    @pytest.mark.parametrize(
        ("zeros", "dtype"),
        [(range(-264, 249), torch.int32), (range(-128, 128), torch.int8)],
        ids=["i32", "i8"],
    )
    def test_every_integer_zero_point(
        self, device: str, m: int, zeros: range, dtype: torch.dtype
    ) -> None:
        """All that CUDA takes; there the next one on either side makes its column NaN, and none
        other."""
        groups = 4
        n = -(-len(zeros) // groups)
        values = torch.tensor([*zeros, *zeros[: n * groups - len(zeros)]], dtype=dtype)
        values = values.reshape(n, groups)
        case = GemmCase("int4", m, n, 64 * groups, 64, b_zero=f"row.i{dtype.itemsize * 8}")
        x = cases.make(case, device)
        x.vectors["zeros"] = values.to(device)
        clean = call(x)
        truth.assert_right(clean, x)
        if dtype == torch.int32 and device != "cpu":
            beyond = values.clone()
            beyond[3, 1], beyond[n - 1, 2] = zeros[0] - 1, zeros[-1] + 1
            x.vectors["zeros"] = beyond.to(device)
            out = call(x)
            assert out[:, [3, n - 1]].isnan().all()
            others = [column for column in range(n) if column not in (3, n - 1)]
            truth.assert_same_bits(out[:, others], clean[:, others])

    @pytest.mark.parametrize("exponent", [-100, -60, 60, 100])
    @pytest.mark.parametrize("m", [1, 40, 300])
    def test_scales_of_any_size(self, device: str, m: int, exponent: int) -> None:
        """A power of two in the scales is the same power of two in the outputs."""
        x = cases.make(GemmCase("int4", m, 40, 512, 128, b_zero="row.i8"), device)
        plain = call(x)
        x.vectors["scales"] = x.vectors["scales"] * 2.0**exponent
        truth.assert_same_bits(call(x), (plain.float() * 2.0**exponent).to(torch.bfloat16))

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
    def test_what_is_not_finite_stays_in_its_row(self, device: str, bad: float) -> None:
        x = cases.make(GemmCase("int4", 33, 70, 512, 128, b_zero="row.i8"), device)
        clean = call(x)
        spoilt = x.a_values.clone()
        spoilt[17, 301] = bad
        out = call(replace(x, a=spoilt, a_values=spoilt))
        assert not out[17].isfinite().any()
        others = [row for row in range(33) if row != 17]
        truth.assert_same_bits(out[others], clean[others])


# The operators that act_bits stands for: quantize, then multiply.
_STEPS = {
    8: (qutlass.quantize_int8, qutlass.matmul_w4a8_bf16_tn),
    4: (qutlass.quantize_int4, qutlass.matmul_w4a4_bf16_tn),
}


def in_one(x: GemmInputs, bits: int) -> torch.Tensor:
    return call(x, partial(qutlass.matmul_int4_bf16_tn, act_bits=bits))


def in_two(x: GemmInputs, bits: int) -> torch.Tensor:
    quantize, multiply = _STEPS[bits]
    q, a_scale, _ = quantize(x.a)
    v = x.vectors
    return multiply(q, x.b, a_scale, v["scales"], b_zero=v.get("zeros"), bias=v.get("bias"))


def integer_product(x: GemmInputs, bits: int) -> GemmInputs:
    """The integer product that the call comes to, with activations quantized by truth.py."""
    q, a_scale, _ = truth.quantize(x.a_values, bits)
    v = {"zeros": None, "bias": None, **x.vectors}
    vectors = {"a_scale": a_scale, "b_scale": v["scales"], "b_zero": v["zeros"], "bias": v["bias"]}
    device = x.a.device
    return replace(
        x,
        case=replace(
            x.case,
            op="w4a8" if bits == 8 else "w4a4",
            group=0 if x.case.group == x.case.k else x.case.group,
        ),
        a_values=q.to(device),
        vectors={name: t.to(device) for name, t in vectors.items() if t is not None},
    )


def with_activations(x: GemmInputs, a: torch.Tensor) -> GemmInputs:
    return replace(x, a=a, a_values=a.reshape(-1, a.shape[-1]))


def loud_and_quiet(x: GemmInputs) -> GemmInputs:
    """The case with tokens of different magnitude, so that one token's scale is not another's."""
    g = cases.generator(x.case.id, x.a.device)
    exponent = torch.randint(-9, 9, (*x.a.shape[:-1], 1), generator=g, device=x.a.device)
    x.a.mul_(torch.exp2(exponent))
    return with_activations(x, x.a)


ACT_CASES = [pytest.param(bits, case, id=f"a{bits}-{case.id}") for bits, case in cases.act_cases()]
# A case of each kernel family.
every_form = pytest.mark.parametrize(
    ("bits", "group"), [(8, "K"), (8, 64), (4, "K")], ids=["a8", "a8_group", "a4"]
)


class TestActBits:
    """act_bits: the activations are quantized inside the call, for an integer product."""

    @staticmethod
    def make(m: int, n: int, k: int, group: int | str, device: str, **changes) -> GemmInputs:
        options = {"group": group, "b_zero": "row.i8", "bias": "f32", **changes}
        return cases.make(cases.case_for("int4", m, n, k, options), device)

    @pytest.mark.parametrize(("bits", "case"), ACT_CASES)
    def test_result(self, device: str, bits: int, case: GemmCase) -> None:
        """The bits of the two calls; and right."""
        x = loud_and_quiet(cases.make(case, device))
        out = in_one(x, bits)
        truth.assert_same_bits(out, in_two(x, bits), case.id)
        truth.assert_right(out, integer_product(x, bits))

    @pytest.mark.parametrize(("bits", "case"), ACT_CASES[::3])
    def test_the_reference_agrees(self, device: str, bits: int, case: GemmCase) -> None:
        x = loud_and_quiet(cases.make(case, device))
        out = call(x, partial(reference.matmul_int4_bf16_tn, act_bits=bits))
        truth.assert_right(out, integer_product(x, bits))

    def test_sixteen_is_the_default(self, device: str) -> None:
        """And each of the three is a product of its own."""
        x = self.make(33, 65, 512, "K", device)
        outputs = [in_one(x, bits) for bits in (16, 8, 4)]
        truth.assert_same_bits(call(x), outputs[0])
        want = truth.float_product(x)
        errors = [truth.relative_error(out, want) for out in outputs]
        assert errors[0] < truth.FLOAT_BOUND < errors[1] < 0.02 < errors[2] < 0.3

    @every_form
    def test_what_quantization_has_to_take_care_of(self, device: str, bits: int, group) -> None:
        """All zeros, subnormal numbers, overflow; and a token with a NaN or an Inf is NaN, and
        touches no other."""
        a = cases.special_rows(256).to(torch.bfloat16).to(device)
        x = with_activations(self.make(a.shape[0], 70, 256, group, device), a)
        out = in_one(x, bits)
        truth.assert_same_bits(out, in_two(x, bits))
        spoilt = ~a.isfinite().all(-1)
        assert 4 <= spoilt.sum() < a.shape[0]
        assert torch.equal(out.isnan().all(-1), spoilt)
        assert torch.equal(out.isnan().any(-1), spoilt)

    @every_form
    def test_rows_are_read_in_place(self, device: str, bits: int, group) -> None:
        k = 256
        x = self.make(7, 40, k, group, device)
        g = cases.generator("in place")
        wide = torch.randn((6, 4, 3 * k), generator=g).to(torch.bfloat16).to(device)
        views = {
            "columns": wide[0, :, k : 2 * k],
            "leading dims": wide[2:5, :, k : 2 * k],
            "one repeated row": wide[0, :1, :k].expand(7, -1),
            "overlapping rows": wide.flatten().as_strided((5, k), (16, 1)),
            "one row": wide.flatten()[16 : 16 + k],
            "no rows": wide[:, :0, :k],
        }
        for name, a in views.items():
            part = with_activations(x, a)
            out = in_one(part, bits)
            assert out.shape == (*a.shape[:-1], 40)
            truth.assert_same_bits(out, in_one(with_activations(x, a.contiguous()), bits), name)
            truth.assert_same_bits(out, in_two(part, bits), name)

    @pytest.mark.parametrize("bits", [8, 4])
    def test_vectors_of_one_group(self, device: str, bits: int) -> None:
        """[N] is [N, 1], for scales and zeros."""
        x = self.make(18, 50, 160, "K", device)
        want = in_one(x, bits)
        for names in ({"scales"}, {"zeros"}, {"scales", "zeros"}):
            flat = {name: v.flatten() if name in names else v for name, v in x.vectors.items()}
            truth.assert_same_bits(in_one(replace(x, vectors=flat), bits), want)
        flat = {name: v.flatten() for name, v in x.vectors.items()}
        truth.assert_same_bits(in_two(replace(x, vectors=flat), bits), want)

    @every_form
    def test_same_bits_every_time(self, device: str, bits: int, group) -> None:
        x = self.make(130, 257, 2048, group, device)
        first = in_one(x, bits)
        for _ in range(4):
            truth.assert_same_bits(in_one(x, bits), first)

    @pytest.mark.parametrize("zero", [False, True], ids=["symmetric", "asymmetric"])
    def test_the_largest_k(self, device: str, zero: bool) -> None:
        """The longest row that is refused nothing, at the ends of the range."""
        x = self.make(2, 9, 131040, "K", device, data="extreme", b_zero="row.i8" if zero else "")
        x.a_values.fill_(-1.5)
        if zero:
            x.vectors["zeros"].fill_(7)
        truth.assert_right(in_one(x, 8), integer_product(x, 8))

    def test_groups_beyond_that_k(self, device: str) -> None:
        """Only each group's sum has to fit int32 where float32 sums cross groups."""
        x = self.make(2, 9, 262144, 128, device)
        out = in_one(x, 8)
        truth.assert_same_bits(out, in_two(x, 8))
        truth.assert_right(out, integer_product(x, 8))

    @pytest.mark.gpu
    def test_cpu_and_gpu_agree(self) -> None:
        for bits, case in cases.act_cases()[::5]:
            x = loud_and_quiet(cases.make(case))
            if integer_product(x, bits).case.exact:
                truth.assert_same_bits(in_one(x.to("cuda"), bits).cpu(), in_one(x, bits), case.id)

    @pytest.mark.gpu
    @every_form
    @pytest.mark.parametrize("m", [1, 16, 300])
    def test_quantizing_is_one_launch(self, bits: int, group, m: int) -> None:
        """One node of a CUDA graph more than the product of activations that were quantized."""
        x = self.make(m, 256, 1024, group, "cuda")
        quantize, multiply = _STEPS[bits]
        q, a_scale, _ = quantize(x.a)
        v = x.vectors
        product = partial(multiply, q, x.b, a_scale, v["scales"], b_zero=v["zeros"])
        whole = partial(
            qutlass.matmul_int4_bf16_tn, x.a, x.b, v["scales"], v["zeros"], act_bits=bits
        )
        assert graph_nodes(whole) == graph_nodes(product) + 1


def graph_nodes(run: Callable[[], torch.Tensor]) -> int:
    """What a call enqueues, as the nodes of a CUDA graph that captures it."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph):
        run()
    count = ctypes.c_size_t()
    nodes = ctypes.CDLL("libcuda.so.1").cuGraphGetNodes
    nodes.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t)]
    assert nodes(graph.raw_cuda_graph(), None, ctypes.byref(count)) == 0
    assert count.value >= 1
    return count.value
