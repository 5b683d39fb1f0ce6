# SPDX-License-Identifier: Apache-2.0
"""Where does a product spend its time? Samples of its instructions, by parts of the kernel.

    python tools/where_it_waits.py --scheme w4a8_group --shape 16,4096,4096 [--zeros] [--markdown]

Nsight Compute notes every few cycles which instruction each warp is at, and what it waits for. A
part is a run of instructions that were executed equally often: what stands in front of the loop
over k tiles, the loop, what stands behind it. `times` is how often a warp executed it. Parts and
their reasons are in per cent of all samples, in the order of the code; below stand the instructions
that took most. Caches are cold, and the clock is what the card takes.

Reasons are what_limits.py's, and `issued`, where an instruction went out, `parameters`, where
constant memory had to bring them, and `other`.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from dataclasses import dataclass

import torch

import what_limits
from plain_table import render
from qutlass.bench.schemes import SCHEMES, Weights, make_tokens
from qutlass.bench.shapes import parse_shape
from qutlass.timing import require_gpu

SOURCE, EXECUTED, SAMPLES, STALL = "Source", "Instructions Executed", "# Samples", "stall_"
# Nsight Compute's page of the source shortens the names that its metrics have.
_SHORT = {
    "math_pipe_throttle": "math",
    "dispatch_stall": "dispatch",
    "short_scoreboard": "short_sb",
    "mio_throttle": "mio",
    "long_scoreboard": "long_sb",
    "lg_throttle": "lg",
    "no_instruction": "no_inst",
}
REASONS = {
    _SHORT.get(stall, stall): name for name, stalls in what_limits.WAITS.items() for stall in stalls
} | {"selected": "issued", "imc": "parameters"}
SMALLEST = 1.0  # per cent of the samples that a part has to have
PARTS = ["instructions", "reasons", "times", "samples"]
WORST = ["what", "reason", "instruction", "samples"]


@dataclass
class Instruction:
    """One of a kernel, how often warps executed it, and its samples by reason."""

    source: str
    executed: int
    samples: float
    reasons: dict[str, float]


def parse(text: str) -> list[Instruction]:
    """The instructions of a kernel, from Nsight Compute's page of the source as CSV."""
    lines = text.splitlines()
    begin = next((i for i, line in enumerate(lines) if f'"{SOURCE}"' in line), None)
    if begin is None:
        raise ValueError(f"Nsight Compute sampled nothing: {text.strip()[-300:]}")
    found = []
    for line in csv.DictReader(io.StringIO("\n".join(lines[begin:]))):
        reasons: dict[str, float] = {}
        for column, cell in line.items():
            # Those of warps that did not issue are among them once more.
            if column.startswith(STALL) and "(" not in column:
                name = REASONS.get(column.removeprefix(STALL), "other")
                reasons[name] = reasons.get(name, 0.0) + what_limits.number(cell)
        found.append(
            Instruction(
                " ".join(line[SOURCE].split()),
                int(what_limits.number(line[EXECUTED])),
                what_limits.number(line[SAMPLES]),
                reasons,
            )
        )
    return found


def parts_of(instructions: list[Instruction]) -> list[range]:
    """Runs of instructions that were executed equally often."""
    parts: list[range] = []
    for i, instruction in enumerate(instructions):
        if parts and instructions[parts[-1].start].executed == instruction.executed:
            parts[-1] = range(parts[-1].start, i + 1)
        else:
            parts.append(range(i, i + 1))
    return parts


def part_rows(instructions: list[Instruction]) -> list[list[str]]:
    """A line for each part that took more than a little."""
    total = sum(i.samples for i in instructions) or 1.0
    warps = next((i.executed for i in instructions if i.executed), 1)
    rows = []
    for part in parts_of(instructions):
        share = 100 * sum(instructions[i].samples for i in part) / total
        if share < SMALLEST:
            continue
        reasons: dict[str, float] = {}
        for i in part:
            for name, samples in instructions[i].reasons.items():
                reasons[name] = reasons.get(name, 0.0) + 100 * samples / total
        most = sorted(reasons.items(), key=lambda item: -item[1])[:4]
        rows.append(
            [
                f"{part.start} to {part.stop - 1}",
                ", ".join(f"{name} {x:.1f}" for name, x in most if x >= SMALLEST / 2) or "-",
                f"{instructions[part.start].executed / warps:.1f}",
                f"{share:.1f}",
            ]
        )
    return rows


def worst_rows(instructions: list[Instruction], count: int) -> list[list[str]]:
    """The instructions with the most samples, in the order of the code."""
    total = sum(i.samples for i in instructions) or 1.0
    worst = sorted(range(len(instructions)), key=lambda i: -instructions[i].samples)[:count]
    return [
        [
            instructions[i].source,
            max(instructions[i].reasons.items(), key=lambda item: item[1], default=("-", 0.0))[0],
            str(i),
            f"{100 * instructions[i].samples / total:.1f}",
        ]
        for i in sorted(worst)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--scheme", choices=sorted(SCHEMES), default="w4a8_group")
    parser.add_argument("--shape", type=parse_shape, default="16,4096,4096", metavar="M,N,K")
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--zeros", action="store_true", help="zero points of the weight")
    parser.add_argument("--top", type=int, default=12, help="instructions that are listed")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    scheme, (m, n, k) = SCHEMES[args.scheme], args.shape
    require_gpu()
    if args.run:
        torch.manual_seed(0)
        weights = Weights(n, k, args.group, args.zeros, "cuda").operands(scheme)[0]
        tokens = scheme.activation_operands(make_tokens(m, k, False, "cuda"), "ideal")
        scheme.call("ideal", {**weights, **tokens})
        torch.cuda.synchronize()
        return
    options = ["--page", "source", "--section", "SourceCounters", "--warp-sampling-interval", "0"]
    try:
        instructions = parse(what_limits.watch(options))
    except ValueError as error:
        sys.exit(str(error))
    chosen = scheme.explain(m, n, k, args.group)
    print(
        f"{torch.cuda.get_device_name()}, M {m}, N {n}, K {k}, groups of {args.group}"
        f"{', zero points' if args.zeros else ''}: {chosen['tile']}, split {chosen['split_k']}\n"
    )
    print(render(PARTS, part_rows(instructions), text=2, markdown=args.markdown))
    print()
    print(render(WORST, worst_rows(instructions, args.top), text=2, markdown=args.markdown))


if __name__ == "__main__":
    main()
