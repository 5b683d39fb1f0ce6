# SPDX-License-Identifier: Apache-2.0
"""How a test calls an operator."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from hypothesis import HealthCheck, settings

import qutlass
from cases import GemmInputs

# Of property tests: the same examples every time, on however slow a machine. Suites share tests by
# inheritance, which would confuse only a replay from the database that there is none of.
PROPERTY = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
)

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
