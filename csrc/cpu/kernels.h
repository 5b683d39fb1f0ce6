// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "common/parallel.h"
#include "common/status.h"
#include "gemm/problem.h"

namespace qutlass::cpu {

// What an instruction set provides to the products. Both operands are K-contiguous, so a kernel is
// a block of dot products: the rows of a packed block of A against kTileN packed rows of B.
//
//            k ->
//   A block  [rows][stride]    int16 (int8 or int4, less its zero point) or float32
//   B tile   [kTileN][stride]  the same type
//   C        [rows][kTileN]    int32 or float32, added to, rows `ldc` apart
//
// Integers are widened to 16 bits because the 16 x 16 -> 32 multiply-add of pairs is exact, which
// the 8-bit one of AVX2 is not (it saturates). The zero points are gone before the product, so no
// correction follows it. int32 sums wrap, which only an operand beyond the contract can show.
constexpr int kTileN = 4;
constexpr int kPackUnit = 32;  // packed k is a multiple of this, filled up with zeros

struct Kernels {
  const char* isa;
  // out[i] = in[i] - zero
  void (*widen_int8)(const int8_t* in, int64_t k, int zero, int16_t* out);
  // out[i] = multiplier * (in[i] - zero); `in` is packed INT4, k a multiple of 32
  void (*widen_int4)(const uint8_t* in, int64_t k, int zero, int multiplier, int16_t* out);
  // out[i] = (in[i] - zero) * scale; `in` is packed INT4, k a multiple of 32
  void (*dequantize_int4)(const uint8_t* in, int64_t k, float zero, float scale, float* out);
  void (*widen_bfloat16)(const uint16_t* in, int64_t k, float* out);

  // c += a . b, exactly (modulo 2^32). The names with a format take kTileN rows of the weight as it
  // lies in memory, `ldb` bytes apart: for few rows of A, where packing would cost as much as the
  // product. There k is a multiple of 16 (int8) or 32 (packed INT4).
  void (*dot_int)(const int16_t* a, int64_t rows, const int16_t* b, int64_t stride, int64_t k,
                  int32_t* c, int64_t ldc);
  void (*dot_int8)(const int16_t* a, int64_t rows, int64_t stride, const int8_t* b, int64_t ldb,
                   int64_t k, int32_t* c, int64_t ldc);
  void (*dot_int4)(const int16_t* a, int64_t rows, int64_t stride, const uint8_t* b, int64_t ldb,
                   int64_t k, int32_t* c, int64_t ldc);
  // For each group of `group` k (a multiple of 32), in order: c += float(a . b) * scale[group][n],
  // the product and the sum rounded each on its own.
  void (*dot_group)(const int16_t* a, int64_t rows, const int16_t* b, int64_t stride, int64_t k,
                    int64_t group, const float* scale, float* c, int64_t ldc);
  void (*dot_group_int4)(const int16_t* a, int64_t rows, int64_t stride, const uint8_t* b,
                         int64_t ldb, int64_t k, int64_t group, const float* scale, float* c,
                         int64_t ldc);
  // c += a . b in float32. The order of the sum depends on k alone; the second gives the bits that
  // dequantize_int4 and the first would, with scale[group][n] and zero[group][n].
  void (*dot_float)(const float* a, int64_t rows, const float* b, int64_t stride, int64_t k,
                    float* c, int64_t ldc);
  void (*dot_float_int4)(const float* a, int64_t rows, int64_t stride, const uint8_t* b,
                         int64_t ldb, int64_t k, int64_t group, const float* scale,
                         const float* zero, float* c, int64_t ldc);

  // The epilogue of one row, every step rounded: float(acc) * b_scale * a_scale + bias (or null).
  void (*store_int)(const int32_t* acc, int64_t n, const float* b_scale, float a_scale,
                    const float* bias, uint16_t* out);
  void (*store_float)(const float* acc, int64_t n, float a_scale, const float* bias, uint16_t* out);
};

const Kernels& generic_kernels();
const Kernels* avx2_kernels();        // null where the machine or the compiler lacks it
const Kernels* avx512vnni_kernels();  // null where the machine or the compiler lacks it
// What gemm() uses: the widest of the above.
const Kernels& best_kernels();

Status gemm_with(const Kernels&, const GemmArguments&, const ParallelRunner&);

}  // namespace qutlass::cpu
