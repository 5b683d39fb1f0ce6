// SPDX-License-Identifier: Apache-2.0
#include "cpu/strict_float.h"
//
#include "common/nibble.h"
#include "cpu/convert.h"
#include "cpu/kernels.h"

// Portable C++: what the other instruction sets must agree with on integers, written so that a
// compiler can vectorize it.

namespace qutlass::cpu {
namespace {

void widen_int8(const int8_t* in, int64_t k, int zero, int16_t* out) {
  for (int64_t i = 0; i < k; ++i) out[i] = static_cast<int16_t>(in[i] - zero);
}

void widen_int4(const uint8_t* in, int64_t k, int zero, int multiplier, int16_t* out) {
  for (int64_t i = 0; i < k; i += kInt4Block, in += kInt4BlockBytes, out += kInt4Block) {
    for (int j = 0; j < kInt4BlockBytes; ++j) {
      out[j] = static_cast<int16_t>(multiplier * (int4_low(in[j]) - zero));
      out[j + kInt4BlockBytes] = static_cast<int16_t>(multiplier * (int4_high(in[j]) - zero));
    }
  }
}

void dequantize_int4(const uint8_t* in, int64_t k, float zero, float scale, float* out) {
  for (int64_t i = 0; i < k; i += kInt4Block, in += kInt4BlockBytes, out += kInt4Block) {
    for (int j = 0; j < kInt4BlockBytes; ++j) {
      out[j] = (static_cast<float>(int4_low(in[j])) - zero) * scale;
      out[j + kInt4BlockBytes] = (static_cast<float>(int4_high(in[j])) - zero) * scale;
    }
  }
}

void widen_bfloat16(const uint16_t* in, int64_t k, float* out) {
  for (int64_t i = 0; i < k; ++i) out[i] = bfloat16_to_float(in[i]);
}

// Unsigned, so that a sum that leaves int32 wraps instead of being undefined.
template <typename B>
uint32_t dot(const int16_t* a, const B* b, int64_t k) {
  uint32_t sum = 0;
  for (int64_t i = 0; i < k; ++i) sum += static_cast<uint32_t>(int32_t{a[i]} * int32_t{b[i]});
  return sum;
}
void add(int32_t* acc, uint32_t sum) {
  *acc = static_cast<int32_t>(static_cast<uint32_t>(*acc) + sum);
}

void dot_int(const int16_t* a, int64_t rows, const int16_t* b, int64_t stride, int64_t k,
             int32_t* c, int64_t ldc) {
  for (int64_t m = 0; m < rows; ++m) {
    for (int n = 0; n < kTileN; ++n) add(c + m * ldc + n, dot(a + m * stride, b + n * stride, k));
  }
}

void dot_int8(const int16_t* a, int64_t rows, int64_t stride, const int8_t* b, int64_t ldb,
              int64_t k, int32_t* c, int64_t ldc) {
  for (int64_t m = 0; m < rows; ++m) {
    for (int n = 0; n < kTileN; ++n) add(c + m * ldc + n, dot(a + m * stride, b + n * ldb, k));
  }
}

void dot_int4(const int16_t* a, int64_t rows, int64_t stride, const uint8_t* b, int64_t ldb,
              int64_t k, int32_t* c, int64_t ldc) {
  int16_t block[kInt4Block];
  for (int n = 0; n < kTileN; ++n) {
    for (int64_t i = 0; i < k; i += kInt4Block) {
      widen_int4(b + n * ldb + i / 2, kInt4Block, 0, 1, block);
      for (int64_t m = 0; m < rows; ++m) {
        add(c + m * ldc + n, dot(a + m * stride + i, block, kInt4Block));
      }
    }
  }
}

void dot_group(const int16_t* a, int64_t rows, const int16_t* b, int64_t stride, int64_t k,
               int64_t group, const float* scale, float* c, int64_t ldc) {
  for (int64_t m = 0; m < rows; ++m) {
    for (int n = 0; n < kTileN; ++n) {
      float acc = c[m * ldc + n];
      for (int64_t k0 = 0; k0 < k; k0 += group) {
        const auto sum = static_cast<int32_t>(dot(a + m * stride + k0, b + n * stride + k0, group));
        const float term = static_cast<float>(sum) * scale[k0 / group * kTileN + n];
        acc = acc + term;
      }
      c[m * ldc + n] = acc;
    }
  }
}

void dot_group_int4(const int16_t* a, int64_t rows, int64_t stride, const uint8_t* b, int64_t ldb,
                    int64_t k, int64_t group, const float* scale, float* c, int64_t ldc) {
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t k0 = 0; k0 < k; k0 += group) {
      int32_t sums[kTileN] = {};
      dot_int4(a + m * stride + k0, 1, stride, b + k0 / 2, ldb, group, sums, kTileN);
      for (int n = 0; n < kTileN; ++n) {
        const float term = static_cast<float>(sums[n]) * scale[k0 / group * kTileN + n];
        c[m * ldc + n] = c[m * ldc + n] + term;
      }
    }
  }
}

