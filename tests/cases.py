# SPDX-License-Identifier: Apache-2.0
"""Every shape, option and data pattern the tests run, in one place.

A case is plain data with a readable id; its operands are random numbers seeded by that id, so a
failing test can be rebuilt from its name alone. Values cover their whole range and are never all
zero. Nothing here computes an expected result: see truth.py.
"""

from __future__ import annotations

import functools
import itertools
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

import qutlass

DTYPES = {
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "i8": torch.int8,
    "i32": torch.int32,
}

# The operator behind each short name.
OPERATORS = {
    "int8": "matmul_int8_bf16_tn",
    "w4a4": "matmul_w4a4_bf16_tn",
    "w4a8": "matmul_w4a8_bf16_tn",
    "int4": "matmul_int4_bf16_tn",
}

# (N, K) of the linear layers of models people run.
SMALL_LAYERS = {
    "minilm.attention": (384, 384),
    "minilm.up": (1536, 384),
    "minilm.down": (384, 1536),
    "bert.down": (768, 3072),
}
LARGE_LAYERS = {
    "llama8b.attention": (4096, 4096),
    "llama8b.kv": (1024, 4096),
    "llama8b.up": (14336, 4096),
    "llama8b.down": (4096, 14336),
    "qwen7b.up": (18944, 3584),
    "llama70b.attention": (8192, 8192),
    "llama70b.up": (28672, 8192),
    "llama70b.down": (8192, 28672),
}


def seed_of(name: str) -> int:
    """A seed that depends on nothing but the name."""
    return zlib.crc32(name.encode())


def generator(name: str, device: str | torch.device = "cpu") -> torch.Generator:
    return torch.Generator(device=device).manual_seed(seed_of(name))


def all_pairs(options: dict[str, tuple[Any, ...]], seed: int = 0) -> list[dict[str, Any]]:
    """A short list of choices in which any two values of any two options meet at least once."""
    rng = random.Random(seed)
    names = list(options)
    missing = {
        ((x, vx), (y, vy))
        for x, y in itertools.combinations(names, 2)
        for vx in options[x]
        for vy in options[y]
    }

    def pairs(choice: dict[str, Any]) -> set:
        return set(itertools.combinations([(n, choice[n]) for n in names], 2))

    chosen = []
    while missing:
        # Start each candidate from a pair that is still missing, so every round makes progress.
        wanted = min(missing, key=repr)
        candidates = []
        for _ in range(40):
            choice = {n: rng.choice(options[n]) for n in names}
            choice.update(dict(wanted))
            candidates.append(choice)
        best = max(candidates, key=lambda c: len(pairs(c) & missing))
        missing -= pairs(best)
        chosen.append(best)
    return chosen


# --------------------------------------------------------------------------------------------------
# Matrix products


@dataclass(frozen=True)
class GemmCase:
    """One call of a product. Vectors are written form.dtype: "row.f32" is [M] float32, "col.i8" is
    [M, 1] int8, "one.bf16" is one element, "" is absent. Grouped ones are always [N, G]."""

    op: str
    m: int
    n: int
    k: int
    group: int = 0  # 0: one scale a row of b
    multiplier: bool = False  # w4a8: uint8 [N, G] beside b_scale [N]
    a_scale: str = "row.f32"
    b_scale: str = "row.f32"
    a_zero: str = ""
    b_zero: str = ""
    b_sum: bool = False
    bias: str = ""
    layout: str = "flat"  # flat, strided, lead (leading dims), lead_strided
    data: str = "full"  # full: uniform; extreme: mostly one end, so sums leave float32's integers

    @property
    def id(self) -> str:
        parts = [f"{self.m}x{self.n}x{self.k}"]
        if self.group:
            parts.append(f"{'m' if self.multiplier else 'g'}{self.group}")
        if self.op != "int4":
            parts.append(f"as.{self.a_scale}")
        parts.append(f"bs.{self.b_scale}")
        parts += [f"az.{self.a_zero}"] if self.a_zero else []
        parts += [f"bz.{self.b_zero}"] if self.b_zero else []
        parts += ["sum"] if self.b_sum else []
        parts += [f"bias.{self.bias}"] if self.bias else []
        parts += [self.layout] if self.layout != "flat" else []
        parts += [self.data] if self.data != "full" else []
        return "-".join(parts)

    @property
    def kernels(self) -> str:
        """The family of kernels that serves it, as the tile table names it."""
        if self.op == "w4a8":
            return "w4a8_multiplier" if self.multiplier else "w4a8_group" if self.group else "w4a8"
        return {"int8": "w8a8", "w4a4": "w4a4", "int4": "w4a16"}[self.op]

    @property
    def exact(self) -> bool:
        """Whether the contract fixes every bit of the result."""
        return self.op in ("int8", "w4a4") or (
            self.op == "w4a8" and (self.multiplier or not self.group)
        )


