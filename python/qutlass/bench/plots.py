# SPDX-License-Identifier: Apache-2.0
"""Plots of records, as SVG and PNG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .gpu import label
from .records import BASELINE, Record, by, geomean, mean_by_m, titles


class Look(NamedTuple):
    colour: str
    marker: str
    dashes: str | tuple = "-"
    width: float = 1.8


# Okabe and Ito's palette, which colour-blind people can tell apart; markers for those who print.
_LOOKS = {
    "w8a8": Look("#0072B2", "s"),
    "w4a8": Look("#D55E00", "o"),
    "w4a8_multiplier": Look("#E69F00", "D"),
    "w4a8_group": Look("#CC79A7", "v"),
    "w4a16": Look("#009E73", "^"),
    "w4a4": Look("#56B4E9", "P"),
    BASELINE: Look("#212529", "", (0, (4, 2)), 1.5),
}
_INK, _PALE, _GRID = "#1f2933", "#868e96", "#e9ecef"
_STYLE = {
    "font.size": 9,
    "axes.edgecolor": "#adb5bd",
    "axes.labelcolor": _INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.markersize": 4,
    "figure.facecolor": "white",
    "svg.fonttype": "none",
    "svg.hashsalt": "qutlass",
}
_LABEL_POINTS = 8.5  # font size of direct labels; also the least distance between two, times 1.25


def draw(records: Sequence[Record], folder: Path) -> list[Path]:
    """Draw what the records can show.

    Args:
        records: Of one GPU.
        folder: Made if it is not there.

    Returns:
        The files: `speedup`, `throughput`, `floor` and `roofline`, an SVG and a PNG each.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    records = [r for r in records if r["kind"] != "tile"]
    written = []
    with plt.rc_context(_STYLE):
        for name, make in _FIGURES.items():
            figure = make(plt, records)
            if figure is None:
                continue
            for suffix in ("svg", "png"):
                path = folder / f"{name}.{suffix}"
                metadata = {"Date": None} if suffix == "svg" else None
                figure.savefig(path, dpi=160, metadata=metadata)
                written.append(path)
            plt.close(figure)
    return written


def _look(scheme: str) -> Look:
    return _LOOKS.get(scheme, Look(_PALE, "", (0, (1, 1.5)), 1.3))


def _head(figure: Any, text: str, records: Sequence[Record]) -> None:
    record = records[-1]
    figure.suptitle(
        f"{text}: {label(record['gpu'], record['sm'], record['assume_sm'])}",
        x=0.01,
        ha="left",
        fontsize=11,
        fontweight="bold",
    )


def _tokens_axis(axes: Any, tokens: Sequence[int]) -> None:
    """M, in powers of two, as people write it."""
    axes.set_xscale("log", base=2)
    ticks = [m for m in (1, 4, 16, 64, 256, 1024, 4096, 16384) if min(tokens) <= m <= max(tokens)]
    ticks = ticks if len(ticks) > 1 else sorted({min(tokens), max(tokens)})
    axes.set_xticks(ticks, [f"{m // 1024}k" if m % 1024 == 0 else str(m) for m in ticks])
    axes.minorticks_off()


def _plain(value: float, _: Any = None) -> str:
    return f"{value:g}"


def _line(axes: Any, scheme: str, by_m: dict[int, float], **options: Any) -> None:
    look = _look(scheme)
    style = {
        "color": look.colour,
        "marker": look.marker,
        "linestyle": look.dashes,
        "linewidth": look.width,
        "markeredgecolor": "white",
        "markeredgewidth": 0.5,
    }
    axes.plot(list(by_m), list(by_m.values()), **(style | options))


