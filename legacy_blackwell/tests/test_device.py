# SPDX-License-Identifier: Apache-2.0
"""The reference gives the same bits on a GPU as on the CPU."""

import pytest
import torch

from legacy_blackwell.reference import (
    backward_bf16_square_double_mxfp8,
    backward_qt_bf16,
    backward_t_bf16,
    encode_e2m1,
    encode_e4m3,
    encode_e8m0,
    fused_quantize_mx,
    fused_quantize_nv,
    hadamard_matrix,
    matmul_mxf4_bf16_tn,
    matmul_nvf4_bf16_tn,
    mxfp4_transpose_mxfp8,
    to_blocked,
)

from .witness import every_bfloat16

pytestmark = [
    pytest.mark.legacy,
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def same_bits(on_cpu: torch.Tensor, on_gpu: torch.Tensor) -> bool:
    assert on_gpu.is_cuda
    return torch.equal(on_cpu.contiguous().view(torch.uint8), on_gpu.cpu().view(torch.uint8))


@pytest.mark.parametrize("encode", [encode_e2m1, encode_e4m3, encode_e8m0])
def test_encoders(encode):
    values = every_bfloat16()
    values = values[~values.isnan()]
    if encode is encode_e8m0:
        values = values[values >= 0]
    assert same_bits(encode(values), encode(values.cuda()))


@pytest.mark.parametrize("method", ["quest", "abs_max"])
def test_quantizers_and_products(method, generator):
    # Products of two bfloat16 in float64 add up exactly, in whatever order a device adds them.
    x, w = (torch.randn(n, 256, generator=generator).bfloat16() for n in (65, 130))
    h = hadamard_matrix(32)
    scale = torch.tensor([16.0])
    for quantize, multiply in (
        (lambda a, h: fused_quantize_mx(a, h, method=method), matmul_mxf4_bf16_tn),
        (
            lambda a, h: fused_quantize_nv(a, h, scale.to(a.device), method=method),
            matmul_nvf4_bf16_tn,
        ),
    ):
        results = []
        for device in ("cpu", "cuda"):
            (x_q, x_sf), (w_q, w_sf) = (quantize(a.to(device), h.to(device)) for a in (x, w))
            out = multiply(x_q, w_q, to_blocked(x_sf), to_blocked(w_sf), 0.5)
            results.append((x_q, x_sf, w_q, w_sf, out))
        assert all(same_bits(*pair) for pair in zip(*results, strict=True))


def test_backward_quantizers(generator):
    x = torch.randn(96, 64, generator=generator).bfloat16()
    h = hadamard_matrix(32)
    results = []
    for device in ("cpu", "cuda"):
        a, r = x.to(device), h.to(device)
        q, sf, mask = fused_quantize_mx(a, r, return_mask=True)
        results.append(
            (
                mask,
                *backward_t_bf16(a, r),
                *backward_qt_bf16(q, sf, r, 1.0),
                *backward_bf16_square_double_mxfp8(a),
                *mxfp4_transpose_mxfp8(q, sf),
            )
        )
    assert all(same_bits(*pair) for pair in zip(*results, strict=True))
