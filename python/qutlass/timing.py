# SPDX-License-Identifier: Apache-2.0
"""How this package and bench/ time a call, and what is recorded beside the times.

A call is timed inside a CUDA graph that runs it over and over, each time on another copy of its
operands, so that the time that Python and the launch take stays out of the result. The copies
together are larger than three L2 caches, so every call finds its operands in device memory. Only
operands so small that 400 copies are not enough are found in L2, as the activations of a few tokens
are in a model. A sample is one replay divided by the number of calls in it; what is reported is the
median of the samples, with the 10th and 90th percentiles as the spread.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

Operands = TypeVar("Operands")

_L2_CACHES = 3  # the copies of the operands together are at least this many of them
_MIN_CALLS = 20  # in one graph, so that its own start is spread thin
_MAX_CALLS = 400  # in one graph, and copies of the operands
_SAMPLE_SECONDS = 2e-3  # aim for one replay
_SECONDS = 0.25  # aim for all samples of one call
_MIN_SAMPLES = 7
_GLANCE_COPIES = 16  # operands that a glance rotates over
_GLANCE_EAGER = 2e-4  # seconds from which on the launch by Python is a small part of one call

# Tera-operations a second of mma.sync by GPU, dense, measured with a loop of independent
# instructions on registers. Where a GPU is missing, floors are those of memory alone.
INSTRUCTION_RATES: dict[str, dict[str, float]] = {
    "NVIDIA H200": {"int8": 1283.0, "int4": 70.0, "bf16": 642.0},
}


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call."""

    us: float  # median
    low: float  # 10th percentile
    high: float  # 90th percentile
    samples: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        """What microseconds of the same call come to; of a single one, that."""
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0], 1)
        deciles = statistics.quantiles(samples, n=10, method="inclusive")
        return cls(statistics.median(samples), deciles[0], deciles[-1], len(samples))

    @property
    def spread(self) -> float:
        """Distance of the percentiles as a fraction of the median."""
        return (self.high - self.low) / self.us


def require_gpu() -> torch.device:
    """The current CUDA device; ends the program where there is none."""
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device: there is nothing to measure here")
    return torch.device("cuda", torch.cuda.current_device())


def copies_of(make: Callable[[], Operands], bytes_each: int) -> list[Operands]:
    """As many copies of a call's operands as exceed three L2 caches, at least two, at most 400.

    Args:
        make: Makes one copy.
        bytes_each: Bytes that a call reads of one copy.
    """
    return [make() for _ in range(copies_needed(bytes_each))]


def copies_needed(bytes_each: int) -> int:
    """How many `copies_of` makes."""
    l2_bytes = torch.cuda.get_device_properties().L2_cache_size
    count = math.ceil(_L2_CACHES * l2_bytes / max(bytes_each, 1)) + 1
    return min(max(count, 2), _MAX_CALLS)


