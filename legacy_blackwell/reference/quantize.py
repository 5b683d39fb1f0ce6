# SPDX-License-Identifier: Apache-2.0
"""Rotation, group scale and rounding in one call: MXFP4, NVFP4 and MXFP8, and their inverses.

What each pair (format, method) stores, for a group v of rotated values:

    format  group  method   scale                                    element
    MXFP4    32    quest    floor2(std(v) * 2.92247856 / 6 + 1e-8)   e2m1(v / scale)
    MXFP4    32    abs_max  floor2(max|v| + 1e-8)                    e2m1(3 v / scale)
    NVFP4    16    abs_max  e4m3(global_scale * max|v| / 6)          e2m1(v * global_scale / scale)
    NVFP4    16    quest    e4m3(std(v) * 2.92247856 / 6 + 1e-8)     e2m1(v / scale)
    MXFP8    32    abs_max  floor2(max|v|) / 128                     e4m3(v / scale)

floor2 is the power of two at or below. With abs_max, element * scale is 3 (MXFP4) or global_scale
(NVFP4) times the value; the product's `alpha` or the `global_scale` of `dequantize_*` takes that
factor out again. The factor 3 places a group's maximum in [3, 6), so that nothing saturates.
2.92247856 is the clip, in standard deviations, that the library took for Gaussian values (QuEST,
arXiv 2502.05003; Quartet, arXiv 2505.14669).
"""

from typing import Literal

import torch
from torch import Tensor

from .elements import (
    E2M1_MAX,
    decode_e2m1,
    decode_e4m3,
    decode_e8m0,
    encode_e2m1,
    encode_e4m3,
    encode_e8m0,
    pack_e2m1,
    unpack_e2m1,
)
from .rotation import rotate
from .scale_layout import padded_shape

MX_GROUP = 32
NV_GROUP = 16
MX_ABS_MAX_FACTOR = 3.0
QUEST_CLIP_SIGMAS = 2.92247856
MXFP8_TOP_EXPONENT = 7

_EPSILON = 1e-8

Method = Literal["quest", "abs_max"]


def _check_operand(a: Tensor, h: Tensor, group: int, sizes: tuple[int, ...], name: str) -> None:
    if a.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise TypeError(f"{name}: a must be bfloat16, float16 or float32, got {a.dtype}")
    if a.dim() == 0 or a.shape[-1] % group:
        raise ValueError(
            f"{name}: the last dim of a must be a multiple of {group}, got shape {tuple(a.shape)}"
        )
    if h.dim() != 2 or h.shape[0] != h.shape[1] or h.shape[0] not in sizes:
        raise ValueError(
            f"{name}: h must be a square matrix of size {', '.join(map(str, sizes))}, "
            f"got shape {tuple(h.shape)}"
        )
    if a.shape[-1] % h.shape[0]:
        raise ValueError(
            f"{name}: the size of h, {h.shape[0]}, must divide the last dim of a, {a.shape[-1]}"
        )


def _check_method(method: str, name: str) -> None:
    if method not in ("quest", "abs_max"):
        raise ValueError(f"{name}: method must be 'quest' or 'abs_max', got {method!r}")


def _quest_scale(groups: Tensor) -> Tensor:
    sigma = groups.double().std(dim=-1, correction=0)
    return (sigma * (QUEST_CLIP_SIGMAS / E2M1_MAX) + _EPSILON).float()


