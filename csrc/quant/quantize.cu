// SPDX-License-Identifier: Apache-2.0
//
// quantize: float rows to INT8 or packed INT4.
//
// A segment is a run of columns of one row that a team of threads handles by itself: the columns
// that share a scale, or, where the scale is known beforehand, any convenient piece of a row. A
// team is 1 to 32 lanes of a warp or one whole block; it loads the segment into registers, takes
// the range by shuffles (and one exchange through shared memory), and writes the integers out: one
// read and one write of memory. A segment too long for the registers is walked twice, forwards for
// the range and backwards for the integers, so that the second walk starts with what is still in
// registers and goes on with what is most likely still in L2.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cfloat>

#include "common/load_param.cuh"
#include "common/nibble.h"
#include "quant/divide.cuh"
#include "quant/launch.cuh"
#include "quant/quant.h"

namespace qutlass::cuda {
namespace {

constexpr int kRun = 8;    // columns of one vector load: 16 bytes of a 16-bit dtype
constexpr int kSlot = 16;  // columns of two runs; for INT4 the low and the high nibbles of 8 bytes

constexpr int kRangeBlocks = 256;  // blocks of the whole-tensor range, one partial result each
constexpr int kRangeThreads = 512;  // 256 x 512 threads with 64 bytes each in flight: 8 MB
constexpr int kApplyColumns = 8192;  // piece of a row where the scale is known beforehand
constexpr int kApplyColumnsFew = 2048;  // the same for inputs too small to fill a GPU otherwise
constexpr int64_t kFewValues = 1 << 20;
// Segments (about the SMs of a large GPU, twice) up to which latency counts, not occupancy.
constexpr int64_t kFewSegments = 256;

// ---------------------------------------------------------------------------------------------
// Eight values in registers as they were loaded.

template <typename X>
struct Run {  // 16-bit dtypes, two values a register
  uint32_t word[4];

  __device__ __forceinline__ void clear() { word[0] = word[1] = word[2] = word[3] = 0; }
  __device__ __forceinline__ void load(const X* source) {
    const uint4 v = __ldg(reinterpret_cast<const uint4*>(source));
    word[0] = v.x, word[1] = v.y, word[2] = v.z, word[3] = v.w;
  }
  __device__ __forceinline__ void set(int j, const X* source) {
    const uint32_t bits = __ldg(reinterpret_cast<const unsigned short*>(source));
    word[j / 2] |= bits << (16 * (j % 2));
  }
  __device__ __forceinline__ float value(int j) const;
};

template <>
__device__ __forceinline__ float Run<__nv_bfloat16>::value(int j) const {
  return __uint_as_float(j % 2 ? word[j / 2] & 0xFFFF0000u : word[j / 2] << 16);
}
template <>
__device__ __forceinline__ float Run<__half>::value(int j) const {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(word[j / 2] >> (16 * (j % 2)))));
}

template <>
struct Run<float> {
  float word[8];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int j = 0; j < 8; ++j) word[j] = 0.f;
  }
  __device__ __forceinline__ void load(const float* source) {
    const float4 a = __ldg(reinterpret_cast<const float4*>(source));
    const float4 b = __ldg(reinterpret_cast<const float4*>(source) + 1);
    word[0] = a.x, word[1] = a.y, word[2] = a.z, word[3] = a.w;
    word[4] = b.x, word[5] = b.y, word[6] = b.z, word[7] = b.w;
  }
  __device__ __forceinline__ void set(int j, const float* source) { word[j] = __ldg(source); }
  __device__ __forceinline__ float value(int j) const { return word[j]; }
};

// ---------------------------------------------------------------------------------------------
// The range of a segment. NaN must win every comparison, so that it is still there at the end.

__device__ __forceinline__ float max_nan(float a, float b) {
  float d;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(d) : "f"(a), "f"(b));
  return d;
}
__device__ __forceinline__ float min_nan(float a, float b) {
  float d;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(d) : "f"(a), "f"(b));
  return d;
}

// Largest magnitude (symmetric), or max(x, 0) and -min(x, 0), as bits of float32: those of
// non-negative floats, Inf and NaN included, order like unsigned integers, which warps reduce in
// one instruction.
struct RangeBits {
  uint32_t high, low;
};

