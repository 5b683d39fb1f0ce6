# SPDX-License-Identifier: Apache-2.0
"""`python -m qutlass bench`: how fast is it here, and against what?

A benchmark answers one question and writes one line of JSON for each thing it measured:
`gemm` (matrix products, beside the products of others), `quant` (quantization and packing) and
`host` (what a call costs before the GPU has anything to do). Tables and plots are made of those
lines, on any machine.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

__all__ = ["main"]

QUESTIONS = ("gemm", "quant", "host")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a benchmark.

    Args:
        argv: One of QUESTIONS, `gemm` where none is named, and its arguments; None: those of the
            process.

    Returns:
        The exit status: 0 if all went well.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    question = argv.pop(0) if argv and argv[0] in QUESTIONS else QUESTIONS[0]
    return importlib.import_module(f"{__name__}.{question}").main(argv)