def _label_ends(figure: Any, axes: Any, ends: dict[str, tuple[float, str, str]]) -> None:
    """Write names behind the ends of lines, moved apart where they would overlap.

    Args:
        figure: Has its final size and limits.
        axes: Where the lines are.
        ends: By scheme the value at the right end, the text and the colour.
    """
    figure.draw_without_rendering()  # settles limits and layout
    to_points = 72 / figure.dpi
    right = axes.get_xlim()[1]
    height = axes.bbox.height * to_points
    bottom = axes.bbox.y0 * to_points
    order = sorted(ends, key=lambda scheme: ends[scheme][0])
    at = [axes.transData.transform((right, ends[s][0]))[1] * to_points - bottom for s in order]
    for scheme, actual, y in zip(order, at, spread(at, _LABEL_POINTS * 1.25, height), strict=True):
        value, text, colour = ends[scheme]
        axes.annotate(
            text,
            (1, value),
            xycoords=("axes fraction", "data"),
            xytext=(6, y - actual),
            textcoords="offset points",
            va="center",
            fontsize=_LABEL_POINTS,
            color=colour,
            annotation_clip=False,
        )


def spread(wanted: Sequence[float], distance: float, height: float) -> list[float]:
    """Positions as near as they can be to the wanted ones, which ascend, but `distance` apart.

    Labels whose places would overlap form a block about the mean of where they wanted to be; a
    block that meets another joins it. Inside [0, height] as far as there is room.
    """
    blocks: list[tuple[list[float], float]] = []  # (offsets taken off, lowest position)

    def place(members: list[float]) -> float:
        low = sum(w - i * distance for i, w in enumerate(members)) / len(members)
        return max(0.0, min(low, height - (len(members) - 1) * distance))

    for position in wanted:
        members = [position]
        while blocks and place(members) < blocks[-1][1] + len(blocks[-1][0]) * distance:
            members = blocks.pop()[0] + members
        blocks.append((members, place(members)))
    return [low + i * distance for members, low in blocks for i in range(len(members))]


def _speedup(plt: Any, records: Sequence[Record]) -> Any:
    """Geometric mean over (N, K) of the speed-up over bf16, alone and with quantization."""
    means = mean_by_m([r for r in records if r["scheme"] != BASELINE], "x_bf16")
    if not means:
        return None
    names = titles(records)
    kinds = [kind for kind in dict.fromkeys(kind for _, kind in means) if kind != "peer"]
    kinds = kinds or ["peer"]
    figure, panels = plt.subplots(
        1,
        len(kinds),
        sharey=True,
        squeeze=False,
        figsize=(1.6 + 5.2 * len(kinds), 4.4),
        layout="constrained",
    )
    heads = {"ideal": "Product alone", "actual": "With quantization of the activations"}
    tokens = sorted({m for by_m in means.values() for m in by_m})
    layers = len({(r["N"], r["K"]) for r in records})
    ends: list[dict[str, tuple[float, str, str]]] = []
    for axes, kind in zip(panels[0], kinds, strict=True):
        # A scheme that quantizes nothing, and a peer's product, stand in every panel.
        lines = {
            scheme: by_m
            for (scheme, of), by_m in means.items()
            if of in (kind, "peer") or (of == "ideal" and (scheme, kind) not in means)
        }
        for scheme, by_m in lines.items():
            _line(axes, scheme, {m: mean for m, (mean, _) in by_m.items()})
        axes.axhline(1, color=_INK, linewidth=1.2, linestyle=(0, (4, 2)), zorder=1)
        _tokens_axis(axes, tokens)
        axes.set_title(heads.get(kind, kind))
        axes.set_xlabel("M, tokens")
        last = {
            scheme: (list(by_m.values())[-1][0], names[scheme], _look(scheme).colour)
            for scheme, by_m in lines.items()
            if max(by_m) == tokens[-1]
        }
        ends.append({**last, BASELINE: (1.0, "cuBLAS bf16", _INK)})
        for (
            scheme,
            by_m,
        ) in lines.items():  # one that stops before the others is named where it does
            m = max(by_m)
            if m != tokens[-1]:
                axes.annotate(
                    names[scheme],
                    (m, by_m[m][0]),
                    (4, -3),
                    textcoords="offset points",
                    va="top",
                    fontsize=7.5,
                    color=_look(scheme).colour,
                )
    panels[0][0].set_ylim(bottom=0)
    panels[0][0].set_ylabel("times as fast as cuBLAS bf16")
    over = f"geometric mean over {layers} (N, K)" if layers > 1 else _layer_name(records[-1])
    _head(figure, f"Speed-up over bf16, {over}", records)
    for axes, of_panel in zip(panels[0], ends, strict=True):
        _label_ends(figure, axes, of_panel)
    return figure


