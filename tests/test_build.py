# SPDX-License-Identifier: Apache-2.0
"""The build's own decisions, asked of CMake without compiling anything; and what was built."""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import setuptools

import check_abi
import machine_code
from qutlass import _library

CHECKOUT = Path(__file__).resolve().parent.parent
DEFAULT = "80-real;86-real;80-virtual"
LISTENS_TO = ("TORCH_CUDA_ARCH_LIST", "CMAKE_CUDA_ARCHITECTURES", "CUDAARCHS", "CUTLASS_PATH")


def run_cmake(
    script: str, folder: Path, environment: dict[str, str] | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs a script with the functions of cmake/ at hand; what it prints is on stderr."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    cmake = shutil.which("cmake", path=path)
    if cmake is None:
        pytest.skip("no cmake")
    names = ("cuda_architectures", "cuda_compiler", "cutlass", "gemm_tiles")
    lines = ["cmake_minimum_required(VERSION 3.22)"]  # as the project: it sets the policies
    lines += [f'include("{CHECKOUT}/cmake/{name}.cmake")' for name in names]
    lines += [f'set({name} "{value}")' for name, value in variables.items()]
    (folder / "script.cmake").write_text("\n".join([*lines, script]))
    kept = {k: v for k, v in os.environ.items() if k not in LISTENS_TO}
    return subprocess.run(
        [cmake, "-P", "script.cmake"],
        cwd=folder,
        env={**kept, **(environment or {})},
        capture_output=True,
        text=True,
    )


def flat(text: str) -> str:
    """CMake breaks its messages into lines as it likes."""
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("said", "understood"),
    [
        ({}, DEFAULT),
        ({"TORCH_CUDA_ARCH_LIST": "8.0;8.6"}, "80-real;86-real"),
        ({"TORCH_CUDA_ARCH_LIST": "8.0 8.6"}, "80-real;86-real"),
        ({"TORCH_CUDA_ARCH_LIST": "8.6+PTX"}, "86-real;86-virtual"),
        ({"TORCH_CUDA_ARCH_LIST": "Ampere"}, "80-real;86-real;86-virtual"),
        ({"TORCH_CUDA_ARCH_LIST": "9.0a 12.0"}, "90a-real;120-real"),
        ({"CMAKE_CUDA_ARCHITECTURES": "80;86-real"}, "80-real;80-virtual;86-real"),
        ({"CUDAARCHS": "89-real"}, "89-real"),
        ({"TORCH_CUDA_ARCH_LIST": "8.0", "CUDAARCHS": "89-real"}, "80-real"),
        ({"TORCH_CUDA_ARCH_LIST": "8.0 8.0"}, "80-real"),
    ],
    ids=lambda value: " ".join(map("=".join, value.items())) if isinstance(value, dict) else value,
)
def test_architectures(tmp_path: Path, said: dict[str, str], understood: str) -> None:
    ran = run_cmake('qutlass_cuda_architectures(a)\nmessage("[${a}]")', tmp_path, said)
    assert ran.stderr.strip() == f"[{understood}]"


def test_an_argument_of_cmake_comes_first(tmp_path: Path) -> None:
    ran = run_cmake(
        'qutlass_cuda_architectures(a)\nmessage("[${a}]")',
        tmp_path,
        {"TORCH_CUDA_ARCH_LIST": "8.0"},
        CMAKE_CUDA_ARCHITECTURES="86-real",
    )
    assert ran.stderr.strip() == "[86-real]"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            {"TORCH_CUDA_ARCH_LIST": "7.5"},
            "architecture 75 (from TORCH_CUDA_ARCH_LIST) is below 8.0",
        ),
        ({"TORCH_CUDA_ARCH_LIST": "8.0;7.0+PTX"}, "architecture 70"),
        ({"CUDAARCHS": "75-virtual"}, "architecture 75 (from CUDAARCHS) is below 8.0"),
        ({"TORCH_CUDA_ARCH_LIST": "80"}, 'TORCH_CUDA_ARCH_LIST holds "80"'),
        ({"CMAKE_CUDA_ARCHITECTURES": "8.0"}, 'architecture "8.0" (from CMAKE_CUDA_ARCHITECTURES)'),
    ],
)
def test_architectures_that_are_refused(tmp_path: Path, said: dict[str, str], message: str) -> None:
    ran = run_cmake("qutlass_cuda_architectures(a)", tmp_path, said)
    assert ran.returncode != 0
    assert message in flat(ran.stderr)


