// SPDX-License-Identifier: Apache-2.0
//
// pack_int4 and unpack_int4: between one integer a value and two values a byte.
#include <climits>

#include "common/nibble.h"
#include "quant/launch.cuh"
#include "quant/quant.h"

namespace qutlass::cuda {
namespace {

constexpr int kThreads = 256;

using FirstBad = unsigned long long;  // what atomicMin takes; flat indices are never negative

__global__ void reset_first_bad_kernel(FirstBad* first_bad) {
  *first_bad = static_cast<FirstBad>(INT64_MAX);
}

// The nibble of a value, saturated; remembers that it had to be.
template <typename W>
__device__ __forceinline__ uint32_t nibble_of(W value, bool& bad) {
  W inside = value < W(7) ? value : W(7);
  if constexpr (static_cast<W>(-1) < W(0)) inside = inside > W(-8) ? inside : W(-8);
  bad |= inside != value;
  return static_cast<uint32_t>(inside) & 0xF;
}

// The values of one thread: kBytes packed bytes, that is kBytes values for their low nibbles and,
// 16 columns further on, kBytes for their high nibbles. Vectors: the two reads of 16 bytes that
// make 16 / sizeof(W) bytes of output, so that neighbouring threads read and write next to each
// other.
template <typename W, bool kVector>
__global__ void __launch_bounds__(kThreads)
    pack_kernel(const W* w, int64_t rows, int64_t cols, int64_t stride, uint8_t* packed,
                FirstBad* first_bad) {
  constexpr int kBytes = kVector ? 16 / static_cast<int>(sizeof(W)) : 1;
  const int64_t per_row = cols / 2 / kBytes;
  const int64_t unit = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (unit >= rows * per_row) return;
  const int64_t row = divide_index(unit, per_row), byte = (unit - row * per_row) * kBytes;
  const int64_t column = byte / kInt4BlockBytes * kInt4Block + byte % kInt4BlockBytes;
  const W* source = w + row * stride + column;

  alignas(16) W value[2][kBytes];
  alignas(16) uint8_t out[kBytes];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if constexpr (kVector) {
      *reinterpret_cast<uint4*>(value[half]) =
          __ldg(reinterpret_cast<const uint4*>(source + half * kInt4BlockBytes));
    } else {
      value[half][0] = source[half * kInt4BlockBytes];
    }
  }
  bool bad = false;
#pragma unroll
  for (int i = 0; i < kBytes; ++i) {
    const uint32_t low = nibble_of(value[0][i], bad), high = nibble_of(value[1][i], bad);
    out[i] = static_cast<uint8_t>(low | (high << 4));
  }
  uint8_t* target = packed + row * (cols / 2) + byte;
  if constexpr (kBytes == 16) {
    *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(out);
  } else if constexpr (kBytes == 8) {
    *reinterpret_cast<uint2*>(target) = *reinterpret_cast<const uint2*>(out);
  } else if constexpr (kBytes == 4) {
    *reinterpret_cast<uint32_t*>(target) = *reinterpret_cast<const uint32_t*>(out);
  } else if constexpr (kBytes == 2) {
    *reinterpret_cast<uint16_t*>(target) = *reinterpret_cast<const uint16_t*>(out);
  } else {
    *target = out[0];
  }
  if (!bad || first_bad == nullptr) return;

  // Rare, so it may look at the memory again: registers indexed by a loop variable would spill.
  for (int i = 0; i < 2 * kBytes; ++i) {
    const int offset = i / kBytes * kInt4BlockBytes + i % kBytes;
    bool this_one = false;
    nibble_of(source[offset], this_one);
    if (!this_one) continue;
    atomicMin(first_bad, static_cast<FirstBad>(row * cols + column + offset));
    break;
  }
}

template <typename W>
Status pack_as(const PackArguments& a, void* stream) {
  const bool vectors = aligned(a.w, 16) && aligned(a.packed, 16) &&
                       (a.rows <= 1 || a.w_stride * static_cast<int64_t>(sizeof(W)) % 16 == 0);
  const int64_t bytes = a.rows * (a.cols / 2), per_thread = vectors ? 16 / sizeof(W) : 1;
  return launch(vectors ? &pack_kernel<W, true> : &pack_kernel<W, false>,
                ceil_div(bytes / per_thread, kThreads), kThreads, stream, "pack_int4",
                static_cast<const W*>(a.w), a.rows, a.cols, a.w_stride, a.packed,
                reinterpret_cast<FirstBad*>(a.first_bad));
}

// Vectors: a thread turns 16 bytes, a whole block, into 32 values.
template <bool kVector>
__global__ void __launch_bounds__(kThreads)
    unpack_kernel(const uint8_t* packed, int64_t bytes, int8_t* w) {
  const int64_t unit = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if constexpr (kVector) {
    if (unit >= bytes / kInt4BlockBytes) return;
    const uint4 v = __ldg(reinterpret_cast<const uint4*>(packed) + unit);
    uint4* target = reinterpret_cast<uint4*>(w) + 2 * unit;
    target[0] =
        make_uint4(int4_word_low(v.x), int4_word_low(v.y), int4_word_low(v.z), int4_word_low(v.w));
    target[1] = make_uint4(int4_word_high(v.x), int4_word_high(v.y), int4_word_high(v.z),
                           int4_word_high(v.w));
  } else {
    if (unit >= bytes) return;
    const uint32_t byte = packed[unit];
    int8_t* target = w + unit / kInt4BlockBytes * kInt4Block + unit % kInt4BlockBytes;
    target[0] = static_cast<int8_t>(int4_word_low(byte));
    target[kInt4BlockBytes] = static_cast<int8_t>(int4_word_high(byte));
  }
}

}  // namespace

Status pack_int4(const PackArguments& a, void* stream) {
  if (a.rows < 0 || a.cols < 0) return Status::invalid("pack_int4: negative size");
  if (a.cols % kInt4Block != 0) return Status::invalid("pack_int4: cols must be a multiple of 32");
  if (a.first_bad != nullptr) {
    const Status status = launch(&reset_first_bad_kernel, 1, 1, stream, "pack_int4: first_bad",
                                 reinterpret_cast<FirstBad*>(a.first_bad));
    if (!status.ok()) return status;
  }
  switch (a.w_dtype) {
    case DType::kInt8: return pack_as<int8_t>(a, stream);
    case DType::kUInt8: return pack_as<uint8_t>(a, stream);
    case DType::kInt16: return pack_as<int16_t>(a, stream);
    case DType::kInt32: return pack_as<int32_t>(a, stream);
    case DType::kInt64: return pack_as<int64_t>(a, stream);
    default: return Status::invalid("pack_int4: w must be of an integer dtype");
  }
}

Status unpack_int4(const UnpackArguments& a, void* stream) {
  if (a.rows < 0 || a.cols < 0) return Status::invalid("unpack_int4: negative size");
  if (a.cols % kInt4Block != 0)
    return Status::invalid("unpack_int4: cols must be a multiple of 32");
  const int64_t bytes = a.rows * (a.cols / 2);
  const bool vectors = aligned(a.packed, 16) && aligned(a.w, 16);
  return launch(vectors ? &unpack_kernel<true> : &unpack_kernel<false>,
                ceil_div(vectors ? bytes / kInt4BlockBytes : bytes, kThreads), kThreads, stream,
                "unpack_int4", a.packed, bytes, a.w);
}

}  // namespace qutlass::cuda
