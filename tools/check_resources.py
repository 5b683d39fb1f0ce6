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

cuobjdump and nvdisasm come from PATH, CUDA_HOME or the Python packages that the `test` extra names.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

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
    "w4a8_multiplier": INT8,
    "w4a16": r"HMMA\.16816\.F32\.BF16",
}
NO_INT4 = 90  # from here on INT4 products are emulated

_ARCH = re.compile(r"^(?:arch = |\s*code for )sm_(\d+)")
_USAGE_NAME = re.compile(r"^\s*Function (\S+):")
_SASS_NAME = re.compile(r"^\s*Function : (\S+)")
_SASS_LINE = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")


@dataclass
class Kernel:
    """A kernel of an object, for one architecture."""

    arch: int
    name: str
    registers: int = 0
    local_bytes: int = 0
    static_smem: int = 0
    instructions: Counter[str] = field(default_factory=Counter)

    def count(self, pattern: str) -> int:
        """Instructions whose opcode begins as the pattern says."""
        return sum(n for opcode, n in self.instructions.items() if re.match(pattern, opcode))


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


def parse_usage(text: str) -> list[Kernel]:
    """Kernels out of `cuobjdump -res-usage`."""
    kernels, arch, name = [], 0, ""
    for line in text.splitlines():
        if match := _ARCH.match(line):
            arch = int(match[1])
        elif match := _USAGE_NAME.match(line):
            name = match[1]
        elif "REG:" in line:
            values = {key: int(value) for key, value in re.findall(r"([A-Z]+):(\d+)", line)}
            kernels.append(
                Kernel(
                    arch,
                    name,
                    values["REG"],
                    # Spills are on the stack; LOCAL is what is declared local beside it.
                    values["STACK"] + values["LOCAL"],
                    values["SHARED"],
                )
            )
    return kernels


def parse_sass(text: str) -> dict[tuple[int, str], Counter[str]]:
    """Opcodes of each kernel out of `cuobjdump -sass`."""
    found: dict[tuple[int, str], Counter[str]] = {}
    arch, current = 0, None
    for line in text.splitlines():
        if match := _SASS_LINE.match(line):
            if current is not None:
                current[match[1]] += 1
        elif match := _ARCH.match(line):
            arch = int(match[1])
        elif match := _SASS_NAME.match(line):
            current = found.setdefault((arch, match[1]), Counter())
    return found


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


def find_tool(name: str) -> str:
    """A CUDA binary utility."""
    folders = [
        os.path.join(os.environ[v], "bin") for v in ("CUDA_HOME", "CUDA_PATH") if v in os.environ
    ]
    folders.append(os.environ.get("PATH", ""))
    sites = dict.fromkeys([*sys.path, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    folders += [str(found) for site in sites if site for found in Path(site).glob("nvidia/*/bin")]
    folders.append("/usr/local/cuda/bin")
    found = shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        raise SystemExit(
            f'check_resources: {name} was not found; pip install "qutlass[test]" brings it, or set '
            "CUDA_HOME to a CUDA toolkit"
        )
    return found


def read_object(path: Path, cuobjdump: str) -> list[Kernel]:
    """The kernels of an object file with their resources and instructions."""

    def dump(flag: str) -> str:
        done = subprocess.run([cuobjdump, flag, str(path)], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"check_resources: cuobjdump {flag} {path} failed: {done.stderr}")
        return done.stdout

    kernels = parse_usage(dump("-res-usage"))
    sass = parse_sass(dump("-sass"))
    for kernel in kernels:
        kernel.instructions = sass.get((kernel.arch, kernel.name), Counter())
    return kernels


class Table:
    """The tile table as the built library has it."""

    def __init__(self, library: Path) -> None:
        import torch  # whose symbols the library needs

        torch.ops.load_library(str(library))
        self._library = ctypes.CDLL(str(library))
        self._library.qutlass_gemm_tiles.restype = ctypes.c_char_p
        self._library.qutlass_gemm_legal.argtypes = [
            ctypes.c_char_p,
            *[ctypes.c_int] * 2,
            *[ctypes.c_int64] * 4,
            *[ctypes.c_int] * 2,
        ]

    def rows(self) -> list[dict]:
        return json.loads(self._library.qutlass_gemm_tiles())

    def legal(self, row: dict, arch: int) -> bool:
        """Whether selection may take the row on a card of the architecture, on a plain problem."""
        size, group = 4096, 128
        answer = self._library.qutlass_gemm_legal(
            row["op"].encode(), row["index"], 1, size, size, size, group, arch, 0
        )
        if answer < 0:
            raise SystemExit(
                f"check_resources: the library does not know {row['name']} on sm_{arch}"
            )
        return bool(answer)


def object_stem(row: dict) -> str:
    """How cmake/gemm_tiles.cmake names a row's file."""
    r = {**row, "op": row["op"].replace("_", "")}
    return "gemm_tile_{op}_{m}x{n}x{k}_w{warp_m}x{warp_n}x{warp_k}_s{stages}".format(**r)


def check(build: Path, table: Table) -> list[Report]:
    """Every row on every architecture that the build has."""
    cuobjdump = find_tool("cuobjdump")
    objects = {path.name.split(".")[0]: path for path in build.glob("CMakeFiles/**/gemm_tile_*.o")}
    rows = table.rows()
    missing = [row["name"] for row in rows if object_stem(row) not in objects]
    if missing:
        raise SystemExit(
            f"check_resources: no objects of {', '.join(missing)} in {build}; was it built with "
            "CUDA?"
        )
    reports = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        read = pool.map(lambda row: read_object(objects[object_stem(row)], cuobjdump), rows)
        for row, kernels in zip(rows, read, strict=True):
            if not kernels:
                raise SystemExit(
                    f"check_resources: the object of {row['name']} holds no machine code"
                )
            for kernel in kernels:
                if kernel.arch in LIMITS:
                    reports.append(judge(row, kernel, table.legal(row, kernel.arch)))
    return reports


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
    if not library.is_file():
        raise SystemExit(f"check_resources: there is no {library}")
    reports = check(args.build, Table(library))
    print(render(reports))
    if args.json:
        args.json.write_text("".join(json.dumps(asdict(r)) + "\n" for r in reports))
    wrong = [r for r in reports if r.problems]
    print(f"\n{len(reports)} kernels, {len(wrong)} with problems")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
