// SPDX-License-Identifier: Apache-2.0
// What a grouped product needs of its [N, G] scales, multipliers and zero points, in shared memory
// in the form in which the mainloop uses it.
//
// Those arrays come in many dtypes and a tile needs a narrow column of them. So each group of each
// column is read and converted by one thread, a period of groups at a time and ahead of their use:
// between the loads and the conversion lies a period, whose products hide their latency.
// Multipliers are read a pack of neighbouring groups at a time; scales are no faster so. Slot g %
// kSlots holds group g: the groups of one period are read while those of the next are written.
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
  int period = 0;  // k tiles between two periods of groups, see GroupCache
  int packs = 0;  // kW4A8Multiplier: whether arrays can be read a pack at a time
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
// kPeriodGroups: two k tiles' worth of the smallest groups, or more. kPack: groups of a pack.
// kDealt: columns lie as the rows of the tile do, see dealt_row().
template <GemmOp kOp, bool kWeightScale, bool kSums, bool kDealt, int kColumns, int kTileK,
          int kMinGroup, int kPeriodGroups, int kPack, int kThreads>
class GroupCache {
 public:
  static constexpr int kPacks = kPeriodGroups / kPack;  // of a period
  static constexpr int kSlots = 2 * kPeriodGroups;
  static_assert((kPeriodGroups & (kPeriodGroups - 1)) == 0 && kPeriodGroups % kPack == 0 &&
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
  };

  // kW4A16: weights, and so c0 and c1 below, enter the products divided by this, and their sums are
  // multiplied by it in the end: a nibble u is u * 2^-133 where it lies in a bfloat16 (see
  // Mainloop::widen_nibbles), and 2^127 is the largest power of two to multiply that by.
  static constexpr float kUnits = 64.f;

  // array[kUnpack]: for unpacking. kW4A8Multiplier: m | c << 8, kW4A8Group with zero points: c in
  //   every byte, kWeightScale: the pair (-c0, -c0) and the upper half of the scale, a pair of
  //   bfloat16.
  // array[kScale]: kW4A8Group, kW4A16: the scale as float32. With fractional zero points, but for
  //   kSums, the two bfloat16 that add up to it, the larger one in the lower half.
  // array[kRest]: kW4A16: the pair (-c0, -c0). With fractional zero points, in its upper half,
  //   -c1 * scale, or -c1 with kSums. With kWeightScale two pairs: the lower half of the scale, and
  //   -c1 * scale.
  static constexpr int kUnpack = 0, kScale = kOp == GemmOp::kW4A16 ? 0 : 1, kRest = 1;

 private:
  static constexpr bool kMultiplier = kOp == GemmOp::kW4A8Multiplier;
  static_assert(kPack == 1 || kMultiplier, "a word for each item: a pack of bytes, or an element");
  // A thread's items: a pack of a period in columns that lie kStep apart. Neighbouring threads have
  // neighbouring packs, so that a load touches few lines.
  static constexpr int kStep = kThreads / kPacks;
  static constexpr int kItems = (kColumns + kStep - 1) / kStep;
  static_assert(kThreads % kPacks == 0 && (kStep & (kStep - 1)) == 0,
                "steps have no bit in common with a first place");
  // The column of a place in a slot.
  static constexpr int column_of(int place) { return kDealt ? dealt_row(place) : place; }

  // The first of them.
  struct Item {
    int place;      // in a slot
    int left;       // columns from it on
    int group;      // the first that is fetched next, or is and was not put in place yet
    int64_t index;  // in [N, G]
  };
  // Whether it is kept from period to period, or worked out again: multipliers' highest tile has no
  // registers for it.
  static constexpr bool kKeeps = !kMultiplier;

  const GroupParams& p_;
  Storage& s_;
  int columns_;  // of the whole matrix
  int column_begin_ = 0;
  int next_ = 0;  // the first group that was not put in place yet
  Item kept_;
  uint32_t scale_[kItems], zero_[kItems];
  uint32_t bad_ = 0;  // kMultiplier: a bit for each item whose column has weights that left int8

  __device__ __forceinline__ Item work_out() const {
    Item item;
    item.place = static_cast<int>(threadIdx.x / kPacks);
    item.group = next_ + static_cast<int>(threadIdx.x % kPacks) * kPack;
    const int column = column_begin_ + column_of(item.place);
    item.left = columns_ - column;
    item.index = static_cast<int64_t>(column) * p_.groups + item.group;
    return item;
  }
  __device__ __forceinline__ Item first() const { return kKeeps ? kept_ : work_out(); }

