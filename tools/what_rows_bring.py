# SPDX-License-Identifier: Apache-2.0
"""What do rows bring? The time of the best of all rows over that of the best of the others.

    python tools/what_rows_bring.py rows.jsonl --rows 'w4a16_(16x64x512|32x128x256)_' [--markdown]
    python tools/what_rows_bring.py rows.jsonl --above 101376   # all that do not fit 99 KiB

rows.jsonl is what tools/time_rows.py wrote. Geometric means over the layers, for each product that
has such rows and each M that was timed: 1 where they are never the best, `-` where there are no
others.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from cost_model import Times, find_card, parse_regex
from plain_table import render
from qutlass.tuned import table_rows


def brought(times: Times, rows: set[str]) -> dict[str, dict[int, float]]:
    """By product and M."""
    apart = torch.tensor([row in rows for row in times.points.rows])
    ratios = times.least(times.us) / times.least(times.us.masked_fill(apart, math.inf))
    concerned = {times.problems[place][0] for place in times.problem[apart].tolist()}
    logs: dict[str, dict[int, list[float]]] = {}
    for (op, m, *_), ratio in zip(times.problems, ratios.tolist(), strict=True):
        if op in concerned:
            logs.setdefault(op, {}).setdefault(m, []).append(math.log(ratio) if ratio else math.nan)
    return {
        op: {m: math.exp(sum(of_m) / len(of_m)) for m, of_m in sorted(of_op.items())}
        for op, of_op in logs.items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("json", type=Path, help="what tools/time_rows.py wrote")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--rows", type=parse_regex, help="those in whose names this is found")
    which.add_argument("--above", type=int, metavar="BYTES", help="those of more shared memory")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args(argv)

    rows = {
        row["name"]
        for row in table_rows()
        if (args.rows.search(row["name"]) if args.rows else row["smem_bytes"] > args.above)
    }
    times = Times(args.json, find_card(90))
    if not rows.intersection(times.points.rows):
        parser.error(f"{args.json} has no such rows")
    found = brought(times, rows)
    columns = sorted({m for of_op in found.values() for m in of_op})

    def cell(value: float) -> str:
        return "-" if math.isnan(value) else f"{value:.3f}"

    table = [[op, *(cell(of_op.get(m, math.nan)) for m in columns)] for op, of_op in found.items()]
    print(render(["M", *map(str, columns)], table, markdown=args.markdown))


if __name__ == "__main__":
    main()
