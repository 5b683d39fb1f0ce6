# SPDX-License-Identifier: Apache-2.0
"""The operators: typed functions over `torch.ops.qutlass`, and the fake kernels that let
torch.compile and torch.export reason about them.

A fake kernel computes the shapes of the results and nothing else. What an operator refuses is
written once, in csrc/torch/checks.cpp; a fake describes its arguments to those same checks by way
of ctypes, with the sizes at hand for symbolic dims, so that a compile fails with the message that
the call itself would have failed with. No guard comes of it: where such a dim changes later, the
compiled program calls the operator, and the operator checks again.
"""

from __future__ import annotations

import ctypes
import json
from typing import Any, Literal

import torch
from torch import Tensor

from . import _library, reference

__all__ = [
    "build_info",
    "dequantize_int4",
    "dequantize_int8",
    "explain",
    "matmul_int4_bf16_tn",
    "matmul_int8_bf16_tn",
    "matmul_w4a4_bf16_tn",
    "matmul_w4a8_bf16_tn",
    "pack_int4",
    "quantize_int4",
    "quantize_int8",
    "split_group_scales",
    "unpack_int4",
    "weight_sums",
]

_c = _library.load()
_ops = torch.ops.qutlass


# --------------------------------------------------------------------------------------------------
# Packing and quantization


def pack_int4(w: Tensor) -> Tensor:
    """Pack integers in [-8, 7] two a byte, in blocks of 32 along the last dim.

    Byte i of a block's 16 holds k = i in its low nibble and k = 16 + i in its high nibble.

    On CUDA the host waits for the check of the values, except while the stream is captured into a
    graph: then values out of range are saturated.

    Args:
        w: int8, uint8, int16, int32 or int64 in [-8, 7], shape [..., K], K a multiple of 32.

    Returns:
        uint8 [..., K/2].

    Raises:
        ValueError: A dtype, K or layout that is not taken, or a value out of range (the first one
            is named).

    Example:
        >>> pack_int4(torch.arange(-8, 8).repeat(2))[:3]
        tensor([136, 153, 170], dtype=torch.uint8)
    """
    return _ops.pack_int4.default(w)


def unpack_int4(packed: Tensor) -> Tensor:
    """Undo `pack_int4` exactly.

    Args:
        packed: uint8 [..., K/2], contiguous.

    Returns:
        int8 [..., K] with values in [-8, 7].

    Raises:
        ValueError: A dtype, K or layout that is not taken.

    Example:
        >>> w = torch.randint(-8, 8, (3, 64), dtype=torch.int8)
        >>> bool((unpack_int4(pack_int4(w)) == w).all())
        True
    """
    return _ops.unpack_int4.default(packed)


