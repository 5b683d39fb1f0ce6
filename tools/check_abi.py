# SPDX-License-Identifier: Apache-2.0
"""Shows that the library asks nothing of torch but C functions that stay across releases.

    python tools/check_abi.py build/test/libqutlass.so [--torch 2.11]

Every symbol that the library imports has to be versioned by a system library (libc, libstdc++ and
the like) or be declared in torch's C shims for the target release, as the preprocessor sees them
there; and it may link against nothing but system libraries and libtorch_cpu, which every build of
torch has.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SHIMS = ("torch/csrc/stable/c/shim.h", "torch/csrc/inductor/aoti_torch/c/shim.h")
ALLOWED = re.compile(
    r"libtorch_cpu\.so|lib(stdc\+\+|gcc_s|c|m|dl|rt|pthread)\.so\.\d+|ld-linux.*\.so\.\d+"
)
SYSTEM_VERSION = re.compile(r"@+(GLIBC|GLIBCXX|CXXABI|GCC)_")
# What the linker leaves for the loader in every shared library.
LOADER = {"_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__gmon_start__"}


def tool(*names: str) -> str:
    for name in names:
        if found := shutil.which(name):
            return found
    raise SystemExit(f"check_abi: needs one of {', '.join(names)} on PATH")


def output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"check_abi: {' '.join(command)} failed:\n{done.stderr}")
    return done.stdout


def imported_symbols(library: Path) -> list[str]:
    """Undefined dynamic symbols, as nm prints them: name, or name@VERSION."""
    lines = output(tool("nm"), "-D", "--undefined-only", str(library)).splitlines()
    return [line.split()[-1] for line in lines]


def needed_libraries(library: Path) -> list[str]:
    text = output(tool("readelf"), "-d", str(library))
    return re.findall(r"\(NEEDED\).*\[(.*)\]", text)


def stable_functions(torch_version: str, include: Path) -> set[str]:
    """Functions that the C shims declare to a program that targets the release."""
    major, minor = (int(part) for part in torch_version.split("."))
    target = f"-DTORCH_TARGET_VERSION=0x{major:02x}{minor:02x}000000000000ULL"
    compiler = os.environ.get("CXX") or tool("c++", "g++", "clang++")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "shims.cpp")
        source.write_text("".join(f"#include <{shim}>\n" for shim in SHIMS))
        text = output(compiler, "-E", "-P", "-std=c++17", target, f"-I{include}", str(source))
    return set(re.findall(r"\b((?:aoti_)?torch_\w+)\s*\(", text))


def unstable(symbols: list[str], stable: set[str]) -> list[str]:
    """The imported symbols that neither a system library nor the stable C shims answer for."""
    return [
        symbol
        for symbol in symbols
        if not SYSTEM_VERSION.search(symbol) and symbol not in LOADER and symbol not in stable
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("library", type=Path)
    parser.add_argument("--torch", default="2.11", metavar="VERSION", help="the oldest to serve")
    args = parser.parse_args(argv)
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("check_abi: needs torch, for its headers")
    include = Path(spec.submodule_search_locations[0], "include")

    symbols = imported_symbols(args.library)
    stable = stable_functions(args.torch, include)
    wrong = unstable(symbols, stable)
    libraries = [name for name in needed_libraries(args.library) if not ALLOWED.fullmatch(name)]
    of_torch = sorted(set(symbols) & stable)
    print(f"{args.library}: {len(symbols)} imported symbols, {len(of_torch)} of them torch's:")
    for symbol in of_torch:
        print(f"  {symbol}")
    for symbol in wrong:
        print(f"not in the stable ABI of torch {args.torch}: {symbol}")
    for library in libraries:
        print(f"links against {library}")
    if not of_torch:
        print("no function of torch is imported: is this the op library?")
    failed = bool(wrong or libraries or not of_torch)
    print("FAILED" if failed else f"only the stable ABI of torch {args.torch} is imported")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
