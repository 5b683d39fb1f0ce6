// SPDX-License-Identifier: Apache-2.0
#include "torch/checks.h"

#include <initializer_list>
#include <sstream>
#include <stdexcept>

#include "common/nibble.h"

namespace qutlass::binding {
namespace {

// Messages are built out of line and only when a check fails.
template <typename... Parts>
[[noreturn, gnu::cold, gnu::noinline]] void refuse(const char* op, const Parts&... parts) {
  std::ostringstream message;
  message << op << ": ";
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

struct Ints {  // prints as [2, 3]
  const int64_t* values;
  int64_t count;
  const char* last = nullptr;  // a further entry without a value: [2, 3, G]
};
std::ostream& operator<<(std::ostream& out, const Ints& ints) {
  out << '[';
  for (int64_t i = 0; i < ints.count; ++i) out << (i ? ", " : "") << ints.values[i];
  if (ints.last) out << (ints.count ? ", " : "") << ints.last;
  return out << ']';
}
Ints shape_of(const TensorView& t) { return {t.sizes, t.ndim}; }
Ints strides_of(const TensorView& t) { return {t.strides, t.ndim}; }

struct Where {  // prints as cuda:1
  const TensorView& tensor;
};
std::ostream& operator<<(std::ostream& out, const Where& where) {
  switch (where.tensor.device) {
    case DeviceKind::kCpu: return out << "cpu";
    case DeviceKind::kCuda: return out << "cuda:" << where.tensor.device_index;
    case DeviceKind::kOther: break;
  }
  return out << "another device";
}

constexpr const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return "float32";
    case DType::kBFloat16: return "bfloat16";
    case DType::kFloat16: return "float16";
    case DType::kInt8: return "int8";
    case DType::kUInt8: return "uint8";
    case DType::kInt16: return "int16";
    case DType::kInt32: return "int32";
    case DType::kInt64: return "int64";
    case DType::kNone: break;
  }
  return "?";
}

class DTypes {  // a set, that prints as "float32, bfloat16 or float16"
 public:
  constexpr DTypes(std::initializer_list<DType> dtypes) {
    for (DType dtype : dtypes) mask_ |= 1u << static_cast<int>(dtype);
  }
  constexpr bool has(DType dtype) const { return mask_ >> static_cast<int>(dtype) & 1u; }

  friend std::ostream& operator<<(std::ostream& out, const DTypes& dtypes) {
    constexpr int kMost = static_cast<int>(DType::kInt64);
    int left = 0;
    for (int i = 1; i <= kMost; ++i) left += dtypes.has(static_cast<DType>(i));
    for (int i = 1; i <= kMost; ++i) {
      if (!dtypes.has(static_cast<DType>(i))) continue;
      out << name_of(static_cast<DType>(i));
      --left;
      out << (left > 1 ? ", " : left == 1 ? " or " : "");
    }
    return out;
  }

