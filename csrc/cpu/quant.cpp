// SPDX-License-Identifier: Apache-2.0
#include "cpu/strict_float.h"
//
#include "quant/quant.h"

#include <algorithm>
#include <atomic>
#include <limits>

#include "common/nibble.h"
#include "cpu/convert.h"
#include "cpu/scratch.h"

// Plain loops, each over one row in a form that compilers vectorize, threads over rows.

namespace qutlass::cpu {
namespace {

// Elements worth a thread's waking.
constexpr int64_t kGrainElements = 32768;

constexpr Status kNoMemory = Status::unsupported("cpu quant: out of memory");

int64_t grain_for(int64_t cols) {
  return std::max<int64_t>(1, kGrainElements / std::max<int64_t>(cols, 1));
}

// The largest magnitudes above and below zero, as the bits of a non-negative float: these order
// like integers, a NaN is above Inf, and integer maxima need no special case for it.
struct Range {
  int32_t high = 0;
  int32_t low = 0;

  void include(const float* x, int64_t count, bool symmetric) {
    int32_t above = high, below = low;
    if (symmetric) {
      for (int64_t i = 0; i < count; ++i) {
        above = std::max(above, static_cast<int32_t>(bits_of(x[i]) & 0x7FFFFFFF));
      }
    } else {
      for (int64_t i = 0; i < count; ++i) {
        const auto bits = static_cast<int32_t>(bits_of(x[i]));
        above = std::max(above, bits);
        below = std::max(below, bits < 0 ? bits & 0x7FFFFFFF : 0);
      }
    }
    high = above;
    low = below;
  }
};

struct Scaling {
  float scale = 1;
  int32_t zero = 0;
};

Scaling scaling_of(const Range& range, int top, bool symmetric) {
  const float high = float_of(static_cast<uint32_t>(range.high));
  const float low = -float_of(static_cast<uint32_t>(range.low));
  Scaling s;
  s.scale =
      symmetric ? high / static_cast<float>(top) : (high - low) / static_cast<float>(2 * top + 1);
  if (!(s.scale <= std::numeric_limits<float>::max())) {
    s.scale = std::numeric_limits<float>::quiet_NaN();
  } else if (s.scale == 0) {
    s.scale = 1;
  } else if (!symmetric) {
    // Its magnitude is at most 2 * top + 2, far inside what the sum below rounds rightly.
    const float ends = static_cast<float>(-top - 1);
    constexpr float kRound = 12582912.0f;
    const float zero = ((ends - low / s.scale) + kRound) - kRound;
    s.zero = std::clamp(static_cast<int32_t>(zero), -top - 1, top);
  }
  return s;
}

// q = clamp(rint(x / scale) + zero, low, high). A NaN quotient becomes the zero point. Selections
// are made on the bits of the magnitude: compilers do not vectorize those on floats that may be
// NaN.
void encode(const float* x, int64_t count, Scaling s, int low, int high, int8_t* q) {
  // Adding and subtracting 1.5 * 2^23 rounds to an integer, half to even, up to 2^22; a quotient or
  // a zero point that is cut there is far outside every integer format.
  constexpr float kRound = 12582912.0f;
  constexpr int32_t kInfinity = 0x7F800000;
  constexpr int32_t kFar = 0x4A800000;  // 2^22
  constexpr int32_t kZeroLimit = 1 << 21;
  const float scale = s.scale;
  const int32_t zero = std::clamp(s.zero, -kZeroLimit, kZeroLimit);
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = bits_of(x[i] / scale);
    auto magnitude = static_cast<int32_t>(bits & 0x7FFFFFFF);
    magnitude = magnitude > kInfinity ? 0 : magnitude;
    magnitude = std::min(magnitude, kFar);
    const float v = float_of(static_cast<uint32_t>(magnitude) | (bits & 0x80000000));
    const int32_t steps = static_cast<int32_t>((v + kRound) - kRound) + zero;
    q[i] = static_cast<int8_t>(std::min(std::max(steps, low), high));
  }
}

void pack_row(const int8_t* q, int64_t cols, uint8_t* packed) {
  for (int64_t k = 0; k < cols; k += kInt4Block, q += kInt4Block, packed += kInt4BlockBytes) {
    for (int i = 0; i < kInt4BlockBytes; ++i) packed[i] = int4_pair(q[i], q[i + kInt4BlockBytes]);
  }
}

void unpack_row(const uint8_t* packed, int64_t cols, int8_t* q) {
  for (int64_t k = 0; k < cols; k += kInt4Block, q += kInt4Block, packed += kInt4BlockBytes) {
    for (int i = 0; i < kInt4BlockBytes; ++i) {
      q[i] = int4_low(packed[i]);
      q[i + kInt4BlockBytes] = int4_high(packed[i]);
    }
  }
}

void round_row(const float* x, int64_t count, DType dtype, void* out) {
  if (dtype == DType::kBFloat16) {
    auto* halves = static_cast<uint16_t*>(out);
    for (int64_t i = 0; i < count; ++i) halves[i] = float_to_bfloat16(x[i]);
  } else if (dtype == DType::kFloat16) {
    auto* halves = static_cast<uint16_t*>(out);
    for (int64_t i = 0; i < count; ++i) halves[i] = float_to_float16(x[i]);
  } else {
    std::memcpy(out, x, sizeof(float) * static_cast<size_t>(count));
  }
}

template <typename T>
int64_t pack_rows(const PackArguments& args, int64_t begin, int64_t end, int8_t* row) {
  constexpr T kLow = static_cast<T>(std::numeric_limits<T>::min() < 0 ? -8 : 0);
  constexpr T kHigh = 7;
  const int64_t cols = args.cols;
  int64_t first_bad = std::numeric_limits<int64_t>::max();
  for (int64_t r = begin; r < end; ++r) {
    const T* w = static_cast<const T*>(args.w) + r * args.w_stride;
    int bad = 0;
    for (int64_t k = 0; k < cols; ++k) {
      const T value = std::min(std::max(w[k], kLow), kHigh);
      bad |= value != w[k];
      row[k] = static_cast<int8_t>(value);
    }
    if (bad && first_bad == std::numeric_limits<int64_t>::max()) {
      int64_t k = 0;
      while (row[k] == static_cast<int64_t>(w[k])) ++k;
      first_bad = r * cols + k;
    }
    pack_row(row, cols, args.packed + r * (cols / 2));
  }
  return first_bad;
}

void raise(std::atomic<int32_t>& greatest, int32_t value) {
  int32_t seen = greatest.load();
  while (value > seen && !greatest.compare_exchange_weak(seen, value)) {
  }
}

void lower(std::atomic<int64_t>& least, int64_t value) {
  int64_t seen = least.load();
  while (value < seen && !least.compare_exchange_weak(seen, value)) {
  }
}

}  // namespace

