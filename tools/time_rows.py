# SPDX-License-Identifier: Apache-2.0
"""How long does every row of the tile table take under every schedule? The data of selection.

    python tools/time_rows.py rows.jsonl
    python tools/fit_selection.py rows.jsonl   # the constants of csrc/gemm/select.cpp

Short samples: a graph of a few calls on operands that are not in L2, the median of three replays,
about 8 ms a point. Rows that no choice would come near are left out: tiles much lower than M, and
splits that make more than six blocks a multiprocessor.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from cost_model import parse_layer, parse_regex
from qutlass.bench.schemes import SCHEMES, Weights, make_tokens, random_matrix
from qutlass.bench.shapes import LAYERS
from qutlass.ops import _gemm_legal, _gemm_tiles
from qutlass.timing import require_gpu

# Powers of two, what lies just beyond them, and heights between.
TOKENS = (
    1, 8, 16, 17, 24, 32, 33, 48, 64, 65, 80, 96, 128, 129, 144, 192, 256, 512, 1024, 2048, 4096
)  # fmt: skip
SPLITS = (1, 0, 2, 3, 4, 6, 8, 12)  # 0: Stream-K
SAMPLE = 1.5e-3  # seconds of a replay


def sample(call: Callable[[Any], Any], copies: Sequence[Any], stream: torch.cuda.Stream) -> float:
    """Microseconds of a call."""
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    with torch.cuda.stream(stream):
        call(copies[0])
        start.record()
        call(copies[-1])
        stop.record()
        stop.synchronize()
        once = max(start.elapsed_time(stop) * 1e-3, 3e-6)
        calls = max(2 if once > 1e-3 else 6, min(120, int(SAMPLE / once)))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for i in range(calls):
                call(copies[i % len(copies)])
        graph.replay()
        times = []
        for _ in range(3):
            start.record()
            graph.replay()
            stop.record()
            stop.synchronize()
            times.append(start.elapsed_time(stop) / calls * 1e3)
    return statistics.median(times)


def worth_timing(tile: dict[str, Any], split: int, m: int, n: int, multiprocessors: int) -> bool:
    low = tile["m"] < 128 and tile["m"] * 4 < m and m > 16
    high = tile["m"] > 64 and tile["m"] >= 2 * m
    tiles = math.ceil(m / tile["m"]) * math.ceil(n / tile["n"])
    many = split > 1 and (tiles > 3 * multiprocessors or tiles * split > 6 * multiprocessors)
    return not (low or high or many)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("json", type=Path, help="JSONL file to write")
    parser.add_argument("--schemes", nargs="+", choices=SCHEMES, default=list(SCHEMES))
    parser.add_argument(
        "--rows",
        type=parse_regex,
        default="",
        metavar="REGEX",
        help="only those in whose names it is found",
    )
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS), metavar="M")
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument(
        "--layers",
        nargs="+",
        type=parse_layer,
        default=list(LAYERS),
        metavar="NxK",
        help="default: those of qutlass.bench.shapes",
    )
    args = parser.parse_args()
    require_gpu()
    torch.manual_seed(0)
    multiprocessors = torch.cuda.get_device_properties().multi_processor_count
    stream = torch.cuda.Stream()
    with args.json.open("w", encoding="utf-8") as file:
        for n, k in args.layers:
            weights = Weights(n, k, args.group, False, "cuda")
            for m in args.tokens:
                point = {"m": m, "n": n, "k": k}
                x = random_matrix("bf16", m, k, "cuda")
                us = sample(lambda w, x=x: torch.mm(x, w.t()), weights.matrices("bf16"), stream)
                file.write(json.dumps({**point, "op": "bf16", "us": us}) + "\n")
                tokens = make_tokens(m, k, False, "cuda")
                for name in args.schemes:
                    scheme = SCHEMES[name]
                    a = scheme.activation_operands(tokens, "ideal")
                    copies = [{**w, **a} for w in weights.operands(scheme)]
                    group = scheme.group_of(args.group)
                    for tile in _gemm_tiles():
                        for split in SPLITS:
                            if tile["op"] != name or not args.rows.search(tile["name"]):
                                continue
                            if not worth_timing(tile, split, m, n, multiprocessors):
                                continue
                            if not _gemm_legal(name, tile["index"], split, m, n, k, group):
                                continue
                            us = sample(
                                lambda c, s=scheme, t=tile["index"], p=split: s.call_row(t, p, c),
                                copies,
                                stream,
                            )
                            row = {"op": name, "row": tile["name"], "s": split, "us": us}
                            file.write(json.dumps({**point, **row}) + "\n")
            print(f"{n} x {k}", flush=True)


if __name__ == "__main__":
    main()
