// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

#include "common/parallel.h"

namespace qutlass::test {

// Runners to give CPU kernels: one thread, or as many as there are ranges of `grain`, up to three.
inline void run_serial(int64_t begin, int64_t end, int64_t, ParallelRunner::RangeFn fn,
                       void* context) {
  fn(context, begin, end);
}
inline void run_threaded(int64_t begin, int64_t end, int64_t grain, ParallelRunner::RangeFn fn,
                         void* context) {
  const int64_t step = std::max(grain, (end - begin + 2) / 3);
  std::vector<std::thread> threads;
  for (int64_t i = begin; i < end; i += step) {
    threads.emplace_back(fn, context, i, std::min(end, i + step));
  }
  for (std::thread& thread : threads) thread.join();
}
constexpr ParallelRunner kSerial = {run_serial};
constexpr ParallelRunner kThreaded = {run_threaded};

}  // namespace qutlass::test
