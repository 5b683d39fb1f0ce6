// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace qutlass {

enum class DType : int {
  kNone = 0,
  kFloat32,
  kBFloat16,
  kFloat16,
  kInt8,
  kUInt8,
  kInt16,
  kInt32,
  kInt64
};

constexpr int size_of(DType t) {
  switch (t) {
    case DType::kNone: return 0;
    case DType::kInt8:
    case DType::kUInt8: return 1;
    case DType::kBFloat16:
    case DType::kFloat16:
    case DType::kInt16: return 2;
    case DType::kFloat32:
    case DType::kInt32: return 4;
    case DType::kInt64: return 8;
  }
  return 0;
}

// A vector of scales, zero points, sums or biases, read through its dtype at run time: each value
// is read once per output tile, so one kernel serves every dtype and every broadcast form.
struct Param {
  const void* data = nullptr;  // null: absent
  DType dtype = DType::kNone;
  int64_t stride = 0;  // elements from one row's (token's, feature's) entry to the next; 0: one
                       // value for all. Entries of the groups of one row are contiguous.

  constexpr bool present() const { return data != nullptr; }
};

}  // namespace qutlass
