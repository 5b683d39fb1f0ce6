# SPDX-License-Identifier: Apache-2.0
"""The shapes that are measured."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple


class Shape(NamedTuple):
    """`out[M, N] = A[M, K] @ W[N, K].T`."""

    m: int
    n: int
    k: int


# (N, K) of a model's layers: 7B to 70B, attention and MLP, wide ones and deep ones.
LAYERS = (
    (4096, 4096),
    (6144, 4096),
    (28672, 4096),
    (4096, 14336),
    (8192, 8192),
    (57344, 8192),
    (8192, 28672),
)
_TARGET_M = (1, 4, 16, 32, 64, 128, 256, 1024, 4096, 8192)
# Either side of every height a tile may have, so that a cliff shows.
_SWEEP_M = (1, 2, 4, 8, 16, 17, 24, 32, 33, 48, 64, 65, 96, 128, 129, 256)
_SWEEP_LAYERS = ((4096, 4096), (28672, 4096), (4096, 14336))
_QUICK_M = (1, 16, 64, 256, 4096)
_QUICK_LAYERS = ((4096, 4096), (14336, 4096))


def _cross(layers: Sequence[tuple[int, int]], tokens: Sequence[int]) -> tuple[Shape, ...]:
    return tuple(Shape(m, n, k) for n, k in layers for m in tokens)


PRESETS: dict[str, tuple[Shape, ...]] = {
    "quick": _cross(_QUICK_LAYERS, _QUICK_M),
    "targets": _cross(LAYERS, _TARGET_M),
    "sweep": _cross(_SWEEP_LAYERS, _SWEEP_M),
}


def parse_shape(text: str) -> Shape:
    """`M,N,K` of a command line."""
    try:
        shape = Shape(*(int(part) for part in text.split(",")))
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(f"a shape is M,N,K, got {text!r}") from None
    if min(shape) < 1:
        raise argparse.ArgumentTypeError(f"M, N and K must be at least 1, got {text!r}")
    return shape


def by_layer(shapes: Sequence[Shape]) -> dict[tuple[int, int], list[int]]:
    """The M of each (N, K), in the order they first came: weights are made once for all of them."""
    layers: dict[tuple[int, int], list[int]] = {}
    for m, n, k in shapes:
        tokens = layers.setdefault((n, k), [])
        if m not in tokens:
            tokens.append(m)
    return layers
