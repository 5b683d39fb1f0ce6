# SPDX-License-Identifier: Apache-2.0
"""Measures which kernels are best on this GPU for the products of a model, and remembers.

The selection model of the library knows a GPU by half a dozen numbers; a card differs from its data
sheet, and layers differ from the shapes the model was made with. `tune` times the rows of the tile
table that can run a product, each with the splits of K that make sense, and keeps the best one of
each product in a file (see tuned.py), which the operators follow from then on. Nothing here runs
unasked.

Integer products have the same bits with every row. Products that sum floats (W4A16, W4A8 with float
group scales) are deterministic before and after, but another row may sum in another order: their
last bits may change when results are added, once.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import ops, tuned
from .nn import QuantLinear, Scheme, _padded, _why_left, is_linear
from .timing import bytes_of, copies_needed, glance, time_calls
from .tuned import Choice, Problem, Results, UnusableError

__all__ = ["MS", "Row", "Target", "TuneReport", "Weight", "find_best", "main", "measure", "tune"]

MS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
SPLITS = (0, 1, 2, 3, 4, 6, 8, 12, 16)  # 0: Stream-K
_WAVES = (
    4  # blocks for each multiprocessor up to which splitting K is tried; it is for filling GPUs
)
_HOPELESS = 2.0  # times the best quick sample: such a split is not raised further
_CLOSE = 1.35  # times the best quick sample: such rows are timed thoroughly
_FINALISTS = 8
_NOISE = 1.02  # a gain below this is none: the model's choice stays
_SECONDS = 0.03  # of samples of a finalist

Progress = Callable[[int, int, str], None]


class Weight(NamedTuple):
    """The part of a problem that a layer fixes."""

    op: str  # the kernel family
    N: int
    K: int
    group: int  # K where there are no groups


class Row(NamedTuple):
    """A row of the tile table and a split of K (0: Stream-K, see `explain`)."""

    index: int
    name: str
    split_k: int


# Microseconds of a problem on a row; roughly and soon, or thoroughly.
Sample = Callable[[Problem, Row, bool], float]


# --------------------------------------------------------------------------------------------------
# What to measure


def weight_of(n: int, k: int, scheme: str | Scheme) -> Weight:
    """What the layer `QuantLinear(k, n, scheme=scheme)` multiplies by."""
    scheme = Scheme.parse(scheme)
    padded, group = _padded(k, scheme)
    return Weight(_family(scheme, group), n, padded, group or padded)


def _family(scheme: Scheme, group: int | None) -> str:
    if scheme.weights == "int8":
        return "w8a8"
    if scheme.activations != "int8":
        return "w4a16" if scheme.activations == "bf16" else "w4a4"
    return "w4a8" if group is None else "w4a8_multiplier" if scheme.multipliers else "w4a8_group"


def weights_of_model(model: nn.Module, schemes: Sequence[str | Scheme] = ()) -> list[Weight]:
    """The weights of a model's quantized layers, or with schemes of its linear layers.

    Args:
        model: With layers of `qutlass.nn`, or any model with linear layers beside schemes.
        schemes: How linear layers that are not quantized would be.

    Raises:
        ValueError: There is no such layer.
    """
    found: dict[Weight, None] = {}
    for module in model.modules():
        if isinstance(module, QuantLinear):
            group = module.group_size
            found[
                Weight(
                    _family(module.scheme, group),
                    module.out_features,
                    module.padded_features,
                    group or module.padded_features,
                )
            ] = None
        elif is_linear(module) and not _why_left(module):
            n, k = module.weight.shape if isinstance(module, nn.Linear) else module.weight.T.shape
            found.update((weight_of(n, k, scheme), None) for scheme in schemes)
    if not found:
        raise ValueError(
            "tune: the model has no quantized layers; quantize it with qutlass.nn.quantize_model, "
            "or name schemes for its linear layers"
        )
    return list(found)


def model_of_config(config: Any) -> nn.Module:
    """A Hugging Face model without weights, on the meta device.

    Args:
        config: A `transformers.PretrainedConfig`, a folder with a config.json, that file, or what
            else `AutoConfig.from_pretrained` takes.

    Raises:
        ValueError: There is no such configuration, or transformers is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise ValueError(
            "tune: a Hugging Face configuration needs transformers: pip install transformers"
        ) from None
    if isinstance(config, (str, Path)):
        try:
            config = transformers.AutoConfig.from_pretrained(str(config))
        except (OSError, ValueError) as error:
            raise ValueError(f"tune: {error}") from None
    named = getattr(config, "architectures", None) or []
    kinds = [getattr(transformers, name) for name in named if hasattr(transformers, name)]
    with torch.device("meta"):
        return kinds[0](config) if kinds else transformers.AutoModel.from_config(config)


