// SPDX-License-Identifier: Apache-2.0
//
// weight_sums: exact int32 sums of INT8 or packed INT4 weights, a row or a group each.
#include "common/nibble.h"
#include "quant/launch.cuh"
#include "quant/quant.h"

namespace qutlass::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kVectorBytes = 16;

// The sum of four bytes of INT8, or of their eight nibbles.
template <int kBits>
__device__ __forceinline__ int sum_word(uint32_t word, int sum) {
  if constexpr (kBits == 8) {
    return __dp4a(static_cast<int>(word), 0x01010101, sum);
  } else {
    // n ^ 8 is n + 8 as an unsigned nibble: eight values of it carry 64 too much.
    const uint32_t shifted = word ^ 0x88888888u;
    const uint32_t low = shifted & 0x0F0F0F0Fu, high = (shifted >> 4) & 0x0F0F0F0Fu;
    const uint32_t both = __dp4a(high, 0x01010101u, __dp4a(low, 0x01010101u, 0u));
    return sum + static_cast<int>(both) - 64;
  }
}

// A team of lanes, a power of two, sums one run of `bytes` bytes; the runs lie end to end.
template <int kBits, bool kVector>
__global__ void __launch_bounds__(kThreads)
    weight_sums_kernel(const uint8_t* w, int64_t runs, int64_t bytes, int team, int32_t* sums) {
  const int shift = __ffs(team) - 1;
  const int lane = threadIdx.x & (team - 1);
  const int64_t run =
      static_cast<int64_t>(blockIdx.x) * (kThreads >> shift) + (threadIdx.x >> shift);
  int sum = 0;
  if (run < runs) {
    const uint8_t* source = w + run * bytes;
    if constexpr (kVector) {
      const uint4* vectors = reinterpret_cast<const uint4*>(source);
#pragma unroll 4
      for (int64_t i = lane; i < bytes / kVectorBytes; i += team) {
        const uint4 v = __ldg(vectors + i);
        sum = sum_word<kBits>(v.x, sum);
        sum = sum_word<kBits>(v.y, sum);
        sum = sum_word<kBits>(v.z, sum);
        sum = sum_word<kBits>(v.w, sum);
      }
    } else {
      for (int64_t i = lane; i < bytes; i += team) {
        if constexpr (kBits == 8) {
          sum += static_cast<int8_t>(source[i]);
        } else {
          sum += static_cast<int8_t>(int4_word_low(source[i])) +
                 static_cast<int8_t>(int4_word_high(source[i]));
        }
      }
    }
  }
  for (int offset = team / 2; offset > 0; offset /= 2) {
    sum += __shfl_xor_sync(0xFFFFFFFFu, sum, offset);
  }
  if (run < runs && lane == 0) sums[run] = sum;
}

// INT4 groups that cut a block of 32 columns: a byte's nibbles may belong to two of them.
__global__ void __launch_bounds__(kThreads)
    weight_sums_cut_blocks_kernel(const uint8_t* w, int64_t groups, int64_t group_size,
                                  int32_t* sums) {
  const int64_t group = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (group >= groups) return;
  int sum = 0;
  // Rows are whole blocks, so a flat index finds its nibble as well as one within its row.
  for (int64_t k = group * group_size; k < (group + 1) * group_size; ++k) {
    const uint32_t byte = w[k / kInt4Block * kInt4BlockBytes + k % kInt4BlockBytes];
    const bool high = k % kInt4Block >= kInt4BlockBytes;
    sum += static_cast<int8_t>(high ? int4_word_high(byte) : int4_word_low(byte));
  }
  sums[group] = sum;
}

template <int kBits>
Status weight_sums_as(const WeightSumsArguments& a, int64_t group_size, int64_t groups,
                      void* stream) {
  if (kBits == 4 && group_size % kInt4Block != 0) {
    return launch(&weight_sums_cut_blocks_kernel, ceil_div(groups, kThreads), kThreads, stream,
                  "weight_sums", static_cast<const uint8_t*>(a.w), groups, group_size, a.sums);
  }
  const int64_t bytes = group_size * kBits / 8;
  const bool vectors = aligned(a.w, kVectorBytes) && bytes % kVectorBytes == 0;
  // As many lanes as there are loads for, so that a warp reads several short runs at once.
  const int64_t loads = vectors ? bytes / kVectorBytes : bytes;
  int team = 1;
  while (team < 32 && team < loads) team *= 2;
  return launch(vectors ? &weight_sums_kernel<kBits, true> : &weight_sums_kernel<kBits, false>,
                ceil_div(groups, kThreads / team), kThreads, stream, "weight_sums",
                static_cast<const uint8_t*>(a.w), groups, bytes, team, a.sums);
}

}  // namespace

Status weight_sums(const WeightSumsArguments& a, void* stream) {
  if (a.bits != 8 && a.bits != 4) return Status::invalid("weight_sums: bits must be 8 or 4");
  if (a.rows < 0 || a.cols < 0) return Status::invalid("weight_sums: negative size");
  if (a.bits == 4 && a.cols % kInt4Block != 0) {
    return Status::invalid("weight_sums: INT4 needs cols to be a multiple of 32");
  }
  if (a.cols > 0 && (a.group_size <= 0 || a.cols % a.group_size != 0)) {
    return Status::invalid("weight_sums: group_size must divide cols");
  }
  const int64_t groups = a.rows * (a.cols == 0 ? 1 : a.cols / a.group_size);
  const int64_t group_size = a.cols == 0 ? 0 : a.group_size;
  return a.bits == 8 ? weight_sums_as<8>(a, group_size, groups, stream)
                     : weight_sums_as<4>(a, group_size, groups, stream);
}

}  // namespace qutlass::cuda
