# SPDX-License-Identifier: Apache-2.0
"""What the operators refuse, and the words they do it in.

Each refusal runs twice: on real tensors, and on fake ones, as torch.compile would; both must give
the same message, word for word.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import qutlass

M, N, K, G = 4, 6, 128, 2  # the sizes of the arguments below; groups of 64


def valid(op: str) -> dict[str, Any]:
    """Arguments that the operator takes, by name."""
    int8, uint8 = torch.int8, torch.uint8
    a8, a4 = torch.ones(M, K, dtype=int8), torch.ones(M, K // 2, dtype=uint8)
    b8, b4 = torch.ones(N, K, dtype=int8), torch.ones(N, K // 2, dtype=uint8)
    x, w = torch.ones(M, K), torch.ones(M, K, dtype=int8)
    scales = {"a_scale": torch.ones(M), "b_scale": torch.ones(N)}
    return {
        "pack_int4": {"w": w},
        "unpack_int4": {"packed": a4},
        "quantize_int8": {"x": x},
        "quantize_int4": {"x": x},
        "dequantize_int8": {"q": w, "scale": torch.ones(M)},
        "dequantize_int4": {"packed": a4, "scale": torch.ones(M)},
        "weight_sums": {"w": b8},
        "matmul_int8_bf16_tn": {"a": a8, "b": b8, **scales},
        "matmul_w4a4_bf16_tn": {"a": a4, "b": b4, **scales},
        "matmul_w4a8_bf16_tn": {"a": a8, "b": b4, **scales},
        "matmul_int4_bf16_tn": {"a": x.bfloat16(), "b": b4, "scales": torch.ones(N, G)},
    }[op]


OPERATORS = (
    "pack_int4",
    "unpack_int4",
    "quantize_int8",
    "quantize_int4",
    "dequantize_int8",
    "dequantize_int4",
    "weight_sums",
    "matmul_int8_bf16_tn",
    "matmul_w4a4_bf16_tn",
    "matmul_w4a8_bf16_tn",
    "matmul_int4_bf16_tn",
)


@dataclass
class Refusal:
    op: str
    message: str  # without the operator's name
    changes: dict[str, Any]  # to the valid arguments; a tensor is made by a function

    def arguments(self, device: str = "cpu") -> dict[str, Any]:
        made = {
            name: value() if isinstance(value, Callable) else value
            for name, value in self.changes.items()
        }
        return {
            name: moved(v, device) if isinstance(v, torch.Tensor) and v.device.type == "cpu" else v
            for name, v in (valid(self.op) | made).items()
        }

    @property
    def full(self) -> str:
        return f"{self.op}: {self.message}"

    def __str__(self) -> str:
        return self.full[:90]


def moved(t: torch.Tensor, device: str) -> torch.Tensor:
    """On another device with its strides, which `to` gives up where memory has gaps or overlaps."""
    if t.is_contiguous() or device == "cpu":
        return t.to(device)
    storage = torch.empty(0, dtype=t.dtype).set_(t.untyped_storage())
    return storage.to(device).as_strided(t.shape, t.stride(), t.storage_offset())


def full(*shape: int, dtype: torch.dtype = torch.float32) -> Callable[[], torch.Tensor]:
    return lambda: torch.ones(shape, dtype=dtype)


def strided(*shape: int, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    """Of that shape, with the last two dims transposed in memory."""
    return lambda: torch.ones((*shape[:-2], shape[-1], shape[-2]), dtype=dtype).mT


i8, u8, i32, i64 = torch.int8, torch.uint8, torch.int32, torch.int64
f32, f64, bf16, f16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
FLOATS = "float32, bfloat16 or float16"
INT8, W4A4, W4A8, INT4 = OPERATORS[-4:]


def matmul_refusals() -> list[Refusal]:
    found = []
    for op, a_dtype, b_dtype in (
        (INT8, "int8", "int8"),
        (W4A4, "uint8", "uint8"),
        (W4A8, "int8", "uint8"),
        (INT4, "bfloat16", "uint8"),
    ):
        a_step, b_step = 1 + (a_dtype == "uint8"), 1 + (b_dtype == "uint8")
        ad, bd = getattr(torch, a_dtype), getattr(torch, b_dtype)
        mult = 16 if op == INT8 else 32
        cols, b_cols = K // a_step, K // b_step
        b_shape = "[N, K/2]" if b_step == 2 else "[N, K]"

        def a(k: int, *lead: int, step=a_step, dtype=ad) -> Callable[[], torch.Tensor]:
            return full(*(lead or (M,)), k // step, dtype=dtype)

        def b(k: int, n: int = N, step=b_step, dtype=bd) -> Callable[[], torch.Tensor]:
            return full(n, k // step, dtype=dtype)

        found += [
            Refusal(op, f"a must be {a_dtype}, got float32", {"a": full(M, cols)}),
            Refusal(op, f"b must be {b_dtype}, got int32", {"b": full(N, b_cols, dtype=i32)}),
            Refusal(
                op,
                "a must have at least one dim, got a scalar",
                {"a": lambda dtype=ad: torch.ones((), dtype=dtype)},
            ),
            Refusal(
                op,
                "a must have at most 64 dims, got 65",
                {"a": full(*[1] * 64, cols, dtype=ad)},
            ),
            Refusal(
                op,
                f"b must be {b_shape}, got shape [1, {N}, {b_cols}]",
                {"b": full(1, N, b_cols, dtype=bd)},
            ),
            Refusal(
                op,
                f"a and b must have the same K, got {K} and 96 (shapes [{M}, {cols}] and "
                f"[{N}, {96 // b_step}])",
                {"b": b(96)},
            ),
            Refusal(
                op,
                f"K must be a multiple of {mult}, got {mult // 2 + 64} (pad the last dim of a "
                "and b)",
                {"a": a(mult // 2 + 64), "b": b(mult // 2 + 64)},
            ),
            Refusal(
                op,
                f"K must be a multiple of {mult}, got 0 (pad the last dim of a and b)",
                {"a": a(0), "b": b(0)},
            ),
            Refusal(op, f"b must have at least one row, got shape [0, {b_cols}]", {"b": b(K, n=0)}),
            Refusal(
                op,
                f"M, N and K must be at most 2147483647, got {2**31}, {N} and {K}",
                {"a": lambda a=a: a(K, 1)().expand(2**31, -1)},
            ),
            Refusal(
                op,
                f"b must be contiguous, got shape [{N}, {b_cols}] with strides [1, {N}] "
                "(call .contiguous())",
                {"b": strided(N, b_cols, dtype=bd)},
            ),
            Refusal(
                op,
                f"a must be contiguous in its last dim, got shape [{M}, {cols}] with strides "
                f"[1, {M}] (call .contiguous())",
                {"a": strided(M, cols, dtype=ad)},
            ),
            Refusal(
                op,
                f"a must have leading dims that are one stride apart, got shape [2, 3, {cols}] "
                f"with strides [{cols}, {2 * cols}, 1] (call .contiguous())",
                {"a": lambda a=a: a(K, 3, 2)().transpose(0, 1)},
            ),
            Refusal(op, f"bias must be {FLOATS}, got float64", {"bias": full(N, dtype=f64)}),
            Refusal(op, f"bias must be [N] = [{N}], got [1, {N}]", {"bias": full(1, N)}),
            Refusal(
                op,
                f"bias must be contiguous, got shape [{N}] with strides [2] (call .contiguous())",
                {"bias": lambda: torch.ones(2 * N)[::2]},
            ),
        ]
    for op, zero_range_a, zero_range_b in ((INT8, 255, 255), (W4A4, 15, 15), (W4A8, 255, 15)):
        a_reach = {INT8: 128, W4A4: 8, W4A8: 128}[op]
        b_reach = {INT8: 128, W4A4: 8, W4A8: 8}[op]
        step = 16 if op == INT8 else 32
        found += [
            Refusal(op, f"a_scale must be {FLOATS}, got int32", {"a_scale": full(M, dtype=i32)}),
            Refusal(
                op,
                f"a_scale must be [M] = [{M}], [M, 1] or one element, got [1, {M}]",
                {"a_scale": full(1, M)},
            ),
            Refusal(
                op,
                f"a_scale must be contiguous, got shape [{M}] with strides [2] "
                "(call .contiguous())",
                {"a_scale": lambda: torch.ones(2 * M)[::2]},
            ),
            Refusal(op, "a_zero must be int8 or int32, got float32", {"a_zero": full(M)}),
            Refusal(
                op,
                f"a_zero must be [M] = [{M}], [M, 1] or one element, got [3]",
                {"a_zero": full(3, dtype=i32)},
            ),
            Refusal(op, f"b_scale must be {FLOATS}, got float64", {"b_scale": full(N, dtype=f64)}),
            Refusal(
                op,
                f"b_scale must be [N] = [{N}], [N, 1]{', [N, G]' if op == W4A8 else ''} or one "
                "element, got [5]",
                {"b_scale": full(5)},
            ),
            Refusal(op, "b_zero must be int8 or int32, got float32", {"b_zero": full(N)}),
            Refusal(
                op,
                f"b_zero must be [N] = [{N}], [N, 1] or one element, got [2, 3]",
                {"b_zero": full(2, 3, dtype=i8)},
            ),
            Refusal(op, "b_sum must be int32, got int64", {"b_sum": full(N, dtype=i64)}),
            Refusal(
                op,
                f"b_sum must be [N, G] = [{N}, 1], got [{N}, 2]",
                {"b_sum": full(N, 2, dtype=i32)},
            ),
        ]
        for a_zero in (False, True):
            for b_zero in (False, True):
                reach = (zero_range_a if a_zero else a_reach) * (
                    zero_range_b if b_zero else b_reach
                )
                most = 2**31 // reach // step * step
                k = most + step
                parts = {"a": 2 if op == W4A4 else 1, "b": 1 if op == INT8 else 2}
                changes: dict[str, Any] = {
                    name: full(1, k // part, dtype=u8 if part == 2 else i8)
                    for name, part in parts.items()
                }
                changes |= {"a_scale": full(1), "b_scale": full(1)}
                changes |= {"a_zero": full(1, dtype=i32)} if a_zero else {}
                changes |= {"b_zero": full(1, dtype=i32)} if b_zero else {}
                message = f"K must be at most {most} for the exact sum to fit int32, got {k}"
                found.append(Refusal(op, message, changes))
    multiplier = full(N, G, dtype=u8)
    group = {"b_scale": full(N, G)}
    found += [
        Refusal(
            W4A8,
            f"b_scale must have groups of 32, 64 or 128 values, got 8 groups for K = {K} "
            f"(shape [{N}, 8])",
            {"b_scale": full(N, 8)},
        ),
        Refusal(
            W4A8,
            f"b_scale must have groups of 32, 64 or 128 values, got 3 groups for K = {K} "
            f"(shape [{N}, 3])",
            {"b_scale": full(N, 3)},
        ),
        Refusal(
            W4A8,
            f"b_scale must be contiguous, got shape [{N}, {G}] with strides [1, {N}] "
            "(call .contiguous())",
            {"b_scale": strided(N, G, dtype=f32)},
        ),
        Refusal(
            W4A8,
            f"b_zero must be [N, G] = [{N}, {G}], got [{N}]",
            group | {"b_zero": full(N, dtype=i32)},
        ),
        Refusal(
            W4A8,
            f"b_sum must be [N, G] = [{N}, {G}], got [{N}]",
            group | {"b_sum": full(N, dtype=i32)},
        ),
        Refusal(
            W4A8, "b_multiplier must be uint8, got int8", {"b_multiplier": full(N, G, dtype=i8)}
        ),
        Refusal(
            W4A8,
            f"b_multiplier must be [N, G] = [{N}, G], got [{G}, {N}]",
            {"b_multiplier": full(G, N, dtype=u8)},
        ),
        Refusal(
            W4A8,
            f"b_multiplier must have groups of 32, 64 or 128 values, got 0 groups for K = {K} "
            f"(shape [{N}, 0])",
            {"b_multiplier": full(N, 0, dtype=u8)},
        ),
        Refusal(
            W4A8,
            f"b_multiplier must be contiguous, got shape [{N}, {G}] with strides [1, {N}] "
            "(call .contiguous())",
            {"b_multiplier": strided(N, G, dtype=u8)},
        ),
        Refusal(
            W4A8,
            f"b_scale must be [N] = [{N}], [N, 1] or one element, got [{N}, {G}]",
            group | {"b_multiplier": multiplier},
        ),
        Refusal(
            W4A8,
            "b_zero must be int8, got int32",
            {"b_multiplier": multiplier, "b_zero": full(N, G, dtype=i32)},
        ),
        Refusal(
            W4A8,
            f"b_zero must be [N, G] = [{N}, {G}], got [{N}, 1]",
            {"b_multiplier": multiplier, "b_zero": full(N, 1, dtype=i8)},
        ),
        Refusal(
            W4A8,
            "K must be at most 131072 for the exact sum to fit int32, got 131200",
            {
                "a": full(1, 131200, dtype=i8),
                "b": full(1, 65600, dtype=u8),
                "a_scale": full(1),
                "b_scale": full(1),
                "b_multiplier": full(1, 1025, dtype=u8),
            },
        ),
        Refusal(INT4, f"scales must be {FLOATS}, got float64", {"scales": full(N, G, dtype=f64)}),
        Refusal(INT4, f"scales must be [N, G] = [{N}, G], got [{G}, {N}]", {"scales": full(G, N)}),
        Refusal(INT4, f"scales must be [N, G] = [{N}, G], got []", {"scales": full()}),
        Refusal(
            INT4,
            f"scales must have groups of 32, 64, 128 or K values, got 8 groups for K = {K} "
            f"(shape [{N}, 8])",
            {"scales": full(N, 8)},
        ),
        Refusal(
            INT4,
            f"scales must be contiguous, got shape [{N}, {G}] with strides [1, {N}] "
            "(call .contiguous())",
            {"scales": strided(N, G, dtype=f32)},
        ),
        Refusal(
            INT4,
            "zeros must be float32, bfloat16, int8 or int32, got float16",
            {"zeros": full(N, G, dtype=f16)},
        ),
        Refusal(
            INT4,
            f"zeros must be [N, G] = [{N}, {G}], got [{N}, 4]",
            {"zeros": full(N, 4, dtype=i8)},
        ),
    ]
    return found + act_bits_refusals()


def act_bits_refusals() -> list[Refusal]:
    """Of matmul_int4_bf16_tn where it is to quantize the activations."""
    found = [
        Refusal(INT4, f"act_bits must be 16, 8 or 4, got {bits}", {"act_bits": bits})
        for bits in (-8, 0, 1, 2, 6, 32, 2**40)
    ]
    channel = {"scales": full(N, 1)}
    for bits in (8, 4):
        told: dict[str, Any] = {"act_bits": bits, **channel}
        found += [
            *(
                Refusal(
                    INT4,
                    f"zeros must be int8 or int32 with act_bits={bits}, got {name} (fractional "
                    "ones are taken with act_bits=16)",
                    told | {"zeros": full(N, 1, dtype=getattr(torch, name))},
                )
                for name in ("float32", "bfloat16", "float16")
            ),
            Refusal(
                INT4,
                f"zeros must be [N, G] = [{N}, 1], got [{N}, {G}]",
                told | {"zeros": full(N, G, dtype=i8)},
            ),
            Refusal(INT4, "a must be bfloat16, got int8", told | {"a": full(M, K, dtype=i8)}),
            Refusal(INT4, "a must be bfloat16, got float16", told | {"a": full(M, K, dtype=f16)}),
            Refusal(
                INT4, f"scales must be {FLOATS}, got int32", told | {"scales": full(N, dtype=i32)}
            ),
            Refusal(INT4, f"scales must be [N, G] = [{N}, G], got [1]", told | {"scales": full(1)}),
            Refusal(INT4, f"bias must be {FLOATS}, got int8", told | {"bias": full(N, dtype=i8)}),
        ]
    found += [
        *(
            Refusal(
                INT4,
                f"scales must be [N, 1] = [{N}, 1] or [N] with act_bits=4, got [{N}, {groups}] "
                "(groups are taken with act_bits=8 and 16)",
                {"act_bits": 4, "scales": full(N, groups)},
            )
            for groups in (0, 2, 4)
        ),
        Refusal(
            INT4,
            f"scales must have groups of 32, 64, 128 or K values, got 8 groups for K = {K} "
            f"(shape [{N}, 8])",
            {"act_bits": 8, "scales": full(N, 8)},
        ),
    ]
    exact, shifted = "the exact sum", "the sum of 16 * a * b"
    for bits, has_zero, most, k, what in (
        (8, False, 131040, 131072, shifted),
        (8, True, 131040, 131072, shifted),
        (8, False, 2097152, 2097184, exact),
        (8, True, 1118464, 1118496, exact),
        (4, False, 33554432, 33554464, exact),
        (4, True, 17895680, 17895712, exact),
    ):
        changes: dict[str, Any] = {
            "act_bits": bits,
            "a": full(1, k, dtype=bf16),
            "b": full(1, k // 2, dtype=u8),
            "scales": full(1),
        }
        changes |= {"zeros": full(1, dtype=i8)} if has_zero else {}
        message = (
            f"K must be at most {most} for {what} to fit int32, got {k} (act_bits=16 sets no limit)"
        )
        found.append(Refusal(INT4, message, changes))
    return found


def quantize_refusals() -> list[Refusal]:
    found = []
    for op in ("quantize_int8", "quantize_int4"):
        found += [
            Refusal(op, f"x must be {FLOATS}, got float64", {"x": full(M, K, dtype=f64)}),
            Refusal(op, "x must have at least one dim, got a scalar", {"x": full()}),
            Refusal(
                op,
                f"x must be contiguous in its last dim, got shape [{M}, {K}] with strides "
                f"[1, {M}] (call .contiguous())",
                {"x": strided(M, K, dtype=f32)},
            ),
            Refusal(
                op,
                f"x must have leading dims that are one stride apart, got shape [2, 3, {K}] with "
                f"strides [{K}, {2 * K}, 1] (call .contiguous())",
                {"x": lambda: torch.ones(3, 2, K).transpose(0, 1)},
            ),
            Refusal(op, f"x must be [..., K] with K >= 1, got shape [{M}, 0]", {"x": full(M, 0)}),
            Refusal(op, f"scale must be {FLOATS}, got int8", {"scale": full(M, dtype=i8)}),
            Refusal(
                op,
                f"scale must be one element, [{M}] or [{M}, G] with G dividing K = {K}, got [3]",
                {"scale": full(3)},
            ),
            Refusal(
                op,
                f"scale must be one element or hold 1 value a row, got [{M}, 2]",
                {"scale": full(M, 2)},
            ),
            Refusal(op, "zero is taken only together with scale", {"zero": full(M, dtype=i32)}),
            Refusal(
                op,
                "symmetric=False with a given scale needs zero as well",
                {"scale": full(M), "symmetric": False},
            ),
            Refusal(
                op,
                "zero must be int8 or int32, got float32",
                {"scale": full(M), "zero": full(M)},
            ),
            Refusal(
                op,
                f"zero must be one element, [{M}] or [{M}, G] with G dividing K = {K}, "
                f"got [{M}, 3]",
                {"scale": full(M), "zero": full(M, 3, dtype=i32)},
            ),
        ]
    found += [
        Refusal(
            "quantize_int8",
            f"scale must be one element per tensor, got [{M}]",
            {"scale": full(M), "per_tensor": True},
        ),
        Refusal(
            "quantize_int4",
            "K must be a multiple of 32, got 100 (pad the last dim of x)",
            {"x": full(M, 100)},
        ),
        *(
            Refusal(
                "quantize_int4",
                f"group_size must be a multiple of 32 that divides K = {K}, got {size}",
                {"group_size": size},
            )
            for size in (0, -32, 16, 96, 256)
        ),
        Refusal(
            "quantize_int4",
            f"scale must be one element or hold 2 values a row, got [{M}]",
            {"scale": full(M), "group_size": 64},
        ),
    ]
    for op, name, dtype, cols in (
        ("dequantize_int8", "q", "int8", K),
        ("dequantize_int4", "packed", "uint8", K // 2),
    ):
        taken = getattr(torch, dtype)
        found += [
            Refusal(op, f"{name} must be {dtype}, got int32", {name: full(M, cols, dtype=i32)}),
            Refusal(
                op, f"{name} must have at least one dim, got a scalar", {name: full(dtype=taken)}
            ),
            Refusal(
                op,
                f"{name} must be contiguous, got shape [{M}, {cols}] with strides [1, {M}] "
                "(call .contiguous())",
                {name: strided(M, cols, dtype=taken)},
            ),
            Refusal(op, f"dtype must be {FLOATS}, got float64", {"dtype": f64}),
            Refusal(op, f"dtype must be {FLOATS}, got int8", {"dtype": i8}),
            Refusal(op, f"scale must be {FLOATS}, got int32", {"scale": full(M, dtype=i32)}),
            Refusal(
                op,
                f"scale must be one element, [{M}] or [{M}, G] with G dividing K = {K}, got [5]",
                {"scale": full(5)},
            ),
            Refusal(
                op,
                "zero must be float32, bfloat16, int8 or int32, got float16",
                {"zero": full(M, dtype=f16)},
            ),
            Refusal(
                op,
                f"zero must be one element or shaped like scale [{M}], got [{M}, 2]",
                {"zero": full(M, 2, dtype=i8)},
            ),
        ]
    found += [
        Refusal(
            "dequantize_int4",
            f"packed must be [..., K/2] with K a multiple of 32, got shape [{M}, 24]",
            {"packed": full(M, 24, dtype=u8)},
        ),
        Refusal(
            "dequantize_int4",
            f"scale must have groups of a multiple of 32 values, got 16 (shape [{M}, 8])",
            {"scale": full(M, 8)},
        ),
    ]
    return found


def packing_refusals() -> list[Refusal]:
    integers = "int8, uint8, int16, int32 or int64"
    return [
        Refusal("pack_int4", f"w must be {integers}, got float32", {"w": full(M, K)}),
        Refusal(
            "pack_int4", f"w must be {integers}, got bool", {"w": full(M, K, dtype=torch.bool)}
        ),
        Refusal("pack_int4", "w must have at least one dim, got a scalar", {"w": full(dtype=i8)}),
        Refusal(
            "pack_int4",
            f"K must be a multiple of 32, got 48 (pad the last dim of w; its shape is [{M}, 48])",
            {"w": full(M, 48, dtype=i8)},
        ),
        Refusal(
            "pack_int4",
            f"w must be contiguous in its last dim, got shape [{M}, {K}] with strides [1, {M}] "
            "(call .contiguous())",
            {"w": strided(M, K, dtype=i8)},
        ),
        Refusal("unpack_int4", "packed must be uint8, got int8", {"packed": full(M, K, dtype=i8)}),
        Refusal(
            "unpack_int4",
            f"packed must be [..., K/2] with K a multiple of 32, got shape [{M}, 8]",
            {"packed": full(M, 8, dtype=u8)},
        ),
        Refusal(
            "unpack_int4",
            f"packed must be contiguous, got shape [{M}, {K}] with strides [{2 * K}, 1] "
            "(call .contiguous())",
            {"packed": lambda: torch.ones(M, 2 * K, dtype=u8)[:, :K]},
        ),
        Refusal("weight_sums", "w must be int8 or uint8, got int32", {"w": full(N, K, dtype=i32)}),
        *(
            Refusal(
                "weight_sums",
                "w must be int8 [N, K] or packed uint8 [N, K/2] with K >= 1, got shape "
                f"{list(shape)}",
                {"w": full(*shape, dtype=i8)},
            )
            for shape in ((K,), (2, N, K), (N, 0))
        ),
        Refusal(
            "weight_sums",
            f"w must be [..., K/2] with K a multiple of 32, got shape [{N}, 8]",
            {"w": full(N, 8, dtype=u8)},
        ),
        Refusal(
            "weight_sums",
            f"w must be contiguous, got shape [{N}, {K}] with strides [1, {N}] "
            "(call .contiguous())",
            {"w": strided(N, K, dtype=i8)},
        ),
        Refusal("weight_sums", f"group_size must divide K = {K}, got 48", {"group_size": 48}),
        Refusal(
            "weight_sums",
            f"group_size must be a multiple of 32 that divides K = {2 * K}, got 16",
            {"w": full(N, K, dtype=u8), "group_size": 16},
        ),
    ]


REFUSALS = matmul_refusals() + quantize_refusals() + packing_refusals()
every_refusal = pytest.mark.parametrize("refusal", REFUSALS, ids=str)


def refused(operator: Callable[..., Any], arguments: dict[str, Any]) -> str:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the caller compares the message
        operator(**arguments)
    return str(raised.value)


@pytest.mark.parametrize("op", OPERATORS)
def test_the_valid_arguments_are_valid(device: str, op: str) -> None:
    """Else a refusal below could be for another reason."""
    result = getattr(qutlass, op)(**{name: v.to(device) for name, v in valid(op).items()})
    assert result is not None


@every_refusal
def test_message(device: str, refusal: Refusal) -> None:
    assert refused(getattr(qutlass, refusal.op), refusal.arguments(device)) == refusal.full


@every_refusal
def test_the_fake_says_the_same(refusal: Refusal) -> None:
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        arguments = {
            name: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v
            for name, v in refusal.arguments().items()
        }
        assert refused(getattr(qutlass, refusal.op), arguments) == refusal.full


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiling_says_the_same(dynamic: bool) -> None:
    compiled = torch.compile(
        qutlass.matmul_int8_bf16_tn, fullgraph=True, dynamic=dynamic, backend="eager"
    )
    a = torch.ones(3, 40, dtype=i8)
    message = (
        "matmul_int8_bf16_tn: K must be a multiple of 16, got 40 (pad the last dim of a and b)"
    )
    with pytest.raises(Exception) as raised:  # noqa: PT011 - Dynamo wraps it in its own exception
        compiled(a, a, torch.ones(3), torch.ones(3))
    assert message in str(raised.value)


def test_a_compiled_call_checks_again() -> None:
    """A size that was good when the program was compiled, and is not now."""
    compiled = torch.compile(
        qutlass.matmul_int8_bf16_tn, fullgraph=True, dynamic=True, backend="aot_eager"
    )
    one = torch.ones(1)
    good, bad = torch.ones(3, 64, dtype=i8), torch.ones(3, 72, dtype=i8)
    assert compiled(good, good, one, one).shape == (3, 3)
    with pytest.raises(Exception, match="K must be a multiple of 16, got 72"):
        compiled(bad, bad, one, one)


@pytest.mark.parametrize("dtype", [i8, u8, torch.int16, i32, i64], ids=str)
@pytest.mark.parametrize("shape", [(64,), (5, 96), (2, 3, 32)], ids=str)
def test_pack_names_the_first_value_out_of_range(
    device: str, dtype: torch.dtype, shape: tuple[int, ...], seeded: torch.Generator
) -> None:
    """Of several, the first in order; low, high, and the widest of the dtype."""
    info = torch.iinfo(dtype)
    for value in {8, info.max, info.min if info.min < 0 else 15, -9 if info.min < 0 else 9}:
        w = torch.zeros(shape, dtype=dtype).flatten()
        first, second = sorted(torch.randperm(w.numel(), generator=seeded)[:2].tolist())
        w[first], w[second] = value, 127
        w = w.reshape(shape).to(device)
        index = [int(i) for i in torch.unravel_index(torch.tensor(first), shape)]
        message = f"pack_int4: w must hold values in [-8, 7], got {value} at {index}"
        assert refused(qutlass.pack_int4, {"w": w}) == message


def test_pack_names_a_value_of_a_strided_tensor(device: str) -> None:
    """What lies between the rows is neither looked at nor counted."""
    wide = torch.full((4, 100), 99, dtype=i32, device=device)
    w = wide[:, :64]
    w.zero_()
    assert qutlass.pack_int4(w).sum() == 0
    w[2, 33] = -9
    assert refused(qutlass.pack_int4, {"w": w}) == (
        "pack_int4: w must hold values in [-8, 7], got -9 at [2, 33]"
    )


def fake_on_gpu(t: torch.Tensor) -> torch.Tensor:
    """Inside a FakeTensorMode; needs no GPU."""
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda")


@pytest.mark.parametrize("op", [INT8, W4A4, W4A8, INT4])
def test_rows_out_of_alignment_on_cuda_need_no_gpu_to_be_refused(op: str) -> None:
    arguments = valid(op)
    a = arguments["a"]
    wide = torch.ones(M, a.shape[1] + 4, dtype=a.dtype)
    arguments["a"] = wide[:, : a.shape[1]]
    got = wide.stride(0) * wide.element_size()
    with FakeTensorMode():
        on_gpu = {name: fake_on_gpu(v) for name, v in arguments.items()}
        assert refused(getattr(qutlass, op), on_gpu) == (
            f"{op}: the rows of a must be a multiple of 16 bytes apart on CUDA, got {got} "
            "(call .contiguous())"
        )


@pytest.mark.parametrize("op", OPERATORS)
def test_tensors_on_two_devices(op: str) -> None:
    """Every tensor after the first, on another device."""
    extra = {
        "quantize_int8": {"scale": torch.ones(M), "zero": torch.ones(M, dtype=i8)},
        "quantize_int4": {"scale": torch.ones(M), "zero": torch.ones(M, dtype=i8)},
        "dequantize_int8": {"zero": torch.ones(M, dtype=i8)},
        "dequantize_int4": {"zero": torch.ones(M, dtype=i8)},
        INT4: {"zeros": torch.ones(N, G), "bias": torch.ones(N)},
    }
    vectors = {
        "a_zero": torch.ones(M, dtype=i32),
        "b_zero": torch.ones(N, dtype=i32),
        "b_sum": torch.ones(N, dtype=i32),
        "bias": torch.ones(N),
    }
    more = extra.get(op, vectors if op.startswith("matmul") else {})
    if op == W4A8:
        grouped = {"b_zero": torch.ones(N, G, dtype=i8), "b_sum": torch.ones(N, G, dtype=i32)}
        more = more | grouped | {"b_multiplier": torch.ones(N, G, dtype=u8)}
    arguments = valid(op) | more
    first, *others = arguments
    for moved in others:
        with FakeTensorMode() as mode:
            mixed = {
                name: fake_on_gpu(v) if name == moved else mode.from_tensor(v)
                for name, v in arguments.items()
            }
            assert refused(getattr(qutlass, op), mixed) == (
                f"{op}: {moved} must be on the device of {first} (cpu), got cuda:0"
            )


@pytest.mark.gpu
@pytest.mark.parametrize("op", [INT8, W4A4, W4A8, INT4])
def test_alignment_on_cuda(op: str) -> None:
    arguments = {name: v.cuda() for name, v in valid(op).items()}
    operator = getattr(qutlass, op)
    for name in ("a", "b"):
        t = arguments[name]
        shifted = torch.ones(t.numel() + 16, dtype=t.dtype, device="cuda")
        offset = 8 // t.element_size()
        bad = shifted[offset : offset + t.numel()].view(t.shape)
        assert refused(operator, arguments | {name: bad}) == (
            f"{op}: {name} must start at a multiple of 16 bytes on CUDA, got one 8 bytes past it "
            "(call .clone())"
        )
        operator(**(arguments | {name: bad.clone()}))
    a = arguments["a"]
    wide = torch.ones(M, a.shape[1] + 4, dtype=a.dtype, device="cuda")
    got = wide.stride(0) * wide.element_size()
    assert refused(operator, arguments | {"a": wide[:, : a.shape[1]]}) == (
        f"{op}: the rows of a must be a multiple of 16 bytes apart on CUDA, got {got} "
        "(call .contiguous())"
    )
    one_row = wide[:1, : a.shape[1]]  # with one row there is no distance
    scale = {} if op == INT4 else {"a_scale": torch.ones(1, device="cuda")}
    assert operator(**(arguments | {"a": one_row} | scale)).shape == (1, N)


@pytest.mark.gpu
def test_a_row_that_cannot_run_the_problem() -> None:
    x = {name: v.cuda() for name, v in valid(INT8).items()}
    none = [None] * 5
    run = torch.ops.qutlass._gemm_with_tile
    rows = [row["index"] for row in qutlass.ops._gemm_tiles() if row["op"] == "w4a4"]
    for tile in (-1, 10**6, rows[0]):
        with pytest.raises(ValueError, match=f"tile {tile} with split_k 1 cannot run this problem"):
            run("w8a8", tile, 1, x["a"], x["b"], x["a_scale"], x["b_scale"], *none)
    b = x["b"][:, : K // 2].to(u8).contiguous()
    with pytest.raises(ValueError, match="op must be the kernel family of the operands, w4a8"):
        run("w4a8_group", 0, 1, x["a"], b, x["a_scale"], x["b_scale"], *none)


@pytest.mark.gpu
def test_a_capture_saturates_what_pack_would_refuse() -> None:
    w = torch.zeros(3, 64, dtype=i32, device="cuda")
    qutlass.pack_int4(w)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        packed = qutlass.pack_int4(w)
    w[0, 0], w[1, 5] = 100, -100
    graph.replay()
    got = qutlass.unpack_int4(packed)
    assert got[0, 0] == 7
    assert got[1, 5] == -8
    assert got.abs().sum() == 15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("matmul", 1, 1, 16), "op must be one of matmul_int8_bf16_tn, .* got 'matmul'"),
        ((INT8, 1, 1, 128, 32), "matmul_int8_bf16_tn takes no such groups, got group_size=32"),
        ((INT8, 0, 1, 16), "M, N and K must be at least 1, got 0, 1 and 16"),
    ],
)
def test_explain(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^explain: {message}"):
        qutlass.explain(*arguments, sm=86)


@pytest.mark.parametrize(
    ("op", "group", "options", "message"),
    [
        (INT4, None, {"act_bits": 5}, f"act_bits must be 16, or for {INT4} .* got 5 for {INT4}"),
        (W4A8, None, {"act_bits": 8}, f"act_bits must be 16, or for {INT4} .* got 8 for {W4A8}"),
        (INT4, 64, {"act_bits": 4}, f"{INT4} with act_bits=4 takes no such groups, got .*=64"),
        (
            INT4,
            64,
            {"act_bits": 8, "multiplier": True},
            f"{INT4} with act_bits=8 takes no such groups, got .*multiplier=True",
        ),
    ],
)
def test_explain_act_bits(
    op: str, group: int | None, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^explain: {message}"):
        qutlass.explain(op, 1, 1, 128, group, **options, sm=86)


def test_explain_for_an_unknown_card() -> None:
    with pytest.raises(ValueError, match=r"^explain: sm must be 80, 86, 89 or 90, got 75"):
        qutlass.explain(INT8, 1, 1, 16, sm=75)
