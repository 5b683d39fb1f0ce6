// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "common/nibble.h"
#include "cpu/convert.h"
#include "quant/quant.h"
#include "threads.h"

namespace qutlass {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::mt19937 rng(21);

int uniform(int low, int high) { return std::uniform_int_distribution<int>(low, high)(rng); }

bool same(float a, float b) { return std::isnan(a) ? std::isnan(b) : a == b; }

std::vector<int8_t> unpacked(const std::vector<uint8_t>& packed, int64_t rows, int64_t cols) {
  std::vector<int8_t> values(rows * cols);
  for (int64_t i = 0; i < rows * cols; ++i) {
    values[i] = int4_at(packed.data() + i / cols * (cols / 2), i % cols);
  }
  return values;
}

// -------------------------------------------------------------------------------------------------
// Conversions

void float16_widens_by_its_definition() {
  for (int bits = 0; bits < 65536; ++bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    double wanted =
        exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    if (exponent == 31) wanted = fraction ? kNaN : kInfinity;
    if (bits & 0x8000) wanted = -wanted;
    const float got = cpu::float16_to_float(static_cast<uint16_t>(bits));
    CHECK_EQ_AT(same(got, static_cast<float>(wanted)), true, bits);
    if (!std::isnan(got)) {
      CHECK_EQ_AT(cpu::float_to_float16(got), bits, bits);
      CHECK_EQ_AT(std::signbit(got), (bits & 0x8000) != 0, bits);
    }
  }
}

// Rounds `x` to `digits` significant bits, not below 2^least, half to even.
double rounded(double x, int digits, int least) {
  int exponent;
  const double fraction = std::frexp(x, &exponent);
  const int kept = std::min(digits, exponent - least);
  return std::ldexp(std::nearbyint(std::ldexp(fraction, kept)), exponent - kept);
}

void floats_round_to_nearest_even() {
  std::uniform_int_distribution<uint32_t> any;
  for (int i = 0; i < 200000; ++i) {
    // Every other one has the low bits of a tie or of its neighbours.
    const uint32_t bits = i % 2 ? any(rng) : (any(rng) & ~0xFFFFu) | (0x8000u + uniform(-1, 1));
    const float x = cpu::float_of(bits);
    if (std::isnan(x)) {
      CHECK_EQ(cpu::float_to_bfloat16(x), uint16_t{0x7FFF});
      CHECK_EQ(cpu::float_to_float16(x), uint16_t{0x7FFF});
      continue;
    }
    if (std::isinf(x)) continue;
    const double bf16 = rounded(x, 8, -133), half = rounded(x, 11, -24);
    const float wanted_bf16 = static_cast<float>(bf16);  // beyond float32: Inf, as bfloat16
    const float wanted_half =
        std::abs(half) >= 65536 ? std::copysign(kInfinity, x) : static_cast<float>(half);
    CHECK_EQ_AT(cpu::bfloat16_to_float(cpu::float_to_bfloat16(x)), wanted_bf16, bits);
    CHECK_EQ_AT(cpu::float16_to_float(cpu::float_to_float16(x)), wanted_half, bits);
  }
  CHECK_EQ(cpu::float_to_float16(65519.996f), uint16_t{0x7BFF});
  CHECK_EQ(cpu::float_to_float16(65520.0f), uint16_t{0x7C00});
  CHECK_EQ(cpu::float_to_float16(-kInfinity), uint16_t{0xFC00});
  CHECK_EQ(cpu::float_to_bfloat16(kInfinity), uint16_t{0x7F80});
}

// -------------------------------------------------------------------------------------------------
// Quantize

struct Expected {
  std::vector<int> q;
  std::vector<float> scale;
  std::vector<int> zero;
};

// The contract one value at a time: float32 steps, the current rounding mode (half to even).
struct Setting {
  int bits = 8;
  bool symmetric = true;
  int64_t group = 0;
  bool per_tensor = false;
  std::vector<float> scale;   // given: one, or one a group
  std::vector<int32_t> zero;
};

Expected expected(const std::vector<float>& x, int64_t rows, int64_t cols, const Setting& s) {
  const int top = s.bits == 8 ? 127 : 7;
  const int low = s.symmetric ? -top : -top - 1;
  const int64_t span = s.per_tensor ? rows * cols : s.group;
  Expected e;
  for (int64_t begin = 0; begin < rows * cols; begin += span) {
    float scale;
    int zero = 0;
    bool good = true;
    if (!s.scale.empty()) {
      const size_t entry = s.scale.size() == 1 ? 0 : begin / span;
      scale = s.scale[entry];
      if (!s.zero.empty()) zero = s.zero[entry];
    } else {
      float least = 0, most = 0;
      bool finite = true;
      for (int64_t i = begin; i < begin + span; ++i) {
        finite = finite && std::isfinite(x[i]);
        least = std::min(least, x[i]);
        most = std::max(most, x[i]);
      }
      scale = s.symmetric ? std::max(-least, most) / static_cast<float>(top)
                          : (most - least) / static_cast<float>(2 * top + 1);
      good = finite && std::isfinite(scale);
      if (!good) {
        scale = kNaN;
      } else if (scale == 0) {
        scale = 1;
        good = false;  // q and zero are 0
      } else if (!s.symmetric) {
        const float z = std::nearbyint(static_cast<float>(low) - least / scale);
        zero = static_cast<int>(
            std::min(std::max(z, static_cast<float>(low)), static_cast<float>(top)));
      }
    }
    for (int64_t i = begin; i < begin + span; ++i) {
      const float quotient = x[i] / scale;
      double q = zero;
      if (!std::isnan(quotient)) q += std::nearbyint(static_cast<double>(quotient));
      q = std::min<double>(std::max<double>(q, low), top);
      e.q.push_back(good ? static_cast<int>(q) : 0);
    }
    e.scale.push_back(scale);
    e.zero.push_back(zero);
  }
  return e;
}

struct Input {
  DType dtype;
  int64_t rows, cols, stride;
  std::vector<unsigned char> bytes;
  std::vector<float> x;  // what the bytes mean, dense
};

Input make_input(DType dtype, int64_t rows, int64_t cols, int64_t pad,
                 const std::vector<float>& x) {
  Input in{dtype, rows, cols, cols + pad, {}, {}};
  const int size = size_of(dtype);
  in.bytes.assign(rows * in.stride * size + 1, 0x7F);
  for (int64_t i = 0; i < rows * cols; ++i) {
    unsigned char* at = in.bytes.data() + (i / cols * in.stride + i % cols) * size;
    float value = x[i];
    if (dtype == DType::kFloat32) {
      std::memcpy(at, &value, 4);
    } else {
      const uint16_t half =
          dtype == DType::kBFloat16 ? cpu::float_to_bfloat16(value) : cpu::float_to_float16(value);
      std::memcpy(at, &half, 2);
      value =
          dtype == DType::kBFloat16 ? cpu::bfloat16_to_float(half) : cpu::float16_to_float(half);
    }
    in.x.push_back(value);
  }
  return in;
}

void check_quantize(const Input& in, const Setting& s, const ParallelRunner& runner,
                    const std::string& where) {
  const Expected want = expected(in.x, in.rows, in.cols, s);
  std::vector<uint8_t> q(in.rows * in.cols * s.bits / 8 + 32, 0xEE);
  std::vector<float> scale(want.scale.size() + 1, -5.0f);
  std::vector<int32_t> zero(want.zero.size() + 1, -555);
  QuantizeArguments args;
  args.x = in.bytes.data();
  args.x_dtype = in.dtype;
  args.rows = in.rows, args.cols = in.cols, args.x_stride = in.stride;
  args.bits = s.bits;
  args.symmetric = s.symmetric;
  args.group_size = s.group;
  args.per_tensor = s.per_tensor;
  if (!s.scale.empty()) args.scale_in = {s.scale.data(), DType::kFloat32, s.scale.size() > 1};
  if (!s.zero.empty()) args.zero_in = {s.zero.data(), DType::kInt32, s.zero.size() > 1};
  args.q = q.data();
  args.scale = scale.data();
  args.zero = s.symmetric ? nullptr : zero.data();
  CHECK(cpu::quantize(args, runner).ok());

  const size_t used = q.size() - 32;
  for (size_t i = used; i < q.size(); ++i) CHECK_EQ_AT(q[i], uint8_t{0xEE}, where);
  CHECK_EQ_AT(scale.back(), -5.0f, where);
  CHECK_EQ_AT(zero.back(), -555, where);
  q.resize(used);
  std::vector<int8_t> values(q.begin(), q.end());
  if (s.bits == 4) values = unpacked(q, in.rows, in.cols);
  int64_t wrong = 0;
  for (size_t i = 0; i < want.q.size(); ++i) wrong += values[i] != want.q[i];
  CHECK_EQ_AT(wrong, int64_t{0}, where);
  for (size_t i = 0; i < want.scale.size(); ++i) {
    CHECK_EQ_AT(same(scale[i], want.scale[i]), true, where << " scale " << i);
    if (!s.symmetric) CHECK_EQ_AT(zero[i], want.zero[i], where << " zero " << i);
  }
}

std::vector<float> random_values(int64_t count, float magnitude) {
  std::vector<float> x(count);
  for (float& v : x) v = static_cast<float>(std::normal_distribution<double>(0.3)(rng)) * magnitude;
  return x;
}

void quantize_all_forms() {
  int form = 0;
  for (const int bits : {8, 4}) {
    for (const int64_t cols : {32, 96, 320}) {
      for (const int64_t rows : {1, 5, 300}) {
        for (const bool symmetric : {true, false}) {
          for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
            for (const int given : {0, 1, 2}) {
              ++form;
              Setting s;
              s.bits = bits;
              s.symmetric = symmetric;
              s.per_tensor = bits == 8 && form % 4 == 0;
              s.group = bits == 4 && form % 3 ? 32 : bits == 4 && form % 2 ? cols / 2 : cols;
              const int64_t groups = s.per_tensor ? 1 : rows * cols / s.group;
              for (int64_t i = 0; given && i < (given == 1 ? 1 : groups); ++i) {
                s.scale.push_back(std::uniform_real_distribution<float>(0.001f, 0.1f)(rng));
                if (!symmetric) s.zero.push_back(uniform(-8, 7));
              }
              std::vector<float> x = random_values(rows * cols, form % 5 == 0 ? 1e-3f : 2.0f);
              if (form % 3 == 1) {  // halves: ties at every other step
                for (float& v : x) v = static_cast<float>(uniform(-254, 254)) * 0.5f;
                x[0] = 127;
              }
              const Input in = make_input(dtype, rows, cols, form % 2 ? 0 : 3, x);
              const std::string where = "form " + std::to_string(form);
              check_quantize(in, s, form % 2 ? test::kThreaded : test::kSerial, where);
            }
          }
        }
      }
    }
  }
}