Status quantize(const QuantizeArguments& args, const ParallelRunner& runner) {
  if (args.bits != 8 && args.bits != 4) return Status::invalid("cpu quantize: bits");
  if (!is_float(args.x_dtype)) return Status::invalid("cpu quantize: dtype of x");
  if (args.bits == 4 && args.cols % kInt4Block) return Status::invalid("cpu quantize: cols");
  const int64_t group = args.per_tensor ? args.cols : args.group_size;
  if (args.cols > 0 && (group <= 0 || args.cols % group)) {
    return Status::invalid("cpu quantize: the group size must divide cols");
  }
  const int64_t groups = args.cols > 0 ? args.cols / group : 0;
  const bool given = args.scale_in.present();
  const int top = args.bits == 8 ? 127 : 7;
  const int low = args.symmetric ? -top : -top - 1;
  std::atomic<bool> failed{false};

  const auto given_scaling = [&](int64_t entry) {
    Scaling s;
    load_floats(args.scale_in.data, args.scale_in.dtype, entry * args.scale_in.stride, 1, &s.scale);
    if (args.zero_in.present()) {
      load_ints(args.zero_in.data, args.zero_in.dtype, entry * args.zero_in.stride, 1, &s.zero);
    }
    return s;
  };
  const auto load_row = [&](int64_t r, float* row) {
    load_floats(args.x, args.x_dtype, r * args.x_stride, args.cols, row);
  };
  const auto write_scaling = [&](int64_t entry, const Scaling& s) {
    if (args.scale) args.scale[entry] = s.scale;
    if (args.zero) args.zero[entry] = s.zero;
  };

  Scaling whole;
  if (args.per_tensor) {
    if (given) {
      whole = given_scaling(0);
    } else {
      std::atomic<int32_t> high{0}, below{0};
      parallel_for(runner, 0, args.rows, grain_for(args.cols), [&](int64_t begin, int64_t end) {
        Scratch<float> row(args.cols);
        if (!row.ok()) {
          failed = true;
          return;
        }
        Range range;
        for (int64_t r = begin; r < end; ++r) {
          load_row(r, row.get());
          range.include(row.get(), args.cols, args.symmetric);
        }
        raise(high, range.high);
        raise(below, range.low);
      });
      if (failed) return kNoMemory;
      whole = scaling_of({high.load(), below.load()}, top, args.symmetric);
    }
    write_scaling(0, whole);
  }

  parallel_for(runner, 0, args.rows, grain_for(args.cols), [&](int64_t begin, int64_t end) {
    Scratch<float> row(args.cols);
    Scratch<int8_t> codes(args.bits == 4 ? args.cols : 0);
    if (!row.ok() || !codes.ok()) {
      failed = true;
      return;
    }
    for (int64_t r = begin; r < end; ++r) {
      load_row(r, row.get());
      int8_t* q = args.bits == 4 ? codes.get() : static_cast<int8_t*>(args.q) + r * args.cols;
      for (int64_t g = 0; g < groups; ++g) {
        const float* x = row.get() + g * group;
        Scaling s = whole;
        if (!args.per_tensor) {
          if (given) {
            s = given_scaling(r * groups + g);
          } else {
            Range range;
            range.include(x, group, args.symmetric);
            s = scaling_of(range, top, args.symmetric);
          }
          write_scaling(r * groups + g, s);
        }
        encode(x, group, s, low, top, q + g * group);
      }
      if (args.bits == 4) {
        pack_row(q, args.cols, static_cast<uint8_t*>(args.q) + r * (args.cols / 2));
      }
    }
  });
  return failed ? kNoMemory : Status::success();
}

