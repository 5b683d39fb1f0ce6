# SPDX-License-Identifier: Apache-2.0
"""The compared number formats, each as a function from values to the values it keeps of them.

The float formats come from `legacy_blackwell.reference`, the integer ones from the operators of
`qutlass`. Every function takes a matrix [rows, K] and the rotation h (identity for none) and
returns float32 values in the rotated space, where the products are taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import qutlass
from legacy_blackwell.reference import (
    MX_ABS_MAX_FACTOR,
    dequantize_mxfp4,
    dequantize_nvfp4,
    fused_quantize_mx,
    fused_quantize_nv,
    nv_global_scale,
    rotate,
)

Quantizer = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Format:
    """A weight format and what its activations may be stored as.

    Attributes:
        name: as the table shows it.
        bits: stored bits a weight, scales and zero points included, for rows of K weights.
        weight: quantizes weights.
        same: quantizes activations to the same number of bits in the same kind of groups.
        operator: whether a product of such weights and such activations exists as one operator.
    """

    name: str
    bits: Callable[[int], float]
    weight: Quantizer
    same: Quantizer
    operator: bool


def mxfp4(x: Tensor, h: Tensor, *, method: str) -> Tensor:
    packed, scales = fused_quantize_mx(x, h, method=method)
    factor = MX_ABS_MAX_FACTOR if method == "abs_max" else 1.0
    return dequantize_mxfp4(packed, scales, global_scale=factor)


def nvfp4(x: Tensor, h: Tensor) -> Tensor:
    """The tensor scale comes from this very tensor, which flatters activations a little."""
    global_scale = nv_global_scale(rotate(x, h))
    packed, scales = fused_quantize_nv(x, h, global_scale)
    return dequantize_nvfp4(packed, scales, global_scale=float(global_scale))


def pack_weight(
    x: Tensor, group_size: int | None, symmetric: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """INT4 with scales that are stored as bfloat16, so the integers are chosen for those."""
    _, scale, zero = qutlass.quantize_int4(x, symmetric=symmetric, group_size=group_size)
    scale = scale.bfloat16()
    packed, _, _ = qutlass.quantize_int4(
        x, symmetric=symmetric, scale=scale, zero=zero, group_size=group_size
    )
    return packed, scale, zero


def int4(x: Tensor, h: Tensor, *, group_size: int | None, symmetric: bool = True) -> Tensor:
    return qutlass.dequantize_int4(*pack_weight(rotate(x, h), group_size, symmetric))


def int8(x: Tensor, h: Tensor) -> Tensor:
    q, scale, _ = qutlass.quantize_int8(rotate(x, h))
    return qutlass.dequantize_int8(q, scale)


def _int4_format(group_size: int | None, symmetric: bool) -> Format:
    stored = 16 if symmetric else 16 + 8
    name = "INT4 row" if group_size is None else f"INT4 g{group_size}"
    return Format(
        name=name if symmetric else f"{name} + zero",
        bits=lambda k: 4 + stored / (group_size or k),
        weight=partial(int4, group_size=group_size, symmetric=symmetric),
        same=partial(int4, group_size=group_size),
        operator=group_size is None,
    )


FORMATS = (
    *(
        Format(
            name=f"MXFP4 {method}",
            bits=lambda k: 4 + 8 / 32,
            weight=partial(mxfp4, method=method),
            same=partial(mxfp4, method=method),
            operator=True,
        )
        for method in ("quest", "abs_max")
    ),
    Format(name="NVFP4", bits=lambda k: 4 + 8 / 16, weight=nvfp4, same=nvfp4, operator=True),
    _int4_format(32, True),
    _int4_format(32, False),
    _int4_format(128, True),
    _int4_format(128, False),
    _int4_format(None, True),
)


def relative_error(value: Tensor, truth: Tensor) -> float:
    """Frobenius norm of the difference over that of the truth."""
    return float((value.double() - truth.double()).norm() / truth.double().norm())


def identity() -> Tensor:
    """The h that leaves values alone; 32 x 32, which every format takes."""
    return torch.eye(32)
