# SPDX-License-Identifier: Apache-2.0
"""The architecture as rules a program can check: who may include or import whom."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
CSRC = CHECKOUT / "csrc"
PACKAGE = CHECKOUT / "python" / "qutlass"

# A layer of csrc/ and the layers whose headers it may use; cpu computes what gemm/problem.h and
# quant/quant.h describe.
BELOW = {
    "common": {"common"},
    "gemm": {"gemm", "common"},
    "quant": {"quant", "common"},
    "cpu": {"cpu", "gemm", "quant", "common"},
    "torch": {"torch", "cpu", "gemm", "quant", "common"},
}
# The headers cpu may take from its neighbours.
INTERFACES = {"gemm/problem.h", "quant/quant.h"}
STABLE_TORCH = ("torch/csrc/stable/", "torch/headeronly/", "torch/csrc/inductor/aoti_torch/c/")

# Modules of the package from the bottom up; each imports only those before it.
MODULES = [
    "_version",
    "reference",
    "_library",
    "timing",
    "ops",
    "tuned",
    "nn",
    "integrations",
    "tuning",
    "doctor",
    "demo",
    "bench",
    "cli",
]

_INCLUDE = re.compile(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', re.MULTILINE)


def includes(source: str) -> list[str]:
    return _INCLUDE.findall(source)


def is_cuda_or_cutlass(header: str) -> bool:
    return header.startswith(("cutlass/", "cute/", "cuda", "cub/", "thrust/", "nv/")) or (
        header in ("mma.h", "device_launch_parameters.h", "curand.h")
    )


def broken_include_rules(path: str, source: str) -> list[str]:
    """What is wrong with the includes of a file of csrc/, named relative to it."""
    layer = path.split("/")[0]
    wrong = []
    for header in includes(source):
        to = header.split("/")[0]
        if header.startswith((".", "/")):
            wrong.append(f"{path}: includes {header} by a relative or absolute path")
        if (
            "/" not in header
            and re.search(r"\.(h|hpp|cuh|inc)$", header)
            and ((CSRC / path).parent / header).exists()
        ):
            wrong.append(f"{path}: includes {header} without its folder")
        if to == "torch" and header.startswith(STABLE_TORCH):
            if layer != "torch":
                wrong.append(f"{path}: includes {header}; torch belongs to csrc/torch")
        elif to in ("torch", "ATen", "c10", "pybind11", "Python.h") and not (
            layer == "torch" and (CSRC / header).exists()
        ):
            wrong.append(f"{path}: includes {header}, which is outside torch's stable ABI")
        elif to in BELOW:
            if to not in BELOW.get(layer, set()):
                wrong.append(f"{path}: includes {header}; {layer} may not include {to}")
            if layer == "cpu" and to in ("gemm", "quant") and header not in INTERFACES:
                wrong.append(f"{path}: includes {header}; cpu takes only {sorted(INTERFACES)}")
        if path.endswith(".h") and is_cuda_or_cutlass(header):
            wrong.append(f"{path}: a .h includes {header}; CUTLASS and CUDA belong in .cuh and .cu")
        if path.endswith(".h") and header.endswith(".cuh"):
            wrong.append(f"{path}: a .h includes {header}")
        if layer in ("cpu", "torch") and header.startswith(("cutlass/", "cute/")):
            wrong.append(f"{path}: includes {header}; kernels belong to gemm and quant")
    return wrong


def broken_import_rules(module: str, source: str) -> list[str]:
    """What is wrong with the imports of a module of the package, function bodies included."""
    wrong = []
    rank = MODULES.index(module)
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "qutlass" if node.level else ""
            base = ".".join(part for part in (base, node.module or "") if part)
            names = [f"{base}.{alias.name}" if base == "qutlass" else base for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "legacy_blackwell":
                wrong.append(f"{module} imports the legacy {name}")
            ours = parts[0] == "qutlass" and len(parts) > 1 and parts[1] in MODULES
            if ours and MODULES.index(parts[1]) > rank:
                wrong.append(f"{module} imports {parts[1]}, which stands above it")
    return wrong


def sources(root: Path, suffixes: Iterable[str]) -> list[Path]:
    return sorted(
        p for p in root.rglob("*") if p.suffix in suffixes and "__pycache__" not in p.parts
    )


def module_of(path: Path) -> str:
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "cli" if name == "__main__" else name


def test_includes_go_down() -> None:
    files = sources(CSRC, {".h", ".cuh", ".cpp", ".cu", ".inc"})
    assert {p.relative_to(CSRC).parts[0] for p in files} == set(BELOW), "a layer came or went"
    wrong = []
    for p in files:
        wrong += broken_include_rules(p.relative_to(CSRC).as_posix(), p.read_text())
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("gemm/launch.cu", '#include "quant/quant.h"'),
        ("quant/pack.cu", '#include "gemm/problem.h"'),
        ("common/nibble.h", '#include "gemm/problem.h"'),
        ("gemm/gemm.h", '#include "torch/checks.h"'),
        ("gemm/gemm.h", "#include <cutlass/cutlass.h>"),
        ("gemm/gemm.h", "  #  include <cuda_runtime.h>"),
        ("common/param.h", '#include "common/load_param.cuh"'),
        ("cpu/gemm.cpp", "#include <torch/csrc/stable/tensor.h>"),
        ("cpu/gemm.cpp", '#include "gemm/gemm.h"'),
        ("torch/ops.cpp", "#include <ATen/ATen.h>"),
        ("torch/ops.cpp", "#include <torch/torch.h>"),
        ("torch/ops.cpp", "#include <c10/cuda/CUDAStream.h>"),
        ("torch/ops.cpp", '#include "../gemm/gemm.h"'),
    ],
)
def test_the_include_rules_catch(path: str, line: str) -> None:
    assert broken_include_rules(path, f"// a file\n{line}\n")


def test_imports_go_down() -> None:
    files = sources(PACKAGE, {".py"})
    modules = {module_of(p) for p in files} - {"__init__"}
    assert modules <= set(MODULES), f"give {sorted(modules - set(MODULES))} a place in MODULES"
    wrong = []
    for p in files:
        if module_of(p) != "__init__":
            wrong += broken_import_rules(module_of(p), p.read_text())
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("ops", "from qutlass.nn import QuantLinear"),
        ("ops", "from qutlass import nn"),
        ("ops", "from . import nn"),
        ("ops", "from .nn import QuantLinear"),
        ("reference", "def f():\n    import qutlass.ops"),
        ("nn", "import legacy_blackwell.reference"),
    ],
)
def test_the_import_rules_catch(module: str, line: str) -> None:
    assert broken_import_rules(module, line)


def test_every_source_names_its_license() -> None:
    suffixes = {".py", ".h", ".cuh", ".cpp", ".cu", ".inc", ".sh", ".cmake"}
    roots = ("csrc", "python", "tests", "bench", "tools", "cmake", ".ci", "legacy_blackwell")
    files = [p for root in roots for p in sources(CHECKOUT / root, suffixes)]
    files += [CHECKOUT / name for name in ("CMakeLists.txt", "setup.py", "Makefile", ".ci/run")]
    assert len(files) > 20
    without = [
        str(p.relative_to(CHECKOUT))
        for p in files
        if "SPDX-License-Identifier: Apache-2.0" not in "\n".join(p.read_text().splitlines()[:3])
    ]
    assert not without, without


def test_every_header_is_included_once() -> None:
    """Each .h and .cuh guards itself."""
    files = sources(CSRC, {".h", ".cuh"})
    assert files
    without = [str(p.relative_to(CSRC)) for p in files if "#pragma once" not in p.read_text()]
    assert not without, without


def test_no_float_atomics() -> None:
    """Results are the same bits every run, so no kernel adds floats in the order blocks finish."""
    atomic = re.compile(r"atomicAdd\s*\(\s*(reinterpret_cast<)?\s*\(?(float|__half|__nv_bfloat16)")
    reduction = re.compile(r"red(\.\w+)*\.add(\.\w+)*\.(f16|f32|f64|bf16)")
    files = sources(CSRC, {".cuh", ".cu", ".h"})
    wrong = [
        p.name for p in files if atomic.search(p.read_text()) or reduction.search(p.read_text())
    ]
    assert not wrong, wrong
