# SPDX-License-Identifier: Apache-2.0
"""The products that exist, run as they are: legacy ones on the reference, others on `qutlass`.

Every function takes activations [M, K], a weight [N, K] and the rotation h, and returns bfloat16
[M, N].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

import qutlass
from legacy_blackwell.reference import (
    MX_ABS_MAX_FACTOR,
    fused_quantize_mx,
    fused_quantize_nv,
    matmul_mxf4_bf16_tn,
    matmul_nvf4_bf16_tn,
    nv_global_scale,
    rotate,
    to_blocked,
)

from .formats import pack_weight

Product = Callable[[Tensor, Tensor, Tensor], Tensor]


def mxfp4(x: Tensor, w: Tensor, h: Tensor, *, method: str) -> Tensor:
    x_q, x_sf = fused_quantize_mx(x, h, method=method)
    w_q, w_sf = fused_quantize_mx(w, h, method=method)
    alpha = MX_ABS_MAX_FACTOR**-2 if method == "abs_max" else 1.0
    return matmul_mxf4_bf16_tn(x_q, w_q, to_blocked(x_sf), to_blocked(w_sf), alpha)


def nvfp4(x: Tensor, w: Tensor, h: Tensor) -> Tensor:
    x_scale, w_scale = nv_global_scale(rotate(x, h)), nv_global_scale(rotate(w, h))
    x_q, x_sf = fused_quantize_nv(x, h, x_scale)
    w_q, w_sf = fused_quantize_nv(w, h, w_scale)
    alpha = 1 / (x_scale * w_scale)
    return matmul_nvf4_bf16_tn(x_q, w_q, to_blocked(x_sf), to_blocked(w_sf), alpha)


def w4a16(x: Tensor, w: Tensor, h: Tensor, *, group_size: int) -> Tensor:
    packed, scales, zeros = pack_weight(rotate(w, h), group_size, symmetric=False)
    return qutlass.matmul_int4_bf16_tn(rotate(x, h).bfloat16(), packed, scales, zeros)


def w4a8(x: Tensor, w: Tensor, h: Tensor, *, group_size: int) -> Tensor:
    x_q, x_scale, _ = qutlass.quantize_int8(rotate(x, h))
    packed, scales, _ = pack_weight(rotate(w, h), group_size, symmetric=True)
    return qutlass.matmul_w4a8_bf16_tn(x_q, packed, x_scale, scales)


def w4a4(x: Tensor, w: Tensor, h: Tensor) -> Tensor:
    x_q, x_scale, _ = qutlass.quantize_int4(rotate(x, h))
    w_q, w_scale, _ = qutlass.quantize_int4(rotate(w, h))
    return qutlass.matmul_w4a4_bf16_tn(x_q, w_q, x_scale, w_scale)


def w8a8(x: Tensor, w: Tensor, h: Tensor) -> Tensor:
    x_q, x_scale, _ = qutlass.quantize_int8(rotate(x, h))
    w_q, w_scale, _ = qutlass.quantize_int8(rotate(w, h))
    return qutlass.matmul_int8_bf16_tn(x_q, w_q, x_scale, w_scale)


OPERATORS: dict[str, tuple[str, Product]] = {
    "MXFP4 quest": ("legacy `matmul_mxf4_bf16_tn`", partial(mxfp4, method="quest")),
    "MXFP4 abs_max": ("legacy `matmul_mxf4_bf16_tn`", partial(mxfp4, method="abs_max")),
    "NVFP4": ("legacy `matmul_nvf4_bf16_tn`", nvfp4),
    "W4A4, row x token": ("`matmul_w4a4_bf16_tn`", w4a4),
    "W4A8 g128": ("`matmul_w4a8_bf16_tn`", partial(w4a8, group_size=128)),
    "W4A8 g32": ("`matmul_w4a8_bf16_tn`", partial(w4a8, group_size=32)),
    "W4A16 g128 + zero": ("`matmul_int4_bf16_tn`", partial(w4a16, group_size=128)),
    "W4A16 g32 + zero": ("`matmul_int4_bf16_tn`", partial(w4a16, group_size=32)),
    "W8A8, row x token": ("`matmul_int8_bf16_tn`", w8a8),
}
