# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from legacy_blackwell.reference import (
    MX_ABS_MAX_FACTOR,
    backward_bf16_square_double_mxfp8,
    backward_qt_bf16,
    backward_t_bf16,
    crop_scales,
    dequantize_mxfp4,
    dequantize_mxfp8,
    fused_quantize_mx,
    hadamard_matrix,
    matmul_mxf4_bf16_tn,
    matmul_mxf8_bf16_nn,
    matmul_mxf8_bf16_tn,
    mxfp4_transpose_mxfp8,
    rotate,
    to_blocked,
    unpack_mask,
)

from .witness import floor_power_of_two, nearest_e2m1, random_orthogonal, unpack_nibbles

pytestmark = pytest.mark.legacy


def check_transposed(q, scales, truth: torch.Tensor, alpha: float) -> None:
    """Scalar arithmetic over the rotated transpose: scale from the maximum, elements from it."""
    codes = unpack_nibbles(q.view(torch.uint8))
    for index, row in enumerate(truth.tolist()):
        for g in range(len(row) // 32):
            group = row[32 * g : 32 * g + 32]
            largest = float(torch.tensor(max(map(abs, group))) / alpha)
            scale = floor_power_of_two(largest)
            assert float(scales[index, g].float()) == scale
            factor = float(torch.tensor(3.0) / torch.tensor(scale * alpha))
            scaled = (torch.tensor(group) * factor).tolist()
            assert codes[index][32 * g : 32 * g + 32] == [nearest_e2m1(value) for value in scaled]


def test_transposed_gradient(generator):
    x = (torch.randn(96, 40, generator=generator) * 25).bfloat16()
    h = random_orthogonal(32, generator).bfloat16()
    q, scales = backward_t_bf16(x, h)
    assert q.dtype == torch.float4_e2m1fn_x2
    assert q.shape == (40, 48)
    assert scales.shape == (40, 3)
    check_transposed(q, scales, rotate(x.T, h), 1.0)


@pytest.mark.parametrize("alpha", [1.0, 3.0])
def test_transposed_saved_operand(alpha, generator):
    x = (torch.randn(64, 96, generator=generator) * 25).bfloat16()
    method = "quest" if alpha == 1.0 else "abs_max"
    saved, saved_scales = fused_quantize_mx(x, hadamard_matrix(32), method=method)
    h = random_orthogonal(32, generator).bfloat16()
    q, scales = backward_qt_bf16(saved, saved_scales, h, torch.tensor([alpha]))
    assert q.shape == (96, 32)
    assert scales.shape == (96, 2)
    check_transposed(q, scales, rotate(dequantize_mxfp4(saved, saved_scales).T, h), alpha)


def test_batched_operands(generator):
    x = torch.randn(2, 64, 32, generator=generator).bfloat16()
    q, scales = backward_t_bf16(x, hadamard_matrix(32))
    for index in range(2):
        single, single_scales = backward_t_bf16(x[index], hadamard_matrix(32))
        assert torch.equal(q[index].view(torch.uint8), single.view(torch.uint8))
        assert torch.equal(scales[index].view(torch.uint8), single_scales.view(torch.uint8))


def test_zero_group_of_a_gradient_is_zero():
    q, _ = backward_t_bf16(torch.zeros(32, 4), torch.eye(32))
    assert not q.view(torch.uint8).any()


def test_mxfp4_gradient_of_a_linear_layer(generator):
    """Both gradient products of y = x @ w.T from four-bit operands, against float64."""
    x = torch.randn(64, 96, generator=generator).bfloat16()
    w = torch.randn(128, 96, generator=generator).bfloat16()
    g = torch.randn(64, 128, generator=generator).bfloat16()
    forward = torch.eye(32).bfloat16()
    backward = hadamard_matrix(32)
    x_q, x_sf, x_mask = fused_quantize_mx(x, forward, return_mask=True)
    w_q, w_sf = fused_quantize_mx(w, forward)
    alpha = MX_ABS_MAX_FACTOR**-2

    g_q, g_sf = fused_quantize_mx(g, backward, method="abs_max")
    wt_q, wt_sf = backward_qt_bf16(w_q, w_sf, backward, 1.0)
    grad_x = matmul_mxf4_bf16_tn(
        g_q, wt_q.view(torch.uint8), to_blocked(g_sf), to_blocked(wt_sf), alpha
    )
    gt_q, gt_sf = backward_t_bf16(g, backward)
    xt_q, xt_sf = backward_qt_bf16(x_q, x_sf, backward, 1.0)
    grad_w = matmul_mxf4_bf16_tn(gt_q, xt_q, to_blocked(gt_sf), to_blocked(xt_sf), alpha)

    true_x, true_w = g.double() @ w.double(), g.double().T @ x.double()
    assert float((grad_x.double() - true_x).norm() / true_x.norm()) < 0.25
    assert float((grad_w.double() - true_w).norm() / true_w.norm()) < 0.25
    # The straight-through gradient keeps what the forward scale did not clip.
    kept = unpack_mask(x_mask)
    assert kept.shape == grad_x.shape
    assert 0.9 < float(kept.float().mean()) < 1.0


def test_square_scales_serve_both_directions(generator):
    x = (torch.randn(130, 96, generator=generator) * torch.logspace(-3, 3, 96)).bfloat16()
    q, rows, cols = backward_bf16_square_double_mxfp8(x)
    assert q.shape == (256, 96)
    assert rows.shape == (256, 3)
    assert cols.shape == (96, 8)
    along_n = dequantize_mxfp8(q, rows)
    along_m = dequantize_mxfp8(q.T.contiguous(), cols)
    assert torch.equal(along_n, along_m.T)
    assert not along_n[130:].any()
    for i in range(5):
        for j in range(3):
            square = x.float()[32 * i : 32 * i + 32, 32 * j : 32 * j + 32]
            scale = floor_power_of_two(float(square.abs().max())) / 128
            part = q[32 * i : 32 * i + square.shape[0], 32 * j : 32 * j + 32]
            expected = (square / scale).to(torch.float8_e4m3fn)
            assert torch.equal(part.view(torch.uint8), expected.view(torch.uint8))


def test_mxfp4_becomes_the_mxfp8_of_its_transpose(generator):
    x = torch.randn(100, 64, generator=generator).bfloat16()
    q, scales = fused_quantize_mx(x, hadamard_matrix(32))
    before = scales.view(torch.uint8).clone()
    qt, st = mxfp4_transpose_mxfp8(q, scales)
    assert qt.shape == (64, 256)
    assert st.shape == (64, 8)
    values = dequantize_mxfp4(q, scales)
    # An E2M1 value has one mantissa bit, so E4M3 holds it exactly unless it is far below the
    # maximum of its new group, which these are not.
    assert torch.equal(dequantize_mxfp8(qt, st)[:, :100], values.T)
    assert not qt[:, 100:].float().any()
    assert bool((st[:, 4:].float() == 1).all())
    assert torch.equal(scales.view(torch.uint8), before)


def test_mxfp8_gradient_of_a_linear_layer(generator):
    x = torch.randn(256, 64, generator=generator).bfloat16()
    w = torch.randn(256, 64, generator=generator).bfloat16()
    g = torch.randn(256, 256, generator=generator).bfloat16()
    h = torch.eye(32).bfloat16()
    x_q, x_sf = fused_quantize_mx(x, h)
    w_q, w_sf = fused_quantize_mx(w, h)
    g_q, g_rows, g_cols = backward_bf16_square_double_mxfp8(g)
    xt, xt_sf = mxfp4_transpose_mxfp8(x_q, x_sf)
    wt, wt_sf = mxfp4_transpose_mxfp8(w_q, w_sf)
    grad_x = matmul_mxf8_bf16_tn(g_q, wt, to_blocked(g_rows), to_blocked(wt_sf), 1.0)
    grad_w = matmul_mxf8_bf16_nn(g_q, xt, to_blocked(g_cols), to_blocked(xt_sf), 1.0)
    # Against the products with the same four-bit forward operands, eight bits cost little.
    true_x = g.double() @ dequantize_mxfp4(w_q, w_sf).double()
    true_w = g.double().T @ dequantize_mxfp4(x_q, x_sf).double()
    assert float((grad_x.double() - true_x).norm() / true_x.norm()) < 0.04
    assert float((grad_w.double() - true_w).norm() / true_w.norm()) < 0.04


def test_scales_may_come_padded_or_cropped(generator):
    q, scales = fused_quantize_mx(torch.randn(64, 64, generator=generator), torch.eye(32))
    cropped = crop_scales(scales, (64, 64), 32)
    for got, expected in zip(
        backward_qt_bf16(q, cropped, torch.eye(32), 1.0),
        backward_qt_bf16(q, scales, torch.eye(32), 1.0),
        strict=True,
    ):
        assert torch.equal(got.view(torch.uint8), expected.view(torch.uint8))


def test_refusals():
    x = torch.zeros(40, 64)
    with pytest.raises(ValueError, match="backward_t_bf16: the rows must be a multiple of 32"):
        backward_t_bf16(x, torch.eye(32))
    with pytest.raises(ValueError, match="h must be 32 x 32"):
        backward_t_bf16(x[:32], torch.eye(16))
    q, scales = fused_quantize_mx(x[:32], torch.eye(32))
    with pytest.raises(ValueError, match="alpha must be > 0"):
        backward_qt_bf16(q, scales, torch.eye(32), 0.0)
    with pytest.raises(ValueError, match="multiple of 32 columns"):
        backward_bf16_square_double_mxfp8(torch.zeros(4, 30))
    with pytest.raises(ValueError, match="must be a matrix"):
        mxfp4_transpose_mxfp8(torch.zeros(2, 2, 16, dtype=torch.uint8), scales)