def _pad_scales(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """[..., G] scale codes -> the padded matrix that the legacy quantizers return."""
    matrix = codes.flatten(end_dim=-2) if codes.dim() > 1 else codes[None]
    padded = matrix.new_zeros(padded_shape(*matrix.shape))
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    return padded.view(dtype)


def crop_scales(scales: Tensor, operand_shape: tuple[int, ...], group: int) -> Tensor:
    """Take the meaningful part out of a padded scale matrix.

    Args:
        scales: one-byte dtype, [>= rows, >= K / group], or already [..., K / group].
        operand_shape: (..., K), the shape of the quantized operand.
        group: elements that share a scale.
    Returns:
        [..., K / group], the same dtype.
    Raises:
        ValueError: scales has too few rows or columns.
    Example:
        >>> crop_scales(torch.zeros(128, 4, dtype=torch.uint8), (3, 64), 32).shape
        torch.Size([3, 2])
    """
    target = (*operand_shape[:-1], operand_shape[-1] // group)
    if tuple(scales.shape) == target:
        return scales
    rows = 1
    for size in operand_shape[:-1]:
        rows *= size
    if scales.dim() != 2 or scales.shape[0] < rows or scales.shape[1] < target[-1]:
        raise ValueError(
            f"scales of an operand of shape {operand_shape} need at least ({rows}, {target[-1]}) "
            f"elements, got shape {tuple(scales.shape)}"
        )
    return scales[:rows, : target[-1]].reshape(target)


def pack_mask(mask: Tensor) -> Tensor:
    """Pack a boolean mask eight to a byte, index 0 in bit 0.

    Args:
        mask: bool [..., K], K a multiple of 8.
    Returns:
        uint8 [..., K / 8].
    Raises:
        ValueError: K is not a multiple of 8.
    Example:
        >>> pack_mask(torch.tensor([True, False, True, False, False, False, False, True])).tolist()
        [133]
    """
    if mask.shape[-1] % 8:
        raise ValueError(f"pack_mask: the last dim must be a multiple of 8, got {mask.shape[-1]}")
    bits = torch.arange(8, device=mask.device)
    return (mask.unflatten(-1, (-1, 8)).int() << bits).sum(-1).to(torch.uint8)


def unpack_mask(packed: Tensor) -> Tensor:
    """Undo `pack_mask`.

    Args:
        packed: uint8 [..., K / 8].
    Returns:
        bool [..., K].
    Example:
        >>> unpack_mask(torch.tensor([5], dtype=torch.uint8)).tolist()
        [True, False, True, False, False, False, False, False]
    """
    bits = torch.arange(8, device=packed.device)
    return (packed[..., None].int() >> bits & 1).bool().flatten(-2)


def fused_quantize_mx(
    a: Tensor, h: Tensor, *, method: Method = "quest", return_mask: bool = False
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:
    """Rotate and quantize to MXFP4, as the legacy `fusedQuantizeMx`.

    Args:
        a: bfloat16, float16 or float32 [..., K], K a multiple of 32 and of R.
        h: [R, R], R in 32, 64, 128.
        method: how a group's scale is chosen; see the module's table.
        return_mask: also return which elements the scale did not clip; quest with R = 32 only.
    Returns:
        (e2m1, e8m0[, mask]): uint8 [..., K / 2]; float8_e8m0fnu [rows to a multiple of 128,
        K / 32 to a multiple of 4], zero bytes in the padding; uint8 [..., K / 8], bit 1 where
        |rotated value / scale| < 6.
    Raises:
        TypeError: the dtype of a. ValueError: a shape, the method, or a mask that is not to be had.
    Example:
        >>> q, sf = fused_quantize_mx(torch.ones(2, 64), torch.eye(32), method="abs_max")
        >>> q.shape, sf.shape, int(q[0, 0])  # 3 * 1 is code 5, twice
        (torch.Size([2, 32]), torch.Size([128, 4]), 85)
    """
    name = "fused_quantize_mx"
    _check_method(method, name)
    _check_operand(a, h, MX_GROUP, (32, 64, 128), name)
    if return_mask and (method != "quest" or h.shape[0] != MX_GROUP):
        raise ValueError(
            f"{name}: return_mask takes method 'quest' and a 32 x 32 h, "
            f"got {method!r} and {h.shape[0]} x {h.shape[0]}"
        )
    groups = rotate(a, h).unflatten(-1, (-1, MX_GROUP))
    if method == "quest":
        codes = encode_e8m0(_quest_scale(groups))
        scaled = groups / decode_e8m0(codes)[..., None]
    else:
        codes = encode_e8m0(groups.abs().amax(-1) + _EPSILON)
        scaled = groups / decode_e8m0(codes)[..., None] * MX_ABS_MAX_FACTOR
    scaled = scaled.flatten(-2)
    packed = pack_e2m1(encode_e2m1(scaled))
    scales = _pad_scales(codes, torch.float8_e8m0fnu)
    if return_mask:
        return packed, scales, pack_mask(scaled.abs() < E2M1_MAX)
    return packed, scales


def fused_quantize_nv(
    a: Tensor, h: Tensor, global_scale: Tensor, *, method: Method = "abs_max"
) -> tuple[Tensor, Tensor]:
    """Rotate and quantize to NVFP4, as the legacy `fusedQuantizeNv`.

    The kernels use approximate reciprocals; here divisions are exact, so an element that lies on a
    rounding boundary may differ by one code.

    Args:
        a: bfloat16, float16 or float32 [..., K], K a multiple of 16 and of R.
        h: [R, R], R in 16, 32, 64, 128.
        global_scale: one float32 element > 0; quest ignores it.
        method: how a group's scale is chosen; see the module's table.
    Returns:
        (e2m1, e4m3): uint8 [..., K / 2]; float8_e4m3fn [rows to a multiple of 128, K / 16 to a
        multiple of 4], zero bytes in the padding. A group whose scale rounds to 0 holds zeros.
    Raises:
        TypeError: the dtype of a. ValueError: a shape, the method, or global_scale.
    Example:
        >>> q, sf = fused_quantize_nv(torch.ones(1, 16), torch.eye(16), torch.tensor([6.0]))
        >>> float(sf[0, 0]), int(q[0, 0])  # 6 * 1 / 1 is code 7, twice
        (1.0, 119)
    """
    name = "fused_quantize_nv"
    _check_method(method, name)
    _check_operand(a, h, NV_GROUP, (16, 32, 64, 128), name)
    if global_scale.numel() != 1 or not float(global_scale) > 0:
        raise ValueError(f"{name}: global_scale must be one element > 0, got {global_scale}")
    groups = rotate(a, h).unflatten(-1, (-1, NV_GROUP))
    if method == "quest":
        factor = 1.0
        codes = encode_e4m3(_quest_scale(groups))
    else:
        factor = global_scale.to(groups).reshape(())
        codes = encode_e4m3(factor * (groups.abs().amax(-1) / E2M1_MAX))
    scale = decode_e4m3(codes)[..., None]
    scaled = torch.where(scale > 0, groups * (factor / scale), 0.0)
    return pack_e2m1(encode_e2m1(scaled.flatten(-2))), _pad_scales(codes, torch.float8_e4m3fn)


def nv_global_scale(x: Tensor) -> Tensor:
    """Choose NVFP4's tensor scale so that the largest group scale is E4M3's largest value.

    Args:
        x: floating point, any shape, not all zero, after the rotation if there is one.
    Returns:
        float32 [1]: 448 * 6 / max|x|.
    Raises:
        ValueError: x holds no finite value other than zero.
    Example:
        >>> nv_global_scale(torch.tensor([1.0, -2.0])).tolist()
        [1344.0]
    """
    largest = x.float().abs().max() if x.numel() else torch.zeros(())
    if not 0 < float(largest) < float("inf"):
        raise ValueError(f"nv_global_scale: max|x| must be finite and > 0, got {float(largest)}")
    return (448.0 * E2M1_MAX / largest).reshape(1)


def quantize_mxfp8(x: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Quantize to MXFP8 with the scale rule of the legacy backward kernels.

    Their scale is one power of two above the one of the OCP specification: a group's maximum lands
    in [128, 256) instead of [256, 512), so nothing saturates at 448.

    Args:
        x: floating point [..., K], K a multiple of 32 (and of R).
        h: [R, R] to rotate by first, or None.
    Returns:
        (e4m3, e8m0): float8_e4m3fn [..., K]; float8_e8m0fnu [..., K / 32], 1.0 for a zero group.
    Raises:
        ValueError: a shape.
    Example:
        >>> q, sf = quantize_mxfp8(torch.full((1, 32), 3.0))
        >>> float(q[0, 0]), float(sf[0, 0])
        (192.0, 0.015625)
    """
    if x.dim() == 0 or x.shape[-1] % MX_GROUP:
        raise ValueError(
            f"quantize_mxfp8: the last dim of x must be a multiple of {MX_GROUP}, "
            f"got shape {tuple(x.shape)}"
        )
    values = x.float() if h is None else rotate(x, h)
    groups = values.unflatten(-1, (-1, MX_GROUP))
    codes = mxfp8_scale_codes(groups.abs().amax(-1))
    elements = encode_e4m3(groups / decode_e8m0(codes)[..., None]).flatten(-2)
    return elements.view(torch.float8_e4m3fn), codes.view(torch.float8_e8m0fnu)


def mxfp8_scale_codes(amax: Tensor) -> Tensor:
    """Give the E8M0 code of an MXFP8 block's scale from the block's maximum.

    Args:
        amax: floating point, any shape, >= 0.
    Returns:
        uint8 of the same shape; 127 (a scale of 1) where amax is 0.
    Example:
        >>> mxfp8_scale_codes(torch.tensor([0.0, 3.0])).tolist()
        [127, 121]
    """
    codes = encode_e8m0(amax.bfloat16()).int() - MXFP8_TOP_EXPONENT
    return torch.where(amax == 0, 127, codes.clamp(min=0)).to(torch.uint8)


def dequantize_mxfp4(packed: Tensor, scales: Tensor, *, global_scale: float = 1.0) -> Tensor:
    """Give the values that MXFP4 data stands for.

    Args:
        packed: uint8 or float4_e2m1fn_x2 [..., K / 2].
        scales: float8_e8m0fnu, padded or [..., K / 32].
        global_scale: divides the result; `MX_ABS_MAX_FACTOR` for data of method abs_max.
    Returns:
        float32 [..., K].
    Raises:
        TypeError: the dtype of packed. ValueError: the shape of scales.
    Example:
        >>> q, sf = fused_quantize_mx(torch.ones(1, 32), torch.eye(32), method="abs_max")
        >>> float(dequantize_mxfp4(q, sf, global_scale=MX_ABS_MAX_FACTOR)[0, 0])
        1.0
    """
    values = decode_e2m1(unpack_e2m1(packed))
    codes = crop_scales(scales, tuple(values.shape), MX_GROUP).contiguous().view(torch.uint8)
    return (values.unflatten(-1, (-1, MX_GROUP)) * decode_e8m0(codes)[..., None]).flatten(
        -2
    ) / global_scale


def dequantize_nvfp4(packed: Tensor, scales: Tensor, *, global_scale: float = 1.0) -> Tensor:
    """Give the values that NVFP4 data stands for.

    Args:
        packed: uint8 or float4_e2m1fn_x2 [..., K / 2].
        scales: float8_e4m3fn, padded or [..., K / 16].
        global_scale: divides the result; the one that abs_max data was quantized with.
    Returns:
        float32 [..., K].
    Raises:
        TypeError: the dtype of packed. ValueError: the shape of scales.
    Example:
        >>> q, sf = fused_quantize_nv(torch.ones(1, 16), torch.eye(16), torch.tensor([6.0]))
        >>> float(dequantize_nvfp4(q, sf, global_scale=6.0)[0, 0])
        1.0
    """
    values = decode_e2m1(unpack_e2m1(packed))
    codes = crop_scales(scales, tuple(values.shape), NV_GROUP).contiguous().view(torch.uint8)
    return (values.unflatten(-1, (-1, NV_GROUP)) * decode_e4m3(codes)[..., None]).flatten(
        -2
    ) / global_scale


def dequantize_mxfp8(elements: Tensor, scales: Tensor) -> Tensor:
    """Give the values that MXFP8 data stands for.

    Args:
        elements: float8_e4m3fn [..., K].
        scales: float8_e8m0fnu, padded or [..., K / 32].
    Returns:
        float32 [..., K].
    Raises:
        ValueError: the shape of scales.
    Example:
        >>> float(dequantize_mxfp8(*quantize_mxfp8(torch.full((1, 32), 3.0)))[0, 0])
        3.0
    """
    values = decode_e4m3(elements.view(torch.uint8))
    codes = crop_scales(scales, tuple(values.shape), MX_GROUP).contiguous().view(torch.uint8)
    return (values.unflatten(-1, (-1, MX_GROUP)) * decode_e8m0(codes)[..., None]).flatten(-2)
