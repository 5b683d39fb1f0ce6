# SPDX-License-Identifier: Apache-2.0
"""What do zero points and a bias cost? Products with them over the plain call, each on one row.

    python tools/time_forms.py [--shapes 16,8192,8192 4096,8192,8192] [--markdown]

Every product runs on the row and split that the plain call chooses. The forms of a product take
turns, three rounds, and a column is the median of a form over that of the plain call: `weight` has
zero points of the weight, `activations` those of the activations, `both` both, with b_sum made
beforehand. Large products run at the power limit of a card, where what makes one slower makes the
others cooler: compare within a line.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from plain_table import render
from qutlass.bench.schemes import Scheme, Tokens, Weights, make_tokens
from qutlass.bench.shapes import parse_shape
from qutlass.ops import _gemm_tiles
from qutlass.timing import require_gpu, time_calls
from what_limits import PRODUCTS

FORMS = ("weight", "activations", "both", "bias")
COLUMNS = ["product", "row", "split", "M, N, K", "plain us", *FORMS]
ROUNDS = 3
SECONDS = 0.02  # of a form in a round

Operands = list[dict[str, Tensor]]


def forms_of(
    scheme: Scheme, weights: tuple[Weights, Weights], tokens: tuple[Tokens, Tokens], bias: Tensor
) -> dict[str, Operands]:
    """The operands of each form, "plain" first; weights and tokens without and with zero points."""
    plain_weights, zero_weights = (w.operands(scheme) for w in weights)
    plain_tokens, zero_tokens = (scheme.activation_operands(t, "ideal") for t in tokens)
    forms = {
        "plain": [{**w, **plain_tokens} for w in plain_weights],
        "weight": [{**w, **plain_tokens} for w in zero_weights],
    }
    if scheme.activation != "bf16":
        # Zero points of activations need the sums of the weight that they are used with.
        forms["activations"] = [
            {**w, **zero_tokens, "b_sum": z["b_sum"]}
            for w, z in zip(plain_weights, zero_weights, strict=True)
        ]
        forms["both"] = [{**w, **zero_tokens} for w in zero_weights]
    forms["bias"] = [{**operands, "bias": bias} for operands in forms["plain"]]
    return forms


def row_of(heading: Sequence[str], times: dict[str, list[float]]) -> list[str]:
    """A line of the table from the times of each form."""
    medians = {form: statistics.median(samples) for form, samples in times.items()}
    ratios = [f"{medians[f] / medians['plain']:.3f}" if f in medians else "-" for f in FORMS]
    return [*heading, f"{medians['plain']:.1f}", *ratios]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=parse_shape,
        default=[parse_shape(f"{m},8192,8192") for m in (16, 256, 4096)],
        metavar="M,N,K",
    )
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    require_gpu()
    torch.manual_seed(0)
    index = {tile["name"]: tile["index"] for tile in _gemm_tiles()}
    rows = []
    for m, n, k in args.shapes:
        weights = Weights(n, k, args.group, False, "cuda"), Weights(n, k, args.group, True, "cuda")
        tokens = make_tokens(m, k, False, "cuda"), make_tokens(m, k, True, "cuda")
        bias = torch.randn(n, device="cuda")
        for scheme in PRODUCTS:
            chosen = scheme.explain(m, n, k, args.group)
            tile, split = chosen["tile"], chosen["split_k"]

            def call(
                operands: dict[str, Tensor], s: Scheme = scheme, t: str = tile, p: int = split
            ) -> Tensor:
                return s.call_row(index[t], p, operands)

            forms = forms_of(scheme, weights, tokens, bias)
            times: dict[str, list[float]] = {form: [] for form in forms}
            for _ in range(ROUNDS):
                for form, copies in forms.items():
                    times[form].append(time_calls(call, copies, seconds=SECONDS).us)
            rows.append(row_of([scheme.name, tile, str(split), f"{m}, {n}, {k}"], times))
    print(f"{torch.cuda.get_device_name()}, groups of {args.group}\n")
    print(render(COLUMNS, rows, text=4, markdown=args.markdown))


if __name__ == "__main__":
    main()
