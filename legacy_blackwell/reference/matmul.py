# SPDX-License-Identifier: Apache-2.0
"""The block-scaled products: dequantize both operands, multiply, scale by alpha, round to bfloat16.

The tensor cores add in float32 in an order of their own. Here the sum is exact to float64 and then
rounded to float32, so hardware differs by its accumulation error only.
"""

import torch
from torch import Tensor

from .quantize import MX_GROUP, NV_GROUP, dequantize_mxfp4, dequantize_mxfp8, dequantize_nvfp4
from .scale_layout import from_blocked


def _finish(a: Tensor, b: Tensor, alpha: Tensor | float) -> Tensor:
    """[M, K] and [N, K] values -> bfloat16 [M, N], rounding where the kernels' epilogue does."""
    product = (a.double() @ b.double().T).float()
    factor = torch.as_tensor(alpha, dtype=torch.float32, device=a.device)
    if factor.numel() != 1:
        raise ValueError(f"alpha must be one element, got shape {tuple(factor.shape)}")
    return (product * factor.reshape(())).bfloat16()


def _check_pair(a: Tensor, b: Tensor, k_a: int, k_b: int, name: str) -> None:
    if a.dim() != 2 or b.dim() != 2:
        raise ValueError(
            f"{name}: a and b must be matrices, got shapes {tuple(a.shape)} and {tuple(b.shape)}"
        )
    if a.dtype != b.dtype:
        raise TypeError(f"{name}: a and b must have one dtype, got {a.dtype} and {b.dtype}")
    if k_a != k_b:
        raise ValueError(f"{name}: a and b must agree in K, got {k_a} and {k_b}")


def matmul_mxf4_bf16_tn(
    a: Tensor, b: Tensor, a_sf: Tensor, b_sf: Tensor, alpha: Tensor | float
) -> Tensor:
    """Multiply MXFP4 by MXFP4.

    Args:
        a: packed e2m1 [M, K / 2]. b: packed e2m1 [N, K / 2].
        a_sf: e8m0 scales of a, as `to_blocked` returns them. b_sf: the same for b.
        alpha: one element, multiplies the product.
    Returns:
        bfloat16 [M, N]: alpha * (a * a_sf) @ (b * b_sf).T.
    Raises:
        TypeError: a dtype. ValueError: a shape.
    Example:
        >>> from legacy_blackwell.reference import fused_quantize_mx, to_blocked
        >>> q, sf = fused_quantize_mx(torch.ones(1, 32), torch.eye(32), method="abs_max")
        >>> blocked = to_blocked(sf[:1, :1])
        >>> matmul_mxf4_bf16_tn(q, q, blocked, blocked, alpha=1 / 9).tolist()
        [[32.0]]
    """
    _check_pair(a, b, 2 * a.shape[-1], 2 * b.shape[-1], "matmul_mxf4_bf16_tn")
    groups = 2 * a.shape[1] // MX_GROUP
    return _finish(
        dequantize_mxfp4(a, from_blocked(a_sf, a.shape[0], groups)),
        dequantize_mxfp4(b, from_blocked(b_sf, b.shape[0], groups)),
        alpha,
    )


def matmul_ada_mxf4_bf16_tn(
    a: Tensor, b: Tensor, a_sf: Tensor, b_sf: Tensor, alpha: Tensor | float
) -> Tensor:
    """Multiply MXFP4 by MXFP4 with scales that were not rearranged.

    Args:
        a: packed e2m1 [M, K / 2]. b: packed e2m1 [N, K / 2].
        a_sf: e8m0 scales of a, row-major and possibly padded. b_sf: the same for b.
        alpha: one element, multiplies the product.
    Returns:
        bfloat16 [M, N]: alpha * (a * a_sf) @ (b * b_sf).T.
    Raises:
        TypeError: a dtype. ValueError: a shape.
    Example:
        >>> from legacy_blackwell.reference import fused_quantize_mx
        >>> q, sf = fused_quantize_mx(torch.ones(1, 32), torch.eye(32), method="abs_max")
        >>> matmul_ada_mxf4_bf16_tn(q, q, sf, sf, alpha=1 / 9).tolist()
        [[32.0]]
    """
    _check_pair(a, b, 2 * a.shape[-1], 2 * b.shape[-1], "matmul_ada_mxf4_bf16_tn")
    return _finish(dequantize_mxfp4(a, a_sf), dequantize_mxfp4(b, b_sf), alpha)


