# SPDX-License-Identifier: Apache-2.0
"""The machine code of the GEMM rows of a build: what tools/check_resources.py and
tools/instruction_mix.py read.

cuobjdump and nvdisasm come from PATH, CUDA_HOME or the Python packages that the `test` extra names.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

_ARCH = re.compile(r"^(?:arch = |\s*code for )sm_(\d+)")
_USAGE_NAME = re.compile(r"^\s*Function (\S+):")
_SASS_NAME = re.compile(r"^\s*Function : (\S+)")
_SASS_LINE = re.compile(
    r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*);"
)

T = TypeVar("T")


class Instruction(NamedTuple):
    """A line of a disassembly."""

    address: int
    predicate: str  # "P0", "!P0", "!UPT"; empty: always
    opcode: str
    operands: str


@dataclass
class Kernel:
    """A kernel of an object, for one architecture."""

    arch: int
    name: str
    registers: int = 0
    local_bytes: int = 0
    static_smem: int = 0
    instructions: Counter[str] = field(default_factory=Counter)
    listing: list[Instruction] = field(default_factory=list)

    def count(self, pattern: str) -> int:
        """Instructions whose opcode begins as the pattern says."""
        return sum(n for opcode, n in self.instructions.items() if re.match(pattern, opcode))


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


def parse_sass(text: str) -> dict[tuple[int, str], list[Instruction]]:
    """Instructions of each kernel out of `cuobjdump -sass`."""
    found: dict[tuple[int, str], list[Instruction]] = {}
    arch, current = 0, None
    for line in text.splitlines():
        if match := _SASS_LINE.match(line):
            if current is not None:
                current.append(
                    Instruction(int(match[1], 16), match[2] or "", match[3], match[4].strip())
                )
        elif match := _ARCH.match(line):
            arch = int(match[1])
        elif match := _SASS_NAME.match(line):
            current = found.setdefault((arch, match[1]), [])
    return found


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
            f'{name} was not found; pip install "qutlass[test]" brings it, or set CUDA_HOME to a '
            "CUDA toolkit"
        )
    return found


def read_object(path: Path, cuobjdump: str) -> list[Kernel]:
    """The kernels of an object file with their resources and instructions."""

    def dump(flag: str) -> str:
        done = subprocess.run([cuobjdump, flag, str(path)], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"cuobjdump {flag} {path} failed: {done.stderr}")
        return done.stdout

    kernels = parse_usage(dump("-res-usage"))
    sass = parse_sass(dump("-sass"))
    for kernel in kernels:
        kernel.listing = sass.get((kernel.arch, kernel.name), [])
        kernel.instructions = Counter(instruction.opcode for instruction in kernel.listing)
    return kernels


class Table:
    """The tile table as the built library has it."""

    def __init__(self, library: Path) -> None:
        import torch  # whose symbols the library needs

        if not library.is_file():
            raise SystemExit(f"there is no {library}")
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
            raise SystemExit(f"the library does not know {row['name']} on sm_{arch}")
        return bool(answer)


def object_stem(row: dict) -> str:
    """How cmake/gemm_tiles.cmake names a row's file."""
    r = {**row, "op": row["op"].replace("_", "")}
    return "gemm_tile_{op}_{m}x{n}x{k}_w{warp_m}x{warp_n}x{warp_k}_s{stages}".format(**r)


def map_rows(
    build: Path, rows: list[dict], use: Callable[[dict, list[Kernel]], list[T]]
) -> list[T]:
    """What `use` makes of each row and its kernels, in order.

    A listing is long: `use` runs where it is read, and nothing keeps it.
    """
    objects = {path.name.split(".")[0]: path for path in build.glob("CMakeFiles/**/gemm_tile_*.o")}
    missing = [row["name"] for row in rows if object_stem(row) not in objects]
    if missing:
        raise SystemExit(f"no objects of {', '.join(missing)} in {build}; was it built with CUDA?")
    cuobjdump = find_tool("cuobjdump")

    def read(row: dict) -> list[T]:
        kernels = read_object(objects[object_stem(row)], cuobjdump)
        if not kernels:
            raise SystemExit(f"the object of {row['name']} holds no machine code")
        return use(row, kernels)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [made for of_row in pool.map(read, rows) for made in of_row]
