# SPDX-License-Identifier: Apache-2.0
"""What does a call cost the host, beside torch.mm?

    python -m qutlass bench host [--n 512] [--k 512] [--m 1 16] [--json out.jsonl]

On a few tokens a model outside a CUDA graph is as fast as the host that launches it. The weights
here are so small that the GPU is done before the host has made the next call: what is timed is
Python, the dispatcher, the checks, the allocation of the result and the launch. A sample is a
number of calls in a row with nothing waited for, divided by that number; what is reported is the
median of the samples. `x mm` is the time over that of torch.mm on bfloat16 of the same M.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..timing import Report, require_gpu
from .schemes import SCHEMES, make_tokens, random_matrix

qutlass = torch.ops.qutlass

# Below the thousand launches that a stream holds before the host has to wait.
_CALLS = 200
_SAMPLES = 40
_GROUP = 128


def microseconds(
    call: Callable[[], Any],
    synchronize: Callable[[], Any],
    calls: int = _CALLS,
    samples: int = _SAMPLES,
) -> tuple[float, float]:
    """Median and spread (10th to 90th percentile over the median) of the host's time of a call."""
    taken = []
    for _ in range(samples + 2):  # the first two load and fill what there is to load and fill
        synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        taken.append((time.perf_counter() - start) * 1e6 / calls)
    deciles = statistics.quantiles(taken[2:], n=10)
    median = statistics.median(taken[2:])
    return median, (deciles[-1] - deciles[0]) / median


def cases(m: int, n: int, k: int, device: str) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """What is called, how, and the call: torch.mm first."""
    tokens = make_tokens(m, k, False, device)
    w = random_matrix("bf16", n, k, device).t()
    yield "torch.mm", "", lambda: torch.mm(tokens.x, w)
    out = torch.empty(m, n, dtype=torch.bfloat16, device=device)
    yield "torch.mm", "out=", lambda: torch.mm(tokens.x, w, out=out)
    quantizers = {"int8": qutlass.quantize_int8, "int4": qutlass.quantize_int4}
    yield "quantize_int8", "torch.ops", lambda: quantizers["int8"](tokens.x)
    for scheme in SCHEMES.values():
        b = random_matrix(scheme.weight, n, k, device)
        args = scheme.activation_operands(tokens, "ideal")
        args |= scheme.weight_operands(b, k, _GROUP, False)
        operands = [args[name] for name in ("a", "b", "a_scale", "b_scale") if name in args]
        named = {name: args[name] for name in ("b_multiplier",) if name in args}
        for how, functions in (("torch.ops", qutlass), ("qutlass", ops)):
            product = getattr(functions, scheme.op)
            yield scheme.name, how, partial(product, *operands, **named)
        if scheme.activation != "bf16":
            product = getattr(qutlass, scheme.op)
            quantize = quantizers[scheme.activation]
            yield (
                scheme.name,
                "with quantization",
                partial(_actual, quantize, product, tokens.x, b, args["b_scale"], named),
            )


def _actual(
    quantize: Callable[..., Any],
    product: Callable[..., Tensor],
    x: Tensor,
    b: Tensor,
    b_scale: Tensor,
    named: dict[str, Tensor],
) -> Tensor:
    a, a_scale, _ = quantize(x)
    return product(a, b, a_scale, b_scale, **named)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; `argv` as in `qutlass.bench.main`. Returns 0."""
    parser = argparse.ArgumentParser(
        prog="python -m qutlass bench host", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--m", nargs="+", type=int, default=[1, 16], help="tokens (1 16)")
    parser.add_argument("--n", type=int, default=512, help="output features (512)")
    parser.add_argument("--k", type=int, default=512, help="input features (512)")
    parser.add_argument("--json", type=Path, help="JSONL file to append to")
    args = parser.parse_args(argv)
    device = require_gpu()
    torch.manual_seed(0)
    columns = {
        "what": "<16s",
        "how": "<18s",
        "M": "5d",
        "host us": "8.2f",
        "spread %": "8.1f",
        "x mm": "6.2f",
    }
    report = Report(columns, args.json, bench="host", N=args.n, K=args.k)
    with torch.inference_mode():
        for m in args.m:
            baseline = None
            for what, how, call in cases(m, args.n, args.k, device.type):
                us, spread = microseconds(call, torch.cuda.synchronize)
                baseline = baseline or us
                report.add(
                    **{
                        "what": what,
                        "how": how,
                        "M": m,
                        "host us": us,
                        "spread %": 100 * spread,
                        "x mm": us / baseline,
                    }
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
