// SPDX-License-Identifier: Apache-2.0
// What a grouped product needs of its [N, G] scales, multipliers and zero points, in shared memory
// in the form in which the mainloop uses it.
//
// Those arrays come in many dtypes and a tile needs a narrow column of them. So each group of each
// column is read and converted by one thread, a period of groups at a time and ahead of their use:
// between the loads and the conversion lies a period, whose products hide their latency.
// Slot g % kSlots holds group g: the groups of one period are read while those of the next are
// written.
#pragma once

#include "common/load_param.cuh"
#include "gemm/mma.cuh"
#include "gemm/problem.h"
#include "gemm/shared_tile.cuh"
#include "gemm/tiles.h"

namespace qutlass::threadblock {

using namespace qutlass::device;

// What the quantized operand carries besides its bytes, in the form the mainloop reads.
struct GroupParams {
  const void* b_scale = nullptr;  // kW4A8Group, kW4A16: [N, G]
  const void* b_zero = nullptr;  // [N, G] for the grouped products, else a row
  const uint8_t* multiplier = nullptr;  // kW4A8Multiplier: [N, G]
  DType b_scale_dtype = DType::kNone;
  DType b_zero_dtype = DType::kNone;
  int b_zero_stride = 0;  // not grouped: from one n to the next
  int group_shift = 31;  // k >> group_shift is k's group
  int groups = 1;
};

__device__ __forceinline__ uint32_t bf16_bits(float x) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}
__device__ __forceinline__ uint32_t bf16_pair(float x) {
  const __nv_bfloat162 pair = __float2bfloat162_rn(x);
  return reinterpret_cast<const uint32_t&>(pair);
}

// kWeightScale: scales multiply the weights (kW4A16), else the sums of a group.
// kSums: fractional zero points are applied to sums (kW4A16).
// kPeriodGroups: two k tiles' worth of the smallest groups, or more.
// kDealt: columns lie as the rows of the tile do, see dealt_row().
template <GemmOp kOp, bool kWeightScale, bool kSums, bool kDealt, int kColumns, int kTileK,
          int kMinGroup, int kPeriodGroups, int kThreads>
class GroupCache {
 public:
  static constexpr int kSlots = 2 * kPeriodGroups;
  static_assert((kPeriodGroups & (kPeriodGroups - 1)) == 0 &&
                kPeriodGroups * kMinGroup >= 2 * kTileK);
  // Threads of a warp write neighbouring groups of the same columns: four banks from one to the
  // next.
  static constexpr int kPitch = kColumns + 4;
  // With kWeightScale a column has two words in an array, which the mainloop reads together.
  static constexpr int kWords = group_words_of(kWeightScale);
  static constexpr int kArrays = group_arrays_of(kOp);
  using Array = uint32_t[kSlots][kPitch * kWords];

  struct Storage {
    alignas(16) Array array[kArrays];
    uint32_t bad[(kColumns + 31) / 32];  // kW4A8Multiplier: columns with weights that left int8
  };

  // array[kUnpack]: for unpacking. kW4A8Multiplier: m | c << 8, kW4A8Group with zero points: c in
  //   every byte, kWeightScale: the pair (-c0, -c0) and the upper half of the scale, a pair of
  //   bfloat16.
  // array[kScale]: kW4A8Group, kW4A16: the scale as float32. With fractional zero points, but for
  //   kSums, the two bfloat16 that add up to it, the larger one in the lower half.
  // array[kRest]: kW4A16: the bfloat16 -c0 and, in the upper half, -c1 * scale, or -c1 with kSums.
  //   With kWeightScale two pairs: the lower half of the scale, and -c1 * scale.
  static constexpr int kUnpack = 0, kScale = kOp == GemmOp::kW4A16 ? 0 : 1, kRest = 1;

 private:
  static constexpr int kItems = (kPeriodGroups * kColumns + kThreads - 1) / kThreads;
  static constexpr int kLogPeriod = kPeriodGroups == 16  ? 4
                                    : kPeriodGroups == 8 ? 3
                                    : kPeriodGroups == 4 ? 2
                                                         : 1;
  static_assert(1 << kLogPeriod == kPeriodGroups);
  static constexpr bool kMultiplier = kOp == GemmOp::kW4A8Multiplier;

