// SPDX-License-Identifier: Apache-2.0
#include "cpu/strict_float.h"
//
#include "cpu/kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#include "common/nibble.h"

namespace qutlass::cpu {
namespace {

// The functions ask for their instructions themselves, so the file builds with any flags. Only the
// weight-only product asks for FMA: it is the one place where the contract leaves rounding open.
#define QUTLASS_AVX2 __attribute__((target("avx2")))
#define QUTLASS_AVX2_FMA __attribute__((target("avx2,fma")))
#define QUTLASS_INLINE __attribute__((always_inline)) inline

constexpr int kLanes = 16;  // int16 in a register

QUTLASS_AVX2 QUTLASS_INLINE __m256i load(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
QUTLASS_AVX2 QUTLASS_INLINE void store(void* p, __m256i x) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), x);
}
QUTLASS_AVX2 QUTLASS_INLINE __m128i load_half(const void* p) {
  return _mm_loadu_si128(static_cast<const __m128i*>(p));
}

QUTLASS_AVX2 void widen_int8(const int8_t* in, int64_t k, int zero, int16_t* out) {
  const __m256i z = _mm256_set1_epi16(static_cast<int16_t>(zero));
  for (int64_t i = 0; i < k; i += kLanes) {
    store(out + i, _mm256_sub_epi16(_mm256_cvtepi8_epi16(load_half(in + i)), z));
  }
}

// The two halves of a block as int8 k = 0..15 and 16..31, still 8 too large.
QUTLASS_AVX2 QUTLASS_INLINE void split_nibbles(const uint8_t* in, __m128i* low, __m128i* high) {
  const __m128i mask = _mm_set1_epi8(0xF);
  // A flipped top bit turns two's complement into an offset of 8.
  const __m128i bytes = _mm_xor_si128(load_half(in), _mm_set1_epi8(static_cast<char>(0x88)));
  *low = _mm_and_si128(bytes, mask);
  *high = _mm_and_si128(_mm_srli_epi16(bytes, 4), mask);
}

QUTLASS_AVX2 void widen_int4(const uint8_t* in, int64_t k, int zero, int multiplier, int16_t* out) {
  const __m256i z = _mm256_set1_epi16(static_cast<int16_t>(zero + 8));
  const __m256i factor = _mm256_set1_epi16(static_cast<int16_t>(multiplier));
  for (int64_t i = 0; i < k; i += kInt4Block, in += kInt4BlockBytes) {
    __m128i low, high;
    split_nibbles(in, &low, &high);
    const __m256i x = _mm256_sub_epi16(_mm256_cvtepu8_epi16(low), z);
    const __m256i y = _mm256_sub_epi16(_mm256_cvtepu8_epi16(high), z);
    store(out + i, _mm256_mullo_epi16(x, factor));
    store(out + i + kLanes, _mm256_mullo_epi16(y, factor));
  }
}

// The 32 values of a block, k in order. Sign-extended bytes give the high nibbles by one shift and
// the low ones by two, signs included.
QUTLASS_AVX2 QUTLASS_INLINE void dequantize_block(const uint8_t* in, __m256 zero, __m256 scale,
                                                  __m256 (&out)[4]) {
  for (int half = 0; half < 2; ++half) {
    const __m256i bytes =
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(in + 8 * half)));
    const __m256i low = _mm256_srai_epi32(_mm256_slli_epi32(bytes, 28), 28);
    const __m256i high = _mm256_srai_epi32(bytes, 4);
    out[half] = _mm256_mul_ps(_mm256_sub_ps(_mm256_cvtepi32_ps(low), zero), scale);
    out[half + 2] = _mm256_mul_ps(_mm256_sub_ps(_mm256_cvtepi32_ps(high), zero), scale);
  }
}

QUTLASS_AVX2 void dequantize_int4(const uint8_t* in, int64_t k, float zero, float scale,
                                  float* out) {
  const __m256 z = _mm256_set1_ps(zero);
  const __m256 s = _mm256_set1_ps(scale);
  for (int64_t i = 0; i < k; i += kInt4Block, in += kInt4BlockBytes) {
    __m256 block[4];
    dequantize_block(in, z, s, block);
    for (int j = 0; j < 4; ++j) _mm256_storeu_ps(out + i + 8 * j, block[j]);
  }
}

QUTLASS_AVX2 void widen_bfloat16(const uint16_t* in, int64_t k, float* out) {
  for (int64_t i = 0; i < k; i += 8) {
    store(out + i, _mm256_slli_epi32(_mm256_cvtepu16_epi32(load_half(in + i)), 16));
  }
}

// The tile's rows of W, a few k at a time as int16 in kRegisters registers: packed ones, or a
// weight as it lies in memory.
struct PackedRows {
  static constexpr int kRegisters = 1;
  const int16_t* b;
  int64_t stride;