 private:
  uint32_t mask_ = 0;
};

constexpr DTypes kFloats = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
constexpr DTypes kIntegerZeros = {DType::kInt8, DType::kInt32};
constexpr DTypes kAnyZeros = {DType::kInt8, DType::kInt32, DType::kFloat32, DType::kBFloat16};
constexpr DTypes kIntegers = {DType::kInt8, DType::kUInt8, DType::kInt16, DType::kInt32,
                              DType::kInt64};

constexpr int64_t kMaxDim = std::numeric_limits<int32_t>::max();  // kernels index rows in 32 bits
constexpr int64_t kAlignment = 16;  // bytes that one cp.async moves
constexpr int64_t kInt8Multiple = 16;  // of K in int8 products: so that each row is aligned

void check_dtype(const char* op, const char* name, const TensorView& t, DTypes taken) {
  if (!taken.has(t.dtype)) refuse(op, name, " must be ", taken, ", got ", t.dtype_name);
}

void check_device(const char* op, const char* name, const TensorView& t, const char* first_name,
                  const TensorView& first) {
  if (t.device != first.device || t.device_index != first.device_index) {
    refuse(op, name, " must be on the device of ", first_name, " (", Where{first}, "), got ",
           Where{t});
  }
}

void check_matrix_rank(const char* op, const char* name, const TensorView& t) {
  if (t.ndim < 1) refuse(op, name, " must have at least one dim, got a scalar");
  if (t.ndim > Shape::kMaxDims) {
    refuse(op, name, " must have at most ", Shape::kMaxDims, " dims, got ", t.ndim);
  }
}

bool is_contiguous(const TensorView& t) {
  if (t.numel() == 0) return true;
  int64_t stride = 1;
  for (int64_t i = t.ndim - 1; i >= 0; --i) {
    if (t.sizes[i] != 1 && t.strides[i] != stride) return false;
    stride *= t.sizes[i];
  }
  return true;
}

void check_contiguous(const char* op, const char* name, const TensorView& t) {
  if (!is_contiguous(t)) {
    refuse(op, name, " must be contiguous, got shape ", shape_of(t), " with strides ",
           strides_of(t), " (call .contiguous())");
  }
}

struct Rows {
  int64_t count;
  int64_t stride;  // elements
};

// The leading dims as rows one stride apart.
Rows check_rows(const char* op, const char* name, const TensorView& t) {
  check_matrix_rank(op, name, t);
  Rows rows = {1, t.last()};
  bool even = true;
  int64_t expected = 0;  // of the next dim outwards; 0: no dim of more than one entry yet
  for (int64_t i = t.ndim - 2; i >= 0; --i) {
    const int64_t size = t.sizes[i];
    if (size != 1) {
      if (rows.count == 1) {
        rows.stride = t.strides[i];
      } else if (t.strides[i] != expected) {
        even = false;
      }
      expected = t.strides[i] * size;
    }
    rows.count *= size;
  }
  if (rows.count == 0 || t.last() == 0) return {rows.count, t.last()};
  if (t.last() > 1 && t.strides[t.ndim - 1] != 1) {
    refuse(op, name, " must be contiguous in its last dim, got shape ", shape_of(t),
           " with strides ", strides_of(t), " (call .contiguous())");
  }
  if (!even) {
    refuse(op, name, " must have leading dims that are one stride apart, got shape ", shape_of(t),
           " with strides ", strides_of(t), " (call .contiguous())");
  }
  return rows;
}

void check_aligned(const char* op, const char* name, const TensorView& t) {
  const int64_t offset = reinterpret_cast<uintptr_t>(t.data) % kAlignment;
  if (offset) {
    refuse(op, name, " must start at a multiple of ", kAlignment, " bytes on CUDA, got one ",
           offset, " bytes past it (call .clone())");
  }
}

// Whether t has the shape lead, or lead + [1], lead being the first `count` sizes of `of`.
bool is_leading_shape(const TensorView& t, const TensorView& of, int64_t count) {
  if (t.ndim != count && !(t.ndim == count + 1 && t.sizes[count] == 1)) return false;
  for (int64_t i = 0; i < count; ++i) {
    if (t.sizes[i] != of.sizes[i]) return false;
  }
  return true;
}

bool is_shape(const TensorView& t, std::initializer_list<int64_t> sizes) {
  if (t.ndim != static_cast<int64_t>(sizes.size())) return false;
  int64_t i = 0;
  for (int64_t size : sizes) {
    if (t.sizes[i++] != size) return false;
  }
  return true;
}

// One stride for all entries of a vector of any rank: 1, or 0 where all are one value.
Param check_strides(const char* op, const char* name, const TensorView& t) {
  Param param = {t.data, t.dtype, 0};
  if (t.numel() <= 1) return param;
  bool all_zero = true;
  for (int64_t i = 0; i < t.ndim; ++i) all_zero &= t.sizes[i] == 1 || t.strides[i] == 0;
  if (all_zero) return param;
  check_contiguous(op, name, t);
  param.stride = 1;
  return param;
}

// A value a token: the shape of a without its last dim, the same and [1], [M], [M, 1], or one
// element.
Param check_per_token(const char* op, const char* name, const TensorView& t, DTypes taken,
                      const TensorView& a, int64_t tokens) {
  check_device(op, name, t, "a", a);
  check_dtype(op, name, t, taken);
  if (t.numel() != 1 && !is_leading_shape(t, a, a.ndim - 1) && !is_shape(t, {tokens}) &&
      !is_shape(t, {tokens, 1})) {
    refuse(op, name, " must be [M] = [", tokens, "], [M, 1] or one element, got ", shape_of(t));
  }
  return check_strides(op, name, t);
}

// A value a row of b: [N], [N, 1] or one element.
Param check_per_feature(const char* op, const char* name, const TensorView& t, DTypes taken,
                        const TensorView& a, int64_t features, const char* also = "") {
  check_device(op, name, t, "a", a);
  check_dtype(op, name, t, taken);
  if (t.numel() != 1 && !is_shape(t, {features}) && !is_shape(t, {features, 1})) {
    refuse(op, name, " must be [N] = [", features, "], [N, 1]", also, " or one element, got ",
           shape_of(t));
  }
  return check_strides(op, name, t);
}

// A value a group: contiguous [N, G]; [N] too where G is 1.
Param check_per_group(const char* op, const char* name, const TensorView& t, DTypes taken,
                      const TensorView& a, int64_t features, int64_t groups) {
  check_device(op, name, t, "a", a);
  check_dtype(op, name, t, taken);
  if (!is_shape(t, {features, groups}) && !(groups == 1 && is_shape(t, {features}))) {
    refuse(op, name, " must be [N, G] = [", features, ", ", groups, "], got ", shape_of(t));
  }
  check_contiguous(op, name, t);
  return {t.data, t.dtype, groups};
}

Param check_bias(const char* op, const TensorView& t, const TensorView& a, int64_t features) {
  check_device(op, "bias", t, "a", a);
  check_dtype(op, "bias", t, kFloats);
  if (!is_shape(t, {features})) {
    refuse(op, "bias must be [N] = [", features, "], got ", shape_of(t));
  }
  check_contiguous(op, "bias", t);
  return {t.data, t.dtype, 1};
}

// A and B: shapes, layout and K; a_step and b_step are the values in one element (2: packed INT4).
GemmArguments check_operands(const char* op, GemmOp kernel, Views in, DType a_dtype, int a_step,
                             DType b_dtype, int b_step, int64_t k_multiple) {
  const TensorView& a = *in[0];
  const TensorView& b = *in[1];
  check_dtype(op, "a", a, {a_dtype});
  check_dtype(op, "b", b, {b_dtype});
  check_device(op, "b", b, "a", a);
  const Rows rows = check_rows(op, "a", a);
  if (b.ndim != 2) {
    refuse(op, "b must be ", b_step == 2 ? "[N, K/2]" : "[N, K]", ", got shape ", shape_of(b));
  }
  GemmArguments args;
  args.op = kernel;
  args.M = rows.count;
  args.N = b.sizes[0];
  args.K = a.last() * a_step;
  args.group_size = args.K;
  if (b.sizes[1] * b_step != args.K) {
    refuse(op, "a and b must have the same K, got ", args.K, " and ", b.sizes[1] * b_step,
           " (shapes ", shape_of(a), " and ", shape_of(b), ")");
  }
  if (args.K == 0 || args.K % k_multiple) {
    refuse(op, "K must be a multiple of ", k_multiple, ", got ", args.K,
           " (pad the last dim of a and b)");
  }
  if (args.N < 1) refuse(op, "b must have at least one row, got shape ", shape_of(b));
  if (args.M > kMaxDim || args.N > kMaxDim || args.K > kMaxDim) {
    refuse(op, "M, N and K must be at most ", kMaxDim, ", got ", args.M, ", ", args.N, " and ",
           args.K);
  }
  check_contiguous(op, "b", b);
  args.a = a.data;
  args.lda = rows.stride * size_of(a_dtype);
  args.b = b.data;
  if (a.device == DeviceKind::kCuda) {
    check_aligned(op, "a", a);
    check_aligned(op, "b", b);
    if (args.M > 1 && args.lda % kAlignment) {
      refuse(op, "the rows of a must be a multiple of ", kAlignment, " bytes apart on CUDA, got ",
             args.lda, " (call .contiguous())");
    }
  }
  return args;
}

// How far from zero an operand's centred values reach. Symmetric: the format's most negative value;
// with a zero point of the format: its whole width.
constexpr int64_t reach(int bits, bool has_zero) {
  return has_zero ? (1 << bits) - 1 : 1 << (bits - 1);
}

// The exact sum must fit int32. 2^31 itself, which only the most negative values reach, passes: it
// is the int32 maximum after saturation, and both are 2^31 as float32.
void check_k_limit(const char* op, int64_t k, int64_t k_multiple, int64_t a_reach, int64_t b_reach,
                   const char* hint = "") {
  const int64_t most = (int64_t{1} << 31) / (a_reach * b_reach) / k_multiple * k_multiple;
  if (k > most) {
    refuse(op, "K must be at most ", most, " for the exact sum to fit int32, got ", k, hint);
  }
}

// The same for a product with one scale a row of b.
void check_channel_sum(const char* op, int64_t k, int a_bits, int b_bits, bool has_a_zero,
                       bool has_b_zero, const char* hint = "") {
  check_k_limit(op, k, b_bits == 4 ? kInt4Block : kInt8Multiple, reach(a_bits, has_a_zero),
                reach(b_bits, has_b_zero), hint);
  // The int8 x int4 kernels hold sums of 16 * b, which is what lets a packed word become fragments
  // by masking alone.
  constexpr int64_t kMostW4A8 = ((int64_t{1} << 31) - 1) / (16 * 128 * 8) / kInt4Block * kInt4Block;
  if (a_bits == 8 && b_bits == 4 && k > kMostW4A8) {
    refuse(op, "K must be at most ", kMostW4A8, " for the sum of 16 * a * b to fit int32, got ", k,
           hint);
  }
}

void check_group_of_product(const char* op, const char* name, const TensorView& t, int64_t k,
                            int64_t groups, bool whole_row) {
  const int64_t size = groups > 0 && k % groups == 0 ? k / groups : 0;
  if (size == 32 || size == 64 || size == 128 || (whole_row && groups == 1)) return;
  refuse(op, name, " must have groups of 32, 64", whole_row ? ", 128 or K" : " or 128",
         " values, got ", groups, " groups for K = ", k, " (shape ", shape_of(t), ")");
}

enum Slot { kA, kB, kAScale, kBScale, kAZero, kBZero, kBSum, kBias, kBMultiplier };

// Vectors of the integer products that do not depend on groups.
void check_epilogue(const char* op, Views in, GemmArguments* args) {
  const TensorView& a = *in[kA];
  args->a_scale = check_per_token(op, "a_scale", *in[kAScale], kFloats, a, args->M);
  if (in[kAZero]) {
    args->a_zero = check_per_token(op, "a_zero", *in[kAZero], kIntegerZeros, a, args->M);
  }
  if (in[kBias]) args->bias = check_bias(op, *in[kBias], a, args->N);
}

// b_scale, b_zero and b_sum where b has one of each a row.
void check_channels(const char* op, Views in, int a_bits, int b_bits, const char* also,
                    GemmArguments* args) {
  const TensorView& a = *in[kA];
  args->b_scale = check_per_feature(op, "b_scale", *in[kBScale], kFloats, a, args->N, also);
  if (in[kBZero]) {
    args->b_zero = check_per_feature(op, "b_zero", *in[kBZero], kIntegerZeros, a, args->N);
  }
  if (in[kBSum]) {
    args->b_sum = check_per_group(op, "b_sum", *in[kBSum], {DType::kInt32}, a, args->N, 1);
  }
  check_channel_sum(op, args->K, a_bits, b_bits, in[kAZero], in[kBZero]);
}

// A scale or zero point of dequantize_*, or a given one of quantize_*.
struct Vector {
  Param param;
  int64_t groups;  // entries a row
};

// One element, the shape `lead` (x without its last dim), lead + [1], or lead + [G] with G groups
// of a whole number of values.
Vector check_vector(const char* op, const char* name, const TensorView& t, DTypes taken,
                    const char* x_name, const TensorView& x, int64_t cols) {
  check_device(op, name, t, x_name, x);
  check_dtype(op, name, t, taken);
  const int64_t lead = x.ndim - 1;
  int64_t groups = 1;
  bool fits = t.numel() == 1 || is_leading_shape(t, x, lead);
  if (!fits && t.ndim == lead + 1) {
    groups = t.sizes[lead];
    fits = groups > 0 && cols % groups == 0;
    for (int64_t i = 0; i < lead; ++i) fits &= t.sizes[i] == x.sizes[i];
  }
  if (!fits) {
    refuse(op, name, " must be one element, ", Ints{x.sizes, lead}, " or ",
           Ints{x.sizes, lead, "G"}, " with G dividing K = ", cols, ", got ", shape_of(t));
  }
  return {check_strides(op, name, t), groups};
}

int64_t check_group_size(const char* op, int64_t group_size, int64_t cols, bool packed) {
  if (group_size == kNoGroup) return cols;
  if (group_size < 1 || cols % group_size || (packed && group_size % kInt4Block)) {
    refuse(op, "group_size must ", packed ? "be a multiple of 32 that divides" : "divide",
           " K = ", cols, ", got ", group_size);
  }
  return group_size;
}

void check_packed_last(const char* op, const char* name, const TensorView& packed) {
  check_matrix_rank(op, name, packed);
  if (packed.last() % kInt4BlockBytes) {
    refuse(op, name, " must be [..., K/2] with K a multiple of ", kInt4Block, ", got shape ",
           shape_of(packed));
  }
}

QuantizeArguments check_quantize(const char* op, Views in, int bits, bool symmetric,
                                 bool per_tensor, int64_t group_size) {
  const TensorView& x = *in[0];
  check_dtype(op, "x", x, kFloats);
  const Rows rows = check_rows(op, "x", x);
  QuantizeArguments args;
  args.x = x.data;
  args.x_dtype = x.dtype;
  args.rows = rows.count;
  args.cols = x.last();
  args.x_stride = rows.stride;
  args.bits = bits;
  args.per_tensor = per_tensor;
  if (args.cols == 0) refuse(op, "x must be [..., K] with K >= 1, got shape ", shape_of(x));
  if (bits == 4 && args.cols % kInt4Block) {
    refuse(op, "K must be a multiple of ", kInt4Block, ", got ", args.cols,
           " (pad the last dim of x)");
  }
  args.group_size = check_group_size(op, group_size, args.cols, bits == 4);
  args.symmetric = symmetric && !in[2];
  if (in[2] && !in[1]) refuse(op, "zero is taken only together with scale");
  if (in[1] && !in[2] && !symmetric) {
    refuse(op, "symmetric=False with a given scale needs zero as well");
  }
  const int64_t groups = args.cols / args.group_size;
  const auto check_given = [&](const char* name, const TensorView& t, DTypes taken) {
    const Vector given = check_vector(op, name, t, taken, "x", x, args.cols);
    if (t.numel() != 1 && (per_tensor || given.groups != groups)) {
      if (per_tensor) refuse(op, name, " must be one element per tensor, got ", shape_of(t));
      refuse(op, name, " must be one element or hold ", groups,
             groups == 1 ? " value a row, got " : " values a row, got ", shape_of(t));
    }
    return given.param;
  };
  if (in[1]) args.scale_in = check_given("scale", *in[1], kFloats);
  if (in[2]) args.zero_in = check_given("zero", *in[2], kIntegerZeros);
  return args;
}

DequantizeArguments check_dequantize(const char* op, const char* q_name, Views in, int bits,
                                     DType out, const char* out_name) {
  const TensorView& q = *in[0];
  check_dtype(op, q_name, q, {bits == 4 ? DType::kUInt8 : DType::kInt8});
  if (!kFloats.has(out)) refuse(op, "dtype must be ", kFloats, ", got ", out_name);
  if (bits == 4) {
    check_packed_last(op, q_name, q);
  } else {
    check_matrix_rank(op, q_name, q);
  }
  check_contiguous(op, q_name, q);
  DequantizeArguments args;
  args.q = q.data;
  args.cols = q.last() * (bits == 4 ? 2 : 1);
  args.rows = 1;
  for (int64_t i = 0; i + 1 < q.ndim; ++i) args.rows *= q.sizes[i];
  args.bits = bits;
  const Vector scale = check_vector(op, "scale", *in[1], kFloats, q_name, q, args.cols);
  args.scale = scale.param;
  int64_t groups = scale.groups;
  if (in[2]) {
    const Vector zero = check_vector(op, "zero", *in[2], kAnyZeros, q_name, q, args.cols);
    args.zero = zero.param;
    if (zero.groups != groups && in[1]->numel() != 1 && in[2]->numel() != 1) {
      refuse(op, "zero must be one element or shaped like scale ", shape_of(*in[1]), ", got ",
             shape_of(*in[2]));
    }
    if (in[1]->numel() == 1) groups = zero.groups;
  }
  args.group_size = groups ? args.cols / groups : args.cols;
  if (bits == 4 && groups > 1 && args.group_size % kInt4Block) {
    refuse(op, "scale must have groups of a multiple of ", kInt4Block, " values, got ",
           args.group_size, " (shape ", shape_of(*in[1]), ")");
  }
  args.out_dtype = out;
  return args;
}

}  // namespace

