# SPDX-License-Identifier: Apache-2.0
"""What does the card run at while one product follows another? Clock, power, and what caps them.

    python tools/clocks.py [--shape 4096,8192,8192] [--seconds 2] [--markdown]

Large products may draw more than the card's power limit, which then lowers the clock: their rate is
a matter of energy, not only of instructions. Each product, on the row that is chosen for it, and
cuBLAS bf16 run back to back; nvidia-smi is asked from the second half on. Sustained rates are below
those of `python -m qutlass bench`, whose samples are short.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from plain_table import render
from qutlass.bench.schemes import SCHEMES, Weights, make_tokens, random_matrix
from qutlass.timing import require_gpu

QUERY = "clocks.sm,power.draw.instant,clocks_event_reasons.active"
# NVML's nvmlClocksEventReason*: the bits that mean a limit.
CAPS = {0x4: "power", 0x8: "hardware", 0x20: "heat", 0x40: "heat", 0x80: "power brake"}


@dataclass(frozen=True)
class Sample:
    clock: float  # MHz
    power: float  # watts
    caps: frozenset[str]


def parse(line: str) -> Sample:
    """A line that nvidia-smi answers to QUERY, without units."""
    clock, power, reasons = (field.strip() for field in line.split(","))
    bits = int(reasons, 16)
    return Sample(float(clock), float(power), frozenset(c for b, c in CAPS.items() if bits & b))


def ask(device: int) -> Sample:
    command = ["nvidia-smi", f"--id={device}", f"--query-gpu={QUERY}"]
    command.append("--format=csv,noheader,nounits")
    return parse(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())


def watch(call: Callable[[], Any], seconds: float) -> tuple[float, list[Sample]]:
    """Microseconds of a call in the second half of `seconds`, and what the card did then."""
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(20):
            call()
    calls, spent, samples, begin = 0, 0.0, [], time.monotonic()
    while time.monotonic() < begin + seconds / 2:
        graph.replay()
        torch.cuda.synchronize()
    while time.monotonic() < begin + seconds or not samples:
        start.record()
        for _ in range(4):  # some under way while nvidia-smi answers
            graph.replay()
        stop.record()
        samples.append(ask(torch.cuda.current_device()))
        torch.cuda.synchronize()
        calls += 80
        spent += start.elapsed_time(stop)
    return spent * 1e3 / calls, samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shape", default="4096,8192,8192", metavar="M,N,K")
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each product")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    m, n, k = map(int, args.shape.split(","))
    require_gpu()
    torch.manual_seed(0)
    weights = Weights(n, k, args.group, False, "cuda")
    tokens = make_tokens(m, k, False, "cuda")
    x, w = random_matrix("bf16", m, k, "cuda"), random_matrix("bf16", n, k, "cuda")
    products: dict[str, Callable[[], Any]] = {"cuBLAS bf16": lambda: torch.mm(x, w.t())}
    for name, scheme in SCHEMES.items():
        operands = {**weights.operands(scheme)[0], **scheme.activation_operands(tokens, "ideal")}
        products[name] = lambda s=scheme, o=operands: s.call("ideal", o)
    rows = []
    for name, call in products.items():
        us, samples = watch(call, args.seconds)
        caps = sorted(frozenset().union(*(s.caps for s in samples)))
        rows.append(
            [
                name,
                f"{us:.0f}",
                f"{2e-6 * m * n * k / us:.0f}",
                f"{statistics.median(s.clock for s in samples):.0f}",
                f"{statistics.median(s.power for s in samples):.0f}",
                ", ".join(caps) or "none",
            ]
        )
    columns = ["product", "us", "TOPS", "MHz", "W", "capped by"]
    print(f"{torch.cuda.get_device_name()}, {m} x {n} x {k}\n")
    print(render(columns, rows, markdown=args.markdown))


if __name__ == "__main__":
    main()