Status dequantize(const DequantizeArguments& args, const ParallelRunner& runner) {
  if (args.bits != 8 && args.bits != 4) return Status::invalid("cpu dequantize: bits");
  if (!is_float(args.out_dtype)) return Status::invalid("cpu dequantize: dtype of out");
  if (args.bits == 4 && args.cols % kInt4Block) return Status::invalid("cpu dequantize: cols");
  if (args.cols > 0 && (args.group_size <= 0 || args.cols % args.group_size)) {
    return Status::invalid("cpu dequantize: the group size must divide cols");
  }
  const int64_t groups = args.cols > 0 ? args.cols / args.group_size : 0;
  std::atomic<bool> failed{false};
  parallel_for(runner, 0, args.rows, grain_for(args.cols), [&](int64_t begin, int64_t end) {
    Scratch<int8_t> codes(args.bits == 4 ? args.cols : 0);
    Scratch<float> row(args.cols);
    if (!codes.ok() || !row.ok()) {
      failed = true;
      return;
    }
    for (int64_t r = begin; r < end; ++r) {
      const int8_t* q = static_cast<const int8_t*>(args.q) + r * args.cols;
      if (args.bits == 4) {
        unpack_row(static_cast<const uint8_t*>(args.q) + r * (args.cols / 2), args.cols,
                   codes.get());
        q = codes.get();
      }
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t entry = r * groups + g;
        float scale = 1, zero = 0;
        load_floats(args.scale.data, args.scale.dtype, entry * args.scale.stride, 1, &scale);
        if (args.zero.present()) {
          load_floats(args.zero.data, args.zero.dtype, entry * args.zero.stride, 1, &zero);
        }
        const int8_t* in = q + g * args.group_size;
        float* out = row.get() + g * args.group_size;
        for (int64_t k = 0; k < args.group_size; ++k) {
          out[k] = (static_cast<float>(in[k]) - zero) * scale;
        }
      }
      round_row(row.get(), args.cols, args.out_dtype,
                static_cast<char*>(args.out) + r * args.cols * size_of(args.out_dtype));
    }
  });
  return failed ? kNoMemory : Status::success();
}

