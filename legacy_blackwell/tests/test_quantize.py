# SPDX-License-Identifier: Apache-2.0
import math
import statistics

import pytest
import torch

from legacy_blackwell.reference import (
    MX_ABS_MAX_FACTOR,
    QUEST_CLIP_SIGMAS,
    crop_scales,
    decode_e2m1,
    dequantize_mxfp4,
    dequantize_mxfp8,
    dequantize_nvfp4,
    encode_e2m1,
    fused_quantize_mx,
    fused_quantize_nv,
    fusedQuantizeMx,
    fusedQuantizeNv,
    hadamard_matrix,
    nv_global_scale,
    pack_mask,
    quantize_mxfp8,
    rotate,
    unpack_mask,
)

from .witness import (
    E2M1_TABLE,
    floor_power_of_two,
    nearest_e2m1,
    random_orthogonal,
    refusal_id,
    unpack_nibbles,
)

pytestmark = pytest.mark.legacy

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def rotated_rows(a: torch.Tensor, h: torch.Tensor) -> list[list[float]]:
    """a's runs times h by explicit sums, rounded to float32 once."""
    size = h.shape[0]
    rows = []
    for row in a.double().tolist():
        out = []
        for start in range(0, len(row), size):
            run = row[start : start + size]
            out += [
                math.fsum(x * y for x, y in zip(run, column, strict=True))
                for column in h.double().T.tolist()
            ]
        rows.append(torch.tensor(out, dtype=torch.float32).tolist())
    return rows


def groups_of(row: list[float], size: int) -> list[list[float]]:
    return [row[start : start + size] for start in range(0, len(row), size)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("method", ["quest", "abs_max"])
def test_mxfp4_agrees_with_scalar_arithmetic(method, size, dtype, generator):
    a = (torch.randn(5, 256, generator=generator) * 25).to(dtype)
    h = random_orthogonal(size, generator).to(dtype)
    packed, scales = fused_quantize_mx(a, h, method=method)
    assert scales.dtype == torch.float8_e8m0fnu
    assert scales.shape == (128, 8)
    codes, stored = unpack_nibbles(packed), scales.float().tolist()
    for index, row in enumerate(rotated_rows(a, h)):
        for g, group in enumerate(groups_of(row, 32)):
            if method == "quest":
                target = statistics.pstdev(group) * (2.92247856 / 6) + 1e-8
                factor = 1.0
            else:
                target = max(map(abs, group)) + 1e-8
                factor = 3.0
            assert stored[index][g] == floor_power_of_two(target)
            expected = [nearest_e2m1(value / stored[index][g] * factor) for value in group]
            assert codes[index][32 * g : 32 * g + 32] == expected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [16, 32, 64, 128])
@pytest.mark.parametrize("method", ["quest", "abs_max"])
def test_nvfp4_agrees_with_scalar_arithmetic(method, size, dtype, generator):
    a = (torch.randn(5, 256, generator=generator) * 3).to(dtype)
    h = random_orthogonal(size, generator).to(dtype)
    global_scale = 8.0
    packed, scales = fused_quantize_nv(a, h, torch.tensor([global_scale]), method=method)
    assert scales.dtype == torch.float8_e4m3fn
    assert scales.shape == (128, 16)
    codes, stored = unpack_nibbles(packed), scales.float().tolist()
    for index, row in enumerate(rotated_rows(a, h)):
        for g, group in enumerate(groups_of(row, 16)):
            if method == "quest":
                target, factor = statistics.pstdev(group) * (2.92247856 / 6) + 1e-8, 1.0
            else:
                target, factor = global_scale * max(map(abs, group)) / 6, global_scale
            scale = float(torch.tensor(target).to(torch.float8_e4m3fn).float())
            assert stored[index][g] == scale
            # The reference multiplies by factor / scale rounded to float32, as the kernels do.
            multiplier = float(torch.tensor(factor) / torch.tensor(scale))
            scaled = (torch.tensor(group) * multiplier).tolist()
            assert codes[index][16 * g : 16 * g + 16] == [nearest_e2m1(value) for value in scaled]


def test_the_legacy_names_are_the_same_functions():
    assert fusedQuantizeMx is fused_quantize_mx
    assert fusedQuantizeNv is fused_quantize_nv


