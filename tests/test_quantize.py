# SPDX-License-Identifier: Apache-2.0
"""quantize_int8, quantize_int4, dequantize_int8, dequantize_int4 and split_group_scales."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import cases
import qutlass
import truth
from cases import DTYPES, QuantizeCase
from harness import PROPERTY, poisoned_memory

OPERATORS = {8: "quantize_int8", 4: "quantize_int4"}
TOP = {8: 127, 4: 7}
GPU_SHAPES = [(8192, 8192), (16, 28672), (4099, 4096)]


def run(x: torch.Tensor, bits: int, **keywords):
    size = x.numel()
    with poisoned_memory(x.device, size, size // 2, 4 * (size // max(x.shape[-1], 1)), 4):
        return getattr(qutlass, OPERATORS[bits])(x, **keywords)


def plain(q: torch.Tensor, bits: int) -> torch.Tensor:
    """The quantized values, one int8 each."""
    return q if bits == 8 else truth.unpack(q)


def assert_quantized(x: torch.Tensor, bits: int, **keywords) -> None:
    """Every bit of q, scale and zero."""
    before = x.clone()
    q, scale, zero = run(x, bits, **keywords)
    assert torch.equal(x.isnan(), before.isnan()) and torch.equal(
        x.nan_to_num(), before.nan_to_num()
    )
    want_q, want_scale, want_zero = truth.quantize(x, bits, **keywords)
    assert q.device == scale.device == x.device
    truth.assert_same_bits(scale.cpu(), want_scale, "scale")
    assert (zero is None) == (want_zero is None)
    if zero is not None:
        assert zero.device == x.device
        truth.assert_same_bits(zero.cpu(), want_zero, "zero")
    truth.assert_same_bits(plain(q, bits).cpu(), want_q, "q")


@pytest.mark.parametrize(
    ("bits", "case"),
    [pytest.param(b, c, id=f"int{b}-{c.id}") for b in (8, 4) for c in cases.quantize_cases(b)],
)
def test_quantize(device: str, bits: int, case: QuantizeCase) -> None:
    arguments = cases.make_quantize(case, device)
    assert_quantized(arguments["x"], bits, **arguments["keywords"])


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("shape", GPU_SHAPES, ids=str)
def test_large(bits: int, symmetric: bool, shape: tuple[int, int]) -> None:
    g = cases.generator(f"large {bits} {symmetric} {shape}")
    x = torch.randn(shape, generator=g).to(torch.bfloat16).cuda()
    assert_quantized(x, bits, symmetric=symmetric)
    if bits == 8:
        assert_quantized(x, bits, symmetric=symmetric, per_tensor=True)
    else:
        assert_quantized(x, bits, symmetric=symmetric, group_size=128)


@pytest.mark.compact
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_every_form_compactly(device: str, bits: int, symmetric: bool) -> None:
    for dtype, shape in itertools.product(("f32", "bf16", "f16"), ((3, 64), (5, 1056), (2, 8192))):
        x = cases.make_quantize(QuantizeCase(bits, shape, dtype))["x"].to(device)
        assert_quantized(x, bits, symmetric=symmetric)
        static = {"scale": torch.full((1,), 0.02, device=device)}
        if not symmetric:
            static["zero"] = torch.full((1,), 3, dtype=torch.int32, device=device)
        assert_quantized(x, bits, symmetric=symmetric, **static)
        if bits == 8:
            assert_quantized(x, bits, symmetric=symmetric, per_tensor=True)
        else:
            assert_quantized(x, bits, symmetric=symmetric, group_size=32)


@pytest.mark.parametrize("scale", [1.0, 0.25, 2.0**-126, 2.0**40], ids="{:.0e}".format)
def test_halves_round_to_even(device: str, scale: float) -> None:
    """x / scale is exactly n + 1/2 for every n there is, and a little over and under it."""
    n = torch.arange(-131, 131).float() + 0.5
    x = torch.cat([n, n.nextafter(n + 1), n.nextafter(n - 1)]) * scale
    assert torch.equal((x / scale)[: len(n)], n)
    given_scale = torch.tensor([scale], device=device)
    x = x.reshape(3, -1).to(device)
    assert_quantized(x, 8, scale=given_scale)
    q, _, _ = run(x, 8, scale=given_scale)
    evens = q[0].cpu()[(n.abs() < 126)]
    assert (evens % 2 == 0).all() and evens.unique().numel() == 127
    for zero in (-128, -1, 0, 5, 127):
        given_zero = torch.tensor([zero], dtype=torch.int32, device=device)
        assert_quantized(x, 8, symmetric=False, scale=given_scale, zero=given_zero)


@pytest.mark.parametrize("bits", [8, 4])
def test_division_is_not_a_product_with_the_reciprocal(device: str, bits: int) -> None:
    """Rows in which rint(x / scale) and rint(x * (1 / scale)) differ, found by search."""
    rng = np.random.default_rng(cases.seed_of(f"reciprocal {bits}"))
    top = np.float32(TOP[bits])
    found = []
    while len(found) < 40:
        amax = rng.uniform(0.5, 2, 4096).astype(np.float32)
        scale = amax / top
        half = rng.integers(-TOP[bits], TOP[bits], 4096).astype(np.float32) + np.float32(0.5)
        x = half * scale
        differs = np.rint(x / scale) != np.rint(x * (np.float32(1) / scale))
        found += [(a, v) for a, v in zip(amax[differs], x[differs], strict=True)]
    rows = torch.zeros((len(found), 32))
    rows[:, 0] = torch.tensor([float(a) for a, _ in found])
    rows[:, 1:] = torch.tensor([float(v) for _, v in found])[:, None]
    assert_quantized(rows.to(device), bits)


def test_static_scales_of_every_dtype(device: str) -> None:
    g = cases.generator("static dtypes")
    x = (torch.randn((2, 9, 320), generator=g) * 2).to(torch.bfloat16).to(device)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        scale = torch.rand((2, 9), generator=g).add(0.01).to(dtype).to(device)
        assert_quantized(x, 8, scale=scale)
        assert_quantized(x, 8, scale=scale[0, :1].clone())
        for zero_dtype in (torch.int32, torch.int8):
            zero = torch.randint(-128, 128, (2, 9), generator=g).to(zero_dtype).to(device)
            assert_quantized(x, 8, symmetric=False, scale=scale, zero=zero)


def test_static_takes_what_is_not_finite(device: str) -> None:
    """With a given scale an Inf saturates and a NaN becomes the zero point."""
    inf, nan = torch.inf, torch.nan
    x = torch.tensor([[inf, -inf, nan, 1.0, -1.0, 0.0, 3e38, -3e38]], device=device)
    scale = torch.tensor([0.5], device=device)
    q, _, zero = run(x, 8, scale=scale)
    assert zero is None and q.tolist() == [[127, -127, 0, 2, -2, 0, 127, -127]]
    zero = torch.tensor([7], dtype=torch.int32, device=device)
    q, _, _ = run(x, 8, symmetric=False, scale=scale, zero=zero)
    assert q.tolist() == [[127, -128, 7, 9, 5, 7, 127, -128]]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_a_spoilt_row_shows_and_touches_no_other(device, bits: int, symmetric: bool) -> None:
    """A NaN or an Inf makes the scale of its own row NaN, and q and zero 0."""
    x = torch.randn((5, 64), generator=cases.generator("spoilt"))
    clean_q, clean_scale, clean_zero = run(x.to(device), bits, symmetric=symmetric)
    x[1, 63], x[3, 0] = torch.nan, -torch.inf
    q, scale, zero = run(x.to(device), bits, symmetric=symmetric)
    for row in range(5):
        if row in (1, 3):
            assert scale[row].isnan() and not plain(q, bits)[row].any()
            assert zero is None or zero[row] == 0
        else:
            assert torch.equal(q[row], clean_q[row]) and scale[row] == clean_scale[row]
            assert zero is None or zero[row] == clean_zero[row]
    back = getattr(qutlass, f"dequantize_int{bits}")(q, scale, zero)
    assert back[[1, 3]].isnan().all() and back[[0, 2, 4]].isfinite().all()


@pytest.mark.parametrize("bits", [8, 4])
def test_zeros_have_scale_one(device: str, bits: int) -> None:
    x = torch.zeros((2, 32), device=device)
    for symmetric in (True, False):
        q, scale, zero = run(x, bits, symmetric=symmetric)
        assert scale.tolist() == [1.0, 1.0] and not plain(q, bits).any()
        assert (zero is None) if symmetric else not zero.any()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_data_may_start_anywhere(device: str, bits: int, dtype: str) -> None:
    """Rows that start at odd elements, an odd number of elements apart."""
    g = cases.generator(f"anywhere {bits} {dtype}")
    for offset, rows, cols, stride in ((1, 5, 96, 97), (3, 4, 1024, 1031), (7, 9, 4064, 4064)):
        memory = torch.randn(offset + rows * stride, generator=g).to(DTYPES[dtype]).to(device)
        x = memory.as_strided((rows, cols), (stride, 1), offset)
        for symmetric in (True, False):
            assert_quantized(x, bits, symmetric=symmetric)
        if bits == 4:
            assert_quantized(x, bits, group_size=32)
        else:
            assert_quantized(x, bits, per_tensor=True)


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [8, 4])
def test_cpu_and_gpu_agree(bits: int) -> None:
    for case in cases.quantize_cases(bits):
        on_cpu, on_gpu = cases.make_quantize(case), cases.make_quantize(case, "cuda")
        want = run(on_cpu["x"], bits, **on_cpu["keywords"])
        got = run(on_gpu["x"], bits, **on_gpu["keywords"])
        for name, g, w in zip(("q", "scale", "zero"), got, want, strict=True):
            assert (g is None) == (w is None)
            if w is not None:
                truth.assert_same_bits(g.cpu(), w, f"{case.id} {name}")


@pytest.mark.parametrize("bits", [8, 4])
def test_same_bits_every_time(device: str, bits: int) -> None:
    x = torch.randn((300, 1024), generator=cases.generator(f"again {bits}")).to(device)
    extra = {"per_tensor": True} if bits == 8 else {"group_size": 64}
    for keywords in ({"symmetric": False}, {"symmetric": False, **extra}):
        first = run(x, bits, **keywords)
        for _ in range(4):
            for got, want in zip(run(x, bits, **keywords), first, strict=True):
                truth.assert_same_bits(got, want)


# --------------------------------------------------------------------------------------------------


FLOATS = {name: DTYPES[name] for name in ("f32", "bf16", "f16")}


@pytest.mark.compact
@pytest.mark.parametrize("out", FLOATS)
@pytest.mark.parametrize("bits", [8, 4])
def test_dequantize(device: str, bits: int, out: str) -> None:
    dequantize = getattr(qutlass, f"dequantize_int{bits}")
    g = cases.generator(f"dequantize {bits} {out}")
    top = TOP[bits]
    zero_dtypes = (None, torch.int32, torch.int8, torch.float32, torch.bfloat16)
    for scale_dtype, zero_dtype in itertools.product(FLOATS.values(), zero_dtypes):
        for shape, groups in (((3, 64), 0), ((2, 5, 384), 0), ((7, 256), 4), ((4, 96), -1)):
            values = torch.randint(-top - 1, top + 1, shape, generator=g, dtype=torch.int8)
            vector_shape = (1,) if groups < 0 else (*shape[:-1], groups) if groups else shape[:-1]
            scale = torch.exp2(torch.rand(vector_shape, generator=g) * 8 - 6).to(scale_dtype)
            zero = None
            if zero_dtype is not None:
                zero = torch.rand(vector_shape, generator=g) * 2 * top - top
                zero = (zero if zero_dtype.is_floating_point else zero.round()).to(zero_dtype)
            run_length = values.numel() // scale.numel()
            if groups == 0 and zero is not None and out == "f32":
                zero = zero.flatten()[:1]  # one for all beside a scale for each
            want = truth.dequantize(values, scale, zero, FLOATS[out], run_length)
            q = cases.pack_by_hand(values) if bits == 4 else values
            arguments = [q.to(device), scale.to(device)]
            arguments += [zero.to(device)] if zero is not None else []
            with poisoned_memory(device, want.numel() * want.element_size()):
                got = dequantize(*arguments, dtype=FLOATS[out])
            what = f"{shape} in {groups} groups, scale {scale_dtype}, zero {zero_dtype}"
            truth.assert_same_bits(got.cpu(), want, what)


def test_dequantize_data_may_start_anywhere(device: str) -> None:
    g = cases.generator("dequantize anywhere")
    scale = (torch.rand(7, generator=g) + 0.1).to(device)
    for offset in (1, 2, 3, 4, 8, 17):
        memory = torch.randint(0, 256, (offset + 7 * 96,), generator=g, dtype=torch.uint8)
        memory = memory.to(device)[offset:]
        q = memory.view(torch.int8).view(7, 96)
        want = truth.dequantize(q, scale, None, torch.float32, 96)
        truth.assert_same_bits(qutlass.dequantize_int8(q, scale).cpu(), want)
        packed = memory.view(7, 96)
        want = truth.dequantize(truth.unpack(packed), scale, None, torch.float32, 192)
        truth.assert_same_bits(qutlass.dequantize_int4(packed, scale).cpu(), want)


# Large enough that the scale is a normal number, which keeps its own rounding out of the bound.
_MAGNITUDES = st.floats(2.0**-100, 2.0**14, width=32)
_FINITE = st.one_of(st.just(0.0), _MAGNITUDES, _MAGNITUDES.map(lambda v: -v))


@settings(PROPERTY, max_examples=100)
@given(
    x=hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.just(64)), elements=_FINITE),
    bits=st.sampled_from([8, 4]),
    symmetric=st.booleans(),
)
def test_nothing_moves_by_more_than_half_a_step(x: np.ndarray, bits: int, symmetric: bool) -> None:
    """The real value of q is within half a scale of x, beside float32's own rounding; where the
    zero point was rounded too, the ends of the range are within one."""
    q, scale, zero = getattr(qutlass, OPERATORS[bits])(torch.from_numpy(x), symmetric=symmetric)
    steps = plain(q, bits).double()
    if zero is not None:
        steps = steps - zero.double()[:, None]
    step = scale.double()[:, None]
    error = (steps * step - torch.from_numpy(x).double()).abs() / step
    values = plain(q, bits)
    clipped = (values == -TOP[bits] - 1) | (values == TOP[bits]) if not symmetric else False
    bound = torch.where(torch.as_tensor(clipped), 1.0, 0.5)
    # rint saw a quotient that float32 rounded: of at most 255 steps, half an ulp of 256.
    assert (error <= bound + 2.0**-15).all()


@settings(PROPERTY, max_examples=60)
@given(
    x=hnp.arrays(
        np.float32, (3, 32), elements=st.floats(width=32, allow_nan=True, allow_infinity=True)
    ),
    bits=st.sampled_from([8, 4]),
    symmetric=st.booleans(),
)
def test_any_float32_at_all(x: np.ndarray, bits: int, symmetric: bool) -> None:
    assert_quantized(torch.from_numpy(x), bits, symmetric=symmetric)


# --------------------------------------------------------------------------------------------------


def test_split_group_scales(device: str) -> None:
    """The same as the reference, whose optimum test_reference.py shows; and the error it reports is
    that of what it returns."""
    g = cases.generator("split on devices")
    for n, groups in ((1, 1), (3, 7), (300, 32)):
        scales = torch.exp2(torch.rand((n, groups), generator=g) * 4 - 8)
        zeros = torch.randint(-8, 8, (n, groups), generator=g, dtype=torch.int8)
        for keywords in ({}, {"zeros": zeros}):
            on_device = {name: v.to(device) for name, v in keywords.items()}
            want = qutlass.reference.split_group_scales(scales, return_error=True, **keywords)
            got = qutlass.split_group_scales(scales.to(device), return_error=True, **on_device)
            for value, expected in zip(got, want, strict=True):
                assert value.device.type == device
                assert value.dtype == expected.dtype and value.shape == expected.shape
            assert torch.equal(got[1].cpu(), want[1])
            torch.testing.assert_close(got[0].cpu(), want[0], rtol=1e-6, atol=0)
            rebuilt = got[0].double()[:, None] * got[1]
            wrong = (rebuilt.cpu() - scales.double()).norm() / scales.double().norm()
            assert abs(wrong.item() - got[2].item()) < 1e-6
            assert got[2] < 0.1