@dataclass
class GemmInputs:
    """Operands as the operator takes them, beside the plain values they stand for."""

    case: GemmCase
    a: torch.Tensor
    b: torch.Tensor
    a_values: torch.Tensor  # [M, K] int8 or bfloat16
    b_values: torch.Tensor  # [N, K] int8
    vectors: dict[str, torch.Tensor] = field(default_factory=dict)  # by the operator's arg names

    @property
    def operator(self) -> str:
        return OPERATORS[self.case.op]

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (*self.a.shape[:-1], self.case.n)

    def arguments(self) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        """Positional and keyword arguments of the call."""
        names = ["scales"] if self.case.op == "int4" else ["a_scale", "b_scale"]
        keyword = {name: v for name, v in self.vectors.items() if name not in names}
        return [self.a, self.b, *(self.vectors[name] for name in names)], keyword

    def to(self, device: str | torch.device) -> GemmInputs:
        """The same bits on another device."""
        return replace(
            self,
            a=_copy_layout(self.a, device),
            b=self.b.to(device),
            a_values=self.a_values.to(device),
            b_values=self.b_values.to(device),
            vectors={name: v.to(device) for name, v in self.vectors.items()},
        )

    def with_rows(self, rows: slice) -> GemmInputs:
        """The same product for some rows of a flat `a` only."""
        if self.case.layout != "flat":
            raise ValueError("rows are taken of a flat a")
        vectors = dict(self.vectors)
        for name in ("a_scale", "a_zero"):
            if name in vectors and vectors[name].numel() != 1:
                vectors[name] = vectors[name][rows].contiguous()
        a = self.a[rows]
        case = replace(self.case, m=a.shape[0])
        return replace(self, case=case, a=a, a_values=self.a_values[rows], vectors=vectors)


def _copy_layout(x: torch.Tensor, device: str | torch.device) -> torch.Tensor:
    if x.is_contiguous():
        return x.to(device)
    last = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    span = last + 1 if x.numel() else 0
    base = x.as_strided((span,), (1,)).to(device)
    return base.as_strided(x.shape, x.stride())


def pack_by_hand(values: torch.Tensor) -> torch.Tensor:
    """The packed order, written from its definition: byte i of 32 values holds i and 16 + i."""
    blocks = values.to(torch.int16).unflatten(-1, (-1, 2, 16)) & 0xF
    return (blocks[..., 0, :] | blocks[..., 1, :] << 4).flatten(-2).to(torch.uint8)


def _integers(shape: tuple[int, ...], low: int, high: int, data: str, g: torch.Generator):
    """int8 values in [low, high]."""
    if data == "extreme":
        ends = torch.tensor([low, high], dtype=torch.int8, device=g.device)
        return ends[(torch.rand(shape, generator=g, device=g.device) < 0.1).long()]
    return torch.randint(low, high + 1, shape, generator=g, device=g.device, dtype=torch.int8)


def _scales(shape: tuple[int, ...], dtype: torch.dtype, g: torch.Generator) -> torch.Tensor:
    """Log-uniform over three decades, with full mantissas; normal numbers in float16 too."""
    exponent = torch.rand(shape, generator=g, device=g.device) * 10 - 13
    return torch.exp2(exponent).to(dtype)


