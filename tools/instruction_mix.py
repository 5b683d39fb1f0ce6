# SPDX-License-Identifier: Apache-2.0
"""Counts what the steady state of each GEMM row's mainloop issues beside its tensor instructions.

    python tools/instruction_mix.py build/test [--per step] [--markdown] [--json mix.jsonl]

A mainloop is an innermost loop that holds tensor instructions. A kernel has several: zero points,
and groups that change within a k tile, have loops of their own. Counted is the plainest one: of the
loops that go through all tensor instructions of a k tile, the one with the fewest instructions.

Its steady state is the path from the loop's head back to it that most k tiles take. What is rare -
opening the next segment, converting the scales of the next groups - stands behind forward branches
that jump over it, so:

- a conditional branch forward, within the loop, is taken, unless it jumps over tensor instructions
  or fragment loads (LDSM), which are in every k tile;
- an unconditional one is followed;
- a branch out of the loop is not taken;
- a loop with another way back, a call or an indirect branch on that path is set aside.

Predicated instructions count: they are issued whatever the predicate says. Classes:

    tensor   IMMA, HMMA
    logic    LOP3, SHF, PRMT, SEL and their like, on the uniform datapath too
    integer  IADD3, IMAD, LEA, ISETP and their like, on the uniform datapath too: sums and addresses
    float    FADD, FFMA, FMUL, HFMA2 and their like, conversions
    shared   LDSM and LDS
    copy     LDGSTS, the asynchronous copies
    rest     moves (also those written as IMAD.MOV), barriers, branches, and what never executes
             (predicate !PT)

A k step is the k of one fragment of the weight: 32, for W4A4 64. Registers, spilled bytes, shared
memory and blocks a multiprocessor are those of tools/check_resources.py.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from check_resources import judge
from machine_code import Instruction, Kernel, Table, map_rows
from plain_table import render

CLASSES = ("tensor", "logic", "integer", "float", "shared", "copy", "rest")
ARCHITECTURES = (80, 86)

_FAMILIES = {
    "tensor": r"[IHBD]MMA",
    "logic": r"U?(LOP3?|PLOP3|SHF|SHL|SHR|PRMT|SEL|BREV|POPC|FLO|SGXT|BMSK)",
    "integer": r"U?(V?IADD3?|V?IMNMX3?|VIADDMNMX|IMAD|IMUL|IABS|IDP|LEA|ISETP)",
    "float": r"(FADD|FFMA|FMUL|FMNMX|FSEL|FSETP|FSET|FRND|HADD2|HFMA2|HMUL2|HMNMX2|HSETP2|HSET2"
    r"|MUFU|I2F|I2FP|F2I|F2F|F2FP)",
    "shared": r"(LDSM|LDS)",
    "copy": r"LDGSTS",
}
_CLASS = {name: re.compile(rf"{pattern}(\.|$)") for name, pattern in _FAMILIES.items()}
_TENSOR = _CLASS["tensor"]
_HOT = re.compile(rf"({_FAMILIES['tensor']}|LDSM)(\.|$)")
_UNKNOWN_WAY = re.compile(r"(CALL|BRX|JMX|JMP|RET|EXIT|BREAK)(\.|$)")


@dataclass
class Mix:
    """The steady state of a row on one architecture."""

    row: str
    op: str
    arch: int
    registers: int
    spill_bytes: int
    smem_bytes: int
    blocks_per_sm: int
    steps: int  # of k, in a k tile of a warp
    instructions: dict[str, int]  # of a warp in a k tile, by class

    @property
    def total(self) -> int:
        return sum(self.instructions.values())

    def per(self, unit: str) -> float:
        """What a count of a k tile is divided by."""
        return {"tile": 1, "step": self.steps, "tensor": self.instructions["tensor"]}[unit]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        ratios = {
            f"per_{unit}": {
                "total": self.total / self.per(unit),
                **{name: n / self.per(unit) for name, n in self.instructions.items()},
            }
            for unit in ("tensor", "step")
        }
        return {**asdict(self), "total": self.total, **ratios}


def class_of(instruction: Instruction) -> str:
    """One of CLASSES."""
    if instruction.predicate in ("!PT", "!UPT") or instruction.opcode.startswith("IMAD.MOV"):
        return "rest"
    return next((n for n, known in _CLASS.items() if known.match(instruction.opcode)), "rest")


def target_of(instruction: Instruction) -> int | None:
    """Where a branch jumps to; None: it is none."""
    if not re.match(r"BRA(\.|$)", instruction.opcode):
        return None
    addresses = re.findall(r"0x([0-9a-f]+)", instruction.operands)
    return int(addresses[-1], 16) if addresses else None


def mainloops(listing: Sequence[Instruction]) -> list[tuple[int, int]]:
    """First and last address of each innermost loop that holds tensor instructions."""
    ends: dict[int, int] = {}
    for instruction in listing:
        target = target_of(instruction)
        if target is not None and target <= instruction.address:
            ends[target] = instruction.address  # the last way back to this head
    tensor = [i.address for i in listing if _TENSOR.match(i.opcode)]
    loops = [(h, e) for h, e in ends.items() if any(h <= at <= e for at in tensor)]
    return [
        (head, end)
        for head, end in loops
        if not any((h, e) != (head, end) and head <= h and e <= end for h, e in loops)
    ]


def steady_state(listing: Sequence[Instruction], head: int, end: int) -> list[Instruction] | None:
    """The path through a loop that most k tiles take; None where the rule does not find one."""
    index = {instruction.address: n for n, instruction in enumerate(listing)}
    path, at = [], index[head]
    # What is rare may stand in front of the loop, and then ends in a branch back into it.
    before = listing[at - 1] if at > 0 else None
    comes_back = (
        before is not None
        and not before.predicate
        and (back := target_of(before)) is not None
        and head < back <= end
    )
    while at < len(listing) and listing[at].address <= end:
        instruction = listing[at]
        path.append(instruction)
        at += 1
        if _UNKNOWN_WAY.match(instruction.opcode):
            return None
        target = target_of(instruction)
        if target is None:
            continue
        if target == head:
            return path
        within = head < target <= end
        # Some branches have their condition in front of the target instead of a predicate.
        conditional = bool(instruction.predicate) or "," in instruction.operands
        if conditional and (target > end or (target < head and comes_back)):
            continue
        if target <= instruction.address or not within:
            return None
        skipped = listing[at : index[target]]
        if not (conditional and any(_HOT.match(i.opcode) for i in skipped)):
            at = index[target]
    return None


def tensor_instructions(row: dict[str, Any]) -> int:
    """Those of a warp in a k tile."""
    m, n, k = map(int, re.search(r"m(\d+)n(\d+)k(\d+)", row["instruction"]).groups())
    return row["warp_m"] * row["warp_n"] * row["warp_k"] // (m * n * k)


def plainest(listing: Sequence[Instruction], tensor: int) -> list[Instruction] | None:
    """The shortest steady state that goes through so many tensor instructions at least."""
    found = [steady_state(listing, *loop) for loop in mainloops(listing)]
    whole = [
        path
        for path in found
        if path and sum(bool(_TENSOR.match(i.opcode)) for i in path) >= tensor
    ]
    return min(whole, key=len, default=None)


def mix_of(row: dict[str, Any], kernel: Kernel, legal: bool) -> Mix:
    """A row's mix.

    Args:
        row: An entry of the library's tile listing.
        kernel: Its kernel on one architecture.
        legal: Whether selection may take the row on that architecture.
    """
    path = plainest(kernel.listing, tensor_instructions(row))
    if path is None:
        raise SystemExit(
            f"instruction_mix: {row['name']} on sm_{kernel.arch} has no loop with the "
            f"{tensor_instructions(row)} tensor instructions of a k tile"
        )
    counts = Counter(map(class_of, path))
    report = judge(row, kernel, legal)
    return Mix(
        row["name"],
        row["op"],
        kernel.arch,
        report.registers,
        report.local_bytes,
        report.smem_bytes,
        report.blocks_per_sm,
        row["warp_k"] // (64 if row["op"] == "w4a4" else 32),
        {name: counts[name] for name in CLASSES},
    )


def table_of(mixes: Sequence[Mix], per: str, markdown: bool) -> str:
    """The table that is printed."""
    columns = ["row", "sm", "regs", "spill", "smem", "blk/SM", "loop", *CLASSES, "all"]
    digits = 0 if per == "tile" else 2 if per == "tensor" else 1
    rows = []
    for mix in mixes:
        counts = [*mix.instructions.values(), mix.total]
        rows.append(
            [
                mix.row,
                *map(str, (mix.arch, mix.registers, mix.spill_bytes, mix.smem_bytes)),
                str(mix.blocks_per_sm or "-"),
                str(mix.total),
                *(f"{count / mix.per(per):.{digits}f}" for count in counts),
            ]
        )
    return render(columns, rows, markdown=markdown)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("build", type=Path, help="the build folder, e.g. build/test")
    parser.add_argument("--library", type=Path, help="default: libqutlass.so in the build folder")
    parser.add_argument(
        "--per", choices=("tensor", "step", "tile"), default="tensor", help="what counts are over"
    )
    parser.add_argument("--markdown", action="store_true", help="the table as Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write one line a row")
    args = parser.parse_args(argv)
    table = Table((args.library or args.build / "libqutlass.so").resolve())

    def mix_all(row: dict, kernels: list[Kernel]) -> list[Mix]:
        return [
            mix_of(row, k, table.legal(row, k.arch)) for k in kernels if k.arch in ARCHITECTURES
        ]

    mixes = map_rows(args.build, table.rows(), mix_all)
    if not mixes:
        raise SystemExit(f"instruction_mix: {args.build} holds no machine code for sm_80 or sm_86")
    unit = {"tensor": "tensor instruction", "step": "k step", "tile": "k tile"}[args.per]
    print(
        f"Instructions of a warp per {unit}, by class, in the steady state of each row's plainest\n"
        "mainloop; loop: all that it issues in one k tile\n"
    )
    print(table_of(mixes, args.per, args.markdown))
    if args.json:
        args.json.write_text("".join(json.dumps(mix.record()) + "\n" for mix in mixes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
