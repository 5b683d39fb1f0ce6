# SPDX-License-Identifier: Apache-2.0
"""tools/leave_out.py: its table, and that no library leaves anything out unless it is told to."""

from __future__ import annotations

import re
from pathlib import Path

import leave_out
import qutlass

CSRC = Path(__file__).resolve().parent.parent / "csrc"


def line(part: str | None, us: float, m: int = 16) -> dict[str, object]:
    return {"scheme": "w4a8", "M": m, "row": "r", "split_k": 1, "left_out": part, "us": us}


def test_ratios_of_the_same_row_to_the_whole_kernel() -> None:
    lines = [line(None, 10.0), line(None, 20.0, 64), line("copying", 4.0), line("unpacking", 9.0)]
    columns, rows = leave_out.table(lines)
    assert columns == ["product", "row", "split", "M", "us", "unpacking", "copying"]
    assert rows == [
        ["w4a8", "r", "1", "16", "10.0", "0.90", "0.40"],
        ["w4a8", "r", "1", "64", "20.0", "-", "-"],
    ]


def test_a_library_is_whole() -> None:
    assert qutlass.build_info()["left_out"] is None


def test_parts_are_those_of_the_sources() -> None:
    source = (CSRC / "gemm" / "left_out.h").read_text(encoding="utf-8")
    names = re.findall(r'case Part::k(\w+): return "(\w+)";', source)
    assert tuple(name for _, name in names) == leave_out.PARTS
    assert all(part.lower() == name for part, name in names)
    cmake = (CSRC.parent / "CMakeLists.txt").read_text(encoding="utf-8")
    listed = re.search(r'QUTLASS_LEAVE_OUT PROPERTY STRINGS\s+""([^)]*)\)', cmake)
    assert listed is not None
    assert listed[1].split() == [part for part, _ in names]
