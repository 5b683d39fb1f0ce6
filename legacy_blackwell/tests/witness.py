# SPDX-License-Identifier: Apache-2.0
"""Ground truth of the formats that shares no code with the reference: tables and scalar loops."""

import math

import torch
from torch import Tensor

# OCP Microscaling Formats (MX) Specification v1.0, FP4 E2M1: code -> value.
E2M1_TABLE = (
    0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0,
    -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0,
)  # fmt: skip


def every_bfloat16() -> Tensor:
    """All 65536 bit patterns, NaN and infinities included."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)


def every_float16() -> Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.float16)


def nearest_e2m1(value: float) -> int:
    """Search the whole table; on a tie take the even code, past its end the last one."""
    sign = 8 if math.copysign(1.0, value) < 0 else 0
    magnitude = min(abs(value), 6.0)
    best = min(range(8), key=lambda code: (abs(E2M1_TABLE[code] - magnitude), code % 2))
    return sign + best


def floor_power_of_two(value: float) -> float:
    return 2.0 ** (math.frexp(value)[1] - 1)


def unpack_nibbles(packed: Tensor) -> list[list[int]]:
    """[rows, K / 2] bytes -> rows of K codes, low nibble first."""
    return [[code for byte in row for code in (byte % 16, byte // 16)] for row in packed.tolist()]


def random_orthogonal(size: int, generator: torch.Generator) -> Tensor:
    """A matrix that differs from its transpose, so that a wrong side of the product shows."""
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]


def refusal_id(value: object) -> str:
    """Name a refusal's case by what it expects."""
    return (
        value if isinstance(value, str) else getattr(value, "__name__", "").replace("<lambda>", "")
    )