@pytest.mark.parametrize(
    ("architectures", "flags"),
    [
        (DEFAULT, ["--generate-code=arch=compute_80,code=[sm_80,sm_86,compute_80]"]),
        ("89-real", ["--generate-code=arch=compute_80,code=[sm_89]"]),
        (
            "80-real;90-real;86-virtual",
            [
                "--generate-code=arch=compute_80,code=[sm_80]",
                "--generate-code=arch=compute_90,code=[sm_90]",
                "--generate-code=arch=compute_86,code=[compute_86]",
            ],
        ),
    ],
)
def test_flags_of_nvcc(tmp_path: Path, architectures: str, flags: list[str]) -> None:
    script = f'qutlass_gencode_flags("{architectures}" f)\nlist(JOIN f " " t)\nmessage("${{t}}")'
    ran = run_cmake(script, tmp_path)
    assert ran.stderr.split() == flags


class TestCutlass:
    """CUTLASS_PATH, then the submodule, then the package, then an error that names all three."""

    script = 'qutlass_find_cutlass(i v)\nmessage("[${i}] [${v}]")'

    @staticmethod
    def headers(folder: Path) -> Path:
        (folder / "include" / "cutlass").mkdir(parents=True)
        (folder / "include" / "cutlass" / "cutlass.h").touch()
        (folder / "include" / "cutlass" / "version.h").write_text(
            "#define CUTLASS_MAJOR 4\n#define CUTLASS_MINOR 2\n#define CUTLASS_PATCH 0\n"
        )
        return folder / "include"

    def test_the_order(self, tmp_path: Path) -> None:
        named = self.headers(tmp_path / "named")
        submodule = self.headers(tmp_path / "source" / "third_party" / "cutlass")
        package = self.headers(tmp_path / "package")
        environment = {"CUTLASS_PATH": str(tmp_path / "named")}
        variables = {
            "PROJECT_SOURCE_DIR": str(tmp_path / "source"),
            "QUTLASS_PYTHON_CUTLASS": str(package),
        }
        ran = run_cmake(self.script, tmp_path, environment, **variables)
        assert f"[{named}] [4.2.0]" in ran.stderr
        ran = run_cmake(self.script, tmp_path, **variables)
        assert f"[{submodule}] [4.2.0]" in ran.stderr
        shutil.rmtree(submodule)
        ran = run_cmake(self.script, tmp_path, **variables)
        assert f"[{package}] [4.2.0]" in ran.stderr

    def test_none(self, tmp_path: Path) -> None:
        ran = run_cmake(self.script, tmp_path, PROJECT_SOURCE_DIR=str(tmp_path))
        assert ran.returncode != 0
        text = flat(ran.stderr)
        assert "CUTLASS_PATH=" in text
        assert "git submodule update --init third_party/cutlass" in text
        assert "pip install --no-deps nvidia-cutlass==4.2.0.0" in text

    def test_a_wrong_path_is_no_reason_to_look_elsewhere(self, tmp_path: Path) -> None:
        self.headers(tmp_path / "third_party" / "cutlass")
        ran = run_cmake(
            self.script, tmp_path, {"CUTLASS_PATH": "/nowhere"}, PROJECT_SOURCE_DIR=str(tmp_path)
        )
        assert ran.returncode != 0
        assert 'CUTLASS_PATH is "/nowhere"' in flat(ran.stderr)


class TestNvcc:
    script = 'qutlass_find_nvcc(n)\nmessage("[${n}]")'

    @staticmethod
    def nvcc(folder: Path) -> Path:
        (folder / "bin").mkdir(parents=True)
        path = folder / "bin" / "nvcc"
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
        return path

    def test_the_order(self, tmp_path: Path) -> None:
        home, on_path, package = (self.nvcc(tmp_path / name) for name in ("a", "b", "c"))
        scripts = sysconfig.get_path("scripts")
        plain = {"CUDACXX": "", "CUDA_HOME": "", "CUDA_PATH": "", "PATH": "/nowhere"}
        both = {**plain, "PATH": f"{on_path.parent}{os.pathsep}{scripts}"}
        packages = {"QUTLASS_PYTHON_CUDA": str(package.parent.parent)}
        for environment, expected in (
            ({**both, "CUDACXX": str(home)}, home),
            ({**both, "CUDA_HOME": str(home.parent.parent)}, home),
            (both, on_path),
            (plain, package),
        ):
            ran = run_cmake(self.script, tmp_path, environment, **packages)
            assert ran.stderr.strip() == f"[{expected}]"

    @pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDACXX", "CUDA_PATH"])
    def test_a_wrong_place_is_no_silent_cpu_build(self, tmp_path: Path, variable: str) -> None:
        others = dict.fromkeys(("CUDA_HOME", "CUDACXX", "CUDA_PATH"), "")
        ran = run_cmake(self.script, tmp_path, {**others, variable: "/nowhere"})
        assert ran.returncode != 0
        assert f'{variable} is "/nowhere"' in flat(ran.stderr)


