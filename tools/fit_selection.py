# SPDX-License-Identifier: Apache-2.0
"""Fits the constants of csrc/gemm/select.cpp and the factors of its rows to measured times.

    python tools/time_rows.py rows.jsonl            # on a GPU
    python tools/fit_selection.py rows.jsonl --write
    python tools/fit_selection.py rows.jsonl --held-out 4096x14336 8192x8192

The estimate is that of tools/cost_model.py for the GPU that was measured (by default an H200: 132
multiprocessors, 228 KiB of shared memory each, 4.8 TB/s), and the search starts at the constants
that select.cpp has; those that were measured or set there stay. What is minimised is mostly regret,
the chosen row's time over the best row's, and a little the error of the estimate. Regret is a step
function of the constants; the search descends the regret of a choice at random, rows being the
likelier the less their estimate, which it makes ever less random. It takes less than a minute, and
comes to the same result each time.

Of every row that was timed, a factor: it takes in what the constants cannot say of a row, such as
how well the compiler arranged its loop, and is held close to 1. It serves GPUs like the one that
was timed; a choice on another card rests on the constants. INT4 products, which a GPU of 9.0
emulates, take no part.

Prints regret, the worst choices and the constants; --write puts constants and factors into the
sources.

Layers held out take no part in the search; regret on them stands apart. Since those of select.cpp
were fitted to all layers, the search then starts at the powers of two nearest to them.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from cost_model import (
    CSRC,
    FACTORS,
    Times,
    constants,
    find_card,
    parse_layer,
    row_factors,
)
from qutlass.tuned import table_rows

FIXED = (
    "kSm90S8", "kSm90Bf16", "kSm90S4", "kSharedBytes", "kL2Bytes", "kMemoryShare", "kCopy",
    "kClearly",
)  # fmt: skip
SELECT = CSRC / "gemm" / "select.cpp"
EMULATED = "w4a4"
NEAR = 0.7  # rows that take up to e^0.7 of the best take part in the error
RANDOM = (0.10, 0.012)  # how random choices are, from first to last: of log time
RATE = (0.03, 0.001)
HOLD = 3.0  # of factors to 1


class Fit:
    """The search."""

    def __init__(self, times: Times, start: Mapping[str, float]) -> None:
        self.times = times
        self.fixed = {name: value for name, value in start.items() if name in FIXED}
        self.names = [name for name in start if name not in FIXED]
        logs = [math.log(start[name]) for name in self.names]
        self.logs = torch.tensor(logs, dtype=torch.float64, requires_grad=True)
        self.rows = sorted(set(times.points.rows))
        places = {row: i for i, row in enumerate(self.rows)}
        self.row = torch.tensor([places[row] for row in times.points.rows])
        self.row_logs = torch.zeros(len(self.rows), dtype=torch.float64, requires_grad=True)
        self.log_us = torch.log(times.us)
        self.log_regret = self.log_us - torch.log(times.least(times.us))[times.problem]
        real = [problem[0] != EMULATED for problem in times.problems]
        self.real = torch.tensor(real)
        self.near = (self.log_regret < NEAR) & self.real[times.problem]

    def loss(self, randomness: float) -> torch.Tensor:
        values = dict(zip(self.names, torch.exp(self.logs), strict=True)) | self.fixed
        estimates = torch.log(self.times.points.estimate(values)) + self.row_logs[self.row]
        least = self.times.least(estimates.detach())[self.times.problem]
        weights = torch.exp((least - estimates) / randomness)
        zeros = torch.zeros(len(self.times.problems), dtype=torch.float64)
        total = zeros.scatter_add(0, self.times.problem, weights)
        regret = zeros.scatter_add(0, self.times.problem, weights * self.log_regret) / total
        regret = regret[self.real]
        error = (estimates - self.log_us)[self.near]
        return (
            6 * regret.mean()
            + 12 * regret.square().mean()
            + error.square().mean().sqrt()
            + HOLD * self.row_logs.square().mean()
        )

    def run(self, steps: int) -> None:
        search = torch.optim.Adam([self.logs, self.row_logs])
        for step in range(steps):
            part = step / steps
            search.param_groups[0]["lr"] = RATE[0] * (1 - part) + RATE[1]
            search.zero_grad()
            self.loss(RANDOM[0] * (1 - part) + RANDOM[1] * part).backward()
            search.step()

    def result(self) -> tuple[dict[str, float], dict[str, float]]:
        """Constants and factors, rounded as they are written."""
        values = dict(zip(self.names, torch.exp(self.logs).tolist(), strict=True))
        factors = dict(zip(self.rows, torch.exp(self.row_logs).tolist(), strict=True))
        return (
            {name: float(f"{value:.3g}") for name, value in values.items()} | self.fixed,
            {
                row: round(factor, 3)
                for row, factor in factors.items()
                if not row.startswith(EMULATED)
            },
        )


def show(
    title: str, times: Times, values: Mapping[str, float], factors: Mapping[str, float]
) -> None:
    """Regret and the worst choices."""
    chosen = times.chosen(times.points.times(values, factors), values["kClearly"])
    regrets = times.us[chosen] / times.least(times.us)
    found = sorted(
        zip(regrets.tolist(), times.problems, chosen.tolist(), strict=True), key=lambda x: -x[0]
    )
    for which, kept in (
        (title, found),
        (f"{title} without {EMULATED}", [each for each in found if each[1][0] != EMULATED]),
    ):
        if kept:
            mean = math.exp(sum(math.log(regret) for regret, *_ in kept) / len(kept))
            print(
                f"{len(kept)} problems{which}: regret {mean:.3f} geometric mean, "
                f"{kept[0][0]:.3f} worst"
            )
    for regret, key, place in kept[:10]:
        row, split = times.points.rows[place], int(times.points.of["split"][place])
        print(f"  {regret:.3f}  {' '.join(map(str, key))}  {row} x{split}")


def write(values: Mapping[str, float], factors: Mapping[str, float]) -> None:
    """Puts them into the sources."""
    source = SELECT.read_text(encoding="utf-8")
    for name, value in values.items():
        source = re.sub(rf"(\b{name} = )[\d.e+-]+", rf"\g<1>{value:g}", source)
    SELECT.write_text(source, encoding="utf-8")
    lines = [
        "// SPDX-License-Identifier: Apache-2.0",
        "// Written by tools/fit_selection.py: measured times of a row over the estimates of",
        "// select.cpp.",
    ]
    for row in table_rows():
        if row["name"] in factors:
            lines.append(f"QUTLASS_ROW_FACTOR({row['name']}, {factors[row['name']]:g})")
    (CSRC / FACTORS).write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("json", type=Path, help="what tools/time_rows.py wrote")
    parser.add_argument(
        "--steps", type=int, default=1000, help="of the search; 0: what the sources have"
    )
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
    parser.add_argument("--write", action="store_true", help="into the sources")
    args = parser.parse_args(argv)

    card = replace(
        find_card(90, bandwidth=args.bandwidth and args.bandwidth * 1e6),
        sm_count=args.multiprocessors,
        smem_per_sm=args.smem,
    )
    everything = Times(args.json, card)
    if everything.gone:
        print(f"{everything.gone} times are of rows that the table has no longer")
    layers = {problem[2:] for problem in everything.problems}
    absent = set(args.held_out) - layers
    if absent:
        names = ", ".join(f"{n}x{k}" for n, k in sorted(absent))
        parser.error(f"{args.json} has no layer {names}")
    if not layers - set(args.held_out):
        parser.error("nothing is left to fit")
    times = Times(args.json, card, held_out=args.held_out) if args.held_out else everything

    values, factors = constants(), row_factors()
    if args.held_out:
        values = {
            name: value if name in FIXED else 2.0 ** round(math.log2(value))
            for name, value in values.items()
        }
        factors = {}
    if args.steps > 0:
        fit = Fit(times, values)
        fit.run(args.steps)
        values, factors = fit.result()
    show("", times, values, factors)
    if args.held_out:
        held_out = Times(args.json, card, held_out=layers - set(args.held_out))
        show(" out of sample", held_out, values, factors)
    for name, value in values.items():
        print(f"constexpr double {name} = {value:g};")
    if args.write:
        write(values, factors)


if __name__ == "__main__":
    main()
