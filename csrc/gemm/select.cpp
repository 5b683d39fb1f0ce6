// SPDX-License-Identifier: Apache-2.0
// Which row runs a problem: the legal row and schedule with the least estimated time. The estimate
// counts what a multiprocessor does for each k tile - tensor instructions, instructions issued,
// bytes through shared memory and from L2, and the latency of a warp that runs alone - beside the
// bytes that have to come from memory. It only has to rank.
//
// Constants and factors were fitted by tools/fit_selection.py to times of all rows and schedules, M
// from 1 to 4096, on an H200. On bench/results/nvidia-h200/rows.jsonl regret, the chosen row's time
// over the best one's, is 1.007 in the geometric mean over 735 problems and 1.16 at worst; over 315
// of them whose layers took no part 1.011 and 1.13. W4A4, which GPUs of 9.0 emulate, is left out.
// What a card is - tensor rate, bandwidth, multiprocessors, shared memory - stands apart from the
// constants, so that other cards are extrapolated.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "gemm/gemm.h"
#include "gemm/schedule.h"
#include "gemm/tiles.h"

namespace qutlass {

namespace {

// Measured, or said by the architecture: cycles of a scheduler for a tensor instruction at the
// rates that programs of nothing else reach on 9.0, a multiprocessor's bytes a cycle of shared
// memory and, on 9.0, from L2 (of which times say so little that a fit leaves any value), and what
// a device copy reaches of the pin rate.
constexpr double kSm90S8 = 5.9, kSm90Bf16 = 5.9, kSm90S4 = 217;
constexpr double kSharedBytes = 128, kL2Bytes = 64, kMemoryShare = 0.9;

// Instructions for each 16 bytes that a thread copies: the copy, its address and its predicate.
constexpr double kCopy = 4;

// Fitted. Cycles unless said otherwise.
constexpr double kUnpackW4A8 = 10.1, kUnpackGroup = 16.8;  // instructions
constexpr double kUnpackMultiplier = 22.3, kUnpackW4A16 = 85.6, kUnpackSwapped = 15.4;
constexpr double kLoop = 2.57;  // instructions of a warp a k tile besides
constexpr double kAlone = 0.321;  // an instruction of a warp that nothing else hides
constexpr double kBarrier = 1260;  // a k tile's wait, shared by the stages in flight
constexpr double kEpilogue = 4970, kEpilogueResult = 35.8;  // a tile; a result of a thread
constexpr double kSplit = 4650, kSplitPart = 2.87;  // a shared tile; 32 results of a part
constexpr double kL2Share = 6.16;  // of L2, for what blocks read that do not go through k together

// Estimates that differ by less say nothing: the first candidate stays, which has the lowest tile,
// that multiplies the least beyond M, and the simplest schedule.
constexpr double kClearly = 0.99;

// What the measured times of a row were of its estimate. They say how well the compiler arranged
// it, but also what the estimate lacks of that GPU; other generations' choices rest on the
// estimate.
constexpr int kFactorsFrom = 90;
struct RowFactor {
  const char* row;
  double factor;
};
constexpr RowFactor kRowFactors[] = {
#define QUTLASS_ROW_FACTOR(ROW, FACTOR) {#ROW, FACTOR},
#include "gemm/row_factors.inc"
#undef QUTLASS_ROW_FACTOR
};

double factor_of(int tile, const DeviceInfo& d) {
  if (d.sm < kFactorsFrom) return 1;
  static const std::vector<double> factors = [] {
    std::vector<double> found(gemm_tile_count(), 1.0);
    for (const RowFactor& known : kRowFactors) {
      for (int i = 0; i < gemm_tile_count(); ++i) {
        if (std::strcmp(gemm_tile(i).name, known.row) == 0) found[i] = known.factor;
      }
    }
    return found;
  }();
  return factors[tile];
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Card {
  double clock;  // cycles/us under load
  double mma_s8, mma_bf16, mma_s4;  // cycles of a scheduler for one instruction
  double l2;  // a multiprocessor's bytes a cycle
  double bandwidth;  // device memory, bytes/us
};

// Tensor rates a clock are architecture facts (datasheet rate / SMs / boost clock). sm_86 is taken
// as GeForce, which runs bf16 with float32 accumulation at half the rate of the A40. So is the rate
// of the A100's L2; that of other cards is not published, and taken low, which favours large tiles.
Card card_of(const DeviceInfo& d) {
  Card c{};
  if (d.sm >= 90)
    c = {1755, kSm90S8, kSm90Bf16, kSm90S4, kL2Bytes, 3.35e6};
  else if (d.sm == 80)
    c = {1300, 8, 8, 8, 47, 1.55e6};
  else
    c = {1650, 16, 32, 16, 24, 0.76e6};
  if (d.bandwidth > 0) c.bandwidth = d.bandwidth * 1e-6;
  c.bandwidth *= kMemoryShare;
  return c;
}

// Instructions of a warp beside each B fragment (8 columns of one mma's k), to make it.
double unpacking_of(GemmOp op, int m) {
  if (is_swapped(op, m)) return kUnpackSwapped;
  switch (op) {
    case GemmOp::kW4A8: return kUnpackW4A8;
    case GemmOp::kW4A8Group: return kUnpackGroup;
    case GemmOp::kW4A8Multiplier: return kUnpackMultiplier;
    case GemmOp::kW4A16: return kUnpackW4A16;
    default: return 0;
  }
}

// Registers a thread needs, near enough: accumulators (twice where groups are folded), double-
// buffered fragments, addresses.
int registers_of(const GemmTile& t) {
  const int accumulators = t.warp_m * t.warp_n / 32 * (is_folded(t.op, t.m) ? 2 : 1);
  const int registers = accumulators + t.warp_m / 2 + t.warp_n / 2 + 64;
  return (std::min(255, registers) + 7) / 8 * 8;
}

int blocks_per_sm(const GemmTile& t, const DeviceInfo& d) {
  const int by_smem = d.smem_per_sm / (t.smem_bytes + 1024);
  const int by_registers = 65536 / (registers_of(t) * t.threads);
  const int by_threads = (d.sm == 80 || d.sm >= 90 ? 2048 : 1536) / t.threads;
  return std::max(1, std::min({by_smem, by_registers, by_threads}));
}

double cost(const GemmProblem& p, const GemmTile& t, int split_k, const DeviceInfo& d) {
  const Card card = card_of(d);
  const double a_bytes = a_bits(p.op) / 8.0, b_bytes = b_bits(p.op) / 8.0;
  const int64_t tiles = ceil_div(p.M, t.m) * ceil_div(p.N, t.n);
  const int64_t k_tiles = ceil_div(p.K, t.k);
  const int64_t resident = static_cast<int64_t>(blocks_per_sm(t, d)) * d.sm_count;
  const int warps = t.threads / 32;

  // Bytes of one k tile: copied, copied from rows that exist, and through shared memory.
  const double tile_bytes = (t.m * a_bytes + t.n * b_bytes) * t.k;
  const double rows = static_cast<double>(p.M) / ceil_div(p.M, t.m);
  const double real_bytes = (rows * a_bytes + t.n * b_bytes) * t.k;
  const double shared_bytes =
      tile_bytes + warps * (t.warp_m * a_bytes + t.warp_n * b_bytes) * t.warp_k;

  // Instructions of a warp for one k tile.
  const bool bf16 = p.op == GemmOp::kW4A16;
  const int steps = t.warp_k / (p.op == GemmOp::kW4A4 ? 64 : 32) * (bf16 ? 2 : 1);
  const double m_tiles = t.warp_m / 16.0, n_tiles = t.warp_n / 8.0;
  const bool fold = is_folded(p.op, t.m);
  const double mma = steps * m_tiles * n_tiles;
  // What several warps read is unpacked once.
  const int sharers = is_staged(p.op, t.m) ? t.m / t.warp_m : 1;
  const double instructions = mma + steps * n_tiles * unpacking_of(p.op, t.m) / sharers +
                              2.0 * steps * m_tiles + (fold ? 1.6 * 4 * m_tiles * n_tiles : 0) +
                              kLoop + kCopy * tile_bytes / 16 / t.threads;

  // k tiles of a block, and how often a multiprocessor changes blocks or tiles.
  int64_t blocks = 0;
  double block_tiles = 0, segments = 1, parts = split_k;
  double shared = 0;  // tiles of Stream-K
  if (split_k != kStreamK) {
    blocks = tiles * split_k;
    block_tiles = static_cast<double>(ceil_div(k_tiles, split_k));
  } else if (tiles < resident) {
    block_tiles = static_cast<double>(ceil_div(tiles * k_tiles, resident));
    blocks = ceil_div(tiles * k_tiles, static_cast<int64_t>(block_tiles));
    segments = block_tiles < k_tiles ? 2 : 1;
    parts = block_tiles < k_tiles ? k_tiles / block_tiles : 2;
    if (block_tiles < k_tiles) shared = tiles;
  } else {
    blocks = resident;
    block_tiles = static_cast<double>(tiles) * k_tiles / resident;
    segments = static_cast<double>(tiles) / resident + 1;
    parts = 2;
    shared = stream_k_tiles(tiles, resident);
  }
  // The busiest multiprocessor runs its blocks so many at a time, and then those that are left.
  const int64_t per_sm = ceil_div(blocks, d.sm_count);
  const int64_t together = std::min(per_sm, resident / d.sm_count);
  const int64_t rounds = per_sm / together, left = per_sm % together;

  const double rate = bf16 ? card.mma_bf16 : p.op == GemmOp::kW4A4 ? card.mma_s4 : card.mma_s8;
  // From 9.0 on rows beyond M are not multiplied.
  const int strip = strip_of(t.op, t.m, t.warp_m);
  const double strips = static_cast<double>(ceil_div(p.M, strip) * strip);
  const double real = d.sm >= 90 ? strips / (ceil_div(p.M, t.m) * t.m) : 1;
  const double results = t.warp_m * t.warp_n / 32.0 / (t.k / t.warp_k);
  // Of so many blocks side by side: a norm between the largest of the limits and their sum.
  const auto k_tile = [&](double side) {
    double sum = 0;
    for (double limit : {mma * real * rate * warps / 4 * side,  // tensor units
                         instructions * warps / 4 * side,  // schedulers
                         instructions * kAlone + kBarrier / (t.stages - 1),  // one warp's latency
                         shared_bytes * side / kSharedBytes, real_bytes * side / card.l2}) {
      sum += limit * limit * limit * limit;
    }
    return std::sqrt(std::sqrt(sum));
  };
  const auto epilogue = [&](double side) {
    return kEpilogue + results * kEpilogueResult * std::max(1.0, side * warps / 8);
  };
  double cycles = 0;
  if (split_k == kStreamK) {
    cycles += block_tiles * k_tile(together) + segments * epilogue(together);
  } else {
    cycles += rounds * (block_tiles * k_tile(together) + epilogue(together));
    if (left > 0) cycles += block_tiles * k_tile(left) + epilogue(left);
  }
  if (parts > 1) cycles += kSplit + (parts - 1) * t.m * t.n * 4 / 128.0 * kSplitPart;
  const double work = cycles / card.clock;

  double bytes = p.M * p.K * a_bytes + p.N * p.K * b_bytes + 2.0 * p.M * p.N;
  if (shared > 0) {
    // Blocks that share tiles are at different k: what they read of a row of tiles, or a column, is
    // read again from memory unless L2 holds what all blocks read meanwhile.
    const double tiles_m = ceil_div(p.M, t.m), tiles_n = ceil_div(p.N, t.n);
    const double round = resident * (rows * a_bytes + t.n * b_bytes) * p.K;
    const auto missed = [&](double sharers) {
      return std::max(0.0, 1 - kL2Share * d.l2_bytes * sharers / round);
    };
    bytes += shared * p.K *
             (t.n * b_bytes * (1 - 1 / tiles_m) * missed(tiles_m) +
              rows * a_bytes * (1 - 1 / tiles_n) * missed(resident / tiles_m));
  }
  const double memory = bytes / card.bandwidth;
  return std::sqrt(work * work + memory * memory);
}

}  // namespace

bool gemm_config_legal(const GemmProblem& p, const GemmConfig& c, const DeviceInfo& d) {
  if (c.tile < 0 || c.tile >= gemm_tile_count() || c.split_k < 0) return false;
  const GemmTile& t = gemm_tile(c.tile);
  if (t.op != p.op || t.smem_bytes > d.smem_per_block) return false;
  if (!schedule_fits(p.M, p.N, p.K, t.m, t.n, t.k, c.split_k)) return false;
  if (is_grouped(p.op) && p.group_size < p.K &&
      p.group_size < min_group_of(t.op, t.k, t.warp_m, t.warp_k)) {
    return false;
  }
  // Every part of a split has at least one tile of k.
  const int64_t quanta = ceil_div(p.K, schedule_unit(p.K, t.k, p.group_size));
  if (c.split_k > 1 && (c.split_k - 1) * ceil_div(quanta, c.split_k) >= quanta) return false;
  return c.split_k <= 64;
}

GemmConfig gemm_select(const GemmProblem& p, const DeviceInfo& d) {
  GemmConfig best;
  double least = 0;
  for (int i = 0; i < gemm_tile_count(); ++i) {
    const GemmTile& t = gemm_tile(i);
    if (t.op != p.op) continue;
    const int64_t tiles = ceil_div(p.M, t.m) * ceil_div(p.N, t.n);
    for (int split_k : {1, kStreamK, 2, 3, 4, 6, 8, 12}) {
      // Splitting is for filling the device.
      if (split_k > 1 && (tiles > 3 * d.sm_count || tiles * split_k > 6 * d.sm_count)) continue;
      if (!gemm_config_legal(p, {i, split_k}, d)) continue;
      const double x = cost(p, t, split_k, d) * factor_of(i, d);
      if (best.tile < 0 || x < kClearly * least) {
        best = {i, split_k};
        least = x;
      }
    }
  }
  return best;
}

}  // namespace qutlass
