# SPDX-License-Identifier: Apache-2.0
"""The operators inside torch.compile and torch.export, with shapes that change."""

from __future__ import annotations

import io

import pytest
import torch

import qutlass
import truth
from cases import CALL_NAMES, Call, example_call

every_call = pytest.mark.parametrize("name", CALL_NAMES)

# Which tensors have a row for each token; of other operators all do.
_TOKEN_ARGUMENTS = {0, 2, "a_zero"}


def tensors_of(call: Call) -> dict[int | str, torch.Tensor]:
    """Positional ones by index, the others by name."""
    named = {k: v for k, v in call.keywords.items() if isinstance(v, torch.Tensor)}
    return {**dict(enumerate(call.tensors)), **named}


def token_keys(call: Call) -> set[int | str]:
    keys = set(tensors_of(call))
    if call.operator == "matmul_int4_bf16_tn":
        return {0}
    return keys & _TOKEN_ARGUMENTS if call.operator.startswith("matmul") else keys


def with_rows(call: Call, rows: int) -> Call:
    """The call with that many tokens, up to as many as it has."""
    keys = token_keys(call)

    def cut(key: int | str, t: torch.Tensor) -> torch.Tensor:
        return t[:rows].clone() if key in keys else t

    keywords = {
        k: cut(k, v) if isinstance(v, torch.Tensor) else v for k, v in call.keywords.items()
    }
    tensors = [cut(i, t) for i, t in enumerate(call.tensors)]
    return Call(call.name, call.operator, tensors, keywords)


def run(call: Call, function) -> list[torch.Tensor]:
    out = function(*call.tensors, **call.keywords)
    return [t for t in (out if isinstance(out, tuple) else (out,)) if t is not None]


def assert_same(got: list[torch.Tensor], want: list[torch.Tensor]) -> None:
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        truth.assert_same_bits(g, w)


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Counter:
    """A backend that counts the graphs it compiles and runs them as traced by AOTAutograd."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)


@every_call
def test_compiled_without_breaks_or_recompiles(device: str, name: str) -> None:
    """One graph serves every number of tokens above one (which torch itself specialises)."""
    call = example_call(name, device)
    counter = Counter()
    compiled = torch.compile(
        getattr(qutlass, call.operator), fullgraph=True, dynamic=True, backend=counter
    )
    for rows in (35, 16, 2, 17):
        part = with_rows(call, rows)
        assert_same(run(part, compiled), part())
    assert counter.graphs == 1


@pytest.mark.parametrize("name", [name for name in CALL_NAMES if not name.endswith("no_sum")])
def test_inductor(device: str, name: str) -> None:
    """The default backend, with work of its own around the operator, whose buffers it reuses."""
    call = example_call(name, device)
    operator = getattr(qutlass, call.operator)

    def program(*tensors, **keywords):
        out = operator(*tensors, **keywords)
        out = out if isinstance(out, tuple) else (out,)
        return [None if t is None else t + 1 for t in out]

    compiled = torch.compile(program, fullgraph=True, dynamic=True)
    for rows in (35, 9):
        part = with_rows(call, rows)
        got = [t for t in compiled(*part.tensors, **part.keywords) if t is not None]
        assert_same(got, [t + 1 for t in part()])


class Module(torch.nn.Module):
    """A call as torch.export takes it: what is None is left out, as nobody could read it."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.operator = getattr(qutlass, call.operator)
        self.options = {k: v for k, v in call.keywords.items() if not isinstance(v, torch.Tensor)}
        self.names = [k for k in call.keywords if k not in self.options]
        self.positional = len(call.tensors)

    def forward(self, *tensors):
        named = dict(zip(self.names, tensors[self.positional :], strict=True))
        out = self.operator(*tensors[: self.positional], **named, **self.options)
        return [t for t in (out if isinstance(out, tuple) else (out,)) if t is not None]


