# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from legacy_blackwell.reference import (
    MX_ABS_MAX_FACTOR,
    crop_scales,
    fused_quantize_mx,
    fused_quantize_nv,
    hadamard_matrix,
    matmul_ada_mxf4_bf16_tn,
    matmul_mxf4_bf16_tn,
    matmul_mxf8_bf16_nn,
    matmul_mxf8_bf16_tn,
    matmul_nvf4_bf16_tn,
    nv_global_scale,
    quantize_mxfp8,
    to_blocked,
)

from .witness import E2M1_TABLE, unpack_nibbles

pytestmark = pytest.mark.legacy

SHAPES = [(1, 1, 32), (3, 5, 64), (129, 7, 160), (16, 130, 256)]


def values_of(packed: torch.Tensor, scales: torch.Tensor, group: int) -> torch.Tensor:
    """Dequantize through the table and torch's own cast of the scale dtype."""
    elements = torch.tensor(E2M1_TABLE, dtype=torch.float64)[torch.tensor(unpack_nibbles(packed))]
    crop = crop_scales(scales, tuple(elements.shape), group).double()
    return elements * crop.repeat_interleave(group, -1)


def expected_product(a: torch.Tensor, b: torch.Tensor, alpha: float) -> torch.Tensor:
    return ((a @ b.T).float() * alpha).bfloat16()


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
@pytest.mark.parametrize("method", ["quest", "abs_max"])
def test_mxfp4(m, n, k, method, generator):
    h = hadamard_matrix(32)
    a_q, a_sf = fused_quantize_mx(
        torch.randn(m, k, generator=generator).bfloat16(), h, method=method
    )
    b_q, b_sf = fused_quantize_mx(
        torch.randn(n, k, generator=generator).bfloat16(), h, method=method
    )
    expected = expected_product(values_of(a_q, a_sf, 32), values_of(b_q, b_sf, 32), 0.75)
    groups = k // 32
    blocked = (to_blocked(a_sf[:m, :groups]), to_blocked(b_sf[:n, :groups]))
    out = matmul_mxf4_bf16_tn(a_q, b_q, *blocked, torch.tensor([0.75]))
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected)
    assert torch.equal(matmul_ada_mxf4_bf16_tn(a_q, b_q, a_sf, b_sf, 0.75), expected)


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_blocking_the_padded_scales_is_the_same_product(m, n, k, generator):
    a_q, a_sf = fused_quantize_mx(torch.randn(m, k, generator=generator), torch.eye(32))
    b_q, b_sf = fused_quantize_mx(torch.randn(n, k, generator=generator), torch.eye(32))
    blocked = matmul_mxf4_bf16_tn(a_q, b_q, to_blocked(a_sf), to_blocked(b_sf), 1.0)
    assert torch.equal(blocked, matmul_ada_mxf4_bf16_tn(a_q, b_q, a_sf, b_sf, 1.0))


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_nvfp4(m, n, k, generator):
    h = hadamard_matrix(16)
    global_scale = torch.tensor([4.0])
    a_q, a_sf = fused_quantize_nv(torch.randn(m, k, generator=generator), h, global_scale)
    b_q, b_sf = fused_quantize_nv(torch.randn(n, k, generator=generator), h, global_scale)
    expected = expected_product(values_of(a_q, a_sf, 16), values_of(b_q, b_sf, 16), 1 / 16)
    out = matmul_nvf4_bf16_tn(a_q, b_q, to_blocked(a_sf), to_blocked(b_sf), 1 / 16)
    assert torch.equal(out, expected)


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_mxfp8_in_both_layouts(m, n, k, generator):
    a_q, a_sf = quantize_mxfp8(torch.randn(m, k, generator=generator))
    b_q, b_sf = quantize_mxfp8(torch.randn(n, k, generator=generator))
    a = a_q.double() * a_sf.double().repeat_interleave(32, -1)
    b = b_q.double() * b_sf.double().repeat_interleave(32, -1)
    expected = expected_product(a, b, 2.0)
    scales = (to_blocked(a_sf), to_blocked(b_sf))
    assert torch.equal(matmul_mxf8_bf16_tn(a_q, b_q, *scales, 2.0), expected)
    assert torch.equal(matmul_mxf8_bf16_nn(a_q.T.contiguous(), b_q, *scales, 2.0), expected)


def test_alpha_undoes_the_quantizers_factors(generator):
    a = torch.randn(64, 512, generator=generator)
    b = torch.randn(96, 512, generator=generator)
    truth = a.double() @ b.double().T
    h = hadamard_matrix(32, dtype=torch.float32)

    (a_q, a_sf), (b_q, b_sf) = (fused_quantize_mx(x, h, method="abs_max") for x in (a, b))
    alpha = MX_ABS_MAX_FACTOR**-2
    mx = matmul_mxf4_bf16_tn(a_q, b_q, to_blocked(a_sf), to_blocked(b_sf), alpha)

    a_scale, b_scale = nv_global_scale(a), nv_global_scale(b)
    a_q, a_sf = fused_quantize_nv(a, h, a_scale)
    b_q, b_sf = fused_quantize_nv(b, h, b_scale)
    alpha = 1 / (a_scale * b_scale)
    nv = matmul_nvf4_bf16_tn(a_q, b_q, to_blocked(a_sf), to_blocked(b_sf), alpha)

    # Both operands rounded to four bits, at most 12 % each: an alpha left out is off by 9 or more.
    for out in (mx, nv):
        assert float((out.double() - truth).norm() / truth.norm()) < 0.18


def test_refusals(generator):
    q, sf = fused_quantize_mx(torch.randn(2, 64, generator=generator), torch.eye(32))
    blocked = to_blocked(sf)
    with pytest.raises(ValueError, match="agree in K, got 64 and 32"):
        matmul_mxf4_bf16_tn(q, q[:, :16], blocked, blocked, 1.0)
    with pytest.raises(ValueError, match="must be matrices"):
        matmul_mxf4_bf16_tn(q[0], q, blocked, blocked, 1.0)
    with pytest.raises(ValueError, match="2 x 2 scales take 512 bytes, got 8"):
        matmul_mxf4_bf16_tn(q, q, sf[:2], blocked, 1.0)
    with pytest.raises(ValueError, match="alpha must be one element"):
        matmul_mxf4_bf16_tn(q, q, blocked, blocked, torch.ones(2))
    with pytest.raises(TypeError, match="one dtype"):
        matmul_mxf8_bf16_tn(q, q.view(torch.float8_e4m3fn), blocked, blocked, 1.0)
