# SPDX-License-Identifier: Apache-2.0
"""How fast is each matrix product, against its floor and against cuBLAS in bf16?

    python bench/bench_gemm.py
    python bench/bench_gemm.py --ops w4a8 w4a8_group --shapes 1,4096,4096 16,14336,4096
    python bench/bench_gemm.py --all-tiles --json out.jsonl

The floor of a product is the larger of its bytes (each operand read once, the result written once)
over the rate of a device-to-device copy in the same run, and its operations over the rate of its
instruction (qutlass.timing has the measured ones). `of floor` is floor over time; `x bf16` is the
time of torch.mm on bf16 operands of that shape, measured in the same run, over the time. Times are
of graph replays on operands that are not in L2 (see qutlass.timing).

--all-tiles times every legal row of the tile table besides the chosen one; `regret` is then the
chosen row's time over the best row's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import qutlass
from qutlass.ops import _gemm_legal, _gemm_tiles
from qutlass.timing import (
    Report,
    Timing,
    bytes_of,
    copies_of,
    copy_bandwidth,
    instruction_rate,
    time_calls,
)

ops = torch.ops.qutlass

DEFAULT_SHAPES = ((16, 14336, 4096), (256, 4096, 4096), (4096, 14336, 4096))
SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)


@dataclass(frozen=True)
class Family:
    """A kernel family and how to call it."""

    name: str
    op: str
    a: str  # activations: int8, int4 or bf16
    b: str  # weights: int8 or int4
    instruction: str
    grouped: bool = False
    multiplier: bool = False

    def operands(self, m: int, n: int, k: int, group: int, zeros: bool) -> dict[str, Tensor]:
        """Random operands over the whole range, by name of the operator's argument."""
        args = {"a": _matrix(self.a, m, k), "b": _matrix(self.b, n, k)}
        per_group = (n, k // group)
        if self.name == "w4a16":
            args["b_scale"] = _scales(*per_group)
            if zeros:
                args["b_zero"] = _integers(-8, 8, per_group, torch.int8)
            return args
        args["a_scale"] = _scales(m)
        args["b_scale"] = _scales(*per_group) if self.grouped else _scales(n)
        if self.multiplier:
            args["b_multiplier"] = _integers(1, 16, per_group, torch.uint8)
        if zeros:
            shape = per_group if self.grouped or self.multiplier else (n,)
            args["a_zero"] = _integers(-128, 128, (m,), torch.int32)
            # Multipliers: m * (q - zero) must stay inside int8, as the operator asks.
            span = 1 if self.multiplier else 8
            args["b_zero"] = _integers(-span, span, shape, torch.int8)
            args["b_sum"] = ops.weight_sums(
                args["b"], group_size=group if self.grouped or self.multiplier else None
            )
            if self.multiplier:
                args["b_multiplier"] = args["b_multiplier"].clamp(max=13)
        return args

    def call(self, args: dict[str, Tensor]) -> Tensor:
        """The operator as a user calls it."""
        if self.name == "w4a16":
            return ops.matmul_int4_bf16_tn(
                args["a"], args["b"], args["b_scale"], args.get("b_zero")
            )
        names = ("a_zero", "b_zero", "b_sum", "b_multiplier")
        return getattr(ops, self.op)(
            args["a"],
            args["b"],
            args["a_scale"],
            args["b_scale"],
            **{name: args[name] for name in names if name in args},
        )

    def call_row(self, args: dict[str, Tensor], tile: int, split_k: int) -> Tensor:
        """The same on a given row of the tile table."""
        names = ("a_scale", "b_scale", "a_zero", "b_zero", "b_sum", "bias", "b_multiplier")
        return ops._gemm_with_tile(
            self.name, tile, split_k, args["a"], args["b"], *(args.get(name) for name in names)
        )

    def explain(self, m: int, n: int, k: int, group: int) -> dict[str, Any]:
        needs_group = self.grouped or self.multiplier
        return qutlass.explain(
            self.op, m, n, k, group if needs_group else None, multiplier=self.multiplier
        )


FAMILIES = {
    family.name: family
    for family in (
        Family("w8a8", "matmul_int8_bf16_tn", "int8", "int8", "int8"),
        Family("w4a4", "matmul_w4a4_bf16_tn", "int4", "int4", "int4"),
        Family("w4a8", "matmul_w4a8_bf16_tn", "int8", "int4", "int8"),
        Family("w4a8_group", "matmul_w4a8_bf16_tn", "int8", "int4", "int8", grouped=True),
        Family("w4a8_multiplier", "matmul_w4a8_bf16_tn", "int8", "int4", "int8", multiplier=True),
        Family("w4a16", "matmul_int4_bf16_tn", "bf16", "int4", "bf16", grouped=True),
    )
}


def _integers(low: int, high: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.randint(low, high, tuple(shape), dtype=dtype, device="cuda")


def _scales(*shape: int) -> Tensor:
    return torch.rand(shape, device="cuda") * 0.01 + 0.001


def _matrix(kind: str, rows: int, k: int) -> Tensor:
    if kind == "bf16":
        return torch.randn(rows, k, device="cuda", dtype=torch.bfloat16)
    if kind == "int8":
        return _integers(-128, 128, (rows, k), torch.int8)
    return _integers(0, 256, (rows, k // 2), torch.uint8)


def measure(
    make: Callable[[], Any], call: Callable[[Any], Tensor], budget: int = 8 << 30
) -> tuple[Timing, int]:
    """Time a call and count its bytes, operands read and result written once."""
    first = make()
    values = list(first.values()) if isinstance(first, dict) else list(first)
    read = bytes_of(values)
    moved = read + bytes_of([call(first)])
    copies = [first] if read > budget else [first, *copies_of(make, read)]
    return time_calls(call, copies), moved


def parse_shape(text: str) -> tuple[int, int, int]:
    try:
        m, n, k = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"a shape is M,N,K, got {text!r}") from None
    return m, n, k


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--ops", nargs="+", choices=FAMILIES, default=list(FAMILIES), help="kernel families"
    )
    parser.add_argument(
        "--shapes", nargs="+", type=parse_shape, default=DEFAULT_SHAPES, metavar="M,N,K"
    )
    parser.add_argument("--group", type=int, default=128, help="columns that share a scale")
    parser.add_argument("--zeros", action="store_true", help="with zero points on both sides")
    parser.add_argument("--all-tiles", action="store_true", help="time every legal row")
    parser.add_argument("--json", type=Path, help="JSONL file to append to")
    args = parser.parse_args()
    torch.manual_seed(0)

    copy = copy_bandwidth()
    columns = {
        "op": "<15s",
        "M": "5d",
        "N": "6d",
        "K": "6d",
        "tile": "<34s",
        "us": "9.2f",
        "spread %": "8.1f",
        "TOPS": "7.1f",
        "GB/s": "6.0f",
        "of floor": "8.2f",
        "x bf16": "6.2f",
        "regret": "6.3f",
    }
    report = Report(
        columns, args.json, bench="gemm", copy_GBps=copy / 1e9, group=args.group, zeros=args.zeros
    )

    def add(
        name: str,
        shape: tuple[int, int, int],
        tile: str,
        timing: Timing,
        moved: int,
        instruction: str,
        bf16: Timing,
        regret: float | None = None,
        chosen: bool = True,
    ) -> None:
        m, n, k = shape
        operations = 2 * m * n * k
        rate = instruction_rate(instruction)
        floor = max(moved / copy, operations / rate if rate else 0.0)
        seconds = timing.us * 1e-6
        report.add(
            **{
                "op": name,
                "M": m,
                "N": n,
                "K": k,
                "tile": tile,
                "us": timing.us,
                "spread %": 100 * timing.spread,
                "TOPS": operations / seconds / 1e12,
                "GB/s": moved / seconds / 1e9,
                "of floor": floor / seconds,
                "x bf16": bf16.us / timing.us,
                "regret": regret,
                "samples": timing.samples,
                "floor_us": floor * 1e6,
                "floor_of_memory_only": rate is None,
                "chosen": chosen,
            }
        )

    for shape in args.shapes:
        m, n, k = shape
        bf16, moved = measure(
            lambda m=m, n=n, k=k: (_matrix("bf16", m, k), _matrix("bf16", n, k)),
            lambda operands: torch.mm(operands[0], operands[1].t()),
        )
        # cuBLAS may use other instructions than mma.sync: its floor is that of memory.
        report.add(
            **{
                "op": "cublas bf16",
                "M": m,
                "N": n,
                "K": k,
                "tile": "",
                "us": bf16.us,
                "spread %": 100 * bf16.spread,
                "TOPS": 2 * m * n * k / bf16.us / 1e6,
                "GB/s": moved / bf16.us / 1e3,
                "x bf16": 1.0,
                "samples": bf16.samples,
            }
        )
        for name in args.ops:
            family = FAMILIES[name]
            grouped = family.grouped or family.multiplier
            group = args.group if grouped else k

            def make(
                f: Family = family, m: int = m, n: int = n, k: int = k, g: int = group
            ) -> dict[str, Tensor]:
                return f.operands(m, n, k, g, args.zeros)

            timing, moved = measure(make, family.call)
            choice = family.explain(m, n, k, group)
            chosen = f"{choice['tile']} x{choice['split_k']}"
            rows: list[tuple[str, Timing]] = []
            if args.all_tiles:
                for tile in _gemm_tiles():
                    for split in SPLITS:
                        row = tile["index"]
                        if tile["op"] != name:
                            continue
                        if not _gemm_legal(name, row, split, m, n, k, group):
                            continue
                        row_timing, _ = measure(
                            make, lambda o, f=family, r=row, s=split: f.call_row(o, r, s)
                        )
                        rows.append((f"{tile['name']} x{split}", row_timing))
            best = min([timing.us, *(t.us for _, t in rows)])
            regret = timing.us / best if rows else None
            add(name, shape, chosen, timing, moved, family.instruction, bf16, regret)
            for label, row_timing in sorted(rows, key=lambda row: row[1].us):
                add(
                    name,
                    shape,
                    label,
                    row_timing,
                    moved,
                    family.instruction,
                    bf16,
                    row_timing.us / best,
                    chosen=False,
                )


if __name__ == "__main__":
    main()
