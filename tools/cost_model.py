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
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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


@dataclass(frozen=True)
class Card:
    """What the estimate needs of a card. `dataclasses.replace` makes others of the architecture."""

    sm: int
    sm_count: int
    smem_per_sm: int
    bandwidth: float  # device memory, bytes/us
    clock: float  # cycles/us
    # Cycles of a scheduler for one tensor instruction, by "s8", "bf16" and "s4"; or the constant
    # that holds them.
    cycles: Mapping[str, float | str]


def find_card(sm: int, bandwidth: float | None = None) -> Card:
    """A card as the library knows it: find_card of cards.cpp, card_of of select.cpp.

    Args:
        sm: 80, 86, 89 or 90.
        bandwidth: In bytes/us, instead of that of the card in cards.cpp; 0: where it is unknown.
    """
    known = {}
    for line in re.findall(r"^ +\{(\d+, .*)\},$", _source("common/cards.cpp"), re.MULTILINE):
        fields = [field.strip() for field in line.split(",")]
        known[int(fields[0])] = fields
    found = re.findall(r"\bc = \{(.*)\};", _source("gemm/select.cpp"))
    if sm not in known or len(found) != 3:
        raise ValueError(f"cards.cpp or select.cpp does not say what a card of sm_{sm} is")
    _, sm_count, _, smem, _, rate = known[sm]
    # In its order: from 90 on, 80, the others.
    clock, s8, bf16, s4, unknown, _ = found[0 if sm >= 90 else 1 if sm == 80 else 2].split(", ")
    kib = re.fullmatch(r"(\d+) << 10", smem)
    if kib is None:
        raise ValueError(f"cards.cpp: {smem!r} is no number of KiB")
    given = float(rate) * 1e-6 if bandwidth is None else bandwidth
    cycles = {"s8": s8, "bf16": bf16, "s4": s4}
    return Card(
        sm,
        int(sm_count),
        int(kib[1]) << 10,
        given or float(unknown),
        float(clock),
        {name: text if text.startswith("k") else float(text) for name, text in cycles.items()},
    )


def is_staged(op: str, m: int) -> bool:
    """As in tiles.h."""
    return op == "w4a16" and m > 128


def is_swapped(op: str, m: int) -> bool:
    """As in tiles.h."""
    return op == "w4a16" and not is_staged(op, m)


def is_folded(op: str, m: int) -> bool:
    """As in tiles.h."""
    return op == "w4a8_group" or is_swapped(op, m)


def strip_of(op: str, m: int, warp_m: int) -> int:
    """As in tiles.h."""
    if warp_m > 32:
        return 32 if warp_m % 32 == 0 else 16
    return 8 if is_swapped(op, m) else 16


def blocks_per_sm(tile: Mapping[str, Any], card: Card) -> int:
    """As in select.cpp."""
    registers = tile["warp_m"] * tile["warp_n"] // 32
    registers *= 2 if is_folded(tile["op"], tile["m"]) else 1
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


