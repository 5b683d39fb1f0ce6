# SPDX-License-Identifier: Apache-2.0
"""Fits the constants of csrc/gemm/select.cpp to measured rows.

    python tools/time_rows.py rows.jsonl            # on a GPU
    python tools/fit_selection.py rows.jsonl --seconds 100

The estimate below is that of select.cpp, statement by statement, for the GPU that was measured (by
default an H100: 132 multiprocessors, 228 KiB of shared memory each). What is minimised is mostly
regret, the chosen row's time over the best row's, and a little the error of the estimate; the
search is a random walk, so runs differ in the last digits. Prints regret, the worst choices and
the constants.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

START = {
    "kSm90S8": 2.9,
    "kSm90Bf16": 0.71,
    "kSm90S4": 328.0,
    "kUnpackNone": 1.31,
    "kUnpackW4A8": 2.55,
    "kUnpackGroup": 14.6,
    "kUnpackMultiplier": 16.4,
    "kUnpackW4A16": 16.2,
    "kLoop": 92.2,
    "kAlone": 1.56,
    "kIssue": 0.973,
    "kBarrier": 23.6,
    "kPrologue": 3560.0,
    "kEpilogue": 969.0,
    "kEpilogueResult": 234.0,
    "kSplit": 4320.0,
    "kSplitPart": 1.08,
    "kOverlap": 0.296,
    "kMemoryShare": 0.807,
    "kL2BytesPerCycle": 29.9,
}
A_BYTES = {"w4a16": 2.0, "w4a4": 0.5}
B_BYTES = {"w8a8": 1.0}
UNPACKING = {
    "w4a8": "kUnpackW4A8",
    "w4a8_group": "kUnpackGroup",
    "w4a8_multiplier": "kUnpackMultiplier",
    "w4a16": "kUnpackW4A16",
}
INSTRUCTION = {"w4a16": "kSm90Bf16", "w4a4": "kSm90S4"}


class Point:
    """A row and a schedule at a shape: what the estimate needs of them."""

    def __init__(self, record: dict[str, Any], tile: dict[str, Any], gpu: argparse.Namespace):
        op, self.us, self.row, self.s = record["op"], record["us"], record["row"], record["s"]
        M, N, K = record["m"], record["n"], record["k"]
        a, b = A_BYTES.get(op, 1.0), B_BYTES.get(op, 0.5)
        scaled = op == "w4a16" and tile["warp_m"] > 32
        fold = op == "w4a8_group" or (op == "w4a16" and not scaled)
        registers = tile["warp_m"] * tile["warp_n"] // 32 * (2 if fold else 1)
        registers += tile["warp_m"] // 16 * 8 + tile["warp_n"] // 8 * 4 + 64
        registers = (min(255, registers) + 7) // 8 * 8
        per_sm = min(
            gpu.smem // (tile["smem_bytes"] + 1024),
            65536 // (registers * tile["threads"]),
            2048 // tile["threads"],
        )
        self.resident = max(1, per_sm) * gpu.multiprocessors
        self.multiprocessors = gpu.multiprocessors
        self.tiles = math.ceil(M / tile["m"]) * math.ceil(N / tile["n"])
        self.k_tiles = math.ceil(K / tile["k"])
        self.warps, self.stages = tile["threads"] // 32, tile["stages"]
        steps = tile["warp_k"] // (64 if op == "w4a4" else 32) * (2 if op == "w4a16" else 1)
        m_tiles, n_tiles = tile["warp_m"] // 16, tile["warp_n"] // 8
        self.mma = steps * m_tiles * n_tiles
        strip = 32 if tile["warp_m"] > 32 else 16
        self.real = math.ceil(M / strip) * strip / (math.ceil(M / tile["m"]) * tile["m"])
        self.fragments, self.unpacking = steps * n_tiles, UNPACKING.get(op, "kUnpackNone")
        self.loads = 2.0 * steps * m_tiles + (1.6 * 4 * m_tiles * n_tiles if fold else 0)
        self.instruction = INSTRUCTION.get(op, "kSm90S8")
        self.results = tile["warp_m"] * tile["warp_n"] / 32 / (tile["k"] // tile["warp_k"])
        self.tile_results = tile["m"] * tile["n"]
        self.once = M * K * a + N * K * b + 2.0 * M * N
        self.through_l2 = self.tiles * self.k_tiles * tile["k"] * (tile["m"] * a + tile["n"] * b)

    def estimate(self, c: dict[str, float], clock: float = 1755.0) -> float:
        instructions = self.mma + self.fragments * c[self.unpacking] + self.loads + c["kLoop"]
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
        busiest = math.ceil(blocks / self.multiprocessors)
        together = min(busiest, self.resident // self.multiprocessors)
        rounds = busiest / together
        if self.s != 0 and rounds > 1:
            rounds = math.ceil(blocks / self.resident)
        limits = sorted(
            (
                self.mma * self.real * c[self.instruction] * self.warps / 4 * together,
                instructions * self.warps / 4 * together / c["kIssue"],
                instructions * c["kAlone"] + c["kBarrier"] / (self.stages - 1),
            )
        )
        k_tile = (limits[2] ** 4 + (0.5 * limits[1]) ** 4) ** 0.25
        epilogue = c["kEpilogue"] + self.results * c["kEpilogueResult"] * max(
            1.0, together * self.warps / 8
        )
        cycles = c["kPrologue"] + block_tiles * k_tile * rounds
        cycles += epilogue * (rounds if self.s != 0 else segments)
        if parts > 1:
            cycles += c["kSplit"] + (parts - 1) * self.tile_results * 4 / 128 * c["kSplitPart"]
        work = cycles / clock
        busy = min(1.0, blocks / self.multiprocessors)
        memory = max(
            self.once / (3.35e6 * c["kMemoryShare"] * math.sqrt(busy)),
            self.through_l2 / (self.multiprocessors * c["kL2BytesPerCycle"] * clock),
        )
        return max(work, memory) + c["kOverlap"] * min(work, memory)


def regret_of(points: list[Point], constants: dict[str, float]) -> tuple[float, Point, list[float]]:
    """Chosen time over best time, the choice, and log errors of rows that come near the best."""
    estimates = [point.estimate(constants) for point in points]
    best = min(point.us for point in points)
    chosen = points[int(np.argmin(estimates))]
    errors = [
        math.log(estimate / point.us)
        for estimate, point in zip(estimates, points, strict=True)
        if point.us < 1.6 * best
    ]
    return chosen.us / best, chosen, errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("json", type=Path, help="what tools/time_rows.py wrote")
    parser.add_argument("--seconds", type=float, default=100.0, help="how long to search")
    parser.add_argument("--multiprocessors", type=int, default=132)
    parser.add_argument("--smem", type=int, default=228 << 10, help="bytes a multiprocessor")
    gpu = parser.parse_args()

    from qutlass.tuned import table_rows

    tiles = {row["name"]: row for row in table_rows()}
    problems: dict[tuple[Any, ...], list[Point]] = defaultdict(list)
    for line in gpu.json.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["op"] != "bf16":
            key = (record["op"], record["m"], record["n"], record["k"])
            problems[key].append(Point(record, tiles[record["row"]], gpu))

    def loss(logs: np.ndarray) -> float:
        constants = dict(zip(START, np.exp(logs), strict=True))
        regrets, errors = [], []
        for points in problems.values():
            regret, _, near = regret_of(points, constants)
            regrets.append(math.log(regret))
            errors += near
        spread = math.sqrt(np.mean(np.square(errors)))
        return 6 * np.mean(regrets) + 12 * np.mean(np.square(regrets)) + 0.6 * spread

    random = np.random.default_rng(0)
    best = np.log(list(START.values()))
    least, step, end = loss(best), 0.25, time.monotonic() + gpu.seconds
    while time.monotonic() < end:
        moved = best + random.normal(0, step, len(best)) * (random.random(len(best)) < 0.25)
        now = loss(moved)
        if now < least:
            best, least, step = moved, now, min(0.4, step * 1.1)
        else:
            step = max(0.04, step * 0.995)

    constants = dict(zip(START, np.exp(best), strict=True))
    found = {key: regret_of(points, constants) for key, points in problems.items()}
    regrets = [regret for regret, _, _ in found.values()]
    print(
        f"{len(found)} problems: regret {math.exp(np.mean(np.log(regrets))):.3f} geometric mean, "
        f"{max(regrets):.3f} worst"
    )
    for key, (regret, chosen, _) in sorted(found.items(), key=lambda item: -item[1][0])[:10]:
        print(f"  {regret:.3f}  {' '.join(map(str, key))}  {chosen.row} x{chosen.s}")
    for name, value in constants.items():
        print(f"constexpr double {name} = {value:.3g};")


if __name__ == "__main__":
    main()