def quantize_int8(
    x: Tensor,
    *,
    symmetric: bool = True,
    scale: Tensor | None = None,
    zero: Tensor | None = None,
    per_tensor: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Quantize to INT8, one scale for each token (the last dim) or one for the tensor.

    In float32, with rint rounding half to even. Symmetric: `scale = amax / 127`,
    `q = clamp(rint(x / scale), -127, 127)`. Asymmetric: `scale = (max(x, 0) - min(x, 0)) / 255`,
    `zero = clamp(rint(-128 - min / scale), -128, 127)`,
    `q = clamp(rint(x / scale) + zero, -128, 127)`. The real value is `(q - zero) * scale`.

    A computed scale of 0 (only zeros, or underflow) becomes 1. A token that holds a NaN or an Inf,
    or whose scale overflows, gets scale NaN and q and zero 0, so that whatever uses it shows NaN.

    Args:
        x: float32, bfloat16 or float16 [..., K]; columns may be sliced.
        symmetric: Whether to compute a scale alone, or a scale and a zero point.
        scale: Quantize with this scale instead (static quantization; a NaN then becomes the zero
            point and an Inf saturates). float32, bfloat16 or float16; one element, or x.shape[:-1]
            (+ [1]).
        zero: The zero point that goes with `scale`, int32 or int8 in [-128, 127], of its forms.
            Makes the quantization asymmetric, whatever `symmetric` says.
        per_tensor: Whether one scale serves the whole tensor.

    Returns:
        q int8 [..., K]; scale float32 x.shape[:-1], or [1] per tensor; zero int32 like scale, or
        None where symmetric.

    Raises:
        ValueError: A dtype, shape or layout that is not taken, or `zero` without `scale`.

    Example:
        >>> q, scale, zero = quantize_int8(torch.tensor([[1.0, -2.0]]))
        >>> q, zero
        (tensor([[  64, -127]], dtype=torch.int8), None)
    """
    return _ops.quantize_int8.default(
        x, symmetric=symmetric, scale=scale, zero=zero, per_tensor=per_tensor
    )


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
        x: float32, bfloat16 or float16 [..., K], K a multiple of 32; columns may be sliced.
        symmetric: Whether to compute a scale alone, or a scale and a zero point.
        scale: Quantize with this scale instead; float32, bfloat16 or float16; one element, or the
            shape of the returned scale.
        zero: The zero point that goes with `scale`, int32 or int8 in [-8, 7], of its forms.
        group_size: Columns that share a scale, a multiple of 32 that divides K. None: the row.

    Returns:
        packed uint8 [..., K/2]; scale float32 x.shape[:-1], or x.shape[:-1] + [K / group_size]
        where group_size is given; zero int32 like scale, or None where symmetric.

    Raises:
        ValueError: A dtype, shape, layout or group size that is not taken, or `zero` without
            `scale`.

    Example:
        >>> packed, scale, zero = quantize_int4(torch.randn(8, 128), group_size=64)
        >>> packed.shape, scale.shape
        (torch.Size([8, 64]), torch.Size([8, 2]))
    """
    return _ops.quantize_int4.default(
        x, symmetric=symmetric, scale=scale, zero=zero, group_size=group_size
    )


def dequantize_int8(
    q: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Turn INT8 back into floats: `(q - zero) * scale` in float32, rounded to `dtype`.

    Args:
        q: int8 [..., K], contiguous.
        scale: float32, bfloat16 or float16; one element, q.shape[:-1] (+ [1]), or q.shape[:-1] +
            [G] where G groups of K / G columns have their own.
        zero: int32, int8, float32 or bfloat16; one element or like `scale`. None: 0.
        dtype: float32, bfloat16 or float16.

    Returns:
        `dtype` [..., K].

    Raises:
        ValueError: A dtype, shape or layout that is not taken.

    Example:
        >>> dequantize_int8(torch.tensor([[2, -4]], dtype=torch.int8), torch.tensor([0.5]))
        tensor([[ 1., -2.]])
    """
    return _ops.dequantize_int8.default(q, scale, zero, dtype=dtype)


def dequantize_int4(
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Turn packed INT4 back into floats: `(q - zero) * scale` in float32, rounded to `dtype`.

    Args:
        packed: uint8 [..., K/2], contiguous.
        scale: float32, bfloat16 or float16; one element, packed.shape[:-1] (+ [1]), or
            packed.shape[:-1] + [G] where G groups of K / G columns, a multiple of 32, have their
            own.
        zero: int32, int8, float32 or bfloat16; one element or like `scale`. None: 0.
        dtype: float32, bfloat16 or float16.

    Returns:
        `dtype` [..., K].

    Raises:
        ValueError: A dtype, shape or layout that is not taken.

    Example:
        >>> packed, scale, zero = quantize_int4(torch.ones(2, 32))
        >>> float((dequantize_int4(packed, scale) - 1).abs().max()) < 1e-6
        True
    """
    return _ops.dequantize_int4.default(packed, scale, zero, dtype=dtype)


def weight_sums(w: Tensor, *, group_size: int | None = None) -> Tensor:
    """Sum each row, or each group of a row, of an INT8 or packed INT4 weight.

    Products whose activations have zero points take the result as `b_sum`, made once for a weight.

    Args:
        w: int8 [N, K] or packed uint8 [N, K/2], contiguous.
        group_size: Columns in a group; divides K, and is a multiple of 32 where packed. None: the
            row.

    Returns:
        int32 [N], or [N, K / group_size] where group_size is given.

    Raises:
        ValueError: A dtype, shape, layout or group size that is not taken.

    Example:
        >>> weight_sums(torch.ones(2, 64, dtype=torch.int8), group_size=32)
        tensor([[32, 32],
                [32, 32]], dtype=torch.int32)
    """
    return _ops.weight_sums.default(w, group_size=group_size)


def split_group_scales(
    scales: Tensor, *, zeros: Tensor | None = None, return_error: bool = False
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:
    """Split float group scales into a float scale a row and an integer multiplier a group.

    For each row the least-squares optimum of `scales[n, g] ~ b_scale[n] * b_multiplier[n, g]` over
    every real b_scale and every integer multiplier of 1..15. A grouped W4A8 product with the result
    stays one exact integer sum. The two-level scale is that of QServe (arXiv 2405.04532).

    A row with a scale that is not finite and positive gets b_scale NaN. An all-zero group has no
    scale of its own: give it the row's smallest, not 1.

    Args:
        scales: float32, bfloat16 or float16 [N, G], finite and positive.
        zeros: int8 [N, G], the zero points of the same weight: multipliers are then kept small
            enough that `b_multiplier * (q - zeros)` stays inside int8 for every q in [-8, 7]. On
            CUDA the host waits for the check that each can be.
        return_error: Whether to return the error as a third value.

    Returns:
        b_scale float32 [N] and b_multiplier uint8 [N, G]; with return_error also the relative
        Frobenius error of their products, a float32 scalar tensor.

    Raises:
        TypeError: A dtype that is not taken.
        ValueError: `scales` is not of rank 2, or a shape or zero point that does not fit.

    Example:
        >>> b_scale, b_multiplier = split_group_scales(torch.tensor([[0.3, 0.1, 0.2]]))
        >>> b_multiplier
        tensor([[15,  5, 10]], dtype=torch.uint8)
    """
    b_scale, b_multiplier, error = _ops.split_group_scales.default(scales, zeros=zeros)
    return (b_scale, b_multiplier, error) if return_error else (b_scale, b_multiplier)


# --------------------------------------------------------------------------------------------------
# Matrix products


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
    `out = bf16(acc * b_scale * a_scale + bias)`, from left to right. The same bits on CPU and on
    every GPU, in every batch.

    Args:
        a: int8 [..., K], K a multiple of 16; columns may be sliced. On CUDA its start and its rows
            lie at multiples of 16 bytes.
        b: int8 [N, K], contiguous.
        a_scale: float32, bfloat16 or float16; [M], [M, 1], a.shape[:-1] (+ [1]) or one element.
        b_scale: float32, bfloat16 or float16; [N], [N, 1] or one element.
        a_zero: int32 or int8 in [-128, 127], of a_scale's forms. None: 0.
        b_zero: int32 or int8 in [-128, 127], of b_scale's forms. None: 0.
        b_sum: int32 [N], `weight_sums(b)`; without it a product with a_zero computes it each time.
        bias: float32, bfloat16 or float16 [N]. None: no addition.

    Returns:
        bfloat16 [..., N].

    Raises:
        ValueError: A dtype, shape, layout or device that is not taken, or a K so large that the sum
            may leave int32 (131072 without zero points, 33024 with both).

    Example:
        >>> a, b = torch.ones(2, 16, dtype=torch.int8), torch.ones(3, 16, dtype=torch.int8)
        >>> matmul_int8_bf16_tn(a, b, torch.ones(2), torch.full((3,), 0.5))[0]
        tensor([8., 8., 8.], dtype=torch.bfloat16)
    """
    return _ops.matmul_int8_bf16_tn.default(a, b, a_scale, b_scale, a_zero, b_zero, b_sum, bias)


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

    The arithmetic of `matmul_int8_bf16_tn`. GPUs of compute capability 9.0 and later have no INT4
    instruction and emulate it.

    Args:
        a: Packed uint8 [..., K/2], K a multiple of 32; columns may be sliced. On CUDA its start and
            its rows lie at multiples of 16 bytes.
        b: Packed uint8 [N, K/2], contiguous.
        a_scale: float32, bfloat16 or float16; [M], [M, 1], a.shape[:-1] (+ [1]) or one element.
        b_scale: float32, bfloat16 or float16; [N], [N, 1] or one element.
        a_zero: int32 or int8 in [-8, 7], of a_scale's forms. None: 0.
        b_zero: int32 or int8 in [-8, 7], of b_scale's forms. None: 0.
        b_sum: int32 [N], `weight_sums(b)`; without it a product with a_zero computes it each time.
        bias: float32, bfloat16 or float16 [N]. None: no addition.

    Returns:
        bfloat16 [..., N].

    Raises:
        ValueError: A dtype, shape, layout or device that is not taken, or a K so large that the sum
            may leave int32.

    Example:
        >>> ones = pack_int4(torch.ones(2, 32, dtype=torch.int8))
        >>> matmul_w4a4_bf16_tn(ones, ones, torch.ones(2), torch.ones(2))
        tensor([[32., 32.],
                [32., 32.]], dtype=torch.bfloat16)
    """
    return _ops.matmul_w4a4_bf16_tn.default(a, b, a_scale, b_scale, a_zero, b_zero, b_sum, bias)


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
) -> Tensor:
    """Multiply INT8 activations by packed INT4 weights (W4A8), three forms of the weight's scale.

    - b_scale [N]: the arithmetic of `matmul_int8_bf16_tn`.
    - b_scale [N] and b_multiplier [N, G]: the same with `m * (q - b_zero)` for the weight, which
      must stay inside int8 (`split_group_scales` sees to it); still one exact integer sum.
    - b_scale [N, G]: `out = bf16(sum_g (b_scale[n, g] * acc_g) * a_scale + bias)`, the exact
      integer `acc_g` of each group summed over groups in float32; deterministic, and within 3e-3
      of float64 as relative Frobenius error.

    Args:
        a: int8 [..., K], K a multiple of 32; columns may be sliced. On CUDA its start and its rows
            lie at multiples of 16 bytes.
        b: Packed uint8 [N, K/2], contiguous.
        a_scale: float32, bfloat16 or float16; [M], [M, 1], a.shape[:-1] (+ [1]) or one element.
        b_scale: float32, bfloat16 or float16; [N], [N, 1], one element, or [N, G] with G > 1 and
            K / G in {32, 64, 128}.
        a_zero: int32 or int8 in [-128, 127], of a_scale's forms. None: 0.
        b_zero: int32 or int8 in [-8, 7], of b_scale's forms; with b_multiplier int8 [N, G].
            None: 0. On CUDA a group whose weights `q - b_zero`, or `m * (q - b_zero)`, leave int8
            for some q in [-8, 7] makes its output column NaN.
        b_sum: int32 [N], [N, G] where there are groups: the `weight_sums` of b; without it a
            product with a_zero computes it each time.
        bias: float32, bfloat16 or float16 [N]. None: no addition.
        b_multiplier: uint8 [N, G] in 1..15, K / G in {32, 64, 128}.

    Returns:
        bfloat16 [..., N].

    Raises:
        ValueError: A dtype, shape, layout, device or group size that is not taken, or a K so large
            that the sum may leave int32 (over 131040 with one scale a row, where the kernels hold
            16 times the sum).

    Example:
        >>> a = torch.ones(1, 64, dtype=torch.int8)
        >>> b = pack_int4(torch.ones(2, 64, dtype=torch.int8))
        >>> matmul_w4a8_bf16_tn(a, b, torch.ones(1), torch.tensor([[1.0, 2.0], [0.5, 1.5]]))
        tensor([[96., 64.]], dtype=torch.bfloat16)
    """
    return _ops.matmul_w4a8_bf16_tn.default(
        a, b, a_scale, b_scale, a_zero, b_zero, b_sum, bias, b_multiplier
    )


def matmul_int4_bf16_tn(
    a: Tensor,
    b: Tensor,
    scales: Tensor,
    zeros: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    act_bits: Literal[16, 8, 4] = 16,
) -> Tensor:
    """Multiply bfloat16 activations by packed INT4 weights: W4A16, or asked for W4A8 or W4A4.

    - act_bits=16: `out = bf16(sum_k a * ((q - zeros) * scales) + bias)`, summed in float32;
      deterministic, and within 3e-3 of float64 as relative Frobenius error.
    - act_bits=8: the activations are rounded to INT8 per token, and integer Tensor Cores multiply
      them. Bit for bit `a8, a_scale, _ = quantize_int8(a)` and then
      `matmul_w4a8_bf16_tn(a8, b, a_scale, scales, b_zero=zeros, bias=bias)`: exact integer sums
      where scales hold one value a row, float32 sums across groups where they hold more.
    - act_bits=4: the same with `quantize_int4` and `matmul_w4a4_bf16_tn`, which takes one scale a
      row.

    The activations are quantized to 8 or 4 bits where the caller says so and never otherwise. On
    CUDA that is one launch before the product, into memory of torch's allocator.
    `explain(..., act_bits=8)` says which kernel and instruction the product would run.

    Args:
        a: bfloat16 [..., K], K a multiple of 32; columns may be sliced. On CUDA its start and its
            rows lie at multiples of 16 bytes.
        b: Packed uint8 [N, K/2], contiguous.
        scales: float32, bfloat16 or float16 [N, G], K / G in {32, 64, 128} or K; [N] too where G
            is 1.
        zeros: int32 or int8, or float32 or bfloat16 for fractional ones, shaped as scales. None: 0.
            On CUDA an integer zero point far outside INT4, where bfloat16 does not hold 8 plus it
            (below -264 or from 249 on), makes its output column NaN. With act_bits 8 or 4 int32 or
            int8 in [-8, 7], as b_zero of the integer products.
        bias: float32, bfloat16 or float16 [N]. None: no addition.
        act_bits: 16, 8 or 4. With 8 or 4 a token that holds a NaN or an Inf gives NaN throughout.

    Returns:
        bfloat16 [..., N].

    Raises:
        ValueError: A dtype, shape, layout, device, group size or act_bits that is not taken; with
            act_bits 8 or 4 also fractional zeros, groups where act_bits is 4, or a K so large that
            the integer sum may leave int32 (over 131040 for 8 bits and one scale a row).

    Example:
        >>> a = torch.ones(1, 64, dtype=torch.bfloat16)
        >>> b = pack_int4(torch.ones(2, 64, dtype=torch.int8))
        >>> matmul_int4_bf16_tn(a, b, torch.tensor([[1.0, 2.0], [0.5, 1.5]]))
        tensor([[96., 64.]], dtype=torch.bfloat16)
        >>> matmul_int4_bf16_tn(a, b, torch.tensor([[1.0, 2.0], [0.5, 1.5]]), act_bits=8)
        tensor([[96., 64.]], dtype=torch.bfloat16)
    """
    return _ops.matmul_int4_bf16_tn.default(a, b, scales, zeros, bias, act_bits=act_bits)


# --------------------------------------------------------------------------------------------------
# What the library says of itself

_c.qutlass_gemm_tiles.restype = ctypes.c_char_p
_c.qutlass_gemm_tiles.argtypes = []
_c.qutlass_build_info.restype = ctypes.c_char_p
_c.qutlass_build_info.argtypes = []
_c.qutlass_explain.restype = ctypes.c_char_p
_c.qutlass_explain.argtypes = [ctypes.c_char_p, *[ctypes.c_int64] * 4, *[ctypes.c_int] * 3]
_c.qutlass_gemm_legal.restype = ctypes.c_int
_c.qutlass_gemm_legal.argtypes = [
    ctypes.c_char_p,
    *[ctypes.c_int] * 2,
    *[ctypes.c_int64] * 4,
    *[ctypes.c_int] * 2,
]

_c.qutlass_assumption.restype = ctypes.c_char_p
_c.qutlass_assumption.argtypes = []

# Which choice `_explain` is to give.
_BY_MODEL, _AS_CALLED, _BY_RESULTS = range(3)

# The kernel families of an operator: without groups, with float group scales, with multipliers.
_FAMILIES = {
    "matmul_int8_bf16_tn": ("w8a8", None, None),
    "matmul_w4a4_bf16_tn": ("w4a4", None, None),
    "matmul_w4a8_bf16_tn": ("w4a8", "w4a8_group", "w4a8_multiplier"),
    "matmul_int4_bf16_tn": ("w4a16", "w4a16", None),
}
# Those of matmul_int4_bf16_tn where act_bits is not 16.
_QUANTIZING_FAMILIES = {8: ("w4a8", "w4a8_group", None), 4: ("w4a4", None, None)}


def build_info() -> dict[str, Any]:
    """Say what is compiled into the library.

    Returns:
        "version" of the project; "cuda", the toolkit's version, or None in a build for the CPU
        only; "archs", what the CUDA kernels were compiled for; "cutlass", the version of its
        headers, or None; "driver_cuda", the newest CUDA the driver of this machine runs (13000 is
        13.0; 0 without a driver); "torch_abi", the oldest torch it loads into; "cpu_isa", the
        instructions the CPU kernels use here; "compiler"; "left_out", None, or what GEMM kernels
        lack in a build that is for measurements only.

    Example:
        >>> build_info()["torch_abi"]
        '2.11'
    """
    return json.loads(_c.qutlass_build_info())


def explain(
    op: str,
    M: int,
    N: int,
    K: int,
    group_size: int | None = None,
    *,
    multiplier: bool = False,
    act_bits: int = 16,
    device: torch.device | str | int | None = None,
    sm: int | None = None,
) -> dict[str, Any]:
    """Say which kernel a matrix product would run, without running it.

    Args:
        op: An operator, e.g. "matmul_w4a8_bf16_tn".
        M: Rows of the activations.
        N: Rows of the weight.
        K: Columns of both, in values.
        group_size: Columns that share a scale. None: one scale for each row of the weight.
        multiplier: Whether the groups of `matmul_w4a8_bf16_tn` have integer multipliers.
        act_bits: That of `matmul_int4_bf16_tn`; with 8 or 4 the answer is about the integer product
            that follows the quantization of the activations.
        device: Where it would run. None: the current CUDA device where the build and the machine
            have one, else the CPU.
        sm: Instead of a device, a card of this compute capability, there or not: 80 (A100), 86
            (RTX 3090), 89 (RTX 4090) or 90 (H200).

    QUTLASS_ASSUME_SM=86 in the environment of the process gives every device the limits of that
    card, here and in the operators, so that its kernels can be run on another GPU (one with as much
    shared memory). Another value than 80, 86, 89 or 90 is an error here and in the operators.

    Returns:
        On CUDA "tile", the row of the tile table, and its "index"; "instruction"; "emulated",
        whether the GPU lacks that instruction and emulates it; "split_k", the parts that each
        output tile's K is cut into, 0 where as many blocks as run at once share all tiles evenly
        (Stream-K, 2301.03598); "smem_bytes" and "threads" of a block; "blocks"; "waves", how often
        they fill the GPU; "sm" and "sm_count";
        "tuned", whether `qutlass.tune` measured the choice; "assumed", whether the limits are those
        of QUTLASS_ASSUME_SM. On a CPU "device" and "isa".

    Raises:
        ValueError: An operator, shape or card that is not known.
        RuntimeError: No row runs the product there.

    Example:
        >>> explain("matmul_int8_bf16_tn", 16, 4096, 4096, sm=86)["split_k"] >= 0
        True
    """
    if op not in _FAMILIES:
        raise ValueError(f"explain: op must be one of {', '.join(_FAMILIES)}, got {op!r}")
    call, families = op, _FAMILIES[op]
    if act_bits != 16:
        if op != "matmul_int4_bf16_tn" or act_bits not in _QUANTIZING_FAMILIES:
            raise ValueError(
                "explain: act_bits must be 16, or for matmul_int4_bf16_tn also 8 or 4, "
                f"got {act_bits} for {op}"
            )
        call, families = f"{op} with act_bits={act_bits}", _QUANTIZING_FAMILIES[act_bits]
    grouped = group_size is not None and group_size != K
    family = families[2 if multiplier else 1 if grouped else 0]
    if family is None or (multiplier and group_size is None):
        raise ValueError(
            f"explain: {call} takes no such groups, got group_size={group_size}, "
            f"multiplier={multiplier}"
        )
    if min(M, N, K) < 1:
        raise ValueError(f"explain: M, N and K must be at least 1, got {M}, {N} and {K}")
    if device is None and sm is None:
        on_gpu = build_info()["cuda"] and torch.cuda.is_available()
        device = torch.cuda.current_device() if on_gpu else "cpu"
    if sm is None:
        chosen = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        if chosen.type == "cpu":
            return {"op": family, "device": "cpu", "isa": build_info()["cpu_isa"]}
        index = chosen.index
        if index is None:
            index = torch.cuda.current_device() if torch.cuda.is_available() else 0
    else:
        index = 0
    return _explain(family, M, N, K, group_size or K, index, sm)


def _explain(
    family: str,
    M: int,
    N: int,
    K: int,
    group_size: int,
    device: int = 0,
    sm: int | None = None,
    choice: int = _AS_CALLED,
) -> dict[str, Any]:
    """`explain` of a kernel family, K where there are no groups, and a device's index."""
    answer = json.loads(
        _c.qutlass_explain(family.encode(), M, N, K, group_size, sm or 0, device, choice)
    )
    if "error" in answer:
        unknown = answer["error"].startswith("sm must")
        raise (ValueError if unknown else RuntimeError)(f"explain: {answer['error']}")
    return answer


def _assumption() -> dict[str, Any]:
    """What QUTLASS_ASSUME_SM says: "sm", the card's or 0, and "error", or None."""
    return json.loads(_c.qutlass_assumption())


def _gemm_tiles() -> list[dict[str, Any]]:
    """The rows of the tile table that this build can launch: none in a build for the CPU only."""
    return json.loads(_c.qutlass_gemm_tiles()) if build_info()["cuda"] else []


def _gemm_legal(
    family: str,
    tile: int,
    split_k: int,
    M: int,
    N: int,
    K: int,
    group_size: int | None = None,
    *,
    device: int = 0,
    sm: int | None = None,
) -> bool:
    """Whether a row of the table can run a product; `sm` as in `explain`."""
    answer = _c.qutlass_gemm_legal(
        family.encode(), tile, split_k, M, N, K, group_size or K, sm or 0, device
    )
    if answer < 0:
        raise ValueError(f"no kernel family {family!r}, row {tile}, or device")
    return bool(answer)


# --------------------------------------------------------------------------------------------------
# Fake kernels


class _TensorView(ctypes.Structure):
    """`TensorView` of csrc/torch/tensor.h."""

    _fields_ = [
        ("dtype_name", ctypes.c_char_p),
        ("sizes", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("data", ctypes.c_void_p),
        ("ndim", ctypes.c_int64),
        ("device", ctypes.c_int32),
        ("device_index", ctypes.c_int32),
        ("dtype", ctypes.c_int),
    ]


_c.qutlass_check.restype = ctypes.c_char_p
_c.qutlass_check.argtypes = [
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.POINTER(_TensorView)),
    ctypes.c_int,
    ctypes.POINTER(ctypes.c_int64),
    ctypes.c_char_p,
]

_DEVICES = {"cpu": 0, "cuda": 1}
_NO_GROUP = -(2**63)


def _hint(size: int | torch.SymInt) -> int | None:
    """The size itself, or the one at hand for a symbolic one; None where nobody knows it yet."""
    if not isinstance(size, torch.SymInt):
        return size
    return int(size.node.hint) if size.node.has_hint() else None


def _name(dtype: torch.dtype) -> bytes:
    return str(dtype).removeprefix("torch.").encode()


def _check(
    op: str,
    *tensors: Tensor | None,
    numbers: tuple[int | torch.SymInt, ...] = (),
    dtype: torch.dtype = torch.float32,
) -> None:
    """Raise the ValueError that the operator would raise for tensors like these."""
    pointers = (ctypes.POINTER(_TensorView) * len(tensors))()
    views = []
    known = [_hint(n) for n in numbers]
    for i, t in enumerate(tensors):
        if t is None:
            continue
        sizes = [_hint(n) for n in t.shape]
        strides = [_hint(n) for n in t.stride()]
        known += sizes + strides
        if None in known:
            return
        dims = ctypes.c_int64 * t.dim()
        view = _TensorView(
            _name(t.dtype),
            dims(*sizes),
            dims(*strides),
            None,
            t.dim(),
            _DEVICES.get(t.device.type, 2),
            t.device.index or 0,
        )
        views.append(view)
        pointers[i] = ctypes.pointer(view)
    message = _c.qutlass_check(
        op.encode(),
        pointers,
        len(tensors),
        (ctypes.c_int64 * max(1, len(numbers)))(*known[: len(numbers)]),
        _name(dtype),
    )
    if message is not None:
        raise ValueError(message.decode())


@torch.library.register_fake("qutlass::pack_int4")
def _(w):
    _check("pack_int4", w)
    return w.new_empty((*w.shape[:-1], w.shape[-1] // 2), dtype=torch.uint8)


@torch.library.register_fake("qutlass::unpack_int4")
def _(packed):
    _check("unpack_int4", packed)
    return packed.new_empty((*packed.shape[:-1], packed.shape[-1] * 2), dtype=torch.int8)


def _fake_vectors(x, shape, symmetric, zero):
    return (
        x.new_empty(shape, dtype=torch.float32),
        None if symmetric and zero is None else x.new_empty(shape, dtype=torch.int32),
    )


@torch.library.register_fake("qutlass::quantize_int8")
def _(x, *, symmetric=True, scale=None, zero=None, per_tensor=False):
    _check("quantize_int8", x, scale, zero, numbers=(int(symmetric), int(per_tensor)))
    shape = (1,) if per_tensor else x.shape[:-1]
    return x.new_empty(x.shape, dtype=torch.int8), *_fake_vectors(x, shape, symmetric, zero)


@torch.library.register_fake("qutlass::quantize_int4")
def _(x, *, symmetric=True, scale=None, zero=None, group_size=None):
    size = _NO_GROUP if group_size is None else group_size
    _check("quantize_int4", x, scale, zero, numbers=(int(symmetric), size))
    shape = x.shape[:-1] if group_size is None else (*x.shape[:-1], x.shape[-1] // group_size)
    packed = x.new_empty((*x.shape[:-1], x.shape[-1] // 2), dtype=torch.uint8)
    return packed, *_fake_vectors(x, shape, symmetric, zero)


@torch.library.register_fake("qutlass::dequantize_int8")
def _(q, scale, zero=None, *, dtype=None):
    dtype = dtype or torch.float32
    _check("dequantize_int8", q, scale, zero, dtype=dtype)
    return q.new_empty(q.shape, dtype=dtype)


@torch.library.register_fake("qutlass::dequantize_int4")
def _(packed, scale, zero=None, *, dtype=None):
    dtype = dtype or torch.float32
    _check("dequantize_int4", packed, scale, zero, dtype=dtype)
    return packed.new_empty((*packed.shape[:-1], packed.shape[-1] * 2), dtype=dtype)


@torch.library.register_fake("qutlass::weight_sums")
def _(w, *, group_size=None):
    _check("weight_sums", w, numbers=(_NO_GROUP if group_size is None else group_size,))
    if group_size is None:
        return w.new_empty(w.shape[:1], dtype=torch.int32)
    values = w.shape[1] * (2 if w.dtype == torch.uint8 else 1)
    return w.new_empty((w.shape[0], values // group_size), dtype=torch.int32)


def _fake_product(op, a, b, *vectors, numbers=()):
    _check(op, a, b, *vectors, numbers=numbers)
    return a.new_empty((*a.shape[:-1], b.shape[0]), dtype=torch.bfloat16)


@torch.library.register_fake("qutlass::matmul_int8_bf16_tn")
def _(a, b, a_scale, b_scale, a_zero=None, b_zero=None, b_sum=None, bias=None):
    return _fake_product("matmul_int8_bf16_tn", a, b, a_scale, b_scale, a_zero, b_zero, b_sum, bias)


@torch.library.register_fake("qutlass::matmul_w4a4_bf16_tn")
def _(a, b, a_scale, b_scale, a_zero=None, b_zero=None, b_sum=None, bias=None):
    return _fake_product("matmul_w4a4_bf16_tn", a, b, a_scale, b_scale, a_zero, b_zero, b_sum, bias)


@torch.library.register_fake("qutlass::matmul_w4a8_bf16_tn")
def _(a, b, a_scale, b_scale, a_zero=None, b_zero=None, b_sum=None, bias=None, b_multiplier=None):
    return _fake_product(
        "matmul_w4a8_bf16_tn", a, b, a_scale, b_scale, a_zero, b_zero, b_sum, bias, b_multiplier
    )


@torch.library.register_fake("qutlass::matmul_int4_bf16_tn")
def _(a, b, scales, zeros=None, bias=None, *, act_bits=16):
    return _fake_product("matmul_int4_bf16_tn", a, b, scales, zeros, bias, numbers=(act_bits,))


@torch.library.register_fake("qutlass::_gemm_with_tile")
def _(op, tile, split_k, a, b, *vectors):
    return a.new_empty((*a.shape[:-1], b.shape[0]), dtype=torch.bfloat16)


# Done once for a weight and far from any hot path, so the reference itself serves every device.
@torch.library.impl("qutlass::split_group_scales", "CompositeExplicitAutograd")
def _(scales, *, zeros=None):
    return reference.split_group_scales(scales, zeros=zeros, return_error=True)


@torch.library.register_fake("qutlass::split_group_scales")
def _(scales, *, zeros=None):
    return (
        scales.new_empty(scales.shape[:1], dtype=torch.float32),
        scales.new_empty(scales.shape, dtype=torch.uint8),
        scales.new_empty((), dtype=torch.float32),
    )