Status pack_int4(const PackArguments& args, const ParallelRunner& runner) {
  if (args.cols % kInt4Block) return Status::invalid("cpu pack_int4: cols");
  int64_t (*rows)(const PackArguments&, int64_t, int64_t, int8_t*) = nullptr;
  switch (args.w_dtype) {
    case DType::kInt8: rows = pack_rows<int8_t>; break;
    case DType::kUInt8: rows = pack_rows<uint8_t>; break;
    case DType::kInt16: rows = pack_rows<int16_t>; break;
    case DType::kInt32: rows = pack_rows<int32_t>; break;
    case DType::kInt64: rows = pack_rows<int64_t>; break;
    default: return Status::invalid("cpu pack_int4: dtype of w");
  }
  std::atomic<bool> failed{false};
  std::atomic<int64_t> first_bad{std::numeric_limits<int64_t>::max()};
  parallel_for(runner, 0, args.rows, grain_for(args.cols), [&](int64_t begin, int64_t end) {
    Scratch<int8_t> row(args.cols);
    if (!row.ok()) {
      failed = true;
      return;
    }
    lower(first_bad, rows(args, begin, end, row.get()));
  });
  if (args.first_bad) *args.first_bad = first_bad;
  return failed ? kNoMemory : Status::success();
}

Status unpack_int4(const UnpackArguments& args, const ParallelRunner& runner) {
  if (args.cols % kInt4Block) return Status::invalid("cpu unpack_int4: cols");
  parallel_for(runner, 0, args.rows, grain_for(args.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      unpack_row(args.packed + r * (args.cols / 2), args.cols, args.w + r * args.cols);
    }
  });
  return Status::success();
}

Status weight_sums(const WeightSumsArguments& args, const ParallelRunner& runner) {
  if (args.bits != 8 && args.bits != 4) return Status::invalid("cpu weight_sums: bits");
  if (args.bits == 4 && args.cols % kInt4Block) return Status::invalid("cpu weight_sums: cols");
  if (args.cols > 0 && (args.group_size <= 0 || args.cols % args.group_size)) {
    return Status::invalid("cpu weight_sums: the group size must divide cols");
  }
  const int64_t groups = args.cols > 0 ? args.cols / args.group_size : 0;
  std::atomic<bool> failed{false};
  parallel_for(runner, 0, args.rows, grain_for(args.cols), [&](int64_t begin, int64_t end) {
    Scratch<int8_t> codes(args.bits == 4 ? args.cols : 0);
    if (!codes.ok()) {
      failed = true;
      return;
    }
    for (int64_t r = begin; r < end; ++r) {
      const int8_t* w = static_cast<const int8_t*>(args.w) + r * args.cols;
      if (args.bits == 4) {
        unpack_row(static_cast<const uint8_t*>(args.w) + r * (args.cols / 2), args.cols,
                   codes.get());
        w = codes.get();
      }
      for (int64_t g = 0; g < groups; ++g, w += args.group_size) {
        int32_t sum = 0;
        for (int64_t k = 0; k < args.group_size; ++k) sum += w[k];
        args.sums[r * groups + g] = sum;
      }
    }
  });
  return failed ? kNoMemory : Status::success();
}

}  // namespace qutlass::cpu
