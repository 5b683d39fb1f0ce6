# SPDX-License-Identifier: Apache-2.0
"""What a GPU could do at best, and what it is called."""

from __future__ import annotations

import re
from typing import Any

from ..timing import INSTRUCTION_RATES

# Dense tera-operations a second of the data sheets, for cards whose instructions nobody has timed
# yet: a card that holds its boost clock may exceed them, one at its power limit stays below.
_DATASHEET: dict[str, dict[str, float]] = {
    "3090": {"int8": 284.0, "int4": 568.0, "bf16": 71.0},
    "A6000": {"int8": 310.0, "int4": 619.0, "bf16": 155.0},
    "A10": {"int8": 250.0, "int4": 500.0, "bf16": 125.0},
    "A40": {"int8": 299.0, "int4": 599.0, "bf16": 150.0},
    "A100": {"int8": 624.0, "int4": 1248.0, "bf16": 312.0},
}
# The card that others of its compute capability are scaled from: an SM's rate in one clock is the
# same. (name in INSTRUCTION_RATES, compute capability, SMs, MHz)
_SCALE_FROM = (("NVIDIA H200", 90, 132, 1980.0),)


def ceilings(environment: dict[str, Any]) -> dict[str, Any]:
    """Instruction rates of a GPU, and where they come from.

    Args:
        environment: What `timing.environment` says of it.

    Returns:
        "ceiling_TOPS", a dict of instruction to tera-operations a second, and "ceiling_source":
        "measured", "data sheet", "scaled from ..." or, where the dict is empty, None.
    """
    name = environment["gpu"]
    if name in INSTRUCTION_RATES:
        return {"ceiling_TOPS": INSTRUCTION_RATES[name], "ceiling_source": "measured"}
    words = re.split(r"[\s-]", name)
    for card, rates in _DATASHEET.items():
        if card in words and not {"Ti", "Laptop"} & set(words):
            return {"ceiling_TOPS": rates, "ceiling_source": "data sheet"}
    clock = re.match(r"[\d.]+", environment.get("clocks_max_sm") or "")
    for card, sm, sm_count, mhz in _SCALE_FROM:
        if environment["sm"] == sm and clock:
            scale = environment["sm_count"] / sm_count * float(clock[0]) / mhz
            rates = {kind: rate * scale for kind, rate in INSTRUCTION_RATES[card].items()}
            source = f"scaled from {short_name(card)} by SMs and clock"
            return {"ceiling_TOPS": rates, "ceiling_source": source}
    return {"ceiling_TOPS": {}, "ceiling_source": None}


def short_name(gpu: str) -> str:
    """`NVIDIA GeForce RTX 3090` as people say it."""
    return re.sub(r"^NVIDIA\s+(GeForce\s+)?", "", gpu)


def label(gpu: str, sm: int, assume_sm: str | None = None) -> str:
    """What stands in a title, with how these kernels run on cards newer than Ada.

    Those have matrix instructions of their own, which cuBLAS uses there; the kernels of this
    package go through `mma.sync`. `assume_sm` is QUTLASS_ASSUME_SM, which gives the kernels the
    limits of another card.
    """
    name = f"{short_name(gpu)}, mma.sync path" if sm >= 90 else f"{short_name(gpu)} (sm_{sm})"
    return f"{name}, limits of sm_{assume_sm}" if assume_sm else name
