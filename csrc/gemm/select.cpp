// SPDX-License-Identifier: Apache-2.0
// Which row runs a problem: the legal row with the least estimated time. The estimate is a roofline
// of one wave of blocks, in seconds, from what the table and the device say; it only has to rank.
#include <algorithm>

#include "gemm/gemm.h"

namespace qutlass {

namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct DeviceModel {
  double clock;  // Hz under load
  double int8_ops;  // multiply-adds x 2 a clock and multiprocessor, mma.sync s8
  double bandwidth;  // device memory, bytes/s
  double l2_bandwidth;  // bytes/s
};

// Tensor rates a clock are architecture facts (datasheet rate / SMs / boost clock); sm_90's is what
// mma.sync reaches there.
DeviceModel model_of(const DeviceInfo& d) {
  DeviceModel m{};
  if (d.sm >= 90)
    m = {1.7e9, 5600, 4.2e12, 0};
  else if (d.sm == 80)
    m = {1.3e9, 4096, 1.5e12, 0};
  else
    m = {1.6e9, 2048, 0.7e12, 0};
  if (d.bandwidth > 0) m.bandwidth = d.bandwidth * 0.87;  // what copies reach of the pin rate
  m.l2_bandwidth = d.sm_count * 64.0 * m.clock * 0.6;  // 64 bytes a clock and multiprocessor
  return m;
}

double op_rate(GemmOp op, const DeviceInfo& d, const DeviceModel& m) {
  switch (op) {
    case GemmOp::kW4A4: return d.native_int4() ? 2 * m.int8_ops : m.int8_ops / 18;
    // sm_86 runs bf16 with float32 accumulation at a quarter of the int8 rate (GeForce), others
    // half
    case GemmOp::kW4A16: return d.sm == 86 || d.sm == 89 ? m.int8_ops / 4 : m.int8_ops / 2;
    default: return m.int8_ops;
  }
}

// Registers a thread needs, near enough: accumulators (twice where groups are folded), double-
// buffered fragments, addresses.
int registers_of(const GemmTile& t) {
  const bool fold = t.op == GemmOp::kW4A8Group || t.op == GemmOp::kW4A16;
  const int accumulators = t.warp_m * t.warp_n / 32 * (fold ? 2 : 1);
  return std::min(255, accumulators + t.warp_m / 16 * 8 + t.warp_n / 8 * 4 + 48);
}

int blocks_per_sm(const GemmTile& t, const DeviceInfo& d) {
  const int by_smem = d.smem_per_sm / (t.smem_bytes + 1024);
  const int by_registers = 65536 / (ceil_div(registers_of(t), 8) * 8 * t.threads);
  return std::max(
      1, std::min({by_smem, by_registers, (d.sm == 80 || d.sm >= 90 ? 64 : 48) * 32 / t.threads}));
}

double cost(const GemmProblem& p, const GemmTile& t, int split_k, const DeviceInfo& d) {
  const DeviceModel m = model_of(d);
  const double a_bytes = a_bits(p.op) / 8.0, b_bytes = b_bits(p.op) / 8.0;
  const int64_t tiles = ceil_div(p.M, t.m) * ceil_div(p.N, t.n);
  const int64_t blocks = tiles * split_k;
  const int resident = blocks_per_sm(t, d);
  const int64_t busiest = ceil_div(blocks, d.sm_count);  // blocks the busiest multiprocessor runs
  const int64_t together = std::min<int64_t>(busiest, resident);
  const double k = static_cast<double>(ceil_div(ceil_div(p.K, split_k), t.k)) * t.k;

  // One block alone, in clocks: tensor instructions, shared memory reads, and the latency of device
  // memory that its stages can cover.
  const int warps = t.threads / 32, slices = t.k / t.warp_k;
  const double tensor = 2.0 * t.m * t.n * k / op_rate(p.op, d, m);
  // Fewer than 4 warps do not fill the four schedulers; one warp each hides little latency.
  const double fill = std::min(1.0, warps * static_cast<double>(together) / 4.0) *
                      (warps * together >= 8 ? 1.0 : 0.85);
  const double shared = (t.warp_m * a_bytes + t.warp_n * b_bytes) * k / slices * warps / 128.0;
  // The barrier of each tile of k, which more stages hide better.
  const double barriers = k / t.k * 400.0 / ((t.stages - 1) * (t.stages - 1));
  const double work = std::max(tensor / fill, shared) + barriers;
  const double latency = k / t.k * (900.0 / (t.stages - 1) + 60.0);
  const double alone = std::max(work, latency);
  // Blocks that run together share the units but not the latency.
  const double rounds = static_cast<double>(busiest) / together;
  const double block_time = std::max(alone, work * together) * rounds / m.clock;

  const double once = p.M * p.K * a_bytes + p.N * p.K * b_bytes + 2.0 * p.M * p.N;
  const double through_l2 = blocks * (t.m * a_bytes + t.n * b_bytes) * k;
  const double busy = std::min(1.0, static_cast<double>(blocks) / d.sm_count);
  const double memory = std::max(once / (m.bandwidth * busy), through_l2 / (m.l2_bandwidth * busy));

  const double epilogue = (600.0 + t.m * t.n / 24.0) * rounds / m.clock;
  // Partial sums go out and come back through L2, one part after the other.
  const double split =
      split_k > 1 ? 0.8e-6 + (split_k - 1) * (8.0 * t.m * t.n / 64.0 / m.clock + 0.2e-6) : 0;
  return std::max(block_time, memory) + 0.15 * std::min(block_time, memory) + epilogue + split;
}

}  // namespace

bool gemm_config_legal(const GemmProblem& p, const GemmConfig& c, const DeviceInfo& d) {
  if (c.tile < 0 || c.tile >= gemm_tile_count() || c.split_k < 1) return false;
  const GemmTile& t = gemm_tile(c.tile);
  if (t.op != p.op || t.smem_bytes > d.smem_per_block) return false;
  // Every part of a split has at least one tile of k.
  const int64_t quantum = p.group_size > t.k && p.group_size < p.K ? p.group_size : t.k;
  const int64_t quanta = ceil_div(p.K, quantum);
  if (c.split_k > 1 && (c.split_k - 1) * ceil_div(quanta, c.split_k) >= quanta) return false;
  return c.split_k <= 64;
}

GemmConfig gemm_select(const GemmProblem& p, const DeviceInfo& d) {
  GemmConfig best;
  double least = 0;
  for (int i = 0; i < gemm_tile_count(); ++i) {
    for (int split_k : {1, 2, 3, 4, 6, 8}) {
      const GemmConfig c{i, split_k};
      if (!gemm_config_legal(p, c, d)) continue;
      if (split_k > 1 && ceil_div(p.M, gemm_tile(i).m) * ceil_div(p.N, gemm_tile(i).n) * split_k >
                             2 * static_cast<int64_t>(d.sm_count)) {
        continue;  // splitting is for filling the device
      }
      const double x = cost(p, gemm_tile(i), split_k, d);
      if (best.tile < 0 || x < least) {
        best = c;
        least = x;
      }
    }
  }
  return best;
}

}  // namespace qutlass