def time_calls(
    call: Callable[[Operands], Any], copies: Sequence[Operands], *, seconds: float = _SECONDS
) -> Timing:
    """Time `call(operands)` over all copies in turn.

    Args:
        call: Enqueues work on the current stream and returns what it allocated.
        copies: Operands to rotate over, see `copies_of`.
        seconds: To aim for in all samples together; there are 7 samples at least.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        estimate = _time_eagerly(call, copies)
        wanted = max(_MIN_CALLS if estimate < 1e-3 else 1, math.ceil(_SAMPLE_SECONDS / estimate))
        rounds = max(1, math.ceil(min(wanted, _MAX_CALLS) / len(copies)))
        calls = rounds * len(copies)
        graph = _capture(call, copies, rounds, stream)
        _replay(graph)

        samples: list[float] = []
        spent = 0.0
        while len(samples) < _MIN_SAMPLES or (spent < seconds and len(samples) < 200):
            took = _replay(graph)
            spent += took
            samples.append(took * 1e6 / calls)
    torch.cuda.current_stream().wait_stream(stream)
    graph.reset()
    return Timing.of(samples)


def glance(call: Callable[[Operands], Any], copies: Sequence[Operands]) -> float:
    """Microseconds of `call(operands)`, roughly and within milliseconds: to tell what is hopeless.

    One call by itself where it is long, else two replays of a short graph, the faster one.
    """
    copies = copies[:_GLANCE_COPIES]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        seconds = _time_eagerly(call, copies)
        if seconds < _GLANCE_EAGER:
            graph = _capture(call, copies, 1, stream)
            seconds = min(_replay(graph), _replay(graph)) / len(copies)
            graph.reset()
    torch.cuda.current_stream().wait_stream(stream)
    return seconds * 1e6


def _time_eagerly(call: Callable[[Operands], Any], copies: Sequence[Operands]) -> float:
    """Seconds of one call, its launch included."""
    for operands in copies[:2]:
        call(operands)  # loads modules, fills caches of the host
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call(copies[-1])
    stop.record()
    stop.synchronize()
    return max(start.elapsed_time(stop) * 1e-3, 1e-6)


def _capture(
    call: Callable[[Operands], Any],
    copies: Sequence[Operands],
    rounds: int,
    stream: torch.cuda.Stream,
) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(rounds):
            # Outputs live until the round ends: a call does not write into the lines of L2 that
            # the one before it has just left there.
            kept = [call(operands) for operands in copies]
            del kept
    return graph


def _replay(graph: torch.cuda.CUDAGraph) -> float:
    """Seconds of one replay."""
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    graph.replay()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) * 1e-3


def bytes_of(values: Iterable[Any]) -> int:
    """Bytes of all tensors among (nested) values: what is read, or written, once."""
    total = 0
    for value in values:
        if isinstance(value, Tensor):
            total += value.numel() * value.element_size()
        elif isinstance(value, (tuple, list)):
            total += bytes_of(value)
    return total


def copy_bandwidth() -> float:
    """Bytes a second of a kernel that reads 1 GiB and writes as much, both counted.

    Not of `copy_`: as a copy node of the graph it moved 2.7 TB/s on an H200 on which kernels moved
    4.2.
    """
    count = 1 << 28
    copies = [(torch.rand(count, device="cuda"),) for _ in range(2)]
    target = torch.empty_like(copies[0][0])
    timing = time_calls(lambda operands: torch.neg(operands[0], out=target), copies)
    return 2 * 4 * count / (timing.us * 1e-6)


def empty_graph_node() -> float:
    """Microseconds of a kernel that does next to nothing, in a graph: the floor of latency."""
    one = torch.zeros(1, device="cuda")
    return time_calls(lambda operands: operands[0].zero_(), [(one,)] * 2).us


def instruction_rate(kind: str) -> float | None:
    """Operations a second that this GPU's `kind` instruction reaches, None where unmeasured."""
    rates = INSTRUCTION_RATES.get(torch.cuda.get_device_name())
    return rates[kind] * 1e12 if rates else None


def environment() -> dict[str, Any]:
    """What a measurement depends on besides the code."""
    device = require_gpu()
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "sm": 10 * properties.major + properties.minor,
        "sm_count": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        **_clocks(device.index),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        **_commit(),
    }


def _commit() -> dict[str, Any]:
    """The commit of a checkout; an installed package lies in no repository, or in another's."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "csrc" / "gemm" / "tiles.inc").is_file():
        return {"commit": None, "modified": None}
    git = ["git", "-C", str(root)]
    return {
        "commit": _output([*git, "rev-parse", "--short", "HEAD"]),
        "modified": bool(_output([*git, "status", "--porcelain", "--untracked-files=no"])),
    }


def _clocks(index: int) -> dict[str, Any]:
    names = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit")
    query = f"--query-gpu={','.join(names)}"
    answer = _output(["nvidia-smi", f"--id={index}", query, "--format=csv,noheader"])
    values = [value.strip() for value in answer.split(",")] if answer else []
    if len(values) != len(names):
        return {}
    return {name.replace(".", "_"): value for name, value in zip(names, values, strict=True)}


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


class Report:
    """Rows of one benchmark: a table on the terminal, and a line of JSON each in a file."""

    def __init__(self, columns: dict[str, str], path: Path | None, **facts: Any) -> None:
        """Print the environment and the head of the table.

        Args:
            columns: Key of a row to format specification; the key is the heading.
            path: JSONL file to append to, or None.
            facts: What holds for all rows, recorded in each beside the environment.
        """
        self._columns = columns
        self._file = path.open("a", encoding="utf-8") if path else None
        self._facts = {**environment(), **facts}
        self._widths: dict[str, int] = {}
        for key, value in self._facts.items():
            print(f"# {key}: {value:.6g}" if isinstance(value, float) else f"# {key}: {value}")
        for key, spec in columns.items():
            digits = spec.lstrip("<>").split(".")[0].rstrip("sdf")
            self._widths[key] = max(len(key), int(digits or 0))
        print("  ".join(self._cell(key, key) for key in columns))

    def add(self, **row: Any) -> None:
        """Print one row and write it; keys that are no columns are written only."""
        cells = []
        for key, spec in self._columns.items():
            value = row.get(key)
            cells.append(self._cell(key, "-" if value is None else format(value, spec)))
        print("  ".join(cells), flush=True)
        if self._file:
            self._file.write(json.dumps({**row, **self._facts}) + "\n")
            self._file.flush()

    def _cell(self, key: str, text: str) -> str:
        width = self._widths[key]
        return text.ljust(width) if self._columns[key].startswith("<") else text.rjust(width)
