# SPDX-License-Identifier: Apache-2.0
"""What is right, worked out without qutlass.

Products are float64 matrix products of the integers themselves: every term and partial sum is an
integer below 2**53, so they are exact in any order, on CPU and on GPU. Quantization is NumPy in
float32, one rounding per line.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cases import GemmInputs

# Relative Frobenius error the contract allows where float32 sums cross groups.
FLOAT_BOUND = 3e-3


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """int8 values of packed int4, each looked up at the place the format gives it."""
    k = torch.arange(packed.shape[-1] * 2, device=packed.device)
    byte = k // 32 * 16 + k % 16
    shift = torch.where(k % 32 >= 16, 4, 0)
    nibble = packed.to(torch.int32)[..., byte] >> shift & 15
    return torch.where(nibble >= 8, nibble - 16, nibble).to(torch.int8)


def _column(v: torch.Tensor) -> torch.Tensor:
    """A per-row vector in any of its forms as [rows, 1] (or [1, 1])."""
    return v.reshape(-1, 1)


def _per_k(v: torch.Tensor, k: int) -> torch.Tensor:
    """[N, G] stretched to [N, K]."""
    return v.repeat_interleave(k // v.shape[1], dim=1)


def _zeroed_operands(x: GemmInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """(a - a_zero) and (b - b_zero), the latter times b_multiplier, in float64 and exact."""
    k = x.case.k
    a, b = x.a_values.double(), x.b_values.double()
    zero = x.vectors.get("zeros", x.vectors.get("b_zero"))
    if "a_zero" in x.vectors:
        a = a - _column(x.vectors["a_zero"]).double()
    if zero is not None:
        b = b - (_per_k(zero, k) if x.case.group else _column(zero)).double()
    if "b_multiplier" in x.vectors:
        b = b * _per_k(x.vectors["b_multiplier"], k).double()
    return a, b


def accumulator(x: GemmInputs) -> torch.Tensor:
    """The exact integer sum of an integer product, as float64 [M, N]."""
    if not x.case.exact:
        raise ValueError(f"{x.case.id} has no integer sum")
    a, b = _zeroed_operands(x)
    if a.numel() and b.numel():
        assert a.abs().max() * b.abs().max() * x.case.k < 2**53
    return a @ b.T


def exact_product(x: GemmInputs) -> torch.Tensor:
    """The bits an integer product must give: each step of the contract rounded by itself."""
    t = accumulator(x).to(torch.float32)
    t = t * x.vectors["b_scale"].float().reshape(1, -1)
    t = t * x.vectors["a_scale"].float().reshape(-1, 1)
    if "bias" in x.vectors:
        t = t + x.vectors["bias"].float()
    return t.to(torch.bfloat16).reshape(x.out_shape)


def float_product(x: GemmInputs) -> torch.Tensor:
    """The float64 product of the exact dequantized operands."""
    a, b = _zeroed_operands(x)
    if "a_scale" in x.vectors:
        a = a * _column(x.vectors["a_scale"]).double()
    scale = x.vectors.get("scales", x.vectors.get("b_scale"))
    grouped = x.case.group and not x.case.multiplier
    b = b * (_per_k(scale, x.case.k) if grouped else _column(scale)).double()
    out = a @ b.T
    if "bias" in x.vectors:
        out = out + x.vectors["bias"].double()
    return out.reshape(x.out_shape)


def bits(x: torch.Tensor) -> torch.Tensor:
    """A float tensor as integers, so that comparing is comparing bits."""
    return x.view({2: torch.int16, 4: torch.int32}[x.element_size()])


def assert_same_bits(got: torch.Tensor, want: torch.Tensor, what: str = "") -> None:
    """Equal shape, dtype, device and every bit (any NaN equals any NaN)."""
    assert got.dtype == want.dtype, f"{what}: dtype {got.dtype}, want {want.dtype}"
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, want {tuple(want.shape)}"
    assert got.device == want.device, f"{what}: on {got.device}, want {want.device}"
    if got.is_floating_point():
        differs = (bits(got) != bits(want)) & ~(got.isnan() & want.isnan())
    else:
        differs = got != want
    if not differs.any():
        return
    where = differs.nonzero()
    first, last = where[0].tolist(), where[-1].tolist()
    raise AssertionError(
        f"{what}: {len(where)} of {got.numel()} elements differ, from {first} to {last}; "
        f"at {first} got {got[tuple(first)].item()!r}, want {want[tuple(first)].item()!r}"
    )


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Relative Frobenius error; 0 for nothing compared with nothing."""
    if not want.numel():
        return 0.0
    return ((got.double() - want).norm() / want.norm()).item()