PackArguments check_pack_int4(Views in) {
  constexpr const char* op = "pack_int4";
  const TensorView& w = *in[0];
  check_dtype(op, "w", w, kIntegers);
  const Rows rows = check_rows(op, "w", w);
  if (w.last() % kInt4Block) {
    refuse(op, "K must be a multiple of ", kInt4Block, ", got ", w.last(),
           " (pad the last dim of w; its shape is ", shape_of(w), ")");
  }
  PackArguments args;
  args.w = w.data;
  args.w_dtype = w.dtype;
  args.rows = rows.count;
  args.cols = w.last();
  args.w_stride = rows.stride;
  return args;
}

void refuse_pack_value(const TensorView& w, int64_t flat_index, int64_t value) {
  int64_t index[Shape::kMaxDims];
  for (int64_t i = w.ndim - 1; i >= 0; --i) {
    index[i] = flat_index % w.sizes[i];
    flat_index /= w.sizes[i];
  }
  refuse("pack_int4", "w must hold values in [-8, 7], got ", value, " at ", Ints{index, w.ndim});
}

UnpackArguments check_unpack_int4(Views in) {
  constexpr const char* op = "unpack_int4";
  const TensorView& packed = *in[0];
  check_dtype(op, "packed", packed, {DType::kUInt8});
  check_packed_last(op, "packed", packed);
  check_contiguous(op, "packed", packed);
  UnpackArguments args;
  args.packed = static_cast<const uint8_t*>(packed.data);
  args.rows = 1;
  for (int64_t i = 0; i + 1 < packed.ndim; ++i) args.rows *= packed.sizes[i];
  args.cols = packed.last() * 2;
  return args;
}

