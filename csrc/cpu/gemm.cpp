// SPDX-License-Identifier: Apache-2.0
#include "cpu/strict_float.h"
//
#include "cpu/gemm.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "common/nibble.h"
#include "cpu/convert.h"
#include "cpu/kernels.h"
#include "cpu/scratch.h"

// One blocked driver for all products. A task is a block of the output; its result depends on
// nothing but its own rows and columns and on kBlockK, so neither the number of threads nor the
// batch changes a bit:
//
//   for each run of kBlockK k:          partial sums stay in C, which fits L2 beside A
//     pack the task's rows of A         widened, less their zero points; reused by all its columns
//     for each kTileN rows of W:
//       pack them                       nibbles to int16 or float32, once, into L1
//       kernel: the whole block of A against them
//
// Where A has few rows the kernel reads W from memory instead, widening as it goes.

namespace qutlass::cpu {
namespace {

constexpr int64_t kBlockM = 128;  // rows of A in a block: 128 x 1024 int16 are half of a 512 KiB L2
constexpr int64_t kBlockK = 1024;  // k in a block of integers: four rows of W fill 8 KiB of L1
constexpr int64_t kBlockKFloat = 512;  // the same bytes in float32
// A zero point beyond this cannot be subtracted in 16 bits.
constexpr int32_t kWideZero = 16384;
// Rows of A up to which W is not packed; beyond, widening it again for every two rows costs more.
constexpr int64_t kDirectRowsInt8 = 16;
constexpr int64_t kDirectRowsInt4 = 4;
constexpr int64_t kDirectRowsFloat = 2;
// Multiply-adds worth a thread's waking.
constexpr int64_t kGrainWork = 1 << 18;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

const void* row_of(const Param& p, int64_t row) {
  return static_cast<const char*>(p.data) + row * p.stride * size_of(p.dtype);
}

// A Param with one entry a row, as an array with one entry a row whatever its stride.
void expand_floats(const Param& p, int64_t count, float* out) {
  if (p.stride == 1) {
    load_floats(p.data, p.dtype, 0, count, out);
  } else {
    for (int64_t i = 0; i < count; ++i) load_floats(row_of(p, i), p.dtype, 0, 1, out + i);
  }
}
void expand_ints(const Param& p, int64_t count, int32_t* out) {
  if (p.stride == 1) {
    load_ints(p.data, p.dtype, 0, count, out);
  } else {
    for (int64_t i = 0; i < count; ++i) load_ints(row_of(p, i), p.dtype, 0, 1, out + i);
  }
}

bool has_group_zeros(const GemmArguments& g) {
  return g.b_zero.present() && (g.op == GemmOp::kW4A8Group || g.op == GemmOp::kW4A8Multiplier);
}

// The arguments with everything of one value a row read into arrays, once a call.
struct Problem {
  const GemmArguments& args;
  const Kernels& kernels;
  int64_t groups;  // scales a row of W
  Scratch<float> a_scale;  // [M]; 1 where there is none
  Scratch<int32_t> a_zero;  // [M]
  Scratch<float> b_scale;  // [N], integer ops without float groups
  Scratch<int32_t> b_zero;  // [N], where zero points are per row
  Scratch<float> bias;  // [N]

  Problem(const GemmArguments& g, const Kernels& k)
      : args(g),
        kernels(k),
        groups(g.group_size > 0 ? g.K / g.group_size : 1),
        a_scale(g.M),
        a_zero(g.a_zero.present() ? g.M : 0),
        b_scale(scaled_per_row() ? g.N : 0),
        b_zero(zeroed_per_row() ? g.N : 0),
        bias(g.bias.present() ? g.N : 0) {}

  bool is_float() const { return args.op == GemmOp::kW4A16; }
  bool is_group() const { return args.op == GemmOp::kW4A8Group; }
  bool scaled_per_row() const { return !is_float() && !is_group(); }
  bool zeroed_per_row() const {
    return args.b_zero.present() && !is_float() && !has_group_zeros(args);
  }
  bool ok() const {
    return a_scale.ok() && a_zero.ok() && b_scale.ok() && b_zero.ok() && bias.ok();
  }

  void load() {
    if (args.a_scale.present()) {
      expand_floats(args.a_scale, args.M, a_scale.get());
    } else {
      std::fill_n(a_scale.get(), args.M, 1.0f);
    }
    if (args.a_zero.present()) expand_ints(args.a_zero, args.M, a_zero.get());
    if (scaled_per_row()) expand_floats(args.b_scale, args.N, b_scale.get());
    if (zeroed_per_row()) expand_ints(args.b_zero, args.N, b_zero.get());
    if (args.bias.present()) expand_floats(args.bias, args.N, bias.get());
  }