// A row each: zeros, NaN, both infinities, a range that overflows, one whose scale underflows, and
// the largest and smallest floats.
void quantize_degenerate_rows() {
  constexpr int64_t kCols = 64;
  const float great = std::numeric_limits<float>::max();
  const float tiny = std::numeric_limits<float>::denorm_min();
  const std::vector<std::vector<float>> starts = {{0},
                                                  {-0.0f, 0},
                                                  {1, kNaN},
                                                  {1, -kNaN, 2},
                                                  {kInfinity, 1},
                                                  {-kInfinity, 1},
                                                  {great, -great},
                                                  {great},
                                                  {tiny},
                                                  {-tiny, 40 * tiny},
                                                  {300 * tiny, -tiny},
                                                  {-1},
                                                  {-3, -2},
                                                  {5, 4}};
  std::vector<float> x;
  for (const std::vector<float>& start : starts) {
    std::vector<float> row = start;
    row.resize(kCols, start.back());
    x.insert(x.end(), row.begin(), row.end());
  }
  const auto rows = static_cast<int64_t>(starts.size());
  for (const bool symmetric : {true, false}) {
    for (const int bits : {8, 4}) {
      Setting s;
      s.bits = bits;
      s.symmetric = symmetric;
      s.group = kCols;
      const Input in = make_input(DType::kFloat32, rows, kCols, 0, x);
      check_quantize(in, s, test::kSerial, "degenerate");
      s.scale = {0.25f};
      if (!symmetric) s.zero = {3};
      check_quantize(in, s, test::kSerial, "degenerate, static");
      s.scale = {kNaN};
      check_quantize(in, s, test::kSerial, "degenerate, scale NaN");
    }
    Setting s;
    s.symmetric = symmetric;
    s.group = kCols;
    s.per_tensor = true;
    check_quantize(make_input(DType::kFloat32, rows, kCols, 0, x), s, test::kThreaded,
                   "NaN tensor");
  }
}

