# SPDX-License-Identifier: Apache-2.0
"""tools/where_it_waits.py reads what Nsight Compute prints of a kernel's instructions."""

from __future__ import annotations

import pytest

import where_it_waits
from where_it_waits import Instruction

COLUMNS = ["Address", "Source", "# Samples", "Instructions Executed", "stall_wait", "stall_long_sb",
           "stall_selected", "stall_sleep", "stall_wait (Not Issued)"]  # fmt: skip


def page(*lines: list[str]) -> str:
    """What Nsight Compute prints: its log, the kernel's name, columns and instructions."""
    table = [COLUMNS, *lines]
    return "\n".join(
        ["==PROF== Connected", '"Kernel Name","Kernel2"']
        + [",".join(f'"{cell}"' for cell in cells) for cells in table]
    )


def test_parse() -> None:
    text = page(["0x10", "   MOV   R1, R2 ", "1,234", "64", "4", "0", "2", "1", "9"])
    (one,) = where_it_waits.parse(text)
    assert (one.source, one.samples, one.executed) == ("MOV R1, R2", 1234.0, 64)
    assert one.reasons == {"fixed": 4.0, "copies": 0.0, "issued": 2.0, "other": 1.0}


def test_parse_of_nothing() -> None:
    with pytest.raises(ValueError, match="no permission"):
        where_it_waits.parse("==ERROR== no permission")


def kernel() -> list[Instruction]:
    """Two instructions, a loop of three that runs four times, and one that took nothing."""
    return [
        Instruction("A", 8, 5.0, {"fixed": 5.0}),
        Instruction("B", 8, 15.0, {"fixed": 5.0, "code": 10.0}),
        Instruction("C", 32, 10.0, {"issued": 10.0}),
        Instruction("D", 32, 60.0, {"copies": 50.0, "issued": 10.0}),
        Instruction("E", 32, 10.0, {"issued": 10.0}),
        Instruction("F", 8, 0.0, {}),
    ]


def test_parts() -> None:
    assert where_it_waits.parts_of(kernel()) == [range(2), range(2, 5), range(5, 6)]
    assert where_it_waits.part_rows(kernel()) == [
        ["0 to 1", "fixed 10.0, code 10.0", "1.0", "20.0"],
        ["2 to 4", "copies 50.0, issued 30.0", "4.0", "80.0"],
    ]


def test_worst() -> None:
    assert where_it_waits.worst_rows(kernel(), 2) == [
        ["B", "code", "1", "15.0"],
        ["D", "copies", "3", "60.0"],
    ]


def test_reasons_have_the_names_of_what_limits() -> None:
    assert where_it_waits.REASONS["no_inst"] == where_it_waits.REASONS["branch_resolving"] == "code"
    assert {"issued", "parameters"} < set(where_it_waits.REASONS.values())