@pytest.mark.parametrize("shape", [(32,), (3, 64), (2, 3, 96), (0, 32)])
def test_leading_dims(shape, generator):
    a = torch.randn(*shape, generator=generator)
    packed, scales = fused_quantize_mx(a, torch.eye(32), method="abs_max")
    assert packed.shape == (*shape[:-1], shape[-1] // 2)
    rows = math.prod(shape[:-1])
    assert scales.shape == (-(-rows // 128) * 128, -(-shape[-1] // 128) * 4)
    back = dequantize_mxfp4(packed, scales, global_scale=MX_ABS_MAX_FACTOR)
    assert back.shape == shape
    # Half a step of E2M1's widest gap, 2, under a scale that is a third of the group's exponent.
    assert bool(((back - a).abs() <= a.abs().amax(-1, keepdim=True) / 3 + 1e-6).all())


def test_mxfp4_abs_max_uses_the_top_binade_and_never_saturates(generator):
    a = torch.randn(64, 512, generator=generator) * torch.logspace(-6, 6, 64)[:, None]
    packed, _ = fused_quantize_mx(a, torch.eye(32), method="abs_max")
    largest = decode_e2m1(torch.tensor(unpack_nibbles(packed), dtype=torch.uint8)).unflatten(
        -1, (-1, 32)
    )
    assert set(largest.abs().amax(-1).flatten().tolist()) <= {3.0, 4.0, 6.0}


def test_values_of_the_format_survive_exactly(generator):
    grid = torch.tensor(E2M1_TABLE)[torch.randint(0, 16, (8, 64), generator=generator)]
    grid[:, ::16] = 6.0
    packed, scales = fused_quantize_nv(grid, torch.eye(16), torch.tensor([6.0]))
    assert torch.equal(dequantize_nvfp4(packed, scales, global_scale=6.0), grid)


def test_quest_clip_is_the_best_one_for_a_gaussian():
    x = torch.linspace(-8, 8, 160001, dtype=torch.float64)
    density = torch.exp(-x.square() / 2)

    def error(clip: float) -> float:
        rounded = decode_e2m1(encode_e2m1(x / (clip / 6))).double() * (clip / 6)
        return float(((rounded - x).square() * density).sum() / density.sum())

    best = error(QUEST_CLIP_SIGMAS)
    assert all(best < error(QUEST_CLIP_SIGMAS * factor) for factor in (0.9, 0.97, 1.03, 1.1))


def test_quest_reaches_the_gaussian_optimum_where_its_scale_is_a_power_of_two(generator):
    groups = torch.randn(8192, 32, generator=generator, dtype=torch.float64)
    groups *= 1.001 * (6 / QUEST_CLIP_SIGMAS) / groups.std(-1, correction=0, keepdim=True)
    a = groups.float()
    error = dequantize_mxfp4(*fused_quantize_mx(a, torch.eye(32), method="quest")) - a
    # sqrt(0.012685), the relative error of E2M1 under its best clip of a Gaussian.
    assert float(error.norm() / a.norm()) == pytest.approx(0.1126, rel=0.02)
    # The power of two is taken at or below: a group a little smaller loses nearly half its clip.
    error = dequantize_mxfp4(*fused_quantize_mx(0.99 * a, torch.eye(32), method="quest")) - 0.99 * a
    assert float(error.norm() / a.norm()) > 0.15


def test_clip_mask_marks_what_the_scale_keeps(generator):
    a = torch.randn(130, 96, generator=generator)
    a[0, :32] = 0.01 * a[0, :32]
    a[0, 5] = 100.0
    packed, scales, mask = fused_quantize_mx(a, torch.eye(32), method="quest", return_mask=True)
    assert mask.dtype == torch.uint8
    assert mask.shape == (130, 12)
    scale = crop_scales(scales, (130, 96), 32).float().repeat_interleave(32, -1)
    kept = unpack_mask(mask)
    assert torch.equal(kept, (a / scale).abs() < 6)
    assert not kept[0, 5]
    assert 0 < int((~kept).sum()) < kept.numel() // 10
    without = fused_quantize_mx(a, torch.eye(32), method="quest")
    assert torch.equal(without[0], packed)


def test_mask_bits_are_in_index_order():
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, 0] = mask[0, 9] = mask[1, 7] = True
    assert pack_mask(mask).tolist() == [[1, 2], [128, 0]]
    assert torch.equal(unpack_mask(pack_mask(mask)), mask)


def test_zero_groups_stay_zero():
    zeros = torch.zeros(2, 64)
    for method in ("quest", "abs_max"):
        assert not fused_quantize_mx(zeros, torch.eye(32), method=method)[0].any()
        packed, scales = fused_quantize_nv(zeros, torch.eye(16), torch.ones(1), method=method)
        assert not packed.any()
        assert not scales.float().any()
    elements, scales = quantize_mxfp8(zeros)
    assert not elements.float().any()
    assert bool((scales.float() == 1).all())


def test_nv_global_scale_fills_the_range_of_e4m3(generator):
    a = torch.randn(16, 256, generator=generator) * 1e-3
    scale = nv_global_scale(a)
    _, stored = fused_quantize_nv(a, torch.eye(16), scale)
    assert float(stored.float().max()) == 448.0


def test_mxfp8_agrees_with_torch(generator):
    x = torch.randn(7, 96, generator=generator) * 40
    elements, scales = quantize_mxfp8(x)
    for row in range(7):
        for g in range(3):
            group = x[row, 32 * g : 32 * g + 32]
            scale = floor_power_of_two(float(group.abs().max().bfloat16())) / 128
            assert float(scales[row, g].float()) == scale
            expected = (group / scale).to(torch.float8_e4m3fn)
            assert torch.equal(
                elements[row, 32 * g : 32 * g + 32].view(torch.uint8), expected.view(torch.uint8)
            )
    assert bool((elements.float().abs() <= 256).all())


def test_mxfp8_rotates_first(generator):
    x = torch.randn(4, 64, generator=generator)
    h = random_orthogonal(32, generator)
    rotated = rotate(x, h)
    for got, expected in zip(quantize_mxfp8(x, h), quantize_mxfp8(rotated), strict=True):
        assert torch.equal(got.view(torch.uint8), expected.view(torch.uint8))
    error = dequantize_mxfp8(*quantize_mxfp8(x, h)) - rotated
    assert float(error.norm() / rotated.norm()) < 0.04


def test_hadamard_is_orthonormal_and_symmetric():
    for size in (1, 2, 16, 32, 64, 128):
        h = hadamard_matrix(size, dtype=torch.float64)
        assert torch.allclose(h @ h.T, torch.eye(size, dtype=torch.float64), atol=1e-12)
        assert torch.equal(h, h.T)
        assert bool((h.abs() == h[0, 0]).all())


def test_rotation_is_a_row_vector_times_h(generator):
    x = torch.randn(3, 64, generator=generator, dtype=torch.float64)
    h = random_orthogonal(32, generator)
    expected = torch.cat([x[:, :32] @ h, x[:, 32:] @ h], dim=1)
    assert torch.allclose(rotate(x, h).double(), expected, atol=1e-6)
    assert not torch.allclose(rotate(x, h.T).double(), expected, atol=1e-1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: fused_quantize_mx(torch.zeros(2, 33), torch.eye(32)),
            ValueError,
            r"fused_quantize_mx: the last dim of a must be a multiple of 32, got shape \(2, 33\)",
        ),
        (
            lambda: fused_quantize_mx(torch.zeros(2, 64), torch.eye(16)),
            ValueError,
            r"size 32, 64, 128, got shape \(16, 16\)",
        ),
        (
            lambda: fused_quantize_mx(torch.zeros(2, 96), torch.eye(64)),
            ValueError,
            "64, must divide the last dim of a, 96",
        ),
        (
            lambda: fused_quantize_mx(torch.zeros(2, 32).int(), torch.eye(32)),
            TypeError,
            "torch.int32",
        ),
        (
            lambda: fused_quantize_mx(torch.zeros(2, 32), torch.eye(32), method="mse"),
            ValueError,
            "'quest' or 'abs_max', got 'mse'",
        ),
        (
            lambda: fused_quantize_mx(
                torch.zeros(2, 32), torch.eye(32), method="abs_max", return_mask=True
            ),
            ValueError,
            "return_mask takes method 'quest'",
        ),
        (
            lambda: fused_quantize_nv(torch.zeros(2, 16), torch.eye(16), torch.zeros(1)),
            ValueError,
            "global_scale must be one element > 0",
        ),
        (lambda: nv_global_scale(torch.zeros(3)), ValueError, "must be finite and > 0"),
        (lambda: quantize_mxfp8(torch.zeros(3, 31)), ValueError, "multiple of 32"),
        (lambda: hadamard_matrix(12), ValueError, "power of two, got 12"),
        (lambda: rotate(torch.zeros(2, 30), torch.eye(4)), ValueError, "R = 4 must divide"),
        (lambda: rotate(torch.zeros(2, 4), torch.zeros(2, 4)), ValueError, "square matrix"),
        (lambda: pack_mask(torch.zeros(7).bool()), ValueError, "multiple of 8, got 7"),
        (
            lambda: dequantize_mxfp4(
                torch.zeros(4, 32, dtype=torch.uint8),
                torch.zeros(2, 2, dtype=torch.uint8).view(torch.float8_e8m0fnu),
            ),
            ValueError,
            r"need at least \(4, 2\)",
        ),
    ],
    ids=refusal_id,
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
