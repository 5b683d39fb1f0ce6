# SPDX-License-Identifier: Apache-2.0
"""How fast is each matrix product: against its floor, against cuBLAS in bf16, against the products
of others?

All that is compared is measured in one process, shape by shape. Up to M = 256 a call is timed in a
CUDA graph that rotates over copies of the operands, more than three L2 caches of them (see
qutlass.timing); above, by Triton's do_bench, one call after the other with L2 overwritten between
them. Before each the GPU rests, so that none runs at the clock that another one's power has earned.
"ideal" is the product alone; "actual" takes bfloat16 activations and quantizes them in the call.

The floor is the larger of bytes (each operand read once, the result written once) over the
bandwidth of a copy in the same run, and operations over the rate of the instruction.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import ops
from . import plots, records, tables
from .gpu import ceilings, label
from .peers import PEERS
from .schemes import KINDS, SCHEMES
from .shapes import PRESETS, by_layer, parse_shape

_EXAMPLES = """examples:
  python -m qutlass bench                          a few shapes, in seconds
  python -m qutlass bench --preset targets --json out.jsonl --plots plots
  python -m qutlass bench --shapes 16,4096,4096 --schemes w4a8 --all-tiles
  python -m qutlass bench --from out.jsonl --markdown
  python -m qutlass bench --compare before.jsonl after.jsonl
  python -m qutlass bench quant --help             quantization and packing
  python -m qutlass bench host --help              what a call costs the host
"""


class BenchError(Exception):
    """Something the person who runs the benchmark can put right."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, or show what was measured.

    Args:
        argv: Command line arguments; None: those of the process.

    Returns:
        0; 1 where a product failed, or --compare found one slower than the threshold; 2 where
        there was nothing to measure or to show.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(argv)
    try:
        _require("rich", *(["matplotlib"] if args.plots else []))
        if args.compare:
            return _compare(args)
        if args.source is not None:
            found, status = records.load(args.source), 0
            records.require_one_kind(found)
            if not args.summary and not args.markdown:
                for of_layer in records.by(found, lambda r: (r["N"], r["K"])).values():
                    _console().print(tables.points(of_layer).rich())
        else:
            found, status = _measure(args, argv)
        _show(args, found)
        return status
    except (BenchError, records.NoRecords) as error:
        print(f"qutlass bench: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m qutlass bench",
        description=__doc__.partition("\n\n")[0],
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to measure")
    what.add_argument(
        "--preset",
        choices=PRESETS,
        default="quick",
        help="shapes: a few (the default), all of a model's layers, or many M for cliffs",
    )
    what.add_argument(
        "--shapes", nargs="+", type=parse_shape, metavar="M,N,K", help="instead of a preset"
    )
    what.add_argument(
        "--schemes",
        nargs="+",
        choices=SCHEMES,
        default=list(SCHEMES),
        metavar="SCHEME",
        help=f"of {', '.join(SCHEMES)}; all by default",
    )
    what.add_argument(
        "--kinds",
        nargs="+",
        choices=KINDS,
        default=list(KINDS),
        help="the product alone (ideal), with quantization of the activations (actual), or both",
    )
    what.add_argument(
        "--peers",
        nargs="*",
        choices=PEERS,
        default=list(PEERS),
        metavar="PEER",
        help=f"of {', '.join(PEERS)}; all by default, --peers alone: none",
    )
    what.add_argument("--group", type=_positive(int), default=128, help="columns of one scale")
    what.add_argument("--zeros", action="store_true", help="with zero points on both sides")
    what.add_argument(
        "--all-tiles", action="store_true", help="time every legal row of the tile table too"
    )
    what.add_argument(
        "--seconds", type=_positive(float), default=0.1, help="for all samples of a call (0.1)"
    )
    show = parser.add_argument_group("what to show")
    show.add_argument("--json", type=Path, metavar="FILE", help="JSONL file to append records to")
    show.add_argument("--plots", type=Path, metavar="FOLDER", help="where SVG and PNG plots go")
    show.add_argument("--summary", action="store_true", help="leave out the tables of points")
    show.add_argument("--markdown", action="store_true", help="print the summary for a page")
    old = parser.add_argument_group("what was measured before")
    old.add_argument(
        "--from",
        nargs="*",
        type=Path,
        dest="source",
        metavar="FILE",
        help="show these records instead of measuring; needs no GPU",
    )
    old.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("BEFORE", "AFTER"),
        help="compare two files of records, point by point",
    )
    old.add_argument(
        "--threshold",
        type=_positive(float),
        default=1.08,
        help="exit with 1 if a point of AFTER takes more than this times BEFORE's (1.08)",
    )
    return parser


def _positive(kind: type) -> Any:
    def parse(text: str) -> Any:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
        return value

    parse.__name__ = kind.__name__  # argparse names it where the text is no number
    return parse


def _require(*modules: str) -> None:
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    if absent:
        raise BenchError(f'needs {", ".join(absent)}; install with: pip install "qutlass[bench]"')


