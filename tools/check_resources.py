# SPDX-License-Identifier: Apache-2.0
"""Reads what the compiler made of each GEMM tile, and fails where a tile breaks the rules.

    python tools/check_resources.py build/test [--json rows.jsonl]

For each row of csrc/gemm/tiles.inc and each architecture in its object: registers, local memory,
shared memory, blocks that fit a multiprocessor, and the tensor, spill and copy instructions in the
machine code. It fails on

- local memory (a spill, or an array that the compiler could not keep in registers);
- a tensor instruction other than the family's own: W4A4 on 8.x has to be native INT4;
- a block that no card of the architecture can hold, unless selection leaves the row out there:
  99 KiB of shared memory on 8.6 and 8.9, 163 KiB on 8.0;
- a row of the table without an object.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from machine_code import Kernel, Table, map_rows

KIB = 1024
# Compute capability: shared memory a block may have; shared memory, threads and blocks of a
# multiprocessor (CUDA programming guide, table of compute capabilities).
LIMITS = {
    80: (163 * KIB, 164 * KIB, 2048, 32),
    86: (99 * KIB, 100 * KIB, 1536, 16),
    89: (99 * KIB, 100 * KIB, 1536, 24),
    90: (227 * KIB, 228 * KIB, 2048, 32),
}
REGISTERS = 65536  # of a multiprocessor
RESERVED = 1 * KIB  # of shared memory, that CUDA takes of each block

# The instruction that each family's products have to be, on the architectures that have it.
INT8 = r"IMMA\.16832\.S8\.S8"
NATIVE = {
    "w8a8": INT8,
    "w4a4": r"IMMA\.16864\.S4\.S4",
    "w4a8": INT8,
    "w4a8_group": INT8,
    "w4a8_multiplier": r"IMMA\.16832\.S8\.[SU]8",  # low tiles have unsigned weights
    "w4a16": r"HMMA\.16816\.F32\.BF16",
}
NO_INT4 = 90  # from here on INT4 products are emulated


@dataclass
class Report:
    """One row of the table on one architecture."""

    row: str
    op: str
    arch: int
    registers: int
    local_bytes: int
    smem_bytes: int
    threads: int
    blocks_per_sm: int
    tensor: int
    spills: int
    problems: list[str]


def blocks_per_sm(arch: int, registers: int, threads: int, smem: int) -> int:
    """Blocks that one multiprocessor holds at a time; registers come in 256 a warp."""
    _, smem_total, thread_total, most = LIMITS[arch]
    warps = -(-threads // 32)
    by_registers = REGISTERS // (-(-registers * 32 // 256) * 256) // warps
    by_smem = smem_total // (smem + RESERVED)
    return min(most, by_registers, by_smem, thread_total // threads)


def judge(row: dict, kernel: Kernel, legal: bool) -> Report:
    """What a kernel is, and what is wrong with it.

    Args:
        row: An entry of the library's tile listing.
        kernel: Its kernel on one architecture.
        legal: Whether selection may take the row on that architecture.
    """
    limit = LIMITS[kernel.arch][0]
    smem = row["smem_bytes"] + kernel.static_smem
    spills = kernel.count(r"(LDL|STL)\b")
    expected = kernel.count(NATIVE[row["op"]])
    tensor = kernel.count(r"[IHB]MMA\b|[IHB]MMA\.")
    blocks = blocks_per_sm(kernel.arch, kernel.registers, row["threads"], smem)
    problems = []
    if kernel.local_bytes or spills:
        problems.append(
            f"spills: {kernel.local_bytes} bytes of local memory, {spills} loads and stores of it"
        )
    if not (row["op"] == "w4a4" and kernel.arch >= NO_INT4):
        if not expected:
            problems.append(f"holds no {NATIVE[row['op']]}")
        elif tensor != expected:
            others = [o for o in kernel.instructions if re.match(r"[IHB]MMA\b", o)]
            problems.append(f"holds tensor instructions beside its own: {sorted(others)}")
    if legal and smem > limit:
        problems.append(f"needs {smem} bytes of shared memory, a block may have {limit}")
    elif legal and not blocks:
        problems.append(
            f"{row['threads']} threads of {kernel.registers} registers do not fit a multiprocessor"
        )
    return Report(
        row["name"],
        row["op"],
        kernel.arch,
        kernel.registers,
        kernel.local_bytes,
        smem,
        row["threads"],
        blocks if smem <= limit else 0,
        tensor,
        spills,
        problems,
    )


def check(build: Path, table: Table) -> list[Report]:
    """Every row on every architecture that the build has."""

    def judge_all(row: dict, kernels: list[Kernel]) -> list[Report]:
        return [judge(row, k, table.legal(row, k.arch)) for k in kernels if k.arch in LIMITS]

    return map_rows(build, table.rows(), judge_all)


def render(reports: Iterable[Report]) -> str:
    """The table that is printed."""
    lines = [
        f"{'row':<46} {'sm':>3} {'regs':>4} {'local':>5} {'smem':>7} {'threads':>7} {'blk/SM':>6} "
        f"{'mma':>5}"
    ]
    for r in reports:
        lines.append(
            f"{r.row:<46} {r.arch:>3} {r.registers:>4} {r.local_bytes:>5} {r.smem_bytes:>7} "
            f"{r.threads:>7} {r.blocks_per_sm or '-':>6} {r.tensor:>5}"
            + "".join(f"\n    {problem}" for problem in r.problems)
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("build", type=Path, help="the build folder, e.g. build/test")
    parser.add_argument("--library", type=Path, help="default: libqutlass.so in the build folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write one line a row")
    args = parser.parse_args(argv)
    library = (args.library or args.build / "libqutlass.so").resolve()
    reports = check(args.build, Table(library))
    print(render(reports))
    if args.json:
        args.json.write_text("".join(json.dumps(asdict(r)) + "\n" for r in reports))
    wrong = [r for r in reports if r.problems]
    print(f"\n{len(reports)} kernels, {len(wrong)} with problems")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
