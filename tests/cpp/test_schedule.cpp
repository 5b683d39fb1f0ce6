// SPDX-License-Identifier: Apache-2.0
// Which block computes what: every k of every output tile exactly once, and every tile finished by
// a block that waits for lower blocks only.
#include <algorithm>
#include <climits>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "gemm/schedule.h"

using namespace qutlass;

namespace {

struct Grid {
  int64_t M, N, K;
  int tile_m, tile_n, tile_k;
  int64_t group;
  int split_k, resident, width;
};

void test_walk(const Grid& g) {
  const Schedule s = make_schedule(g.M, g.N, g.K, g.tile_m, g.tile_n, g.tile_k, g.group, g.split_k,
                                   g.resident, g.width);
  const auto where = [&] {
    return std::to_string(g.M) + " " + std::to_string(g.N) + " " + std::to_string(g.K) + " split " +
           std::to_string(g.split_k) + " resident " + std::to_string(g.resident);
  };
  CHECK(s.blocks >= 1);
  // Blocks that wait for each other all run at once, or wait for lower ones only (below).
  if (g.split_k == kStreamK) CHECK(s.blocks <= g.resident);
  // (begin, end, block) of each tile's segments
  std::map<int, std::vector<std::pair<std::pair<int, int>, int>>> parts;
  std::map<std::pair<int, int>, int> places;
  int left = 0;
  for (int block = 0; block < s.blocks; ++block) {
    Segment segment;
    int unfinished = 0;
    for (int i = 0; s.segment(block, i, &segment); ++i) {
      CHECK(segment.k_begin < segment.k_end && segment.k_end <= g.K);
      CHECK_EQ(segment.k_begin % s.unit, 0);
      CHECK_EQ(segment.begins, segment.k_begin == 0);
      CHECK_EQ(segment.ends, segment.k_end == g.K);
      CHECK(segment.tile_m < s.tiles_m && segment.tile_n < s.tiles_n);
      parts[segment.tile].push_back({{segment.k_begin, segment.k_end}, block});
      places[{segment.tile_m, segment.tile_n}] = segment.tile;
      // What another block waits for comes first, so that no wait can close a circle.
      if (!segment.ends) {
        CHECK_EQ_AT(i, 0, where());
        ++unfinished;
      }
    }
    CHECK(unfinished <= 1);  // one result a block in scratch memory
    left += unfinished;
  }
  CHECK_EQ_AT(static_cast<int>(parts.size()), s.tiles(), where());
  CHECK_EQ_AT(static_cast<int>(places.size()), s.tiles(), where());
  if (left > 0) CHECK(s.splits());
  for (auto& [tile, list] : parts) {
    std::sort(list.begin(), list.end());
    int k = 0;
    for (size_t i = 0; i < list.size(); ++i) {
      CHECK_EQ_AT(list[i].first.first, k, where());
      k = list[i].first.second;
      // The parts of a tile lie in neighbouring blocks, the last part in the last of them.
      if (list.size() > 1)
        CHECK_EQ_AT(list[i].second, s.first_block(tile) + static_cast<int>(i), where());
    }
    CHECK_EQ_AT(k, static_cast<int>(g.K), where());
  }
}

void test_divisor() {
  for (int d : {1, 2, 3, 5, 7, 12, 63, 64, 65, 641, 6700417, 1 << 30, (1 << 30) + 1, INT_MAX}) {
    const Divisor divisor(d);
    for (int64_t around : {int64_t{0}, int64_t{d}, int64_t{7} * d, int64_t{INT_MAX}, INT_MAX / 2L,
                           INT_MAX / int64_t{d} * d}) {
      for (int64_t n = around - 3; n <= around + 3; ++n) {
        if (n < 0 || n > INT_MAX) continue;
        CHECK_EQ_AT(divisor.divide(static_cast<int>(n)), static_cast<int>(n / d),
                    std::to_string(n) + " / " + std::to_string(d));
      }
    }
  }
}

void test_order() {
  // Blocks that run together cover `width` columns of tiles.
  const Schedule s = make_schedule(4 * 128, 6 * 256, 512, 128, 256, 128, 512, 1, 8, 3);
  Segment segment;
  for (int block = 0; block < 12; ++block) {
    CHECK(s.segment(block, 0, &segment));
    CHECK(segment.tile_n < 3);
    CHECK(!s.segment(block, 1, &segment));
  }
  CHECK(s.segment(12, 0, &segment) && segment.tile_n == 3 && segment.tile_m == 0);
}

}  // namespace

int main() {
  for (int split_k : {kStreamK, 1, 2, 3, 5, 8}) {
    for (int resident : {1, 7, 20, 132, 264}) {
      for (int64_t M : {1, 16, 17, 700}) {
        for (int64_t N : {8, 64, 1000, 4099}) {
          for (int64_t K : {128, 512, 1056, 4096}) {
            for (int64_t group : {K, int64_t{128}}) {
              const int64_t units = (K + 127) / 128;
              const int64_t part = split_k > 1 ? (units + split_k - 1) / split_k : 0;
              if (split_k > 1 && (split_k - 1) * part >= units) continue;  // refused elsewhere
              test_walk({M, N, K, 16, 64, group == K ? 128 : 64, group, split_k, resident, 4});
            }
          }
        }
      }
    }
  }
  test_order();
  test_divisor();
  CHECK(schedule_fits(4096, 57344, 8192, 128, 256, 128, 8));
  CHECK(!schedule_fits(int64_t{1} << 31, int64_t{1} << 31, 8192, 16, 64, 128, 1));
  return qutlass::test::finish();
}