@every_call
def test_export(device: str, name: str) -> None:
    """Exported with any number of tokens, saved, loaded, and run with another number."""
    call = example_call(name, device)
    keys = token_keys(call)
    tokens = torch.export.Dim("tokens", min=2, max=4096)
    tensors = tensors_of(call)
    shapes = tuple({0: tokens} if key in keys else {} for key in tensors)
    module = Module(call)
    program = torch.export.export(module, tuple(tensors.values()), dynamic_shapes=(shapes,))
    stored = io.BytesIO()
    torch.export.save(program, stored)
    stored.seek(0)
    loaded = torch.export.load(stored).module()
    nodes = [n for n in program.graph.nodes if "qutlass" in str(n.target)]
    assert len(nodes) == 1
    for rows in (35, 8):
        part = with_rows(call, rows)
        assert_same(list(loaded(*tensors_of(part).values())), part())


@pytest.mark.parametrize("operator", ["matmul_int8_bf16_tn", "matmul_w4a8_bf16_tn"])
def test_every_dim_may_change(device: str, operator: str) -> None:
    """M, N, K and the number of groups all change under one graph."""
    grouped = operator == "matmul_w4a8_bf16_tn"
    counter = Counter()
    compiled = torch.compile(
        getattr(qutlass, operator), fullgraph=True, dynamic=True, backend=counter
    )
    g = torch.Generator().manual_seed(0)
    for m, n, k in ((5, 7, 128), (9, 11, 256), (2, 30, 512)):
        a = torch.randint(-128, 128, (m, k), generator=g, dtype=torch.int8).to(device)
        b = torch.randint(-8, 8, (n, k), generator=g, dtype=torch.int8).to(device)
        b = qutlass.pack_int4(b) if grouped else b
        b_scale = torch.rand((n, k // 32) if grouped else (n,), generator=g).to(device)
        a_scale = torch.rand(m, generator=g).to(device)
        out = compiled(a, b, a_scale, b_scale)
        truth.assert_same_bits(out, getattr(qutlass, operator)(a, b, a_scale, b_scale))
    assert counter.graphs == 1


def test_a_quantized_layer(device: str) -> None:
    """Quantization, product and what stands around them in one graph; the zero point that is None
    stays None."""
    g = torch.Generator().manual_seed(0)
    w = torch.randn(48, 128, generator=g).to(device)
    b, b_scale, _ = qutlass.quantize_int8(w)

    def layer(x):
        a, a_scale, a_zero = qutlass.quantize_int8(x)
        assert a_zero is None
        return torch.relu(qutlass.matmul_int8_bf16_tn(a, b, a_scale, b_scale)) * 2

    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for shape in ((5, 128), (2, 3, 128), (4, 7, 128)):
        x = torch.randn(shape, generator=g).to(device)
        truth.assert_same_bits(compiled(x), layer(x))


def test_sizes_nobody_knows_yet(device: str) -> None:
    """A number of tokens that depends on data: no hint to check against, and no check is lost."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(9, 64, generator=g).to(device)
    w = torch.randint(-128, 128, (24, 64), generator=g, dtype=torch.int8).to(device)
    one = torch.ones(1, device=device)

    def routed(x, w):
        rows = x[x[:, 0] > 0]
        a, a_scale, _ = qutlass.quantize_int8(rows)
        return qutlass.matmul_int8_bf16_tn(a, w, a_scale, one)

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(routed, fullgraph=True, dynamic=True, backend="aot_eager")
        truth.assert_same_bits(compiled(x, w), routed(x, w))
        with pytest.raises(Exception, match="a and b must have the same K, got 64 and 48"):
            compiled(x, w[:, :48].contiguous())


@pytest.mark.gpu
def test_reduce_overhead() -> None:
    """torch.compile's own CUDA graphs capture the operators."""
    call = example_call("int8-channel", "cuda")
    compiled = torch.compile(
        getattr(qutlass, call.operator), fullgraph=True, mode="reduce-overhead"
    )
    want = call()
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        assert_same(run(call, compiled), want)
