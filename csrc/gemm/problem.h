// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "common/param.h"

namespace qutlass {

// The products, one per kernel family. `Group` carries float32 group scales across groups; the
// others are one exact integer sum (kW4A16: one float32 sum).
enum class GemmOp : int {
  kW8A8 = 0,         // int8 x int8
  kW4A4,             // int4 x int4
  kW4A8,             // int8 x int4, b_scale[N]
  kW4A8Group,        // int8 x int4, b_scale[N, G] float
  kW4A8Multiplier,   // int8 x int4, b_scale[N] and b_multiplier[N, G] in 1..15
  kW4A16,            // bf16 x int4, scales[N, G]
};
constexpr int kGemmOpCount = 6;

constexpr const char* name_of(GemmOp op) {
  switch (op) {
    case GemmOp::kW8A8: return "w8a8";
    case GemmOp::kW4A4: return "w4a4";
    case GemmOp::kW4A8: return "w4a8";
    case GemmOp::kW4A8Group: return "w4a8_group";
    case GemmOp::kW4A8Multiplier: return "w4a8_multiplier";
    case GemmOp::kW4A16: return "w4a16";
  }
  return "?";
}
constexpr int a_bits(GemmOp op) { return op == GemmOp::kW4A16 ? 16 : op == GemmOp::kW4A4 ? 4 : 8; }
constexpr int b_bits(GemmOp op) { return op == GemmOp::kW8A8 ? 8 : 4; }

// out[M, N] = A[M, K] · W[N, K]ᵀ in the TN layout, see the contract of each operator in
// csrc/torch/ops.cpp. The same arguments drive the CPU and the CUDA kernels. All checks of shapes
// and values were made by the caller.
struct GemmArguments {
  GemmOp op = GemmOp::kW8A8;
  int64_t M = 0, N = 0, K = 0;
  int64_t group_size = 0;       // k values sharing one scale; K where there are no groups
  const void* a = nullptr;      // [M, K]: int8, packed int4 or bfloat16
  int64_t lda = 0;              // bytes from one row of a to the next
  const void* b = nullptr;      // [N, K] int8 or [N, K/2] packed int4, contiguous
  Param a_scale;                // per row of a (stride 1 or 0); absent for kW4A16
  Param b_scale;  // per row of b; kW4A8Group and kW4A16: stride G, groups contiguous
  Param a_zero;  // int8 or int32, like a_scale
  Param b_zero;  // int8 or int32 like b_scale; kW4A16: also float32 or bfloat16;
                 // kW4A8Multiplier: int8 [N, G]
  Param b_sum;  // int32: row sums of b, [N]; [N, G] for kW4A8Group/kW4A8Multiplier
  Param bias;  // [N] (stride 1), float32, bfloat16 or float16
  const uint8_t* b_multiplier = nullptr;  // [N, G], kW4A8Multiplier only
  void* out = nullptr;  // bfloat16 [M, N], contiguous

  constexpr int64_t groups() const { return group_size ? K / group_size : 0; }
};

}  // namespace qutlass
