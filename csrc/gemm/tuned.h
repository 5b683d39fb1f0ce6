// SPDX-License-Identifier: Apache-2.0
// Choices that were measured on the user's own GPU (python -m qutlass tune), which come before the
// selection model.
#pragma once

#include <cstdint>
#include <vector>

#include "gemm/gemm.h"

namespace qutlass {

// Part of the signature of a file of tuned choices, beside the rows of the table. Raise it when
// kernels change so much that choices measured before are no longer the right ones.
constexpr int kTunedVersion = 1;

struct TunedChoice {
  GemmProblem problem;
  GemmConfig config;
};

// The choices of one GPU and the rule by which they are applied; a value, without state.
class TunedTable {
 public:
  TunedTable() = default;
  // In any order; of two choices for one problem the later one holds.
  explicit TunedTable(std::vector<TunedChoice> choices);

  // The choice for a problem; tile -1 where there is none and the selection model decides.
  //
  // Only choices for the same op, N, K and group size count. Of these, the one of the next larger
  // tuned M (of M itself, where it was tuned) holds if
  //   - it is at most 2 M, or both take the same number of the choice's tiles: a product of 3 rows
  //     is launched as one of 16 by a tile of 16 rows, and not at all as one of 4096;
  //   - and the row is legal for the problem on the device.
  // Beyond the largest tuned M its choice holds up to twice that M, again where it is legal.
  GemmConfig find(const GemmProblem&, const DeviceInfo&) const;

  int64_t size() const { return static_cast<int64_t>(choices_.size()); }

 private:
  std::vector<TunedChoice> choices_;  // sorted by op, group size, N, K, then M
};

// What is known of each device of this process. The core cannot read files of results: whoever
// embeds it (python/qutlass/tuned.py) hands in a loader, which is asked for a device when a choice
// is first wanted there. Nothing is read, and CUDA is not initialised, before.
//
// The loader calls set_tuned for the device, or does nothing where it knows of no choices. It may
// be called by any thread, by several at once, and during a graph capture, so it makes no work for
// the GPU. No lock is held across the call: a loader in Python waits for the interpreter, whose
// lock another thread may hold that is itself about to choose. Every thread that finds a device
// unread therefore calls the loader itself, and returns with the device read, so that no thread
// ever chooses by the model what it would choose by the results a moment later.
using TunedLoader = void (*)(int device);
// Forgets what is known. Null, as where the interpreter ends: what is known stays, and no more
// comes.
void set_tuned_loader(TunedLoader);

// Replaces what is known of a device.
void set_tuned(int device, std::vector<TunedChoice> choices);
// Changes whenever a remembered answer may be out of date. Read it before asking for the answer.
uint64_t tuned_generation();
// TunedTable::find with what is known of the device, after asking the loader if need be.
GemmConfig find_tuned(const GemmProblem&, int device, const DeviceInfo&);

}  // namespace qutlass