def assert_right(got: torch.Tensor, x: GemmInputs) -> None:
    """Bitwise where the contract fixes the bits, else within its bound."""
    if x.case.exact:
        assert_same_bits(got, exact_product(x), x.case.id)
        return
    assert got.dtype == torch.bfloat16 and got.shape == x.out_shape, x.case.id
    assert got.device == x.a.device
    want = float_product(x)
    error = relative_error(got, want)
    # Of a handful of values even the correctly rounded ones can be further off than the bound.
    bound = max(FLOAT_BOUND, 1.05 * relative_error(want.to(torch.bfloat16), want))
    # Written so that a NaN fails too.
    assert error <= bound, f"{x.case.id}: relative error {error:.2e} > {bound:.1e}"


# --------------------------------------------------------------------------------------------------
# Quantization


def quantize(
    x: torch.Tensor,
    bits: int,
    *,
    symmetric: bool = True,
    group_size: int | None = None,
    per_tensor: bool = False,
    scale: torch.Tensor | None = None,
    zero: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(q as plain int8 of x's shape, scale float32, zero int32 or None) on the CPU.

    A row (group, tensor) with a NaN or an Inf, or whose scale overflows, has scale NaN, zero 0 and
    q 0. A computed scale of 0 becomes 1 with zero 0 and q 0. With a given scale NaN becomes the
    zero point.
    """
    top = np.float32(2 ** (bits - 1) - 1)
    bottom = -top - np.float32(1)
    values = x.detach().cpu().float().numpy()
    shape = values.shape
    if per_tensor:
        rows, scale_shape = values.reshape(1, -1), (1,)
    elif group_size:
        rows = values.reshape(-1, group_size)
        scale_shape = (*shape[:-1], shape[-1] // group_size)
    else:
        rows, scale_shape = values.reshape(int(np.prod(shape[:-1])), shape[-1]), shape[:-1]

    f32 = np.float32
    with np.errstate(all="ignore"):
        if scale is not None:
            s = scale.cpu().float().numpy().reshape(-1, 1)
            z = zero.cpu().numpy().astype(f32).reshape(-1, 1) if zero is not None else None
            spoilt = np.zeros((rows.shape[0], 1), bool)
            s = np.broadcast_to(s, spoilt.shape)
            z = None if z is None else np.broadcast_to(z, spoilt.shape)
        else:
            spoilt = ~np.isfinite(rows).all(axis=1, keepdims=True)
            if symmetric:
                s = np.abs(rows).max(axis=1, keepdims=True, initial=0) / top
            else:
                low = np.minimum(rows.min(axis=1, keepdims=True, initial=0), f32(0))
                high = np.maximum(rows.max(axis=1, keepdims=True, initial=0), f32(0))
                s = (high - low) / (f32(2) * top + f32(1))
            spoilt |= ~np.isfinite(s)
            nothing = s == 0
            z = None
            if not symmetric:
                z = np.clip(np.rint(bottom - low / s), bottom, top)
                z = np.where(spoilt | nothing, f32(0), z)
            s = np.where(spoilt, f32(np.nan), np.where(nothing, f32(1), s))
            spoilt |= nothing
        t = np.rint(rows / s)
        assert t.dtype == f32
        if symmetric:
            t = np.where(np.isnan(t), f32(0), np.clip(t, -top, top))
        else:
            t = t + z
            t = np.where(np.isnan(t), np.broadcast_to(z, t.shape), np.clip(t, bottom, top))
        t = np.where(spoilt, f32(0), t)
    q = torch.from_numpy(t.astype(np.int8).reshape(shape))
    out_scale = torch.from_numpy(np.array(s, f32).reshape(scale_shape))
    out_zero = None
    if z is not None:
        out_zero = torch.from_numpy(z.astype(np.int32).reshape(scale_shape))
    return q, out_scale, out_zero


def dequantize(
    q: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, dtype: torch.dtype, group: int
) -> torch.Tensor:
    """(q - zero) * scale of plain values in float32, then rounded to dtype, on the CPU."""
    rows = q.cpu().reshape(-1, group).numpy().astype(np.float32)
    if zero is not None:
        rows = rows - zero.cpu().float().numpy().reshape(-1, 1)
    rows = rows * scale.cpu().float().numpy().reshape(-1, 1)
    return torch.from_numpy(rows).reshape(q.shape).to(dtype)


def group_sums(values: torch.Tensor, group: int) -> torch.Tensor:
    """int32 sums over runs of `group` values along the last dim, one a row where it is all of K."""
    n, k = values.shape
    sums = values.cpu().numpy().astype(np.int64).reshape(n, k // group, group).sum(-1)
    out: Any = sums.astype(np.int32)
    return torch.from_numpy(out[:, 0] if group == k else out)