void quantize_nothing() {
  float scale = -1;
  int32_t zero = -1;
  QuantizeArguments args;
  args.x_dtype = DType::kFloat32;
  args.cols = args.group_size = 32;
  args.per_tensor = true;
  args.symmetric = false;
  args.scale = &scale;
  args.zero = &zero;
  CHECK(cpu::quantize(args, test::kSerial).ok());
  CHECK_EQ(scale, 1.0f);
  CHECK_EQ(zero, 0);
}

// -------------------------------------------------------------------------------------------------
// Dequantize, pack, unpack, sums

void dequantize_all_forms() {
  constexpr int64_t kRows = 7, kCols = 96;
  for (const int bits : {8, 4}) {
    std::vector<uint8_t> q(kRows * kCols * bits / 8);
    for (uint8_t& v : q) v = static_cast<uint8_t>(uniform(0, 255));
    std::vector<int8_t> values(q.begin(), q.end());
    if (bits == 4) values = unpacked(q, kRows, kCols);
    for (const int64_t group : {kCols, int64_t{32}}) {
      for (const DType zero_dtype : {DType::kNone, DType::kFloat32, DType::kInt8}) {
        for (const DType out_dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
          for (const int64_t stride : {0, 1}) {
            const int64_t entries = kRows * kCols / group;
            std::vector<float> scale(entries), zero(entries);
            std::vector<int8_t> zero_int8(entries);
            for (int64_t i = 0; i < entries; ++i) {
              scale[i] = std::uniform_real_distribution<float>(0.01f, 1.0f)(rng);
              zero_int8[i] = static_cast<int8_t>(uniform(-8, 7));
              zero[i] = zero_dtype == DType::kInt8 ? zero_int8[i]
                                                   : static_cast<float>(uniform(-80, 70)) / 16;
            }
            std::vector<unsigned char> out(kRows * kCols * size_of(out_dtype));
            DequantizeArguments args;
            args.q = q.data();
            args.rows = kRows, args.cols = kCols;
            args.bits = bits;
            args.group_size = group;
            args.scale = {scale.data(), DType::kFloat32, stride};
            if (zero_dtype == DType::kInt8) args.zero = {zero_int8.data(), zero_dtype, stride};
            if (zero_dtype == DType::kFloat32) args.zero = {zero.data(), zero_dtype, stride};
            args.out = out.data();
            args.out_dtype = out_dtype;
            CHECK(cpu::dequantize(args, stride ? test::kThreaded : test::kSerial).ok());
            std::vector<float> got(kRows * kCols);
            cpu::load_floats(out.data(), out_dtype, 0, kRows * kCols, got.data());
            for (int64_t i = 0; i < kRows * kCols; ++i) {
              const int64_t entry = stride ? i / group : 0;
              const float shifted =
                  static_cast<float>(values[i]) - (zero_dtype == DType::kNone ? 0.0f : zero[entry]);
              const float exact = shifted * scale[entry];
              const float wanted = out_dtype == DType::kFloat32 ? exact
                                   : out_dtype == DType::kBFloat16
                                       ? static_cast<float>(rounded(exact, 8, -133))
                                       : static_cast<float>(rounded(exact, 11, -24));
              CHECK_EQ(got[i], wanted);
            }
          }
        }
      }
    }
  }
}