QuantizeArguments check_quantize_int8(Views in, bool symmetric, bool per_tensor) {
  return check_quantize("quantize_int8", in, 8, symmetric, per_tensor, kNoGroup);
}

QuantizeArguments check_quantize_int4(Views in, bool symmetric, int64_t group_size) {
  return check_quantize("quantize_int4", in, 4, symmetric, false, group_size);
}

DequantizeArguments check_dequantize_int8(Views in, DType out, const char* out_name) {
  return check_dequantize("dequantize_int8", "q", in, 8, out, out_name);
}

DequantizeArguments check_dequantize_int4(Views in, DType out, const char* out_name) {
  return check_dequantize("dequantize_int4", "packed", in, 4, out, out_name);
}

WeightSumsArguments check_weight_sums(Views in, int64_t group_size) {
  constexpr const char* op = "weight_sums";
  const TensorView& w = *in[0];
  check_dtype(op, "w", w, {DType::kInt8, DType::kUInt8});
  const bool packed = w.dtype == DType::kUInt8;
  if (w.ndim != 2 || w.last() == 0) {
    refuse(op, "w must be int8 [N, K] or packed uint8 [N, K/2] with K >= 1, got shape ",
           shape_of(w));
  }
  if (packed) check_packed_last(op, "w", w);
  check_contiguous(op, "w", w);
  WeightSumsArguments args;
  args.w = w.data;
  args.bits = packed ? 4 : 8;
  args.rows = w.sizes[0];
  args.cols = w.last() * (packed ? 2 : 1);
  args.group_size = check_group_size(op, group_size, args.cols, packed);
  return args;
}

