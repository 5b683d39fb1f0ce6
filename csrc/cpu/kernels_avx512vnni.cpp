// SPDX-License-Identifier: Apache-2.0
#include "cpu/strict_float.h"
//
#include "cpu/kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#include <cstring>

namespace qutlass::cpu {
namespace {

#define QUTLASS_AVX512 __attribute__((target("avx512f,avx512bw,avx512vnni")))
#define QUTLASS_INLINE __attribute__((always_inline)) inline

constexpr int kLanes = 32;  // int16 in a register

// Rows x kTileN dot products in registers. VNNI's 16-bit form adds the pair sums to the accumulator
// in the same instruction and wraps like the separate addition, so it is exact for every operand;
// its 8-bit form would need one operand unsigned and corrections for it.
template <int Rows>
QUTLASS_AVX512 QUTLASS_INLINE void dot_int_rows(const int16_t* a, const int16_t* b, int64_t stride,
                                                int64_t k, int32_t* c, int64_t ldc) {
  __m512i acc[Rows][kTileN];
  for (int m = 0; m < Rows; ++m) {
    for (int n = 0; n < kTileN; ++n) acc[m][n] = _mm512_setzero_si512();
  }
  for (int64_t i = 0; i < k; i += kLanes) {
    __m512i x[Rows];
    for (int m = 0; m < Rows; ++m) x[m] = _mm512_loadu_si512(a + m * stride + i);
    for (int n = 0; n < kTileN; ++n) {
      const __m512i y = _mm512_loadu_si512(b + n * stride + i);
      for (int m = 0; m < Rows; ++m) acc[m][n] = _mm512_dpwssd_epi32(acc[m][n], x[m], y);
    }
  }
  for (int m = 0; m < Rows; ++m) {
    __m256i half[kTileN];
    for (int n = 0; n < kTileN; ++n) {
      __m256i parts[2];
      std::memcpy(parts, &acc[m][n], sizeof(parts));
      half[n] = _mm256_add_epi32(parts[0], parts[1]);
    }
    const __m256i pairs =
        _mm256_hadd_epi32(_mm256_hadd_epi32(half[0], half[1]), _mm256_hadd_epi32(half[2], half[3]));
    const __m128i sums =
        _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    auto* row = reinterpret_cast<__m128i*>(c + m * ldc);
    _mm_storeu_si128(row, _mm_add_epi32(_mm_loadu_si128(row), sums));
  }
}

QUTLASS_AVX512 void dot_int(const int16_t* a, int64_t rows, const int16_t* b, int64_t stride,
                            int64_t k, int32_t* c, int64_t ldc) {
  int64_t m = 0;
  for (; m + 4 <= rows; m += 4) dot_int_rows<4>(a + m * stride, b, stride, k, c + m * ldc, ldc);
  for (; m < rows; ++m) dot_int_rows<1>(a + m * stride, b, stride, k, c + m * ldc, ldc);
}

}  // namespace

const Kernels* avx512vnni_kernels() {
  static const bool here = avx2_kernels() && __builtin_cpu_supports("avx512f") &&
                           __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512vnni");
  if (!here) return nullptr;
  // A group is often one or two of these registers long, so that its horizontal sums would cost
  // more than the wider product saves: everything but the long integer sums stays AVX2.
  static const Kernels kernels = [] {
    Kernels k = *avx2_kernels();
    k.isa = "avx512vnni";
    k.dot_int = dot_int;
    return k;
  }();
  return &kernels;
}

}  // namespace qutlass::cpu

#else

namespace qutlass::cpu {
const Kernels* avx512vnni_kernels() { return nullptr; }
}  // namespace qutlass::cpu

#endif