template <typename T>
void pack_and_unpack(DType dtype) {
  constexpr int64_t kRows = 5, kCols = 96, kStride = 100;
  const int low = std::numeric_limits<T>::min() < 0 ? -8 : 0;
  std::vector<T> w(kRows * kStride, T{99});
  for (int64_t i = 0; i < kRows * kCols; ++i) {
    w[i / kCols * kStride + i % kCols] = static_cast<T>(uniform(low, 7));
  }
  std::vector<uint8_t> packed(kRows * kCols / 2);
  int64_t first_bad = -1;
  PackArguments args;
  args.w = w.data();
  args.w_dtype = dtype;
  args.rows = kRows, args.cols = kCols, args.w_stride = kStride;
  args.packed = packed.data();
  args.first_bad = &first_bad;
  CHECK(cpu::pack_int4(args, test::kThreaded).ok());
  CHECK_EQ(first_bad, std::numeric_limits<int64_t>::max());
  const std::vector<int8_t> values = unpacked(packed, kRows, kCols);
  std::vector<int8_t> out(kRows * kCols);
  CHECK(cpu::unpack_int4({packed.data(), kRows, kCols, out.data()}, test::kThreaded).ok());
  for (int64_t i = 0; i < kRows * kCols; ++i) {
    CHECK_EQ(static_cast<int64_t>(w[i / kCols * kStride + i % kCols]), int64_t{values[i]});
    CHECK_EQ(out[i], values[i]);
  }

  // The first of several bad values is named, and none is written as something else than an end.
  w[1 * kStride + 17] = std::numeric_limits<T>::max();
  w[3 * kStride + 2] = static_cast<T>(8);
  if (low < 0) w[2 * kStride + 5] = static_cast<T>(-9);
  CHECK(cpu::pack_int4(args, test::kThreaded).ok());
  CHECK_EQ(first_bad, int64_t{kCols + 17});
  CHECK_EQ(int4_at(packed.data() + kCols / 2, 17), int8_t{7});
  if (low < 0) CHECK_EQ(int4_at(packed.data() + 2 * kCols / 2, 5), int8_t{-8});
}

