// SPDX-License-Identifier: Apache-2.0
#include "gemm/tuned.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <shared_mutex>
#include <tuple>
#include <utility>

namespace qutlass {
namespace {

constexpr int kDevices = 64;  // those beyond are left to the selection model

auto family_of(const GemmProblem& p) {
  return std::make_tuple(static_cast<int>(p.op), p.group_size, p.N, p.K);
}

bool before(const GemmProblem& a, const GemmProblem& b) {
  return std::make_pair(family_of(a), a.M) < std::make_pair(family_of(b), b.M);
}

int64_t tiles_of(int64_t m, const GemmConfig& c) {
  return (m + gemm_tile(c.tile).m - 1) / gemm_tile(c.tile).m;
}

struct State {
  std::atomic<TunedLoader> loader{nullptr};
  std::atomic<uint64_t> generation{0};
  std::atomic<bool> read[kDevices] = {};
  std::shared_mutex mutex;  // guards the tables
  TunedTable tables[kDevices];
};

State& state() {
  static State* const all = new State;  // never destroyed: threads may choose while a process ends
  return *all;
}

}  // namespace

TunedTable::TunedTable(std::vector<TunedChoice> choices) : choices_(std::move(choices)) {
  std::stable_sort(choices_.begin(), choices_.end(),
                   [](const auto& a, const auto& b) { return before(a.problem, b.problem); });
  std::vector<TunedChoice> kept;
  for (const TunedChoice& choice : choices_) {
    if (!kept.empty() && !before(kept.back().problem, choice.problem)) kept.pop_back();
    kept.push_back(choice);
  }
  choices_ = std::move(kept);
}

GemmConfig TunedTable::find(const GemmProblem& problem, const DeviceInfo& device) const {
  const auto same = [&](const TunedChoice& c) {
    return family_of(c.problem) == family_of(problem);
  };
  const auto next = std::lower_bound(
      choices_.begin(), choices_.end(), problem,
      [](const TunedChoice& c, const GemmProblem& p) { return before(c.problem, p); });
  const TunedChoice* found = nullptr;
  if (next != choices_.end() && same(*next)) {
    const int64_t tuned = next->problem.M;
    if (tuned <= 2 * problem.M ||
        tiles_of(tuned, next->config) == tiles_of(problem.M, next->config)) {
      found = &*next;
    }
  } else if (next != choices_.begin() && same(*(next - 1)) &&
             problem.M <= 2 * (next - 1)->problem.M) {
    found = &*(next - 1);
  }
  if (!found || !gemm_config_legal(problem, found->config, device)) return {};
  return found->config;
}

void set_tuned_loader(TunedLoader loader) {
  State& s = state();
  const std::unique_lock<std::shared_mutex> lock(s.mutex);
  s.loader.store(loader, std::memory_order_release);
  if (!loader) return;
  for (int i = 0; i < kDevices; ++i) {
    s.tables[i] = TunedTable();
    s.read[i].store(false, std::memory_order_release);
  }
  s.generation.fetch_add(1, std::memory_order_acq_rel);
}

void set_tuned(int device, std::vector<TunedChoice> choices) {
  if (device < 0 || device >= kDevices) return;
  State& s = state();
  TunedTable table(std::move(choices));
  const std::unique_lock<std::shared_mutex> lock(s.mutex);
  s.tables[device] = std::move(table);
  s.read[device].store(true, std::memory_order_release);
  s.generation.fetch_add(1, std::memory_order_acq_rel);
}

uint64_t tuned_generation() { return state().generation.load(std::memory_order_acquire); }

GemmConfig find_tuned(const GemmProblem& problem, int device, const DeviceInfo& info) {
  if (device < 0 || device >= kDevices) return {};
  State& s = state();
  if (!s.read[device].load(std::memory_order_acquire)) {
    const TunedLoader load = s.loader.load(std::memory_order_acquire);
    if (!load) return {};
    load(device);
    s.read[device].store(true, std::memory_order_release);
  }
  const std::shared_lock<std::shared_mutex> lock(s.mutex);
  return s.tables[device].find(problem, info);
}

}  // namespace qutlass