  // f(i, column, place), both counted from the first item's.
  template <typename Visit>
  __device__ __forceinline__ static void for_items(int place, const Visit& visit) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if ((i + 1) * kStep <= kColumns || place + i * kStep < kColumns)
        visit(i, column_of(i * kStep), i * kStep);
    }
  }

  // Offsets of 32 bits within the columns of a tile: their scales are fewer than 2^31. What lies
  // beyond the last column or group, and is not used, is read from there, without a branch.
  template <typename T>
  __device__ __forceinline__ void load(uint32_t (&to)[kItems], const void* array) const {
    const Item item = first();
    const T* from = static_cast<const T*>(array) + item.index;
    const auto below = [&](int column) { return min(column, item.left - 1) * p_.groups; };
    if (kPack == 1 || p_.packs) {
      from += min(p_.groups - kPack - item.group, 0);
      for_items(item.place,
                [&](int i, int column, int) { to[i] = load_pack(from + below(column)); });
    } else {
      for_items(item.place, [&](int i, int column, int) {
        to[i] = 0;
#pragma unroll
        for (int e = 0; e < kPack; ++e)
          to[i] |= __ldg(from + below(column) + min(e, p_.groups - 1 - item.group)) << (8 * e);
      });
    }
  }
  template <typename T>
  __device__ __forceinline__ static uint32_t load_pack(const T* from) {
    if constexpr (kPack * sizeof(T) == 1)
      return __ldg(reinterpret_cast<const unsigned char*>(from));
    else if constexpr (kPack * sizeof(T) == 2)
      return __ldg(reinterpret_cast<const unsigned short*>(from));
    else
      return __ldg(reinterpret_cast<const unsigned int*>(from));
  }
  // Which dtypes there are, so that no branch is built for the others.
  __device__ __forceinline__ void load_scales() {
    if constexpr (kMultiplier) {
      load<unsigned char>(scale_, p_.multiplier);
    } else if (p_.b_scale_dtype == DType::kFloat32) {
      load<unsigned int>(scale_, p_.b_scale);
    } else {
      load<unsigned short>(scale_, p_.b_scale);
    }
  }
  __device__ __forceinline__ void load_zeros() {
    if (kMultiplier || p_.b_zero_dtype == DType::kInt8) {
      load<unsigned char>(zero_, p_.b_zero);
    } else if (kOp == GemmOp::kW4A16 && p_.b_zero_dtype == DType::kBFloat16) {
      load<unsigned short>(zero_, p_.b_zero);
    } else {
      load<unsigned int>(zero_, p_.b_zero);
    }
  }

  __device__ __forceinline__ float scale_of(uint32_t x) const {
    const float half = __half2float(__ushort_as_half(static_cast<unsigned short>(x)));
    const float other = __uint_as_float(p_.b_scale_dtype == DType::kFloat32 ? x : x << 16);
    return p_.b_scale_dtype == DType::kFloat16 ? half : other;
  }
  // Byte number e.
  __device__ __forceinline__ static int signed_byte(uint32_t x, int e) {
    return static_cast<int>(x << (24 - 8 * e)) >> 24;
  }
  __device__ __forceinline__ int integer_of(uint32_t x) const {
    return p_.b_zero_dtype == DType::kInt8 ? signed_byte(x, 0) : static_cast<int>(x);
  }

  // kZeros: there are zero points. kFractional: they are floats (kW4A16).
  template <bool kZeros, bool kFractional>
  __device__ __forceinline__ void convert() {
    const Item item = first();
    const int slot = item.group & (kSlots - 1);
    for_items(item.place, [&](int i, int, int step) {
      const auto word = [&](int which, int e = 0) -> uint32_t& {
        return s_.array[which][slot + e][(item.place + step) * kWords];
      };
      if constexpr (kOp == GemmOp::kW4A16) {
        // w = (v - c0) - c1 with v = 8 + q: c0 an integer that bfloat16 holds, so that the first
        // difference is exact; c1 the rest of a fractional zero point. An integer zero point for
        // which bfloat16 does not hold c0 makes its column NaN, in every row of the table.
        float c0 = 8.f, c1 = 0.f;
        if constexpr (kFractional) {
          const float z =
              __uint_as_float(p_.b_zero_dtype == DType::kBFloat16 ? zero_[i] << 16 : zero_[i]);
          c0 = fminf(fmaxf(rintf(8.f + z), -256.f), 256.f);
          c1 = z - (c0 - 8.f);
        } else if constexpr (kZeros) {
          c0 = 8.f + __int2float_rn(integer_of(zero_[i]));
          if (__bfloat162float(__float2bfloat16_rn(c0)) != c0) c0 = __int_as_float(0x7FC00000);
        }
        c0 *= 1.f / kUnits;
        c1 *= 1.f / kUnits;
        const float x = scale_of(scale_[i]);
        const float upper = __bfloat162float(__float2bfloat16_rn(x));
        if constexpr (kWeightScale) {
          reinterpret_cast<uint2&>(word(kUnpack)) = make_uint2(bf16_pair(-c0), bf16_pair(upper));
          reinterpret_cast<uint2&>(word(kRest)) =
              make_uint2(bf16_pair(x - upper), bf16_pair(-c1 * x));
        } else {
          constexpr bool kPair = kFractional && !kSums;
          word(kScale) = kPair ? bf16_bits(upper) | bf16_bits(x - upper) << 16 : __float_as_uint(x);
          word(kRest) = kFractional ? bf16_bits(-c0) | bf16_bits(kPair ? -c1 * x : -c1) << 16
                                    : bf16_pair(-c0);
        }
      } else if constexpr (kMultiplier) {
        // w = m * (q - zero) as the unsigned byte m * (q + 8) + c, c = 128 - m * (8 + zero), less
        // 128. Where some q of -8..7 would leave int8 the outputs become NaN.
        const uint32_t m = scale_[i];
        // Some byte of the pack above 15, or 0.
        constexpr uint32_t kEach = 0x01010101u >> (32 - 8 * kPack);
        bool bad = ((m & 0xF0 * kEach) | (~(m + 0x7F * kEach) & 0x80 * kEach)) != 0;
        uint32_t c = 0x80 * kEach - 8 * m;
        if constexpr (kZeros) {
          c = 0;
#pragma unroll
          for (int e = 0; e < kPack; ++e) {
            const int factor = static_cast<int>(m >> (8 * e) & 0xFF);
            const int offset = 128 - factor * (8 + signed_byte(zero_[i], e));
            bad = bad | static_cast<unsigned>(offset) > 255 | 15 * factor + offset > 255;
            c |= static_cast<uint32_t>(offset & 0xFF) << (8 * e);
          }
        }
#pragma unroll
        for (int e = 0; e < kPack; ++e)
          word(kUnpack, e) = __byte_perm(m, c, 0x0040 + 0x0011 * e) & 0xFFFF;
        if (bad) bad_ |= 1u << i;
      } else {
        float x = scale_of(scale_[i]);
        if constexpr (kZeros) {
          // w = q - zero as the unsigned byte (q + 8) + c, c = 120 - zero, less 128. Where w would
          // leave int8 the column becomes NaN.
          const int c = 120 - integer_of(zero_[i]);
          if (static_cast<unsigned>(c) > 240) x = __int_as_float(0x7FC00000);
          word(kUnpack) = (c & 0xFF) * 0x01010101u;
        } else {
          x *= 0.0625f;  // the sums hold 16 * q
        }
        word(kScale) = __float_as_uint(x);
      }
    });
  }

 public:
  __device__ GroupCache(const GroupParams& p, Storage& storage, int columns)
      : p_(p), s_(storage), columns_(columns) {}

  // A segment begins at k, the first of a group.
  __device__ __forceinline__ void start(int column_begin, int k) {
    column_begin_ = column_begin;
    next_ = (k >> p_.group_shift) & -kPack;
    bad_ = 0;
    if constexpr (kKeeps) kept_ = work_out();
  }
  // How much of the first period lies in front of a segment that begins at k.
  __device__ __forceinline__ int skipped(int k) const {
    return ((k >> p_.group_shift) & (kPack - 1)) << p_.group_shift;
  }

  // Issues the loads of the next period's groups.
  __device__ __forceinline__ void fetch() {
    load_scales();
    if (p_.b_zero) load_zeros();
  }

  // Converts what was fetched and puts it where the mainloop reads it after the next barrier.
  __device__ __forceinline__ void commit() {
    const bool fractional = kOp == GemmOp::kW4A16 && (p_.b_zero_dtype == DType::kFloat32 ||
                                                      p_.b_zero_dtype == DType::kBFloat16);
    if (p_.b_zero == nullptr) {
      convert<false, false>();
    } else if (fractional) {
      convert<true, kOp == GemmOp::kW4A16>();
    } else {
      convert<true, false>();
    }
    next_ += kPeriodGroups;
    if constexpr (kKeeps) {
      kept_.group += kPeriodGroups;
      kept_.index += kPeriodGroups;
    }
  }

  __device__ __forceinline__ int slot(int k) const { return (k >> p_.group_shift) & (kSlots - 1); }

  // kMultiplier, of this thread's items since the start: whether any column is bad, and which are.
  __device__ __forceinline__ bool any_bad() const { return bad_ != 0; }
  template <typename Visit>
  __device__ __forceinline__ void for_bad(const Visit& visit) const {
    const int place = first().place;
    for_items(place, [&](int i, int column, int) {
      if (bad_ >> i & 1) visit(column_of(place) + column);
    });
  }
};

}  // namespace qutlass::threadblock
