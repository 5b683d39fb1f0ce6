// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace qutlass {

// How CPU kernels get threads without knowing who owns them: the torch layer passes torch's own
// pool, C++ tests pass a serial or std::thread runner.
struct ParallelRunner {
  using RangeFn = void (*)(void* context, int64_t begin, int64_t end);
  // Calls fn on disjoint ranges that cover [begin, end), each at least `grain` long but the last.
  void (*run)(int64_t begin, int64_t end, int64_t grain, RangeFn fn, void* context);
};

// parallel_for(runner, 0, n, grain, [&](int64_t begin, int64_t end) { ... });
template <typename F>
void parallel_for(const ParallelRunner& runner, int64_t begin, int64_t end, int64_t grain, F&& f) {
  if (begin >= end) return;
  runner.run(
      begin, end, grain,
      [](void* context, int64_t b, int64_t e) { (*static_cast<F*>(context))(b, e); }, &f);
}

}  // namespace qutlass
