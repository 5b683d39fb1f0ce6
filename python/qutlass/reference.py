# SPDX-License-Identifier: Apache-2.0
"""The operator contract as plain PyTorch: what every operator must compute, on any device.

Nothing here is fast and nothing here is approximate. Integer sums are exact (float64 products of
small integers, far below 2**53); the float32 steps that follow are separate tensor operations, so
that each rounds on its own, in the order the contract gives. Where float32 sums cross groups the
operators are only bound by an error, so these functions compute them in float64.

The functions carry the operators' names and arguments. They check what makes a result meaningful
and may synchronise to look at values, which the operators never do.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "dequantize_int4",
    "dequantize_int8",
    "matmul_int4_bf16_tn",
    "matmul_int8_bf16_tn",
    "matmul_w4a4_bf16_tn",
    "matmul_w4a8_bf16_tn",
    "max_k",
    "pack_int4",
    "quantize_int4",
    "quantize_int8",
    "split_group_scales",
    "unpack_int4",
    "weight_sums",
]

_BLOCK = 32  # values in a block of packed INT4
_HALF = 16  # bytes in it
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)


def pack_int4(w: Tensor) -> Tensor:
    """Pack integers in [-8, 7] two a byte, in blocks of 32 along the last dim.

    Byte i of a block's 16 holds k = i in its low nibble and k = 16 + i in its high nibble.

    Args:
        w: Integers of any dtype in [-8, 7], shape [..., K], K a multiple of 32.

    Returns:
        uint8 [..., K/2].

    Raises:
        TypeError: `w` is not of an integer dtype.
        ValueError: K is not a multiple of 32, or a value is out of range.

    Example:
        >>> pack_int4(torch.arange(-8, 8).repeat(2))[:3]
        tensor([136, 153, 170], dtype=torch.uint8)
    """
    op = "pack_int4"
    _check_dtype(op, "w", w, _INTEGERS)
    _check_blocks(op, "w", w)
    bad = ((w < -8) | (w > 7)) if w.dtype != torch.uint8 else w > 7
    if bad.any():
        index = tuple(bad.nonzero()[0].tolist())
        raise ValueError(f"{op}: w must hold values in [-8, 7], got {w[index].item()} at {index}")
    blocks = (w.to(torch.int16) & 0xF).unflatten(-1, (-1, 2, _HALF))
    packed = blocks[..., 0, :] | (blocks[..., 1, :] << 4)
    return packed.to(torch.uint8).flatten(-2)


def unpack_int4(packed: Tensor) -> Tensor:
    """Undo `pack_int4` exactly.

    Args:
        packed: uint8 [..., K/2].

    Returns:
        int8 [..., K] with values in [-8, 7].

    Raises:
        TypeError: `packed` is not uint8.
        ValueError: its last dim is not a multiple of 16.

    Example:
        >>> w = torch.randint(-8, 8, (3, 64), dtype=torch.int8)
        >>> bool((unpack_int4(pack_int4(w)) == w).all())
        True
    """
    op = "unpack_int4"
    _check_dtype(op, "packed", packed, (torch.uint8,))
    if packed.dim() == 0 or packed.shape[-1] % _HALF:
        raise ValueError(
            f"{op}: the last dim of packed must be a multiple of {_HALF}, "
            f"got shape {tuple(packed.shape)}"
        )
    blocks = packed.unflatten(-1, (-1, 1, _HALF)).to(torch.int8)
    nibbles = torch.cat([blocks & 0xF, (blocks >> 4) & 0xF], dim=-2)
    return ((nibbles ^ 8) - 8).flatten(-3)


def quantize_int8(
    x: Tensor,
    *,
    symmetric: bool = True,
    scale: Tensor | None = None,
    zero: Tensor | None = None,
    per_tensor: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Quantize to INT8, one scale for each run of the last dim (token) or for the whole tensor.

    With float32 steps and round-half-to-even:
    symmetric `scale = amax / 127`, `q = clamp(rint(x / scale), -127, 127)`; asymmetric
    `scale = (max(x, 0) - min(x, 0)) / 255`, `zero = clamp(rint(-128 - min / scale), -128, 127)`,
    `q = clamp(rint(x / scale) + zero, -128, 127)`. The real value is `(q - zero) * scale`.

    A computed scale of 0 (all-zero token, underflow) becomes 1, with q and zero 0. A token that
    holds a NaN or an Inf, or whose scale overflows, gets scale NaN and q and zero 0, so that
    whatever uses it shows NaN.

    Given `scale` (and `zero`) the quantization is static: an Inf in x saturates and a NaN becomes
    the zero point. A given `zero` means the asymmetric range, whatever `symmetric` says.

    Args:
        x: float32, bfloat16 or float16, shape [..., K].
        symmetric: Whether to compute a scale alone or a scale and a zero point.
        scale: float32, bfloat16 or float16; one element, or shape x.shape[:-1] (+ (1,)).
        zero: int32 or int8, like `scale`; only together with `scale`.
        per_tensor: Whether one scale serves the whole tensor.

    Returns:
        q int8 [..., K]; scale float32 x.shape[:-1], or [1] per tensor; zero int32 like scale, or
        None where symmetric.

    Raises:
        TypeError: A dtype that is not taken.
        ValueError: A shape that does not fit, or `zero` without `scale`.

    Example:
        >>> q, scale, zero = quantize_int8(torch.tensor([[1.0, -2.0]]))
        >>> q, zero
        (tensor([[  64, -127]], dtype=torch.int8), None)
    """
    op = "quantize_int8"
    _check_quantize(op, x, symmetric, scale, zero)
    shape = torch.Size([1]) if per_tensor else x.shape[:-1]
    runs = x.float().reshape(1, x.numel()) if per_tensor else x.float()
    q, scale, zero = _quantize(op, runs, 127, symmetric, scale, zero)
    return q.reshape(x.shape), scale.reshape(shape), None if zero is None else zero.reshape(shape)