template <typename X>
struct Pair;  // two 16-bit values in a register
template <>
struct Pair<__nv_bfloat16> {
  static __device__ __forceinline__ uint32_t max(uint32_t a, uint32_t b) {
    uint32_t d;
    asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
  }
  static __device__ __forceinline__ uint32_t min(uint32_t a, uint32_t b) {
    uint32_t d;
    asm("min.NaN.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
  }
};
template <>
struct Pair<__half> {
  static __device__ __forceinline__ uint32_t max(uint32_t a, uint32_t b) {
    uint32_t d;
    asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
  }
  static __device__ __forceinline__ uint32_t min(uint32_t a, uint32_t b) {
    uint32_t d;
    asm("min.NaN.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
  }
};

template <typename X>
struct Range {
  uint32_t high = 0, low = 0;

  __device__ __forceinline__ void add_magnitude(const Run<X>& run) {
#pragma unroll
    for (int i = 0; i < 4; ++i) high = Pair<X>::max(high, run.word[i] & 0x7FFF7FFFu);
  }
  __device__ __forceinline__ void add_both(const Run<X>& run) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      high = Pair<X>::max(high, run.word[i]);
      low = Pair<X>::min(low, run.word[i]);
    }
  }
  __device__ __forceinline__ RangeBits bits() const {
    Run<X> both;
    both.word[0] = high, both.word[1] = low;
    return {__float_as_uint(fabsf(max_nan(both.value(0), both.value(1)))),
            __float_as_uint(fabsf(min_nan(both.value(2), both.value(3))))};
  }
};

template <>
struct Range<float> {
  float high = 0.f, low = 0.f;

  __device__ __forceinline__ void add_magnitude(const Run<float>& run) {
#pragma unroll
    for (int j = 0; j < 8; ++j) high = max_nan(high, fabsf(run.word[j]));
  }
  __device__ __forceinline__ void add_both(const Run<float>& run) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      high = max_nan(high, run.word[j]);
      low = min_nan(low, run.word[j]);
    }
  }
  __device__ __forceinline__ RangeBits bits() const {
    return {__float_as_uint(fabsf(high)), __float_as_uint(fabsf(low))};
  }
};

__device__ __forceinline__ RangeBits warp_max(RangeBits v, bool symmetric) {
  v.high = __reduce_max_sync(0xFFFFFFFFu, v.high);
  if (!symmetric) v.low = __reduce_max_sync(0xFFFFFFFFu, v.low);
  return v;
}

// Over the whole block; every thread gets the result. Once per kernel: `exchange` is not recycled.
__device__ __forceinline__ RangeBits block_max(RangeBits v, bool symmetric, RangeBits* exchange) {
  const int lane = threadIdx.x % 32, warps = (blockDim.x + 31) / 32;
  v = warp_max(v, symmetric);
  if (warps == 1) return v;
  if (lane == 0) exchange[threadIdx.x / 32] = v;
  __syncthreads();
  v = lane < warps ? exchange[lane] : RangeBits{0, 0};
  return warp_max(v, symmetric);
}

// Over `team` threads, a power of two within a warp or the whole block. All of the block takes
// part.
__device__ __forceinline__ RangeBits team_max(RangeBits v, int team, bool symmetric,
                                              RangeBits* exchange) {
  if (team > 32) return block_max(v, symmetric, exchange);
  if (team == 32) return warp_max(v, symmetric);
  for (int offset = team / 2; offset > 0; offset /= 2) {
    v.high = max(v.high, __shfl_xor_sync(0xFFFFFFFFu, v.high, offset));
    if (!symmetric) v.low = max(v.low, __shfl_xor_sync(0xFFFFFFFFu, v.low, offset));
  }
  return v;
}

// ---------------------------------------------------------------------------------------------
// Scale, zero point and the division.

template <int kBits>
struct Limits {
  static constexpr int kHigh = kBits == 8 ? 127 : 7;
};

struct Scaling {
  float scale = 1.f;
  int zero = 0;
};

