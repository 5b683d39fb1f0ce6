# SPDX-License-Identifier: Apache-2.0
"""The machinery of the accuracy comparison and of the bench, on small inputs."""

import importlib

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.legacy

pytest.importorskip(
    "qutlass", reason="the integer side needs the built library", exc_type=ImportError
)

bench = importlib.import_module("legacy_blackwell.bench")
compare = importlib.import_module("legacy_blackwell.accuracy.compare")
formats = importlib.import_module("legacy_blackwell.accuracy.formats")
operators = importlib.import_module("legacy_blackwell.accuracy.operators")


@pytest.fixture
def pair(generator):
    return torch.randn(24, 256, generator=generator), torch.randn(40, 256, generator=generator)


@pytest.mark.parametrize("rotation", compare.ROTATIONS)
@pytest.mark.parametrize("fmt", formats.FORMATS, ids=lambda fmt: fmt.name)
def test_a_format_keeps_most_of_a_gaussian_weight(fmt, rotation, pair):
    h = compare.rotation_matrix(rotation)
    truth = compare.rotate(pair[1], h)
    assert 0.05 < formats.relative_error(fmt.weight(pair[1], h), truth) < 0.2


@pytest.mark.parametrize(
    ("name", "fmt", "activations"),
    [
        ("MXFP4 quest", "MXFP4 quest", "same"),
        ("MXFP4 abs_max", "MXFP4 abs_max", "same"),
        ("NVFP4", "NVFP4", "same"),
        ("W4A8 g32", "INT4 g32", "int8"),
        ("W4A8 g128", "INT4 g128", "int8"),
        ("W4A16 g32 + zero", "INT4 g32 + zero", "bfloat16"),
    ],
)
@pytest.mark.parametrize("rotation", compare.ROTATIONS)
def test_an_operator_computes_what_its_format_says(name, fmt, activations, rotation, pair):
    x, w = pair
    h = compare.rotation_matrix(rotation)
    chosen = next(f for f in formats.FORMATS if f.name == fmt)
    act = {
        "same": chosen.same,
        "int8": formats.int8,
        "bfloat16": lambda x, h: compare.rotate(x, h).bfloat16().float(),
    }[activations]
    expected = act(x, h).double() @ chosen.weight(w, h).double().T
    out = operators.OPERATORS[name][1](x, w, h)
    # The result is rounded to bfloat16 and nothing else sets the two apart.
    assert formats.relative_error(out, expected) < 3e-3


def test_stored_bits():
    bits = {fmt.name: fmt.bits(384) for fmt in formats.FORMATS}
    assert bits["MXFP4 quest"] == 4.25
    assert bits["NVFP4"] == 4.5
    assert bits["INT4 g32"] == 4.5
    assert bits["INT4 g128 + zero"] == 4 + 24 / 128
    assert bits["INT4 row"] == 4 + 16 / 384


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 64), nn.Linear(32, 64)
        self.last = nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(x) * self.second(x)))


def test_capture_shares_inputs_and_replacement_is_undone(generator):
    model = TwoReaders()
    x = torch.randn(2, 3, 32, generator=generator)
    capture = compare.Capture(model)
    with torch.inference_mode():
        truth = model(x)
        capture.end_of_batch()
        model(x + 1)
    capture.close()
    assert capture.source == {"first": "first", "second": "first", "last": "last"}
    assert torch.equal(torch.cat(capture.inputs["first"]), torch.cat([x, x + 1]).flatten(0, 2 - 1))

    h = compare.rotation_matrix("H32")
    rotated = {name: compare.rotate(layer.weight, h) for name, layer in capture.layers.items()}
    for act in (None, compare.rotate):
        with torch.inference_mode(), compare.replaced_linears(capture.layers, rotated, act, h):
            assert torch.allclose(model(x), truth, atol=1e-5)
    zeros = {name: torch.zeros_like(weight) for name, weight in rotated.items()}
    with torch.inference_mode(), compare.replaced_linears(capture.layers, zeros, None, h):
        assert torch.equal(model(x)[0, 0], model.last.bias)
    with torch.inference_mode():
        assert torch.equal(model(x), truth)


def test_bench_times_every_provider():
    row = bench.measure(2, 64, 128, "cpu", seconds=0.001)
    assert list(row) == [
        "torch-bf16",
        "w4a16",
        "w4a8",
        "w4a8-noquant",
        "w4a4",
        "w4a4-noquant",
        "w8a8",
        "w8a8-noquant",
    ]
    assert all(value > 0 for value in row.values())


def test_bench_shapes_are_those_of_the_page(root):
    page = (root / "legacy_blackwell" / "bench_references.md").read_text()
    for layers in bench.LAYERS.values():
        assert ", ".join(f"{k} x {n}" for k, n in layers) in page
