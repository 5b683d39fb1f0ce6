# SPDX-License-Identifier: Apache-2.0
"""What the cost model of selection expects of cards that nothing was measured on: a PROJECTION.

    python tools/project_cards.py [--markdown] [--json projection.jsonl]

For each card, product and M: the geometric mean over the layers of qutlass.bench.shapes.LAYERS of
TOPS and of the speed-up over bfloat16, both estimated. The row and the split are those that the
library would choose on the card; their time is the estimate of csrc/gemm/select.cpp (see
tools/cost_model.py) at the card's data sheet: multiprocessors, tensor rates - the clock is the one
that the INT8 rate follows from - and bandwidth. The other constants were fitted on an H200.

bfloat16 is taken as ideal: the larger of bytes over the data sheet's bandwidth and operations over
its rate, with no overhead at all, which no bfloat16 product reaches. The speed-ups are therefore
low ones, as far as the estimate holds.

How far it holds is known for the GPUs that were measured alone: estimated over measured time of the
row that the estimate chooses, from the file that tools/time_rows.py wrote there, for every (M, N,
K) in it. The factors of rows take no part, as on the cards projected. Rows that were never timed
cannot be chosen there, and the constants were fitted to the times of the H200.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from cost_model import (
    CSRC,
    Card,
    Points,
    Problem,
    Times,
    constants,
    find_card,
    row_factors,
    select,
)
from plain_table import render
from qutlass.bench.schemes import SCHEMES
from qutlass.bench.shapes import LAYERS

TOKENS = (1, 16, 64, 256, 1024, 4096)
GROUP = 128
RESULTS = CSRC.parent / "bench" / "results"
# GPUs that were timed, the first one those that the constants were fitted to; GB/s.
TIMED = {
    "NVIDIA H100 80GB HBM3": (RESULTS / "nvidia-h100-80gb-hbm3" / "rows.jsonl", 3350.0),
    "NVIDIA H200": (RESULTS / "nvidia-h200" / "rows.jsonl", 4800.0),
}
# Operations of one tensor instruction: mma.m16n8k32.s8, m16n8k64.s4 and m16n8k16.bf16.
OPERATIONS = {"s8": 16 * 8 * 32 * 2, "s4": 16 * 8 * 64 * 2, "bf16": 16 * 8 * 16 * 2}
SCHEDULERS = 4  # of a multiprocessor

NOTE = (
    "PROJECTED by the cost model of csrc/gemm/select.cpp, not measured; speed-up over an ideal "
    "bfloat16 product at the data sheet's bandwidth and rate, with no overhead"
)


@dataclass(frozen=True)
class Datasheet:
    """A card by its data sheet: dense rates."""

    name: str
    sm: int
    sm_count: int
    int8: float  # TOPS
    int4: float
    bf16: float  # TFLOP/s, with float32 accumulation
    bandwidth: float  # GB/s

    def chosen_for(self) -> Card:
        """What the library sees of the card where it chooses."""
        card = find_card(self.sm, bandwidth=self.bandwidth * 1e3)
        return replace(card, sm_count=self.sm_count)

    def card(self) -> Card:
        """The card with the clock and the instructions' cycles that its rates say."""
        card = self.chosen_for()
        per_cycle = self.sm_count * SCHEDULERS  # instructions, at one cycle each
        clock = self.int8 * 1e6 * float(card.cycles["s8"]) / (per_cycle * OPERATIONS["s8"])
        rates = {"s8": self.int8, "s4": self.int4, "bf16": self.bf16}
        cycles = {
            name: per_cycle * OPERATIONS[name] * clock / (rate * 1e6)
            for name, rate in rates.items()
        }
        return replace(card, clock=clock, cycles=cycles)

    def ideal_bf16(self, m: int, n: int, k: int) -> float:
        """Microseconds: a bound that no bfloat16 product gets below."""
        bytes_ = 2.0 * (m * k + n * k + m * n)
        return max(bytes_ / (self.bandwidth * 1e3), 2.0 * m * n * k / (self.bf16 * 1e6))


# The data sheets of RTX 3090, RTX A6000, A10 and A100 80 GB (SXM).
CARDS = (
    Datasheet("RTX 3090", 86, 82, 284, 568, 71, 936),
    Datasheet("RTX A6000", 86, 84, 310, 619, 155, 768),
    Datasheet("A10", 86, 72, 250, 500, 125, 600),
    Datasheet("A100", 80, 108, 624, 1248, 312, 2039),
)


@dataclass
class Projection:
    """The geometric mean over LAYERS."""

    card: str
    scheme: str
    title: str
    m: int
    tops: float
    speedup_over_ideal_bf16: float
    projected: bool = True  # in the file too