def _shape_of(form: str, rows: int) -> tuple[int, ...]:
    return {"row": (rows,), "col": (rows, 1), "one": (1,), "scalar": ()}[form]


def make(case: GemmCase, device: str | torch.device = "cpu", seed: str = "") -> GemmInputs:
    """Random operands for a case, seeded by its op and id; other seeds, other numbers."""
    g = generator(f"{case.op}/{case.id}{seed}", device)
    m, n, k = case.m, case.n, case.k
    groups = k // case.group if case.group else 0
    vectors: dict[str, torch.Tensor] = {}

    if case.op == "int4":
        a_values = torch.randn((m, k), generator=g, device=device).to(torch.bfloat16)
    else:
        low, high = (-8, 7) if case.op == "w4a4" else (-128, 127)
        a_values = _integers((m, k), low, high, case.data, g)
    weight_range = (-128, 127) if case.op == "int8" else (-8, 7)
    b_values = _integers((n, k), *weight_range, case.data, g)

    def vector(spec: str, rows: int, make_values) -> torch.Tensor:
        form, dtype = spec.split(".")
        return make_values(_shape_of(form, rows), DTYPES[dtype])

    def scales(shape, dtype):
        return _scales(shape, dtype, g)

    def zeros(low, high):
        def values(shape, dtype):
            if dtype.is_floating_point:  # between two integers, as HQQ finds them
                wide = torch.rand(shape, generator=g, device=device) * (high - low) + low
                return wide.to(dtype)
            return torch.randint(
                low, high + 1, shape, generator=g, device=device, dtype=torch.int32
            ).to(dtype)

        return values

    if case.op == "int4":
        dtype = DTYPES[case.b_scale.split(".")[1]]
        vectors["scales"] = scales((n, groups), dtype)
        if case.b_zero:
            vectors["zeros"] = zeros(-8, 7)((n, groups), DTYPES[case.b_zero.split(".")[1]])
    else:
        vectors["a_scale"] = vector(case.a_scale, m, scales)
        if case.group and not case.multiplier:
            vectors["b_scale"] = scales((n, groups), DTYPES[case.b_scale.split(".")[1]])
        else:
            vectors["b_scale"] = vector(case.b_scale, n, scales)
        if case.a_zero:
            a_range = (-8, 7) if case.op == "w4a4" else (-128, 127)
            vectors["a_zero"] = vector(case.a_zero, m, zeros(*a_range))
        if case.b_zero:
            if case.group:
                dtype = DTYPES[case.b_zero.split(".")[1]]
                vectors["b_zero"] = zeros(*weight_range)((n, groups), dtype)
            else:
                vectors["b_zero"] = vector(case.b_zero, n, zeros(*weight_range))
        if case.multiplier:
            # The contract wants m · (q - zero) inside int8 for each of the 16 values of q.
            zero = vectors.get("b_zero", torch.zeros((n, groups), device=device)).float()
            most = torch.minimum(128 // (8 + zero).clamp(min=1), 127 // (7 - zero).clamp(min=1))
            share = torch.rand((n, groups), generator=g, device=device)
            multiplier = 1 + (share * most.clamp(max=15)).floor()
            vectors["b_multiplier"] = multiplier.minimum(most.clamp(max=15)).to(torch.uint8)
        if case.b_sum:
            if case.group:
                sums = b_values.int().unflatten(-1, (groups, case.group)).sum(-1)
            else:
                sums = b_values.int().sum(-1)
            vectors["b_sum"] = sums.to(torch.int32)
    if case.bias:
        bias = torch.randn((n,), generator=g, device=device) * 4
        vectors["bias"] = bias.to(DTYPES[case.bias])

    a = pack_by_hand(a_values) if case.op == "w4a4" else a_values
    b = b_values if case.op == "int8" else pack_by_hand(b_values)
    return GemmInputs(case, _lay_out(a, case.layout), b, a_values, b_values, vectors)


def _lay_out(a: torch.Tensor, layout: str) -> torch.Tensor:
    if layout in ("strided", "lead_strided"):
        # Whatever lies between the rows must never reach a result: the widest values there are.
        pad = 32 // a.element_size()
        wide = torch.full((a.shape[0], a.shape[1] + pad), 127, dtype=a.dtype, device=a.device)
        wide[:, : a.shape[1]] = a
        a = wide[:, : a.shape[1]]
    if layout in ("lead", "lead_strided"):
        rows = a.shape[0]
        split = next((d for d in (2, 3, 5, 7, 17) if rows % d == 0), 1)
        a = a.unflatten(0, (split, rows // split)) if rows else a.unflatten(0, (3, 0))
    return a


# The options of each operator, every pair of which is run.
_FORMS = ("row.f32", "col.f32", "one.f32", "row.bf16", "one.bf16", "row.f16", "col.f16")
_ZEROS = ("", "row.i32", "row.i8", "col.i32", "one.i32", "one.i8")
_BIASES = ("", "f32", "bf16", "f16")
_LAYOUTS = ("flat", "strided", "lead", "lead_strided")
_DATA = ("full", "extreme")

_INTEGER_OPTIONS = {
    "a_scale": (*_FORMS, "scalar.f32"),
    "b_scale": (*_FORMS, "scalar.f32"),
    "a_zero": _ZEROS,
    "b_zero": _ZEROS,
    "b_sum": (False, True),
    "bias": _BIASES,
    "layout": _LAYOUTS,
    "data": _DATA,
}
_GROUP_OPTIONS = {
    "group": (32, 64, 128),
    "a_scale": _FORMS,
    "b_scale": ("row.f32", "row.bf16", "row.f16"),
    "a_zero": _ZEROS,
    "b_zero": ("", "row.i32", "row.i8"),
    "b_sum": (False, True),
    "bias": _BIASES,
    "layout": _LAYOUTS,
    "data": _DATA,
}
_MULTIPLIER_OPTIONS = {
    **_GROUP_OPTIONS,
    "multiplier": (True,),
    "b_scale": _FORMS,
    "b_zero": ("", "row.i8"),
}
_WEIGHT_ONLY_OPTIONS = {
    "group": (32, 64, 128, "K"),
    "b_scale": ("row.f32", "row.bf16", "row.f16"),
    "b_zero": ("", "row.i32", "row.i8", "row.bf16", "row.f32"),
    "bias": _BIASES,
    "layout": _LAYOUTS,
    "data": _DATA,
}
OPTIONS: dict[str, tuple[dict[str, tuple[Any, ...]], ...]] = {
    "int8": (_INTEGER_OPTIONS,),
    "w4a4": (_INTEGER_OPTIONS,),
    "w4a8": (_INTEGER_OPTIONS, _GROUP_OPTIONS, _MULTIPLIER_OPTIONS),
    "int4": (_WEIGHT_ONLY_OPTIONS,),
}

K_STEP = {"int8": 16, "w4a4": 32, "w4a8": 32, "int4": 32}

# How many bits the activations of matmul_int4_bf16_tn are quantized to where it is told to do so,
# with what each takes beside the rest.
ACT_OPTIONS: dict[int, dict[str, tuple[Any, ...]]] = {
    bits: {
        **_WEIGHT_ONLY_OPTIONS,
        "m": (0, 1, 2, 17, 34, 130),
        "n": (1, 7, 77, 256),
        "k": (32, 160, 640),
        "group": groups,
        "b_zero": ("", "row.i32", "row.i8"),
    }
    for bits, groups in ((8, ("K", 32, 64, 128)), (4, ("K",)))
}

# The kernel families of the tile table behind each operator.
KERNELS = {
    "int8": ("w8a8",),
    "w4a4": ("w4a4",),
    "w4a8": ("w4a8", "w4a8_group", "w4a8_multiplier"),
    "int4": ("w4a16",),
}


def rows_of(op: str) -> list[dict[str, Any]]:
    """The rows of the tile table that serve an operator; a CPU-only build has the table too."""
    return [row for row in qutlass.ops._gemm_tiles() if row["op"] in KERNELS[op]]


def edges(op: str, side: str) -> list[int]:
    """1, and one less, as many and one more than each tile of the operator has in m or n, and than
    the powers of two that the CPU kernels block by."""
    sides = {16, 32, 64, 128, 256} | {row[side] for row in rows_of(op)}
    return sorted({1, *(size + d for size in sides for d in (-1, 0, 1))})


def option_sets(op: str) -> list[dict[str, Any]]:
    """All-pairs choices, alternating between the operator's kinds of scale."""
    lists = [all_pairs(options) for options in OPTIONS[op]]
    return [choice for row in itertools.zip_longest(*lists) for choice in row if choice]


def case_for(op: str, m: int, n: int, k: int, options: dict[str, Any]) -> GemmCase:
    """The case with K lengthened to a multiple of its group."""
    options = dict(options)
    group = options.get("group", 0)
    if group == "K":
        options["group"] = k
    elif group:
        k = -(-k // group) * group
        if op == "w4a8" and not options.get("multiplier"):
            k = max(k, 2 * group)  # one group's b_scale [N, 1] is the per-channel form
    return GemmCase(op, m, n, k, **options)


def _unique(cases: Iterator[GemmCase]) -> list[GemmCase]:
    return list({case.id: case for case in cases}.values())


def edge_cases(op: str) -> list[GemmCase]:
    """Each M edge with each N edge; K and the options change from one to the next."""
    choices = itertools.cycle(option_sets(op))
    lengths = itertools.cycle(K_STEP[op] * i for i in (1, 2, 3, 4, 5, 7, 8, 9, 16, 17))
    return _unique(
        case_for(op, m, n, next(lengths), next(choices))
        for m, n in itertools.product(edges(op, "m"), edges(op, "n"))
    )


def option_cases(op: str) -> list[GemmCase]:
    """Every pair of options on a shape that is ragged in M and N and spans several K tiles; and
    with no rows at all."""
    sets = option_sets(op)
    ragged = (case_for(op, 34, 77, 640 + K_STEP[op], choice) for choice in sets)
    empty = (case_for(op, 0, 24, 128, choice) for choice in sets[::7])
    narrow = (case_for(op, 1, n, 256, sets[n % len(sets)]) for n in range(1, 10))
    # Long enough for sums beyond 2**24, where float32 has to round them.
    long = (case_for(op, 2, 9, 8192, {**choice, "data": "extreme"}) for choice in sets[::5])
    return _unique(itertools.chain(ragged, empty, narrow, long))


def layer_cases(op: str, device: str) -> list[GemmCase]:
    """Linear layers of real models: small ones everywhere, large ones where there is a GPU."""
    choices = itertools.cycle(option_sets(op))
    if device == "cpu":
        shapes = [(m, n, k) for n, k in SMALL_LAYERS.values() for m in (1, 8, 67)]
        shapes += [(2, *LARGE_LAYERS["llama8b.attention"])]
    else:
        shapes = [(m, n, k) for n, k in SMALL_LAYERS.values() for m in (1, 8, 67, 1024)]
        shapes += [(m, n, k) for n, k in LARGE_LAYERS.values() for m in (1, 16, 33, 250)]
        shapes += [(m, *LARGE_LAYERS["llama8b.down"]) for m in (1000, 4096)]
    cases = []
    for m, n, k in shapes:
        choice = {**next(choices), "data": "full"}
        if op == "int4" and choice["group"] == "K":
            choice["group"] = 128
        cases.append(case_for(op, m, n, k, choice))
    return _unique(iter(cases))


def gemm_cases(op: str, device: str) -> list[GemmCase]:
    """Everything a product is run on."""
    return _unique(itertools.chain(edge_cases(op), option_cases(op), layer_cases(op, device)))


def act_cases() -> list[tuple[int, GemmCase]]:
    """(act_bits, case) of matmul_int4_bf16_tn: every pair of options, and a layer of each kind."""
    found = []
    for bits, options in ACT_OPTIONS.items():
        for choice in all_pairs(options):
            shape = [choice.pop(side) for side in "mnk"]
            found.append((bits, case_for("int4", *shape, choice)))
        for group in options["group"]:
            choice = {"group": group, "b_zero": "row.i8", "bias": "f32"}
            found.append((bits, case_for("int4", 67, *SMALL_LAYERS["minilm.down"], choice)))
    return list({(bits, case.id): (bits, case) for bits, case in found}.values())


def plain_cases(op: str, m: int, n: int, k: int, **changes: Any) -> list[GemmCase]:
    """One case for each kind of scale of the operator, with everything it can take present."""
    full = {"a_scale": "row.f32", "a_zero": "row.i32", "b_sum": True, "bias": "f32"}
    kinds = {
        "int8": [{**full, "b_zero": "row.i32"}],
        "w4a4": [{**full, "b_zero": "row.i32"}],
        "w4a8": [
            {**full, "b_zero": "row.i32"},
            {**full, "b_zero": "row.i32", "group": 64},
            {**full, "b_zero": "row.i8", "group": 64, "multiplier": True},
        ],
        "int4": [{"group": 64, "b_zero": "row.i8", "bias": "f32"}],
    }[op]
    return [case_for(op, m, n, k, {**kind, **changes}) for kind in kinds]


def with_group_sizes(case: GemmCase) -> list[GemmCase]:
    """The case in each group size its kernels take; itself where it has no groups."""
    if not case.group:
        return [case]
    sizes = [32, 64, 128] + (["K"] if case.op == "int4" else [])
    found = []
    for size in sizes:
        k = case.k if size == "K" else -(-case.k // size) * size
        found.append(replace(case, k=k, group=k if size == "K" else size))
    return found


# --------------------------------------------------------------------------------------------------
# Quantization


@dataclass(frozen=True)
class QuantizeCase:
    """One call of quantize_int8 or quantize_int4."""

    bits: int
    shape: tuple[int, ...]
    dtype: str = "f32"
    symmetric: bool = True
    group: int = 0  # int4 only
    per_tensor: bool = False  # int8 only
    static: str = ""  # form of a given scale: "row" (one a token or group), "one" or "" (computed)
    strided: bool = False
    data: str = "normal"

    @property
    def id(self) -> str:
        parts = ["x".join(map(str, self.shape)), self.dtype, "sym" if self.symmetric else "asym"]
        parts += [f"g{self.group}"] if self.group else []
        parts += ["tensor"] if self.per_tensor else []
        parts += [f"static.{self.static}"] if self.static else []
        parts += ["strided"] if self.strided else []
        parts += [self.data] if self.data != "normal" else []
        return "-".join(parts)


# How the numbers of a row are spread. "special" holds one row of each kind that needs care.
QUANTIZE_DATA = ("normal", "positive", "negative", "wide", "special")


def special_rows(cols: int) -> torch.Tensor:
    """Rows of float32 in which something is unusual; see each comment. Needs cols >= 4."""
    inf, nan = float("inf"), float("nan")
    smallest = 2.0**-149
    ramp = torch.linspace(-1, 1, cols)

    def having(*values: float) -> torch.Tensor:
        row = ramp.clone() / 4
        row[1 : 1 + len(values)] = torch.tensor(values)
        return row

    def halves(low: float, high: float) -> torch.Tensor:
        """Half-way values between the two ends, which make the scale exactly 1."""
        row = (torch.arange(cols) % (high - low)) + low + 0.5
        row[0], row[-1] = low, high
        return row

    return torch.stack(
        [
            torch.zeros(cols),  # scale 1, q 0
            -torch.zeros(cols),  # the same for negative zeros
            having(nan),
            having(inf),
            having(-inf),
            having(inf, nan),
            torch.full((cols,), smallest),  # amax / L underflows to 0
            ramp * 2.0**-130,  # subnormal values with a subnormal scale
            ramp * 3e38,  # max - min overflows, amax / L does not
            torch.full((cols,), 5.0),  # one value
            having(1e30),  # one outlier flattens the rest to 0
            halves(-127.0, 127.0),
            halves(-128.0, 127.0),
            halves(-7.0, 7.0),
            halves(-8.0, 7.0),
            # Scale 1 and a zero point half-way between two integers, for 8 and for 4 bits.
            having(-0.5, 254.5),
            having(-0.5, 14.5),
        ]
    )


def make_quantize(case: QuantizeCase, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Arguments of the call: x and the keywords."""
    g = generator(f"quantize{case.bits}/{case.id}")
    shape, cols = case.shape, case.shape[-1]
    if case.data == "special":
        rows = special_rows(cols)
        shape = (rows.shape[0], cols)
        x = rows
    else:
        x = torch.randn(shape, generator=g) * torch.exp2(
            torch.randint(-8, 8, (*shape[:-1], 1), generator=g).float()
        )
        if case.data in ("positive", "negative"):
            x = x.abs() + 0.25
            x = -x if case.data == "negative" else x
        elif case.data == "wide":
            x = x * torch.exp2(torch.randint(-20, 4, shape, generator=g).float())
    x = x.to(DTYPES[case.dtype])
    if case.strided:
        wide = torch.full((*shape[:-1], cols + 16), float("nan"), dtype=x.dtype)
        wide[..., :cols] = x
        x = wide[..., :cols]
    keywords: dict[str, Any] = {}
    if not case.symmetric:
        keywords["symmetric"] = False
    if case.group:
        keywords["group_size"] = case.group
    if case.per_tensor:
        keywords["per_tensor"] = True
    if case.static:
        groups = (cols // case.group,) if case.group else ()
        vector_shape = (1,) if case.static == "one" else (*shape[:-1], *groups)
        keywords["scale"] = torch.exp2(torch.rand(vector_shape, generator=g) * 8 - 9).to(device)
        if not case.symmetric:
            end = 2 ** (case.bits - 1)
            zero = torch.randint(-end, end, vector_shape, generator=g, dtype=torch.int32)
            keywords["zero"] = zero.to(device)
    return {"x": _copy_layout(x, device), "keywords": keywords}


def quantize_cases(bits: int) -> list[QuantizeCase]:
    shapes: tuple[tuple[int, ...], ...] = (
        (1, 32),
        (3, 64),
        (16, 384),
        (2, 5, 128),
        (7, 4096),
        (1, 14336),
        (33, 1056),
        (0, 64),
        (4, 0, 64),
        (257, 32),
        (128,),
    )
    if bits == 8:
        shapes += ((5, 1), (3, 17), (64, 100), (2, 4099))
        options: dict[str, tuple[Any, ...]] = {
            "shape": shapes,
            "dtype": ("f32", "bf16", "f16"),
            "symmetric": (True, False),
            "mode": ("token", "tensor", "static.row", "static.one"),
            "strided": (False, True),
            "data": QUANTIZE_DATA[:-1],
        }
    else:
        options = {
            "shape": shapes,
            "dtype": ("f32", "bf16", "f16"),
            "symmetric": (True, False),
            "group": (0, 32),
            "mode": ("token", "static.row", "static.one"),
            "strided": (False, True),
            "data": QUANTIZE_DATA[:-1],
        }
    cases = []
    for choice in all_pairs(options):
        choice = dict(choice)
        mode = choice.pop("mode", "token")
        if mode == "tensor":
            choice["per_tensor"] = True
        elif mode.startswith("static."):
            choice["static"] = mode.removeprefix("static.")
        cases.append(QuantizeCase(bits, **choice))
    for dtype, symmetric in itertools.product(("f32", "bf16", "f16"), (True, False)):
        special = QuantizeCase(bits, (17, 64), dtype, symmetric, data="special")
        cases.append(special)
        cases += [replace(special, static="row"), replace(special, static="one")]
        if bits == 4:
            cases += [replace(special, group=32), replace(special, group=32, static="row")]
            cases += [
                QuantizeCase(4, (9, 768), dtype, symmetric, group=g)
                for g in (64, 96, 128, 256, 384, 768)
            ]
    return list({case.id: case for case in cases}.values())


# --------------------------------------------------------------------------------------------------
# One call of everything


@dataclass
class Call:
    """A call of an operator that tests of streams, graphs and memory make; `name` says its form."""

    name: str
    operator: str
    tensors: list[torch.Tensor]
    keywords: dict[str, Any] = field(default_factory=dict)

    def all_tensors(self) -> list[torch.Tensor]:
        return self.tensors + [v for v in self.keywords.values() if isinstance(v, torch.Tensor)]

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Call:
        """The same call with each tensor replaced."""
        keywords = {
            name: change(v) if isinstance(v, torch.Tensor) else v
            for name, v in self.keywords.items()
        }
        return replace(self, tensors=[change(t) for t in self.tensors], keywords=keywords)

    def __call__(self) -> list[torch.Tensor]:
        out = getattr(qutlass, self.operator)(*self.tensors, **self.keywords)
        return [t for t in (out if isinstance(out, tuple) else (out,)) if t is not None]


@functools.cache
def _example_calls(seed: str) -> list[Call]:
    """Each operator in each of its forms once, on ragged shapes; other seeds, other numbers."""
    calls = []
    for op in OPERATORS:
        for case in plain_cases(op, 35, 77, 512):
            x = make(case, seed=seed)
            tensors, keywords = x.arguments()
            kind = "multiplier" if case.multiplier else "group" if case.group else "channel"
            calls.append(Call(f"{op}-{kind}", x.operator, tensors, keywords))
    # The product that quantizes its activations itself, in its three forms.
    for kind, group, bits in (("channel", "K", 8), ("group", 64, 8), ("channel", "K", 4)):
        options = {"group": group, "b_zero": "row.i8", "bias": "f32"}
        x = make(case_for("int4", 35, 77, 512, options), seed=seed)
        tensors, keywords = x.arguments()
        call = Call(f"int4-{kind}-act{bits}", x.operator, tensors, {**keywords, "act_bits": bits})
        calls.append(call)
    # Without sums the operator makes them itself.
    without = [c for c in calls if "b_sum" in c.keywords]
    for c in without:
        keywords = {name: v for name, v in c.keywords.items() if name != "b_sum"}
        calls.append(Call(f"{c.name}-no_sum", c.operator, c.tensors, keywords))

    g = generator("calls" + seed)
    x = torch.randn((37, 416), generator=g).to(torch.bfloat16)
    w8 = torch.randint(-128, 128, (37, 416), generator=g, dtype=torch.int8)
    w4 = torch.randint(-8, 8, (37, 416), generator=g, dtype=torch.int8)
    packed = pack_by_hand(w4)
    scale = torch.rand(37, generator=g) + 0.01
    scales = torch.rand((37, 13), generator=g) + 0.01
    zero = torch.randint(-8, 8, (37,), generator=g, dtype=torch.int32)
    calls += [
        Call("pack_int4", "pack_int4", [w4]),
        Call("unpack_int4", "unpack_int4", [packed]),
        Call("weight_sums-int8", "weight_sums", [w8]),
        Call("weight_sums-int4", "weight_sums", [packed], {"group_size": 32}),
        Call("quantize_int8-symmetric", "quantize_int8", [x]),
        Call("quantize_int8-asymmetric", "quantize_int8", [x], {"symmetric": False}),
        Call("quantize_int8-tensor", "quantize_int8", [x], {"per_tensor": True}),
        Call("quantize_int8-static", "quantize_int8", [x], {"scale": scale}),
        Call("quantize_int4-row", "quantize_int4", [x], {"symmetric": False}),
        Call("quantize_int4-group", "quantize_int4", [x], {"group_size": 32}),
        Call("dequantize_int8", "dequantize_int8", [w8, scale, zero]),
        Call("dequantize_int4", "dequantize_int4", [packed, scales]),
        Call("split_group_scales", "split_group_scales", [scales]),
    ]
    return calls


CALL_NAMES = [call.name for call in _example_calls("")]


def example_call(name: str, device: str | torch.device = "cpu", seed: str = "") -> Call:
    """One of those calls, with tensors of its own."""
    call = next(call for call in _example_calls(seed) if call.name == name)
    return call.map(lambda t: t.to(device, copy=True))
