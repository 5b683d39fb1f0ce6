// SPDX-License-Identifier: Apache-2.0
// What follows from a row of tiles.inc, as ordinary constexpr C++.
#pragma once

#include "common/cards.h"
#include "gemm/problem.h"

namespace qutlass {

constexpr int threads_of(int m, int n, int k, int wm, int wn, int wk) {
  return 32 * (m / wm) * (n / wn) * (k / wk);
}

constexpr bool is_grouped(GemmOp op) {
  return op == GemmOp::kW4A8Group || op == GemmOp::kW4A8Multiplier || op == GemmOp::kW4A16;
}

// kW4A16: whether weights are unpacked into shared memory, a k tile ahead and once for all warps
// that read them, rather than by each warp into registers (see Mainloop). Multipliers were slower
// so than in a row whose warps are as high as its tile.
constexpr bool is_staged(GemmOp op, int m) { return op == GemmOp::kW4A16 && m > 192; }
// kW4A16: whether the transpose is computed, with the weights as rows of the mma (see Mainloop).
constexpr bool is_swapped(GemmOp op, int m) { return op == GemmOp::kW4A16 && !is_staged(op, m); }
// Of those: whether fractional zero points are put right by the row sums of a, which is exact but
// takes one more mma for each fragment of a and registers for its sums. Else weights are rounded.
constexpr bool is_summed(GemmOp op, int m, int wm) { return is_swapped(op, m) && wm <= 32; }
// Whether sums of groups are folded into float32 totals, which take as many registers again.
constexpr bool is_folded(GemmOp op, int m) { return op == GemmOp::kW4A8Group || is_swapped(op, m); }

// The smallest groups that a row of a grouped product takes (where there is more than one). Rows
// for large groups only are spared the code and the registers for groups that change within a k
// tile.
constexpr int min_group_of(GemmOp op, int k, int wm, int wk) {
  if (wk > 64) return 128;
  return k > 128 || wm > 64 || (op == GemmOp::kW4A16 && wm == 64 && wk > 32) ? 64 : 32;
}

// Groups whose scales and zero points are fetched at once, two k tiles' worth at least. Low tiles
// go through k so fast that less would not cover the latency of device memory; the highest have no
// registers for more. Of multipliers twice as many, where all threads find packs of four then.
constexpr int period_groups_of(GemmOp op, int m, int n, int k, int wm, int wk, int threads) {
  const int two_tiles = 2 * k / min_group_of(op, k, wm, wk);
  int least = m > 64 ? 2 : m == 64 ? 4 : 8;
  if (op == GemmOp::kW4A8Multiplier && 2 * least * n <= 4 * threads) least *= 2;
  return two_tiles > least ? two_tiles : least;
}

// Neighbouring groups of a column that a thread reads at once, see GroupCache: as many as deal out
// the columns of a tile evenly over all threads.
constexpr int pack_groups_of(GemmOp op, int m, int n, int k, int wm, int wk, int threads) {
  if (op != GemmOp::kW4A8Multiplier) return 1;
  const int period = period_groups_of(op, m, n, k, wm, wk, threads);
  int pack = 4;
  while (pack > 1 && n % (threads * pack / period) != 0) pack /= 2;
  return pack;
}

// What GroupCache keeps of a group and column: arrays, and words in each.
constexpr int group_arrays_of(GemmOp op) { return op == GemmOp::kW4A8Multiplier ? 1 : 2; }
constexpr int group_words_of(bool weight_scale) { return weight_scale ? 2 : 1; }

// Rows of a warp that are multiplied or left out together; those beyond M are left out on 9.0.
constexpr int strip_of(GemmOp op, int m, int wm) {
  if (wm > 32) return wm % 32 == 0 ? 32 : wm % 16 == 0 ? 16 : wm % 24 == 0 ? 24 : 8;
  return is_swapped(op, m) ? 8 : 16;
}

constexpr int align_128(int bytes) { return (bytes + 127) / 128 * 128; }

// Both operands' stages, and two of unpacked weights; with slices of k, the place where sums
// are exchanged.
constexpr int stages_bytes_of(GemmOp op, int m, int n, int k, int wk, int stages) {
  const int unpacked = is_staged(op, m) ? 2 * n * k * a_bits(op) / 8 : 0;
  const int operands = (m * a_bits(op) + n * b_bits(op)) * k / 8 * stages + unpacked;
  const int sums = k > wk ? k / wk * ((m + 15) / 16 * 16) * n * 4 : 0;
  return align_128(operands > sums ? operands : sums);
}

// Groups of this period of k and the next, four words of padding each.
constexpr int group_bytes_of(GemmOp op, int m, int n, int k, int wm, int wn, int wk) {
  if (!is_grouped(op)) return 0;
  const int slots = 2 * period_groups_of(op, m, n, k, wm, wk, threads_of(m, n, k, wm, wn, wk));
  const int words = group_arrays_of(op) * group_words_of(is_staged(op, m));
  return align_128(words * slots * (n + 4) * 4);
}

// Scale, term and bias a column, scale and zero a row; without groups zero a column and sum a row
// besides; of two tiles.
constexpr int vector_bytes_of(GemmOp op, int m, int n) {
  return 2 * (is_grouped(op) ? 12 * n + 8 * m : 16 * n + 12 * m);
}

// The segments that copies go on to first.
constexpr int smem_bytes_of(GemmOp op, int m, int n, int k, int wm, int wn, int wk, int stages) {
  return align_128(128 + stages_bytes_of(op, m, n, k, wk, stages) +
                   group_bytes_of(op, m, n, k, wm, wn, wk) + vector_bytes_of(op, m, n));
}

// Blocks that a multiprocessor of architecture `arch` is to run at once, which bounds registers:
// as many as shared memory allows, where about as many registers as the row needs do, too; else 1.
constexpr int min_blocks_of(GemmOp op, int m, int n, int k, int wm, int wn, int wk, int stages,
                            int arch) {
  int memory = 0;  // of the newest card that is no newer
  for (const DeviceInfo& card : kCards) {
    if (card.sm * 10 <= arch) memory = card.smem_per_sm;
  }
  const int threads = threads_of(m, n, k, wm, wn, wk);
  const int blocks = memory / (smem_bytes_of(op, m, n, k, wm, wn, wk, stages) + 1024);
  const int a_words = is_swapped(op, m) ? wm / 8 * 2 : (wm + 15) / 16 * 4;
  const int sums = wm * wn / 32 * (is_folded(op, m) ? 2 : 1);
  const int needed = sums + 2 * a_words + wn / 4 + 64;  // sums, fragments and addresses
  return blocks > 1 && needed * threads * blocks <= 65536 ? blocks : 1;
}

}  // namespace qutlass
