// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <limits>

#include "common/param.h"
#include "gemm/problem.h"
#include "quant/quant.h"
#include "torch/tensor.h"

// Every refusal of the library, and nothing else: what stands here is not repeated in the core, in
// the fake kernels or in Python. A check turns the views of an operator's tensors, in the order of
// its schema and null where absent, into the arguments of the core, outputs still missing; or it
// throws std::invalid_argument, which Python sees as ValueError.
//
// The fake kernels run the same functions (qutlass_check in introspect.cpp) on views without data,
// so that a compile fails with the message that the call would have failed with.
namespace qutlass::binding {

using Views = const TensorView* const*;

constexpr int64_t kNoGroup = std::numeric_limits<int64_t>::min();  // group_size=None

// w
PackArguments check_pack_int4(Views);
WeightSumsArguments check_weight_sums(Views, int64_t group_size);
// packed
UnpackArguments check_unpack_int4(Views);
// x, scale, zero
QuantizeArguments check_quantize_int8(Views, bool symmetric, bool per_tensor);
QuantizeArguments check_quantize_int4(Views, bool symmetric, int64_t group_size);
// q, scale, zero
DequantizeArguments check_dequantize_int8(Views, DType out, const char* out_name);
DequantizeArguments check_dequantize_int4(Views, DType out, const char* out_name);

// a, b, a_scale, b_scale, a_zero, b_zero, b_sum, bias
GemmArguments check_matmul_int8(Views);
GemmArguments check_matmul_w4a4(Views);
GemmArguments check_matmul_w4a8(Views);   // and b_multiplier
// a, b, scales, zeros, bias. With act_bits below 16 the result is an integer product whose
// activations are missing: `a` and `lda` are still those of the bfloat16 tensor, to be quantized.
GemmArguments check_matmul_int4(Views, int64_t act_bits);

// The first offending value of pack_int4, at a flat index.
[[noreturn]] void refuse_pack_value(const TensorView& w, int64_t flat_index, int64_t value);

}  // namespace qutlass::binding