template <int kBits>
__device__ __forceinline__ Scaling scaling_of(RangeBits range, bool symmetric) {
  constexpr float kHigh = Limits<kBits>::kHigh;
  const float high = __uint_as_float(range.high), low = -__uint_as_float(range.low);
  Scaling s;
  s.scale = symmetric ? __fdiv_rn(high, kHigh) : __fdiv_rn(__fsub_rn(high, low), 2 * kHigh + 1);
  if (!(s.scale <= FLT_MAX)) {  // NaN or Inf in the data, or max - min beyond float32
    s.scale = __int_as_float(0x7FC00000);
  } else if (s.scale == 0.f) {
    s.scale = 1.f;
  } else if (!symmetric) {
    const float zero = rintf(__fsub_rn(-kHigh - 1, __fdiv_rn(low, s.scale)));
    s.zero = static_cast<int>(fminf(fmaxf(zero, -kHigh - 1), kHigh));
  }
  return s;
}

// Three ways from a value to the integer, which ends in the low byte (two's complement).

// Scale from the data's own range, symmetric: the quotient rounds to at most kHigh by construction.
struct SymmetricCoder {
  float divisor, reciprocal;

  __device__ __forceinline__ explicit SymmetricCoder(float scale) {
    divisor = scale;
    reciprocal = rounded_reciprocal(scale);
  }
  __device__ __forceinline__ uint32_t operator()(float x) const {
    return __float_as_uint(rounded_quotient(x, divisor, reciprocal));
  }
};

// The same, asymmetric: the zero point is added, and rounding may lead one past the end.
template <int kBits>
struct AsymmetricCoder {
  static constexpr float kHigh = Limits<kBits>::kHigh;
  float divisor, reciprocal, offset;

  __device__ __forceinline__ explicit AsymmetricCoder(Scaling s) {
    divisor = s.scale;
    reciprocal = rounded_reciprocal(s.scale);
    offset = __int2float_rn(s.zero);
  }
  __device__ __forceinline__ uint32_t operator()(float x) const {
    const float q = __fadd_rn(rounded_quotient(x, divisor, reciprocal), offset);
    return __float_as_uint(fminf(fmaxf(q, kIntegerBias - kHigh - 1), kIntegerBias + kHigh));
  }
};

// Any x, any scale, any zero point.
template <int kBits>
struct GeneralCoder {
  static constexpr float kHigh = Limits<kBits>::kHigh;
  float divisor, reciprocal, offset;
  float factor;  // applied to x first: a power of two, or 0, Inf, a sign
  float bound;  // |x * factor| is cut to it

  __device__ __forceinline__ GeneralCoder(Scaling s, bool symmetric) {
    // Beyond 2^21 a zero point is far outside every integer format and all values saturate.
    constexpr int kZeroLimit = 1 << 21;
    offset = __int2float_rn(min(max(s.zero, -kZeroLimit), kZeroLimit));
    divisor = fabsf(s.scale);
    factor = copysignf(1.f, s.scale);
    // Powers of two on both sides leave the quotient alone (an x that becomes subnormal belongs to
    // a quotient that rounds to 0). Scales no caller should give behave as division does: x / 0
    // saturates, 0 / 0 and x / NaN are NaN and so the zero point, x / Inf is 0.
    if (!(divisor <= FLT_MAX)) {
      factor = 0.f;
      divisor = 1.f;
    } else if (divisor == 0.f) {
      factor = __fmul_rn(factor, __int_as_float(0x7F800000));
      divisor = 1.f;
    } else if (divisor < kLeastDivisor) {
      factor = __fmul_rn(factor, 0x1p100f);
      divisor = __fmul_rn(divisor, 0x1p100f);
    } else if (divisor > kGreatestDivisor) {
      factor = __fmul_rn(factor, 0x1p-60f);
      divisor = __fmul_rn(divisor, 0x1p-60f);
    }
    reciprocal = rounded_reciprocal(divisor);
    // Symmetric: this is the clamp to [-kHigh, kHigh]. Else far beyond what saturates.
    bound = __fmul_rn(symmetric ? kHigh : __fadd_rn(fabsf(offset), 512.f), divisor);
  }
  __device__ __forceinline__ uint32_t operator()(float x) const {
    x = __fmul_rn(x, factor);
    x = x == x ? x : 0.f;
    x = fminf(fmaxf(x, -bound), bound);
    const float q = __fadd_rn(rounded_quotient(x, divisor, reciprocal), offset);
    return __float_as_uint(fminf(fmaxf(q, kIntegerBias - kHigh - 1), kIntegerBias + kHigh));
  }
};