void sums() {
  constexpr int64_t kRows = 6, kCols = 192;
  for (const int bits : {8, 4}) {
    std::vector<uint8_t> w(kRows * kCols * bits / 8);
    for (uint8_t& v : w) v = static_cast<uint8_t>(uniform(0, 255));
    std::vector<int8_t> values(w.begin(), w.end());
    if (bits == 4) values = unpacked(w, kRows, kCols);
    for (const int64_t group : {kCols, int64_t{64}, int64_t{32}}) {
      std::vector<int32_t> got(kRows * kCols / group);
      const WeightSumsArguments args = {w.data(), bits, kRows, kCols, group, got.data()};
      CHECK(cpu::weight_sums(args, test::kThreaded).ok());
      for (size_t i = 0; i < got.size(); ++i) {
        int32_t wanted = 0;
        for (int64_t k = 0; k < group; ++k) wanted += values[i * group + k];
        CHECK_EQ(got[i], wanted);
      }
    }
  }
}

void refusals() {
  QuantizeArguments quantize;
  quantize.x_dtype = DType::kFloat32;
  quantize.rows = 1, quantize.cols = 40, quantize.group_size = 40;
  quantize.bits = 4;
  CHECK(cpu::quantize(quantize, test::kSerial).code == StatusCode::kInvalidArgument);
  quantize.bits = 8;
  quantize.group_size = 7;
  CHECK(cpu::quantize(quantize, test::kSerial).code == StatusCode::kInvalidArgument);
  quantize.group_size = 40;
  quantize.x_dtype = DType::kInt8;
  CHECK(cpu::quantize(quantize, test::kSerial).code == StatusCode::kInvalidArgument);
  PackArguments pack;
  pack.rows = 1, pack.cols = 32;
  pack.w_dtype = DType::kFloat32;
  CHECK(cpu::pack_int4(pack, test::kSerial).code == StatusCode::kInvalidArgument);
  pack.w_dtype = DType::kInt8;
  pack.cols = 33;
  CHECK(cpu::pack_int4(pack, test::kSerial).code == StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace qutlass

int main() {
  using namespace qutlass;
  float16_widens_by_its_definition();
  floats_round_to_nearest_even();
  quantize_all_forms();
  quantize_degenerate_rows();
  quantize_nothing();
  dequantize_all_forms();
  pack_and_unpack<int8_t>(DType::kInt8);
  pack_and_unpack<uint8_t>(DType::kUInt8);
  pack_and_unpack<int16_t>(DType::kInt16);
  pack_and_unpack<int32_t>(DType::kInt32);
  pack_and_unpack<int64_t>(DType::kInt64);
  sums();
  refusals();
  return test::finish();
}
