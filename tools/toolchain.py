# SPDX-License-Identifier: Apache-2.0
"""What this machine has to build CUDA code with. Standard library only: it runs before anything is
installed, in the build backend and in tools/bootstrap.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CUTLASS_PACKAGE = "nvidia-cutlass==4.2.0.0"


def site_packages() -> list[str]:
    """Where the Python that runs this keeps its packages."""
    return sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})


def has_nvcc(sites: Iterable[str | Path]) -> bool:
    """Whether cmake/cuda_compiler.cmake, given the same packages, is going to look at an nvcc."""
    return (
        any(os.environ.get(name) for name in ("CUDACXX", "CUDA_HOME", "CUDA_PATH"))
        or shutil.which("nvcc") is not None
        or Path("/usr/local/cuda/bin/nvcc").exists()
        or any(any(Path(site).glob("nvidia/*/bin/nvcc")) for site in sites)
    )


def has_cutlass() -> bool:
    """Whether CUTLASS's headers are at hand without its package."""
    submodule = ROOT / "third_party" / "cutlass" / "include"
    return bool(os.environ.get("CUTLASS_PATH")) or submodule.is_dir()


def gpu_architectures() -> list[str]:
    """Compute capabilities of the GPUs that the driver shows, as "8.6"; empty without a driver."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = answer.stdout.split() if answer.returncode == 0 else []
    return sorted({line for line in lines if line.replace(".", "", 1).isdecimal()}, key=float)