// The low bytes of four words.
__device__ __forceinline__ uint32_t low_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}

// ---------------------------------------------------------------------------------------------
// The kernel.

constexpr int kMaxTeam = 512;

// Blocks of kMaxTeam threads whose registers an SM must hold at once. The registers that hold data
// are what keeps memory busy, so the rest of a thread's registers are kept few: 40 in all for one
// or two slots of a 16-bit dtype, 64 for four.
template <typename X, int kSlots, bool kVector>
constexpr int kBlocksPerSm = !kVector                  ? 1
                             : kSlots * sizeof(X) <= 4 ? 3
                             : kSlots * sizeof(X) <= 8 ? 2
                                                       : 1;

// Kernels for segments that always fit a team's registers do without the walk over chunks.
template <int kSlots, bool kVector>
constexpr bool kIsResident = kVector && kSlots < 4;

struct Segments {
  const void* x;
  int64_t stride;  // elements from one row of x to the next
  int64_t cols;
  int64_t length;  // columns of a segment; a row's last may be shorter
  int64_t per_row;  // segments of a row
  int64_t count;  // of all rows
};

struct QuantizeKernelArguments {
  Segments segments;
  int team;  // threads of a segment: a power of two up to 32, or the whole block
  bool symmetric;  // range [-kHigh, kHigh] rather than [-kHigh - 1, kHigh]
  bool pieces;  // segments are pieces of a row with one scale: entries count rows
  bool one_entry;  // one scale for everything
  Param scale_in, zero_in;  // given scale
  const RangeBits* partials;  // or kRangeBlocks parts of the range of the whole tensor
  void* q;  // null: only scale and zero are wanted
  float* scale;
  int32_t* zero;
};

// Which columns, relative to the team's current chunk, a thread has in run `run` of its 2 * kSlots.
//
//  INT8, vectors:   thread t, run r: 8 columns from 8 * (r * team + t)
//  INT8, scalars:   column j of the 8 at (8 * r + j) * team + t, so that lanes stay neighbours
//  INT4, vectors:   runs come in pairs, 16 columns apart; pair p = slot * team + t makes the bytes
//                   8p to 8p + 7; a team is even, so that slots start at blocks of 32 columns
//  INT4, scalars:   byte j of the pair at (8 * slot + j) * team + t, low nibble, then high nibble
template <int kBits, bool kVector>
__device__ __forceinline__ int column_of(int run, int j, int team, int t) {
  if constexpr (kBits == 8) {
    return kVector ? (run * team + t) * kRun + j : (run * kRun + j) * team + t;
  } else if constexpr (kVector) {
    return run / 2 * team * kSlot + t / 2 * kInt4Block + t % 2 * kRun + run % 2 * kInt4BlockBytes +
           j;
  } else {
    const int byte = (run / 2 * kRun + j) * team + t;
    return byte / kInt4BlockBytes * kInt4Block + byte % kInt4BlockBytes + run % 2 * kInt4BlockBytes;
  }
}

template <typename X, int kBits, int kSlots, bool kVector>
__device__ __forceinline__ void load_chunk(const X* source, int columns, int team, int t,
                                           Run<X> (&runs)[2 * kSlots]) {
#pragma unroll
  for (int r = 0; r < 2 * kSlots; ++r) {
    // Zeros where there is nothing: they change no range, which always includes 0.
    runs[r].clear();
    if constexpr (kVector) {
      const int column = column_of<kBits, true>(r, 0, team, t);
      if (column < columns) runs[r].load(source + column);
    } else {
#pragma unroll
      for (int j = 0; j < kRun; ++j) {
        const int column = column_of<kBits, false>(r, j, team, t);
        if (column < columns) runs[r].set(j, source + column);
      }
    }
  }
}