  PackedRows from(int64_t k) const { return {b + k, stride}; }
  QUTLASS_AVX2 QUTLASS_INLINE void read(int n, int64_t k, __m256i (&y)[kRegisters]) const {
    y[0] = load(b + n * stride + k);
  }
};
struct Int8Rows {
  static constexpr int kRegisters = 1;
  const int8_t* b;
  int64_t stride;

  QUTLASS_AVX2 QUTLASS_INLINE void read(int n, int64_t k, __m256i (&y)[kRegisters]) const {
    y[0] = _mm256_cvtepi8_epi16(load_half(b + n * stride + k));
  }
};
struct Int4Rows {
  static constexpr int kRegisters = 2;
  const uint8_t* b;
  int64_t stride;

  Int4Rows from(int64_t k) const { return {b + k / 2, stride}; }
  QUTLASS_AVX2 QUTLASS_INLINE void read(int n, int64_t k, __m256i (&y)[kRegisters]) const {
    const __m128i eight = _mm_set1_epi8(8);
    __m128i low, high;
    split_nibbles(b + n * stride + k / 2, &low, &high);
    y[0] = _mm256_cvtepi8_epi16(_mm_sub_epi8(low, eight));
    y[1] = _mm256_cvtepi8_epi16(_mm_sub_epi8(high, eight));
  }
};

// Rows x kTileN dot products in registers; Rows is 1 or 2. With 2, 6 loads, 8 multiply-adds and 8
// additions a step keep both multiply-add ports busy; a third row would spill.
template <int Rows>
struct IntTile {
  __m256i acc[Rows][kTileN];

  QUTLASS_AVX2 QUTLASS_INLINE void clear() {
    for (int m = 0; m < Rows; ++m) {
      for (int n = 0; n < kTileN; ++n) acc[m][n] = _mm256_setzero_si256();
    }
  }
  template <typename B>
  QUTLASS_AVX2 QUTLASS_INLINE void add(const int16_t* a, int64_t stride, const B& b, int64_t k) {
    for (int64_t i = 0; i < k; i += kLanes * B::kRegisters) {
      __m256i x[Rows][B::kRegisters];
      for (int m = 0; m < Rows; ++m) {
        for (int r = 0; r < B::kRegisters; ++r) x[m][r] = load(a + m * stride + i + r * kLanes);
      }
      for (int n = 0; n < kTileN; ++n) {
        __m256i y[B::kRegisters];
        b.read(n, i, y);
        for (int r = 0; r < B::kRegisters; ++r) {
          for (int m = 0; m < Rows; ++m) {
            acc[m][n] = _mm256_add_epi32(acc[m][n], _mm256_madd_epi16(x[m][r], y[r]));
          }
        }
      }
    }
  }
  // The kTileN sums of row m.
  QUTLASS_AVX2 QUTLASS_INLINE __m128i sums(int m) const {
    const __m256i pairs = _mm256_hadd_epi32(_mm256_hadd_epi32(acc[m][0], acc[m][1]),
                                            _mm256_hadd_epi32(acc[m][2], acc[m][3]));
    return _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
  }
};

template <int Rows, typename B>
QUTLASS_AVX2 QUTLASS_INLINE void dot_int_rows(const int16_t* a, int64_t stride, const B& b,
                                              int64_t k, int32_t* c, int64_t ldc) {
  IntTile<Rows> tile;
  tile.clear();
  tile.add(a, stride, b, k);
  for (int m = 0; m < Rows; ++m) {
    auto* row = reinterpret_cast<__m128i*>(c + m * ldc);
    _mm_storeu_si128(row, _mm_add_epi32(_mm_loadu_si128(row), tile.sums(m)));
  }
}

template <typename B>
QUTLASS_AVX2 QUTLASS_INLINE void dot_int_all(const int16_t* a, int64_t rows, int64_t stride,
                                             const B& b, int64_t k, int32_t* c, int64_t ldc) {
  int64_t m = 0;
  for (; m + 2 <= rows; m += 2) dot_int_rows<2>(a + m * stride, stride, b, k, c + m * ldc, ldc);
  if (m < rows) dot_int_rows<1>(a + m * stride, stride, b, k, c + m * ldc, ldc);
}

QUTLASS_AVX2 void dot_int(const int16_t* a, int64_t rows, const int16_t* b, int64_t stride,
                          int64_t k, int32_t* c, int64_t ldc) {
  dot_int_all(a, rows, stride, PackedRows{b, stride}, k, c, ldc);
}

QUTLASS_AVX2 void dot_int8(const int16_t* a, int64_t rows, int64_t stride, const int8_t* b,
                           int64_t ldb, int64_t k, int32_t* c, int64_t ldc) {
  dot_int_all(a, rows, stride, Int8Rows{b, ldb}, k, c, ldc);
}

