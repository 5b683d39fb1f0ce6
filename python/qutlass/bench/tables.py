# SPDX-License-Identifier: Apache-2.0
"""Records as tables, for the terminal and for a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .gpu import label
from .records import (
    BASELINE,
    Change,
    Record,
    by,
    cliffs,
    geomean,
    mean_by_m,
    regrets,
    titles,
)

_KIND = {"ideal": "", "peer": "", "actual": " + quantization", "tile": ""}


@dataclass
class Sheet:
    """A table: the first `text` columns hold words, the others numbers."""

    title: str
    columns: list[str]
    text: int = 1
    rows: list[list[str]] = field(default_factory=list)
    styles: list[str] = field(default_factory=list)  # of rows, as rich understands them
    notes: list[str] = field(default_factory=list)

    def add(self, *cells: str, style: str = "") -> None:
        self.rows.append(list(cells))
        self.styles.append(style)

    def rich(self) -> Any:
        """As a `rich.table.Table`."""
        from rich import box
        from rich.table import Table

        table = Table(
            title=self.title,
            title_justify="left",
            title_style="bold",
            caption="\n".join(self.notes) or None,
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        for number, heading in enumerate(self.columns):
            table.add_column(
                heading, justify="left" if number < self.text else "right", no_wrap=True
            )
        for cells, style in zip(self.rows, self.styles, strict=True):
            table.add_row(*cells, style=style)
        return table

    def markdown(self) -> str:
        """As GitHub understands tables."""
        marks = ["---" if n < self.text else "---:" for n in range(len(self.columns))]
        lines = [f"**{self.title}**", "", _row(self.columns), _row(marks)]
        lines += [_row(cells) for cells in self.rows]
        lines += ["", *self.notes] if self.notes else []
        return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float | None, spec: str = ".2f") -> str:
    return "-" if value is None else format(value, spec)


def facts_line(record: Record) -> str:
    """What the measurements were made with, in a line."""
    known = [
        label(record["gpu"], record["sm"], record["assume_sm"]),
        f"driver {record['driver_version']}" if record.get("driver_version") else None,
        f"CUDA {record['cuda']}",
        f"torch {record['torch']}",
        f"SM clock {record['clocks_sm']}" if record.get("clocks_sm") else None,
        f"copy {record['copy_GBps'] / 1e3:.2f} TB/s",
        f"commit {record['commit']}" if record.get("commit") else None,
    ]
    return ", ".join(filter(None, known))


def ceilings_line(record: Record) -> str:
    """Against which rates floors are counted."""
    rates = record["ceiling_TOPS"]
    if not rates:
        return "Floors are those of memory alone: nobody has measured this GPU's instructions."
    listed = ", ".join(f"{kind} {rate:.0f}" for kind, rate in rates.items())
    return (
        f"Floor: the larger of bytes over the measured copy bandwidth and operations over the "
        f"instruction's rate ({listed} TOPS, {record['ceiling_source']})."
    )


def points(records: Sequence[Record]) -> Sheet:
    """All measurements of one (N, K), shape by shape."""
    n, k = records[0]["N"], records[0]["K"]
    columns = ["M", "what", "tile", "us", "spread", "TOPS", "GB/s", "of floor", "x bf16", "x peer"]
    with_regret = any(record.get("regret") for record in records)
    sheet = Sheet(f"N {n}, K {k}", columns + ["regret"] * with_regret, text=3)
    for m, of_shape in by(records, lambda r: r["M"]).items():
        first = True
        chosen = [r for r in of_shape if r["kind"] != "tile"]
        rows = sorted((r for r in of_shape if r["kind"] == "tile"), key=lambda r: r["us"])
        for r in chosen:
            sheet.add(*_point(r, str(m) if first else "", with_regret), style=_style(r))
            first = False
            for row in rows:
                if r["kind"] == "ideal" and row["scheme"] == r["scheme"]:
                    sheet.add(*_point(row, "", with_regret), style="dim")
    return sheet


def _point(r: Record, m: str, with_regret: bool) -> list[str]:
    tile = f"{r['tile']} x{r['split_k']}" if r.get("tile") else ""
    tile += ", tuned" if r.get("tuned") else ""
    peer = f"{r['x_peer']:.2f} {r['best_peer']}" if r.get("x_peer") else "-"
    cells = [
        m,
        "" if r["kind"] == "tile" else r["title"] + _KIND.get(r["kind"], f", {r['kind']}"),
        tile if r["kind"] in ("ideal", "tile") else "",
        f"{r['us']:.2f}",
        f"{r['spread']:.1%}",
        f"{r['TOPS']:.1f}",
        f"{r['GBps']:.0f}",
        _number(r["of_floor"]),
        _number(r["x_bf16"]),
        peer,
    ]
    return cells + [_number(r.get("regret"), ".3f")] * with_regret


def _style(r: Record) -> str:
    if r["kind"] == "peer":
        return "cyan"
    return "" if r["kind"] == "ideal" else "dim"


def summary(records: Sequence[Record]) -> Iterator[Sheet]:
    """Speed-up, fraction of the floor, cliffs and regret."""
    yield _by_m(
        records,
        "x_bf16",
        "x cuBLAS bf16",
        skip=(BASELINE,),
        notes=["+ quantization: bfloat16 activations, quantized by the call."],
    )
    floors = _by_m(
        [r for r in records if r["kind"] != "actual"],
        "of_floor",
        "Fraction of the floor",
        notes=[ceilings_line(records[-1])],
    )
    if floors.rows:
        yield floors
    names = titles(records)
    found = cliffs(records)
    if found:
        sheet = Sheet(
            "Steepest rise from one M to the next beyond the floor's",
            ["scheme", "N, K", "M", "time", "floor", "beyond"],
            text=3,
        )
        for c in found:
            sheet.add(
                names[c.scheme],
                f"{c.n}, {c.k}",
                f"{c.low} to {c.high}",
                f"{c.rise:.2f}x",
                f"{c.floor_rise:.2f}x",
                f"{c.excess:.2f}x",
                style="bold" if c.excess > 1.5 else "",
            )
        yield sheet
    losses = regrets(records)
    if losses:
        sheet = Sheet(
            "Regret: time of the chosen row over the best row's",
            ["scheme", "worst at M, N, K", "chosen there", "best there", "points", "mean", "worst"],
            text=4,
        )
        for loss in losses:
            w = loss.worst
            sheet.add(
                names[loss.scheme],
                f"{w['M']}, {w['N']}, {w['K']}",
                f"{w['tile']} x{w['split_k']}",
                loss.best_row,
                str(loss.points),
                f"{loss.mean:.3f}",
                f"{w['regret']:.3f}",
            )
        yield sheet


def _by_m(
    records: Sequence[Record],
    field_name: str,
    title: str,
    skip: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Sheet:
    means = mean_by_m([r for r in records if r["scheme"] not in skip], field_name)
    # Ours first, in the order of their kinds within a scheme.
    means = dict(sorted(means.items(), key=lambda item: item[0][1] == "peer"))
    names = titles(records)
    tokens = sorted({m for by_m in means.values() for m in by_m})
    counts = {count for by_m in means.values() for _, count in by_m.values()}
    most = max(counts, default=0)
    layers = f"geometric mean over {most} (N, K)" if most > 1 else "one (N, K)"
    sheet = Sheet(f"{title}, {layers}", ["M", *map(str, tokens)], notes=list(notes))
    partial = False
    for (scheme, kind), by_m in means.items():
        cells = []
        for m in tokens:
            mean, count = by_m.get(m, (None, most))
            partial |= count < most
            cells.append(_number(mean) + "*" * (count < most))
        style = _style({"kind": kind})
        sheet.add(names[scheme] + _KIND.get(kind, f", {kind}"), *cells, style=style)
    if partial:
        sheet.notes.append("* of fewer (N, K).")
    return sheet


def comparison(found: Sequence[Change], threshold: float, limit: int | None = None) -> Sheet:
    """Points of two runs, the most slowed first."""
    sheet = Sheet(
        "Time after over time before",
        ["what", "M, N, K", "before us", "after us", "ratio"],
        text=2,
    )
    ordered = sorted(found, key=lambda change: -change.ratio)
    for change in ordered[:limit]:
        r = change.after
        style = "cyan" if r["kind"] == "peer" else ""
        if r["kind"] != "peer" and change.ratio > threshold:
            style = "bold red"
        elif r["kind"] != "peer" and change.ratio < 1 / threshold:
            style = "green"
        tile = f" {r['tile']} x{r['split_k']}" if r["kind"] == "tile" else ""
        sheet.add(
            r["title"] + _KIND.get(r["kind"], f", {r['kind']}") + tile,
            f"{r['M']}, {r['N']}, {r['K']}",
            f"{change.before['us']:.2f}",
            f"{r['us']:.2f}",
            f"{change.ratio:.3f}",
            style=style,
        )
    if limit is not None and len(found) > limit:
        sheet.notes.append(f"{len(found) - limit} more points are not shown.")
    return sheet


def comparison_means(found: Sequence[Change]) -> Sheet:
    """Geometric means of the ratios, by scheme and over all; of peers apart, as a control."""
    sheet = Sheet("Geometric means", ["what", "points", "ratio", "worst"])
    ours = [change for change in found if change.after["kind"] != "peer"]
    peers = [change for change in found if change.after["kind"] == "peer"]
    groups = by(ours, lambda c: c.after["title"] + _KIND.get(c.after["kind"], ""))
    for name, group in [*groups.items(), ("all of ours", ours), ("peers, as a control", peers)]:
        if group:
            ratios = [change.ratio for change in group]
            sheet.add(name, str(len(ratios)), f"{geomean(ratios):.3f}", f"{max(ratios):.3f}")
    return sheet