template <typename X, int kBits, int kSlots, bool kVector, typename Coder>
__device__ __forceinline__ void store_chunk(uint8_t* target, int columns, int team, int t,
                                            const Run<X> (&runs)[2 * kSlots], const Coder& code) {
  if constexpr (kBits == 8) {
#pragma unroll
    for (int r = 0; r < 2 * kSlots; ++r) {
      if constexpr (kVector) {
        uint32_t word[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          word[i] = low_bytes(code(runs[r].value(4 * i)), code(runs[r].value(4 * i + 1)),
                              code(runs[r].value(4 * i + 2)), code(runs[r].value(4 * i + 3)));
        }
        const int column = column_of<8, true>(r, 0, team, t);
        if (column < columns) {
          *reinterpret_cast<uint2*>(target + column) = make_uint2(word[0], word[1]);
        }
      } else {
#pragma unroll
        for (int j = 0; j < kRun; ++j) {
          const int column = column_of<8, false>(r, j, team, t);
          if (column < columns) target[column] = static_cast<uint8_t>(code(runs[r].value(j)));
        }
      }
    }
  } else {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      const Run<X>&lows = runs[2 * slot], &highs = runs[2 * slot + 1];
      if constexpr (kVector) {
        uint32_t word[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const uint32_t low = low_bytes(code(lows.value(4 * i)), code(lows.value(4 * i + 1)),
                                         code(lows.value(4 * i + 2)), code(lows.value(4 * i + 3)));
          const uint32_t high =
              low_bytes(code(highs.value(4 * i)), code(highs.value(4 * i + 1)),
                        code(highs.value(4 * i + 2)), code(highs.value(4 * i + 3)));
          word[i] = (low & 0x0F0F0F0Fu) | ((high << 4) & 0xF0F0F0F0u);
        }
        const int byte = (slot * team + t) * kRun;
        if (byte < columns / 2) {
          *reinterpret_cast<uint2*>(target + byte) = make_uint2(word[0], word[1]);
        }
      } else {
#pragma unroll
        for (int j = 0; j < kRun; ++j) {
          const int byte = (slot * kRun + j) * team + t;
          if (byte < columns / 2) {
            target[byte] =
                static_cast<uint8_t>((code(lows.value(j)) & 0xF) | (code(highs.value(j)) << 4));
          }
        }
      }
    }
  }
}

// Makes the compiler compute again what it derived from `t`: else it keeps the column and the
// address of every load in registers until the stores.
__device__ __forceinline__ void forget_derived(int& t) { asm volatile("" : "+r"(t)); }

