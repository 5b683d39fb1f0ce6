// SPDX-License-Identifier: Apache-2.0
// The rule by which tuned choices are applied, what is known of each device, and assumed cards.
#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "common/cards.h"
#include "gemm/gemm.h"
#include "gemm/tuned.h"

using namespace qutlass;

namespace {

constexpr int64_t kN = 4096, kK = 4096;

const DeviceInfo& card(int sm) { return *find_card(sm); }

// Some row for W8A8 products whose tile satisfies the condition.
int row_where(const std::function<bool(const GemmTile&)>& condition) {
  for (int i = 0; i < gemm_tile_count(); ++i) {
    if (gemm_tile(i).op == GemmOp::kW8A8 && condition(gemm_tile(i))) return i;
  }
  return -1;
}

GemmProblem problem(int64_t m) { return {GemmOp::kW8A8, m, kN, kK, kK}; }

bool is(const GemmConfig& got, const GemmConfig& wanted) {
  return got.tile == wanted.tile && got.split_k == wanted.split_k;
}

bool none(const GemmConfig& got) { return got.tile == -1; }

void test_the_rule() {
  int small = row_where([](const GemmTile&) { return true; }), large = small;
  for (int i = 0; i < gemm_tile_count(); ++i) {
    if (gemm_tile(i).op != GemmOp::kW8A8) continue;
    if (gemm_tile(i).m < gemm_tile(small).m) small = i;
    if (gemm_tile(i).m > gemm_tile(large).m) large = i;
  }
  const int64_t s = gemm_tile(small).m, l = gemm_tile(large).m;
  CHECK(s > 2 && l >= s);
  const GemmConfig at_s{small, 4}, at_4s{small, 2}, at_16l{large, 2}, at_64l{large, 1};
  // Handed in out of order.
  const TunedTable table({{problem(64 * l), at_64l},
                          {problem(s), at_s},
                          {problem(16 * l), at_16l},
                          {problem(4 * s), at_4s}});
  CHECK_EQ(table.size(), 4);
  const auto at = [&](int64_t m) { return table.find(problem(m), card(80)); };

  // A tuned M itself.
  CHECK(is(at(s), at_s));
  CHECK(is(at(4 * s), at_4s));
  CHECK(is(at(16 * l), at_16l));
  CHECK(is(at(64 * l), at_64l));
  // The next larger one, where it is launched with the same number of tiles...
  CHECK(is(at(1), at_s));
  CHECK(is(at(s - 1), at_s));
  CHECK(is(at(3 * s + 1), at_4s));
  // ... or is within twice M.
  CHECK(is(at(2 * s), at_4s));
  CHECK(is(at(8 * l), at_16l));
  CHECK(is(at(32 * l), at_64l));
  CHECK(is(at(64 * l - 1), at_64l));
  // Else it is too far.
  CHECK(none(at(s + 1)));
  CHECK(none(at(2 * s - 1)));
  CHECK(none(at(4 * s + 1)));
  CHECK(none(at(8 * l - 1)));
  CHECK(none(at(16 * l + 1)));
  CHECK(none(at(32 * l - 1)));
  // Beyond the largest, up to twice.
  CHECK(is(at(64 * l + 1), at_64l));
  CHECK(is(at(128 * l), at_64l));
  CHECK(none(at(128 * l + 1)));
  CHECK(none(at(int64_t{1} << 40)));
}

void test_other_problems() {
  const int row = row_where([](const GemmTile&) { return true; });
  const GemmConfig config{row, 1};
  const TunedTable table({{problem(16), config}});
  const DeviceInfo& gpu = card(80);
  CHECK(is(table.find(problem(16), gpu), config));
  CHECK(none(table.find({GemmOp::kW8A8, 16, kN - 1, kK, kK}, gpu)));
  CHECK(none(table.find({GemmOp::kW8A8, 16, kN + 1, kK, kK}, gpu)));
  CHECK(none(table.find({GemmOp::kW8A8, 16, kN, kK / 2, kK / 2}, gpu)));
  CHECK(none(table.find({GemmOp::kW8A8, 16, kN, kK, 128}, gpu)));
  CHECK(none(table.find({GemmOp::kW4A8, 16, kN, kK, kK}, gpu)));
  CHECK(none(TunedTable().find(problem(16), gpu)));
}

void test_neighbours_do_not_mix() {
  // The largest M of one problem stands right before the smallest of the next.
  const int row = row_where([](const GemmTile&) { return true; });
  const GemmProblem narrow{GemmOp::kW8A8, 8, 64, kK, kK}, wide{GemmOp::kW8A8, 8, 128, kK, kK};
  const TunedTable table({{narrow, {row, 1}}, {wide, {row, 2}}});
  const DeviceInfo& gpu = card(80);
  for (int64_t m : {8, 16}) {
    GemmProblem p = narrow;
    p.M = m;
    CHECK(is(table.find(p, gpu), {row, 1}));
    p = wide;
    p.M = m;
    CHECK(is(table.find(p, gpu), {row, 2}));
  }
  GemmProblem p = narrow;
  p.M = 17;
  CHECK(none(table.find(p, gpu)));
}

void test_the_later_of_two_holds() {
  const int row = row_where([](const GemmTile&) { return true; });
  const TunedTable table({{problem(16), {row, 1}}, {problem(16), {row, 2}}});
  CHECK_EQ(table.size(), 1);
  CHECK(is(table.find(problem(16), card(80)), {row, 2}));
}

void test_what_is_not_legal() {
  const int row = row_where([](const GemmTile&) { return true; });
  const DeviceInfo& gpu = card(80);
  // More parts than K has tiles.
  CHECK(none(TunedTable({{problem(16), {row, 63}}}).find(problem(16), gpu)));
  // A row that this device has too little shared memory for.
  const TunedTable table({{problem(16), {row, 1}}});
  DeviceInfo small = gpu;
  small.smem_per_block = gemm_tile(row).smem_bytes - 1;
  CHECK(is(table.find(problem(16), gpu), {row, 1}));
  CHECK(none(table.find(problem(16), small)));
  // A row of another operator.
  for (int i = 0; i < gemm_tile_count(); ++i) {
    if (gemm_tile(i).op == GemmOp::kW8A8) continue;
    CHECK(none(TunedTable({{problem(16), {i, 1}}}).find(problem(16), gpu)));
  }
}

std::atomic<int> loads{0};
int row_of_loader = -1;

void load(int device) {
  ++loads;
  if (device == 1) set_tuned(1, {{problem(16), {row_of_loader, 1}}});
}

void test_devices() {
  row_of_loader = row_where([](const GemmTile&) { return true; });
  const GemmConfig config{row_of_loader, 1};
  const DeviceInfo& gpu = card(80);
  const auto find = [&](int device) { return find_tuned(problem(16), device, gpu); };
  CHECK(none(find(0)));
  CHECK(none(find(1)));

  uint64_t generation = tuned_generation();
  set_tuned_loader(load);
  CHECK(tuned_generation() != generation);
  // Each device is asked for once, when it is first used, whatever there is.
  CHECK_EQ(loads.load(), 0);
  for (int round = 0; round < 3; ++round) {
    CHECK(none(find(0)));
    CHECK_EQ(loads.load(), 1);
  }
  generation = tuned_generation();
  for (int round = 0; round < 3; ++round) {
    CHECK(is(find(1), config));
    CHECK_EQ(loads.load(), 2);
  }
  CHECK(tuned_generation() != generation);
  // Devices that nobody has.
  for (int device : {-1, 64, 1 << 20}) CHECK(none(find(device)));
  set_tuned(-1, {{problem(16), config}});
  set_tuned(64, {{problem(16), config}});
  CHECK_EQ(loads.load(), 2);

  // Choices that are handed in later replace those read, and are not read over.
  generation = tuned_generation();
  set_tuned(1, {{problem(16), {row_of_loader, 2}}});
  set_tuned(2, {{problem(16), {row_of_loader, 3}}});
  CHECK(tuned_generation() != generation);
  CHECK(is(find(1), {row_of_loader, 2}));
  CHECK(is(find(2), {row_of_loader, 3}));
  CHECK_EQ(loads.load(), 2);

  // Without the loader what is known stays, and no more comes.
  set_tuned_loader(nullptr);
  CHECK(is(find(1), {row_of_loader, 2}));
  CHECK(none(find(3)));
  CHECK_EQ(loads.load(), 2);
  // A new one begins again.
  set_tuned_loader(load);
  CHECK(is(find(1), config));
  CHECK(none(find(2)));
  CHECK_EQ(loads.load(), 4);
}

// No thread answers by the model what it would answer by the results a moment later.
void test_threads() {
  for (int round = 0; round < 50; ++round) {
    set_tuned_loader(load);
    std::atomic<int> ready{0}, right{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 8; ++i) {
      threads.emplace_back([&] {
        ++ready;
        while (ready < 8) std::this_thread::yield();
        right += is(find_tuned(problem(16), 1, card(80)), {row_of_loader, 1});
      });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK_EQ(right.load(), 8);
  }
}

void test_cards() {
  for (int sm : {80, 86, 89, 90}) CHECK_EQ(card(sm).sm, sm);
  for (int sm : {0, -1, 75, 100}) CHECK(find_card(sm) == nullptr);
}

void test_assumptions() {
  for (const char* value : {static_cast<const char*>(nullptr), ""}) {
    const Assumption a = parse_assumption(value);
    CHECK(!a.card && a.error.empty());
    DeviceInfo info = card(90);
    CHECK(apply_assumption(a, &info).ok());
    CHECK_EQ(info.sm, 90);
  }
  for (int sm : {80, 86, 89, 90}) {
    const Assumption a = parse_assumption(std::to_string(sm).c_str());
    CHECK(a.card == find_card(sm) && a.error.empty());
    DeviceInfo info = card(90);
    CHECK(apply_assumption(a, &info).ok());
    CHECK_EQ(info.sm, sm);
    CHECK_EQ(info.sm_count, card(sm).sm_count);
    CHECK_EQ(info.smem_per_block, card(sm).smem_per_block);
    CHECK_EQ(info.smem_per_sm, card(sm).smem_per_sm);
    CHECK_EQ(info.l2_bytes, card(sm).l2_bytes);
    CHECK_EQ(info.bandwidth, card(sm).bandwidth);
  }
  for (const char* value : {"0", "8.6", "sm_86", "75", "86 ", "086", "yes"}) {
    const Assumption a = parse_assumption(value);
    CHECK(!a.card);
    CHECK(a.error ==
          "QUTLASS_ASSUME_SM must be 80, 86, 89 or 90, got '" + std::string(value) + "'");
    DeviceInfo info = card(90);
    const Status status = apply_assumption(a, &info);
    CHECK(!status.ok() && status.what == a.error);
    CHECK_EQ(info.sm, 90);
  }
  // A 3090 cannot stand in for an A100; no GPU at all can be described as any.
  DeviceInfo info = card(86);
  const Status status = apply_assumption(parse_assumption("80"), &info);
  CHECK(!status.ok() && std::strstr(status.what, "more shared memory"));
  CHECK_EQ(info.sm, 86);
  info = DeviceInfo();
  CHECK(apply_assumption(parse_assumption("90"), &info).ok());
  CHECK_EQ(info.sm, 90);
}

}  // namespace

int main() {
  test_the_rule();
  test_other_problems();
  test_neighbours_do_not_mix();
  test_the_later_of_two_holds();
  test_what_is_not_legal();
  test_devices();
  test_threads();
  test_cards();
  test_assumptions();
  return qutlass::test::finish();
}
