// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/device_info.h"
#include "common/status.h"
#include "gemm/problem.h"

namespace qutlass {

// One row of tiles.inc with everything derived from it. Plain data: the selector, the tests and the
// bench read it without CUDA.
struct GemmTile {
  GemmOp op;
  const char* name;             // e.g. "w4a8_128x256x128_w64x64_s3"
  int m, n, k;                  // threadblock tile; k in elements
  int warp_m, warp_n, warp_k;   // warp tile; k / warp_k warps share an output and split k
  int stages;                   // cp.async stages
  int threads;
  int smem_bytes;               // dynamic shared memory of a block
  const char* instruction;      // "mma.m16n8k32.s8" ...
};

struct GemmConfig {
  int tile = -1;                // index into the table; -1: none is legal
  int split_k = 1;              // blocks that share one output tile along k
};

// The shape a choice depends on.
struct GemmProblem {
  GemmOp op = GemmOp::kW8A8;
  int64_t M = 0, N = 0, K = 0, group_size = 0;
};

int gemm_tile_count();
const GemmTile& gemm_tile(int index);

// Whether a row can run the problem on the device (shared memory, op, group size).
bool gemm_config_legal(const GemmProblem&, const GemmConfig&, const DeviceInfo&);
// The choice: a pure function of (problem, device).
GemmConfig gemm_select(const GemmProblem&, const DeviceInfo&);
// Bytes of scratch memory the launch needs; uninitialised memory will do. 16-byte aligned.
size_t gemm_workspace_bytes(const GemmArguments&, const GemmConfig&);
// Enqueues on `stream` (a cudaStream_t of the current device); allocates and synchronises nothing.
Status gemm_launch(const GemmArguments&, const GemmConfig&, const DeviceInfo&, void* workspace,
                   void* stream);

}  // namespace qutlass