template <typename X, int kBits, int kSlots, bool kVector>
__global__ void __launch_bounds__(kMaxTeam, kBlocksPerSm<X, kSlots, kVector>)
    quantize_kernel(const QuantizeKernelArguments p) {
  __shared__ RangeBits exchange[32];
  constexpr bool kResident = kIsResident<kSlots, kVector>;
  const Segments& s = p.segments;
  const int team = p.team;
  int64_t segment = blockIdx.x;
  int t = threadIdx.x;
  if (team <= 32) {
    const int shift = __ffs(team) - 1;
    segment = segment * (blockDim.x >> shift) + (threadIdx.x >> shift);
    t = threadIdx.x & (team - 1);
  }
  // A team without a segment goes along with nothing to do: its warp needs it for the shuffles.
  const bool active = segment < s.count;
  int64_t row = segment, offset = 0;
  if (s.per_row != 1) {
    row = divide_index(segment, s.per_row);
    offset = (segment - row * s.per_row) * s.length;
  }
  const X* source = static_cast<const X*>(s.x) + row * s.stride + offset;
  uint8_t* target = static_cast<uint8_t*>(p.q) + (row * s.cols + offset) / (8 / kBits);
  const int64_t entry = p.one_entry ? 0 : p.pieces ? row : segment;
  const bool first_of_entry = p.one_entry ? segment == 0 : !p.pieces || offset == 0;
  const bool leader = active && t == 0 && first_of_entry;

  // `chunk` counts the chunks after the first; all are full but the last.
  const int capacity = team * kSlots * kSlot;
  int last = 0, columns = 0;
  if (active) {
    const int64_t length = min(s.length, s.cols - offset);
    if (!kResident && length > capacity) {
      last = static_cast<int>(divide_index(length - 1, capacity));
    }
    columns = static_cast<int>(length - static_cast<int64_t>(last) * capacity);
  }

  const bool given = p.scale_in.data != nullptr;
  const bool computed = !given && p.partials == nullptr;
  Scaling scaling;
  if (given && active) {
    scaling.scale =
        device::load_float(p.scale_in.data, p.scale_in.dtype, entry * p.scale_in.stride);
    if (p.zero_in.data != nullptr) {
      scaling.zero = device::load_int(p.zero_in.data, p.zero_in.dtype, entry * p.zero_in.stride);
    }
  }
  Run<X> runs[2 * kSlots];
  Range<X> range;
  int chunk = computed ? 0 : last;
  source += static_cast<int64_t>(chunk) * capacity;
  while (true) {
    load_chunk<X, kBits, kSlots, kVector>(source, chunk == last ? columns : capacity, team, t,
                                          runs);
    if (computed) {
      if (p.symmetric) {
#pragma unroll
        for (int r = 0; r < 2 * kSlots; ++r) range.add_magnitude(runs[r]);
      } else {
#pragma unroll
        for (int r = 0; r < 2 * kSlots; ++r) range.add_both(runs[r]);
      }
    }
    if (kResident || chunk == last) break;
    ++chunk;
    source += capacity;
  }

  if (computed) {
    scaling = scaling_of<kBits>(team_max(range.bits(), team, p.symmetric, exchange), p.symmetric);
  } else if (p.partials != nullptr) {
    RangeBits whole = {0, 0};
    for (int i = threadIdx.x; i < kRangeBlocks; i += blockDim.x) {
      whole.high = max(whole.high, p.partials[i].high);
      whole.low = max(whole.low, p.partials[i].low);
    }
    scaling = scaling_of<kBits>(block_max(whole, p.symmetric, exchange), p.symmetric);
  }
  if (leader) {
    p.scale[entry] = scaling.scale;
    if (p.zero != nullptr) p.zero[entry] = scaling.zero;
  }
  if (p.q == nullptr) return;

  const bool ordinary =
      !given && scaling.scale >= kLeastDivisor && scaling.scale <= kGreatestDivisor;
  target += static_cast<int64_t>(last) * capacity / (8 / kBits);
  while (true) {
    forget_derived(t);
    if (ordinary && p.symmetric) {
      store_chunk<X, kBits, kSlots, kVector>(target, columns, team, t, runs,
                                             SymmetricCoder(scaling.scale));
    } else if (ordinary) {
      store_chunk<X, kBits, kSlots, kVector>(target, columns, team, t, runs,
                                             AsymmetricCoder<kBits>(scaling));
    } else {
      store_chunk<X, kBits, kSlots, kVector>(target, columns, team, t, runs,
                                             GeneralCoder<kBits>(scaling, p.symmetric));
    }
    if (kResident || chunk == 0) break;
    forget_derived(t);
    --chunk;
    columns = capacity;
    source -= capacity;
    target -= capacity / (8 / kBits);
    load_chunk<X, kBits, kSlots, kVector>(source, columns, team, t, runs);
  }
}

// The range of a whole tensor: each block leaves its part, whoever needs the range takes the
// maximum of all parts. A maximum does not depend on the order, so neither does any bit of the
// result.
template <typename X, bool kVector>
__global__ void __launch_bounds__(kRangeThreads)
    tensor_range_kernel(const X* x, int64_t rows, int64_t cols, int64_t stride, bool symmetric,
                        RangeBits* partials) {
  __shared__ RangeBits exchange[32];
  constexpr int kUnit = kVector ? kRun : 1;  // columns read at once
  constexpr int kInFlight = 4;
  const int64_t per_row = cols / kUnit, total = rows * per_row;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  Range<X> range;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; first < total;
       first += kInFlight * threads) {
    Run<X> runs[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int64_t unit = first + i * threads;
      runs[i].clear();
      if (unit >= total) continue;
      const int64_t row = rows == 1 ? 0 : divide_index(unit, per_row);
      const X* source = x + row * stride + (unit - row * per_row) * kUnit;
      if constexpr (kVector) {
        runs[i].load(source);
      } else {
        runs[i].set(0, source);
      }
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (symmetric) {
        range.add_magnitude(runs[i]);
      } else {
        range.add_both(runs[i]);
      }
    }
  }
  const RangeBits result = block_max(range.bits(), symmetric, exchange);
  if (threadIdx.x == 0) partials[blockIdx.x] = result;
}

