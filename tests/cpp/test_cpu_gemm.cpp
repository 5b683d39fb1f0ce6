// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "common/nibble.h"
#include "cpu/gemm.h"
#include "cpu/kernels.h"
#include "threads.h"

// Every instruction set this machine has, against loops that follow the contract one step at a
// time.

namespace qutlass {
namespace {

using cpu::Kernels;

std::mt19937 rng(20);

int uniform(int low, int high) { return std::uniform_int_distribution<int>(low, high)(rng); }

std::vector<int8_t> random_ints(int64_t count, int low, int high) {
  std::vector<int8_t> values(count);
  for (int8_t& v : values) v = static_cast<int8_t>(uniform(low, high));
  return values;
}

std::vector<uint8_t> pack(const std::vector<int8_t>& values) {
  std::vector<uint8_t> packed(values.size() / 2);
  for (size_t k = 0; k < values.size(); k += 32) {
    for (size_t i = 0; i < 16; ++i)
      packed[k / 2 + i] = int4_pair(values[k + i], values[k + 16 + i]);
  }
  return packed;
}

// bfloat16 by arithmetic instead of bits: 8 significant bits, ties to even.
float rounded_to_bfloat16(float x) {
  if (!std::isfinite(x) || x == 0) return x;
  int exponent;
  const double fraction = std::frexp(static_cast<double>(x), &exponent);
  const int digits = std::min(8, exponent + 133);  // fewer below the least normal, 2^-126
  return static_cast<float>(
      std::ldexp(std::nearbyint(std::ldexp(fraction, digits)), exponent - digits));
}

float widened(uint16_t bfloat16) {
  const uint32_t bits = static_cast<uint32_t>(bfloat16) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

// The same value, or both NaN.
bool same(float a, float b) { return std::isnan(a) ? std::isnan(b) : a == b; }

// A value that a Param can hold, as float or integer, in one of its dtypes.
struct Values {
  DType dtype = DType::kNone;
  std::vector<unsigned char> bytes;
  std::vector<double> exact;  // what the bytes mean

  bool present() const { return dtype != DType::kNone; }
  Param param(int64_t stride) const {
    if (!present()) return {};
    return {bytes.data(), dtype, stride};
  }
};

template <typename T>
void append(Values& values, T stored, double exact) {
  const auto* p = reinterpret_cast<const unsigned char*>(&stored);
  values.bytes.insert(values.bytes.end(), p, p + sizeof(T));
  values.exact.push_back(exact);
}

Values random_floats(DType dtype, int64_t count, double low, double high) {
  Values values;
  values.dtype = dtype;
  for (int64_t i = 0; i < count; ++i) {
    const auto x = static_cast<float>(std::uniform_real_distribution<double>(low, high)(rng));
    if (dtype == DType::kFloat32) {
      append(values, x, x);
    } else if (dtype == DType::kBFloat16) {
      uint32_t bits;
      std::memcpy(&bits, &x, sizeof(bits));
      append(values, static_cast<uint16_t>(bits >> 16), widened(static_cast<uint16_t>(bits >> 16)));
    } else {
      // Normal halves only: 10 bits of fraction and an exponent of -14..15.
      const int exponent = uniform(-12, -6), fraction = uniform(0, 1023);
      append(values, static_cast<uint16_t>((exponent + 15) << 10 | fraction),
             std::ldexp(1024 + fraction, exponent - 10));
    }
  }
  return values;
}

Values random_zeros(DType dtype, int64_t count, int low, int high) {
  Values values;
  values.dtype = dtype;
  for (int64_t i = 0; i < count; ++i) {
    const int z = uniform(low, high);
    if (dtype == DType::kInt8) {
      append(values, static_cast<int8_t>(z), z);
    } else {
      append(values, static_cast<int32_t>(z), z);
    }
  }
  return values;
}

// One product with all its operands, unpacked and packed.
struct Case {
  GemmOp op;
  int64_t M, N, K, group = 0;
  int64_t lda = 0;  // bytes
  std::vector<int8_t> a_values, b_values;
  std::vector<uint16_t> a_bf16;
  std::vector<unsigned char> a, b;
  Values a_scale, b_scale, a_zero, b_zero, bias;
  bool one_a_scale = false, one_b_scale = false;
  std::vector<uint8_t> multiplier;

  bool is_float() const { return op == GemmOp::kW4A16; }
  bool per_group() const { return op == GemmOp::kW4A8Group || is_float(); }
  int64_t groups() const { return group ? K / group : 1; }
  std::string name() const {
    return std::string(name_of(op)) + " M=" + std::to_string(M) + " N=" + std::to_string(N) +
           " K=" + std::to_string(K) + " g=" + std::to_string(group);
  }

  GemmArguments arguments(uint16_t* out) const {
    GemmArguments g;
    g.op = op;
    g.M = M, g.N = N, g.K = K;
    g.group_size = group;
    g.a = a.data();
    g.lda = lda;
    g.b = b.data();
    g.a_scale = a_scale.param(one_a_scale ? 0 : 1);
    g.a_zero = a_zero.param(one_a_scale ? 0 : 1);
    g.b_scale = b_scale.param(per_group() ? groups() : one_b_scale ? 0 : 1);
    const bool group_zero = per_group() || op == GemmOp::kW4A8Multiplier;
    g.b_zero = b_zero.param(group_zero ? groups() : one_b_scale ? 0 : 1);
    g.bias = bias.param(1);
    g.b_multiplier = multiplier.empty() ? nullptr : multiplier.data();
    g.out = out;
    return g;
  }

  double b_zero_at(int64_t n, int64_t group_index) const {
    if (!b_zero.present()) return 0;
    if (per_group() || op == GemmOp::kW4A8Multiplier) {
      return b_zero.exact[n * groups() + group_index];
    }
    return b_zero.exact[one_b_scale ? 0 : n];
  }
  float a_scale_at(int64_t m) const {
    return a_scale.present() ? static_cast<float>(a_scale.exact[one_a_scale ? 0 : m]) : 1.0f;
  }
};

struct Options {
  bool a_zero = false, b_zero = false, bias = false, one_scale = false;
  DType scale = DType::kFloat32, zero = DType::kInt32;
  int zero_reach = 0;  // 0: the operand's own range
  int64_t pad = 0;     // bytes between rows of a
};

Case make_case(GemmOp op, int64_t M, int64_t N, int64_t K, int64_t group, const Options& options) {
  Case c;
  c.op = op, c.M = M, c.N = N, c.K = K, c.group = group;
  c.one_a_scale = c.one_b_scale = options.one_scale;
  const int a_low = a_bits(op) == 4 ? -8 : -128, b_low = b_bits(op) == 4 ? -8 : -128;
  c.b_values = random_ints(N * K, b_low, -b_low - 1);
  const auto pack_rows = [&](const std::vector<int8_t>& values, int bits) {
    if (bits == 4) return pack(values);
    return std::vector<uint8_t>(values.begin(), values.end());
  };
  c.b = pack_rows(c.b_values, b_bits(op));

  std::vector<unsigned char> rows;
  if (c.is_float()) {
    for (int64_t i = 0; i < M * K; ++i) {
      const auto x = static_cast<float>(std::normal_distribution<double>()(rng));
      uint32_t bits;
      std::memcpy(&bits, &x, sizeof(bits));
      c.a_bf16.push_back(static_cast<uint16_t>(bits >> 16));
    }
    rows.resize(c.a_bf16.size() * 2);
    if (!rows.empty()) std::memcpy(rows.data(), c.a_bf16.data(), rows.size());
  } else {
    c.a_values = random_ints(M * K, a_low, -a_low - 1);
    rows = pack_rows(c.a_values, a_bits(op));
  }
  const int64_t row_bytes = K * a_bits(op) / 8;
  c.lda = row_bytes + options.pad;
  c.a.assign(M * c.lda, 0xA5);
  for (int64_t m = 0; m < M; ++m) {
    std::memcpy(c.a.data() + m * c.lda, rows.data() + m * row_bytes, row_bytes);
  }

  const int64_t entries_a = options.one_scale ? 1 : M;
  const int64_t entries_b = c.per_group() ? N * c.groups() : options.one_scale ? 1 : N;
  c.b_scale = random_floats(options.scale, entries_b, 0.001, 0.02);
  if (!c.is_float()) {
    c.a_scale = random_floats(options.scale, entries_a, 0.001, 0.05);
    if (options.a_zero) {
      const int reach = options.zero_reach;
      c.a_zero =
          random_zeros(options.zero, entries_a, reach ? -reach : a_low, reach ? reach : -a_low - 1);
    }
  }
  if (options.b_zero) {
    if (op == GemmOp::kW4A8Multiplier) {
      c.b_zero = random_zeros(DType::kInt8, N * c.groups(), -8, 7);
    } else if (c.is_float() && options.zero == DType::kInt32) {
      c.b_zero = random_floats(DType::kFloat32, entries_b, -8, 7);
    } else {
      const int reach = options.zero_reach;
      c.b_zero =
          random_zeros(options.zero, entries_b, reach ? -reach : b_low, reach ? reach : -b_low - 1);
    }
  }
  if (op == GemmOp::kW4A8Multiplier) {
    for (int64_t i = 0; i < N * c.groups(); ++i) {
      c.multiplier.push_back(static_cast<uint8_t>(uniform(1, options.b_zero ? 8 : 15)));
    }
  }
  if (options.bias) c.bias = random_floats(options.scale, N, -1, 1);
  return c;
}

// The contract, one rounded step after the other. `volatile` keeps a compiler from fusing them.
std::vector<float> expected_integer(const Case& c) {
  std::vector<float> out(c.M * c.N);
  const int64_t group = c.group ? c.group : c.K;
  for (int64_t m = 0; m < c.M; ++m) {
    const int64_t a_zero =
        c.a_zero.present() ? static_cast<int64_t>(c.a_zero.exact[c.one_a_scale ? 0 : m]) : 0;
    for (int64_t n = 0; n < c.N; ++n) {
      volatile float t = 0;
      int64_t sum = 0;
      for (int64_t k0 = 0; k0 < c.K; k0 += group) {
        const auto b_zero = static_cast<int64_t>(c.b_zero_at(n, k0 / group));
        const int64_t factor = c.multiplier.empty() ? 1 : c.multiplier[n * c.groups() + k0 / group];
        for (int64_t k = k0; k < k0 + group; ++k) {
          sum += (c.a_values[m * c.K + k] - a_zero) * factor * (c.b_values[n * c.K + k] - b_zero);
        }
        if (c.op == GemmOp::kW4A8Group) {
          volatile float term = static_cast<float>(sum);
          term = term * static_cast<float>(c.b_scale.exact[n * c.groups() + k0 / group]);
          t = t + term;
          sum = 0;
        }
      }
      if (c.op != GemmOp::kW4A8Group) {
        t = static_cast<float>(sum);
        t = t * static_cast<float>(c.b_scale.exact[c.one_b_scale ? 0 : n]);
      }
      t = t * c.a_scale_at(m);
      if (c.bias.present()) t = t + static_cast<float>(c.bias.exact[n]);
      out[m * c.N + n] = rounded_to_bfloat16(t);
    }
  }
  return out;
}

// Float64 products of the dequantized weight.
std::vector<double> expected_float(const Case& c) {
  std::vector<double> out(c.M * c.N);
  for (int64_t m = 0; m < c.M; ++m) {
    for (int64_t n = 0; n < c.N; ++n) {
      double sum = 0;
      for (int64_t k = 0; k < c.K; ++k) {
        const int64_t g = k / c.group;
        sum += widened(c.a_bf16[m * c.K + k]) * (c.b_values[n * c.K + k] - c.b_zero_at(n, g)) *
               c.b_scale.exact[n * c.groups() + g];
      }
      out[m * c.N + n] = sum + (c.bias.present() ? c.bias.exact[n] : 0);
    }
  }
  return out;
}

// Runs between guards, which must not change.
std::vector<uint16_t> run(const Case& c, const Kernels& kernels, const ParallelRunner& runner) {
  constexpr int64_t kGuard = 64;
  constexpr uint16_t kMark = 0xBEEF;
  std::vector<uint16_t> out(c.M * c.N + 2 * kGuard, kMark);
  const Status status = cpu::gemm_with(kernels, c.arguments(out.data() + kGuard), runner);
  CHECK_EQ_AT(std::string(status.what), std::string(), c.name());
  for (int64_t i = 0; i < kGuard; ++i) {
    CHECK_EQ_AT(out[i], kMark, c.name());
    CHECK_EQ_AT(out[out.size() - 1 - i], kMark, c.name());
  }
  return {out.begin() + kGuard, out.end() - kGuard};
}

std::vector<const Kernels*> instruction_sets() {
  std::vector<const Kernels*> sets = {&cpu::generic_kernels()};
  for (const Kernels* k : {cpu::avx2_kernels(), cpu::avx512vnni_kernels()}) {
    if (k) sets.push_back(k);
  }
  return sets;
}

void check_case(const Case& c) {
  std::vector<float> exact;
  std::vector<double> truth;
  if (c.is_float()) {
    truth = expected_float(c);
  } else {
    exact = expected_integer(c);
  }
  for (const Kernels* kernels : instruction_sets()) {
    const std::string where = c.name() + " " + kernels->isa;
    const std::vector<uint16_t> out = run(c, *kernels, test::kSerial);
    CHECK_EQ_AT(run(c, *kernels, test::kThreaded) == out, true, where);
    if (!c.is_float()) {
      int64_t wrong = 0;
      for (size_t i = 0; i < out.size(); ++i) wrong += !same(widened(out[i]), exact[i]);
      CHECK_EQ_AT(wrong, int64_t{0}, where);
    } else {
      // Each output within bfloat16's rounding of itself and float32's of the terms.
      double difference = 0, norm = 0;
      for (size_t i = 0; i < out.size(); ++i) {
        const double d = widened(out[i]) - truth[i];
        difference += d * d;
        norm += truth[i] * truth[i];
      }
      const double bound = out.size() >= 64 ? 3e-3 : 0x1p-8 + 1e-5;
      CHECK_EQ_AT(std::sqrt(difference) <= bound * std::sqrt(norm), true, where);
    }
  }
}

void shapes_and_forms() {
  const int64_t ms[] = {1, 2, 3, 17, 129};
  const int64_t ns[] = {1, 4, 5, 31, 33};
  for (int op_index = 0; op_index < kGemmOpCount; ++op_index) {
    const auto op = static_cast<GemmOp>(op_index);
    const bool grouped =
        op == GemmOp::kW4A8Group || op == GemmOp::kW4A8Multiplier || op == GemmOp::kW4A16;
    const int64_t unit = b_bits(op) == 8 ? 16 : 32;
    int form = 0;
    for (const int64_t M : ms) {
      for (const int64_t N : ns) {
        Options options;
        options.a_zero = form & 1;
        options.b_zero = form & 2;
        options.bias = form & 4;
        options.one_scale = form % 5 == 0;
        options.scale = form % 3 == 0   ? DType::kFloat32
                        : form % 3 == 1 ? DType::kBFloat16
                                        : DType::kFloat16;
        options.zero = form % 2 ? DType::kInt8 : DType::kInt32;
        options.pad = form % 4 == 0 ? 32 : 0;
        const int64_t group = grouped ? int64_t{32} << form % 3 : 0;
        const int64_t K = grouped ? group * (1 + form % 11) : unit * (1 + form * 3 % 70);
        check_case(make_case(op, M, N, K, group, options));
        ++form;
      }
    }
  }
}

// K on both sides of every block edge, and groups that are longer than a block.
void long_k() {
  for (const int64_t K : {1008, 1024, 1040, 2048, 3088}) {
    check_case(make_case(GemmOp::kW8A8, 5, 7, K, 0, {true, true}));
  }
  for (const GemmOp op : {GemmOp::kW4A8Group, GemmOp::kW4A8Multiplier, GemmOp::kW4A16}) {
    for (const auto& [K, group] : {std::pair{1152, 128}, {1280, 1280}, {2304, 768}, {576, 96}}) {
      check_case(make_case(op, 3, 6, K, group, {true, true, true}));
    }
  }
}

// Zero points that 16 bits cannot take in are exact too, while the sum fits int32.
void wide_zero_points() {
  for (const GemmOp op :
       {GemmOp::kW8A8, GemmOp::kW4A4, GemmOp::kW4A8, GemmOp::kW4A8Group, GemmOp::kW4A8Multiplier}) {
    Options options{true, false, true};
    options.zero_reach = 100000;
    const int64_t group = op == GemmOp::kW4A8Group || op == GemmOp::kW4A8Multiplier ? 32 : 0;
    check_case(make_case(op, 3, 5, 64, group, options));
    if (op == GemmOp::kW4A8Multiplier) continue;
    std::swap(options.a_zero, options.b_zero);
    check_case(make_case(op, 3, 5, 64, group, options));
  }
}

// Both ends of the integer range at the largest K. The all-lowest product is 2^31, one more than
// int32 holds, and must not come out negative.
void extreme_sums() {
  for (const int value : {-128, 127}) {
    Case c = make_case(GemmOp::kW8A8, 2, 9, 131072, 0, {});
    std::fill(c.a_values.begin(), c.a_values.end(), int8_t{-128});
    std::fill(c.b_values.begin(), c.b_values.end(), static_cast<int8_t>(value));
    c.a.assign(c.a_values.begin(), c.a_values.end());
    c.b.assign(c.b_values.begin(), c.b_values.end());
    check_case(c);
  }
  Case c = make_case(GemmOp::kW8A8, 2, 5, 33024, 0, {true, true});
  std::fill(c.a_values.begin(), c.a_values.end(), int8_t{127});
  std::fill(c.b_values.begin(), c.b_values.end(), int8_t{-128});
  c.a.assign(c.a_values.begin(), c.a_values.end());
  c.b.assign(c.b_values.begin(), c.b_values.end());
  c.a_zero = random_zeros(DType::kInt32, 2, -128, -128);
  c.b_zero = random_zeros(DType::kInt32, 5, 127, 127);
  check_case(c);
}

// A token's outputs do not depend on the tokens beside it.
void batch_invariance() {
  for (int op_index = 0; op_index < kGemmOpCount; ++op_index) {
    const auto op = static_cast<GemmOp>(op_index);
    const int64_t group = op_index >= static_cast<int>(GemmOp::kW4A8Group) ? 64 : 0;
    const Case c = make_case(op, 130, 37, 1088, group, {true, true, true});
    for (const Kernels* kernels : instruction_sets()) {
      const std::vector<uint16_t> all = run(c, *kernels, test::kSerial);
      for (const int64_t m : {0, 1, 64, 127, 128, 129}) {
        Case one = c;
        one.M = 1;
        one.a.assign(c.a.begin() + m * c.lda, c.a.begin() + (m + 1) * c.lda);
        const auto take = [&](Values& values) {
          if (!values.present()) return;
          const int64_t size = size_of(values.dtype);
          values.bytes = {values.bytes.begin() + m * size, values.bytes.begin() + (m + 1) * size};
        };
        take(one.a_scale);
        take(one.a_zero);
        const std::vector<uint16_t> row = run(one, *kernels, test::kThreaded);
        CHECK_EQ_AT(std::equal(row.begin(), row.end(), all.begin() + m * c.N), true,
                    c.name() << " row " << m << ' ' << kernels->isa);
      }
    }
  }
}

// Sums halfway between two bfloat16 numbers: 256 + 2n + 1 lies between even and odd last places.
void ties_go_to_even() {
  Case c = make_case(GemmOp::kW8A8, 3, 19, 16, 0, {});
  std::fill(c.a_values.begin(), c.a_values.end(), int8_t{0});
  std::fill(c.b_values.begin(), c.b_values.end(), int8_t{0});
  for (int64_t m = 0; m < c.M; ++m) {
    c.a_values[m * c.K] = static_cast<int8_t>(m == 1 ? -16 : 16);
    c.a_values[m * c.K + 1] = static_cast<int8_t>(m == 1 ? -1 : 1);
  }
  for (int64_t n = 0; n < c.N; ++n) {
    c.b_values[n * c.K] = 16;
    c.b_values[n * c.K + 1] = static_cast<int8_t>(2 * n + 1);
  }
  c.a.assign(c.a_values.begin(), c.a_values.end());
  c.b.assign(c.b_values.begin(), c.b_values.end());
  const float one = 1.0f;
  for (Values* scale : {&c.a_scale, &c.b_scale}) {
    for (size_t i = 0; i < scale->exact.size(); ++i) {
      std::memcpy(scale->bytes.data() + i * sizeof(one), &one, sizeof(one));
      scale->exact[i] = 1;
    }
  }
  check_case(c);
}

// A bias that cancels the rounded product leaves exactly 0; a fused multiply-add would leave what
// the rounding cut off.
void epilogue_steps_are_not_fused() {
  const Case without = make_case(GemmOp::kW8A8, 1, 37, 64, 0, {});
  Case c = without;
  c.bias.dtype = DType::kFloat32;
  for (int64_t n = 0; n < c.N; ++n) {
    int64_t sum = 0;
    for (int64_t k = 0; k < c.K; ++k) sum += c.a_values[k] * c.b_values[n * c.K + k];
    volatile float t = static_cast<float>(sum);
    t = t * static_cast<float>(c.b_scale.exact[n]);
    t = t * c.a_scale_at(0);
    append(c.bias, -t, -static_cast<double>(t));
  }
  for (const Kernels* kernels : instruction_sets()) {
    for (const uint16_t bits : run(c, *kernels, test::kSerial)) CHECK_EQ(bits, uint16_t{0});
  }
}

// The same across groups: the first adds fl(49 * s), the second takes 49 * s away.
void group_steps_are_not_fused() {
  for (const int64_t M : {1, 6}) {
    Case c = make_case(GemmOp::kW4A8Group, M, 8, 64, 32, {});
    std::fill(c.a_values.begin(), c.a_values.end(), int8_t{0});
    std::fill(c.b_values.begin(), c.b_values.end(), int8_t{0});
    for (int64_t m = 0; m < M; ++m) c.a_values[m * 64] = 1, c.a_values[m * 64 + 32] = 7;
    for (int64_t n = 0; n < c.N; ++n) {
      c.b_values[n * 64] = 1, c.b_values[n * 64 + 32] = -7;
      volatile float product = static_cast<float>(c.b_scale.exact[n * 2 + 1]);
      product = product * 49.0f;
      const float first = product;
      std::memcpy(c.b_scale.bytes.data() + n * 2 * sizeof(first), &first, sizeof(first));
      c.b_scale.exact[n * 2] = first;
    }
    c.a.assign(c.a_values.begin(), c.a_values.end());
    c.b = pack(c.b_values);
    for (const Kernels* kernels : instruction_sets()) {
      for (const uint16_t bits : run(c, *kernels, test::kSerial)) CHECK_EQ(bits, uint16_t{0});
    }
  }
}

// NaN and Inf reach the output; NaN always with the same bits.
void not_finite() {
  for (const Kernels* kernels : instruction_sets()) {
    Case c = make_case(GemmOp::kW8A8, 2, 19, 64, 0, {});
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const float infinity = std::numeric_limits<float>::infinity();
    std::memcpy(c.a_scale.bytes.data(), &nan, sizeof(nan));
    std::memcpy(c.b_scale.bytes.data() + 3 * sizeof(float), &infinity, sizeof(infinity));
    const std::vector<uint16_t> out = run(c, *kernels, test::kSerial);
    for (int64_t n = 0; n < c.N; ++n) CHECK_EQ(out[n], uint16_t{0x7FFF});
    CHECK(std::isinf(widened(out[c.N + 3])));
    CHECK(std::isfinite(widened(out[c.N + 2])));
  }
}

void empty_and_refused() {
  Case c = make_case(GemmOp::kW8A8, 0, 8, 32, 0, {});
  CHECK_EQ(run(c, cpu::generic_kernels(), test::kSerial).size(), size_t{0});

  uint16_t out[8];
  c = make_case(GemmOp::kW4A8Group, 1, 8, 64, 32, {});
  GemmArguments g = c.arguments(out);
  g.group_size = 24;
  CHECK(cpu::gemm(g, test::kSerial).code == StatusCode::kNotSupported);
  g = c.arguments(out);
  g.K = 40;
  CHECK(cpu::gemm(g, test::kSerial).code == StatusCode::kInvalidArgument);
  g = c.arguments(nullptr);
  CHECK(cpu::gemm(g, test::kSerial).code == StatusCode::kInvalidArgument);
  g = c.arguments(out);
  g.op = GemmOp::kW4A8Multiplier;
  CHECK(cpu::gemm(g, test::kSerial).code == StatusCode::kInvalidArgument);
}

void dispatch() {
  CHECK_EQ(std::string(cpu::gemm_isa()), std::string(instruction_sets().back()->isa));
  const Case c = make_case(GemmOp::kW8A8, 5, 9, 64, 0, {});
  std::vector<uint16_t> out(c.M * c.N);
  CHECK(cpu::gemm(c.arguments(out.data()), test::kSerial).ok());
  CHECK(out == run(c, cpu::generic_kernels(), test::kSerial));
}

}  // namespace
}  // namespace qutlass

int main() {
  qutlass::shapes_and_forms();
  qutlass::long_k();
  qutlass::wide_zero_points();
  qutlass::extreme_sums();
  qutlass::batch_invariance();
  qutlass::ties_go_to_even();
  qutlass::epilogue_steps_are_not_fused();
  qutlass::group_steps_are_not_fused();
  qutlass::not_finite();
  qutlass::empty_and_refused();
  qutlass::dispatch();
  std::cout << "instruction sets:";
  for (const auto* kernels : qutlass::instruction_sets()) std::cout << ' ' << kernels->isa;
  std::cout << std::endl;
  return qutlass::test::finish();
}
