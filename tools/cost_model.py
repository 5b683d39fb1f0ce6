# SPDX-License-Identifier: Apache-2.0
"""The estimate of csrc/gemm/select.cpp and the choice it makes, in Python, for any card.

One statement for the tools that fit its constants (tools/fit_selection.py) and that say what it
expects of cards that are not at hand (tools/project_cards.py); tests/test_cost_model.py holds it
against the library. Every number is read from the C++ source; the rows and what is legal come from
the library.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

CSRC = Path(__file__).resolve().parent.parent / "csrc"
SPLITS = (1, 0, 2, 3, 4, 6, 8, 12)  # in the order they are tried; 0: Stream-K
A_BYTES = {"w4a16": 2.0, "w4a4": 0.5}
B_BYTES = {"w8a8": 1.0}
UNPACKING = {
    "w4a8": "kUnpackW4A8",
    "w4a8_group": "kUnpackGroup",
    "w4a8_multiplier": "kUnpackMultiplier",
    "w4a16": "kUnpackW4A16",
}
INSTRUCTION = {"w4a16": "bf16", "w4a4": "s4"}
FACTORS = "gemm/row_factors.inc"


@functools.cache
def _source(name: str) -> str:
    return (CSRC / name).read_text(encoding="utf-8")


def constants() -> dict[str, float]:
    """The constants of select.cpp, in its order."""
    return {
        name: float(value)
        for line in re.findall(
            r"^constexpr double ([^;]*);", _source("gemm/select.cpp"), re.MULTILINE
        )
        for name, value in re.findall(r"(k\w+) = ([\d.e+-]+)", line)
    }


def row_factors() -> dict[str, float]:
    """What measured times of a row were of its estimate, of the rows in row_factors.inc."""
    lines = re.findall(r"^QUTLASS_ROW_FACTOR\((\w+), ([\d.]+)\)$", _source(FACTORS), re.MULTILINE)
    return {row: float(factor) for row, factor in lines}


def factors_from() -> int:
    """The compute capability from which on select.cpp applies them, times ten."""
    [found] = re.findall(r"^constexpr int kFactorsFrom = (\d+);$", _source("gemm/select.cpp"), re.M)
    return int(found)


@dataclass(frozen=True)
class Card:
    """What the estimate needs of a card. `dataclasses.replace` makes others of the architecture."""

    sm: int
    sm_count: int
    smem_per_sm: int
    l2_bytes: int
    bandwidth: float  # device memory, bytes/us
    clock: float  # cycles/us
    # Cycles of a scheduler for one tensor instruction, by "s8", "bf16" and "s4"; or the constant
    # that holds them.
    cycles: Mapping[str, float | str]
    l2_rate: float | str  # a multiprocessor's bytes a cycle, or the constant


def _value_or_name(text: str) -> float | str:
    return text if text.startswith("k") else float(text)


def find_card(sm: int, bandwidth: float | None = None) -> Card:
    """A card as the library knows it: kCards of cards.h, card_of of select.cpp.

    Args:
        sm: 80, 86, 89 or 90.
        bandwidth: In bytes/us, instead of that of the card in cards.h; 0: where it is unknown.
    """
    known = {}
    for line in re.findall(r"^ +\{(\d+, .*)\},$", _source("common/cards.h"), re.MULTILINE):
        fields = [field.strip() for field in line.split(",")]
        known[int(fields[0])] = fields
    found = re.findall(r"\bc = \{(.*)\};", _source("gemm/select.cpp"))
    if sm not in known or len(found) != 3:
        raise ValueError(f"cards.h or select.cpp does not say what a card of sm_{sm} is")
    _, sm_count, _, smem, l2, rate = known[sm]
    # In its order: from 90 on, 80, the others.
    fields = found[0 if sm >= 90 else 1 if sm == 80 else 2].split(", ")
    clock, s8, bf16, s4, l2_rate, unknown = fields
    kib = re.fullmatch(r"(\d+) << 10", smem)
    mib = re.fullmatch(r"int64_t\{(\d+)\} << 20", l2)
    if kib is None or mib is None:
        raise ValueError(f"cards.h: {smem!r} or {l2!r} is no number of KiB or MiB")
    given = float(rate) * 1e-6 if bandwidth is None else bandwidth
    cycles = {"s8": s8, "bf16": bf16, "s4": s4}
    return Card(
        sm,
        int(sm_count),
        int(kib[1]) << 10,
        int(mib[1]) << 20,
        given or float(unknown),
        float(clock),
        {name: _value_or_name(text) for name, text in cycles.items()},
        _value_or_name(l2_rate),
    )


def blocks_per_sm(tile: Mapping[str, Any], card: Card) -> int:
    """As in select.cpp."""
    registers = tile["warp_m"] * tile["warp_n"] // 32
    registers *= 2 if tile["folded"] else 1
    registers += tile["warp_m"] // 2 + tile["warp_n"] // 2 + 64
    registers = (min(255, registers) + 7) // 8 * 8
    threads = 2048 if card.sm == 80 or card.sm >= 90 else 1536
    return max(
        1,
        min(
            card.smem_per_sm // (tile["smem_bytes"] + 1024),
            65536 // (registers * tile["threads"]),
            threads // tile["threads"],
        ),
    )


Value = float | torch.Tensor  # of a constant: a number, or what a fit differentiates by
Constants = Mapping[str, Value]


class Points:
    """Rows and splits at shapes on a card: cost() of select.cpp, but for the constants.

    Args:
        points: M, N, K, a row of the table and a split each.
        card: The card.
    """

    def __init__(
        self, points: Iterable[tuple[int, int, int, Mapping[str, Any], int]], card: Card
    ) -> None:
        self.card = card
        self.rows, kinds, described = [], [], []
        for M, N, K, tile, split in points:
            op = tile["op"]
            self.rows.append(tile["name"])
            kinds.append(
                (
                    "kUnpackSwapped" if tile["swapped"] else UNPACKING.get(op, ""),
                    INSTRUCTION.get(op, "s8"),
                )
            )
            described.append(_describe(M, N, K, tile, split, card))
        self.kinds = kinds
        columns = zip(*described, strict=True)
        self.of = {
            name: torch.tensor(column, dtype=torch.float64)
            for name, column in zip(_Described._fields, columns, strict=True)
        }

    def __len__(self) -> int:
        return len(self.rows)

    @functools.cached_property
    def _unpackings(self) -> tuple[list[str], torch.Tensor]:
        return _indexed([unpacking for unpacking, _ in self.kinds])

    @functools.cached_property
    def _instructions(self) -> tuple[list[str], torch.Tensor]:
        return _indexed([instruction for _, instruction in self.kinds])

    def _k_tile(
        self, side: torch.Tensor, instructions: torch.Tensor, rate: torch.Tensor, c: Constants
    ) -> torch.Tensor:
        """Cycles of a k tile with so many blocks side by side."""
        of, l2 = self.of, self.card.l2_rate
        limits = (
            of["mma"] * of["real"] * rate * of["warps"] / 4 * side,
            instructions * of["warps"] / 4 * side,
            instructions * c["kAlone"] + c["kBarrier"] / (of["stages"] - 1),
            of["shared_bytes"] * side / c["kSharedBytes"],
            of["real_bytes"] * side / (c[l2] if isinstance(l2, str) else l2),
        )
        return torch.sqrt(torch.sqrt(sum(limit * limit * limit * limit for limit in limits)))

    def estimate(self, c: Constants) -> torch.Tensor:
        """Microseconds, but for the rows' factors."""
        of, cycles_of = self.of, self.card.cycles
        names, index = self._unpackings
        unpacking = _values(c[name] if name else 0.0 for name in names)[index]
        names, index = self._instructions
        cycles = [cycles_of[name] for name in names]
        rate = _values(c[each] if isinstance(each, str) else each for each in cycles)[index]
        instructions = (
            of["mma"]
            + of["fragments"] * unpacking
            + of["loads"]
            + c["kLoop"]
            + c["kCopy"] * of["copies"]
        )

        def blocks_of(side: torch.Tensor) -> torch.Tensor:
            """Cycles of the k tiles of a block."""
            return of["block_tiles"] * self._k_tile(side, instructions, rate, c)

        def tail(side: torch.Tensor) -> torch.Tensor:
            """Cycles of an epilogue."""
            crowd = torch.clamp(side * of["warps"] / 8, min=1.0)
            return c["kEpilogue"] + of["results"] * c["kEpilogueResult"] * crowd

        together, left = of["together"], of["left"]
        once = blocks_of(together)
        whole = of["rounds"] * (once + tail(together))
        rest = torch.where(left > 0, blocks_of(left) + tail(left), 0.0)
        stream = once + of["segments"] * tail(together)
        work = torch.where(of["split"] == 0, stream, whole + rest)
        parts = of["parts"]
        shared = c["kSplit"] + (parts - 1) * of["tile_results"] * 4 / 128 * c["kSplitPart"]
        work = (work + torch.where(parts > 1, shared, 0.0)) / self.card.clock
        l2 = c["kL2Share"] * self.card.l2_bytes / of["round_bytes"]
        again = of["b_again"] * torch.clamp(1 - l2 * of["b_sharers"], min=0.0)
        again = again + of["a_again"] * torch.clamp(1 - l2 * of["a_sharers"], min=0.0)
        memory = (of["bytes"] + again) / (self.card.bandwidth * c["kMemoryShare"])
        return torch.sqrt(work * work + memory * memory)

    def times(self, c: Constants, factors: Mapping[str, float]) -> torch.Tensor:
        """Microseconds; the factors are those of GPUs like the one that was timed."""
        if self.card.sm < factors_from():
            return self.estimate(c)
        known = torch.tensor([factors.get(row, 1.0) for row in self.rows], dtype=torch.float64)
        return self.estimate(c) * known


