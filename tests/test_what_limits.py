# SPDX-License-Identifier: Apache-2.0
"""tools/what_limits.py reads what Nsight Compute prints."""

from __future__ import annotations

import math

import pytest

import what_limits

UNITS = ["%"] * len(what_limits.METRICS)


def page(*kernels: list[str]) -> str:
    """What Nsight Compute prints of kernels: its log, names, units and a line each."""

    def line(cells: list[str]) -> str:
        return ",".join(f'"{cell}"' for cell in cells)

    table = [["ID", *what_limits.METRICS], ["", *UNITS]]
    table += [[str(i), *cells] for i, cells in enumerate(kernels)]
    return "\n".join(["==PROF== Connected", *map(line, table)])


def test_parse() -> None:
    first = [str(i) for i in range(len(what_limits.METRICS))]
    second = ["1,234.5", "n/a", *first[2:]]
    one, two = what_limits.parse(page(first, second))
    assert [one[name] for name in what_limits.METRICS] == list(map(float, first))
    assert two[what_limits.METRICS[0]] == 1234.5
    assert math.isnan(two[what_limits.METRICS[1]])


def test_parse_of_nothing() -> None:
    with pytest.raises(ValueError, match="no permission"):
        what_limits.parse("==ERROR== no permission")


def test_row() -> None:
    kernel = dict.fromkeys(what_limits.METRICS, 1.0)
    kernel[what_limits.TIME] = 12340.0  # ns
    kernel[what_limits.WARPS] = 8.0
    cells = what_limits.row_of(["w8a8", "a_row", "16"], kernel)
    row = dict(zip(what_limits.COLUMNS, cells, strict=True))
    assert (row["us"], row["warps"], row["tensor"]) == ("12.3", "2.0", "1")
    assert (row["fixed"], row["turn"]) == ("1.00", "2.00")  # of one, of two reasons


def test_all_waits_have_names() -> None:
    assert len(set(what_limits.METRICS)) == len(what_limits.METRICS)
    assert len(set(what_limits.COLUMNS)) == len(what_limits.COLUMNS)
