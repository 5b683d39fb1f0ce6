# SPDX-License-Identifier: Apache-2.0
"""The products of others, measured beside ours: one entry of PEERS each.

A package that is not installed, or a product that refuses, costs one line on the terminal and
nothing else.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .schemes import Tokens, Weights, random_matrix

_ANY_INT8 = ("w8a8", "w4a8", "w4a8_multiplier", "w4a8_group", "w4a4")


@dataclass(frozen=True)
class Peer:
    """A product of somebody else's."""

    name: str
    title: str
    beside: tuple[str, ...]  # the schemes that it is an alternative to
    prepare: Callable[[Weights], list[Any]]  # the weight in its format, in copies
    call: Callable[[Any, Tokens], Tensor]  # one copy, one copy of the activations
    activation: str  # what it reads of them: a field of Tokens
    weight_bits: float  # a value
    group_bits: float = 0.0  # of scale and zero point, a group of the size that is measured
    takes: Callable[[int, int, int], bool] = lambda m, n, k: True  # M, N, K
    instruction: str | None = None  # where it is known to be that of mma.sync; else no ceiling
    package: str | None = None


def missing(peer: Peer) -> str | None:
    """Why a peer cannot be measured here, None where it can be tried."""
    if peer.package is None:
        return None
    try:
        if importlib.util.find_spec(peer.package) is None:
            return f"{peer.package} is not installed"
        importlib.import_module(peer.package)
    except Exception as error:  # what a package does while it is imported is its own affair
        return f"{peer.package} does not import: {one_line(error)}"
    return None


def one_line(error: BaseException) -> str:
    """The first line of an error's message behind its type, cut to fit a terminal."""
    lines = str(error).strip().splitlines() or [""]
    text = f"{type(error).__name__}: {lines[0]}"
    return text if len(text) <= 160 else text[:157] + "..."


def _int4pack(weights: Weights) -> list[Any]:
    def make() -> tuple[Tensor, Tensor]:
        raw = random_matrix("int4", weights.n, weights.k, weights.device)
        packed = torch.ops.aten._convert_weight_to_int4pack(raw, 8)
        groups = (weights.k // weights.group, weights.n, 2)  # scale and zero
        scales = torch.rand(groups, device=weights.device, dtype=torch.bfloat16)
        return packed, scales

    return [
        (packed, scales, weights.group)
        for packed, scales in weights.copies("torch_int4pack", 4 + 32 / weights.group, make)
    ]


def _gemlite(weights: Weights) -> list[Any]:
    from gemlite import DType, GemLiteLinear

    n, k, group, device = weights.n, weights.k, weights.group, weights.device

    def make() -> Any:
        layer = GemLiteLinear(
            W_nbits=4,
            group_size=group,
            in_features=k,
            out_features=n,
            input_dtype=DType.BF16,
            output_dtype=DType.BF16,
        )
        q = torch.randint(0, 16, (n, k), device=device, dtype=torch.uint8)
        scales = torch.rand(n, k // group, device=device, dtype=torch.bfloat16)
        zeros = torch.full_like(scales, 8)
        layer.pack(q, scales, zeros, None)
        return layer

    return weights.copies("gemlite_w4a16", 4 + 32 / group, make)


def _bitsandbytes_nf4(weights: Weights) -> list[Any]:
    from bitsandbytes.functional import quantize_4bit

    def make() -> Any:
        w = random_matrix("bf16", weights.n, weights.k, weights.device)
        return quantize_4bit(w, blocksize=64, quant_type="nf4")

    return weights.copies("bitsandbytes_nf4", 4.5, make)


def _call_bitsandbytes_nf4(copy: Any, tokens: Tokens) -> Tensor:
    from bitsandbytes import matmul_4bit

    return matmul_4bit(tokens.x, copy[0].t(), quant_state=copy[1])


def _call_bitsandbytes_int8(copy: Any, tokens: Tokens) -> Tensor:
    from bitsandbytes.functional import int8_linear_matmul

    return int8_linear_matmul(tokens.int8, copy)


def _torchao_int4(weights: Weights) -> list[Any]:
    return [
        (b.view(torch.int8), torch.rand(weights.n, device=weights.device, dtype=torch.bfloat16))
        for b in weights.matrices("int4")
    ]


def _call_torchao_s8s4(copy: Any, tokens: Tokens) -> Tensor:
    product = torch.ops.torchao.rowwise_scaled_linear_cutlass_s8s4
    return product(tokens.int8, tokens.scale_bf16, *copy)


def _call_torchao_s4s4(copy: Any, tokens: Tokens) -> Tensor:
    product = torch.ops.torchao.rowwise_scaled_linear_cutlass_s4s4
    return product(tokens.int4.view(torch.int8), tokens.scale_bf16, *copy)


PEERS = {
    peer.name: peer
    for peer in (
        # Has a column of its own, and so is nobody's "best peer". Its instruction is not always
        # mma.sync's: no ceiling.
        Peer(
            "cublas_bf16",
            "cuBLAS bf16",
            (),
            lambda weights: weights.matrices("bf16"),
            lambda w, tokens: torch.mm(tokens.x, w.t()),
            "x",
            16,
        ),
        Peer(
            "torch_int_mm",
            "torch._int_mm, INT32 out",
            _ANY_INT8,
            lambda weights: weights.matrices("int8"),
            lambda w, tokens: torch._int_mm(tokens.int8, w.t()),
            "int8",
            8,
            takes=lambda m, n, k: m > 16 and n % 8 == 0 and k % 8 == 0,
        ),
        Peer(
            "torch_int4pack",
            "torch int4pack",
            ("w4a16",),
            _int4pack,
            lambda w, tokens: torch.ops.aten._weight_int4pack_mm(tokens.x, w[0], w[2], w[1]),
            "x",
            4,
            group_bits=32,
            # Made for decoding: it reads the weights again for every 16 rows.
            takes=lambda m, n, k: m <= 256 and n % 8 == 0 and k % 128 == 0,
            instruction="bf16",
        ),
        Peer(
            "gemlite_w4a16",
            "gemlite A16W4",
            ("w4a16",),
            _gemlite,
            lambda layer, tokens: layer(tokens.x),
            "x",
            4,
            group_bits=32,
            package="gemlite",
        ),
        Peer(
            "bitsandbytes_nf4",
            "bitsandbytes NF4",
            ("w4a16",),
            _bitsandbytes_nf4,
            _call_bitsandbytes_nf4,
            "x",
            4.5,  # with a float32 scale for every 64
            package="bitsandbytes",
        ),
        Peer(
            "bitsandbytes_int8",
            "bitsandbytes INT8, INT32 out",
            _ANY_INT8,
            lambda weights: weights.matrices("int8"),
            _call_bitsandbytes_int8,
            "int8",
            8,
            package="bitsandbytes",
        ),
        Peer(
            "torchao_s8s4",
            "torchao CUTLASS W4A8",
            ("w4a8", "w4a8_multiplier", "w4a8_group"),
            _torchao_int4,
            _call_torchao_s8s4,
            "int8",
            4,
            instruction="int8",
            package="torchao",
        ),
        Peer(
            "torchao_s4s4",
            "torchao CUTLASS W4A4",
            ("w4a4",),
            _torchao_int4,
            _call_torchao_s4s4,
            "int4",
            4,
            instruction="int4",
            package="torchao",
        ),
    )
}
