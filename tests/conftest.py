# SPDX-License-Identifier: Apache-2.0
"""Markers, devices and parameters of the tests."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch

CHECKOUT = Path(__file__).resolve().parent.parent

# An installed qutlass (editable or not) is tested where there is one, else the checkout's.
if importlib.util.find_spec("qutlass") is None:
    sys.path.insert(0, str(CHECKOUT / "python"))

# What was tuned on this machine is no part of a test that does not say so.
os.environ["QUTLASS_TUNED"] = "0"

import qutlass.tuned  # noqa: E402
from cases import gemm_cases, generator, rows_of  # noqa: E402

MARKERS = {
    "gpu": "needs a CUDA GPU and a build of qutlass with CUDA; skipped, saying so, without",
    "compact": "a GPU test small enough for compute-sanitizer (see tools/sanitize.py)",
}


def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


def why_no_gpu() -> str | None:
    """Why the gpu tests cannot run here; None where they can."""
    if not torch.backends.cuda.is_built():
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return "torch sees no CUDA GPU"
    if torch.cuda.get_device_capability() < (8, 0):
        return f"{torch.cuda.get_device_name()} is older than compute capability 8.0"
    return None if qutlass.ops._gemm_tiles() else "qutlass was built for CPU only"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    needing = [item for item in items if item.get_closest_marker("gpu")]
    reason = why_no_gpu() if needing else None
    if reason:
        for item in needing:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Each test that takes it runs once on the CPU and once on a GPU."""
    return request.param


@pytest.fixture
def empty_tuning_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Tuned choices are in use, in an empty cache; nothing was read before or is left behind."""
    monkeypatch.setenv("QUTLASS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("QUTLASS_TUNED", raising=False)
    qutlass.tuned.reset()
    yield
    monkeypatch.undo()
    qutlass.tuned.reset()


@pytest.fixture
def seeded(request: pytest.FixtureRequest) -> torch.Generator:
    """A CPU generator seeded by the test's own id."""
    return generator(request.node.nodeid.rsplit("/", 1)[-1])


# --------------------------------------------------------------------------------------------------
# Parameters that depend on the suite: see matmul_suite.py.


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    op = getattr(metafunc.cls, "op", None)
    if "gemm_case" in metafunc.fixturenames:
        metafunc.parametrize(
            ("gemm_device", "gemm_case"),
            [
                pytest.param(device, case, id=f"{device}-{case.id}", marks=marks)
                for device, marks in (("cpu", ()), ("cuda", (pytest.mark.gpu,)))
                for case in gemm_cases(op, device)
            ],
        )
    if "gemm_row" in metafunc.fixturenames:
        # A build for the CPU only has no rows; the test is then skipped as others that need a GPU.
        rows = rows_of(op) or [None]
        metafunc.parametrize("gemm_row", rows, ids=[row["name"] if row else "row" for row in rows])