QUTLASS_AVX2 void dot_int4(const int16_t* a, int64_t rows, int64_t stride, const uint8_t* b,
                           int64_t ldb, int64_t k, int32_t* c, int64_t ldc) {
  dot_int_all(a, rows, stride, Int4Rows{b, ldb}, k, c, ldc);
}

template <int Rows, typename B>
QUTLASS_AVX2 QUTLASS_INLINE void dot_group_rows(const int16_t* a, int64_t stride, const B& b,
                                                int64_t k, int64_t group, const float* scale,
                                                float* c, int64_t ldc) {
  __m128 acc[Rows];
  for (int m = 0; m < Rows; ++m) acc[m] = _mm_loadu_ps(c + m * ldc);
  for (int64_t k0 = 0; k0 < k; k0 += group, scale += kTileN) {
    IntTile<Rows> tile;
    tile.clear();
    tile.add(a + k0, stride, b.from(k0), group);
    for (int m = 0; m < Rows; ++m) {
      acc[m] = _mm_add_ps(acc[m], _mm_mul_ps(_mm_cvtepi32_ps(tile.sums(m)), _mm_loadu_ps(scale)));
    }
  }
  for (int m = 0; m < Rows; ++m) _mm_storeu_ps(c + m * ldc, acc[m]);
}

template <typename B>
QUTLASS_AVX2 QUTLASS_INLINE void dot_group_all(const int16_t* a, int64_t rows, int64_t stride,
                                               const B& b, int64_t k, int64_t group,
                                               const float* scale, float* c, int64_t ldc) {
  int64_t m = 0;
  for (; m + 2 <= rows; m += 2) {
    dot_group_rows<2>(a + m * stride, stride, b, k, group, scale, c + m * ldc, ldc);
  }
  if (m < rows) dot_group_rows<1>(a + m * stride, stride, b, k, group, scale, c + m * ldc, ldc);
}

QUTLASS_AVX2 void dot_group(const int16_t* a, int64_t rows, const int16_t* b, int64_t stride,
                            int64_t k, int64_t group, const float* scale, float* c, int64_t ldc) {
  dot_group_all(a, rows, stride, PackedRows{b, stride}, k, group, scale, c, ldc);
}

QUTLASS_AVX2 void dot_group_int4(const int16_t* a, int64_t rows, int64_t stride, const uint8_t* b,
                                 int64_t ldb, int64_t k, int64_t group, const float* scale,
                                 float* c, int64_t ldc) {
  dot_group_all(a, rows, stride, Int4Rows{b, ldb}, k, group, scale, c, ldc);
}

// Rows x kTileN float32 sums in registers. Whatever feeds them, an output sees the same additions
// in the same order.
template <int Rows>
struct FloatTile {
  __m256 acc[Rows][kTileN];

  QUTLASS_AVX2 QUTLASS_INLINE void clear() {
    for (int m = 0; m < Rows; ++m) {
      for (int n = 0; n < kTileN; ++n) acc[m][n] = _mm256_setzero_ps();
    }
  }
  QUTLASS_AVX2 QUTLASS_INLINE void add_to(float* c, int64_t ldc) const {
    for (int m = 0; m < Rows; ++m) {
      const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(acc[m][0], acc[m][1]),
                                          _mm256_hadd_ps(acc[m][2], acc[m][3]));
      const __m128 sums =
          _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
      _mm_storeu_ps(c + m * ldc, _mm_add_ps(_mm_loadu_ps(c + m * ldc), sums));
    }
  }
};

template <int Rows>
QUTLASS_AVX2_FMA QUTLASS_INLINE void dot_float_rows(const float* a, const float* b, int64_t stride,
                                                    int64_t k, float* c, int64_t ldc) {
  FloatTile<Rows> tile;
  tile.clear();
  for (int64_t i = 0; i < k; i += 8) {
    __m256 x[Rows];
    for (int m = 0; m < Rows; ++m) x[m] = _mm256_loadu_ps(a + m * stride + i);
    for (int n = 0; n < kTileN; ++n) {
      const __m256 y = _mm256_loadu_ps(b + n * stride + i);
      for (int m = 0; m < Rows; ++m) tile.acc[m][n] = _mm256_fmadd_ps(x[m], y, tile.acc[m][n]);
    }
  }
  tile.add_to(c, ldc);
}

QUTLASS_AVX2_FMA void dot_float(const float* a, int64_t rows, const float* b, int64_t stride,
                                int64_t k, float* c, int64_t ldc) {
  int64_t m = 0;
  for (; m + 2 <= rows; m += 2) dot_float_rows<2>(a + m * stride, b, stride, k, c + m * ldc, ldc);
  if (m < rows) dot_float_rows<1>(a + m * stride, b, stride, k, c + m * ldc, ldc);
}