GemmArguments check_matmul_int8(Views in) {
  constexpr const char* op = "matmul_int8_bf16_tn";
  GemmArguments args =
      check_operands(op, GemmOp::kW8A8, in, DType::kInt8, 1, DType::kInt8, 1, kInt8Multiple);
  check_epilogue(op, in, &args);
  check_channels(op, in, 8, 8, "", &args);
  return args;
}

GemmArguments check_matmul_w4a4(Views in) {
  constexpr const char* op = "matmul_w4a4_bf16_tn";
  GemmArguments args =
      check_operands(op, GemmOp::kW4A4, in, DType::kUInt8, 2, DType::kUInt8, 2, kInt4Block);
  check_epilogue(op, in, &args);
  check_channels(op, in, 4, 4, "", &args);
  return args;
}

GemmArguments check_matmul_w4a8(Views in) {
  constexpr const char* op = "matmul_w4a8_bf16_tn";
  GemmArguments args =
      check_operands(op, GemmOp::kW4A8, in, DType::kInt8, 1, DType::kUInt8, 2, kInt4Block);
  check_epilogue(op, in, &args);
  const TensorView& a = *in[kA];
  const TensorView& scale = *in[kBScale];
  const auto check_group_sums = [&](int64_t groups) {
    if (!in[kBSum]) return;
    args.b_sum = check_per_group(op, "b_sum", *in[kBSum], {DType::kInt32}, a, args.N, groups);
  };

  if (in[kBMultiplier]) {
    const TensorView& multiplier = *in[kBMultiplier];
    const int64_t groups = multiplier.ndim == 2 ? multiplier.last() : 0;
    check_device(op, "b_multiplier", multiplier, "a", a);
    check_dtype(op, "b_multiplier", multiplier, {DType::kUInt8});
    if (multiplier.ndim != 2 || multiplier.sizes[0] != args.N) {
      refuse(op, "b_multiplier must be [N, G] = [", args.N, ", G], got ", shape_of(multiplier));
    }
    check_group_of_product(op, "b_multiplier", multiplier, args.K, groups, false);
    check_contiguous(op, "b_multiplier", multiplier);
    args.op = GemmOp::kW4A8Multiplier;
    args.group_size = args.K / groups;
    args.b_multiplier = static_cast<const uint8_t*>(multiplier.data);
    args.b_scale = check_per_feature(op, "b_scale", scale, kFloats, a, args.N);
    if (in[kBZero]) {
      args.b_zero = check_per_group(op, "b_zero", *in[kBZero], {DType::kInt8}, a, args.N, groups);
    }
    check_group_sums(groups);
    // The weight is m * (q - zero), which stays inside int8.
    check_k_limit(op, args.K, kInt4Block, reach(8, in[kAZero]), reach(8, false));
    return args;
  }
  if (scale.ndim == 2 && scale.last() > 1 && scale.sizes[0] == args.N) {
    const int64_t groups = scale.last();
    check_group_of_product(op, "b_scale", scale, args.K, groups, false);
    args.op = GemmOp::kW4A8Group;
    args.group_size = args.K / groups;
    args.b_scale = check_per_group(op, "b_scale", scale, kFloats, a, args.N, groups);
    if (in[kBZero]) {
      args.b_zero = check_per_group(op, "b_zero", *in[kBZero], kIntegerZeros, a, args.N, groups);
    }
    check_group_sums(groups);
    return args;
  }
  check_channels(op, in, 8, 4, ", [N, G]", &args);
  return args;
}

