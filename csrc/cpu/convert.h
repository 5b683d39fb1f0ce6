// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstring>

#include "common/param.h"

namespace qutlass::cpu {

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

inline float bfloat16_to_float(uint16_t h) { return float_of(static_cast<uint32_t>(h) << 16); }

// Nearest, ties to even; any NaN becomes 0x7FFF, as the GPU's conversion makes it.
inline uint16_t float_to_bfloat16(float x) {
  const uint32_t bits = bits_of(x);
  const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  return static_cast<uint16_t>((bits & 0x7FFFFFFF) > 0x7F800000 ? 0x7FFF : rounded);
}

// Exponents differ by 112 (127 - 15); Inf and NaN keep their payload. A subnormal half m * 2^-24 is
// what is left of (1 + m / 1024) * 2^-14 less 2^-14: no float32 subnormal appears on the way, so
// that a thread that flushes them gets the same value. Only integers are selected, which compilers
// vectorize.
inline float float16_to_float(uint16_t h) {
  const uint32_t exponent = h & 0x7C00;
  const uint32_t body = static_cast<uint32_t>(h & 0x7FFF) << 13;
  const uint32_t excess = exponent == 0 ? 0x38800000 : 0;
  const uint32_t shifted = exponent == 0x7C00 ? body | 0x7F800000 : body + 0x38000000;
  const float value = float_of(exponent == 0 ? body + excess : shifted) - float_of(excess);
  return float_of(bits_of(value) | static_cast<uint32_t>(h & 0x8000) << 16);
}

// Nearest, ties to even; any NaN becomes 0x7FFF. For results below 2^-14 the sum with 0.5, whose
// last place is 2^-24, rounds to the grid of the subnormal halves.
inline uint16_t float_to_float16(float x) {
  const uint32_t bits = bits_of(x);
  const uint32_t body = bits & 0x7FFFFFFF;
  uint32_t half;
  if (body > 0x7F800000) return 0x7FFF;
  if (body >= 0x477FF000) {  // 65520, the first that rounds to Inf
    half = 0x7C00;
  } else if (body < 0x38800000) {
    half = bits_of(float_of(body) + 0.5f) - bits_of(0.5f);
  } else {
    half = (body - 0x38000000 + 0xFFF + ((body >> 13) & 1)) >> 13;
  }
  return static_cast<uint16_t>(half | ((bits >> 16) & 0x8000));
}

// `count` elements from `offset` on, of float32, bfloat16, float16, int8 or int32.
inline void load_floats(const void* data, DType dtype, int64_t offset, int64_t count, float* out) {
  switch (dtype) {
    case DType::kFloat32: {
      std::memcpy(out, static_cast<const float*>(data) + offset, sizeof(float) * count);
      break;
    }
    case DType::kBFloat16: {
      const uint16_t* x = static_cast<const uint16_t*>(data) + offset;
      for (int64_t i = 0; i < count; ++i) out[i] = bfloat16_to_float(x[i]);
      break;
    }
    case DType::kFloat16: {
      const uint16_t* x = static_cast<const uint16_t*>(data) + offset;
      for (int64_t i = 0; i < count; ++i) out[i] = float16_to_float(x[i]);
      break;
    }
    case DType::kInt8: {
      const int8_t* x = static_cast<const int8_t*>(data) + offset;
      for (int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(x[i]);
      break;
    }
    case DType::kInt32: {
      const int32_t* x = static_cast<const int32_t*>(data) + offset;
      for (int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(x[i]);
      break;
    }
    default: std::memset(out, 0, sizeof(float) * count);
  }
}

// `count` elements from `offset` on, of int8 or int32.
inline void load_ints(const void* data, DType dtype, int64_t offset, int64_t count, int32_t* out) {
  if (dtype == DType::kInt8) {
    const int8_t* x = static_cast<const int8_t*>(data) + offset;
    for (int64_t i = 0; i < count; ++i) out[i] = x[i];
  } else {
    std::memcpy(out, static_cast<const int32_t*>(data) + offset, sizeof(int32_t) * count);
  }
}

constexpr bool is_float(DType t) {
  return t == DType::kFloat32 || t == DType::kBFloat16 || t == DType::kFloat16;
}
constexpr bool is_zero_int(DType t) { return t == DType::kInt32 || t == DType::kInt8; }

}  // namespace qutlass::cpu