  const GroupParams& p_;
  Storage& s_;
  int columns_;     // of the whole matrix
  int column_begin_ = 0;
  int next_ = 0;    // the first group that was not put in place yet
  uint32_t scale_[kItems], zero_[kItems];

  // A thread's items: neighbouring threads have neighbouring groups of a column. kOne: one group a
  // row, to the right of which there is nothing.
  template <bool kOne, typename Visit>
  __device__ __forceinline__ void for_items(const Visit& visit) const {
    constexpr int kLog = kOne ? 0 : kLogPeriod;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if ((i * kThreads) >> kLog >= kColumns) break;
      const int index = static_cast<int>(threadIdx.x) + i * kThreads;
      const int g = next_ + (index & ((1 << kLog) - 1)), column = index >> kLog;
      if ((kThreads * (i + 1) - 1) >> kLog < kColumns || column < kColumns)
        visit(i, g, column, g < p_.groups && column < columns_ - column_begin_);
    }
  }

  // Offsets of 32 bits within the columns of a tile: their scales are fewer than 2^31.
  template <bool kOne, typename T>
  __device__ __forceinline__ void load(uint32_t (&to)[kItems], const void* array) const {
    const auto* from =
        static_cast<const T*>(array) + static_cast<int64_t>(column_begin_) * p_.groups;
    for_items<kOne>([&](int i, int g, int column, bool real) {
      to[i] = real ? __ldg(from + (column * p_.groups + g)) : 0;
    });
  }
  // Which dtypes there are, so that no branch is built for the others.
  template <bool kOne>
  __device__ __forceinline__ void load_scales() {
    if constexpr (kMultiplier) {
      load<kOne, unsigned char>(scale_, p_.multiplier);
    } else if (p_.b_scale_dtype == DType::kFloat32) {
      load<kOne, unsigned int>(scale_, p_.b_scale);
    } else {
      load<kOne, unsigned short>(scale_, p_.b_scale);
    }
  }
  template <bool kOne>
  __device__ __forceinline__ void load_zeros() {
    if (kMultiplier || p_.b_zero_dtype == DType::kInt8) {
      load<kOne, unsigned char>(zero_, p_.b_zero);
    } else if (kOp == GemmOp::kW4A16 && p_.b_zero_dtype == DType::kBFloat16) {
      load<kOne, unsigned short>(zero_, p_.b_zero);
    } else {
      load<kOne, unsigned int>(zero_, p_.b_zero);
    }
  }

  __device__ __forceinline__ float scale_of(uint32_t x) const {
    const float half = __half2float(__ushort_as_half(static_cast<unsigned short>(x)));
    const float other = __uint_as_float(p_.b_scale_dtype == DType::kFloat32 ? x : x << 16);
    return p_.b_scale_dtype == DType::kFloat16 ? half : other;
  }
  __device__ __forceinline__ int integer_of(uint32_t x) const {
    return p_.b_zero_dtype == DType::kInt8 ? static_cast<int>(static_cast<signed char>(x))
                                           : static_cast<int>(x);
  }

  // kZeros: there are zero points. kFractional: they are floats (kW4A16).
  template <bool kOne, bool kZeros, bool kFractional>
  __device__ __forceinline__ void convert() {
    for_items<kOne>([&](int i, int g, int n, bool real) {
      const int slot = g % kSlots, column = kDealt ? dealt_row(n) : n;
      if constexpr (kOp == GemmOp::kW4A16) {
        // w = (v - c0) - c1 with v = 136 + q: c0 an integer that bfloat16 holds, so that the first
        // difference is exact; c1 the rest of a fractional zero point. An integer zero point for
        // which bfloat16 does not hold c0 makes its column NaN, in every row of the table.
        float c0 = 136.f, c1 = 0.f;
        if constexpr (kFractional) {
          const float z =
              __uint_as_float(p_.b_zero_dtype == DType::kBFloat16 ? zero_[i] << 16 : zero_[i]);
          c0 = fminf(fmaxf(rintf(136.f + z), -256.f), 256.f);
          c1 = z - (c0 - 136.f);
        } else if constexpr (kZeros) {
          c0 = __int2float_rn(136 + integer_of(zero_[i]));
          if (__bfloat162float(__float2bfloat16_rn(c0)) != c0) c0 = __int_as_float(0x7FC00000);
        }
        const float x = scale_of(scale_[i]);
        const float upper = __bfloat162float(__float2bfloat16_rn(x));
        if constexpr (kWeightScale) {
          *reinterpret_cast<uint2*>(&s_.array[kUnpack][slot][2 * column]) =
              make_uint2(bf16_pair(-c0), bf16_pair(upper));
          *reinterpret_cast<uint2*>(&s_.array[kRest][slot][2 * column]) =
              make_uint2(bf16_pair(x - upper), bf16_pair(-c1 * x));
        } else {
          constexpr bool kPair = kFractional && !kSums;
          s_.array[kScale][slot][column] =
              kPair ? bf16_bits(upper) | bf16_bits(x - upper) << 16 : __float_as_uint(x);
          s_.array[kRest][slot][column] = bf16_bits(-c0) | bf16_bits(kPair ? -c1 * x : -c1) << 16;
        }
      } else if constexpr (kMultiplier) {
        // w = m * (q - zero) as the unsigned byte m * (q + 8) + c, c = 128 - m * (8 + zero), less
        // 128. Where some q of -8..7 would leave int8 the outputs become NaN.
        const int m = static_cast<int>(scale_[i]);
        const int c = 128 - m * (8 + (kZeros ? integer_of(zero_[i]) : 0));
        if (real && (m < 1 || m > 15 || c < 0 || 15 * m + c > 255))
          atomicOr(&s_.bad[n / 32], 1u << n % 32);
        s_.array[kUnpack][slot][column] = m | (c & 0xFF) << 8;
      } else {
        float x = scale_of(scale_[i]);
        if constexpr (kZeros) {
          // w = q - zero as the unsigned byte (q + 8) + c, c = 120 - zero, less 128. Where w would
          // leave int8 the column becomes NaN.
          const int c = 120 - integer_of(zero_[i]);
          if (real && (c < 0 || c > 240)) x = __int_as_float(0x7FC00000);
          s_.array[kUnpack][slot][column] = (c & 0xFF) * 0x01010101u;
        } else {
          x *= 0.0625f;  // the sums hold 16 * q
        }
        s_.array[kScale][slot][column] = __float_as_uint(x);
      }
    });
  }

 public:
  __device__ GroupCache(const GroupParams& p, Storage& storage, int columns)
      : p_(p), s_(storage), columns_(columns) {}

  // k tiles of a period.
  __device__ __forceinline__ int period() const {
    return p_.groups == 1 ? 1 << 30 : (kPeriodGroups << p_.group_shift) / kTileK;
  }

  // A segment begins at k, the first of a group.
  __device__ __forceinline__ void start(int column_begin, int k) {
    column_begin_ = column_begin;
    next_ = k >> p_.group_shift;
  }

  // Issues the loads of the first, then of the next period's groups.
  __device__ __forceinline__ void fetch_first() {
    if (p_.groups == 1)
      fetch_period<true>();
    else
      fetch_period<false>();
  }
  __device__ __forceinline__ void fetch() { fetch_period<false>(); }

  // Converts what was fetched and puts it where the mainloop reads it after the next barrier.
  __device__ __forceinline__ void commit_first() {
    if (p_.groups == 1)
      commit_period<true>();
    else
      commit_period<false>();
  }
  __device__ __forceinline__ void commit() { commit_period<false>(); }

  __device__ __forceinline__ int slot(int k) const { return (k >> p_.group_shift) & (kSlots - 1); }

 private:
  template <bool kOne>
  __device__ __forceinline__ void fetch_period() {
    if (next_ >= p_.groups) return;
    load_scales<kOne>();
    if (p_.b_zero) load_zeros<kOne>();
  }
  template <bool kOne>
  __device__ __forceinline__ void commit_period() {
    if (next_ >= p_.groups) return;
    const bool fractional = kOp == GemmOp::kW4A16 && (p_.b_zero_dtype == DType::kFloat32 ||
                                                      p_.b_zero_dtype == DType::kBFloat16);
    if (p_.b_zero == nullptr) {
      convert<kOne, false, false>();
    } else if (fractional) {
      convert<kOne, true, kOp == GemmOp::kW4A16>();
    } else {
      convert<kOne, true, false>();
    }
    next_ += kOne ? 1 : kPeriodGroups;
  }
};

}  // namespace qutlass::threadblock
