// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

#include "common/status.h"

namespace qutlass::cuda {

// Enqueues a kernel on a one-dimensional grid. The launch's own return value is taken rather than
// cudaGetLastError(), which would also report what some other library did before.
template <typename... Formal, typename... Actual>
Status launch(void (*kernel)(Formal...), int64_t blocks, int threads, void* stream,
              const char* what, Actual&&... arguments) {
  if (blocks == 0) return Status::success();
  if (blocks > INT32_MAX) return Status::invalid("more blocks than one grid can hold");
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t error =
      cudaLaunchKernelEx(&config, kernel, static_cast<Formal>(std::forward<Actual>(arguments))...);
  if (error == cudaSuccess) return Status::success();
  cudaGetLastError();  // reported here; leave nothing behind for the next caller to trip over
  return Status::cuda(error, what);
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline bool aligned(const void* pointer, int bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) == 0;
}

// a / b for 0 <= a and 0 < b, through the 32-bit divider where both fit: a 64-bit division is some
// seventy instructions, too many beside the few that quantize or unpack eight values.
__device__ __forceinline__ int64_t divide_index(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}

// A packed word holds eight values: these are the four of its low nibbles (k ascending with the
// byte) and the four of its high nibbles, each sign-extended to int8. Bit 3 times 0x1E sets bits 4
// to 7 of the same byte and carries nowhere.
__device__ __forceinline__ uint32_t int4_word_low(uint32_t word) {
  const uint32_t low = word & 0x0F0F0F0Fu;
  return low | ((low & 0x08080808u) * 0x1Eu);
}
__device__ __forceinline__ uint32_t int4_word_high(uint32_t word) {
  return int4_word_low(word >> 4);
}

}  // namespace qutlass::cuda