  // Whether some zero point is too large for 16-bit operands.
  bool has_wide_zero() const {
    const auto wide = [](const int32_t* z, int64_t n) {
      return std::any_of(z, z + n, [](int32_t v) { return v < -kWideZero || v > kWideZero; });
    };
    if (a_zero.get() && wide(a_zero.get(), args.M)) return true;
    if (b_zero.get() && wide(b_zero.get(), args.N)) return true;
    if (!has_group_zeros(args) || args.b_zero.dtype != DType::kInt32) return false;
    for (int64_t n = 0; n < args.N; ++n) {
      if (wide(static_cast<const int32_t*>(row_of(args.b_zero, n)), groups)) return true;
    }
    return false;
  }

  const uint8_t* a_row(int64_t m) const {
    return static_cast<const uint8_t*>(args.a) + m * args.lda;
  }
  const uint8_t* b_row(int64_t n) const {
    return static_cast<const uint8_t*>(args.b) + n * (b_bits(args.op) == 4 ? args.K / 2 : args.K);
  }
  uint16_t* out_row(int64_t m) const { return static_cast<uint16_t*>(args.out) + m * args.N; }
  const float* bias_at(int64_t n) const { return bias.get() ? bias.get() + n : nullptr; }
  int32_t group_zero(int64_t n, int64_t group) const {
    int32_t z = 0;
    if (args.b_zero.present()) load_ints(row_of(args.b_zero, n), args.b_zero.dtype, group, 1, &z);
    return z;
  }
};

// How the product is cut. A function of the shape alone.
struct Blocking {
  int64_t m, n, k;  // of a task; k of one packing
  int64_t tasks_m, tasks_n;

  explicit Blocking(const Problem& p) {
    const GemmArguments& g = p.args;
    k = p.is_float() ? kBlockKFloat : kBlockK;
    // The sum of a group is converted to float once, so a group is never cut.
    if (p.is_group()) k = std::max(g.group_size, k / g.group_size * g.group_size);
    k = std::min(k, round_up(g.K, kPackUnit));
    // A wide group makes long rows; fewer of them keep the block in cache.
    m = std::clamp<int64_t>(kBlockM * kBlockK / std::max(k, kBlockK), 2, kBlockM);
    m = std::min(m, std::max<int64_t>(g.M, 1));
    // Wide tasks reuse packed activations, narrow ones give small layers enough tasks.
    n = std::clamp<int64_t>(round_up(g.N / 32, 16), 32, 256);
    tasks_m = ceil_div(g.M, m);
    tasks_n = ceil_div(g.N, n);
  }
};

// Packs and multiplies the tasks of one thread.
class Worker {
 public:
  Worker(const Problem& p, const Blocking& block)
      : p_(p),
        block_(block),
        a_int_(p.is_float() ? 0 : block.m * block.k),
        b_int_(p.is_float() ? 0 : kTileN * block.k),
        a_float_(p.is_float() ? block.m * block.k : 0),
        b_float_(p.is_float() ? kTileN * block.k : 0),
        c_int_(p.scaled_per_row() ? block.m * block.n : 0),
        c_float_(p.scaled_per_row() ? 0 : block.m * block.n),
        row_(p.scaled_per_row() ? 0 : p.groups),
        tile_scale_(p.scaled_per_row() ? 0 : kTileN * p.groups),
        tile_zero_(p.is_float() ? kTileN * p.groups : 0),
        direct_rows_(direct_rows(p, block)) {}

  bool ok() const {
    return a_int_.ok() && b_int_.ok() && a_float_.ok() && b_float_.ok() && c_int_.ok() &&
           c_float_.ok() && row_.ok() && tile_scale_.ok() && tile_zero_.ok();
  }

