# SPDX-License-Identifier: Apache-2.0
"""What does each product wait for? How busy Nsight Compute finds the parts of the card.

    python tools/what_limits.py [--shape 8192,8192] [--tokens 16 64 256 4096] [--markdown]

Each product runs once on the row that is chosen for it, with cold caches and at the clock that the
card takes. Tensor: of the cycles of the tensor units. Issue: of the slots of the schedulers.
Shared: of the wavefronts that shared memory can serve. L2, DRAM: of their rates. Warps: of a
scheduler, on average. What a warp waits for between two of its instructions is in cycles: `fixed`
for results of fixed latency, `pipe` for its turn at the tensor or another unit, `turn` for the
scheduler, which takes other warps first, `loads` from shared memory, `copies` and loads from L2 and
DRAM, `barrier` for the other warps, `code` for instructions. What is far from busy everywhere is
bound by latency: by how few warps there are to wait at once.
"""

from __future__ import annotations

import argparse
import csv
import io
import subprocess
import sys
from pathlib import Path

import torch

from plain_table import render
from qutlass.bench.schemes import SCHEMES, Scheme, Weights, make_tokens
from qutlass.timing import require_gpu

BUSY = {  # per cent
    "tensor": "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
    "issue": "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "shared": "l1tex__data_pipe_lsu_wavefronts.avg.pct_of_peak_sustained_active",
    "L2": "lts__t_sectors.avg.pct_of_peak_sustained_elapsed",
    "DRAM": "dram__bytes.sum.pct_of_peak_sustained_elapsed",
}
TIME = "gpu__time_duration.sum"
WARPS = "sm__warps_active.avg.per_cycle_active"
STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
WAITS = {
    "fixed": ("wait",),
    "pipe": ("math_pipe_throttle",),
    "turn": ("not_selected", "dispatch_stall"),
    "loads": ("short_scoreboard", "mio_throttle"),
    "copies": ("long_scoreboard", "lg_throttle"),
    "barrier": ("barrier", "membar"),
    "code": ("no_instruction", "branch_resolving"),
}
METRICS = [*BUSY.values(), TIME, WARPS, *(STALL.format(s) for w in WAITS.values() for s in w)]
COLUMNS = ["product", "row", "M", "us", *BUSY, "warps", *WAITS]

# Not W4A4, which is emulated where there are no INT4 Tensor Cores.
PRODUCTS = [scheme for scheme in SCHEMES.values() if scheme.name != "w4a4"]


def cases(tokens: list[int]) -> list[tuple[Scheme, int]]:
    """What is run, in this order."""
    return [(scheme, m) for scheme in PRODUCTS for m in tokens]


def run(n: int, k: int, group: int, tokens: list[int]) -> None:
    """Every case once: what Nsight Compute watches."""
    torch.manual_seed(0)
    weights = Weights(n, k, group, False, "cuda")
    for scheme, m in cases(tokens):
        operands = scheme.activation_operands(make_tokens(m, k, False, "cuda"), "ideal")
        scheme.call("ideal", {**weights.operands(scheme)[0], **operands})
        torch.cuda.synchronize()


def parse(text: str) -> list[dict[str, float]]:
    """The metrics of every kernel, from Nsight Compute's page of raw values as CSV."""
    lines = text.splitlines()
    begin = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if begin is None:
        raise ValueError(f"Nsight Compute measured nothing: {text.strip()[-300:]}")
    table = csv.DictReader(io.StringIO("\n".join(lines[begin:])))
    kernels = [line for line in table if line["ID"].strip()]  # the units' line has none
    return [{name: number(line[name]) for name in METRICS} for line in kernels]


def number(cell: str) -> float:
    """A cell's value; one that could not be measured says n/a."""
    return float(cell.replace(",", "")) if cell[:1].isdigit() else float("nan")


def row_of(head: list[str], kernel: dict[str, float]) -> list[str]:
    """A line of the table. head: product, row and M."""
    waits = (sum(kernel[STALL.format(s)] for s in stalls) for stalls in WAITS.values())
    return [
        *head,
        f"{kernel[TIME] * 1e-3:.1f}",
        *(f"{kernel[metric]:.0f}" for metric in BUSY.values()),
        f"{kernel[WARPS] / 4:.1f}",
        *(f"{wait:.2f}" for wait in waits),
    ]


def watch(options: list[str]) -> str:
    """What Nsight Compute prints as CSV of our kernels while this script runs again, with --run."""
    command = ["ncu", "--csv", "--clock-control", "none", "--kernel-name", "regex:Kernel2"]
    command += [*options, sys.executable, *sys.argv, "--run"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        sys.exit(f"{Path(sys.argv[0]).name} needs Nsight Compute: `ncu` is not in PATH")
    # What went wrong it says there.
    return done.stdout if done.returncode == 0 else done.stdout + done.stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shape", default="8192,8192", metavar="N,K")
    tokens = [1, 16, 32, 64, 128, 256, 1024, 4096]
    parser.add_argument("--tokens", type=int, nargs="+", default=tokens)
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    n, k = map(int, args.shape.split(","))
    require_gpu()
    if args.run:
        run(n, k, args.group, args.tokens)
        return
    options = ["--page", "raw", "--print-units", "base", "--metrics", ",".join(METRICS)]
    try:
        kernels = parse(watch(options))
    except ValueError as error:
        sys.exit(str(error))
    labels = [
        [scheme.name, scheme.explain(m, n, k, args.group)["tile"], str(m)]
        for scheme, m in cases(args.tokens)
    ]
    if len(kernels) != len(labels):
        sys.exit(f"{len(labels)} products ran, but Nsight Compute saw {len(kernels)} kernels")
    rows = [row_of(head, kernel) for head, kernel in zip(labels, kernels, strict=True)]
    print(f"{torch.cuda.get_device_name()}, N {n}, K {k}, groups of {args.group}\n")
    print(render(COLUMNS, rows, text=2, markdown=args.markdown))


if __name__ == "__main__":
    main()