// INT4 groups that cut a block of 32 columns, so that the two nibbles of a byte may belong to
// different groups: one thread a byte, with the scales that an earlier launch wrote.
template <typename X>
__global__ void __launch_bounds__(256)
    quantize_cut_blocks_kernel(const X* x, int64_t rows, int64_t cols, int64_t stride,
                               int64_t group_size, bool symmetric, const float* scale,
                               const int32_t* zero, uint8_t* packed) {
  const int64_t byte = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (byte >= rows * (cols / 2)) return;
  const int64_t row = divide_index(byte, cols / 2), in_row = byte - row * (cols / 2);
  uint32_t code[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t column =
        in_row / kInt4BlockBytes * kInt4Block + in_row % kInt4BlockBytes + half * kInt4BlockBytes;
    const int64_t entry = divide_index(row * cols + column, group_size);
    const Scaling scaling{scale[entry], zero == nullptr ? 0 : zero[entry]};
    Run<X> run;
    run.clear();
    run.set(0, x + row * stride + column);
    code[half] = GeneralCoder<4>(scaling, symmetric)(run.value(0));
  }
  packed[byte] = static_cast<uint8_t>((code[0] & 0xF) | (code[1] << 4));
}

// ---------------------------------------------------------------------------------------------
// Host side: cut into segments, choose a team, launch.

// `rows` and `cols` as the kernels see them: a matrix without gaps may be cut anywhere.
struct Shape {
  int64_t rows, cols, stride;
};

template <typename X>
bool can_load_vectors(const QuantizeArguments& a, const Shape& shape, int64_t length) {
  return aligned(a.x, 16) && (shape.rows <= 1 || shape.stride * sizeof(X) % 16 == 0) &&
         shape.cols % kRun == 0 && length % kRun == 0;
}

template <typename X, int kBits, int kSlots, bool kVector>
Status launch_team(QuantizeKernelArguments p, void* stream) {
  constexpr int64_t kPerThread = kSlots * kSlot;
  const int64_t length = p.segments.length;
  int64_t team = ceil_div(length, kPerThread);
  int64_t threads;
  if (team <= 32) {
    int power = kBits == 4 ? 2 : 1;  // a block of 32 INT4 columns takes two threads
    while (power < team) power *= 2;
    team = power;
    threads = p.segments.count <= kFewSegments ? 32 : 256;
  } else {
    // Chunks of equal size, where one is not enough.
    const int64_t chunks = ceil_div(team, kMaxTeam);
    team = ceil_div(ceil_div(length, chunks * kPerThread), 32) * 32;
    threads = team;
  }
  p.team = static_cast<int>(team);
  return launch(&quantize_kernel<X, kBits, kSlots, kVector>,
                ceil_div(p.segments.count, threads / team), static_cast<int>(threads), stream,
                "quantize", p);
}

template <typename X, int kBits>
Status launch_segments(const QuantizeKernelArguments& p, bool vectors, void* stream) {
  // More columns a thread: fewer threads share the work per segment, and more of the registers hold
  // data. Fewer: more threads, so a shorter wait when there are few segments.
  const int64_t length = p.segments.length;
  const bool few = p.segments.count <= kFewSegments;
  if (!vectors) return launch_team<X, kBits, 1, false>(p, stream);
  if (length <= (few ? kMaxTeam : 32) * kSlot) return launch_team<X, kBits, 1, true>(p, stream);
  if (length <= kMaxTeam * 2 * kSlot) return launch_team<X, kBits, 2, true>(p, stream);
  return launch_team<X, kBits, 4, true>(p, stream);
}