GemmArguments check_matmul_int4(Views in, int64_t act_bits) {
  constexpr const char* op = "matmul_int4_bf16_tn";
  enum { kScales = 2, kZeros, kIntBias };
  if (act_bits != 16 && act_bits != 8 && act_bits != 4) {
    refuse(op, "act_bits must be 16, 8 or 4, got ", act_bits);
  }
  GemmArguments args =
      check_operands(op, GemmOp::kW4A16, in, DType::kBFloat16, 1, DType::kUInt8, 2, kInt4Block);
  const TensorView& a = *in[kA];
  const TensorView& scales = *in[kScales];
  const bool is_vector = scales.ndim == 1;
  if (scales.ndim < 1 || scales.ndim > 2 || scales.sizes[0] != args.N) {
    refuse(op, "scales must be [N, G] = [", args.N, ", G], got ", shape_of(scales));
  }
  const int64_t groups = is_vector ? 1 : scales.last();
  if (act_bits == 4 && groups != 1) {
    refuse(op, "scales must be [N, 1] = [", args.N, ", 1] or [N] with act_bits=4, got ",
           shape_of(scales), " (groups are taken with act_bits=8 and 16)");
  }
  check_group_of_product(op, "scales", scales, args.K, groups, true);
  args.group_size = args.K / groups;
  args.b_scale = check_per_group(op, "scales", scales, kFloats, a, args.N, groups);
  if (in[kZeros]) {
    const TensorView& zeros = *in[kZeros];
    if (act_bits != 16 && !kIntegerZeros.has(zeros.dtype)) {
      refuse(op, "zeros must be ", kIntegerZeros, " with act_bits=", act_bits, ", got ",
             zeros.dtype_name, " (fractional ones are taken with act_bits=16)");
    }
    args.b_zero = check_per_group(op, "zeros", zeros, kAnyZeros, a, args.N, groups);
  }
  if (in[kIntBias]) args.bias = check_bias(op, *in[kIntBias], a, args.N);
  if (act_bits == 16) return args;

  args.op = act_bits == 4 ? GemmOp::kW4A4 : groups == 1 ? GemmOp::kW4A8 : GemmOp::kW4A8Group;
  if (groups == 1) {
    check_channel_sum(op, args.K, a_bits(args.op), b_bits(args.op), false, in[kZeros],
                      " (act_bits=16 sets no limit)");
  }
  return args;
}

}  // namespace qutlass::binding
