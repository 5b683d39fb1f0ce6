# SPDX-License-Identifier: Apache-2.0
"""The numerics of the legacy MXFP4, NVFP4 and MXFP8 operators in plain PyTorch, on any device."""

from .backward import (
    backward_bf16_square_double_mxfp8,
    backward_qt_bf16,
    backward_t_bf16,
    mxfp4_transpose_mxfp8,
)
from .elements import (
    E2M1_MAX,
    E4M3_MAX,
    decode_e2m1,
    decode_e4m3,
    decode_e8m0,
    encode_e2m1,
    encode_e4m3,
    encode_e8m0,
    pack_e2m1,
    unpack_e2m1,
)
from .matmul import (
    matmul_ada_mxf4_bf16_tn,
    matmul_mxf4_bf16_tn,
    matmul_mxf8_bf16_nn,
    matmul_mxf8_bf16_tn,
    matmul_nvf4_bf16_tn,
)
from .quantize import (
    MX_ABS_MAX_FACTOR,
    MX_GROUP,
    NV_GROUP,
    QUEST_CLIP_SIGMAS,
    crop_scales,
    dequantize_mxfp4,
    dequantize_mxfp8,
    dequantize_nvfp4,
    fused_quantize_mx,
    fused_quantize_nv,
    mxfp8_scale_codes,
    nv_global_scale,
    pack_mask,
    quantize_mxfp8,
    unpack_mask,
)
from .rotation import hadamard_matrix, rotate
from .scale_layout import from_blocked, padded_shape, to_blocked

# The names that callers of the legacy library wrote, so that their code runs on this reference.
fusedQuantizeMx = fused_quantize_mx
fusedQuantizeNv = fused_quantize_nv

__all__ = [
    "E2M1_MAX",
    "E4M3_MAX",
    "MX_ABS_MAX_FACTOR",
    "MX_GROUP",
    "NV_GROUP",
    "QUEST_CLIP_SIGMAS",
    "backward_bf16_square_double_mxfp8",
    "backward_qt_bf16",
    "backward_t_bf16",
    "crop_scales",
    "decode_e2m1",
    "decode_e4m3",
    "decode_e8m0",
    "dequantize_mxfp4",
    "dequantize_mxfp8",
    "dequantize_nvfp4",
    "encode_e2m1",
    "encode_e4m3",
    "encode_e8m0",
    "from_blocked",
    "fusedQuantizeMx",
    "fusedQuantizeNv",
    "fused_quantize_mx",
    "fused_quantize_nv",
    "hadamard_matrix",
    "matmul_ada_mxf4_bf16_tn",
    "matmul_mxf4_bf16_tn",
    "matmul_mxf8_bf16_nn",
    "matmul_mxf8_bf16_tn",
    "matmul_nvf4_bf16_tn",
    "mxfp4_transpose_mxfp8",
    "mxfp8_scale_codes",
    "nv_global_scale",
    "pack_e2m1",
    "pack_mask",
    "padded_shape",
    "quantize_mxfp8",
    "rotate",
    "to_blocked",
    "unpack_e2m1",
    "unpack_mask",
]
