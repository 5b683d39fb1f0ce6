// SPDX-License-Identifier: Apache-2.0
// What follows from a row of tiles.inc, as ordinary constexpr C++.
#pragma once

#include "gemm/problem.h"

namespace qutlass {

constexpr int threads_of(int m, int n, int k, int wm, int wn, int wk) {
  return 32 * (m / wm) * (n / wn) * (k / wk);
}

constexpr bool is_grouped(GemmOp op) {
  return op == GemmOp::kW4A8Group || op == GemmOp::kW4A8Multiplier || op == GemmOp::kW4A16;
}

// Groups whose scales are fetched at once, at least a tile's worth at the smallest group size; and
// the blocks that the tiles in flight can span, the tile just finished among them.
constexpr int group_block_of(int k) { return k / 32 > 4 ? k / 32 : 4; }
constexpr int group_blocks_of(int k, int stages) {
  const int tiles = group_block_of(k) * 32 / k;
  return (stages + tiles - 1) / tiles + 1;
}

constexpr int align_128(int bytes) { return (bytes + 127) / 128 * 128; }

// Both operands' tiles; with groups also scales and zero points, a word each and one of padding.
constexpr int mainloop_bytes_of(GemmOp op, int m, int n, int k, int stages) {
  const int operands = (m * a_bits(op) + n * b_bits(op)) * k / 8 * stages;
  const int words = (group_block_of(k) + 1) * n * group_blocks_of(k, stages);
  return operands + (is_grouped(op) ? 2 * align_128(words * 4) : 0);
}

// Output columns a thread stores at once: as many as the tile has for one pass of 8 rows.
constexpr int epilogue_access_of(int m, int n, int k, int wm, int wn, int wk) {
  const int wide = 8 * n / (threads_of(m, n, k, wm, wn, wk) / (m / wm));
  return wide >= 8 ? 8 : wide;
}

// CUTLASS's epilogue stages 8 rows of each warp row (each of the k slices) as 32-bit values,
// padded; its conflict-free 8-wide layout reserves two such fragments.
constexpr int epilogue_bytes_of(int m, int n, int k, int wm, int wn, int wk) {
  const int slices = k / wk;
  const int fragments = slices == 1 && epilogue_access_of(m, n, k, wm, wn, wk) == 8 ? 2 : 1;
  return 8 * (m / wm) * slices * fragments * (n + 8) * 4;
}

// scale, term and bias a column; scale, zero and sum a row
constexpr int vector_bytes_of(int m, int n) { return 12 * (n + m); }

constexpr int smem_bytes_of(GemmOp op, int m, int n, int k, int wm, int wn, int wk, int stages) {
  const int mainloop = mainloop_bytes_of(op, m, n, k, stages);
  const int epilogue = epilogue_bytes_of(m, n, k, wm, wn, wk);
  const int largest = mainloop > epilogue ? mainloop : epilogue;
  return align_128(largest + vector_bytes_of(m, n));
}

}  // namespace qutlass
