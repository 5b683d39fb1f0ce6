# SPDX-License-Identifier: Apache-2.0
"""The quantizers of the training path: operands transposed, so that the gradient products see K.

A backward pass multiplies along the tokens and along the output features, not along the input
features that the forward scales were taken over. The legacy library re-quantized for that: to
MXFP4 (`backward_t_bf16`, `backward_qt_bf16`, for sm_120) or to MXFP8
(`backward_bf16_square_double_mxfp8`, `mxfp4_transpose_mxfp8`, for sm_100).
"""

import torch
from torch import Tensor

from .elements import decode_e8m0, encode_e2m1, encode_e4m3, encode_e8m0, pack_e2m1
from .quantize import (
    MX_ABS_MAX_FACTOR,
    MX_GROUP,
    dequantize_mxfp4,
    mxfp8_scale_codes,
    quantize_mxfp8,
)
from .rotation import rotate

_SQUARE_ROW_MULTIPLE = 128
_TRANSPOSE_ROW_MULTIPLE = 256


def _quantize_transpose(x: Tensor, h: Tensor, alpha: float, name: str) -> tuple[Tensor, Tensor]:
    """[..., n, m] values -> MXFP4 of the rotated [..., m, n], three times too large over alpha."""
    if h.shape != (MX_GROUP, MX_GROUP):
        raise ValueError(f"{name}: h must be {MX_GROUP} x {MX_GROUP}, got {tuple(h.shape)}")
    if x.dim() < 2 or x.shape[-2] % MX_GROUP:
        raise ValueError(
            f"{name}: the rows must be a multiple of {MX_GROUP}, got {tuple(x.shape)} values"
        )
    groups = rotate(x.transpose(-2, -1), h).unflatten(-1, (-1, MX_GROUP))
    codes = encode_e8m0(groups.abs().amax(-1) / alpha)
    factor = MX_ABS_MAX_FACTOR / (decode_e8m0(codes) * alpha)
    # The factor of a group of zeros is infinite.
    scaled = torch.where(groups == 0, groups, groups * factor[..., None])
    elements = encode_e2m1(scaled.flatten(-2))
    return pack_e2m1(elements).view(torch.float4_e2m1fn_x2), codes.view(torch.float8_e8m0fnu)