class Point:
    """A row and a split at a shape on a card: cost() of select.cpp, but for the constants."""

    def __init__(self, M: int, N: int, K: int, tile: Mapping[str, Any], split: int, card: Card):
        op, self.s, self.card = tile["op"], split, card
        a, b = A_BYTES.get(op, 1.0), B_BYTES.get(op, 0.5)
        fold = is_folded(op, tile["m"])
        self.resident = blocks_per_sm(tile, card) * card.sm_count
        self.tiles = math.ceil(M / tile["m"]) * math.ceil(N / tile["n"])
        self.k_tiles = math.ceil(K / tile["k"])
        self.warps, self.stages = tile["threads"] // 32, tile["stages"]
        steps = tile["warp_k"] // (64 if op == "w4a4" else 32) * (2 if op == "w4a16" else 1)
        m_tiles, n_tiles = tile["warp_m"] / 16, tile["warp_n"] / 8
        self.mma = steps * m_tiles * n_tiles
        strip = strip_of(op, tile["m"], tile["warp_m"])
        strips = math.ceil(M / strip) * strip
        self.real = strips / (math.ceil(M / tile["m"]) * tile["m"]) if card.sm >= 90 else 1.0
        sharers = tile["m"] // tile["warp_m"] if is_staged(op, tile["m"]) else 1
        self.fragments = steps * n_tiles / sharers
        swapped = is_swapped(op, tile["m"])
        self.unpacking = "kUnpackSwapped" if swapped else UNPACKING.get(op, "kUnpackNone")
        self.loads = 2.0 * steps * m_tiles + (1.6 * 4 * m_tiles * n_tiles if fold else 0)
        self.cycles = card.cycles[INSTRUCTION.get(op, "s8")]
        self.results = tile["warp_m"] * tile["warp_n"] / 32 / (tile["k"] // tile["warp_k"])
        self.tile_results = tile["m"] * tile["n"]
        self.once = M * K * a + N * K * b + 2.0 * M * N
        self.through_l2 = self.tiles * self.k_tiles * tile["k"] * (tile["m"] * a + tile["n"] * b)

    def _k_tile(self, side: int, c: Mapping[str, float]) -> float:
        """Cycles of a k tile with so many blocks side by side."""
        instructions = self.mma + self.fragments * c[self.unpacking] + self.loads + c["kLoop"]
        rate = c[self.cycles] if isinstance(self.cycles, str) else self.cycles
        limits = sorted(
            (
                self.mma * self.real * rate * self.warps / 4 * side,
                instructions * self.warps / 4 * side / c["kIssue"],
                instructions * c["kAlone"] + c["kBarrier"] / (self.stages - 1),
            )
        )
        return (limits[2] ** 4 + (0.5 * limits[1]) ** 4) ** 0.25

    def _tail(self, side: int, c: Mapping[str, float]) -> float:
        """Cycles of an epilogue."""
        return c["kEpilogue"] + self.results * c["kEpilogueResult"] * max(
            1.0, side * self.warps / 8
        )

    def estimate(self, c: Mapping[str, float]) -> float:
        """Microseconds."""
        sm_count, clock = self.card.sm_count, self.card.clock
        segments, parts = 1.0, float(self.s)
        if self.s != 0:
            blocks = self.tiles * self.s
            block_tiles = float(math.ceil(self.k_tiles / self.s))
        elif self.tiles < self.resident:
            block_tiles = float(math.ceil(self.tiles * self.k_tiles / self.resident))
            blocks = math.ceil(self.tiles * self.k_tiles / block_tiles)
            cut = block_tiles < self.k_tiles
            segments = 2.0 if cut else 1.0
            parts = self.k_tiles / block_tiles if cut else 2.0
        else:
            blocks = self.resident
            block_tiles = self.tiles * self.k_tiles / self.resident
            segments, parts = self.tiles / self.resident + 1, 2.0
        busiest = math.ceil(blocks / sm_count)
        together = min(busiest, self.resident // sm_count)
        rounds, left = divmod(busiest, together)
        cycles = c["kPrologue"]
        if self.s == 0:
            cycles += block_tiles * self._k_tile(together, c) + segments * self._tail(together, c)
        else:
            cycles += rounds * (block_tiles * self._k_tile(together, c) + self._tail(together, c))
            if left > 0:
                cycles += block_tiles * self._k_tile(left, c) + self._tail(left, c)
        if parts > 1:
            cycles += c["kSplit"] + (parts - 1) * self.tile_results * 4 / 128 * c["kSplitPart"]
        work = cycles / clock
        busy = min(1.0, blocks / sm_count)
        memory = max(
            self.once / (self.card.bandwidth * c["kMemoryShare"] * math.sqrt(busy)),
            self.through_l2 / (sm_count * c["kL2BytesPerCycle"] * clock),
        )
        return max(work, memory) + c["kOverlap"] * min(work, memory)


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
    problem: Problem, card: Card, values: Mapping[str, float]
) -> tuple[dict[str, Any], int, float]:
    """The row, the split and the estimate in microseconds that gemm_select settles on."""
    _, M, N, K, _ = problem
    found = [(tile, split) for tile, split in candidates(problem, card)]
    if not found:
        raise ValueError(f"no row runs {problem}")
    estimates = [Point(M, N, K, tile, s, card).estimate(values) for tile, s in found]
    least = min(estimates)
    return *found[estimates.index(least)], least


@dataclass
class Timed:
    """A point that was measured."""

    point: Point
    row: str
    us: float


def read_times(path: Path, card: Card) -> tuple[dict[tuple[str, int, int, int], list[Timed]], int]:
    """What tools/time_rows.py wrote: the points of each (op, M, N, K), and how many lines are of
    rows that the table has no longer."""
    from qutlass.tuned import table_rows

    tiles = {row["name"]: row for row in table_rows()}
    problems: dict[tuple[str, int, int, int], list[Timed]] = defaultdict(list)
    gone = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["op"] == "bf16":
            continue
        if record["row"] not in tiles:
            gone += 1
            continue
        M, N, K = record["m"], record["n"], record["k"]
        point = Point(M, N, K, tiles[record["row"]], record["s"], card)
        problems[record["op"], M, N, K].append(Timed(point, record["row"], record["us"]))
    return dict(problems), gone


def chosen_of(points: Sequence[Timed], values: Mapping[str, float]) -> tuple[Timed, list[float]]:
    """The point with the least estimate, and the estimates of all."""
    estimates = [timed.point.estimate(values) for timed in points]
    return points[estimates.index(min(estimates))], estimates


def parse_layer(text: str) -> tuple[int, int]:
    """`NxK` of a command line."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"a layer is NxK, got {text!r}")
    return int(match[1]), int(match[2])
