// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace qutlass {

// Packed INT4, the only order in the library. 32 consecutive k of a row make one block of 16 bytes:
//
//   byte        0      1    ...    15
//   low nibble  k=0    k=1  ...    k=15
//   high nibble k=16   k=17 ...    k=31
//
// so that one 32-bit word, masked, is two int8 fragment registers of mma.m16n8k32 (k in order).
constexpr int kInt4Block = 32;       // values in a block
constexpr int kInt4BlockBytes = 16;  // bytes in a block

constexpr int64_t int4_byte(int64_t k) {
  return k / kInt4Block * kInt4BlockBytes + k % kInt4BlockBytes;
}
constexpr bool int4_is_high(int64_t k) { return k % kInt4Block >= kInt4BlockBytes; }

constexpr int8_t int4_low(uint8_t byte) { return static_cast<int8_t>(((byte & 0xF) ^ 8) - 8); }
constexpr int8_t int4_high(uint8_t byte) {
  return static_cast<int8_t>((((byte >> 4) & 0xF) ^ 8) - 8);
}
constexpr uint8_t int4_pair(int low, int high) {
  return static_cast<uint8_t>((low & 0xF) | ((high & 0xF) << 4));
}
// Value k of a packed row.
constexpr int8_t int4_at(const uint8_t* row, int64_t k) {
  return int4_is_high(k) ? int4_high(row[int4_byte(k)]) : int4_low(row[int4_byte(k)]);
}

}  // namespace qutlass