  void run(int64_t task) {
    const GemmArguments& g = p_.args;
    const int64_t m0 = task / block_.tasks_n * block_.m;
    const int64_t n0 = task % block_.tasks_n * block_.n;
    const int64_t rows = std::min(block_.m, g.M - m0);
    const int64_t cols = std::min(block_.n, g.N - n0);
    if (c_int_.get()) std::memset(c_int_.get(), 0, sizeof(int32_t) * rows * block_.n);
    if (c_float_.get()) std::memset(c_float_.get(), 0, sizeof(float) * rows * block_.n);

    for (int64_t k0 = 0; k0 < g.K; k0 += block_.k) {
      const int64_t k = std::min(block_.k, g.K - k0);
      const int64_t packed_k = round_up(k, kPackUnit);
      pack_a(m0, rows, k0, k, packed_k);
      for (int64_t n = 0; n < cols; n += kTileN) {
        const int64_t tile = std::min<int64_t>(kTileN, cols - n);
        const bool direct = rows <= direct_rows_ && tile == kTileN;
        if (p_.is_float()) {
          multiply_float(direct, n0 + n, tile, rows, k0, k, c_float_.get() + n);
        } else if (p_.is_group()) {
          multiply_group(direct, n0 + n, tile, rows, k0, k, c_float_.get() + n);
        } else {
          multiply_int(direct, n0 + n, tile, rows, k0, k, packed_k, c_int_.get() + n);
        }
      }
    }

    for (int64_t m = 0; m < rows; ++m) {
      uint16_t* out = p_.out_row(m0 + m) + n0;
      const float scale = p_.a_scale[m0 + m];
      if (p_.scaled_per_row()) {
        p_.kernels.store_int(c_int_.get() + m * block_.n, cols, p_.b_scale.get() + n0, scale,
                             p_.bias_at(n0), out);
      } else {
        p_.kernels.store_float(c_float_.get() + m * block_.n, cols, scale, p_.bias_at(n0), out);
      }
    }
  }

 private:
  // Up to so many rows of A the weight is read where it lies. Integer zero points and multipliers
  // are applied in packing, and so are groups that a block of k cuts.
  static int64_t direct_rows(const Problem& p, const Blocking& block) {
    if (p.is_float()) return block.k % p.args.group_size ? 0 : kDirectRowsFloat;
    if (p.args.b_zero.present() || p.args.b_multiplier) return 0;
    return b_bits(p.args.op) == 8 ? kDirectRowsInt8 : kDirectRowsInt4;
  }

  void pack_a(int64_t m0, int64_t rows, int64_t k0, int64_t k, int64_t packed_k) {
    if (m0 == packed_m0_ && k0 == packed_k0_) return;  // neighbouring tasks share rows
    packed_m0_ = m0;
    packed_k0_ = k0;
    for (int64_t m = 0; m < rows; ++m) {
      const uint8_t* row = p_.a_row(m0 + m);
      const int zero = p_.a_zero.get() ? p_.a_zero[m0 + m] : 0;
      if (p_.is_float()) {
        p_.kernels.widen_bfloat16(reinterpret_cast<const uint16_t*>(row) + k0, k,
                                  a_float_.get() + m * k);
        continue;
      }
      int16_t* out = a_int_.get() + m * packed_k;
      if (a_bits(p_.args.op) == 4) {
        p_.kernels.widen_int4(row + k0 / 2, k, zero, 1, out);
      } else {
        p_.kernels.widen_int8(reinterpret_cast<const int8_t*>(row) + k0, k, zero, out);
        std::fill(out + k, out + packed_k, int16_t{0});
      }
    }
  }

  // Calls f(group, begin, end) for the part of each group that lies in [k0, k0 + k).
  template <typename F>
  void for_each_group(int64_t k0, int64_t k, F&& f) {
    const int64_t size = p_.args.group_size;
    for (int64_t begin = k0; begin < k0 + k;) {
      const int64_t group = begin / size;
      const int64_t end = std::min((group + 1) * size, k0 + k);
      f(group, begin, end);
      begin = end;
    }
  }

  void pack_b_int(int64_t n0, int64_t rows, int64_t k0, int64_t k, int64_t packed_k) {
    for (int64_t n = 0; n < kTileN; ++n) {
      int16_t* out = b_int_.get() + n * packed_k;
      if (n >= rows) {
        std::fill_n(out, packed_k, int16_t{0});
        continue;
      }
      const uint8_t* row = p_.b_row(n0 + n);
      const int zero = p_.b_zero.get() ? p_.b_zero[n0 + n] : 0;
      if (b_bits(p_.args.op) == 8) {
        p_.kernels.widen_int8(reinterpret_cast<const int8_t*>(row) + k0, k, zero, out);
        std::fill(out + k, out + packed_k, int16_t{0});
      } else if (p_.args.b_multiplier || has_group_zeros(p_.args)) {
        for_each_group(k0, k, [&](int64_t group, int64_t begin, int64_t end) {
          const int multiplier =
              p_.args.b_multiplier ? p_.args.b_multiplier[(n0 + n) * p_.groups + group] : 1;
          p_.kernels.widen_int4(row + begin / 2, end - begin, p_.group_zero(n0 + n, group),
                                multiplier, out + (begin - k0));
        });
      } else {
        p_.kernels.widen_int4(row + k0 / 2, k, zero, 1, out);
      }
    }
  }

