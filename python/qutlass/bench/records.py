# SPDX-License-Identifier: Apache-2.0
"""What follows from records: ratios within a run, means over shapes, cliffs, regret, and what
changed from one run to another. Nothing here needs a GPU, or torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

Record = dict[str, Any]
BASELINE = "cublas_bf16"


class NoRecords(Exception):
    """A file that holds no records of this benchmark; the message says which and why."""


def load(paths: Iterable[Path]) -> list[Record]:
    """Read records of products; where a point was measured twice, the later one counts.

    Raises:
        NoRecords: A file cannot be read, or holds something else.
    """
    records: dict[tuple, Record] = {}
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise NoRecords(f"{path}: {error}") from None
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                records[(*key(record), record["zeros"])] = record
            except (ValueError, KeyError, TypeError):
                raise NoRecords(
                    f"{path}, line {number}: not a record of `python -m qutlass bench`"
                ) from None
    if not records:
        raise NoRecords("there are no records")
    return list(records.values())


def require_one_kind(records: Sequence[Record]) -> None:
    """Refuse records whose means would mix what differs.

    Raises:
        NoRecords: They are of several GPUs, group sizes, or with and without zero points.
    """
    for name in ("gpu", "assume_sm", "group", "zeros"):
        # Where there are no groups, any size of them will do.
        values = {
            str(record[name]) for record in records if name != "group" or record[name] is not None
        }
        if len(values) > 1:
            listed = ", ".join(sorted(values))
            raise NoRecords(f"the records differ in {name} ({listed}): show one at a time")


def key(record: Record) -> tuple:
    """What makes two records measurements of the same thing."""
    point = tuple(record[name] for name in ("scheme", "M", "N", "K", "group", "kind"))
    return (*point, record["tile"], record["split_k"]) if record["kind"] == "tile" else point


def geomean(values: Iterable[float]) -> float | None:
    """The geometric mean, None of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else None


def relate(records: Sequence[Record]) -> None:
    """Add to the records of one shape how they stand to each other.

    `x_bf16`: cuBLAS's time in bf16 over the record's. `best_peer`, `x_peer`: the quickest of the
    peers beside the scheme, and its time over the record's. `regret`: the record's time over that
    of the best row of the tile table, where rows were timed.
    """
    baseline = next((r["us"] for r in records if r["scheme"] == BASELINE), None)
    for record in records:
        record["x_bf16"] = baseline / record["us"] if baseline else None
        record["best_peer"] = record["x_peer"] = record["regret"] = None
        if record["kind"] == "peer":
            continue
        rivals = [r for r in records if record["scheme"] in r.get("beside", ())]
        if rivals:
            best = min(rivals, key=lambda r: r["us"])
            record["best_peer"] = best["scheme"]
            record["x_peer"] = best["us"] / record["us"]
        if record["kind"] in ("ideal", "tile"):
            same = [r for r in records if r["scheme"] == record["scheme"]]
            if any(r["kind"] == "tile" for r in same):
                best_us = min(r["us"] for r in same if r["kind"] in ("ideal", "tile"))
                record["regret"] = record["us"] / best_us


def mean_by_m(
    records: Iterable[Record], field: str
) -> dict[tuple[str, str], dict[int, tuple[float, int]]]:
    """The geometric mean of a field over (N, K), and how many: by (scheme, kind), then by M.

    In the order in which schemes came; M ascend. Records without a value do not count.
    """
    values: dict[tuple[str, str], dict[int, list[float]]] = {}
    for record in records:
        if record["kind"] != "tile" and record.get(field):
            by_m = values.setdefault((record["scheme"], record["kind"]), {})
            by_m.setdefault(record["M"], []).append(record[field])
    return {
        series: {m: (geomean(by_m[m]), len(by_m[m])) for m in sorted(by_m)}
        for series, by_m in values.items()
    }


def titles(records: Iterable[Record]) -> dict[str, str]:
    """What people call each scheme and peer, in the order they came."""
    return {record["scheme"]: record["title"] for record in records}


@dataclass(frozen=True)
class Cliff:
    """A rise of the time from one M to the next, beyond what the floor rises."""

    scheme: str
    n: int
    k: int
    low: int  # M
    high: int
    rise: float
    floor_rise: float

    @property
    def excess(self) -> float:
        return self.rise / self.floor_rise


def cliffs(records: Iterable[Record]) -> list[Cliff]:
    """The steepest rise of each scheme, without the quantization of activations."""
    lines: dict[tuple[str, int, int], list[Record]] = {}
    for r in records:
        if r["kind"] == "ideal" and r["floor_us"]:
            lines.setdefault((r["scheme"], r["N"], r["K"]), []).append(r)
    worst: dict[str, Cliff] = {}
    for (scheme, n, k), line in lines.items():
        line.sort(key=lambda r: r["M"])
        for a, b in pairwise(line):
            floor_rise = b["floor_us"] / a["floor_us"]
            cliff = Cliff(scheme, n, k, a["M"], b["M"], b["us"] / a["us"], floor_rise)
            if scheme not in worst or cliff.excess > worst[scheme].excess:
                worst[scheme] = cliff
    return list(worst.values())


@dataclass(frozen=True)
class Regret:
    """How much slower the chosen rows of a scheme are than the best ones."""

    scheme: str
    points: int
    mean: float  # geometric
    worst: Record
    best_row: str  # at the worst


def regrets(records: Sequence[Record]) -> list[Regret]:
    """By scheme; of runs that timed all rows."""
    chosen: dict[str, list[Record]] = {}
    for r in records:
        if r["kind"] == "ideal" and r.get("regret"):
            chosen.setdefault(r["scheme"], []).append(r)
    found = []
    for scheme, points in chosen.items():
        worst = max(points, key=lambda r: r["regret"])
        rows = [
            r
            for r in records
            if r["kind"] == "tile" and all(r[x] == worst[x] for x in ("scheme", "M", "N", "K"))
        ]
        best = min([worst, *rows], key=lambda r: r["us"])
        mean = geomean(r["regret"] for r in points)
        name = f"{best['tile']} x{best['split_k']}"
        found.append(Regret(scheme, len(points), mean, worst, name))
    return found


@dataclass(frozen=True)
class Change:
    """One point of two runs."""

    before: Record
    after: Record

    @property
    def ratio(self) -> float:
        """Time after over time before: above 1 is slower."""
        return self.after["us"] / self.before["us"]


def changes(before: Iterable[Record], after: Iterable[Record]) -> list[Change]:
    """The points that both runs have."""

    def whole(record: Record) -> tuple:
        return (*key(record), record["zeros"])

    earlier = {whole(record): record for record in before}
    return [Change(earlier[whole(r)], r) for r in after if whole(r) in earlier]


def by(items: Iterable[Any], name: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    """Items in groups, in the order they came."""
    groups: dict[Any, list[Any]] = {}
    for item in items:
        groups.setdefault(name(item), []).append(item)
    return groups
