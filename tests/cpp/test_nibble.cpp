// SPDX-License-Identifier: Apache-2.0
#include "common/nibble.h"

#include <set>
#include <utility>
#include <vector>

#include "check.h"

namespace qutlass {
namespace {

void every_byte_splits_into_two_values_and_back() {
  std::set<std::pair<int, int>> seen;
  for (int byte = 0; byte < 256; ++byte) {
    const int low = int4_low(static_cast<uint8_t>(byte));
    const int high = int4_high(static_cast<uint8_t>(byte));
    CHECK(low >= -8 && low <= 7);
    CHECK(high >= -8 && high <= 7);
    // Two's complement: the value and its nibble agree modulo 16.
    CHECK_EQ((low + 16) % 16, byte % 16);
    CHECK_EQ((high + 16) % 16, byte / 16);
    CHECK_EQ(int4_pair(low, high), byte);
    seen.insert({low, high});
  }
  CHECK_EQ(seen.size(), size_t{256});
}

void pairs_take_the_low_bits_of_any_integer() {
  CHECK_EQ(int4_pair(-8, 7), 0x78);
  CHECK_EQ(int4_pair(7, -8), 0x87);
  CHECK_EQ(int4_pair(-1, 0), 0x0F);
  CHECK_EQ(int4_pair(0x123, 0x456), 0x63);
}

// The picture in the header, spelled out for two blocks.
void k_lies_where_the_layout_says() {
  for (int64_t k = 0; k < 64; ++k) {
    const int64_t block = k / 32, within = k % 32;
    CHECK_EQ_AT(int4_byte(k), block * 16 + (within < 16 ? within : within - 16), "k=" << k);
    CHECK_EQ_AT(int4_is_high(k), within >= 16, "k=" << k);
  }
}

void values_are_read_where_they_were_written() {
  constexpr int64_t kCount = 96;
  std::vector<int8_t> values(kCount);
  std::vector<uint8_t> row(kCount / 2);
  for (int64_t k = 0; k < kCount; ++k) values[k] = static_cast<int8_t>((k * 7 + k / 16) % 16 - 8);
  for (int64_t k = 0; k < kCount; k += 32) {
    for (int i = 0; i < 16; ++i) row[k / 2 + i] = int4_pair(values[k + i], values[k + 16 + i]);
  }
  for (int64_t k = 0; k < kCount; ++k) CHECK_EQ_AT(int4_at(row.data(), k), values[k], "k=" << k);
}

// One masked 32-bit word is four consecutive k, which is why the order is what it is.
void a_masked_word_holds_consecutive_k() {
  uint8_t block[16];
  for (int i = 0; i < 16; ++i) block[i] = int4_pair(i % 8, 7 - i % 8);
  for (int word = 0; word < 4; ++word) {
    for (int i = 0; i < 4; ++i) {
      const uint8_t byte = block[word * 4 + i];
      CHECK_EQ(byte & 0xF, int4_at(block, word * 4 + i));
      CHECK_EQ(byte >> 4, int4_at(block, 16 + word * 4 + i));
    }
  }
}

}  // namespace
}  // namespace qutlass

int main() {
  qutlass::every_byte_splits_into_two_values_and_back();
  qutlass::pairs_take_the_low_bits_of_any_integer();
  qutlass::k_lies_where_the_layout_says();
  qutlass::values_are_read_where_they_were_written();
  qutlass::a_masked_word_holds_consecutive_k();
  return qutlass::test::finish();
}
