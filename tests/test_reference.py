# SPDX-License-Identifier: Apache-2.0
"""qutlass.reference against arithmetic done one number at a time: Python integers, fractions that
are rounded by hand, NumPy float32 scalars, and examples worked out on paper."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

import cases
import truth
from cases import GemmCase, GemmInputs, QuantizeCase
from qutlass import reference

F32 = np.float32


def rounded(value: Fraction, significant: int, least: int = -126) -> Fraction:
    """The nearest binary float with so many significant bits, ties to even; `least` is the
    exponent of the smallest normal number."""
    if value == 0:
        return value
    magnitude = abs(value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if magnitude < Fraction(2) ** exponent:
        exponent -= 1
    step = Fraction(2) ** (max(exponent, least) - significant + 1)
    steps = math.floor(magnitude / step)
    rest = magnitude / step - steps
    if rest > Fraction(1, 2) or (rest == Fraction(1, 2) and steps % 2):
        steps += 1
    return steps * step * (1 if value > 0 else -1)


def fractions(t: torch.Tensor | None, count: int, absent: int = 0) -> list[Fraction]:
    """A vector of any form as `count` exact numbers."""
    if t is None:
        return [Fraction(absent)] * count
    values = [Fraction(v) for v in t.double().flatten().tolist()]
    return values * count if len(values) == 1 else values


def test_rounding_by_hand_is_right() -> None:
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.normal(size=300), rng.normal(size=300) * 2.0**-130, [1 + 2**-8]])
    for v in values.tolist():
        assert rounded(Fraction(v), 24) == Fraction(float(F32(v)))
        t = torch.tensor(v, dtype=torch.float32)
        got = rounded(Fraction(t.item()), 8)
        assert got == Fraction(t.to(torch.bfloat16).item())


# --------------------------------------------------------------------------------------------------
# Packing


def test_pack_bytes_written_out() -> None:
    w = torch.tensor([*range(16), *range(-16, 0)]).remainder(16)
    w = torch.where(w > 7, w - 16, w)
    # Low nibbles 0..f are k = 0..15, high nibbles 0..f are k = 16..31.
    want = [0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77]
    want += [0x88, 0x99, 0xAA, 0xBB, 0xCC, 0xDD, 0xEE, 0xFF]
    assert reference.pack_int4(w).tolist() == want
    w = torch.zeros(64, dtype=torch.int32)
    for k, byte, value in ((0, 0, 0x0F), (15, 15, 0x0F), (16, 0, 0xF0), (31, 15, 0xF0)):
        for block in (0, 1):
            one = w.clone()
            one[32 * block + k] = -1
            packed = [0] * 32
            packed[16 * block + byte] = value
            assert reference.pack_int4(one).tolist() == packed
            assert torch.equal(reference.unpack_int4(torch.tensor(packed).byte()).int(), one)


def test_unpack_one_byte_at_a_time() -> None:
    packed = torch.randint(0, 256, (3, 48), generator=cases.generator("bytes"), dtype=torch.uint8)
    want = torch.zeros((3, 96), dtype=torch.int8)
    for row, column in itertools.product(range(3), range(48)):
        byte = int(packed[row, column])
        k = column // 16 * 32 + column % 16
        for at, nibble in ((k, byte % 16), (k + 16, byte // 16)):
            want[row, at] = nibble - 16 if nibble >= 8 else nibble
    assert torch.equal(reference.unpack_int4(packed), want)
    assert torch.equal(truth.unpack(packed), want)
    assert torch.equal(reference.pack_int4(want), packed)
    assert torch.equal(cases.pack_by_hand(want), packed)


@pytest.mark.parametrize("packed", [False, True], ids=["int8", "int4"])
def test_weight_sums_by_hand(packed: bool) -> None:
    low = -8 if packed else -128
    g = cases.generator(f"reference sums {packed}")
    w = torch.randint(low, -low, (5, 192), generator=g, dtype=torch.int8)
    stored = reference.pack_int4(w) if packed else w
    rows = w.tolist()
    assert reference.weight_sums(stored).tolist() == [sum(row) for row in rows]
    for size in (32, 64, 96, 192):
        want = [[sum(row[k : k + size]) for k in range(0, 192, size)] for row in rows]
        assert reference.weight_sums(stored, group_size=size).tolist() == want


# --------------------------------------------------------------------------------------------------
# Quantization


def quantize_one_by_one(
    run: np.ndarray, top: int, symmetric: bool, scale: F32 | None, zero: int | None
) -> tuple[list[int], F32, int | None]:
    """A run of numbers that share a scale, in float32 scalars."""
    low, high = (-top, top) if symmetric else (-top - 1, top)
    computed = scale is None
    if computed:
        if not all(np.isfinite(v) for v in run):
            return [0] * len(run), F32(np.nan), None if symmetric else 0
        if symmetric:
            scale = F32(max(abs(v) for v in run)) / F32(top)
        else:
            least, most = F32(min(*run, F32(0))), F32(max(*run, F32(0)))
            scale = F32(most - least) / F32(2 * top + 1)
        if not np.isfinite(scale):
            return [0] * len(run), F32(np.nan), None if symmetric else 0
        if scale == 0:
            return [0] * len(run), F32(1), None if symmetric else 0
        if not symmetric:
            zero = int(min(max(np.rint(F32(low) - F32(least / scale)), low), high))
    q = []
    for v in run:
        steps = np.rint(F32(v) / scale)
        if np.isnan(steps):
            steps = F32(0)
        q.append(int(min(max(float(steps) + (zero or 0), low), high)))
    return q, scale, zero


SMALL = [case for b in (8, 4) for case in cases.quantize_cases(b) if math.prod(case.shape) <= 2000]


@pytest.mark.parametrize("case", SMALL, ids=lambda c: f"int{c.bits}-{c.id}")
@np.errstate(all="ignore")
def test_quantize_one_number_at_a_time(case: QuantizeCase) -> None:
    arguments = cases.make_quantize(case)
    x, keywords = arguments["x"], arguments["keywords"]
    q, scale, zero = getattr(reference, f"quantize_int{case.bits}")(x, **keywords)
    length = x.numel() if case.per_tensor else case.group or x.shape[-1]
    runs = x.float().reshape(-1, length).numpy() if length else np.empty((0, 0), np.float32)
    given_scale = keywords.get("scale")
    want_q, want_scale, want_zero = [], [], []
    for i, run in enumerate(runs):
        at = i if given_scale is not None and given_scale.numel() > 1 else 0
        one_q, one_scale, one_zero = quantize_one_by_one(
            run,
            2 ** (case.bits - 1) - 1,
            case.symmetric,
            None if given_scale is None else F32(given_scale.flatten()[at].item()),
            None if "zero" not in keywords else int(keywords["zero"].flatten()[at]),
        )
        want_q += one_q
        want_scale.append(one_scale)
        want_zero.append(one_zero)
    values = truth.unpack(q) if case.bits == 4 else q
    assert values.flatten().tolist() == want_q
    got_scale = scale.flatten().numpy()
    assert got_scale.dtype == np.float32
    if len(want_scale):
        np.testing.assert_array_equal(got_scale, np.array(want_scale, np.float32))
    assert (zero is None) == case.symmetric
    if zero is not None and len(want_zero):
        assert zero.dtype == torch.int32 and zero.flatten().tolist() == want_zero
    tokens = x.shape[:-1]
    assert scale.shape == (
        (1,) if case.per_tensor else (*tokens, x.shape[-1] // case.group) if case.group else tokens
    )


def test_quantize_worked_examples() -> None:
    # amax 254: scale 2. Halves go to even: 1/2 -> 0, 3/2 -> 2, 5/2 -> 2, -3/2 -> -2.
    x = torch.tensor([[254.0, 1.0, 3.0, 5.0, -3.0, -254.0, 7.5]])
    q, scale, zero = reference.quantize_int8(x)
    assert q.tolist() == [[127, 0, 2, 2, -2, -127, 4]] and scale.tolist() == [2.0] and zero is None
    # From -1 to 509: scale 510 / 255 = 2, zero rint(-128 + 1/2) = rint(-127.5) = -128.
    x = torch.tensor([[-1.0, 0.0, 2.0, 509.0, 3.0]])
    q, scale, zero = reference.quantize_int8(x, symmetric=False)
    assert scale.tolist() == [2.0] and zero.tolist() == [-128]
    assert q.tolist() == [[-128, -128, -127, 126, -126]]  # 254.5 -> 254, 1.5 -> 2
    # All positive: the range is taken down to 0.
    q, scale, zero = reference.quantize_int8(torch.tensor([[255.0, 51.0]]), symmetric=False)
    assert scale.tolist() == [1.0] and zero.tolist() == [-128] and q.tolist() == [[127, -77]]
    # All negative: up to 0.
    q, scale, zero = reference.quantize_int8(torch.tensor([[-255.0, -51.0]]), symmetric=False)
    assert scale.tolist() == [1.0] and zero.tolist() == [127] and q.tolist() == [[-128, 76]]
    # Two groups of 32: the first reaches 7, the second 14.
    x = torch.cat([torch.full((32,), -7.0), torch.full((32,), 14.0)])[None]
    packed, scale, zero = reference.quantize_int4(x, group_size=32)
    assert packed.tolist() == [[0x99] * 16 + [0x77] * 16]
    assert scale.tolist() == [[1.0, 2.0]] and zero is None
    # From -15 to 0: scale 1, zero 7, -15 -> -8 and 0 -> 7.
    x = torch.cat([torch.full((16,), -15.0), torch.zeros(16)])
    packed, scale, zero = reference.quantize_int4(x, symmetric=False)
    assert packed.tolist() == [0x78] * 16 and scale.item() == 1.0 and zero.item() == 7
    # Static: 1.25 / 0.5 = 2.5 -> 2, plus 100.
    q, scale, zero = reference.quantize_int8(
        torch.tensor([1.25, 20.0, -200.0]),
        symmetric=False,
        scale=torch.tensor([0.5]),
        zero=torch.tensor([100], dtype=torch.int8),
    )
    assert q.tolist() == [102, 127, -128] and scale.item() == 0.5 and zero.item() == 100


def test_dequantize_one_number_at_a_time() -> None:
    g = cases.generator("reference dequantize")
    q = torch.randint(-8, 8, (3, 64), generator=g, dtype=torch.int8)
    for groups, zero_dtype, out in itertools.product(
        (1, 2), (None, torch.int32, torch.float32, torch.bfloat16), (torch.float32, torch.bfloat16)
    ):
        scale = torch.rand((3, groups), generator=g) + 0.1
        zero = None
        if zero_dtype is not None:
            zero = (torch.rand((3, groups), generator=g) * 12 - 6).to(zero_dtype)
        want = torch.empty((3, 64), dtype=out)
        for row, k in itertools.product(range(3), range(64)):
            at = (row, k * groups // 64)
            value = rounded(
                Fraction(int(q[row, k])) - fractions(zero, 6)[at[0] * groups + at[1]], 24
            )
            value = rounded(value * Fraction(scale[at].item()), 24)
            want[row, k] = float(rounded(value, 8) if out == torch.bfloat16 else value)
        if groups == 1:
            scale, zero = scale.flatten(), None if zero is None else zero.flatten()
        assert torch.equal(reference.dequantize_int8(q, scale, zero, dtype=out), want)
        packed = cases.pack_by_hand(q)
        assert torch.equal(reference.dequantize_int4(packed, scale, zero, dtype=out), want)


# --------------------------------------------------------------------------------------------------
# Products


def product_one_by_one(x: GemmInputs) -> list[list[Fraction]]:
    """The integer products, with each step of the contract rounded by hand."""
    m, n, k = x.case.m, x.case.n, x.case.k
    v = x.vectors
    a, b = x.a_values.tolist(), x.b_values.tolist()
    a_zero, a_scale = fractions(v.get("a_zero"), m), fractions(v["a_scale"], m)
    b_scale, bias = fractions(v["b_scale"], n), fractions(v.get("bias"), n)
    if x.case.multiplier:
        groups = k // x.case.group
        multiplier = v["b_multiplier"].tolist()
        zeros = v["b_zero"].tolist() if "b_zero" in v else [[0] * groups] * n
        weight = [
            [multiplier[j][i // x.case.group] * (b[j][i] - zeros[j][i // x.case.group])
             for i in range(k)]
            for j in range(n)
        ]  # fmt: skip
    else:
        b_zero = fractions(v.get("b_zero"), n)
        weight = [[b[j][i] - int(b_zero[j]) for i in range(k)] for j in range(n)]
    out = []
    for row in range(m):
        centred = [value - int(a_zero[row]) for value in a[row]]
        out.append([])
        for j in range(n):
            t = rounded(Fraction(sum(p * q for p, q in zip(centred, weight[j], strict=True))), 24)
            t = rounded(t * b_scale[j], 24)
            t = rounded(t * a_scale[row], 24)
            if x.case.bias:
                t = rounded(t + bias[j], 24)
            out[-1].append(rounded(t, 8))
    return out


def small_products(op: str) -> list[GemmCase]:
    return [cases.case_for(op, 3, 4, 160, choice) for choice in cases.option_sets(op)]


EXACT = [c for op in ("int8", "w4a4", "w4a8") for c in small_products(op) if c.exact]
FLOAT = [c for op in ("w4a8", "int4") for c in small_products(op) if not c.exact]


@pytest.mark.parametrize("case", EXACT, ids=lambda c: f"{c.op}-{c.id}")
def test_integer_products_one_number_at_a_time(case: GemmCase) -> None:
    x = cases.make(case)
    positional, keyword = x.arguments()
    got = getattr(reference, x.operator)(*positional, **keyword)
    assert got.dtype == torch.bfloat16 and got.shape == x.out_shape
    want = product_one_by_one(x)
    assert [[Fraction(v) for v in row] for row in got.reshape(case.m, case.n).tolist()] == want
    truth.assert_same_bits(truth.exact_product(x), got, "the suite's own truth")


@pytest.mark.parametrize("case", FLOAT, ids=lambda c: f"{c.op}-{c.id}")
def test_float_products_one_number_at_a_time(case: GemmCase) -> None:
    x = cases.make(case)
    m, n, group = case.m, case.n, case.group
    positional, keyword = x.arguments()
    got = getattr(reference, x.operator)(*positional, **keyword, out_dtype=torch.float64)
    got = got.reshape(m, n)
    v = x.vectors
    scale = v["scales"] if case.op == "int4" else v["b_scale"]
    zero = v.get("zeros", v.get("b_zero"))
    a_scale, a_zero = fractions(v.get("a_scale"), m, 1), fractions(v.get("a_zero"), m)
    bias = fractions(v.get("bias"), n)
    for row, j in itertools.product(range(m), range(n)):
        total = magnitude = Fraction(0)
        for k in range(case.k):
            z = Fraction(zero[j, k // group].item()) if zero is not None else 0
            weight = (int(x.b_values[j, k]) - z) * Fraction(scale[j, k // group].item())
            term = (Fraction(x.a_values[row, k].item()) - a_zero[row]) * a_scale[row] * weight
            total, magnitude = total + term, magnitude + abs(term)
        want = total + bias[j]
        assert abs(Fraction(got[row, j].item()) - want) <= (magnitude + abs(want)) * 2**-48
    truth.assert_same_bits(truth.float_product(x).to(torch.bfloat16).reshape(m, n),
                           got.to(torch.bfloat16), "the suite's own truth")  # fmt: skip


def test_products_worked_out_on_paper() -> None:
    one = torch.ones(1)
    # a = 3, its zero 1, b = -2, its zero 2: 16 · 2 · (-4) = -128; · 0.5 · 0.25 - 1 = -17.
    a = torch.full((1, 16), 3, dtype=torch.int8)
    b = torch.full((1, 16), -2, dtype=torch.int8)
    i32 = torch.int32
    out = reference.matmul_int8_bf16_tn(
        a, b, one / 4, one / 2, torch.tensor([1], dtype=i32), torch.tensor([2], dtype=i32),
        torch.tensor([-32], dtype=i32), -one,
    )  # fmt: skip
    assert out.tolist() == [[-17.0]]
    # 2**24 + 1 is no float32: the sum rounds to 2**24 before anything else happens to it.
    a = torch.full((1, 1056), 127, dtype=torch.int8)
    b = a.clone()
    a[0, 1040:], b[0, 1040:] = 0, 0
    rest = 2**24 + 1 - 1040 * 127 * 127
    a[0, 1040], b[0, 1040] = 127, rest // 127
    a[0, 1041], b[0, 1041] = 1, rest % 127
    out = reference.matmul_int8_bf16_tn(a, b, one, one, bias=torch.tensor([-(2.0**24)]))
    assert out.tolist() == [[0.0]]
    # -8 · 7 · 32 = -1792.
    a = reference.pack_int4(torch.full((1, 32), -8))
    b = reference.pack_int4(torch.full((1, 32), 7))
    assert reference.matmul_w4a4_bf16_tn(a, b, one, one).tolist() == [[-1792.0]]
    # Two groups of 32 with multipliers 2 and 3, zeros 1 and 0: 32 · (2 · (5 - 1) + 3 · 5) = 736.
    a = torch.ones((1, 64), dtype=torch.int8)
    b = reference.pack_int4(torch.full((1, 64), 5))
    out = reference.matmul_w4a8_bf16_tn(
        a, b, one, one, b_multiplier=torch.tensor([[2, 3]], dtype=torch.uint8),
        b_zero=torch.tensor([[1, 0]], dtype=torch.int8),
    )  # fmt: skip
    assert out.tolist() == [[736.0]]
    # The same weight with float group scales 0.5 and 4: 32 · (0.5 · 5 + 4 · 5) = 720.
    out = reference.matmul_w4a8_bf16_tn(a, b, one, torch.tensor([[0.5, 4.0]]))
    assert out.tolist() == [[720.0]]
    # And weight only, with zeros 0.5 and 5: 2 · 32 · (0.5 · 4.5 + 4 · 0) + 1 = 145.
    out = reference.matmul_int4_bf16_tn(
        torch.full((1, 64), 2.0, dtype=torch.bfloat16), b, torch.tensor([[0.5, 4.0]]),
        torch.tensor([[0.5, 5.0]]), one,
    )  # fmt: skip
    assert out.tolist() == [[145.0]]
    # With zeros 1 and 0 and a quantized: to 127 of 2 / 127, where
    # 32 · 127 · (0.5 · 4 + 4 · 5) · 2 / 127 = 1408; and, one scale a row, to 7 of 2 / 7, where
    # 64 · 7 · 4 · 0.5 · 2 / 7 = 256.
    a = torch.full((1, 64), 2.0, dtype=torch.bfloat16)
    out = reference.matmul_int4_bf16_tn(
        a, b, torch.tensor([[0.5, 4.0]]), torch.tensor([[1, 0]], dtype=i32), act_bits=8
    )
    assert out.tolist() == [[1408.0]]
    one_zero = torch.ones(1, dtype=i32)
    for act_bits in (8, 4):
        out = reference.matmul_int4_bf16_tn(a, b, one / 2, one_zero, act_bits=act_bits)
        assert out.tolist() == [[256.0]]


def test_unsigned_checkpoints_become_signed_by_subtracting_eight() -> None:
    """q and z of 0..15 as AWQ and GPTQ store them give the same real weight."""
    g = cases.generator("unsigned")
    q_u, z_u = torch.randint(0, 16, (2, 64), generator=g), torch.randint(0, 16, (2, 1), generator=g)
    scale = torch.rand((2, 1), generator=g) + 0.5
    real = ((q_u - z_u) * scale.double()).float()
    packed = reference.pack_int4(q_u - 8)
    zero = (z_u - 8).to(torch.int32)
    assert torch.equal(reference.dequantize_int4(packed, scale, zero), real)


@pytest.mark.parametrize("a_bits", [4, 8])
@pytest.mark.parametrize("b_bits", [4, 8])
def test_max_k_by_extremes(a_bits: int, b_bits: int) -> None:
    for a_zero, b_zero in itertools.product((False, True), repeat=2):

        def ends(bits: int, zero: bool) -> list[int]:
            low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
            return [low - high, high - low] if zero else [low, high]

        terms = [p * q for p in ends(a_bits, a_zero) for q in ends(b_bits, b_zero)]
        k = reference.max_k(a_bits, a_zero, b_bits, b_zero)
        # 2**31 is allowed as the one sum beyond int32 that is a float32 and has no other meaning.
        assert min(terms) * k >= -(2**31) and max(terms) * k <= 2**31
        assert max(terms) * (k + 1) > 2**31 or min(terms) * (k + 1) < -(2**31)


# --------------------------------------------------------------------------------------------------
# Two-level scales


def best_two_level(scales: list[float], limits: list[int]) -> float:
    """The least squared error of s * m over all multipliers, by trying each combination."""
    best = math.inf
    for m in itertools.product(*(range(1, limit + 1) for limit in limits)):
        s = sum(p * q for p, q in zip(scales, m, strict=True)) / sum(q * q for q in m)
        best = min(best, sum((p - s * q) ** 2 for p, q in zip(scales, m, strict=True)))
    return best


def test_split_group_scales_is_the_best_there_is() -> None:
    g = cases.generator("split")
    scales = torch.exp2(torch.rand((12, 3), generator=g) * 5 - 6)
    zeros = torch.randint(-8, 9, (12, 3), generator=g, dtype=torch.int8)
    for zero in (None, zeros):
        b_scale, multiplier, error = reference.split_group_scales(
            scales, zeros=zero, return_error=True
        )
        assert b_scale.dtype == torch.float32 and b_scale.shape == (12,)
        assert multiplier.dtype == torch.uint8 and multiplier.shape == (12, 3)
        assert multiplier.min() >= 1 and multiplier.max() <= 15
        if zero is not None:
            reach = torch.stack([(q - zero.int()) * multiplier.int() for q in (-8, 7)])
            assert reach.min() >= -128 and reach.max() <= 127
        rebuilt = b_scale.double()[:, None] * multiplier
        wrong = rebuilt - scales.double()
        assert abs(error.item() - (wrong.norm() / scales.double().norm()).item()) < 1e-6
        for row in range(12):
            limits = [15] * 3
            if zero is not None:
                limits = [
                    max(m for m in range(1, 16) if m * (7 - z) <= 127 and m * (-8 - z) >= -128)
                    for z in zero[row].tolist()
                ]
            least = best_two_level(scales[row].double().tolist(), limits)
            got = (wrong[row] ** 2).sum().item()
            assert got <= least + 1e-6 * (scales[row].double() ** 2).sum().item()


def test_split_group_scales_finds_exact_ones() -> None:
    multiplier = torch.tensor([[1, 15, 7, 8], [15, 14, 13, 2]])
    scales = multiplier * torch.tensor([[0.25], [0.375]])
    b_scale, found, error = reference.split_group_scales(scales, return_error=True)
    assert torch.equal(found.long(), multiplier) and b_scale.tolist() == [0.25, 0.375]
    assert error == 0


def test_one_zero_beside_a_scale_each_row() -> None:
    q = torch.arange(-32, 32, dtype=torch.int8).repeat(3, 1)
    scale = torch.tensor([1.0, 2.0, 4.0])
    got = reference.dequantize_int8(q, scale, torch.tensor([5], dtype=torch.int32))
    assert torch.equal(got, (q.float() - 5) * scale[:, None])


def test_int4_groups_are_whole_blocks() -> None:
    with pytest.raises(ValueError, match="group_size must be a multiple of 32, got 48"):
        reference.quantize_int4(torch.randn(2, 96), group_size=48)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"act_bits": 6}, ValueError, "act_bits must be 16, 8 or 4, got 6"),
        ({"act_bits": 4}, ValueError, r"scales must be \[3, 1\] or \[3\] with act_bits=4, got"),
        ({"act_bits": 8, "zeros": torch.ones(3, 2)}, TypeError, "zeros must be .* got float32"),
    ],
)
def test_activations_to_be_quantized_are_refused_what_integers_refuse(
    changes: dict, error: type[Exception], message: str
) -> None:
    a = torch.ones(2, 64, dtype=torch.bfloat16)
    b = torch.zeros(3, 32, dtype=torch.uint8)
    with pytest.raises(error, match=f"^matmul_int4_bf16_tn: {message}"):
        reference.matmul_int4_bf16_tn(a, b, torch.ones(3, 2), **changes)


@pytest.mark.parametrize(("act_bits", "limit"), [(8, 131040), (4, 2**25)])
def test_activations_to_be_quantized_have_the_limit_of_k(act_bits: int, limit: int) -> None:
    k = limit + 32
    a = torch.ones(1, k, dtype=torch.bfloat16, device="meta")
    b = torch.zeros(1, k // 2, dtype=torch.uint8, device="meta")
    with pytest.raises(ValueError, match=f"^matmul_int4_bf16_tn: K must be at most {limit} for"):
        reference.matmul_int4_bf16_tn(a, b, torch.ones(1, device="meta"), act_bits=act_bits)
