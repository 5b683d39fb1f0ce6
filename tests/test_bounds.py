# SPDX-License-Identifier: Apache-2.0
"""No operator reads or writes outside its tensors.

On the CPU each call runs in a child process with its operands between pages that may not be touched
and with glibc's checking malloc, which keeps a guard byte behind every allocation. On a GPU each
call allocates from an arena full of a pattern, which must survive everywhere but in what torch's
allocator handed out.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import truth
from cases import CALL_NAMES, example_call
from harness import poisoned_memory

_CHECKING_MALLOC = "libc_malloc_debug.so.0"  # glibc 2.34 and later
_PATTERN = 0xA5


def fenced(side: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Copies a tensor to where the byte before ("before") or after it ("after") is off limits."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    page = mmap.PAGESIZE

    def move(t: torch.Tensor) -> torch.Tensor:
        t = t.contiguous()
        size = t.numel() * t.element_size()
        room = -(-size // page) * page
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        base = libc.mmap(None, room + 2 * page, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        for fence in (base, base + page + room):
            if libc.mprotect(fence, page, 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        start = base + page + (room - size if side == "after" else 0)
        # The mapping is left to the end of the process: the tensor may outlive this function.
        memory = (ctypes.c_uint8 * size).from_address(start)
        copy = torch.frombuffer(memory, dtype=torch.uint8).view(t.dtype).view(t.shape)
        return copy.copy_(t)

    return move


def child(what: str) -> None:
    """What the child process does; its death is the parent's failure."""
    torch.set_num_threads(2)
    if what == "overrun":
        # torch aligns its allocations to 64 bytes, and glibc guards the byte after the size asked.
        t = torch.zeros(1000, dtype=torch.uint8)
        ctypes.memset(t.data_ptr() + 1000, 0, 1)
        del t
        return
    if what in ("overread after", "overread before"):
        t = fenced(what.split()[1])(torch.zeros(1000, dtype=torch.uint8))
        ctypes.string_at(t.data_ptr() + (1000 if "after" in what else -1), 1)
        return
    for name in CALL_NAMES:
        print(f"{name}, {what}", flush=True)
        call = example_call(name)
        want = call()
        for _ in range(2):
            got = call.map(fenced(what))()
            for g, w in zip(got, want, strict=True):
                truth.assert_same_bits(g, w, name)
            del got
    print("all ran", flush=True)


def run_child(what: str) -> subprocess.CompletedProcess[str]:
    import qutlass

    here = Path(__file__).resolve().parent
    roots = [str(Path(qutlass.__file__).resolve().parent.parent), str(here)]
    path = os.pathsep.join(filter(None, [*roots, os.environ.get("PYTHONPATH")]))
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "LD_PRELOAD": _CHECKING_MALLOC,
        "GLIBC_TUNABLES": "glibc.malloc.check=3:glibc.malloc.perturb=165",
    }
    command = [sys.executable, str(Path(__file__).resolve()), what]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def has_checking_malloc() -> bool:
    try:
        ctypes.CDLL(_CHECKING_MALLOC)
    except OSError:
        return False
    return True


needs_checking_malloc = pytest.mark.skipif(
    not has_checking_malloc(), reason=f"this system's libc brings no {_CHECKING_MALLOC}"
)


def test_memory_is_poisoned() -> None:
    """What harness.call leaves in memory that an operator forgets to write."""
    with poisoned_memory("cpu"):
        t = torch.empty(30000, dtype=torch.uint8)
    assert (t == 0xFE).all()


@needs_checking_malloc
@pytest.mark.parametrize("what", ["overrun", "overread after", "overread before"])
def test_the_fences_hold(what: str) -> None:
    """The child that does wrong on purpose dies of it."""
    died_of = signal.SIGABRT if what == "overrun" else signal.SIGSEGV
    ran = run_child(what)
    assert ran.returncode == -died_of, f"{ran.returncode}\n{ran.stdout}\n{ran.stderr}"


@needs_checking_malloc
@pytest.mark.parametrize("side", ["after", "before"])
def test_on_the_cpu(side: str) -> None:
    ran = run_child(side)
    assert ran.returncode == 0 and "all ran" in ran.stdout, (
        f"exit status {ran.returncode} in {ran.stdout.splitlines()[-1:]}\n{ran.stderr[-3000:]}"
    )


# --------------------------------------------------------------------------------------------------


class _Memory:
    """Device memory that torch may look at without owning it."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (address, False),
            "strides": None,
            "version": 3,
        }


def stray_writes(run: Callable[[], object]) -> int:
    """Runs something with the allocator confined to one segment full of a pattern; how many bytes
    changed outside of what was allocated there, which must be something."""
    half = 2**20  # the largest allocation that the allocator's pool of small ones serves
    with torch.cuda.use_mem_pool(torch.cuda.MemPool()):
        # Two of them make up exactly one segment, which stays, whole again, when they are freed.
        parts = [torch.full((half,), _PATTERN, dtype=torch.uint8, device="cuda") for _ in "ab"]
        base, end = min(t.data_ptr() for t in parts), max(t.data_ptr() for t in parts) + half
        assert end - base == 2 * half
        del parts
        arena = torch.as_tensor(_Memory(base, 2 * half), device="cuda")
        # Compared on the host: a comparison on the GPU would use the memory it looks at.
        assert arena.data_ptr() == base and (arena.cpu() == _PATTERN).all()
        torch.cuda.memory._record_memory_history(enabled="all", context=None)
        try:
            out = run()
            torch.cuda.synchronize()
            trace = torch.cuda.memory._snapshot()["device_traces"][torch.cuda.current_device()]
        finally:
            torch.cuda.memory._record_memory_history(enabled=None)
        free = torch.ones(2 * half, dtype=torch.bool)
        handed_out = [e for e in trace if e["action"] == "alloc" and base <= e["addr"] < end]
        assert handed_out
        for event in handed_out:
            start = event["addr"] - base
            free[start : start + event["size"]] = False
        changed = arena.cpu() != _PATTERN
        del out
    return int((changed & free).sum())


@pytest.mark.gpu
def test_the_arena_notices() -> None:
    def write_past_the_end() -> torch.Tensor:
        t = torch.zeros(1000, dtype=torch.uint8, device="cuda")
        torch.as_tensor(_Memory(t.data_ptr(), 1003), device="cuda").zero_()
        return t

    assert stray_writes(write_past_the_end) == 3
    assert stray_writes(lambda: torch.zeros(1000, dtype=torch.uint8, device="cuda")) == 0


@pytest.mark.gpu
@pytest.mark.parametrize("name", CALL_NAMES)
def test_on_a_gpu(name: str) -> None:
    call = example_call(name, "cuda")
    want = call()  # made, and warmed up, outside the arena
    results: list[torch.Tensor] = []

    def run() -> None:
        results.extend(call())

    assert stray_writes(run) == 0
    for got, expected in zip(results, want, strict=True):
        truth.assert_same_bits(got, expected, name)


if __name__ == "__main__":
    child(sys.argv[1])
