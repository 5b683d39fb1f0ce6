# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib
import json

import pytest
import torch

import qutlass

# `qutlass.doctor` is the function; this is the module of the same name.
doctor = importlib.import_module("qutlass.doctor")

CUDA_BUILD = {
    "version": "1.2.3",
    "cuda": "13.0.88",
    "archs": "sm_80 sm_86 compute_80",
    "cutlass": "4.2.0",
    "driver_cuda": 13000,
    "torch_abi": "2.11",
    "cpu_isa": "avx2",
    "compiler": "12",
}
CPU_BUILD = {**CUDA_BUILD, "cuda": None, "archs": "", "cutlass": None, "driver_cuda": 0}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Stands in for a machine with a GPU that torch sees (or not)."""

    def describe(build: dict, capability: tuple[int, int] | None, seen: bool = True) -> None:
        gpus = []
        if capability:
            code, reason = doctor.serves(build["archs"], capability)
            gpus = [doctor.Gpu("A card", capability, 24.0, code, reason)]
        monkeypatch.setattr(doctor.ops, "build_info", lambda: build)
        monkeypatch.setattr(doctor, "_torch_gpus", lambda build: gpus if seen else [])
        monkeypatch.setattr(doctor, "_driver_gpus", lambda: [(g.name, g.capability) for g in gpus])

    return describe


def test_it_prints_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert qutlass.doctor() is None
    out = capsys.readouterr().out
    for word in (
        "Versions",
        "Backends",
        "GPUs",
        "Operator",
        qutlass.__version__,
        torch.__version__,
    ):
        assert word in out
    for name in qutlass.__all__:
        if name not in ("build_info", "doctor", "explain", "tune"):
            assert name in out


def test_its_data_are_json() -> None:
    found = json.loads(json.dumps(doctor.diagnose().to_dict()))
    assert found["operators"]["matmul_int8_bf16_tn"]["cpu"] == qutlass.build_info()["cpu_isa"]


@pytest.mark.parametrize(
    ("archs", "capability", "code"),
    [
        ("sm_80 sm_86", (8, 0), "compiled"),
        ("sm_80 sm_86", (8, 6), "compiled"),
        ("sm_80", (8, 9), "compiled"),  # machine code runs on later minor versions
        ("sm_86", (8, 0), ""),
        ("sm_86 compute_80", (8, 0), "ptx"),
        ("sm_80 sm_86", (9, 0), ""),
        ("sm_80 compute_80", (9, 0), "ptx"),
        ("sm_80 compute_80", (12, 0), "ptx"),
        ("compute_90", (8, 6), ""),
        ("sm_90a", (9, 0), "compiled"),
        ("sm_120", (12, 0), "compiled"),
        ("sm_80 compute_80", (7, 5), ""),
        ("", (8, 6), ""),
    ],
)
def test_what_serves_a_gpu(archs: str, capability: tuple[int, int], code: str) -> None:
    found, reason = doctor.serves(archs, capability)
    assert found == code
    assert bool(reason) != bool(code)


def test_a_gpu_with_its_code(machine) -> None:
    machine(CUDA_BUILD, (8, 6))
    found = doctor.diagnose()
    assert found.operators["matmul_w4a4_bf16_tn"] == {"cpu": "avx2", "cuda:0": "yes"}
    assert not any("build it" in line for line in found.advice)
    assert "A card, compute capability 8.6, 24 GiB" in str(found)


def test_int4_is_emulated_on_later_gpus(machine) -> None:
    machine(CUDA_BUILD, (9, 0))
    found = doctor.diagnose()
    assert found.operators["matmul_w4a4_bf16_tn"]["cuda:0"] == "emulated INT4"
    assert found.operators["matmul_w4a8_bf16_tn"]["cuda:0"] == "yes"
    assert any("PTX" in line and '"9.0"' in line for line in found.advice)


def test_a_cpu_build_on_a_machine_with_a_gpu(machine, monkeypatch) -> None:
    machine(CPU_BUILD, (8, 6))
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    found = doctor.diagnose()
    assert found.operators["matmul_int8_bf16_tn"]["cuda:0"] == "no"
    [line] = [line for line in found.advice if "built for the CPU only" in line]
    assert "requirements-cuda.txt" in line
    assert 'TORCH_CUDA_ARCH_LIST="8.6"' in line


def test_a_gpu_that_torch_cannot_use(machine) -> None:
    machine(CUDA_BUILD, (8, 6), seen=False)
    found = doctor.diagnose()
    assert found.operators["matmul_int8_bf16_tn"]["cuda:0"] == "no"
    assert any("torch cannot use it" in line for line in found.advice)


def test_a_gpu_that_is_too_old(machine) -> None:
    machine(CUDA_BUILD, (7, 5))
    found = doctor.diagnose()
    assert found.operators["pack_int4"]["cuda:0"] == "no"
    assert any("older than compute capability 8.0" in line for line in found.advice)


def test_an_old_driver(machine) -> None:
    machine({**CUDA_BUILD, "driver_cuda": 12040}, (8, 6))
    assert any("runs CUDA 12.4" in line for line in doctor.diagnose().advice)


def test_no_gpu(machine) -> None:
    machine(CUDA_BUILD, None)
    found = doctor.diagnose()
    assert found.gpus == []
    assert found.operators["pack_int4"] == {"cpu": "yes", "cuda": "no GPU"}


def test_tuned_choices(machine, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("QUTLASS_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("QUTLASS_TUNED", raising=False)
    machine(CUDA_BUILD, (8, 6))

    def said() -> str:
        return doctor.diagnose().backends["tuned choices, A card"]

    assert said() == "none: `python -m qutlass tune` measures"
    path = doctor.tuned.path_for("A card")
    doctor.tuned.Results("A card").save(path)
    assert said() == f"0 in {path}"
    path.write_text("{")
    assert said().startswith(f"{path} is not used: it is no JSON")
    monkeypatch.setenv("QUTLASS_TUNED", "0")
    assert said() == "not used: QUTLASS_TUNED is 0"
    machine(CUDA_BUILD, None)
    assert set(doctor.diagnose().backends) == {"CPU", "CUDA"}