class TestTiles:
    @staticmethod
    def generate(folder: Path, table: Path) -> subprocess.CompletedProcess[str]:
        script = f'qutlass_gemm_tile_sources("{table}" files)'
        return run_cmake(script, folder, PROJECT_BINARY_DIR=str(folder))

    def test_each_row_is_a_file(self, tmp_path: Path) -> None:
        """Named as the resource check expects it, from the row that the library lists."""
        ran = self.generate(tmp_path, CHECKOUT / "csrc" / "gemm" / "tiles.inc")
        assert ran.returncode == 0, ran.stderr
        rows = machine_code.Table(_library.library_path()).rows()
        files = {path.stem: path.read_text() for path in (tmp_path / "gemm_tiles").iterdir()}
        assert set(files) == {machine_code.object_stem(row) for row in rows}
        for row in rows:
            numbers = [row[key] for key in ("m", "n", "k", "warp_m", "warp_n", "warp_k", "stages")]
            text = files[machine_code.object_stem(row)]
            op, *rest = re.search(r"QUTLASS_INSTANTIATE\((.*)\)", text)[1].split(", ")
            assert op.lower() == "k" + row["op"].replace("_", "")
            assert [int(number) for number in rest] == numbers

    def test_a_change_touches_its_own_row(self, tmp_path: Path) -> None:
        table = tmp_path / "tiles.inc"
        first = "QUTLASS_TILE(kW8A8, 16, 64, 256, 16, 64, 64, 4)"
        table.write_text(f"{first}\nQUTLASS_TILE(kW4A4, 16, 64, 512, 16, 64, 128, 4)  // why\n")
        assert self.generate(tmp_path, table).returncode == 0
        before = {p: p.stat().st_mtime_ns for p in (tmp_path / "gemm_tiles").iterdir()}
        table.write_text(f"{first}\nQUTLASS_TILE(kW4A4, 16, 64, 512, 16, 64, 128, 3)\n")
        assert self.generate(tmp_path, table).returncode == 0
        after = {p: p.stat().st_mtime_ns for p in (tmp_path / "gemm_tiles").iterdir()}
        assert len(before) == len(after) == 2
        [kept] = before.keys() & after.keys()
        assert "w8a8" in kept.name
        assert before[kept] == after[kept]

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ("QUTLASS_TILE(kW8A8, 16, 64, 256, 16, 64, 64)", "not a row of QUTLASS_TILE"),
            ("QUTLASS_TILE(kW8A8, 1, 2, 3, 4, 5, 6, 7)\n" * 2, "stands there twice"),
            ("// QUTLASS_TILE(kW8A8, 1, 2, 3, 4, 5, 6, 7)", "no rows"),
        ],
    )
    def test_a_wrong_table_is_refused(self, tmp_path: Path, rows: str, message: str) -> None:
        (tmp_path / "tiles.inc").write_text(rows)
        ran = self.generate(tmp_path, tmp_path / "tiles.inc")
        assert ran.returncode != 0
        assert message in flat(ran.stderr)


class TestStableAbi:
    def test_of_the_library(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert check_abi.main([str(_library.library_path())]) == 0
        assert "only the stable ABI of torch 2.11" in capsys.readouterr().out

    def test_another_library_fails(self, capsys: pytest.CaptureFixture[str]) -> None:
        torch = Path(importlib.util.find_spec("torch").submodule_search_locations[0])
        assert check_abi.main([str(torch / "lib" / "libtorch_python.so")]) == 1
        out = capsys.readouterr().out
        assert "not in the stable ABI" in out
        assert "links against libc10.so" in out

    def test_a_function_of_a_later_torch_fails(self) -> None:
        torch = Path(importlib.util.find_spec("torch").submodule_search_locations[0])
        old = check_abi.stable_functions("2.9", torch / "include")
        new = check_abi.stable_functions("2.11", torch / "include")
        assert old < new
        symbols = ["memcpy@GLIBC_2.14", *sorted(new - old), "_ZN3c104impl3fooEv"]
        assert check_abi.unstable(symbols, old) == symbols[1:]
        assert check_abi.unstable(symbols, new) == symbols[-1:]


def test_an_install_takes_over_an_older_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was built stands in the package afterwards, also where the library there is newer: that
    of another build folder, as `make demo` leaves it to `make test`."""
    said: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: said.update(arguments))
    monkeypatch.chdir(CHECKOUT)
    runpy.run_path("setup.py")
    command = said["cmdclass"]["build_ext"](setuptools.Distribution({"name": "qutlass"}))
    command.ensure_finalized()
    built, installed = tmp_path / "built.so", tmp_path / "installed.so"
    installed.write_text("of the demo")
    built.write_text("of the tests")
    os.utime(built, (1e9, 1e9))
    command.copy_file(str(built), str(installed))
    assert installed.read_text() == "of the tests"