def _layer_name(record: Record) -> str:
    return f"N {record['N']}, K {record['K']}"


def _grid(plt: Any, count: int, width: float, height: float, **options: Any) -> tuple[Any, list]:
    """A figure of panels, those that are left over taken away."""
    columns = min(count, 4 if count > 6 else 3)
    rows = math.ceil(count / columns)
    figure, panels = plt.subplots(
        rows,
        columns,
        squeeze=False,
        figsize=(width * columns + 1.4, height * rows + 0.6),
        layout="constrained",
        **options,
    )
    flat = list(panels.flat)
    for axes in flat[count:]:
        axes.remove()
    for number, axes in enumerate(flat[:count]):
        if number + columns >= count:
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("M, tokens")
    return figure, flat[:count]


def _throughput(plt: Any, records: Sequence[Record]) -> Any:
    """TFLOP/s against M, a panel for each (N, K)."""
    shown = [r for r in records if r["kind"] == "ideal" or r["scheme"] == BASELINE]
    if not shown:
        return None
    names = titles(records)
    layers = by(shown, lambda r: (r["N"], r["K"]))
    figure, panels = _grid(plt, len(layers), 2.9, 2.7, sharex=True, sharey=True)
    tokens = sorted({r["M"] for r in shown})
    for axes, of_layer in zip(panels, layers.values(), strict=True):
        for scheme, line in by(of_layer, lambda r: r["scheme"]).items():
            line = sorted(line, key=lambda r: r["M"])
            by_m = {r["M"]: r["TOPS"] for r in line}
            _line(axes, scheme, by_m, markersize=3, linewidth=1.4, label=names[scheme])
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_plain)
        _tokens_axis(axes, tokens)
        axes.set_title(_layer_name(of_layer[0]))
    panels[0].set_ylabel("TFLOP/s or TOPS")
    _head(figure, "Throughput", records)
    # One list for all panels, from the quickest at the right edge down, as the lines lie there.
    last = {r["scheme"]: r["TOPS"] for r in shown if r["M"] == tokens[-1]}
    handles = dict(zip(*panels[0].get_legend_handles_labels()[::-1], strict=True))
    order = sorted(last, key=lambda scheme: -last[scheme])
    figure.legend(
        [handles[names[s]] for s in order if names[s] in handles],
        [names[s] for s in order if names[s] in handles],
        loc="outside right upper",
        frameon=False,
        labelcolor="linecolor",
    )
    return figure


def _floor(plt: Any, records: Sequence[Record]) -> Any:
    """Fraction of the floor against M: a panel for each scheme, a line for each (N, K)."""
    shown = [r for r in records if r["kind"] == "ideal" and r["of_floor"]]
    if not shown:
        return None
    names = titles(records)
    schemes = by(shown, lambda r: r["scheme"])
    figure, panels = _grid(plt, len(schemes), 3.4, 2.7, sharex=True, sharey=True)
    tokens = sorted({r["M"] for r in shown})
    for axes, (scheme, of_scheme) in zip(panels, schemes.items(), strict=True):
        lines = by(of_scheme, lambda r: (r["N"], r["K"]))
        for line in lines.values():
            line.sort(key=lambda r: r["M"])
            axes.plot(
                [r["M"] for r in line],
                [r["of_floor"] for r in line],
                color="#ced4da",
                linewidth=1,
                zorder=1,
            )
        means = {
            m: geomean(r["of_floor"] for r in of_m)
            for m, of_m in sorted(by(of_scheme, lambda r: r["M"]).items())
        }
        if len(lines) > 1:
            _line(axes, scheme, means, linewidth=2.2)
            worst = min(lines.values(), key=lambda line: geomean(r["of_floor"] for r in line))
            low = min(worst, key=lambda r: r["of_floor"])
            axes.annotate(
                f"{low['N']} x {low['K']}",
                (low["M"], low["of_floor"]),
                (4, -2),
                textcoords="offset points",
                va="top",
                fontsize=7,
                color=_PALE,
            )
        else:
            _line(axes, scheme, means)
        _tokens_axis(axes, tokens)
        axes.set_title(names[scheme], color=_look(scheme).colour)
        axes.axhline(1, color=_INK, linewidth=1, zorder=1)
    top = max(1.0, max(r["of_floor"] for r in shown))
    panels[0].set_ylim(0, top * 1.05)
    panels[0].set_ylabel("floor over time")
    source = records[-1]["ceiling_source"]
    against = f"ceilings {source}" if source else "of memory alone"
    lines = "; grey: each (N, K)" if len({(r["N"], r["K"]) for r in shown}) > 1 else ""
    _head(figure, f"Fraction of the floor ({against}{lines})", records)
    return figure