def _console() -> Any:
    from rich.console import Console

    console = Console(highlight=False)
    # A log has no width of its own; keep the tables in one piece.
    return console if console.is_terminal else Console(width=200, highlight=False)


def _show(args: argparse.Namespace, found: Sequence[records.Record]) -> None:
    """The summary, and the plots."""
    console = _console()
    for sheet in tables.summary(found):
        if args.markdown:
            print(sheet.markdown())
        else:
            console.print(sheet.rich())
    line = tables.facts_line(found[-1])
    if args.markdown:
        print(line)
    else:
        console.print(line, style="dim", soft_wrap=True)
    if args.plots:
        written = plots.draw(found, args.plots)
        console.print(f"written: {', '.join(map(str, written))}", soft_wrap=True)


def _compare(args: argparse.Namespace) -> int:
    before, after = (records.load([path]) for path in args.compare)
    console = _console()
    gpus = [{r["gpu"] for r in run} for run in (before, after)]
    if gpus[0] != gpus[1]:
        names = " and ".join("/".join(sorted(names)) for names in gpus)
        console.print(f"[bold]These are not of one GPU: {names}.[/]")
    found = records.changes(before, after)
    ours = [change for change in found if change.after["kind"] != "peer"]
    if not ours:
        raise BenchError("the two files have no point in common")
    if not args.summary:
        console.print(tables.comparison(found, args.threshold).rich())
    console.print(tables.comparison_means(found).rich())
    slower = sum(change.ratio > args.threshold for change in ours)
    console.print(
        f"{slower} of {len(ours)} points slower by more than {args.threshold}x; "
        f"{len(before) + len(after) - 2 * len(found)} records stand in one file only"
    )
    return 1 if slower else 0


def _measure(args: argparse.Namespace, argv: Sequence[str]) -> tuple[list[records.Record], int]:
    """Run the benchmark, printing and writing as it goes."""
    import torch

    from ..timing import copy_bandwidth, environment
    from .measure import Bench, Gpu, Plan

    if not torch.cuda.is_available():
        raise BenchError("torch sees no CUDA GPU; --from shows what was measured elsewhere")
    if importlib.util.find_spec("triton") is None:
        raise BenchError("needs triton, which CUDA builds of torch bring: pip install triton")
    if not ops._gemm_tiles():
        raise BenchError("this build of qutlass is for the CPU only")
    shapes = args.shapes or PRESETS[args.preset]
    plan = Plan(
        shapes, args.schemes, args.kinds, args.peers, args.group, args.zeros, args.all_tiles
    )
    started = time.perf_counter()
    torch.manual_seed(0)
    # Capturing a graph collects garbage; what is loaded by now need not be looked at each time.
    gc.collect()
    gc.freeze()
    copy = copy_bandwidth()
    facts = environment()  # after the copy: the clocks of a busy GPU
    build = ops.build_info()
    facts |= {
        **ceilings(facts),
        "copy_GBps": copy / 1e9,
        "version": build["version"],
        "archs": build["archs"],
        "assume_sm": os.environ.get("QUTLASS_ASSUME_SM") or None,
        "seconds": args.seconds,
        "command": shlex.join(["python", "-m", "qutlass", "bench", *argv]),
    }
    console = _console()
    name = label(facts["gpu"], facts["sm"], facts["assume_sm"])
    console.print(f"{name}: {len(shapes)} shapes", style="bold")
    found: list[records.Record] = []
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
    with _progress(console) as (say, start, step):
        bench = Bench(plan, facts, Gpu(args.seconds), say, step)
        start(bench.steps())
        for of_layer in bench.run():
            found += of_layer
            if args.json:
                with args.json.open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps(record) + "\n" for record in of_layer)
            if of_layer and not args.summary and not args.markdown:
                console.print(tables.points(of_layer).rich())
    seconds = time.perf_counter() - started
    console.print(f"{len(found)} measurements in {seconds:.0f} s", style="dim")
    if not found:
        raise BenchError(f"nothing was measured at {len(by_layer(shapes))} (N, K)")
    return found, 1 if bench.failures else 0


class _progress:
    """A bar on a terminal; nothing in a log."""

    def __init__(self, console: Any) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed

        columns = (TextColumn("{task.description:<44}"), BarColumn(), MofNCompleteColumn())
        self._console = console
        self._bar = Progress(
            *columns, Elapsed(), console=console, transient=True, disable=not console.is_terminal
        )

    def __enter__(self) -> tuple[Any, Any, Any]:
        self._bar.start()
        task = self._bar.add_task("", total=None)

        def step(what: str) -> None:
            self._bar.update(task, description=what, advance=1)

        def say(text: str) -> None:
            self._console.print(text, markup=False, soft_wrap=True, style="dim")

        return say, lambda total: self._bar.update(task, total=total), step

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()


if __name__ == "__main__":
    sys.exit(main())