@dataclass
class Error:
    """Estimated over measured time of the chosen row, over the problems that were timed."""

    gpu: str
    scheme: str
    title: str
    problems: int
    p10: float
    median: float
    p90: float


def title_of(scheme: str) -> str:
    return SCHEMES[scheme].title.format(g=GROUP)


def problem_of(scheme: str, m: int, n: int, k: int) -> Problem:
    return Problem(scheme, m, n, k, SCHEMES[scheme].group_of(GROUP) or k)


def project(
    sheet: Datasheet, values: Mapping[str, float], factors: Mapping[str, float]
) -> Iterator[Projection]:
    """Every product and M on a card."""
    chosen_for, card = sheet.chosen_for(), sheet.card()
    for scheme in SCHEMES:
        for m in TOKENS:
            tops, speedups = [], []
            for n, k in LAYERS:
                tile, split, _ = select(problem_of(scheme, m, n, k), chosen_for, values, factors)
                us = float(Points([(m, n, k, tile, split)], card).times(values, factors))
                tops.append(2e-6 * m * n * k / us)
                speedups.append(sheet.ideal_bf16(m, n, k) / us)
            yield Projection(
                sheet.name,
                scheme,
                title_of(scheme),
                m,
                statistics.geometric_mean(tops),
                statistics.geometric_mean(speedups),
            )


def errors_of(
    gpu: str,
    path: Path,
    bandwidth: float,
    values: Mapping[str, float],
) -> tuple[list[Error], int]:
    """The model's error on a GPU that was timed, and how many times are of rows gone since."""
    times = Times(path, replace(find_card(90), bandwidth=bandwidth * 1e3))
    estimates = times.points.estimate(values)
    chosen = times.chosen(estimates, values["kClearly"])
    found = (estimates[chosen] / times.us[chosen]).tolist()
    errors = []
    for scheme in SCHEMES:
        ratios = [
            ratio for ratio, (op, *_) in zip(found, times.problems, strict=True) if op == scheme
        ]
        if ratios:
            p10, median, p90 = map(float, np.quantile(ratios, (0.1, 0.5, 0.9)))
            errors.append(Error(gpu, scheme, title_of(scheme), len(ratios), p10, median, p90))
    return errors, times.gone


def describe(sheet: Datasheet) -> str:
    return (
        f"{sheet.name} (sm_{sheet.sm}, {sheet.sm_count} multiprocessors, {sheet.int8:g} INT8 and "
        f"{sheet.int4:g} INT4 TOPS, {sheet.bf16:g} bfloat16 TFLOP/s, {sheet.bandwidth:g} GB/s)"
    )


def projection_table(projections: Sequence[Projection], markdown: bool) -> str:
    """The products of one card, TOPS and speed-up at each M."""
    columns = ["TOPS, speed-up", *(f"M = {m}" for m in TOKENS)]
    cells: dict[str, list[str]] = {}
    for p in projections:
        digits = 1 if p.tops < 100 else 0
        cell = f"{p.tops:.{digits}f} {p.speedup_over_ideal_bf16:5.2f}x"
        cells.setdefault(p.title, []).append(cell)
    rows = [[title, *of_title] for title, of_title in cells.items()]
    return render(columns, rows, markdown=markdown)


def error_table(errors: Sequence[Error], markdown: bool) -> str:
    columns = ["estimated / measured", "problems", "10 %", "median", "90 %"]
    rows = [
        [e.title, str(e.problems), f"{e.p10:.2f}", f"{e.median:.2f}", f"{e.p90:.2f}"]
        for e in errors
    ]
    return render(columns, rows, markdown=markdown)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--markdown", action="store_true", help="tables as Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write one line a number")
    args = parser.parse_args(argv)
    values, factors = constants(), row_factors()
    lines = []
    print(f"{NOTE}.")
    for sheet in CARDS:
        projections = list(project(sheet, values, factors))
        lines += map(asdict, projections)
        heading = f"PROJECTED: {describe(sheet)}"
        print(f"\n**{heading}**\n" if args.markdown else f"\n{heading}")
        print(projection_table(projections, args.markdown))
    for gpu, (path, bandwidth) in TIMED.items():
        errors, gone = errors_of(gpu, path, bandwidth, values)
        lines += map(asdict, errors)
        heading = f"The model's error where it was measured, {gpu}"
        print(f"\n**{heading}**\n" if args.markdown else f"\n{heading}")
        print(error_table(errors, args.markdown))
        if gone:
            print(f"\n{gone} times are of rows that the table has no longer and are left out.")
    print(
        "\nThe constants were fitted to the times of the H200. INT4 products are emulated there: "
        "their error\nsays nothing of cards that have the instruction."
    )
    if args.json:
        args.json.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
