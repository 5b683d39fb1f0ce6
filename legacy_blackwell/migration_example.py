# SPDX-License-Identifier: Apache-2.0
"""Quantize one pair of matrices with the legacy formats and with ours, and print both errors.

python -m legacy_blackwell.migration_example
"""

from __future__ import annotations

import torch
from torch import Tensor

import qutlass
from legacy_blackwell.reference import (
    MX_ABS_MAX_FACTOR,
    dequantize_mxfp4,
    dequantize_nvfp4,
    fusedQuantizeMx,
    fusedQuantizeNv,
    hadamard_matrix,
    matmul_mxf4_bf16_tn,
    matmul_nvf4_bf16_tn,
    nv_global_scale,
    rotate,
    to_blocked,
)

M, N, K = 64, 256, 1024


def make_matrices() -> tuple[Tensor, Tensor]:
    """Activations with a few loud columns, as transformers have them, and a Gaussian weight."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(M, K, generator=generator)
    x[:, ::128] *= 8
    return x.bfloat16(), (torch.randn(N, K, generator=generator) * K**-0.5).bfloat16()


def legacy_mxfp4(x: Tensor, w: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weight that the format keeps, in h's space, and the product."""
    x_q, x_sf = fusedQuantizeMx(x, h, method="abs_max")
    w_q, w_sf = fusedQuantizeMx(w, h, method="abs_max")
    alpha = torch.tensor([MX_ABS_MAX_FACTOR**-2])
    out = matmul_mxf4_bf16_tn(x_q, w_q, to_blocked(x_sf), to_blocked(w_sf), alpha)
    return dequantize_mxfp4(w_q, w_sf, global_scale=MX_ABS_MAX_FACTOR), out


def legacy_nvfp4(x: Tensor, w: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    x_gs, w_gs = nv_global_scale(rotate(x, h)), nv_global_scale(rotate(w, h))
    x_q, x_sf = fusedQuantizeNv(x, h, x_gs)
    w_q, w_sf = fusedQuantizeNv(w, h, w_gs)
    out = matmul_nvf4_bf16_tn(x_q, w_q, to_blocked(x_sf), to_blocked(w_sf), 1 / (x_gs * w_gs))
    return dequantize_nvfp4(w_q, w_sf, global_scale=float(w_gs)), out


def int_w4a16(x: Tensor, w: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    w_q, scales, zeros = qutlass.quantize_int4(rotate(w, h), symmetric=False, group_size=32)
    out = qutlass.matmul_int4_bf16_tn(rotate(x, h).bfloat16(), w_q, scales, zeros)
    return qutlass.dequantize_int4(w_q, scales, zeros), out


def int_w4a8(x: Tensor, w: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    x_q, x_scale, _ = qutlass.quantize_int8(rotate(x, h))
    w_q, w_scale, _ = qutlass.quantize_int4(rotate(w, h), group_size=32)
    out = qutlass.matmul_w4a8_bf16_tn(x_q, w_q, x_scale, w_scale)
    return qutlass.dequantize_int4(w_q, w_scale), out


def int_w4a4(x: Tensor, w: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    x_q, x_scale, _ = qutlass.quantize_int4(rotate(x, h))
    w_q, w_scale, _ = qutlass.quantize_int4(rotate(w, h))
    out = qutlass.matmul_w4a4_bf16_tn(x_q, w_q, x_scale, w_scale)
    return qutlass.dequantize_int4(w_q, w_scale), out


def int_w8a8(x: Tensor, w: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    x_q, x_scale, _ = qutlass.quantize_int8(rotate(x, h))
    w_q, w_scale, _ = qutlass.quantize_int8(rotate(w, h))
    out = qutlass.matmul_int8_bf16_tn(x_q, w_q, x_scale, w_scale)
    return qutlass.dequantize_int8(w_q, w_scale), out


SCHEMES = {
    "legacy MXFP4 W4A4": legacy_mxfp4,
    "legacy NVFP4 W4A4": legacy_nvfp4,
    "W4A16 g32 + zero": int_w4a16,
    "W4A8 g32": int_w4a8,
    "W4A4 row x token": int_w4a4,
    "W8A8 row x token": int_w8a8,
}


def percent(value: Tensor, truth: Tensor) -> float:
    return 100 * float((value.double() - truth).norm() / truth.norm())


def report() -> str:
    """Return the table that this script prints."""
    x, w = make_matrices()
    product = x.double() @ w.double().T
    rotations = {
        "no rotation": torch.eye(32, dtype=torch.bfloat16),
        "Hadamard 128": hadamard_matrix(128),
    }
    lines = [f"{'error in %':<18}" + "".join(f"  {name:>19}" for name in rotations)]
    lines.append(f"{'':<18}" + "   weight     output" * len(rotations))
    for name, scheme in SCHEMES.items():
        cells = ""
        for h in rotations.values():
            kept, out = scheme(x, w, h)
            truth = rotate(w, h).double()
            cells += f"  {percent(kept, truth):7.1f}  {percent(out, product):9.1f}"
        lines.append(f"{name:<18}{cells}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(report())