template <int Rows>
QUTLASS_AVX2_FMA QUTLASS_INLINE void dot_float_int4_rows(const float* a, int64_t stride,
                                                         const uint8_t* b, int64_t ldb, int64_t k,
                                                         int64_t group, const float* scale,
                                                         const float* zero, float* c, int64_t ldc) {
  FloatTile<Rows> tile;
  tile.clear();
  for (int64_t k0 = 0; k0 < k; k0 += group, scale += kTileN, zero += kTileN) {
    for (int64_t i = k0; i < k0 + group; i += kInt4Block) {
      for (int n = 0; n < kTileN; ++n) {
        __m256 y[4];
        dequantize_block(b + n * ldb + i / 2, _mm256_broadcast_ss(zero + n),
                         _mm256_broadcast_ss(scale + n), y);
        for (int j = 0; j < 4; ++j) {
          for (int m = 0; m < Rows; ++m) {
            const __m256 x = _mm256_loadu_ps(a + m * stride + i + 8 * j);
            tile.acc[m][n] = _mm256_fmadd_ps(x, y[j], tile.acc[m][n]);
          }
        }
      }
    }
  }
  tile.add_to(c, ldc);
}

QUTLASS_AVX2_FMA void dot_float_int4(const float* a, int64_t rows, int64_t stride, const uint8_t* b,
                                     int64_t ldb, int64_t k, int64_t group, const float* scale,
                                     const float* zero, float* c, int64_t ldc) {
  int64_t m = 0;
  for (; m + 2 <= rows; m += 2) {
    dot_float_int4_rows<2>(a + m * stride, stride, b, ldb, k, group, scale, zero, c + m * ldc, ldc);
  }
  if (m < rows) {
    dot_float_int4_rows<1>(a + m * stride, stride, b, ldb, k, group, scale, zero, c + m * ldc, ldc);
  }
}

// Nearest, ties to even, NaN to 0x7FFF; each result in the low half of its 32 bits.
QUTLASS_AVX2 QUTLASS_INLINE __m256i round_to_bfloat16(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(
      _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd), 16);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7FFF), nan);
}

QUTLASS_AVX2 QUTLASS_INLINE void store_bfloat16(uint16_t* out, __m256 x) {
  const __m256i halves = round_to_bfloat16(x);
  const __m256i packed = _mm256_packus_epi32(halves, halves);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out),
                   _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
}

QUTLASS_AVX2 void store_int(const int32_t* acc, int64_t n, const float* b_scale, float a_scale,
                            const float* bias, uint16_t* out) {
  const __m256 scale = _mm256_set1_ps(a_scale);
  const __m256i least = _mm256_set1_epi32(INT32_MIN);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256i sum = load(acc + i);
    // The least int32 stands for +2^31, see the generic kernel.
    const __m256i flip = _mm256_and_si256(_mm256_cmpeq_epi32(sum, least), least);
    __m256 t = _mm256_xor_ps(_mm256_cvtepi32_ps(sum), _mm256_castsi256_ps(flip));
    t = _mm256_mul_ps(t, _mm256_loadu_ps(b_scale + i));
    t = _mm256_mul_ps(t, scale);
    if (bias) t = _mm256_add_ps(t, _mm256_loadu_ps(bias + i));
    store_bfloat16(out + i, t);
  }
  generic_kernels().store_int(acc + i, n - i, b_scale + i, a_scale, bias ? bias + i : nullptr,
                              out + i);
}

QUTLASS_AVX2 void store_float(const float* acc, int64_t n, float a_scale, const float* bias,
                              uint16_t* out) {
  const __m256 scale = _mm256_set1_ps(a_scale);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    __m256 t = _mm256_mul_ps(_mm256_loadu_ps(acc + i), scale);
    if (bias) t = _mm256_add_ps(t, _mm256_loadu_ps(bias + i));
    store_bfloat16(out + i, t);
  }
  generic_kernels().store_float(acc + i, n - i, a_scale, bias ? bias + i : nullptr, out + i);
}

}  // namespace

const Kernels* avx2_kernels() {
  static constexpr Kernels kernels = {"avx2",         widen_int8,     widen_int4, dequantize_int4,
                                      widen_bfloat16, dot_int,        dot_int8,   dot_int4,
                                      dot_group,      dot_group_int4, dot_float,  dot_float_int4,
                                      store_int,      store_float};
  static const bool here = [] {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  }();
  return here ? &kernels : nullptr;
}

}  // namespace qutlass::cpu

#else

namespace qutlass::cpu {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace qutlass::cpu

#endif
