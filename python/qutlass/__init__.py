# SPDX-License-Identifier: Apache-2.0
"""INT8 and INT4 matrix products and quantization for PyTorch, on Ampere and later GPUs and on CPUs.

The operators are functions of this module and `torch.ops.qutlass.*`; `qutlass.reference` has the
same ones in plain PyTorch, which say what each computes; `qutlass.nn` has layers made of them.

>>> import torch, qutlass
>>> x, w = torch.randn(4, 64), torch.randn(8, 64)
>>> a, a_scale, _ = qutlass.quantize_int8(x)
>>> b, b_scale, _ = qutlass.quantize_int8(w)
>>> out = qutlass.matmul_int8_bf16_tn(a, b, a_scale, b_scale)
>>> float((out - x @ w.T).norm() / (x @ w.T).norm()) < 0.02
True
"""

from __future__ import annotations

import importlib
from typing import Any

from . import tuned  # noqa: F401  has the library ask for tuned choices when a GPU is first used
from .doctor import doctor
from .ops import (
    build_info,
    dequantize_int4,
    dequantize_int8,
    explain,
    matmul_int4_bf16_tn,
    matmul_int8_bf16_tn,
    matmul_w4a4_bf16_tn,
    matmul_w4a8_bf16_tn,
    pack_int4,
    quantize_int4,
    quantize_int8,
    split_group_scales,
    unpack_int4,
    weight_sums,
)

__all__ = [
    "build_info",
    "dequantize_int4",
    "dequantize_int8",
    "doctor",
    "explain",
    "matmul_int4_bf16_tn",
    "matmul_int8_bf16_tn",
    "matmul_w4a4_bf16_tn",
    "matmul_w4a8_bf16_tn",
    "pack_int4",
    "quantize_int4",
    "quantize_int8",
    "split_group_scales",
    "tune",
    "unpack_int4",
    "weight_sums",
]

__version__: str = build_info()["version"]

_ON_DEMAND = ("nn", "reference")


def __getattr__(name: str) -> Any:
    """Import `qutlass.nn` and its like when they are first named."""
    if name == "tune":
        return importlib.import_module(f"{__name__}.tuning").tune
    if name in _ON_DEMAND:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ON_DEMAND})
