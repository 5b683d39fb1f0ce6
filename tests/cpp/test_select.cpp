// SPDX-License-Identifier: Apache-2.0
// The tile table and the choice among its rows, for cards that need not be at hand.
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <set>
#include <string>

#include "check.h"
#include "gemm/gemm.h"
#include "gemm/tiles.h"

using namespace qutlass;

namespace {

DeviceInfo card(int sm, int sm_count, int smem_per_block, int smem_per_sm, int l2_mib,
                double bandwidth) {
  DeviceInfo d;
  d.sm = sm, d.sm_count = sm_count, d.bandwidth = bandwidth, d.l2_bytes = int64_t{l2_mib} << 20;
  d.smem_per_block = smem_per_block, d.smem_per_sm = smem_per_sm;
  return d;
}

const DeviceInfo kCards[] = {
    card(86, 82, 101376, 102400, 6, 936e9),     // RTX 3090
    card(86, 72, 101376, 102400, 6, 600e9),     // A10
    card(89, 128, 101376, 102400, 72, 1008e9),   // RTX 4090
    card(80, 108, 166912, 167936, 40, 2039e9),   // A100
    card(90, 132, 232448, 233472, 50, 4800e9),   // H200
    card(86, 20, 101376, 102400, 0, 0),         // few multiprocessors, L2 and bandwidth unknown
};

void test_table() {
  int rows[kGemmOpCount] = {}, low[kGemmOpCount] = {}, on_sm86[kGemmOpCount] = {};
  std::set<std::string> names;
  for (int i = 0; i < gemm_tile_count(); ++i) {
    const GemmTile& t = gemm_tile(i);
    const int op = static_cast<int>(t.op);
    ++rows[op];
    low[op] += t.m <= 16;
    on_sm86[op] += t.smem_bytes <= 101376;
    CHECK(names.insert(t.name).second);
    CHECK(std::strncmp(t.name, name_of(t.op), std::strlen(name_of(t.op))) == 0);
    CHECK_EQ(t.threads, 32 * (t.m / t.warp_m) * (t.n / t.warp_n) * (t.k / t.warp_k));
    CHECK(t.m % t.warp_m == 0 && t.n % t.warp_n == 0 && t.k % t.warp_k == 0);
    CHECK(t.threads >= 64 && t.threads <= 512);
    // Every stage of both operands fits, and every row fits an A100.
    CHECK(t.smem_bytes >= (t.m * a_bits(t.op) + t.n * b_bits(t.op)) * t.k / 8 * t.stages);
    CHECK(t.smem_bytes <= 166912);
  }
  for (int op = 0; op < kGemmOpCount; ++op) {
    CHECK(rows[op] >= (op == static_cast<int>(GemmOp::kW8A8) ? 8 : 4));
    CHECK(low[op] >= 1);
    CHECK(on_sm86[op] >= 4);
  }
}

void test_selection() {
  for (const DeviceInfo& d : kCards) {
    for (int op = 0; op < kGemmOpCount; ++op) {
      const auto gemm_op = static_cast<GemmOp>(op);
      for (int64_t m : {1, 2, 15, 16, 17, 33, 64, 65, 128, 129, 1000, 4096, 100000}) {
        for (int64_t n : {1, 7, 64, 4096, 14336, 57344}) {
          for (int64_t k : {128, 4096, 4224, 28672}) {
            const bool grouped = is_grouped(gemm_op);
            for (int64_t group : {int64_t{32}, int64_t{64}, int64_t{128}, k}) {
              if (!grouped && group != k) continue;
              if (grouped && group == k && k > 128 && gemm_op != GemmOp::kW4A16) continue;
              const GemmProblem p{gemm_op, m, n, k, group};
              const GemmConfig c = gemm_select(p, d);
              CHECK(gemm_config_legal(p, c, d));
              const GemmConfig again = gemm_select(p, d);
              CHECK(c.tile == again.tile && c.split_k == again.split_k);
            }
          }
        }
      }
    }
  }
}

// A split leaves no part without work, and parts end where tiles and groups do.
void test_splits() {
  const DeviceInfo& d = kCards[4];
  for (int i = 0; i < gemm_tile_count(); ++i) {
    const GemmTile& t = gemm_tile(i);
    const int64_t group = is_grouped(t.op) ? 128 : 0;
    for (int64_t k : {128, 256, 384, 1024, 4224}) {
      const GemmProblem p{t.op, 16, 64, k, group ? group : k};
      CHECK(gemm_config_legal(p, {i, 1}, d));
      for (int split = 2; split <= 65; ++split) {
        const int64_t quantum = group > t.k && group < k ? group : t.k;
        const int64_t quanta = (k + quantum - 1) / quantum;
        const int64_t part = (quanta + split - 1) / split;  // as the kernel divides
        const bool every_part_works = (split - 1) * part < quanta;
        CHECK_EQ(gemm_config_legal(p, {i, split}, d), every_part_works && split <= 64);
      }
    }
  }
}

void test_refused() {
  const DeviceInfo& d = kCards[0];
  const GemmProblem p{GemmOp::kW8A8, 16, 64, 256, 256};
  CHECK(!gemm_config_legal(p, {-1, 1}, d));
  CHECK(!gemm_config_legal(p, {gemm_tile_count(), 1}, d));
  CHECK(!gemm_config_legal(p, {0, -1}, d));
  for (int i = 0; i < gemm_tile_count(); ++i) {
    const GemmTile& t = gemm_tile(i);
    // Rows for large groups refuse small ones; some row of each operator takes the smallest.
    if (is_grouped(t.op) && t.smem_bytes <= d.smem_per_block) {
      for (int group : {32, 64, 128})
        CHECK_EQ(gemm_config_legal({t.op, 16, 64, 256, group}, {i, 1}, d),
                 group >= min_group_of(t.op, t.k, t.warp_m, t.warp_k));
      CHECK(gemm_config_legal({t.op, 16, 64, 256, 256}, {i, 1}, d));
    }
    if (t.op != GemmOp::kW8A8)
      CHECK(!gemm_config_legal(p, {i, 1}, d));
    else
      CHECK_EQ(gemm_config_legal(p, {i, 1}, d), t.smem_bytes <= d.smem_per_block);
  }
}

// What any sensible choice does.
void test_sense() {
  for (const DeviceInfo& d : kCards) {
    for (GemmOp op : {GemmOp::kW8A8, GemmOp::kW4A8, GemmOp::kW4A16}) {
      const GemmConfig decode = gemm_select({op, 1, 4096, 4096, 128}, d);
      const GemmConfig prefill = gemm_select({op, 8192, 8192, 8192, 128}, d);
      CHECK(gemm_tile(decode.tile).m <= 32);
      CHECK(gemm_tile(prefill.tile).m >= 64);
      CHECK(prefill.split_k <= 1);
    }
    // Few tokens beyond a tile's height are no reason to read the weights over and over. (W4A16
    // may: products in float32 are so slow on a GeForce that padding costs more.)
    for (int op = 0; op < kGemmOpCount && d.native_int4(); ++op) {
      if (static_cast<GemmOp>(op) == GemmOp::kW4A16) continue;
      for (int64_t m : {33, 48, 65, 96, 128}) {
        for (int64_t n : {4096, 8192, 28672}) {
          const GemmConfig c = gemm_select({static_cast<GemmOp>(op), m, n, 4096, 128}, d);
          CHECK((m + gemm_tile(c.tile).m - 1) / gemm_tile(c.tile).m <= 4);
        }
      }
    }
  }
  // Blocks at different k of tiles so long would read most of both operands again.
  CHECK_EQ(gemm_select({GemmOp::kW8A8, 1024, 8192, 28672, 28672}, kCards[4]).split_k, 1);
}

}  // namespace

int main() {
  test_table();
  test_selection();
  test_splits();
  test_refused();
  test_sense();
  return qutlass::test::finish();
}
