# SPDX-License-Identifier: Apache-2.0
"""Do the quantization and packing operators reach the memory's bandwidth, and how quick are they on
a few tokens?

    python -m qutlass bench quant [--ops quantize_int8 ...] [--json out.jsonl]

GB/s counts each input and output byte once; `of copy` is that over the rate of a device-to-device
copy in the same run. Times are of graph replays, see qutlass.timing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import ops as _ops  # noqa: F401  registers the operators
from ..timing import (
    Report,
    bytes_of,
    copies_of,
    copy_bandwidth,
    empty_graph_node,
    require_gpu,
    time_calls,
)

ops = torch.ops.qutlass


@dataclass(frozen=True)
class Case:
    op: str
    form: str
    M: int
    K: int
    make: Callable[[], tuple[Any, ...]]
    call: Callable[..., Any]


def activations(m: int, k: int, dtype: torch.dtype) -> Callable[[], tuple[torch.Tensor]]:
    return lambda: (torch.randn(m, k, device="cuda", dtype=torch.float32).to(dtype),)


def integers(m: int, k: int, dtype: torch.dtype, low: int, high: int) -> torch.Tensor:
    return torch.randint(low, high, (m, k), dtype=dtype, device="cuda")


def large_cases() -> Iterator[Case]:
    bf16 = torch.bfloat16
    forms: dict[str, dict[str, Any]] = {
        "symmetric": {},
        "asymmetric": {"symmetric": False},
        "per tensor": {"per_tensor": True},
    }
    for m, k in ((8192, 8192), (8192, 4096), (4096, 14336), (2048, 28672)):
        for form, options in forms.items():
            yield Case(
                "quantize_int8",
                f"bf16 {form}",
                m,
                k,
                activations(m, k, bf16),
                lambda x, o=options: ops.quantize_int8(x, **o),
            )
    m = k = 8192
    for name, dtype in (("f16", torch.float16), ("f32", torch.float32)):
        make = activations(m, k, dtype)
        yield Case("quantize_int8", f"{name} symmetric", m, k, make, ops.quantize_int8)
    for name, shape in (("given per row", (m,)), ("given one", (1,))):
        yield Case(
            "quantize_int8",
            f"bf16 {name}",
            m,
            k,
            lambda s=shape: (
                *activations(m, k, bf16)(),
                torch.full(s, 0.03, device="cuda"),
            ),
            lambda x, scale: ops.quantize_int8(x, scale=scale),
        )
    # A stride of 4100 elements is a multiple of 8 bytes and no more: the path without vectors.
    yield Case(
        "quantize_int8",
        "bf16 unaligned rows",
        m,
        4096,
        lambda: (activations(m, 4100, bf16)()[0][:, :4096],),
        ops.quantize_int8,
    )
    for group in (None, 128, 64, 32):
        for symmetric in (True, False):
            yield Case(
                "quantize_int4",
                f"bf16 {'symmetric' if symmetric else 'asymmetric'} g={group or 'row'}",
                m,
                k,
                activations(m, k, bf16),
                lambda x, g=group, s=symmetric: ops.quantize_int4(x, symmetric=s, group_size=g),
            )
    for dtype in (torch.int8, torch.int32):
        yield Case(
            "pack_int4",
            str(dtype).removeprefix("torch."),
            m,
            k,
            lambda d=dtype: (integers(m, k, d, -8, 8),),
            ops.pack_int4,
        )

    def packed() -> torch.Tensor:
        return integers(m, k // 2, torch.uint8, 0, 256)

    yield Case("unpack_int4", "", m, k, lambda: (packed(),), ops.unpack_int4)
    yield Case(
        "dequantize_int8",
        "per row to bf16",
        m,
        k,
        lambda: (integers(m, k, torch.int8, -128, 128), torch.rand(m, device="cuda")),
        lambda q, scale: ops.dequantize_int8(q, scale, dtype=bf16),
    )
    for group in (128, 32):
        yield Case(
            "dequantize_int4",
            f"g={group} to bf16",
            m,
            k,
            lambda g=group: (packed(), torch.rand(m, k // g, device="cuda")),
            lambda q, scale: ops.dequantize_int4(q, scale, dtype=bf16),
        )
    yield Case(
        "weight_sums",
        "int8 per row",
        m,
        k,
        lambda: (integers(m, k, torch.int8, -128, 128),),
        ops.weight_sums,
    )
    yield Case(
        "weight_sums",
        "int4 g=128",
        m,
        k,
        lambda: (packed(),),
        lambda w: ops.weight_sums(w, group_size=128),
    )


def small_cases() -> Iterator[Case]:
    for k in (4096, 8192, 14336, 28672):
        for m in (1, 4, 16, 64):
            for op, form, options in (
                ("quantize_int8", "symmetric", {}),
                ("quantize_int8", "asymmetric", {"symmetric": False}),
                ("quantize_int8", "per tensor", {"per_tensor": True}),
                ("quantize_int4", "symmetric", {}),
            ):
                yield Case(
                    op,
                    f"bf16 {form}",
                    m,
                    k,
                    activations(m, k, torch.bfloat16),
                    lambda x, op=op, o=options: getattr(ops, op)(x, **o),
                )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; `argv` as in `qutlass.bench.main`. Returns 0."""
    parser = argparse.ArgumentParser(
        prog="python -m qutlass bench quant", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--ops", nargs="+", help="operators to measure; all by default")
    parser.add_argument("--only", choices=("small", "large"), help="few tokens, or bandwidth")
    parser.add_argument("--json", type=Path, help="JSONL file to append to")
    args = parser.parse_args(argv)
    require_gpu()
    torch.manual_seed(0)

    copy = copy_bandwidth()
    columns = {
        "op": "<16s",
        "form": "<24s",
        "M": "5d",
        "K": "6d",
        "us": "9.2f",
        "spread %": "8.1f",
        "GB/s": "7.0f",
        "of copy": "7.2f",
    }
    report = Report(
        columns,
        args.json,
        bench="quant",
        copy_GBps=copy / 1e9,
        empty_graph_node_us=empty_graph_node(),
    )
    cases: list[Case] = []
    if args.only != "small":
        cases += large_cases()
    if args.only != "large":
        cases += small_cases()
    for case in cases:
        if args.ops and case.op not in args.ops:
            continue
        first = case.make()
        moved = bytes_of(first) + bytes_of([case.call(*first)])
        copies = [first, *copies_of(case.make, bytes_of(first))]
        timing = time_calls(lambda operands, call=case.call: call(*operands), copies)
        rate = moved / (timing.us * 1e-6)
        report.add(
            **{
                "op": case.op,
                "form": case.form,
                "M": case.M,
                "K": case.K,
                "us": timing.us,
                "spread %": 100 * timing.spread,
                "GB/s": rate / 1e9,
                "of copy": rate / copy,
                "samples": timing.samples,
            }
        )
        del copies, first
    return 0


if __name__ == "__main__":
    sys.exit(main())
