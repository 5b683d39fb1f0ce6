# SPDX-License-Identifier: Apache-2.0
"""Tables of the tools, for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Sequence


def render(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, text: int = 1, markdown: bool = False
) -> str:
    """A table whose first `text` columns hold words, the others numbers."""
    if markdown:
        marks = ["---" if n < text else "---:" for n in range(len(columns))]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, marks, *rows))
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if n < text else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in (columns, *rows)
    )