  void pack_b_float(int64_t n0, int64_t rows, int64_t k0, int64_t k) {
    const int64_t first = k0 / p_.args.group_size;
    for (int64_t n = 0; n < kTileN; ++n) {
      float* out = b_float_.get() + n * k;
      if (n >= rows) {
        std::fill_n(out, k, 0.0f);
        continue;
      }
      const uint8_t* row = p_.b_row(n0 + n);
      for_each_group(k0, k, [&](int64_t group, int64_t begin, int64_t end) {
        const int64_t entry = (group - first) * kTileN + n;
        p_.kernels.dequantize_int4(row + begin / 2, end - begin, tile_zero_[entry],
                                   tile_scale_[entry], out + (begin - k0));
      });
    }
  }

  // The entries of a tile's rows for the groups that [k0, k0 + k) touches, those of one group
  // together.
  void pack_groups(const Param& param, int64_t n0, int64_t rows, int64_t k0, int64_t k,
                   float* out) {
    const int64_t first = k0 / p_.args.group_size;
    const int64_t count = ceil_div(k0 + k, p_.args.group_size) - first;
    for (int64_t n = 0; n < kTileN; ++n) {
      if (n < rows && param.present()) {
        load_floats(row_of(param, n0 + n), param.dtype, first, count, row_.get());
      } else {
        std::fill_n(row_.get(), count, 0.0f);
      }
      for (int64_t g = 0; g < count; ++g) out[g * kTileN + n] = row_[g];
    }
  }

  void multiply_int(bool direct, int64_t n0, int64_t tile, int64_t rows, int64_t k0, int64_t k,
                    int64_t packed_k, int32_t* c) {
    const uint8_t* b = p_.b_row(n0);
    if (direct && b_bits(p_.args.op) == 8) {
      p_.kernels.dot_int8(a_int_.get(), rows, packed_k, reinterpret_cast<const int8_t*>(b) + k0,
                          p_.args.K, k, c, block_.n);
    } else if (direct) {
      p_.kernels.dot_int4(a_int_.get(), rows, packed_k, b + k0 / 2, p_.args.K / 2, k, c, block_.n);
    } else {
      pack_b_int(n0, tile, k0, k, packed_k);
      p_.kernels.dot_int(a_int_.get(), rows, b_int_.get(), packed_k, packed_k, c, block_.n);
    }
  }

  void multiply_group(bool direct, int64_t n0, int64_t tile, int64_t rows, int64_t k0, int64_t k,
                      float* c) {
    const int64_t size = p_.args.group_size;
    pack_groups(p_.args.b_scale, n0, tile, k0, k, tile_scale_.get());
    if (direct) {
      p_.kernels.dot_group_int4(a_int_.get(), rows, k, p_.b_row(n0) + k0 / 2, p_.args.K / 2, k,
                                size, tile_scale_.get(), c, block_.n);
    } else {
      pack_b_int(n0, tile, k0, k, k);
      p_.kernels.dot_group(a_int_.get(), rows, b_int_.get(), k, k, size, tile_scale_.get(), c,
                           block_.n);
    }
  }

  void multiply_float(bool direct, int64_t n0, int64_t tile, int64_t rows, int64_t k0, int64_t k,
                      float* c) {
    pack_groups(p_.args.b_scale, n0, tile, k0, k, tile_scale_.get());
    pack_groups(p_.args.b_zero, n0, tile, k0, k, tile_zero_.get());
    if (direct) {
      p_.kernels.dot_float_int4(a_float_.get(), rows, k, p_.b_row(n0) + k0 / 2, p_.args.K / 2, k,
                                p_.args.group_size, tile_scale_.get(), tile_zero_.get(), c,
                                block_.n);
    } else {
      pack_b_float(n0, tile, k0, k);
      p_.kernels.dot_float(a_float_.get(), rows, b_float_.get(), k, k, c, block_.n);
    }
  }

