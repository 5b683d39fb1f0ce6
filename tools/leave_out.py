# SPDX-License-Identifier: Apache-2.0
"""What does each part of a GEMM kernel cost? The times of kernels that leave one out.

    for part in Unpacking Copying Storing; do
      cmake -S . -B build/without/$part -DQUTLASS_LEAVE_OUT=$part
      cmake --build build/without/$part
    done
    python tools/leave_out.py build/test/libqutlass.so build/without/*/libqutlass.so [--markdown]

Every product runs on the row and split that the first library, the whole one, chooses for it; the
others run the same. A column is the time without a part over the time of the whole kernel: what it
is below 1 is the most that a cheaper part could bring. A part costs nothing where others take as
long, so the columns do not add up. Without unpacking the operands are the packed bytes, and without
copying what lies in shared memory: where the card is at its power limit (tools/clocks.py), other
bits alone make a kernel slower or faster.

Rows that a library lacks are left out of its column.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from plain_table import render

PARTS = ("unpacking", "copying", "storing")
# Not W4A4, which is emulated where there are no INT4 Tensor Cores.
LEFT_OUT = "w4a4"


def measure(n: int, k: int, group: int, tokens: list[int], rows: list[dict[str, Any]]) -> None:
    """Prints a line for each product and M: on the rows given, or on those chosen."""
    import torch

    import qutlass
    from qutlass.bench.schemes import SCHEMES, Weights, make_tokens
    from qutlass.ops import _gemm_tiles
    from qutlass.timing import require_gpu, time_calls

    require_gpu()
    torch.manual_seed(0)
    weights = Weights(n, k, group, False, "cuda")
    places = {tile["name"]: tile["index"] for tile in _gemm_tiles()}
    if not rows:
        for scheme in SCHEMES.values():
            if scheme.name != LEFT_OUT:
                for m in tokens:
                    chosen = scheme.explain(m, n, k, group)
                    rows.append(
                        {
                            "scheme": scheme.name,
                            "M": m,
                            "row": chosen["tile"],
                            "split_k": chosen["split_k"],
                        }
                    )
    part = qutlass.build_info()["left_out"]
    gpu = torch.cuda.get_device_name()
    for row in rows:
        if row["row"] not in places:
            continue
        scheme = SCHEMES[row["scheme"]]
        operands = scheme.activation_operands(make_tokens(row["M"], k, False, "cuda"), "ideal")
        copies = [{**w, **operands} for w in weights.operands(scheme)]
        place, split = places[row["row"]], row["split_k"]
        timing = time_calls(lambda c, s=scheme, p=place, q=split: s.call_row(p, q, c), copies)
        print(json.dumps({**row, "left_out": part, "us": timing.us, "gpu": gpu}), flush=True)


def table(lines: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: the whole kernel's microseconds, and the ratio without each part."""
    parts = [part for part in PARTS if any(line["left_out"] == part for line in lines)]
    found: dict[tuple[Any, ...], dict[str | None, float]] = {}
    for line in lines:
        key = (line["scheme"], line["row"], line["split_k"], line["M"])
        found.setdefault(key, {})[line["left_out"]] = line["us"]
    rows = []
    for (scheme, row, split, m), us in found.items():
        # What a kernel does not have, its library leaves as it is.
        ratios = [f"{us[part] / us[None]:.2f}" if part in us else "-" for part in parts]
        rows.append([scheme, row, str(split), str(m), f"{us[None]:.1f}", *ratios])
    return ["product", "row", "split", "M", "us", *parts], rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("libraries", nargs="+", type=Path, metavar="libqutlass.so")
    parser.add_argument("--shape", default="8192,8192", metavar="N,K")
    tokens = [1, 16, 32, 64, 128, 256, 1024, 4096]
    parser.add_argument("--tokens", type=int, nargs="+", default=tokens)
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--rows", help=argparse.SUPPRESS)  # JSON: measure only, of this process
    args = parser.parse_args()
    n, k = map(int, args.shape.split(","))
    if args.rows is not None:
        measure(n, k, args.group, args.tokens, json.loads(args.rows))
        return
    lines: list[dict[str, Any]] = []
    rows = "[]"
    for library in args.libraries:
        done = subprocess.run(
            [sys.executable, *sys.argv, "--rows", rows],
            env=os.environ | {"QUTLASS_LIBRARY": str(library.resolve())},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(done.returncode)
        new = [json.loads(line) for line in done.stdout.splitlines()]
        if not lines:
            if any(line["left_out"] for line in new):
                sys.exit(f"{library} leaves something out; the first library is to be whole")
            keys = ("scheme", "M", "row", "split_k")
            rows = json.dumps([{key: line[key] for key in keys} for line in new])
        lines += new
    print(f"{lines[0]['gpu']}, N {n}, K {k}, groups of {args.group}\n")
    columns, cells = table(lines)
    print(render(columns, cells, text=2, markdown=args.markdown))


if __name__ == "__main__":
    main()
