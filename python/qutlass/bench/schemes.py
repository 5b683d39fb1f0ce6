# SPDX-License-Identifier: Apache-2.0
"""Our products: their operands and how to call them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import ops as _ops
from ..timing import copies_of

ops = torch.ops.qutlass

# How the activations of a product come to be: what stands beside "ideal", the product alone on
# activations that are quantized already. Each takes bfloat16 activations and whether they are to be
# symmetric, and returns (q, scale, zero or None).
QUANTIZERS: dict[str, dict[str, Callable[[Tensor, bool], tuple[Tensor, ...]]]] = {
    "actual": {
        "int8": lambda x, symmetric: ops.quantize_int8(x, symmetric=symmetric),
        "int4": lambda x, symmetric: ops.quantize_int4(x, symmetric=symmetric),
    }
}
KINDS = ("ideal", *QUANTIZERS)


class Tokens(NamedTuple):
    """Activations in every format: random, over the whole range, none made from another."""

    x: Tensor  # bfloat16 [M, K]
    int8: Tensor  # int8 [M, K]
    int4: Tensor  # uint8 [M, K/2]
    scale: Tensor  # float32 [M]
    scale_bf16: Tensor  # bfloat16 [M]
    zero: Tensor | None  # int32 [M]


def make_tokens(m: int, k: int, zeros: bool, device: str) -> Tokens:
    """One copy of the activations of a product."""
    scale = _scales((m,), device)
    return Tokens(
        random_matrix("bf16", m, k, device),
        random_matrix("int8", m, k, device),
        random_matrix("int4", m, k, device),
        scale,
        scale.bfloat16(),
        # Of INT4 activations too, so inside their range.
        _integers(-8, 8, (m,), torch.int32, device) if zeros else None,
    )


@dataclass(frozen=True)
class Scheme:
    """A product: a kernel family and how to call it."""

    name: str  # of the family too
    title: str  # with {g} for the group size
    op: str
    activation: str  # int8, int4 or bf16
    weight: str  # int8 or int4
    instruction: str  # whose rate is the ceiling
    scales: str  # "row", "group" or "multiplier"

    def group_of(self, group: int) -> int | None:
        """The group size where there are groups."""
        return None if self.scales == "row" else group

    def kinds(self) -> tuple[str, ...]:
        """Which of KINDS there are: bfloat16 activations are not quantized."""
        return KINDS if self.activation != "bf16" else KINDS[:1]

    def weight_operands(self, b: Tensor, k: int, group: int, zeros: bool) -> dict[str, Tensor]:
        """The weight and what belongs to it, by name of the operator's argument."""
        n, device = b.shape[0], b.device.type
        grouped = (n, k // group)
        # One group is one scale a row, and the operator would quietly take it as that.
        if self.scales != "row" and (k % group or (k == group and self.activation != "bf16")):
            raise ValueError(f"{self.name}: K {k} is not several groups of {group}")
        args = {"b": b, "b_scale": _scales(grouped if self.scales == "group" else (n,), device)}
        if self.scales == "multiplier":
            # With zero points of -1 to 0, m * (q - zero) must stay inside int8: m is at most 15.
            args["b_multiplier"] = _integers(1, 16, grouped, torch.uint8, device)
        if not zeros:
            return args
        span = 1 if self.scales == "multiplier" else 8
        shape = (n,) if self.scales == "row" else grouped
        args["b_zero"] = _integers(-span, span, shape, torch.int8, device)
        if self.activation != "bf16":
            args["b_sum"] = ops.weight_sums(b, group_size=self.group_of(group))
        return args

    def activation_operands(self, tokens: Tokens, kind: str) -> dict[str, Tensor]:
        """What the call reads of the activations, by name."""
        if self.activation == "bf16":
            return {"a": tokens.x}
        if kind != "ideal":
            return {"x": tokens.x}
        args = {"a": getattr(tokens, self.activation), "a_scale": tokens.scale}
        return args if tokens.zero is None else {**args, "a_zero": tokens.zero}

    def call(self, kind: str, args: dict[str, Tensor]) -> Tensor:
        """The operator as a user calls it, behind the quantization of `kind`."""
        if kind != "ideal":
            quantize = QUANTIZERS[kind][self.activation]
            a, a_scale, a_zero = quantize(args["x"], "b_zero" not in args)
            args = {**args, "a": a, "a_scale": a_scale, "a_zero": a_zero}
        if self.activation == "bf16":
            return ops.matmul_int4_bf16_tn(
                args["a"], args["b"], args["b_scale"], args.get("b_zero")
            )
        named = ("a_zero", "b_zero", "b_sum", "b_multiplier")
        return getattr(ops, self.op)(
            args["a"],
            args["b"],
            args["a_scale"],
            args["b_scale"],
            **{name: args[name] for name in named if name in args},
        )

    def call_row(self, tile: int, split_k: int, args: dict[str, Tensor]) -> Tensor:
        """The product on a given row of the tile table, with k split so many ways."""
        names = ("a_scale", "b_scale", "a_zero", "b_zero", "b_sum", "bias", "b_multiplier")
        vectors = (args.get(name) for name in names)
        return ops._gemm_with_tile(self.name, tile, split_k, args["a"], args["b"], *vectors)

    def explain(self, m: int, n: int, k: int, group: int) -> dict[str, Any]:
        """Which row the operator takes, see `qutlass.explain`."""
        multiplier = self.scales == "multiplier"
        return _ops.explain(self.op, m, n, k, self.group_of(group), multiplier=multiplier)


_W4A8 = ("matmul_w4a8_bf16_tn", "int8", "int4", "int8")
SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("w8a8", "W8A8", "matmul_int8_bf16_tn", "int8", "int8", "int8", "row"),
        Scheme("w4a8", "W4A8 per channel", *_W4A8, "row"),
        Scheme("w4a8_multiplier", "W4A8 g{g} multipliers", *_W4A8, "multiplier"),
        Scheme("w4a8_group", "W4A8 g{g} float scales", *_W4A8, "group"),
        Scheme("w4a16", "W4A16 g{g}", "matmul_int4_bf16_tn", "bf16", "int4", "bf16", "group"),
        Scheme("w4a4", "W4A4", "matmul_w4a4_bf16_tn", "int4", "int4", "int4", "row"),
    )
}