  const Problem& p_;
  const Blocking& block_;
  Scratch<int16_t> a_int_, b_int_;
  Scratch<float> a_float_, b_float_;
  Scratch<int32_t> c_int_;
  Scratch<float> c_float_, row_, tile_scale_, tile_zero_;
  int64_t direct_rows_;
  int64_t packed_m0_ = -1, packed_k0_ = -1;
};

// Zero points that 16-bit operands cannot take in: no quantizer makes them, the contract allows
// them. One output at a time, in arithmetic modulo 2^32.
void multiply_wide(const Problem& p, int64_t m, float* t) {
  const GemmArguments& g = p.args;
  const int64_t group = has_group_zeros(g) || p.is_group() || g.b_multiplier ? g.group_size : g.K;
  const uint8_t* a = p.a_row(m);
  const auto a_zero = static_cast<uint32_t>(p.a_zero.get() ? p.a_zero[m] : 0);
  for (int64_t n = 0; n < g.N; ++n) {
    const uint8_t* b = p.b_row(n);
    uint32_t sum = 0;
    float total = 0;
    for (int64_t k0 = 0; k0 < g.K; k0 += group) {
      const auto b_zero = static_cast<uint32_t>(p.b_zero.get()       ? p.b_zero[n]
                                                : has_group_zeros(g) ? p.group_zero(n, k0 / group)
                                                                     : 0);
      const uint32_t multiplier = g.b_multiplier ? g.b_multiplier[n * p.groups + k0 / group] : 1;
      for (int64_t k = k0; k < k0 + group; ++k) {
        const int x = a_bits(g.op) == 4 ? int4_at(a, k) : reinterpret_cast<const int8_t*>(a)[k];
        const int y = b_bits(g.op) == 4 ? int4_at(b, k) : reinterpret_cast<const int8_t*>(b)[k];
        sum +=
            (static_cast<uint32_t>(x) - a_zero) * multiplier * (static_cast<uint32_t>(y) - b_zero);
      }
      if (p.is_group()) {
        float scale;
        load_floats(row_of(g.b_scale, n), g.b_scale.dtype, k0 / group, 1, &scale);
        const float term = static_cast<float>(static_cast<int32_t>(sum)) * scale;
        total = total + term;
        sum = 0;
      }
    }
    if (p.is_group()) {
      t[n] = total;
    } else {
      t[n] = static_cast<float>(static_cast<int32_t>(sum)) * p.b_scale[n];
    }
  }
  generic_kernels().store_float(t, g.N, p.a_scale[m], p.bias_at(0), p.out_row(m));
}

Status check(const GemmArguments& g) {
  if (!g.a || !g.b || !g.out) return Status::invalid("cpu gemm: null operand");
  if (g.K % (b_bits(g.op) == 4 ? kInt4Block : 16)) return Status::invalid("cpu gemm: K alignment");
  if (!g.b_scale.present()) return Status::invalid("cpu gemm: no b_scale");
  const bool grouped =
      g.op == GemmOp::kW4A8Group || g.op == GemmOp::kW4A8Multiplier || g.op == GemmOp::kW4A16;
  if (grouped && (g.group_size <= 0 || g.group_size % kInt4Block || g.K % g.group_size)) {
    return Status::unsupported("cpu gemm: the group size must be a multiple of 32 that divides K");
  }
  if ((g.op == GemmOp::kW4A8Multiplier) != (g.b_multiplier != nullptr)) {
    return Status::invalid("cpu gemm: b_multiplier and the operator disagree");
  }
  return Status::success();
}

}  // namespace

Status gemm_with(const Kernels& kernels, const GemmArguments& args, const ParallelRunner& runner) {
  if (args.M == 0 || args.N == 0) return Status::success();
  if (const Status status = check(args); !status.ok()) return status;
  constexpr Status kNoMemory = Status::unsupported("cpu gemm: out of memory");
  Problem problem(args, kernels);
  if (!problem.ok()) return kNoMemory;
  problem.load();
  std::atomic<bool> failed{false};

  if (!problem.is_float() && problem.has_wide_zero()) {
    parallel_for(runner, 0, args.M, 1, [&](int64_t begin, int64_t end) {
      Scratch<float> row(args.N);
      if (!row.ok()) {
        failed = true;
        return;
      }
      for (int64_t m = begin; m < end; ++m) multiply_wide(problem, m, row.get());
    });
    return failed ? kNoMemory : Status::success();
  }

  const Blocking block(problem);
  const int64_t work = std::max<int64_t>(1, block.m * block.n * args.K);
  parallel_for(runner, 0, block.tasks_m * block.tasks_n, ceil_div(kGrainWork, work),
               [&](int64_t begin, int64_t end) {
                 Worker worker(problem, block);
                 if (!worker.ok()) {
                   failed = true;
                   return;
                 }
                 for (int64_t task = begin; task < end; ++task) worker.run(task);
               });
  return failed ? kNoMemory : Status::success();
}

const Kernels& best_kernels() {
  if (const Kernels* kernels = avx512vnni_kernels()) return *kernels;
  if (const Kernels* kernels = avx2_kernels()) return *kernels;
  return generic_kernels();
}

Status gemm(const GemmArguments& args, const ParallelRunner& runner) {
  return gemm_with(best_kernels(), args, runner);
}

const char* gemm_isa() { return best_kernels().isa; }

}  // namespace qutlass::cpu