// A sum a compiler may not reorder, in lanes so that it can still vectorize it.
struct FloatLanes {
  static constexpr int kLanes = 8;  // divides kPackUnit
  float lane[kLanes] = {};

  void add(const float* x, const float* y, int64_t k) {
    for (int64_t i = 0; i < k; i += kLanes) {
      for (int j = 0; j < kLanes; ++j) lane[j] = lane[j] + x[i + j] * y[i + j];
    }
  }
  float sum() const {
    return ((lane[0] + lane[1]) + (lane[2] + lane[3])) +
           ((lane[4] + lane[5]) + (lane[6] + lane[7]));
  }
};

void dot_float(const float* a, int64_t rows, const float* b, int64_t stride, int64_t k, float* c,
               int64_t ldc) {
  for (int64_t m = 0; m < rows; ++m) {
    for (int n = 0; n < kTileN; ++n) {
      FloatLanes lanes;
      lanes.add(a + m * stride, b + n * stride, k);
      c[m * ldc + n] += lanes.sum();
    }
  }
}

void dot_float_int4(const float* a, int64_t rows, int64_t stride, const uint8_t* b, int64_t ldb,
                    int64_t k, int64_t group, const float* scale, const float* zero, float* c,
                    int64_t ldc) {
  float block[kInt4Block];
  for (int64_t m = 0; m < rows; ++m) {
    for (int n = 0; n < kTileN; ++n) {
      FloatLanes lanes;
      for (int64_t i = 0; i < k; i += kInt4Block) {
        const int64_t entry = i / group * kTileN + n;
        dequantize_int4(b + n * ldb + i / 2, kInt4Block, zero[entry], scale[entry], block);
        lanes.add(a + m * stride + i, block, kInt4Block);
      }
      c[m * ldc + n] += lanes.sum();
    }
  }
}

void store_int(const int32_t* acc, int64_t n, const float* b_scale, float a_scale,
               const float* bias, uint16_t* out) {
  for (int64_t i = 0; i < n; ++i) {
    // The least int32 stands for +2^31: it is the one exact sum that int32 cannot hold (int8 -128
    // times -128 at the largest K), and no sum within the contract reaches -2^31.
    const float sum = acc[i] == INT32_MIN ? 2147483648.0f : static_cast<float>(acc[i]);
    float t = sum * b_scale[i];
    t = t * a_scale;
    if (bias) t = t + bias[i];
    out[i] = float_to_bfloat16(t);
  }
}

void store_float(const float* acc, int64_t n, float a_scale, const float* bias, uint16_t* out) {
  for (int64_t i = 0; i < n; ++i) {
    float t = acc[i] * a_scale;
    if (bias) t = t + bias[i];
    out[i] = float_to_bfloat16(t);
  }
}

}  // namespace

const Kernels& generic_kernels() {
  static constexpr Kernels kernels = {"generic",      widen_int8,     widen_int4, dequantize_int4,
                                      widen_bfloat16, dot_int,        dot_int8,   dot_int4,
                                      dot_group,      dot_group_int4, dot_float,  dot_float_int4,
                                      store_int,      store_float};
  return kernels;
}

}  // namespace qutlass::cpu
