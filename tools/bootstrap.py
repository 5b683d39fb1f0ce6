# SPDX-License-Identifier: Apache-2.0
"""Makes a virtual environment with qutlass built and installed in it: the first half of `make demo`
and `make test`. Needs Python 3.10 and a C++ compiler; everything else comes from PyPI.

    python3 tools/bootstrap.py demo   what this machine can run: its GPU's architecture, or CPU only
    python3 tools/bootstrap.py test   CPU, and 8.0 and 8.6 where there is nvcc; with the C++ tests

TORCH_CUDA_ARCH_LIST overrides the choice of architectures, PIP_CONSTRAINT that of versions.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from toolchain import CUTLASS_PACKAGE, ROOT, gpu_architectures, has_cutlass, has_nvcc

# A CPU build is a tenth of the download of a CUDA one. Indexes that carry CPU builds name them so;
# where none does, the plain requirement takes what there is.
CPU_TORCH = "torch==2.13.0+cpu"
TORCH = "torch>=2.11"
OLDEST_GPU = 8.0
EXTRAS = {"demo": "demo", "test": "demo,test"}  # the demo has tests too


def say(text: str) -> None:
    print(f"== {text}", flush=True)


def run(*command: str | Path, check: bool = True) -> bool:
    words = [str(word) for word in command]
    print("+", shlex.join(words), flush=True)
    code = subprocess.run(words, cwd=ROOT).returncode
    if code and check:
        raise SystemExit(f"bootstrap: `{shlex.join(words[:4])} ...` failed, see above")
    return code == 0


def make_environment(venv: Path) -> Path:
    """The environment's Python, made on the first call."""
    python = venv / "bin" / "python"
    if not python.exists():
        say(f"a virtual environment in {venv}")
        made = run(sys.executable, "-m", "venv", venv, check=False)
        if not made:
            shutil.rmtree(venv, ignore_errors=True)
            raise SystemExit(
                "bootstrap: this Python cannot make virtual environments; install its venv module "
                "(on Debian and Ubuntu the package python3-venv) and try again"
            )
    return python


def has_torch(python: Path) -> bool:
    script = (
        "from importlib.metadata import version as v;"
        "raise SystemExit(tuple(map(int, v('torch').split('.')[:2])) < (2, 11))"
    )
    return subprocess.run([python, "-c", script], stderr=subprocess.DEVNULL).returncode == 0


def environment_sites(venv: Path) -> list[Path]:
    return list(venv.glob("lib*/python*/site-packages"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("purpose", choices=("demo", "test"))
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", metavar="FOLDER")
    parser.add_argument("--constraints", metavar="FILE", help="as pip's PIP_CONSTRAINT")
    args = parser.parse_args()
    if sys.version_info < (3, 10):  # noqa: UP036 (whoever runs this may have any Python)
        raise SystemExit(f"bootstrap: Python 3.10 or later is needed, this is {sys.version}")
    if not os.environ.get("CXX") and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise SystemExit("bootstrap: no C++ compiler was found; install one, e.g. g++")
    if args.constraints:
        os.environ["PIP_CONSTRAINT"] = str(Path(args.constraints).resolve())
    os.environ["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"

    gpus = [gpu for gpu in gpu_architectures() if float(gpu) >= OLDEST_GPU]
    venv = args.venv.resolve()
    python = make_environment(venv)
    # Bytecode is made when a module is first imported, which most of these never are. The conflict
    # pip would warn of is CUTLASS's package without the packages that its Python part imports.
    pip = [python, "-m", "pip", "install", "--no-compile", "--no-warn-conflicts", "-q"]
    if not has_torch(python):
        say("torch")
        if gpus or not run(*pip, CPU_TORCH, check=False):
            run(*pip, TORCH)
    say("build tools")
    run(*pip, "-r", "requirements.txt")

    chosen = os.environ.get("TORCH_CUDA_ARCH_LIST") or os.environ.get("CMAKE_CUDA_ARCHITECTURES")
    if gpus and not has_nvcc(environment_sites(venv)):
        say("a CUDA compiler, for the GPU of this machine")
        run(*pip, "-r", "requirements-cuda.txt")
    cuda = has_nvcc(environment_sites(venv))
    if args.purpose == "demo" and not chosen:
        cuda = cuda and bool(gpus)
        os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(gpus)
    if cuda and not has_cutlass():
        say("the headers of CUTLASS")
        run(*pip, "--no-deps", CUTLASS_PACKAGE)

    options = {"QUTLASS_WITH_CUDA": cuda, "QUTLASS_BUILD_TESTS": args.purpose == "test"}
    cmake_args = [f"-D{name}={'ON' if on else 'OFF'}" for name, on in options.items()]
    # What the person says comes last, and so counts.
    os.environ["CMAKE_ARGS"] = " ".join([*cmake_args, os.environ.get("CMAKE_ARGS", "")])
    # A folder each, so that going from one to the other recompiles nothing.
    os.environ["QUTLASS_BUILD_DIR"] = str(ROOT / "build" / args.purpose)
    archs = os.environ.get("TORCH_CUDA_ARCH_LIST") or chosen or "8.0 and 8.6"
    say(f"qutlass for {f'CPU and CUDA ({archs})' if cuda else 'CPU only'}")
    # Verbose, because a build that takes minutes should show that it moves.
    run(*pip[:-1], "-v", "--no-build-isolation", "--no-deps", "-e", ".")
    say(f"what the {args.purpose} needs besides")
    run(*pip, f"qutlass[{EXTRAS[args.purpose]}]")


if __name__ == "__main__":
    main()
