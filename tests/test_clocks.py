# SPDX-License-Identifier: Apache-2.0
"""tools/clocks.py reads what nvidia-smi answers."""

from __future__ import annotations

import pytest

import clocks


@pytest.mark.parametrize(
    ("reasons", "caps"),
    [
        ("0x0000000000000000", []),
        ("0x0000000000000001", []),  # idle is no limit
        ("0x0000000000000004", ["power"]),
        ("0x0000000000000064", ["heat", "power"]),
    ],
)
def test_sample(reasons: str, caps: list[str]) -> None:
    sample = clocks.parse(f"1605, 689.11, {reasons}")
    assert (sample.clock, sample.power, sorted(sample.caps)) == (1605.0, 689.11, caps)


def test_sample_without_power() -> None:
    with pytest.raises(ValueError, match="N/A"):
        clocks.parse("1605, [N/A], 0x0000000000000000")
