// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <iostream>

// What a test program needs and no more: checks that count, print what differed and go on, and an
// exit status.
//
//   CHECK(condition); CHECK_EQ(got, wanted); CHECK_EQ_AT(got, wanted, "m=" << m);
//   int main() { ...; return qutlass::test::finish(); }

namespace qutlass::test {

inline int64_t checks = 0;
inline int64_t failures = 0;
constexpr int64_t kShown = 20;  // failures printed in full

// Counts a check; true where its failure should be printed.
inline bool failed(bool ok) {
  ++checks;
  failures += !ok;
  return !ok && failures <= kShown;
}

// Small integers print as numbers, not as characters.
template <typename T>
auto printable(const T& value) {
  if constexpr (sizeof(T) == 1) {
    return static_cast<int>(value);
  } else {
    return value;
  }
}

inline int finish() {
  std::cout << checks << " checks, " << failures << " failed" << std::endl;
  return failures || !checks ? 1 : 0;
}

}  // namespace qutlass::test

#define CHECK(condition)                                                           \
  do {                                                                             \
    if (::qutlass::test::failed(static_cast<bool>(condition))) {                   \
      std::cout << __FILE__ << ':' << __LINE__ << ": " << #condition << std::endl; \
    }                                                                              \
  } while (false)

// `where` is streamed and says which case it was.
#define CHECK_EQ_AT(got, wanted, where)                                                      \
  do {                                                                                       \
    const auto got_ = (got);                                                                 \
    const auto wanted_ = (wanted);                                                           \
    if (::qutlass::test::failed(got_ == wanted_)) {                                          \
      std::cout << __FILE__ << ':' << __LINE__ << ": " << #got << " is "                     \
                << ::qutlass::test::printable(got_) << ", not "                              \
                << ::qutlass::test::printable(wanted_) << " (" << where << ')' << std::endl; \
    }                                                                                        \
  } while (false)

#define CHECK_EQ(got, wanted) CHECK_EQ_AT(got, wanted, #wanted)
