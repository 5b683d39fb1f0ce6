// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/status.h"
#include "gemm/problem.h"

struct CUstream_st;

namespace qutlass {

// What a row's translation unit gives the rest.
struct TileEntry {
  size_t (*workspace_bytes)(const GemmArguments&, int split_k);
  Status (*launch)(const GemmArguments&, int split_k, uint64_t ticket, void* workspace,
                   CUstream_st* stream);
};

#define QUTLASS_TILE_ENTRY(OP, M, N, K, WM, WN, WK, STAGES) \
  tile_##OP##_##M##x##N##x##K##_##WM##x##WN##x##WK##_##STAGES

}  // namespace qutlass