template <typename X, int kBits>
Status quantize_as(const QuantizeArguments& a, void* workspace, void* stream) {
  const bool given = a.scale_in.present();
  const bool gapless = a.rows <= 1 || a.x_stride == a.cols;
  const int64_t groups = a.per_tensor || a.cols == 0 ? 1 : a.cols / a.group_size;
  Shape shape = {a.rows, a.cols, a.x_stride};

  QuantizeKernelArguments p = {};
  p.symmetric = a.symmetric;
  p.scale_in = a.scale_in;
  p.zero_in = a.zero_in;
  p.q = a.q;
  p.scale = a.scale;
  p.zero = a.zero;
  p.one_entry = a.per_tensor;
  p.pieces = a.per_tensor || (given && groups == 1);

  if (a.per_tensor && (gapless || a.rows == 0 || a.cols == 0)) {
    shape = {1, a.rows * a.cols, a.rows * a.cols};
  } else if (!p.pieces && gapless) {
    shape = {a.rows * groups, a.cols / groups, a.cols / groups};
  }
  int64_t length =
      p.pieces ? a.rows * a.cols <= kFewValues ? kApplyColumnsFew : kApplyColumns : a.cols / groups;
  length = length < shape.cols ? length : shape.cols;
  const bool cut_blocks = kBits == 4 && length % kInt4Block != 0;
  const int64_t per_row = shape.cols == 0 ? 1 : ceil_div(shape.cols, length);
  p.segments = {a.x, shape.stride, shape.cols, length, per_row, shape.rows * per_row};
  const bool vectors = can_load_vectors<X>(a, shape, length) && aligned(a.q, 8);

  if (a.per_tensor && !given) {
    if (workspace == nullptr) return Status::invalid("quantize: per_tensor needs a workspace");
    RangeBits* partials = static_cast<RangeBits*>(workspace);
    const auto kernel = can_load_vectors<X>(a, shape, shape.cols) ? &tensor_range_kernel<X, true>
                                                                  : &tensor_range_kernel<X, false>;
    const Status status = launch(kernel, kRangeBlocks, kRangeThreads, stream,
                                 "quantize: range of the tensor", static_cast<const X*>(a.x),
                                 shape.rows, shape.cols, shape.stride, a.symmetric, partials);
    if (!status.ok()) return status;
    p.partials = partials;
  }
  if (!cut_blocks) return launch_segments<X, kBits>(p, vectors, stream);

  p.q = nullptr;
  const Status status = launch_segments<X, kBits>(p, vectors, stream);
  if (!status.ok()) return status;
  return launch(&quantize_cut_blocks_kernel<X>, ceil_div(a.rows * (a.cols / 2), 256), 256, stream,
                "quantize: cut blocks", static_cast<const X*>(a.x), a.rows, a.cols, a.x_stride,
                a.group_size, a.symmetric, a.scale, a.zero, static_cast<uint8_t*>(a.q));
}

template <typename X>
Status quantize_bits(const QuantizeArguments& a, void* workspace, void* stream) {
  return a.bits == 8 ? quantize_as<X, 8>(a, workspace, stream)
                     : quantize_as<X, 4>(a, workspace, stream);
}

}  // namespace

size_t quantize_workspace_bytes(const QuantizeArguments& a) {
  return a.per_tensor && !a.scale_in.present() ? kRangeBlocks * sizeof(RangeBits) : 0;
}

Status quantize(const QuantizeArguments& a, void* workspace, void* stream) {
  if (a.bits != 8 && a.bits != 4) return Status::invalid("quantize: bits must be 8 or 4");
  if (a.rows < 0 || a.cols < 0) return Status::invalid("quantize: negative size");
  if (a.bits == 4 && a.cols % kInt4Block != 0) {
    return Status::invalid("quantize: INT4 needs cols to be a multiple of 32");
  }
  if (a.cols > 0 && !a.per_tensor && (a.group_size <= 0 || a.cols % a.group_size != 0)) {
    return Status::invalid("quantize: group_size must divide cols");
  }
  if (a.scale == nullptr && (a.rows > 0 || a.per_tensor)) {
    return Status::invalid("quantize: no memory for the scale");
  }
  if (!a.symmetric && a.zero == nullptr && (a.rows > 0 || a.per_tensor)) {
    return Status::invalid("quantize: no memory for the zero point");
  }
  if (a.zero_in.present() && (a.symmetric || !a.scale_in.present())) {
    return Status::invalid(
        "quantize: a given zero point needs symmetric = false and a given scale");
  }
  switch (a.x_dtype) {
    case DType::kFloat32: return quantize_bits<float>(a, workspace, stream);
    case DType::kBFloat16: return quantize_bits<__nv_bfloat16>(a, workspace, stream);
    case DType::kFloat16: return quantize_bits<__half>(a, workspace, stream);
    default: return Status::invalid("quantize: x must be float32, bfloat16 or float16");
  }
}

}  // namespace qutlass::cuda