class Weights:
    """A weight [N, K] in each format that is asked for, in more copies than three L2 caches hold.

    Made once for all M and all that is measured on it. Random, over the whole range.
    """

    def __init__(self, n: int, k: int, group: int, zeros: bool, device: str) -> None:
        self.n, self.k, self.group, self.zeros, self.device = n, k, group, zeros, device
        self._made: dict[str, list[Any]] = {}

    def matrices(self, kind: str) -> list[Tensor]:
        """Copies in one number format: int8, int4 or bf16."""
        bits = {"int8": 8, "int4": 4, "bf16": 16}[kind]
        return self.copies(kind, bits, lambda: random_matrix(kind, self.n, self.k, self.device))

    def operands(self, scheme: Scheme) -> list[dict[str, Tensor]]:
        """Copies with the scales of a scheme."""
        if scheme.name not in self._made:
            self._made[scheme.name] = [
                scheme.weight_operands(b, self.k, self.group, self.zeros)
                for b in self.matrices(scheme.weight)
            ]
        return self._made[scheme.name]

    def copies(self, name: str, bits: float, make: Callable[[], Any]) -> list[Any]:
        """Copies of something of `bits` a value, made where there are none of that name yet."""
        if name not in self._made:
            self._made[name] = copies_of(make, int(self.n * self.k * bits / 8))
        return self._made[name]


def random_matrix(kind: str, rows: int, k: int, device: str) -> Tensor:
    """Random values of a number format over its whole range; zeros would spare the GPU power."""
    if kind == "bf16":
        return torch.randn(rows, k, device=device, dtype=torch.bfloat16)
    if kind == "int8":
        return _integers(-128, 128, (rows, k), torch.int8, device)
    return _integers(0, 256, (rows, k // 2), torch.uint8, device)


def _integers(
    low: int, high: int, shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> Tensor:
    return torch.randint(low, high, shape, dtype=dtype, device=device)


def _scales(shape: tuple[int, ...], device: str) -> Tensor:
    return torch.rand(shape, device=device) * 0.01 + 0.001
