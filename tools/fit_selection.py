# SPDX-License-Identifier: Apache-2.0
"""Fits the constants of csrc/gemm/select.cpp to measured rows.

    python tools/time_rows.py rows.jsonl            # on a GPU
    python tools/fit_selection.py rows.jsonl --seconds 100
    python tools/fit_selection.py rows.jsonl --held-out 4096x14336 8192x8192

The estimate is that of tools/cost_model.py for the GPU that was measured (by default an H200: 132
multiprocessors, 228 KiB of shared memory each, 4.8 TB/s), and the search starts at the constants
that select.cpp has. What is minimised is mostly regret, the chosen row's time over the best row's,
and a little the error of the estimate; the search is a random walk, so runs differ in the last
digits.
Prints regret, the worst choices and the constants.

Layers held out take no part in the search; regret on them stands apart. Since those of select.cpp
were fitted to all layers, the search then starts at the powers of two nearest to them.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cost_model import Timed, chosen_of, constants, find_card, parse_layer, read_times


def regret_of(
    points: Sequence[Timed], values: Mapping[str, float]
) -> tuple[float, Timed, list[float]]:
    """Chosen time over best time, the choice, and log errors of rows that come near the best."""
    chosen, estimates = chosen_of(points, values)
    best = min(timed.us for timed in points)
    errors = [
        math.log(estimate / timed.us)
        for estimate, timed in zip(estimates, points, strict=True)
        if timed.us < 1.6 * best
    ]
    return chosen.us / best, chosen, errors


def show(
    title: str, problems: Mapping[tuple[Any, ...], list[Timed]], values: Mapping[str, float]
) -> None:
    """Regret and the worst choices."""
    found = {key: regret_of(points, values) for key, points in problems.items()}
    regrets = [regret for regret, _, _ in found.values()]
    print(
        f"{len(found)} problems{title}: regret {math.exp(np.mean(np.log(regrets))):.3f} geometric "
        f"mean, {max(regrets):.3f} worst"
    )
    for key, (regret, chosen, _) in sorted(found.items(), key=lambda item: -item[1][0])[:10]:
        print(f"  {regret:.3f}  {' '.join(map(str, key))}  {chosen.row} x{chosen.point.s}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("json", type=Path, help="what tools/time_rows.py wrote")
    parser.add_argument("--seconds", type=float, default=100.0, help="how long to search")
    parser.add_argument("--multiprocessors", type=int, default=132)
    parser.add_argument(
        "--bandwidth", type=float, help="of device memory, TB/s; an H100's is 3.35 (default: H200)"
    )
    parser.add_argument("--smem", type=int, default=228 << 10, help="bytes a multiprocessor")
    parser.add_argument(
        "--held-out",
        nargs="+",
        type=parse_layer,
        default=[],
        metavar="NxK",
        help="layers that take no part in the fit",
    )
    args = parser.parse_args(argv)

    card = replace(
        find_card(90, bandwidth=args.bandwidth and args.bandwidth * 1e6),
        sm_count=args.multiprocessors,
        smem_per_sm=args.smem,
    )
    everything, gone = read_times(args.json, card)
    if gone:
        print(f"{gone} times are of rows that the table has no longer")
    problems = {key: p for key, p in everything.items() if key[2:] not in args.held_out}
    held_out = {key: p for key, p in everything.items() if key[2:] in args.held_out}
    absent = set(args.held_out) - {key[2:] for key in held_out}
    if absent:
        names = ", ".join(f"{n}x{k}" for n, k in sorted(absent))
        parser.error(f"{args.json} has no layer {names}")
    if not problems:
        parser.error("nothing is left to fit")
    start = constants()
    if held_out:
        start = {name: 2.0 ** round(math.log2(value)) for name, value in start.items()}

    def loss(logs: np.ndarray) -> float:
        values = dict(zip(start, np.exp(logs), strict=True))
        regrets, errors = [], []
        for points in problems.values():
            regret, _, near = regret_of(points, values)
            regrets.append(math.log(regret))
            errors += near
        spread = math.sqrt(np.mean(np.square(errors)))
        return 6 * np.mean(regrets) + 12 * np.mean(np.square(regrets)) + 0.6 * spread

    random = np.random.default_rng(0)
    best = np.log(list(start.values()))
    least, step, end = loss(best), 0.25, time.monotonic() + args.seconds
    while time.monotonic() < end:
        moved = best + random.normal(0, step, len(best)) * (random.random(len(best)) < 0.25)
        now = loss(moved)
        if now < least:
            best, least, step = moved, now, min(0.4, step * 1.1)
        else:
            step = max(0.04, step * 0.995)

    values = dict(zip(start, np.exp(best), strict=True))
    show("", problems, values)
    if held_out:
        show(" out of sample", held_out, values)
    for name, value in values.items():
        print(f"constexpr double {name} = {value:.3g};")


if __name__ == "__main__":
    main()