def matmul_nvf4_bf16_tn(
    a: Tensor, b: Tensor, a_sf: Tensor, b_sf: Tensor, alpha: Tensor | float
) -> Tensor:
    """Multiply NVFP4 by NVFP4.

    Args:
        a: packed e2m1 [M, K / 2]. b: packed e2m1 [N, K / 2].
        a_sf: e4m3 scales of a, as `to_blocked` returns them. b_sf: the same for b.
        alpha: one element, multiplies the product.
    Returns:
        bfloat16 [M, N]: alpha * (a * a_sf) @ (b * b_sf).T.
    Raises:
        TypeError: a dtype. ValueError: a shape.
    Example:
        >>> from legacy_blackwell.reference import fused_quantize_nv, to_blocked
        >>> q, sf = fused_quantize_nv(torch.ones(1, 16), torch.eye(16), torch.tensor([6.0]))
        >>> blocked = to_blocked(sf[:1, :1])
        >>> matmul_nvf4_bf16_tn(q, q, blocked, blocked, alpha=1 / 36).tolist()
        [[16.0]]
    """
    _check_pair(a, b, 2 * a.shape[-1], 2 * b.shape[-1], "matmul_nvf4_bf16_tn")
    groups = 2 * a.shape[1] // NV_GROUP
    return _finish(
        dequantize_nvfp4(a, from_blocked(a_sf, a.shape[0], groups)),
        dequantize_nvfp4(b, from_blocked(b_sf, b.shape[0], groups)),
        alpha,
    )


def matmul_mxf8_bf16_tn(
    a: Tensor, b: Tensor, a_sf: Tensor, b_sf: Tensor, alpha: Tensor | float
) -> Tensor:
    """Multiply MXFP8 by MXFP8, both with K contiguous.

    Args:
        a: float8_e4m3fn [M, K]. b: float8_e4m3fn [N, K].
        a_sf: e8m0 scales [M, K / 32] of a, as `to_blocked` returns them. b_sf: the same for b.
        alpha: one element, multiplies the product.
    Returns:
        bfloat16 [M, N]: alpha * (a * a_sf) @ (b * b_sf).T.
    Raises:
        TypeError: a dtype. ValueError: a shape.
    Example:
        >>> from legacy_blackwell.reference import quantize_mxfp8, to_blocked
        >>> q, sf = quantize_mxfp8(torch.ones(1, 32))
        >>> matmul_mxf8_bf16_tn(q, q, to_blocked(sf), to_blocked(sf), alpha=1.0).tolist()
        [[32.0]]
    """
    _check_pair(a, b, a.shape[-1], b.shape[-1], "matmul_mxf8_bf16_tn")
    groups = a.shape[1] // MX_GROUP
    return _finish(
        dequantize_mxfp8(a, from_blocked(a_sf, a.shape[0], groups)),
        dequantize_mxfp8(b, from_blocked(b_sf, b.shape[0], groups)),
        alpha,
    )


def matmul_mxf8_bf16_nn(
    a: Tensor, b: Tensor, a_sf: Tensor, b_sf: Tensor, alpha: Tensor | float
) -> Tensor:
    """Multiply MXFP8 by MXFP8 where a is stored with M contiguous.

    Args:
        a: float8_e4m3fn [K, M]. b: float8_e4m3fn [N, K].
        a_sf: e8m0 scales [M, K / 32] of a's transpose, as `to_blocked` returns them.
        b_sf: e8m0 scales [N, K / 32] of b, likewise.
        alpha: one element, multiplies the product.
    Returns:
        bfloat16 [M, N]: alpha * (a.T * a_sf) @ (b * b_sf).T.
    Raises:
        TypeError: a dtype. ValueError: a shape.
    Example:
        >>> from legacy_blackwell.reference import quantize_mxfp8, to_blocked
        >>> q, sf = quantize_mxfp8(torch.ones(1, 32))
        >>> matmul_mxf8_bf16_nn(q.T, q, to_blocked(sf), to_blocked(sf), alpha=1.0).tolist()
        [[32.0]]
    """
    _check_pair(a, b, a.shape[0], b.shape[-1], "matmul_mxf8_bf16_nn")
    groups = a.shape[0] // MX_GROUP
    return _finish(
        dequantize_mxfp8(a.T.contiguous(), from_blocked(a_sf, a.shape[1], groups)),
        dequantize_mxfp8(b, from_blocked(b_sf, b.shape[0], groups)),
        alpha,
    )
