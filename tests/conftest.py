# SPDX-License-Identifier: Apache-2.0
"""Markers, devices and how a test calls an operator."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

CHECKOUT = Path(__file__).resolve().parent.parent

# An installed qutlass (editable or not) is tested where there is one, else the checkout's.
if importlib.util.find_spec("qutlass") is None:
    sys.path.insert(0, str(CHECKOUT / "python"))

import qutlass  # noqa: E402
from cases import GemmInputs, gemm_cases, generator, rows_of  # noqa: E402

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
def seeded(request: pytest.FixtureRequest) -> torch.Generator:
    """A CPU generator seeded by the test's own id."""
    return generator(request.node.nodeid.rsplit("/", 1)[-1])


_LIBC = ctypes.CDLL(None)
_M_PERTURB = -6  # of glibc's malloc.h


@contextmanager
def poisoned_memory(device: str | torch.device, *sizes: int) -> Iterator[None]:
    """Makes memory an operator is about to allocate hold garbage, so that an element it leaves
    unwritten shows. On the CPU malloc fills what it hands out (where the C library is glibc). On a
    GPU blocks of the given sizes in bytes, full of ones (NaN as bfloat16), are left for torch's
    allocator to hand out again.
    """
    if torch.device(device).type != "cpu":
        blocks = [torch.full((max(n, 1),), 0xFF, dtype=torch.uint8, device=device) for n in sizes]
        del blocks
        yield
    elif hasattr(_LIBC, "mallopt"):
        _LIBC.mallopt(_M_PERTURB, 1)  # the bytes are its complement, 0xFE
        try:
            yield
        finally:
            _LIBC.mallopt(_M_PERTURB, 0)
    else:
        yield


def raw_bytes(t: torch.Tensor) -> torch.Tensor:
    """The bytes of the elements, in order, so that NaN equals itself."""
    return t.reshape(-1).contiguous().view(torch.uint8)


def call(x: GemmInputs, operator: Callable[..., torch.Tensor] | None = None) -> torch.Tensor:
    """Runs a product on poisoned memory, and checks that it left its operands alone."""
    operator = operator or getattr(qutlass, x.operator)
    positional, keyword = x.arguments()
    operands = [*positional, *keyword.values()]
    before = [t._version for t in operands]
    copies = [t.clone() for t in operands]
    with poisoned_memory(x.a.device, 2 * x.a_values.shape[0] * x.case.n, 4 * x.case.n):
        out = operator(*positional, **keyword)
    for t, version, copy in zip(operands, before, copies, strict=True):
        same = torch.equal(raw_bytes(t), raw_bytes(copy))
        assert t._version == version and same, "an operand was written to"
    return out


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


def run_row(x: GemmInputs, row: dict[str, Any], split_k: int) -> torch.Tensor | None:
    """A product on one row of the table, k split so many ways; None where the row cannot."""
    shape = (x.a_values.shape[0], x.case.n, x.case.k, x.case.group or None)
    device = torch.cuda.current_device()
    legal = qutlass.ops._gemm_legal(x.case.kernels, row["index"], split_k, *shape, device=device)
    if not legal:
        return None
    v = dict(x.vectors)
    v["b_scale"] = v.pop("scales", v.get("b_scale"))
    v["b_zero"] = v.pop("zeros", v.get("b_zero"))
    names = ("a_scale", "b_scale", "a_zero", "b_zero", "b_sum", "bias", "b_multiplier")
    vectors = [v.get(name) for name in names]
    run = torch.ops.qutlass._gemm_with_tile.default
    with poisoned_memory(x.a.device, 2 * x.a_values.shape[0] * x.case.n):
        return run(x.case.kernels, row["index"], split_k, x.a, x.b, *vectors)