def quantize_int4(
    x: Tensor,
    *,
    symmetric: bool = True,
    scale: Tensor | None = None,
    zero: Tensor | None = None,
    group_size: int | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Quantize to packed INT4, one scale for each row or for each group of columns.

    The rules of `quantize_int8` with 7 for 127, 15 for 255 and [-8, 7] for [-128, 127].

    Args:
        x: float32, bfloat16 or float16, shape [..., K], K a multiple of 32.
        symmetric: Whether to compute a scale alone or a scale and a zero point.
        scale: float32, bfloat16 or float16; one element, or the shape of the returned scale.
        zero: int32 or int8, like `scale`; only together with `scale`.
        group_size: Columns that share a scale; divides K. None: the whole row.

    Returns:
        packed uint8 [..., K/2]; scale float32 of shape x.shape[:-1], or x.shape[:-1] +
        (K / group_size,) where group_size is given; zero int32 like scale, or None where symmetric.

    Raises:
        TypeError: A dtype that is not taken.
        ValueError: A shape or group size that does not fit, or `zero` without `scale`.

    Example:
        >>> packed, scale, zero = quantize_int4(torch.randn(8, 128), group_size=64)
        >>> packed.shape, scale.shape
        (torch.Size([8, 64]), torch.Size([8, 2]))
    """
    op = "quantize_int4"
    _check_quantize(op, x, symmetric, scale, zero)
    _check_blocks(op, "x", x)
    size = _check_group_size(op, x.shape[-1], group_size)
    if size % _BLOCK:
        raise ValueError(f"{op}: group_size must be a multiple of {_BLOCK}, got {size}")
    runs = x.float().unflatten(-1, (-1, size))
    q, scale, zero = _quantize(op, runs, 7, symmetric, scale, zero)
    if group_size is None:
        scale = scale.squeeze(-1)
        zero = None if zero is None else zero.squeeze(-1)
    return pack_int4(q.flatten(-2)), scale, zero


def dequantize_int8(
    q: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Turn INT8 back into floats: `(q - zero) * scale` in float32, rounded to `dtype`.

    Args:
        q: int8 [..., K].
        scale: float32, bfloat16 or float16; one element, q.shape[:-1], or q.shape[:-1] + (G,)
            where G groups of K / G columns have their own.
        zero: int32, int8, float32 or bfloat16, like `scale`. None: 0.
        dtype: float32, bfloat16 or float16.

    Returns:
        `dtype` [..., K].

    Raises:
        TypeError: A dtype that is not taken.
        ValueError: A shape that does not fit.

    Example:
        >>> dequantize_int8(torch.tensor([[2, -4]], dtype=torch.int8), torch.tensor([0.5]))
        tensor([[ 1., -2.]])
    """
    _check_dtype("dequantize_int8", "q", q, (torch.int8,))
    return _dequantize("dequantize_int8", q, scale, zero, dtype)


def dequantize_int4(
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Turn packed INT4 back into floats: `(q - zero) * scale` in float32, rounded to `dtype`.

    Args:
        packed: uint8 [..., K/2].
        scale: float32, bfloat16 or float16; one element, packed.shape[:-1], or
            packed.shape[:-1] + (G,) where G groups of K / G columns have their own.
        zero: int32, int8, float32 or bfloat16, like `scale`. None: 0.
        dtype: float32, bfloat16 or float16.

    Returns:
        `dtype` [..., K].

    Raises:
        TypeError: A dtype that is not taken.
        ValueError: A shape that does not fit.

    Example:
        >>> packed, scale, zero = quantize_int4(torch.ones(2, 32))
        >>> float((dequantize_int4(packed, scale) - 1).abs().max()) < 1e-6
        True
    """
    return _dequantize("dequantize_int4", unpack_int4(packed), scale, zero, dtype)


def weight_sums(w: Tensor, *, group_size: int | None = None) -> Tensor:
    """Sum each row, or each group of a row, of an INT8 or packed INT4 weight.

    Args:
        w: int8 [N, K] or packed uint8 [N, K/2].
        group_size: Columns in a group; divides K. None: the whole row.

    Returns:
        int32 [N], or [N, K / group_size] where group_size is given.

    Raises:
        TypeError: `w` is neither int8 nor uint8.
        ValueError: A group size that does not divide K.

    Example:
        >>> weight_sums(torch.ones(2, 64, dtype=torch.int8), group_size=32)
        tensor([[32, 32],
                [32, 32]], dtype=torch.int32)
    """
    op = "weight_sums"
    _check_dtype(op, "w", w, (torch.int8, torch.uint8))
    values = unpack_int4(w) if w.dtype == torch.uint8 else w
    size = _check_group_size(op, values.shape[-1], group_size)
    sums = values.unflatten(-1, (-1, size)).sum(-1, dtype=torch.int32)
    return sums.squeeze(-1) if group_size is None else sums


def split_group_scales(
    scales: Tensor, *, zeros: Tensor | None = None, return_error: bool = False
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:
    """Split float group scales into a float scale a row and an integer multiplier a group.

    For each row the least-squares optimum of `scales[n, g] ~ b_scale[n] * b_multiplier[n, g]` over
    every real b_scale and every integer multiplier of 1..15, found exactly: seen from a falling
    b_scale each multiplier steps up where `scales / b_scale` passes the next half integer, between
    two steps the best b_scale has a closed form, and so all candidates are compared by prefix sums.
    The two-level scale is that of QServe (arXiv 2405.04532).

    A row with a scale that is not finite and positive gets b_scale NaN, so that whatever uses it
    shows NaN. An all-zero group has no scale of its own: give it the row's smallest, not 1.

    Args:
        scales: float32, bfloat16 or float16 [N, G], finite and positive.
        zeros: int8 [N, G], the zero points of the same weight: multipliers are then kept small
            enough that `b_multiplier * (q - zeros)` stays inside int8 for every q in [-8, 7].
        return_error: Whether to return the error as a third value.

    Returns:
        b_scale float32 [N] and b_multiplier uint8 [N, G]; with return_error also the relative
        Frobenius error of the reconstructed scales, a float32 scalar tensor.

    Raises:
        TypeError: A dtype that is not taken.
        ValueError: `scales` is not of rank 2, or a shape or zero point that does not fit.

    Example:
        >>> b_scale, b_multiplier, error = split_group_scales(
        ...     torch.tensor([[0.3, 0.1, 0.2]]), return_error=True)
        >>> b_multiplier, bool(error < 1e-6)
        (tensor([[15,  5, 10]], dtype=torch.uint8), True)
    """
    op = "split_group_scales"
    _check_dtype(op, "scales", scales, _FLOATS)
    if scales.dim() != 2 or scales.shape[1] == 0:
        raise ValueError(f"{op}: scales must be [N, G] with G >= 1, got {tuple(scales.shape)}")
    limit = torch.full_like(scales, 15, dtype=torch.int64)
    if zeros is not None:
        _check_dtype(op, "zeros", zeros, (torch.int8,))
        _check_shape(op, "zeros", zeros, scales.shape)
        limit = _multiplier_limit(zeros)
        if (limit < 1).any():
            index = tuple((limit < 1).nonzero()[0].tolist())
            raise ValueError(
                f"{op}: zeros must keep q - zero inside int8 for every q in [-8, 7] "
                f"(-120..120), got {zeros[index].item()} at {index}"
            )
    s = scales.double()
    valid = (s.isfinite() & (s > 0)).all(1)
    s = torch.where(valid[:, None], s, 1.0)

    b_scale = torch.empty(s.shape[0], dtype=torch.float64, device=s.device)
    rows = max(1, 2**22 // s.shape[1])  # bounds the memory of the candidates
    for begin in range(0, s.shape[0], rows):
        part = slice(begin, begin + rows)
        b_scale[part] = _best_row_scale(s[part], limit[part])

    b_scale = b_scale.float()
    multiplier = (s / b_scale.double()[:, None]).round().clamp(min=1).minimum(limit)
    rebuilt = b_scale.double()[:, None] * multiplier
    error = ((rebuilt - s).norm() / s.norm().clamp(min=torch.finfo(torch.float64).tiny)).float()
    b_scale = torch.where(valid, b_scale, torch.nan)
    error = torch.where(valid.all(), error, torch.nan)
    result = b_scale, multiplier.to(torch.uint8)
    return (*result, error) if return_error else result


def matmul_int8_bf16_tn(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero: Tensor | None = None,
    b_zero: Tensor | None = None,
    b_sum: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Multiply INT8 activations by INT8 weights (W8A8).

    `acc = sum_k (a - a_zero)(b - b_zero)` exactly, then in float32, each step rounded:
    `out = bf16(acc * b_scale * a_scale + bias)`, from left to right.

    Args:
        a: int8 [..., K], K a multiple of 16.
        b: int8 [N, K].
        a_scale: float32, bfloat16 or float16; one element a token, or one element.
        b_scale: The same for each row of b: [N], [N, 1] or one element.
        a_zero: int32 or int8, like a_scale. None: 0.
        b_zero: int32 or int8, like b_scale. None: 0.
        b_sum: int32 [N], `weight_sums(b)`; here only checked.
        bias: float32, bfloat16 or float16 [N]. None: no addition.

    Returns:
        bfloat16 [..., N].

    Raises:
        TypeError: A dtype that is not taken.
        ValueError: A shape that does not fit, a K so large that the sum may leave int32, or a
            b_sum that is not the sum of b.

    Example:
        >>> a, b = torch.ones(2, 16, dtype=torch.int8), torch.ones(3, 16, dtype=torch.int8)
        >>> matmul_int8_bf16_tn(a, b, torch.ones(2), torch.full((3,), 0.5))[0]
        tensor([8., 8., 8.], dtype=torch.bfloat16)
    """
    op = "matmul_int8_bf16_tn"
    _check_dtype(op, "a", a, (torch.int8,))
    _check_dtype(op, "b", b, (torch.int8,))
    _check_product(op, a.shape, b.shape, 16)
    _check_max_k(op, a.shape[-1], max_k(8, a_zero is not None, 8, b_zero is not None))
    _check_b_sum(op, b, b_sum, None)
    return _integer_matmul(op, a, b, a_scale, b_scale, a_zero, b_zero, bias)


def matmul_w4a4_bf16_tn(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero: Tensor | None = None,
    b_zero: Tensor | None = None,
    b_sum: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Multiply packed INT4 activations by packed INT4 weights (W4A4).

    The arithmetic of `matmul_int8_bf16_tn`.

    Args:
        a: Packed uint8 [..., K/2], K a multiple of 32.
        b: Packed uint8 [N, K/2].
        a_scale: float32, bfloat16 or float16; one element a token, or one element.
        b_scale: The same for each row of b: [N], [N, 1] or one element.
        a_zero: int32 or int8, like a_scale. None: 0.
        b_zero: int32 or int8, like b_scale. None: 0.
        b_sum: int32 [N], `weight_sums(b)`; here only checked.
        bias: float32, bfloat16 or float16 [N]. None: no addition.

    Returns:
        bfloat16 [..., N].

    Raises:
        TypeError: A dtype that is not taken.
        ValueError: A shape that does not fit, a K so large that the sum may leave int32, or a
            b_sum that is not the sum of b.

    Example:
        >>> ones = pack_int4(torch.ones(2, 32, dtype=torch.int8))
        >>> matmul_w4a4_bf16_tn(ones, ones, torch.ones(2), torch.ones(2))
        tensor([[32., 32.],
                [32., 32.]], dtype=torch.bfloat16)
    """
    op = "matmul_w4a4_bf16_tn"
    _check_dtype(op, "a", a, (torch.uint8,))
    _check_dtype(op, "b", b, (torch.uint8,))
    a, packed_b = unpack_int4(a), b
    b = unpack_int4(b)
    _check_product(op, a.shape, b.shape, _BLOCK)
    _check_max_k(op, a.shape[-1], max_k(4, a_zero is not None, 4, b_zero is not None))
    _check_b_sum(op, packed_b, b_sum, None)
    return _integer_matmul(op, a, b, a_scale, b_scale, a_zero, b_zero, bias)


def matmul_w4a8_bf16_tn(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero: Tensor | None = None,
    b_zero: Tensor | None = None,
    b_sum: Tensor | None = None,
    bias: Tensor | None = None,
    b_multiplier: Tensor | None = None,
    *,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Multiply INT8 activations by packed INT4 weights (W4A8), three forms of the weight's scale.

    - b_scale [N]: the arithmetic of `matmul_int8_bf16_tn`.
    - b_scale [N] and b_multiplier [N, G]: the same with `m * (q - b_zero)` for the weight, which
      must stay inside int8; still one exact integer sum.
    - b_scale [N, G]: `out = bf16(sum_g (b_scale[n, g] * acc_g) * a_scale + bias)` with the exact
      integer `acc_g` of each group; here in float64, within 3e-3 by an operator.

    Args:
        a: int8 [..., K], K a multiple of 32.
        b: Packed uint8 [N, K/2].
        a_scale: float32, bfloat16 or float16; one element a token, or one element.
        b_scale: float32, bfloat16 or float16; [N], [N, 1], one element, or [N, G] with G > 1.
        a_zero: int32 or int8, like a_scale. None: 0.
        b_zero: int32 or int8, like b_scale; with b_multiplier int8 [N, G]. None: 0.
        b_sum: int32 [N], [N, G] where there are groups: the `weight_sums` of b; here only checked.
        bias: float32, bfloat16 or float16 [N]. None: no addition.
        b_multiplier: uint8 [N, G] in 1..15.
        out_dtype: float64 shows the grouped form before its last rounding.

    Returns:
        `out_dtype` [..., N].

    Raises:
        TypeError: A dtype that is not taken.
        ValueError: A shape or a multiplier that does not fit, a K so large that the sum may leave
            int32, or a b_sum that is not the sum of b.

    Example:
        >>> a = torch.ones(1, 64, dtype=torch.int8)
        >>> b = pack_int4(torch.ones(2, 64, dtype=torch.int8))
        >>> matmul_w4a8_bf16_tn(a, b, torch.ones(1), torch.tensor([[1.0, 2.0], [0.5, 1.5]]))
        tensor([[96., 64.]], dtype=torch.bfloat16)
    """
    op = "matmul_w4a8_bf16_tn"
    _check_dtype(op, "a", a, (torch.int8,))
    _check_dtype(op, "b", b, (torch.uint8,))
    packed_b, b = b, unpack_int4(b)
    _check_product(op, a.shape, b.shape, _BLOCK)
    n, k = b.shape
    if b_multiplier is not None:
        _check_dtype(op, "b_multiplier", b_multiplier, (torch.uint8,))
        size = _group_size_of(op, "b_multiplier", b_multiplier, n, k)
        if ((b_multiplier < 1) | (b_multiplier > 15)).any():
            raise ValueError(f"{op}: b_multiplier must hold values in 1..15")
        _check_b_sum(op, packed_b, b_sum, size)
        _check_max_k(op, k, max_k(8, a_zero is not None, 8, False))
        zeros = torch.zeros_like(b_multiplier, dtype=torch.int8) if b_zero is None else b_zero
        _check_dtype(op, "b_zero", zeros, (torch.int8,))
        _check_shape(op, "b_zero", zeros, b_multiplier.shape)
        over = b_multiplier.long() > _multiplier_limit(zeros)
        if over.any():
            index = tuple(over.nonzero()[0].tolist())
            raise ValueError(
                f"{op}: b_multiplier * (q - b_zero) must stay inside int8 for every q in [-8, 7], "
                f"got multiplier {b_multiplier[index].item()} and zero {zeros[index].item()} "
                f"at {index}"
            )
        grouped = b.short().unflatten(-1, (-1, size))
        b = (b_multiplier.short()[..., None] * (grouped - zeros.short()[..., None])).flatten(1)
        return _integer_matmul(op, a, b, a_scale, b_scale, a_zero, None, bias)
    if b_scale.dim() < 2 or b_scale.shape[-1] == 1:
        # The kernels hold sums of 16 * b, which is the tighter limit.
        _check_max_k(op, k, min(MAX_K_W4A8, max_k(8, a_zero is not None, 4, b_zero is not None)))
        _check_b_sum(op, packed_b, b_sum, None)
        return _integer_matmul(op, a, b, a_scale, b_scale, a_zero, b_zero, bias)

    _check_dtype(op, "b_scale", b_scale, _FLOATS)
    size = _group_size_of(op, "b_scale", b_scale, n, k)
    _check_max_k(op, size, max_k(8, a_zero is not None, 4, b_zero is not None))
    _check_b_sum(op, packed_b, b_sum, size)
    weight = b.double().unflatten(-1, (-1, size))
    if b_zero is not None:
        _check_dtype(op, "b_zero", b_zero, (torch.int32, torch.int8))
        _check_shape(op, "b_zero", b_zero, b_scale.shape)
        weight = weight - b_zero.double()[..., None]
    weight = (weight * b_scale.double()[..., None]).flatten(1)
    out = _centred(op, a, a_zero).double() @ weight.T
    out = out * _per_token(op, "a_scale", a_scale, a, _FLOATS).double()
    if bias is not None:
        out = out + _bias(op, bias, n).double()
    return out.to(out_dtype).reshape(*a.shape[:-1], n)


def matmul_int4_bf16_tn(
    a: Tensor,
    b: Tensor,
    scales: Tensor,
    zeros: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    act_bits: int = 16,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Multiply bfloat16 activations by packed INT4 weights: W4A16, or asked for W4A8 or W4A4.

    - act_bits=16: `out = bf16(sum_k a * ((q - zeros) * scales) + bias)`; here in float64, within
      3e-3 by an operator.
    - act_bits=8: `quantize_int8(a)`, then `matmul_w4a8_bf16_tn` with one scale a row where G is 1
      and with float group scales else.
    - act_bits=4: `quantize_int4(a)`, then `matmul_w4a4_bf16_tn`; G is 1.

    Args:
        a: bfloat16 [..., K], K a multiple of 32.
        b: Packed uint8 [N, K/2].
        scales: float32, bfloat16 or float16 [N, G], K / G in {32, 64, 128} or K; [N] too where G
            is 1.
        zeros: int32, int8, float32 or bfloat16 [N, G], like scales; int32 or int8 where act_bits is
            8 or 4. None: 0.
        bias: float32, bfloat16 or float16 [N]. None: no addition.
        act_bits: 16, 8 or 4.
        out_dtype: float64 shows a sum of floats before its last rounding; exact sums of integers
            are always bfloat16.

    Returns:
        `out_dtype` [..., N].

    Raises:
        TypeError: A dtype that is not taken.
        ValueError: A shape, group size or act_bits that does not fit, or a K so large that an
            integer sum may leave int32.

    Example:
        >>> a = torch.ones(1, 64, dtype=torch.bfloat16)
        >>> b = pack_int4(torch.ones(2, 64, dtype=torch.int8))
        >>> matmul_int4_bf16_tn(a, b, torch.tensor([[1.0, 2.0], [0.5, 1.5]]))
        tensor([[96., 64.]], dtype=torch.bfloat16)
    """
    op = "matmul_int4_bf16_tn"
    if act_bits not in (16, 8, 4):
        raise ValueError(f"{op}: act_bits must be 16, 8 or 4, got {act_bits}")
    _check_dtype(op, "a", a, (torch.bfloat16,))
    _check_dtype(op, "b", b, (torch.uint8,))
    packed_b, b = b, unpack_int4(b)
    _check_product(op, a.shape, b.shape, _BLOCK)
    n, k = b.shape
    _check_dtype(op, "scales", scales, _FLOATS)
    scales = scales[:, None] if scales.dim() == 1 else scales
    size = _group_size_of(op, "scales", scales, n, k)
    if size not in (32, 64, 128, k):
        raise ValueError(f"{op}: the group size must be 32, 64, 128 or K = {k}, got {size}")
    if zeros is not None:
        fractional = (torch.float32, torch.bfloat16) if act_bits == 16 else ()
        _check_dtype(op, "zeros", zeros, (torch.int32, torch.int8, *fractional))
        zeros = zeros[:, None] if zeros.dim() == 1 else zeros
        _check_shape(op, "zeros", zeros, scales.shape)
    if act_bits != 16:
        if act_bits == 4 and size != k:
            raise ValueError(
                f"{op}: scales must be [{n}, 1] or [{n}] with act_bits=4, got {tuple(scales.shape)}"
            )
        if size == k:
            limit = max_k(act_bits, False, 4, zeros is not None)
            _check_max_k(op, k, min(MAX_K_W4A8, limit) if act_bits == 8 else limit)
        if act_bits == 4:
            q, a_scale, _ = quantize_int4(a)
            return matmul_w4a4_bf16_tn(q, packed_b, a_scale, scales, b_zero=zeros, bias=bias)
        q, a_scale, _ = quantize_int8(a)
        return matmul_w4a8_bf16_tn(
            q, packed_b, a_scale, scales, b_zero=zeros, bias=bias, out_dtype=out_dtype
        )
    weight = b.double().unflatten(-1, (-1, size))
    if zeros is not None:
        weight = weight - zeros.double()[..., None]
    weight = (weight * scales.double()[..., None]).flatten(1)
    out = a.reshape(-1, k).double() @ weight.T
    if bias is not None:
        out = out + _bias(op, bias, n).double()
    return out.to(out_dtype).reshape(*a.shape[:-1], n)


MAX_K_W4A8 = (2**31 - 1) // (16 * 128 * 8) // 32 * 32
"""The largest K of `matmul_w4a8_bf16_tn` with one scale a row, whose kernels sum 16 * a * b."""


def max_k(a_bits: int, a_has_zero: bool, b_bits: int, b_has_zero: bool) -> int:
    """Return the largest K for which an integer product cannot leave int32.

    A symmetric operand reaches 2**(bits - 1) in magnitude, one with a zero point of its own format
    2**bits - 1. (A sum of exactly 2**31, where every value is the most negative, is exact too: it
    is a float32.)

    Example:
        >>> max_k(8, False, 8, False)
        131072
    """

    def reach(bits: int, has_zero: bool) -> int:
        return 2**bits - 1 if has_zero else 2 ** (bits - 1)

    return 2**31 // (reach(a_bits, a_has_zero) * reach(b_bits, b_has_zero))


def _integer_matmul(
    op: str,
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero: Tensor | None,
    b_zero: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """The exact integer sum and the float32 steps of the contract, in its order."""
    n = b.shape[0]
    weight = b.double()
    if b_zero is not None:
        weight = weight - _per_row(op, "b_zero", b_zero, n, (torch.int32, torch.int8)).double()
    acc = _centred(op, a, a_zero).double() @ weight.T
    t = acc.float() * _per_row(op, "b_scale", b_scale, n, _FLOATS).float().T
    t = t * _per_token(op, "a_scale", a_scale, a, _FLOATS).float()
    if bias is not None:
        t = t + _bias(op, bias, n).float()
    return t.to(torch.bfloat16).reshape(*a.shape[:-1], n)


def _quantize(
    op: str, runs: Tensor, top: int, symmetric: bool, scale: Tensor | None, zero: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Quantize float32 runs [..., length] that share a scale; scale and zero are [...]."""
    shape = runs.shape[:-1]
    low, high = (-top, top) if symmetric and zero is None else (-top - 1, top)
    if scale is not None:
        scale = _static(op, "scale", scale, shape).float()
        zero = None if zero is None else _static(op, "zero", zero, shape).int()
        good = torch.ones(shape, dtype=torch.bool, device=runs.device)
    else:
        # Tensors as divisors: by a Python number torch multiplies with its reciprocal on CUDA.
        if symmetric:
            most = runs.abs().amax(-1) if runs.numel() else runs.new_zeros(shape)
            scale = most / runs.new_tensor(top)
        elif runs.numel():
            least = runs.amin(-1).clamp(max=0)
            scale = (runs.amax(-1).clamp(min=0) - least) / runs.new_tensor(2 * top + 1)
            zero = (low - least / scale).round().clamp(low, high)
        else:
            scale, zero = runs.new_zeros(shape), runs.new_zeros(shape)
        good = scale.isfinite() & (scale > 0)
        scale = torch.where(good, scale, torch.where(scale == 0, 1.0, torch.nan))
        zero = None if zero is None else torch.where(good, zero, 0).int()
    steps = (runs / scale[..., None]).round()
    steps = torch.where(steps.isnan(), 0.0, steps)
    if zero is not None:
        steps = steps + zero[..., None]
    q = torch.where(good[..., None], steps.clamp(low, high), 0).to(torch.int8)
    return q, scale, zero


def _dequantize(
    op: str, q: Tensor, scale: Tensor, zero: Tensor | None, dtype: torch.dtype
) -> Tensor:
    if dtype not in _FLOATS:
        raise TypeError(f"{op}: dtype must be float32, bfloat16 or float16, got {dtype}")
    _check_dtype(op, "scale", scale, _FLOATS)
    shape = q.shape[:-1]
    if scale.numel() == 1:
        scale = scale.reshape(())
        groups = 1
    elif scale.shape == shape:
        scale = scale[..., None, None]
        groups = 1
    elif scale.shape[:-1] == shape and scale.shape[-1] and q.shape[-1] % scale.shape[-1] == 0:
        groups = scale.shape[-1]
        scale = scale[..., None]
    else:
        raise ValueError(
            f"{op}: scale must be one element, {tuple(shape)} or {(*shape, 'G')} with G dividing "
            f"K = {q.shape[-1]}, got {tuple(scale.shape)}"
        )
    values = q.float().unflatten(-1, (groups, -1))
    if zero is not None:
        _check_dtype(op, "zero", zero, (torch.int32, torch.int8, torch.float32, torch.bfloat16))
        if zero.numel() not in (1, scale.numel()):
            raise ValueError(
                f"{op}: zero must have one element or as many as scale, {scale.numel()}, "
                f"got {tuple(zero.shape)}"
            )
        values = values - zero.float().reshape(scale.shape if zero.numel() > 1 else ())
    return (values * scale.float()).to(dtype).flatten(-2)


def _best_row_scale(s: Tensor, limit: Tensor) -> Tensor:
    """The least-squares b_scale of each row of s [rows, G], multipliers in 1..limit."""
    # Multiplier j becomes j + 1 where b_scale falls below s / (j + 1/2). With A = sum(s * m) and
    # B = sum(m * m) the best b_scale of fixed multipliers is A / B and leaves the squared error
    # sum(s * s) - A * A / B, so the best row has the largest A * A / B.
    j = torch.arange(1, 15, device=s.device)
    step = s[..., None] / (j + 0.5)
    taken = j < limit[..., None]
    order = torch.where(taken, step, -1.0).flatten(1).argsort(dim=1, descending=True)
    gain_a = torch.where(taken, s[..., None], 0.0).flatten(1).gather(1, order)
    gain_b = torch.where(taken, (2 * j + 1).double(), 0.0).flatten(1).gather(1, order)
    a = torch.cat([s.sum(1, keepdim=True), gain_a], dim=1).cumsum(1)
    b = torch.cat([torch.full_like(a[:, :1], s.shape[1]), gain_b], dim=1).cumsum(1)
    best = (a * a / b).argmax(1, keepdim=True)
    return (a.gather(1, best) / b.gather(1, best)).squeeze(1)


def _multiplier_limit(zeros: Tensor) -> Tensor:
    """The largest multiplier of at most 15 with m * (q - zero) in int8 for every q in [-8, 7]."""
    z = zeros.long()
    below = torch.where(z > -8, 128 // (8 + z).clamp(min=1), 15)
    above = torch.where(z < 7, 127 // (7 - z).clamp(min=1), 15)
    return below.minimum(above).clamp(max=15)


def _centred(op: str, a: Tensor, a_zero: Tensor | None) -> Tensor:
    """a - a_zero as [M, K] integers."""
    values = a.reshape(-1, a.shape[-1]).long()
    if a_zero is None:
        return values
    return values - _per_token(op, "a_zero", a_zero, a, (torch.int32, torch.int8)).long()


def _per_token(op: str, name: str, value: Tensor, a: Tensor, dtypes: tuple) -> Tensor:
    """[M, 1], or [1, 1] where one element serves all tokens."""
    _check_dtype(op, name, value, dtypes)
    tokens = a.shape[:-1]
    if value.numel() != 1 and value.shape not in (
        tokens,
        (*tokens, 1),
        (tokens.numel(),),
        (tokens.numel(), 1),
    ):
        raise ValueError(
            f"{op}: {name} must be [{tokens.numel()}], [{tokens.numel()}, 1] or one element, "
            f"got {tuple(value.shape)}"
        )
    return value.reshape(-1, 1)


def _per_row(op: str, name: str, value: Tensor, n: int, dtypes: tuple) -> Tensor:
    """[N, 1], or [1, 1] where one element serves all rows of b."""
    _check_dtype(op, name, value, dtypes)
    if value.numel() != 1 and value.shape not in ((n,), (n, 1)):
        raise ValueError(
            f"{op}: {name} must be [{n}], [{n}, 1] or one element, got {tuple(value.shape)}"
        )
    return value.reshape(-1, 1)


def _bias(op: str, bias: Tensor, n: int) -> Tensor:
    _check_dtype(op, "bias", bias, _FLOATS)
    _check_shape(op, "bias", bias, (n,))
    return bias


def _static(op: str, name: str, value: Tensor, shape: torch.Size) -> Tensor:
    """A given scale or zero, one element or one for each run, as the shape of the runs."""
    if value.numel() == 1:
        return value.reshape(()).expand(shape)
    if value.numel() != shape.numel() or value.shape[:1] != shape[:1]:
        raise ValueError(
            f"{op}: {name} must be one element or {tuple(shape)}, got {tuple(value.shape)}"
        )
    return value.reshape(shape)


def _group_size_of(op: str, name: str, value: Tensor, n: int, k: int) -> int:
    """The group size that the shape [N, G] of a scale or multiplier implies."""
    if value.dim() != 2 or value.shape[0] != n or not value.shape[1] or k % value.shape[1]:
        raise ValueError(
            f"{op}: {name} must be [N, G] = [{n}, G] with G dividing K = {k}, "
            f"got {tuple(value.shape)}"
        )
    size = k // value.shape[1]
    if size % _BLOCK:
        raise ValueError(f"{op}: the group size must be a multiple of {_BLOCK}, got {size}")
    return size


def _check_quantize(
    op: str, x: Tensor, symmetric: bool, scale: Tensor | None, zero: Tensor | None
) -> None:
    _check_dtype(op, "x", x, _FLOATS)
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"{op}: x must be [..., K] with K >= 1, got {tuple(x.shape)}")
    if scale is not None:
        _check_dtype(op, "scale", scale, _FLOATS)
    if zero is not None:
        _check_dtype(op, "zero", zero, (torch.int32, torch.int8))
        if scale is None:
            raise ValueError(f"{op}: zero is taken only together with scale")
    elif scale is not None and not symmetric:
        raise ValueError(f"{op}: symmetric=False with a given scale needs zero as well")


def _check_dtype(op: str, name: str, value: Tensor, dtypes: tuple) -> None:
    if value.dtype not in dtypes:
        taken = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        got = str(value.dtype).removeprefix("torch.")
        raise TypeError(f"{op}: {name} must be one of ({taken}), got {got}")


def _check_shape(op: str, name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{op}: {name} must be {tuple(shape)}, got {tuple(value.shape)}")


def _check_blocks(op: str, name: str, value: Tensor) -> None:
    if value.dim() == 0 or value.shape[-1] % _BLOCK:
        raise ValueError(
            f"{op}: the last dim of {name} must be a multiple of {_BLOCK}, "
            f"got shape {tuple(value.shape)}"
        )


def _check_group_size(op: str, k: int, group_size: int | None) -> int:
    if group_size is None:
        return k
    if group_size < 1 or k % group_size:
        raise ValueError(f"{op}: group_size must divide K = {k}, got {group_size}")
    return group_size


def _check_product(op: str, a: torch.Size, b: torch.Size, multiple: int) -> None:
    """Shapes of unpacked operands."""
    if len(a) < 1 or len(b) != 2 or a[-1] != b[-1] or b[0] < 1:
        raise ValueError(f"{op}: a must be [..., K] and b [N, K], got {tuple(a)} and {tuple(b)}")
    if a[-1] == 0 or a[-1] % multiple:
        raise ValueError(
            f"{op}: K must be a multiple of {multiple}, got {a[-1]} (pad the last dim of a and b)"
        )


def _check_max_k(op: str, k: int, limit: int) -> None:
    if k > limit:
        raise ValueError(f"{op}: K must be at most {limit} for an int32 sum, got {k}")


def _check_b_sum(op: str, b: Tensor, b_sum: Tensor | None, group_size: int | None) -> None:
    if b_sum is None:
        return
    _check_dtype(op, "b_sum", b_sum, (torch.int32,))
    sums = weight_sums(b, group_size=group_size)
    _check_shape(op, "b_sum", b_sum, sums.shape)
    if not torch.equal(sums, b_sum):
        raise ValueError(f"{op}: b_sum is not weight_sums(b)")
