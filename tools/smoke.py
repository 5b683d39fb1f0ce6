# SPDX-License-Identifier: Apache-2.0
"""Loads the library into the torch at hand and holds every operator against qutlass.reference.

    python tools/smoke.py            the installed qutlass
    QUTLASS_LIBRARY=build/ampere/libqutlass.so PYTHONPATH=python python tools/smoke.py

A minute's proof that a library built once serves this torch: it needs no compiler and no pytest, so
it runs in any environment that has a torch. On a GPU too where there is one.
"""

from __future__ import annotations

import sys

import torch

import qutlass
from qutlass import reference

M, N, K, GROUP = 33, 72, 256, 64


def products(device: str) -> dict[str, tuple[tuple, dict]]:
    """Arguments of each product, with every zero point, sum and bias that it takes."""
    x = torch.randn(M, K, device=device)
    w = torch.randn(N, K, device=device)
    bias = torch.randn(N, device=device)
    a8, a8_scale, a8_zero = qutlass.quantize_int8(x, symmetric=False)
    w8, w8_scale, _ = qutlass.quantize_int8(w)
    a4, a4_scale, a4_zero = qutlass.quantize_int4(x, symmetric=False)
    w4, w4_scale, w4_zero = qutlass.quantize_int4(w, symmetric=False)
    g4, g4_scale, g4_zero = qutlass.quantize_int4(w, symmetric=False, group_size=GROUP)
    sums = {"b_sum": qutlass.weight_sums(w8), "bias": bias}
    return {
        "matmul_int8_bf16_tn": ((a8, w8, a8_scale, w8_scale, a8_zero), sums),
        "matmul_w4a4_bf16_tn": (
            (a4, w4, a4_scale, w4_scale, a4_zero, w4_zero),
            {"bias": bias},
        ),
        "matmul_w4a8_bf16_tn": ((a8, w4, a8_scale, w4_scale, a8_zero, w4_zero), {"bias": bias}),
        "matmul_int4_bf16_tn": ((x.bfloat16(), g4, g4_scale, g4_zero), {"bias": bias}),
    }


def main() -> int:
    print(f"torch {torch.__version__}, {qutlass.build_info()}")
    devices = ["cpu"]
    if torch.cuda.is_available() and qutlass.build_info()["cuda"]:
        devices.append("cuda")
    failed = 0
    for device in devices:
        torch.manual_seed(0)
        values = torch.randint(-8, 8, (N, K), dtype=torch.int8, device=device)
        packed = qutlass.pack_int4(values)
        if not torch.equal(qutlass.unpack_int4(packed), values):
            failed += 1
            print(f"FAILED {device}: unpack_int4(pack_int4(w)) is not w")
        for name, (positional, keyword) in products(device).items():
            got = getattr(qutlass, name)(*positional, **keyword)
            want = getattr(reference, name)(*positional, **keyword)
            exact = name != "matmul_int4_bf16_tn"  # its sums are float32, in another order
            error = float((got.float() - want.float()).norm() / want.float().norm())
            ok = torch.equal(got, want) if exact else error < 3e-3
            failed += not ok
            said = "the same bits" if exact and ok else f"relative error {error:.1e}"
            print(f"{'ok' if ok else 'FAILED'} {device}: {name}, {said}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
