// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/param.h"

namespace qutlass::device {

// Entry `index` of a Param whose row stride was already applied. The dtype is uniform across the
// grid, so the branch costs nothing that is measurable beside the load.
__device__ __forceinline__ float load_float(const void* data, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::kFloat32: return __ldg(static_cast<const float*>(data) + index);
    case DType::kBFloat16:
      return __bfloat162float(__ldg(static_cast<const __nv_bfloat16*>(data) + index));
    case DType::kFloat16: return __half2float(__ldg(static_cast<const __half*>(data) + index));
    case DType::kInt8:
      return static_cast<float>(__ldg(static_cast<const signed char*>(data) + index));
    case DType::kInt32: return __int2float_rn(__ldg(static_cast<const int*>(data) + index));
    default: return 0.f;
  }
}

__device__ __forceinline__ int load_int(const void* data, DType dtype, int64_t index) {
  return dtype == DType::kInt8 ? __ldg(static_cast<const signed char*>(data) + index)
                               : __ldg(static_cast<const int*>(data) + index);
}

}  // namespace qutlass::device