# --------------------------------------------------------------------------------------------------
# Which row is best


@dataclass(frozen=True)
class Target:
    """A GPU that rows are looked up for.

    Args:
        gpu: The model's name.
        device: Its index.
        sm: Look up the rows of this card instead (80, 86, 89, 90); there may be no GPU then.
    """

    gpu: str
    device: int = 0
    sm: int | None = None

    def model_row(self, problem: Problem) -> tuple[Row, int]:
        """What the selection model chooses, and how many multiprocessors there are.

        Raises:
            RuntimeError: No row runs the problem.
        """
        answer = ops._explain(
            problem.op,
            problem.M,
            problem.N,
            problem.K,
            problem.group,
            self.device,
            self.sm,
            ops._BY_MODEL,
        )
        return Row(answer["index"], answer["tile"], answer["split_k"]), answer["sm_count"]

    def rows(self, problem: Problem) -> list[Row]:
        """The rows that can run a problem, the splits of each tile in rising order.

        Raises:
            RuntimeError: No row runs the problem.
        """
        _, sm_count = self.model_row(problem)
        found = []
        for tile in tuned.table_rows():
            if tile["op"] != problem.op:
                continue
            tiles = -(-problem.M // tile["m"]) * -(-problem.N // tile["n"])
            for split in SPLITS:
                if split > 1 and tiles * split > _WAVES * sm_count:
                    break
                if ops._gemm_legal(
                    problem.op,
                    tile["index"],
                    split,
                    problem.M,
                    problem.N,
                    problem.K,
                    problem.group,
                    device=self.device,
                    sm=self.sm,
                ):
                    found.append(Row(tile["index"], tile["name"], split))
        return found


def find_best(problem: Problem, rows: Sequence[Row], model: Row, sample: Sample) -> Choice:
    """Time rows and choose.

    Every row gets a quick sample, but for larger splits of a tile whose last split was already
    hopeless and no better than the one before. The few that come close to the best are timed
    thoroughly, and beside them the model's choice, which stays where nothing beats it by more than
    the noise of such times.

    Args:
        problem: The product.
        rows: Rows that can run it, the splits of each tile in rising order.
        model: The selection model's choice.
        sample: Gives microseconds.
    """
    quick = {model: sample(problem, model, False)}
    done: int | None = None  # the tile whose larger splits are left out
    before: tuple[int, float] | None = None  # tile and time of the last row
    for row in rows:
        if row.index == done:
            continue
        if row not in quick:
            quick[row] = sample(problem, row, False)
        us = quick[row]
        rising = before is not None and before[0] == row.index and us >= before[1]
        if rising and us > _HOPELESS * min(quick.values()):
            done = row.index
        before = (row.index, us)

    close = _CLOSE * min(quick.values())
    finalists = sorted((row for row in quick if quick[row] <= close), key=quick.__getitem__)
    times = {row: sample(problem, row, True) for row in {*finalists[:_FINALISTS], model}}
    best = min(times, key=lambda row: (times[row], row))
    if times[model] <= _NOISE * times[best]:
        best = model
    return Choice(
        problem,
        best.name,
        best.split_k,
        round(times[best], 3),
        model.name,
        model.split_k,
        round(times[model], 3),
    )


# --------------------------------------------------------------------------------------------------
# The clock


class GpuSample:
    """Times rows on the current CUDA device as bench/ does, see timing.py.

    Operands are random over their whole range and symmetric, as zero points and a bias change next
    to nothing in which row is best. Those of the last problem are kept, the weights also for the
    next M.
    """

    def __init__(self) -> None:
        self._weight: Weight | None = None
        self._weights: list[dict[str, Tensor]] = []
        self._problem: Problem | None = None
        self._copies: list[tuple[Tensor | None, ...]] = []
        # A GPU that has idled runs its first milliseconds at a lower clock.
        square = torch.ones(4096, 4096, device="cuda", dtype=torch.bfloat16)
        time_calls(lambda operands: torch.mm(*operands), [(square, square)] * 2)

    def __call__(self, problem: Problem, row: Row, thorough: bool) -> float:
        if problem != self._problem:
            self._prepare(problem)
        run = torch.ops.qutlass._gemm_with_tile.default

        def call(operands: tuple[Tensor | None, ...]) -> Tensor:
            return run(problem.op, row.index, row.split_k, *operands)

        if thorough:
            return time_calls(call, self._copies, seconds=_SECONDS).us
        return glance(call, self._copies)

    def _prepare(self, problem: Problem) -> None:
        self._problem, self._copies = None, []
        weight = Weight(problem.op, problem.N, problem.K, problem.group)
        if weight != self._weight:
            self._weight, self._weights = None, []
            first = _make_weight(weight)
            count = copies_needed(bytes_of(first.values()))
            self._weights = [first, *(_make_weight(weight) for _ in range(count - 1))]
            self._weight = weight
        a, a_scale = _make_activations(problem)
        moved = bytes_of([a, a_scale, *self._weights[0].values()]) + 2 * problem.M * problem.N
        for index, b in enumerate(self._weights[: copies_needed(moved)]):
            if index:
                a, a_scale = _make_activations(problem)
            self._copies.append(
                (a, b["b"], a_scale, b["b_scale"], None, None, None, None, b.get("b_multiplier"))
            )
        self._problem = problem


def _make_weight(weight: Weight) -> dict[str, Tensor]:
    op, n, k, group = weight
    groups = (n, k // group)
    if op == "w8a8":
        b = torch.randint(-128, 128, (n, k), dtype=torch.int8, device="cuda")
    else:
        b = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, device="cuda")
    grouped = op in ("w4a16", "w4a8_group")
    # Scales in the dtypes that layers keep them in.
    scale = torch.rand(groups if grouped else (n,), device="cuda") * 0.01 + 0.001
    made = {"b": b, "b_scale": scale.bfloat16() if grouped and group < k else scale}
    if op == "w4a8_multiplier":
        made["b_multiplier"] = torch.randint(1, 16, groups, dtype=torch.uint8, device="cuda")
    return made


def _make_activations(problem: Problem) -> tuple[Tensor, Tensor | None]:
    m, k = problem.M, problem.K
    if problem.op == "w4a16":
        return torch.randn(m, k, device="cuda", dtype=torch.bfloat16), None
    scale = torch.rand(m, device="cuda") * 0.01 + 0.001
    if problem.op == "w4a4":
        return torch.randint(0, 256, (m, k // 2), dtype=torch.uint8, device="cuda"), scale
    return torch.randint(-128, 128, (m, k), dtype=torch.int8, device="cuda"), scale


# --------------------------------------------------------------------------------------------------
# The run


@dataclass
class TuneReport:
    """What `tune` did.

    Attributes:
        gpu: The GPU's model.
        path: The file the choices are in.
        choices: Those of the problems that were asked for, measured now or before.
        measured: How many were measured now.
        failed: Problems that could not be measured, and why.
    """

    gpu: str
    path: Path
    choices: list[Choice] = field(default_factory=list)
    measured: int = 0
    failed: dict[Problem, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.gpu}: {self.path}", *table_of(self.choices)]
        if self.choices:
            gain = torch.tensor([choice.gain for choice in self.choices]).log().mean().exp()
            better = sum(choice.gain > 1 for choice in self.choices)
            lines.append(
                f"{len(self.choices)} products, {self.measured} measured now; {better} run better "
                f"than as the model chose, all together {float(gain):.3f} times as fast"
            )
        lines += [f"not measured: {_words(p)}: {why}" for p, why in self.failed.items()]
        return "\n".join(lines)


def _words(problem: Problem) -> str:
    group = f" group={problem.group}" if problem.group != problem.K else ""
    return f"{problem.op} M={problem.M} N={problem.N} K={problem.K}{group}"


def table_of(choices: Iterable[Choice]) -> list[str]:
    """Choices as lines of a table."""
    head = ["op", "M", "N", "K", "group", "tile", "us", "model's tile", "us", "gain"]
    rows = [head]
    for choice in choices:
        p = choice.problem
        rows.append(
            [
                p.op,
                str(p.M),
                str(p.N),
                str(p.K),
                "-" if p.group == p.K else str(p.group),
                f"{choice.tile} x{choice.split_k}",
                f"{choice.us:.2f}",
                f"{choice.model_tile} x{choice.model_split_k}" if choice.gain != 1 else "the same",
                f"{choice.model_us:.2f}",
                f"{choice.gain:.2f}",
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    left = (0, 5, 7)
    return [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def measure(
    problems: Sequence[Problem],
    target: Target,
    path: Path,
    sample: Callable[[], Sample],
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> TuneReport:
    """Measure problems and keep their choices in a file, which is written after each of them.

    Args:
        problems: In the order to measure them in.
        target: The GPU.
        path: The file. What it holds already is not measured again; one that cannot be used is
            written anew.
        sample: Makes the clock, once, if there is anything to measure.
        force: Measure also what is there.
        progress: Called as progress(done, total, what) before each measurement and at the end.

    Raises:
        OSError: The file cannot be written.
    """
    report = TuneReport(target.gpu, path)

    def stored() -> Results:
        # Read again each time: another process may tune other layers at the same time.
        try:
            found = Results.load(path)
        except (FileNotFoundError, UnusableError):
            return Results(target.gpu)
        return found if found.gpu == target.gpu else Results(target.gpu)

    known = stored().choices
    missing = [problem for problem in problems if force or problem not in known]
    clock = sample() if missing else None
    for done, problem in enumerate(missing):
        if progress is not None:
            progress(done, len(missing), _words(problem))
        try:
            model, _ = target.model_row(problem)
            choice = find_best(problem, target.rows(problem), model, clock)
        except (RuntimeError, ValueError) as error:  # no row, or out of memory
            report.failed[problem] = next(iter(str(error).splitlines()), type(error).__name__)
            continue
        results = stored()
        results.add([choice])
        results.save(path)
        report.measured += 1
    if progress is not None:
        progress(len(missing), len(missing), "")
    known = stored().choices
    report.choices = [known[problem] for problem in problems if problem in known]
    return report


def tune(
    model: Any = None,
    *,
    scheme: str | Scheme | Sequence[str | Scheme] = (),
    shapes: Iterable[tuple[int, int]] = (),
    ms: Sequence[int] = MS,
    device: torch.device | str | int | None = None,
    force: bool = False,
    progress: bool | Progress = True,
) -> TuneReport:
    """Measure which kernels are best for a model's products on this GPU, and use them from now on.

    The results are kept in a file for this GPU model in the user's cache (see tuned.py for where),
    written after each product: a run that was stopped goes on where it was, and one for another
    model adds to it. Every process then follows it, unless QUTLASS_TUNED=0 is in its environment.

    For a number of tokens M that was not measured, the choice for the next larger one that was is
    used if it is at most 2 M or gives as many tiles; beyond the largest, up to twice that, the
    largest's. Elsewhere the selection model chooses.

    Args:
        model: A model with layers of `qutlass.nn`; or with `scheme` any model with linear layers,
            or the `PretrainedConfig`, folder or config.json of a Hugging Face model, whose weights
            are not loaded.
        scheme: How linear layers that are not quantized yet, and `shapes`, would be: one or more of
            `qutlass.nn.Scheme` or their names.
        shapes: (N, K), output and input features, of more layers.
        ms: Numbers of tokens M.
        device: A CUDA device. None: the current one.
        force: Measure again what the file has already.
        progress: Whether to show it on stderr, as a bar where rich is installed; or a function,
            called as progress(done, total, what).

    Returns:
        The choices, their times in microseconds beside those of the model's choices, and where they
        are kept; `str()` of it is a table.

    Raises:
        ValueError: Nothing to measure, or a shape, M or scheme that is not taken.
        RuntimeError: There is no GPU, the build has no CUDA kernels, or QUTLASS_ASSUME_SM is set,
            with which another card's kernels would be measured.
        OSError: The file cannot be written.

    Example:
        >>> tune(shapes=[(4096, 4096)], scheme="w4a16_g128", ms=[1, 16])  # doctest: +SKIP
    """
    problems = _problems(model, scheme, shapes, ms)
    if not ops.build_info()["cuda"] or not torch.cuda.is_available():
        raise RuntimeError(
            "tune: there is no CUDA device here that this build of qutlass runs on "
            "(`python -m qutlass doctor` says why)"
        )
    assumed = ops._assumption()
    if assumed["sm"] or assumed["error"]:
        raise RuntimeError("tune: QUTLASS_ASSUME_SM is set; results are of the GPU that is there")
    chosen = torch.device("cuda" if device is None else device)
    if chosen.type != "cuda":
        raise ValueError(f"tune: device must be a CUDA device, got {chosen}")
    with torch.cuda.device(chosen), torch.no_grad():
        index = torch.cuda.current_device()
        target = Target(torch.cuda.get_device_name(index), index)
        tuned.load_for(target.gpu)  # warns of a file that is about to be replaced
        path = tuned.path_for(target.gpu)
        with _shown(progress) as show:
            report = measure(problems, target, path, GpuSample, force=force, progress=show)
        if tuned.in_use() and report.choices:
            Results.load(path).hand_over(index)
    return report


def _problems(
    model: Any,
    scheme: str | Scheme | Sequence[str | Scheme],
    shapes: Iterable[tuple[int, int]],
    ms: Sequence[int],
) -> list[Problem]:
    """What is asked for, each once, the Ms of one weight together."""
    schemes = [scheme] if isinstance(scheme, (str, Scheme)) else list(scheme)
    shapes = list(shapes)
    if shapes and not schemes:
        raise ValueError("tune: shapes need a scheme, e.g. scheme='w4a16_g128'")
    for shape in shapes:
        if len(shape) != 2 or not all(isinstance(size, int) and size >= 1 for size in shape):
            raise ValueError(f"tune: a shape is (N, K), both at least 1, got {shape}")
    if not ms or not all(isinstance(m, int) and m >= 1 for m in ms):
        raise ValueError(f"tune: ms must be integers of at least 1, got {ms}")
    weights = [weight_of(n, k, scheme) for scheme in schemes for n, k in shapes]
    if model is not None:
        if not isinstance(model, nn.Module):
            if not schemes:
                raise ValueError("tune: a configuration needs a scheme, e.g. scheme='w4a16_g128'")
            model = model_of_config(model)
        weights += weights_of_model(model, schemes)
    if not weights:
        raise ValueError("tune: name a model, or shapes and a scheme")
    return [
        Problem(weight.op, weight.N, weight.K, weight.group, m)
        for weight in dict.fromkeys(weights)
        for m in sorted(set(ms))
    ]


@contextlib.contextmanager
def _shown(progress: bool | Progress) -> Iterator[Progress | None]:
    """What reports progress: a bar on a terminal where rich is installed, else a line each."""
    if not isinstance(progress, bool):
        yield progress
        return
    if not progress:
        yield None
        return
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
    except ImportError:
        console = None
    if console is None or not console.is_terminal:

        def line(done: int, total: int, what: str) -> None:
            if what:
                print(f"[{done + 1}/{total}] {what}", file=sys.stderr, flush=True)

        yield line
        return
    columns = (
        TextColumn("tuning"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Bar(*columns, console=console) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, what: bar.update(
            task, completed=done, total=total, description=what
        )


# --------------------------------------------------------------------------------------------------
# The command


def _shape(text: str) -> tuple[int, int]:
    try:
        n, k = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"a shape is N,K, got {text!r}") from None
    return n, k


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m qutlass tune",
        description="Measure which kernels are best for a model's products on this GPU, and use "
        "them from now on.",
        epilog="Results are kept for each GPU model in $QUTLASS_CACHE_DIR, else "
        "$XDG_CACHE_HOME/qutlass, else ~/.cache/qutlass. QUTLASS_TUNED=0 turns their use off.",
    )
    parser.add_argument(
        "model", nargs="?", help="a Hugging Face model's folder, config.json or name"
    )
    parser.add_argument(
        "--scheme", nargs="+", default=[], metavar="S", help="e.g. w8a8 w4a16_g128 w4a8_g128_mul"
    )
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=_shape,
        default=[],
        metavar="N,K",
        help="output and input features of layers",
    )
    parser.add_argument(
        "--m",
        nargs="+",
        type=int,
        default=list(MS),
        metavar="M",
        help="numbers of tokens (default: powers of two up to 4096)",
    )
    parser.add_argument("--device", help="e.g. cuda:1")
    parser.add_argument("--force", action="store_true", help="measure again what is there already")
    kept = parser.add_argument_group("kept results").add_mutually_exclusive_group()
    kept.add_argument("--show", action="store_true", help="print them")
    kept.add_argument("--clear", action="store_true", help="remove them")
    kept.add_argument(
        "--merge",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="put files of one GPU model together; of two choices the last file's holds",
    )
    parser.add_argument("--gpu", metavar="NAME", help="with --show, --clear: of this model only")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="with --merge: where to (default: into this user's results of that GPU)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Its arguments; None: those of the process.

    Returns:
        0; 1 where a product could not be measured; 2 where nothing could be done; 130 where it was
        interrupted.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    if args.gpu and not (args.show or args.clear):
        parser.error("--gpu goes with --show or --clear")
    if args.output and not args.merge:
        parser.error("-o goes with --merge")
    try:
        if args.show:
            return _show(args.gpu)
        if args.clear:
            return _clear(args.gpu)
        if args.merge:
            return _merge(args.merge, args.output)
        report = tune(
            args.model,
            scheme=args.scheme,
            shapes=args.shapes,
            ms=args.m,
            device=args.device,
            force=args.force,
        )
    except KeyboardInterrupt:
        print("\nstopped; what was measured is kept, and the next run goes on", file=sys.stderr)
        return 130
    except (ValueError, RuntimeError, OSError, UnusableError) as error:
        print(error, file=sys.stderr)
        return 2
    print(report)
    return 1 if report.failed else 0


def _files(gpu: str | None) -> list[Path]:
    files = tuned.stored() if gpu is None else [tuned.path_for(gpu)]
    return [path for path in files if path.is_file()]


def _show(gpu: str | None) -> int:
    files = _files(gpu)
    for path in files:
        try:
            results = Results.load(path)
        except UnusableError as error:
            print(f"{path}: not used: {error}")
            continue
        print(f"{results.gpu}: {path}")
        print("\n".join(table_of(choice for _, choice in sorted(results.choices.items()))))
    if not files:
        print(f"no results in {tuned.cache_dir()}")
    return 0


def _clear(gpu: str | None) -> int:
    for path in _files(gpu):
        path.unlink()
        print(f"removed {path}")
    return 0


def _merge(files: Sequence[Path], output: Path | None) -> int:
    merged: Results | None = None
    for path in files:
        try:
            results = Results.load(path)
        except (FileNotFoundError, UnusableError) as error:
            raise ValueError(f"{path}: {error}") from None
        if merged is None:
            merged = Results(results.gpu)
        if results.gpu != merged.gpu:
            raise ValueError(f"{path} was measured on {results.gpu}, {files[0]} on {merged.gpu}")
        merged.add(results.choices.values())
    assert merged is not None  # argparse sees to one file at least
    if output is None:
        output = tuned.path_for(merged.gpu)
        into = tuned.load_for(merged.gpu) or Results(merged.gpu)
        into.add(merged.choices.values())
        merged = into
    merged.save(output)
    print(f"{output}: {len(merged.choices)} choices for {merged.gpu}")
    return 0
