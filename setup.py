# SPDX-License-Identifier: Apache-2.0
"""Drives CMake; everything else about the package stands in pyproject.toml.

Read from the environment: CMAKE_ARGS (more arguments for CMake), MAX_JOBS (compilers at a time),
QUTLASS_BUILD_DIR (instead of build/python), and by CMake itself TORCH_CUDA_ARCH_LIST,
CMAKE_CUDA_ARCHITECTURES, CUDA_HOME, CUDACXX and CUTLASS_PATH.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

SOURCE = Path(__file__).resolve().parent
# Kept from build to build, so that an editable install after a change compiles only what changed.
BUILD = Path(os.environ.get("QUTLASS_BUILD_DIR") or SOURCE / "build" / "python").resolve()


def find_tool(name: str) -> str:
    """The tool beside this Python, else the one on PATH."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    tool = shutil.which(name, path=path)
    if tool is None:
        raise SystemExit(f"qutlass: {name} was not found; `pip install {name}` brings it.")
    return tool


def job_count() -> int:
    value = os.environ.get("MAX_JOBS", "")
    if value and not (value.isdecimal() and int(value) > 0):
        raise SystemExit(f"qutlass: MAX_JOBS must be a positive number, got {value!r}.")
    if value:
        return int(value)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_tool(command: list[str]) -> None:
    print("+", shlex.join(command), flush=True)
    if subprocess.run(command).returncode:
        raise SystemExit(f"qutlass: {Path(command[0]).name} failed; its output above says why.")


class CMakeBuild(build_ext):
    """Builds libqutlass.so and puts it where the extension is asked for."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # An editable install copies the library into the package, and without this only where it is
        # newer than the one there: not back from a later build in another folder.
        self.force = True

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        cmake = find_tool("cmake")
        configure = [
            cmake,
            *("-S", str(SOURCE), "-B", str(BUILD), "-G", "Ninja"),
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            "-DQUTLASS_BUILD_TORCH=ON",
            "-DQUTLASS_BUILD_TESTS=OFF",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        run_tool(configure)
        run_tool([cmake, "--build", str(BUILD), "--parallel", str(job_count())])
        built = BUILD / target.name
        if not built.exists():
            raise SystemExit(
                f"qutlass: no {target.name} was built, because {sys.executable} has no torch, "
                'whose headers it needs; pip install "torch>=2.11" first, or build with isolation.'
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        # Away with the old one first: a process that has it open keeps it whole.
        target.unlink(missing_ok=True)
        shutil.copy2(built, target)

    def get_ext_filename(self, fullname: str) -> str:
        # An ordinary shared library that torch loads, not a Python module: no ABI tag.
        return os.path.join(*fullname.split(".")) + ".so"


class PlatformWheel(bdist_wheel):
    """One wheel for every Python: the library uses torch's stable ABI and none of Python's."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


setup(
    ext_modules=[Extension("qutlass.libqutlass", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": PlatformWheel},
)