def _roofline(plt: Any, records: Sequence[Record]) -> Any:
    """Operations a second against operations a byte, under the roofs of memory and instructions."""
    shown = [r for r in records if r["kind"] == "ideal"]
    if not shown:
        return None
    facts = shown[-1]
    names = titles(records)
    figure, axes = plt.subplots(figsize=(7.6, 4.8), layout="constrained")
    axes.set_xscale("log")
    axes.set_yscale("log")
    bandwidth = facts["copy_GBps"] / 1e3  # TB/s: times operations a byte it is TOPS
    low = min(r["operations"] / r["bytes"] for r in shown) / 1.6
    high = max(r["operations"] / r["bytes"] for r in shown) * 1.6
    instructions = {r["instruction"] for r in shown} & set(facts["ceiling_TOPS"])
    rates = {kind: facts["ceiling_TOPS"][kind] for kind in sorted(instructions)}
    knee = max(rates.values()) / bandwidth if rates else high
    end = max(high, knee * 1.1)
    axes.plot([low, knee], [low * bandwidth, knee * bandwidth], color=_INK, linewidth=1.2)
    for kind, rate in rates.items():
        start = max(rate / bandwidth, low)
        axes.plot([start, end], [rate, rate], color=_INK, linewidth=1.2)
        axes.annotate(
            f"{kind}, {rate:.0f}",
            (1, rate),
            xycoords=("axes fraction", "data"),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            annotation_clip=False,
        )
    for scheme, points in by(shown, lambda r: r["scheme"]).items():
        look = _look(scheme)
        axes.scatter(
            [r["operations"] / r["bytes"] for r in points],
            [r["TOPS"] for r in points],
            s=22,
            color=look.colour,
            marker=look.marker,
            edgecolor="white",
            linewidth=0.5,
            label=names[scheme],
            zorder=3,
        )
    axes.set_xlim(low, end)
    axes.xaxis.set_major_formatter(_plain)
    axes.yaxis.set_major_formatter(_plain)
    axes.minorticks_off()
    axes.set_xlabel("operations a byte that has to be moved")
    axes.set_ylabel("TOPS")
    axes.legend(loc="lower right", frameon=False, fontsize=8, handletextpad=0.2)
    source = f" (ceilings {facts['ceiling_source']})" if rates else ""
    _head(figure, f"Roofline{source}", records)
    figure.draw_without_rendering()
    # Beside the slope, turned as it is turned on the page.
    start, stop = (axes.transData.transform((x, x * bandwidth)) for x in (low, low * 10))
    angle = math.degrees(math.atan2(stop[1] - start[1], stop[0] - start[0]))
    axes.annotate(
        f"copy, {bandwidth:.2f} TB/s",
        (low * 1.5, low * 1.5 * bandwidth),
        (-2, 4),
        textcoords="offset points",
        rotation=angle,
        rotation_mode="anchor",
        fontsize=8,
    )
    return figure


_FIGURES: dict[str, Callable[[Any, Sequence[Record]], Any]] = {
    "speedup": _speedup,
    "throughput": _throughput,
    "floor": _floor,
    "roofline": _roofline,
}
