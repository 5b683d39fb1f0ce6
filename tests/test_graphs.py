# SPDX-License-Identifier: Apache-2.0
"""How operators behave among others: captured, on another stream, on another device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

import truth
from cases import CALL_NAMES, Call, example_call

pytestmark = pytest.mark.gpu

two_devices = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second CUDA GPU")
every_call = pytest.mark.parametrize("name", CALL_NAMES)

# Long enough for a launch on the wrong stream to run before what it should have waited for.
_SLEEP_CYCLES = 20_000_000


@contextmanager
def sync_is_an_error() -> Iterator[None]:
    """torch raises on a synchronising call of its own."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def assert_same(got: list[torch.Tensor], want: list[torch.Tensor]) -> None:
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        truth.assert_same_bits(g, w)


def capture(call: Call) -> tuple[torch.cuda.CUDAGraph, list[torch.Tensor]]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    return graph, out


def overwrite(call: Call, new: Call) -> None:
    for old_tensor, new_tensor in zip(call.all_tensors(), new.all_tensors(), strict=True):
        old_tensor.copy_(new_tensor)


@every_call
def test_graph(name: str) -> None:
    """A replay reads what its operands hold then, and gives the bits of an eager call."""
    call, other = example_call(name, "cuda"), example_call(name, "cuda", seed="other")
    first, second = call(), other()
    assert any(not torch.equal(f, s) for f, s in zip(first, second, strict=True))
    graph, out = capture(call)
    for _ in range(3):
        for t in out:
            t.fill_(1)
        graph.replay()
        assert_same(out, first)
    overwrite(call, other)
    for _ in range(3):
        graph.replay()
        assert_same(out, second)


def test_everything_in_one_graph() -> None:
    """Workspaces of one call do not reach into another's in the graph's memory pool."""
    calls = [example_call(name, "cuda") for name in CALL_NAMES]
    want = [call() for call in calls]

    def run() -> list[torch.Tensor]:
        return [t for call in calls for t in call()]

    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        out = run()
    for _ in range(5):
        graph.replay()
    assert_same(out, [t for tensors in want for t in tensors])


@every_call
def test_side_stream(name: str) -> None:
    """The operator runs on the current stream: it waits for operands that are still being made
    there, and what follows there waits for it."""
    want = example_call(name, "cuda")()
    source = example_call(name, "cuda")
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        call = source.map(torch.zeros_like)
        warm = source()  # any first-call work is done before the race starts
        side.synchronize()
        torch.cuda._sleep(_SLEEP_CYCLES)
        overwrite(call, source)
        out = [t.clone() for t in call()] if name != "pack_int4" else call()
        del warm
    side.synchronize()
    assert_same(out, want)


@every_call
def test_no_synchronisation(name: str) -> None:
    """The call returns while the GPU is still busy with what came before it."""
    if name == "pack_int4":
        pytest.skip("pack_int4 reads back whether a value was out of range")
    call = example_call(name, "cuda")
    call()
    torch.cuda.synchronize()
    done = torch.cuda.Event()
    torch.cuda._sleep(_SLEEP_CYCLES * 10)
    done.record()
    with sync_is_an_error():
        call()
    returned_early = not done.query()
    torch.cuda.synchronize()
    assert returned_early


@two_devices
@every_call
def test_second_device(name: str) -> None:
    """The operands' device is used, and the current one is left as it was."""
    want = example_call(name, "cuda:0")()
    with torch.cuda.device(0):
        out = example_call(name, "cuda:1")()
        assert torch.cuda.current_device() == 0
        assert all(t.device == torch.device("cuda:1") for t in out)
        assert_same([t.to("cuda:0") for t in out], want)


@two_devices
def test_operands_on_two_devices_are_refused() -> None:
    call = example_call("int8-channel", "cuda:0")
    call.tensors[1] = call.tensors[1].to("cuda:1")
    with pytest.raises(ValueError, match=r"matmul_int8_bf16_tn: b .*cuda:0.*cuda:1"):
        call()


def test_many_streams_at_once() -> None:
    """Calls that overlap on several streams do not share a workspace."""
    names = [name for name in CALL_NAMES if name != "pack_int4"]
    want = {name: example_call(name, "cuda")() for name in names}
    calls = {name: example_call(name, "cuda") for name in names}
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(4)]
    results: list[tuple[str, list[torch.Tensor]]] = []
    for _ in range(3):
        for i, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                results += [(name, calls[name]()) for name in names[i:] + names[:i]]
    torch.cuda.synchronize()
    for name, out in results:
        assert_same(out, want[name])
