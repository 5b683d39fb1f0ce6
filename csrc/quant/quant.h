// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/parallel.h"
#include "common/param.h"
#include "common/status.h"

namespace qutlass {

// Rows x cols matrices: leading dims flattened, last dim contiguous, rows `*_stride` elements
// apart.

// quantize_int8 / quantize_int4. With L = 127 (7): symmetric scale = amax / L and q in [-L, L];
// asymmetric scale = (max(x, 0) - min(x, 0)) / (2L + 1), zero = clamp(rint(-L-1 - min/scale), -L-1,
// L) and q = clamp(rint(x / scale) + zero, -L-1, L). x is widened to float32 and divided (IEEE). A
// computed scale of 0 (all-zero rows, underflow) becomes 1, with zero 0 and q 0. A row (group,
// tensor) that holds a NaN or an Inf, or whose computed scale is not finite, gets scale NaN, zero 0
// and q 0, so that whatever uses it shows NaN. With a given scale: NaN becomes the zero point, Inf
// saturates.
struct QuantizeArguments {
  const void* x = nullptr;  // float32, bfloat16 or float16
  DType x_dtype = DType::kNone;
  int64_t rows = 0, cols = 0;
  int64_t x_stride = 0;  // elements
  int bits = 8;  // 8 or 4
  bool symmetric = true;
  int64_t group_size = 0;  // columns sharing a scale; cols: per row. Divides cols.
  bool per_tensor = false;  // one scale for everything; group_size == cols
  Param scale_in, zero_in;  // given: static quantization. stride 1 (per row/group entry) or 0.
                            // scale float32/bfloat16/float16, zero int32/int8
  void* q = nullptr;  // int8 [rows, cols] or packed int4 [rows, cols/2], contiguous
  float* scale = nullptr;  // [rows * cols/group_size] or [1]; written also when given (a copy)
  int32_t* zero = nullptr;  // like scale; null when symmetric
};

struct DequantizeArguments {  // out = (q - zero) * scale in float32, then rounded to out_dtype
  const void* q = nullptr;  // int8 or packed int4, contiguous
  int64_t rows = 0, cols = 0;
  int bits = 8;
  int64_t group_size = 0;  // columns sharing a scale; cols: per row
  Param scale;  // stride 1: entry r * (cols/group_size) + group; 0: one value
  Param zero;  // int32/int8/float32/bfloat16, like scale; absent: 0
  void* out = nullptr;  // contiguous
  DType out_dtype = DType::kFloat32;  // float32, bfloat16, float16
};

struct PackArguments {  // pack_int4
  const void* w = nullptr;  // any integer dtype
  DType w_dtype = DType::kNone;
  int64_t rows = 0, cols = 0, w_stride = 0;
  uint8_t* packed = nullptr;  // [rows, cols/2], contiguous; out-of-range values are saturated
  // The flat index (row * cols + col) of the first value outside [-8, 7], INT64_MAX if none.
  // cuda: device memory, written by the launch; cpu: host memory.
  int64_t* first_bad = nullptr;
};

struct UnpackArguments {  // unpack_int4
  const uint8_t* packed = nullptr;  // [rows, cols/2], contiguous
  int64_t rows = 0, cols = 0;
  int8_t* w = nullptr;  // [rows, cols], contiguous
};

struct WeightSumsArguments {  // weight_sums
  const void* w = nullptr;  // int8 [rows, cols] or packed int4 [rows, cols/2], contiguous
  int bits = 8;
  int64_t rows = 0, cols = 0, group_size = 0;
  int32_t* sums = nullptr;  // [rows, cols/group_size]
};

namespace cpu {
Status quantize(const QuantizeArguments&, const ParallelRunner&);
Status dequantize(const DequantizeArguments&, const ParallelRunner&);
Status pack_int4(const PackArguments&, const ParallelRunner&);
Status unpack_int4(const UnpackArguments&, const ParallelRunner&);
Status weight_sums(const WeightSumsArguments&, const ParallelRunner&);
}  // namespace cpu

namespace cuda {
// Scratch for per_tensor reductions; uninitialised memory will do.
size_t quantize_workspace_bytes(const QuantizeArguments&);
Status quantize(const QuantizeArguments&, void* workspace, void* stream);
Status dequantize(const DequantizeArguments&, void* stream);
Status pack_int4(const PackArguments&, void* stream);
Status unpack_int4(const UnpackArguments&, void* stream);
Status weight_sums(const WeightSumsArguments&, void* stream);
}  // namespace cuda

}  // namespace qutlass