def backward_t_bf16(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Transpose, rotate and quantize to MXFP4.

    Args:
        x: bfloat16 [..., n, m], n a multiple of 32.
        h: [32, 32], applied along n.
    Returns:
        (e2m1, e8m0): float4_e2m1fn_x2 [..., m, n / 2]; float8_e8m0fnu [..., m, n / 32].
        Element times scale is 3 times the value; a group of zeros holds zeros.
    Raises:
        ValueError: a shape.
    Example:
        >>> q, sf = backward_t_bf16(torch.ones(32, 4, dtype=torch.bfloat16), torch.eye(32))
        >>> q.shape, float(sf[0, 0])
        (torch.Size([4, 16]), 1.0)
    """
    return _quantize_transpose(x, h, 1.0, "backward_t_bf16")


def backward_qt_bf16(
    x_e2m1: Tensor, x_e8m0: Tensor, h: Tensor, alpha: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Dequantize, transpose, rotate and quantize to MXFP4 again.

    Args:
        x_e2m1: packed e2m1 [..., n, m / 2], n a multiple of 32.
        x_e8m0: its float8_e8m0fnu scales [..., n, m / 32], or the padded matrix.
        h: [32, 32], applied along n.
        alpha: one element; what element times scale of the input is too large by (3 for abs_max).
    Returns:
        (e2m1, e8m0): float4_e2m1fn_x2 [..., m, n / 2]; float8_e8m0fnu [..., m, n / 32].
        Element times scale is 3 times the value.
    Raises:
        ValueError: a shape, or alpha.
    Example:
        >>> from legacy_blackwell.reference import fused_quantize_mx
        >>> q, sf = fused_quantize_mx(torch.ones(32, 32), torch.eye(32), method="abs_max")
        >>> qt, sft = backward_qt_bf16(q, sf, torch.eye(32), alpha=3.0)
        >>> bool((qt.view(torch.uint8) == q).all()), float(sft[0, 0])
        (True, 1.0)
    """
    factor = float(alpha)
    if not factor > 0:
        raise ValueError(f"backward_qt_bf16: alpha must be > 0, got {factor}")
    values = dequantize_mxfp4(x_e2m1, x_e8m0)
    return _quantize_transpose(values, h, factor, "backward_qt_bf16")


def backward_bf16_square_double_mxfp8(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize to MXFP8 with one scale for each 32 x 32 square, so the transpose needs no other.

    Args:
        x: bfloat16 [m, n], n a multiple of 32.
    Returns:
        (e4m3, row_scales, column_scales): float8_e4m3fn [m', n]; float8_e8m0fnu [m', n / 32] for
        products along n; float8_e8m0fnu [n, m' / 32] for products along m. m' is m rounded up to a
        multiple of 128 with rows of zeros.
    Raises:
        ValueError: a shape.
    Example:
        >>> q, rows, cols = backward_bf16_square_double_mxfp8(torch.ones(3, 64))
        >>> q.shape, rows.shape, cols.shape
        (torch.Size([128, 64]), torch.Size([128, 2]), torch.Size([64, 4]))
    """
    if x.dim() != 2 or x.shape[1] % MX_GROUP:
        raise ValueError(
            "backward_bf16_square_double_mxfp8: x must be a matrix with a multiple of "
            f"{MX_GROUP} columns, got shape {tuple(x.shape)}"
        )
    padding = -x.shape[0] % _SQUARE_ROW_MULTIPLE
    values = torch.nn.functional.pad(x.float(), (0, 0, 0, padding))
    squares = values.unflatten(0, (-1, MX_GROUP)).unflatten(2, (-1, MX_GROUP))
    codes = mxfp8_scale_codes(squares.abs().amax((1, 3)))
    elements = encode_e4m3(squares / decode_e8m0(codes)[:, None, :, None])
    return (
        elements.flatten(2).flatten(0, 1).view(torch.float8_e4m3fn),
        codes.repeat_interleave(MX_GROUP, 0).view(torch.float8_e8m0fnu),
        codes.T.repeat_interleave(MX_GROUP, 0).view(torch.float8_e8m0fnu),
    )


def mxfp4_transpose_mxfp8(x_fp4: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Turn MXFP4 into the MXFP8 of its transpose.

    The legacy function also overwrote the scales of the rows it padded; here `scales` is read only.

    Args:
        x_fp4: packed e2m1 [m, n / 2].
        scales: its float8_e8m0fnu scales [m, n / 32], or the padded matrix.
    Returns:
        (e4m3, e8m0): float8_e4m3fn [n, m']; float8_e8m0fnu [n, m' / 32]. m' is m rounded up to a
        multiple of 256 with zeros.
    Raises:
        ValueError: a shape.
    Example:
        >>> from legacy_blackwell.reference import fused_quantize_mx
        >>> q, sf = fused_quantize_mx(torch.ones(2, 32), torch.eye(32))
        >>> qt, sft = mxfp4_transpose_mxfp8(q, sf)
        >>> qt.shape, sft.shape
        (torch.Size([32, 256]), torch.Size([32, 8]))
    """
    if x_fp4.dim() != 2:
        raise ValueError(
            f"mxfp4_transpose_mxfp8: x_fp4 must be a matrix, got shape {tuple(x_fp4.shape)}"
        )
    padding = -x_fp4.shape[0] % _TRANSPOSE_ROW_MULTIPLE
    values = torch.nn.functional.pad(dequantize_mxfp4(x_fp4, scales), (0, 0, 0, padding))
    return quantize_mxfp8(values.T.contiguous())