class _Described(NamedTuple):
    """What the estimate needs of a row and a split at a shape, in the terms of select.cpp."""

    split: int
    block_tiles: float
    rounds: int
    together: int
    left: int
    segments: float
    parts: float
    warps: int
    stages: int
    mma: float
    real: float
    fragments: float
    loads: float
    copies: float
    shared_bytes: float
    real_bytes: float
    results: float
    tile_results: int
    bytes: float
    round_bytes: float
    a_again: float
    b_again: float
    a_sharers: float
    b_sharers: float


def _describe(
    M: int, N: int, K: int, tile: Mapping[str, Any], split: int, card: Card
) -> _Described:
    op = tile["op"]
    a, b = A_BYTES.get(op, 1.0), B_BYTES.get(op, 0.5)
    resident = blocks_per_sm(tile, card) * card.sm_count
    tiles_m, tiles_n = math.ceil(M / tile["m"]), math.ceil(N / tile["n"])
    tiles = tiles_m * tiles_n
    k_tiles = math.ceil(K / tile["k"])
    rows = M / tiles_m
    warps = tile["threads"] // 32
    steps = tile["warp_k"] // (64 if op == "w4a4" else 32) * (2 if op == "w4a16" else 1)
    m_tiles, n_tiles = tile["warp_m"] / 16, tile["warp_n"] / 8
    strip = tile["strip"]
    strips = math.ceil(M / strip) * strip
    sharers = tile["m"] // tile["warp_m"] if tile["staged"] else 1
    fold = tile["folded"]
    tile_bytes = (tile["m"] * a + tile["n"] * b) * tile["k"]

    segments, parts, shared = 1.0, float(split), 0
    if split != 0:
        blocks = tiles * split
        block_tiles = float(math.ceil(k_tiles / split))
    elif tiles < resident:
        block_tiles = float(math.ceil(tiles * k_tiles / resident))
        blocks = math.ceil(tiles * k_tiles / block_tiles)
        cut = block_tiles < k_tiles
        segments = 2.0 if cut else 1.0
        parts = k_tiles / block_tiles if cut else 2.0
        shared = tiles if cut else 0
    else:
        blocks = resident
        block_tiles = tiles * k_tiles / resident
        segments, parts = tiles / resident + 1, 2.0
        beyond = tiles % resident
        shared = resident + beyond if 0 < 2 * beyond < resident else beyond
    busiest = math.ceil(blocks / card.sm_count)
    together = min(busiest, resident // card.sm_count)
    rounds, left = divmod(busiest, together)
    return _Described(
        split=split,
        block_tiles=block_tiles,
        rounds=rounds,
        together=together,
        left=left,
        segments=segments,
        parts=parts,
        warps=warps,
        stages=tile["stages"],
        mma=steps * m_tiles * n_tiles,
        real=strips / (tiles_m * tile["m"]) if card.sm >= 90 else 1.0,
        fragments=steps * n_tiles / sharers,
        loads=2.0 * steps * m_tiles + (1.6 * 4 * m_tiles * n_tiles if fold else 0),
        copies=tile_bytes / 16 / tile["threads"],
        shared_bytes=tile_bytes
        + warps * (tile["warp_m"] * a + tile["warp_n"] * b) * tile["warp_k"],
        real_bytes=(rows * a + tile["n"] * b) * tile["k"],
        results=tile["warp_m"] * tile["warp_n"] / 32 / (tile["k"] // tile["warp_k"]),
        tile_results=tile["m"] * tile["n"],
        bytes=M * K * a + N * K * b + 2.0 * M * N,
        round_bytes=resident * (rows * a + tile["n"] * b) * K,
        a_again=shared * K * rows * a * (1 - 1 / tiles_n),
        b_again=shared * K * tile["n"] * b * (1 - 1 / tiles_m),
        a_sharers=resident / tiles_m,
        b_sharers=float(tiles_m),
    )


def _indexed(names: Sequence[str]) -> tuple[list[str], torch.Tensor]:
    """The different names, and the place of each among them."""
    different = list(dict.fromkeys(names))
    places = {name: i for i, name in enumerate(different)}
    return different, torch.tensor([places[name] for name in names])


def _values(values: Iterable[Value]) -> torch.Tensor:
    return torch.stack([torch.as_tensor(value, dtype=torch.float64) for value in values])


class Problem(NamedTuple):
    """What a choice depends on; group is K where there are no groups."""

    op: str  # the kernel family, "w8a8", "w4a8_group" ...
    M: int
    N: int
    K: int
    group: int


def candidates(problem: Problem, card: Card) -> Iterator[tuple[dict[str, Any], int]]:
    """The rows and splits that gemm_select compares, in its order."""
    from qutlass.ops import _gemm_legal
    from qutlass.tuned import table_rows

    op, M, N, K, group = problem
    for tile in table_rows():
        if tile["op"] != op:
            continue
        tiles = math.ceil(M / tile["m"]) * math.ceil(N / tile["n"])
        for split in SPLITS:
            if split > 1 and (tiles > 3 * card.sm_count or tiles * split > 6 * card.sm_count):
                continue
            if _gemm_legal(op, tile["index"], split, M, N, K, group, sm=card.sm):
                yield tile, split


def select(
    problem: Problem, card: Card, values: Constants, factors: Mapping[str, float]
) -> tuple[dict[str, Any], int, float]:
    """The row, the split and the estimate in microseconds that gemm_select settles on."""
    _, M, N, K, _ = problem
    found = list(candidates(problem, card))
    if not found:
        raise ValueError(f"no row runs {problem}")
    times = Points(((M, N, K, tile, split) for tile, split in found), card).times(values, factors)
    chosen = first_clear(times.tolist(), values["kClearly"])
    return *found[chosen], float(times[chosen])


def first_clear(estimates: Iterable[float], clearly: float) -> int:
    """The place of what gemm_select settles on: the first that no later one is clearly below."""
    chosen, least = 0, math.inf
    for place, estimate in enumerate(estimates):
        if estimate < clearly * least:
            chosen, least = place, estimate
    return chosen


class Times:
    """What tools/time_rows.py wrote of rows that the table has.

    Attributes:
        problems: The (op, M, N, K) that were timed.
        points: All rows and splits of them.
        us: What each took.
        problem: The place of its problem.
        gone: How many lines are of rows that the table has no longer.
    """

    def __init__(self, path: Path, card: Card, held_out: Container[tuple[int, int]] = ()) -> None:
        """Without the layers that are held out."""
        from qutlass.tuned import table_rows

        tiles = {row["name"]: row for row in table_rows()}
        places: dict[tuple[str, int, int, int], int] = {}
        points, us, problem = [], [], []
        self.gone = 0
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if record["op"] == "bf16" or (record["n"], record["k"]) in held_out:
                continue
            if record["row"] not in tiles:
                self.gone += 1
                continue
            key = (record["op"], record["m"], record["n"], record["k"])
            points.append((*key[1:], tiles[record["row"]], record["s"]))
            us.append(record["us"])
            problem.append(places.setdefault(key, len(places)))
        self.problems = list(places)
        self.points = Points(points, card) if points else None
        self.us = torch.tensor(us, dtype=torch.float64)
        self.problem = torch.tensor(problem, dtype=torch.int64)

    def least(self, of: torch.Tensor) -> torch.Tensor:
        """The least of each problem's points."""
        start = torch.full((len(self.problems),), math.inf, dtype=torch.float64)
        return start.scatter_reduce(0, self.problem, of, "amin")

    def chosen(self, estimates: torch.Tensor, clearly: float) -> torch.Tensor:
        """The place of the point of each problem that gemm_select would settle on."""
        places: list[list[int]] = [[] for _ in self.problems]
        for place, problem in enumerate(self.problem.tolist()):
            places[problem].append(place)
        return torch.tensor(
            [of[first_clear(estimates[of].tolist(), clearly)] for of in places], dtype=torch.int64
        )


def parse_layer(text: str) -> tuple[int, int]:
    """`NxK` of a command line."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"a layer is NxK, got {text!r}")
    return int(match[1]), int(match[2])


def parse_regex(text: str) -> re.Pattern[str]:
    """A regular expression of a command line."""
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"no regular expression: {text!r}, {error}") from None
