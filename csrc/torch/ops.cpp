// SPDX-License-Identifier: Apache-2.0
// The operators: schemas with their contracts, output allocation, and registration.
//
// The binding uses only the LibTorch stable ABI, so one library serves torch 2.11 and later.
#include <torch/csrc/stable/library.h>

#include "torch/backend.h"
#include "torch/checks.h"
#include "torch/tensor.h"

namespace qutlass::binding {
namespace {

// Each operator: take over the inputs, check, allocate, run where `Backend` says.

template <typename Backend>
TensorHandle pack_int4(TensorHandle w) {
  const Inputs<1> in(w);
  const PackArguments checked = check_pack_int4(in.views());
  const Backend backend("pack_int4", in[0]);
  OwnedTensor packed =
      empty(Shape(in[0], in[0].ndim - 1).add(checked.cols / 2), DType::kUInt8, in[0]);
  if (checked.rows * checked.cols == 0) return packed.release();
  PackArguments args = checked;
  args.packed = static_cast<uint8_t*>(data_of(packed));
  int64_t bad_index = 0;
  int64_t bad_value = 0;
  if (backend.pack_int4(args, &bad_index, &bad_value)) {
    refuse_pack_value(in[0], bad_index, bad_value);
  }
  return packed.release();
}

template <typename Backend>
TensorHandle unpack_int4(TensorHandle packed) {
  const Inputs<1> in(packed);
  UnpackArguments args = check_unpack_int4(in.views());
  const Backend backend("unpack_int4", in[0]);
  OwnedTensor w = empty(Shape(in[0], in[0].ndim - 1).add(args.cols), DType::kInt8, in[0]);
  if (args.rows * args.cols == 0) return w.release();
  args.w = static_cast<int8_t*>(data_of(w));
  backend.unpack_int4(args);
  return w.release();
}

using Quantized = std::tuple<TensorHandle, TensorHandle, OptionalTensorHandle>;

template <typename Backend>
Quantized quantize(const char* op, const TensorView& x, QuantizeArguments args, bool has_groups) {
  const Backend backend(op, x);
  const bool packed = args.bits == 4;
  OwnedTensor q = empty(Shape(x, x.ndim - 1).add(packed ? args.cols / 2 : args.cols),
                        packed ? DType::kUInt8 : DType::kInt8, x);
  Shape shape = args.per_tensor ? Shape() : Shape(x, x.ndim - 1);
  if (args.per_tensor) shape.add(1);
  if (has_groups) shape.add(args.cols / args.group_size);
  OwnedTensor scale = empty(shape, DType::kFloat32, x);
  OwnedTensor zero = args.symmetric ? OwnedTensor() : empty(shape, DType::kInt32, x);
  args.q = data_of(q);
  args.scale = static_cast<float*>(data_of(scale));
  if (!args.symmetric) args.zero = static_cast<int32_t*>(data_of(zero));
  if (args.rows > 0 || args.per_tensor) backend.quantize(args);
  return {q.release(), scale.release(),
          args.symmetric ? OptionalTensorHandle() : OptionalTensorHandle(zero.release())};
}

template <typename Backend>
Quantized quantize_int8(TensorHandle x, bool symmetric, OptionalTensorHandle scale,
                        OptionalTensorHandle zero, bool per_tensor) {
  const Inputs<3> in(x, scale, zero);
  const QuantizeArguments args = check_quantize_int8(in.views(), symmetric, per_tensor);
  return quantize<Backend>("quantize_int8", in[0], args, false);
}

template <typename Backend>
Quantized quantize_int4(TensorHandle x, bool symmetric, OptionalTensorHandle scale,
                        OptionalTensorHandle zero, std::optional<int64_t> group_size) {
  const Inputs<3> in(x, scale, zero);
  const QuantizeArguments args =
      check_quantize_int4(in.views(), symmetric, group_size.value_or(kNoGroup));
  return quantize<Backend>("quantize_int4", in[0], args, group_size.has_value());
}

template <typename Backend>
TensorHandle dequantize(const char* op, const TensorView& q, DequantizeArguments args) {
  const Backend backend(op, q);
  OwnedTensor out = empty(Shape(q, q.ndim - 1).add(args.cols), args.out_dtype, q);
  if (args.rows * args.cols == 0) return out.release();
  args.out = data_of(out);
  backend.dequantize(args);
  return out.release();
}

// torch's number of a dtype travels in the schema's ScalarType.
using TorchDType = std::optional<int32_t>;

template <typename Backend>
TensorHandle dequantize_int8(TensorHandle q, TensorHandle scale, OptionalTensorHandle zero,
                             TorchDType dtype) {
  const Inputs<3> in(q, scale, zero);
  const int32_t out = dtype.value_or(torch_dtype_of(DType::kFloat32));
  return dequantize<Backend>(
      "dequantize_int8", in[0],
      check_dequantize_int8(in.views(), dtype_of_torch(out), name_of_torch(out)));
}

template <typename Backend>
TensorHandle dequantize_int4(TensorHandle packed, TensorHandle scale, OptionalTensorHandle zero,
                             TorchDType dtype) {
  const Inputs<3> in(packed, scale, zero);
  const int32_t out = dtype.value_or(torch_dtype_of(DType::kFloat32));
  return dequantize<Backend>(
      "dequantize_int4", in[0],
      check_dequantize_int4(in.views(), dtype_of_torch(out), name_of_torch(out)));
}

template <typename Backend>
TensorHandle weight_sums(TensorHandle w, std::optional<int64_t> group_size) {
  const Inputs<1> in(w);
  WeightSumsArguments args = check_weight_sums(in.views(), group_size.value_or(kNoGroup));
  const Backend backend("weight_sums", in[0]);
  Shape shape(in[0], 1);
  if (group_size) shape.add(args.cols / args.group_size);
  OwnedTensor sums = empty(shape, DType::kInt32, in[0]);
  if (args.rows == 0) return sums.release();
  args.sums = static_cast<int32_t*>(data_of(sums));
  backend.weight_sums(args);
  return sums.release();
}

// What is left of a product once its arguments are checked. `run` launches it on the backend.
template <typename Backend, typename Run>
TensorHandle matmul(const char* op, const TensorView& a, GemmArguments args, const Run& run) {
  const Backend backend(op, a);
  OwnedTensor out = empty(Shape(a, a.ndim - 1).add(args.N), DType::kBFloat16, a);
  if (args.M == 0) return out.release();
  args.out = data_of(out);
  // The correction for a's zero points needs the sums of b's rows (of its groups).
  OwnedTensor sums;
  if (args.a_zero.present() && !args.b_sum.present()) {
    WeightSumsArguments of_b;
    of_b.w = args.b;
    of_b.bits = b_bits(args.op);
    of_b.rows = args.N;
    of_b.cols = args.K;
    of_b.group_size = args.group_size;
    sums = empty(Shape().add(args.N * args.groups()), DType::kInt32, a);
    of_b.sums = static_cast<int32_t*>(data_of(sums));
    backend.weight_sums(of_b);
    args.b_sum = {of_b.sums, DType::kInt32, args.groups()};
  }
  run(backend, args);
  return out.release();
}

constexpr auto kRunSelected = [](const auto& backend, const GemmArguments& args) {
  backend.gemm(args);
};

template <typename Backend>
TensorHandle matmul_int8(TensorHandle a, TensorHandle b, TensorHandle a_scale, TensorHandle b_scale,
                         OptionalTensorHandle a_zero, OptionalTensorHandle b_zero,
                         OptionalTensorHandle b_sum, OptionalTensorHandle bias) {
  const Inputs<8> in(a, b, a_scale, b_scale, a_zero, b_zero, b_sum, bias);
  return matmul<Backend>("matmul_int8_bf16_tn", in[0], check_matmul_int8(in.views()), kRunSelected);
}

template <typename Backend>
TensorHandle matmul_w4a4(TensorHandle a, TensorHandle b, TensorHandle a_scale, TensorHandle b_scale,
                         OptionalTensorHandle a_zero, OptionalTensorHandle b_zero,
                         OptionalTensorHandle b_sum, OptionalTensorHandle bias) {
  const Inputs<8> in(a, b, a_scale, b_scale, a_zero, b_zero, b_sum, bias);
  return matmul<Backend>("matmul_w4a4_bf16_tn", in[0], check_matmul_w4a4(in.views()), kRunSelected);
}

template <typename Backend>
TensorHandle matmul_w4a8(TensorHandle a, TensorHandle b, TensorHandle a_scale, TensorHandle b_scale,
                         OptionalTensorHandle a_zero, OptionalTensorHandle b_zero,
                         OptionalTensorHandle b_sum, OptionalTensorHandle bias,
                         OptionalTensorHandle b_multiplier) {
  const Inputs<9> in(a, b, a_scale, b_scale, a_zero, b_zero, b_sum, bias, b_multiplier);
  return matmul<Backend>("matmul_w4a8_bf16_tn", in[0], check_matmul_w4a8(in.views()), kRunSelected);
}

// Gives a product that check_matmul_int4 left without its activations what quantize_int8 or
// quantize_int4 makes of each row of `a`, in memory that it returns.
template <typename Backend>
OwnedTensor quantize_activations(const Backend& backend, const TensorView& a, GemmArguments* gemm) {
  QuantizeArguments args;
  args.x = gemm->a;
  args.x_dtype = a.dtype;
  args.rows = gemm->M;
  args.cols = gemm->K;
  args.x_stride = gemm->lda / size_of(a.dtype);
  args.bits = a_bits(gemm->op);
  args.group_size = gemm->K;
  // One allocation: K is a multiple of 32, so the scales behind the rows are aligned.
  const int64_t row_bytes = gemm->K * args.bits / 8;
  const int64_t scale_bytes = size_of(DType::kFloat32);
  OwnedTensor memory = empty(Shape().add(gemm->M * (row_bytes + scale_bytes)), DType::kUInt8, a);
  uint8_t* const q = static_cast<uint8_t*>(data_of(memory));
  args.q = q;
  args.scale = reinterpret_cast<float*>(q + gemm->M * row_bytes);
  backend.quantize(args);
  gemm->a = q;
  gemm->lda = row_bytes;
  gemm->a_scale = {args.scale, DType::kFloat32, 1};
  return memory;
}

template <typename Backend>
TensorHandle matmul_int4(TensorHandle a, TensorHandle b, TensorHandle scales,
                         OptionalTensorHandle zeros, OptionalTensorHandle bias, int64_t act_bits) {
  const Inputs<5> in(a, b, scales, zeros, bias);
  constexpr const char* op = "matmul_int4_bf16_tn";
  const GemmArguments checked = check_matmul_int4(in.views(), act_bits);
  if (act_bits == 16) return matmul<Backend>(op, in[0], checked, kRunSelected);
  return matmul<Backend>(op, in[0], checked, [&](const Backend& backend, GemmArguments args) {
    const OwnedTensor quantized = quantize_activations(backend, in[0], &args);
    backend.gemm(args);
  });
}

#ifdef QUTLASS_WITH_CUDA
// The kernel family by its name in the tile table, with the operands of the operator behind it.
GemmArguments check_family(const std::string& family, const TensorView* const* in,
                           bool has_scales) {
  if (family == name_of(GemmOp::kW4A16)) {
    const TensorView* operands[] = {in[0], in[1], in[3], in[5], in[7]};
    if (!operands[2]) throw std::invalid_argument("_gemm_with_tile: w4a16 takes b_scale");
    return check_matmul_int4(operands, 16);
  }
  if (!has_scales) {
    throw std::invalid_argument("_gemm_with_tile: " + family + " takes a_scale and b_scale");
  }
  const GemmArguments args = family == name_of(GemmOp::kW8A8)   ? check_matmul_int8(in)
                             : family == name_of(GemmOp::kW4A4) ? check_matmul_w4a4(in)
                                                                : check_matmul_w4a8(in);
  if (family != name_of(args.op)) {
    throw std::invalid_argument("_gemm_with_tile: op must be the kernel family of the operands, " +
                                std::string(name_of(args.op)) + ", got " + family);
  }
  return args;
}

// A string argument owns a handle; TORCH_BOX's own conversion to std::string leaks its copy.
std::string take_string(StringHandle handle) {
  const char* text = nullptr;
  size_t length = 0;
  QUTLASS_CHECK_TORCH(torch_string_c_str(handle, &text));
  QUTLASS_CHECK_TORCH(torch_string_length(handle, &length));
  std::string result(text, length);
  QUTLASS_CHECK_TORCH(torch_delete_string(handle));
  return result;
}

TensorHandle gemm_with_tile(StringHandle op, int64_t tile, int64_t split_k, TensorHandle a,
                            TensorHandle b, OptionalTensorHandle a_scale,
                            OptionalTensorHandle b_scale, OptionalTensorHandle a_zero,
                            OptionalTensorHandle b_zero, OptionalTensorHandle b_sum,
                            OptionalTensorHandle bias, OptionalTensorHandle b_multiplier) {
  const Inputs<9> in(a, b, a_scale, b_scale, a_zero, b_zero, b_sum, bias, b_multiplier);
  const GemmArguments args =
      check_family(take_string(op), in.views(), in.views()[2] && in.views()[3]);
  const GemmConfig config = {static_cast<int>(tile), static_cast<int>(split_k)};
  return matmul<CudaBackend>(
      "_gemm_with_tile", in[0], args,
      [&](const CudaBackend& backend, const GemmArguments& run) { backend.gemm(run, config); });
}
#endif

template <typename Backend>
void register_operators(torch::stable::detail::StableLibrary& m) {
  m.impl("pack_int4", TORCH_BOX(&pack_int4<Backend>));
  m.impl("unpack_int4", TORCH_BOX(&unpack_int4<Backend>));
  m.impl("quantize_int8", TORCH_BOX(&quantize_int8<Backend>));
  m.impl("quantize_int4", TORCH_BOX(&quantize_int4<Backend>));
  m.impl("dequantize_int8", TORCH_BOX(&dequantize_int8<Backend>));
  m.impl("dequantize_int4", TORCH_BOX(&dequantize_int4<Backend>));
  m.impl("weight_sums", TORCH_BOX(&weight_sums<Backend>));
  m.impl("matmul_int8_bf16_tn", TORCH_BOX(&matmul_int8<Backend>));
  m.impl("matmul_w4a4_bf16_tn", TORCH_BOX(&matmul_w4a4<Backend>));
  m.impl("matmul_w4a8_bf16_tn", TORCH_BOX(&matmul_w4a8<Backend>));
  m.impl("matmul_int4_bf16_tn", TORCH_BOX(&matmul_int4<Backend>));
}

}  // namespace
}  // namespace qutlass::binding

// What holds for every operator below:
//
// - Tensors live on one device, CPU or CUDA; outputs are new, contiguous and on that device. On
//   CUDA the work is enqueued on the current stream of that device.
// - "[..., K]" is any number of leading dims, none included; they count as M rows. Unless said
//   otherwise the leading dims must be one stride apart and the last dim contiguous: a slice of
//   columns is read in place, a transposed matrix is refused.
// - A scale, zero point or sum is contiguous, or one value expanded (all strides 0).
// - float stands for float32, bfloat16 or float16. rint rounds half to even. Where a formula is
//   written in steps, each step is one float32 operation, rounded, never fused into an FMA.
// - Empty leading dims give an empty result. K is never 0, except for packing and dequantizing.
// - A tensor that does not fit raises ValueError before anything is launched; the message names the
//   operator and the argument, what came and what is taken. Values on a GPU are not looked at, as
//   that would make the host wait: their ranges are the caller's word (pack_int4 excepted).
STABLE_TORCH_LIBRARY(qutlass, m) {
  // pack_int4: two INT4 values a byte, in blocks of 32 along K (see common/nibble.h).
  //   w        int8, uint8, int16, int32 or int64 [..., K], values in [-8, 7], K a multiple of 32
  //   returns  uint8 [..., K/2], exact
  // A value out of range is an error that names the first one, for which on CUDA the host waits and
  // reads 8 bytes back. While the stream is captured into a graph it cannot: values out of range
  // are then saturated.
  m.def("pack_int4(Tensor w) -> Tensor");

  // unpack_int4: the exact inverse of pack_int4.
  //   packed   uint8 [..., K/2], contiguous, K a multiple of 32
  //   returns  int8 [..., K] in [-8, 7]
  m.def("unpack_int4(Tensor packed) -> Tensor");

  // quantize_int8: one scale a token (the last dim), or one for the tensor.
  //   x        float [..., K]; widened to float32
  //   scale    float, x.shape[:-1] (+ [1]) or one element (the only form with per_tensor): static
  //            quantization. None: computed.
  //   zero     int32 or int8 in [-128, 127], like scale, only together with it; makes the
  //            quantization asymmetric whatever `symmetric` says
  //   returns  q int8 [..., K]; scale float32 x.shape[:-1] ([1] with per_tensor), a copy where it
  //            was given; zero int32 like that scale, or None where symmetric
  // Symmetric: scale = amax / 127, q = clamp(rint(x / scale), -127, 127). Asymmetric:
  // scale = (max(x, 0) - min(x, 0)) / 255, zero = clamp(rint(-128 - min / scale), -128, 127),
  // q = clamp(rint(x / scale) + zero, -128, 127). Divisions are IEEE. A computed scale of 0 (only
  // zeros, or underflow) becomes 1. A token with a NaN or Inf, or whose scale overflows, gets scale
  // NaN, zero 0 and q 0, so that whatever uses it shows NaN; with a given scale a NaN becomes the
  // zero point and an Inf saturates.
  m.def(
      "quantize_int8(Tensor x, *, bool symmetric=True, Tensor? scale=None, Tensor? zero=None, "
      "bool per_tensor=False) -> (Tensor, Tensor, Tensor?)");

  // quantize_int4: the rules of quantize_int8 with 7 for 127, 15 for 255 and [-8, 7] for
  // [-128, 127], and the result packed.
  //   x           float [..., K], K a multiple of 32
  //   group_size  columns that share a scale, a multiple of 32 that divides K. None: the row.
  //   returns     packed uint8 [..., K/2]; scale float32 x.shape[:-1], with group_size
  //               x.shape[:-1] + [K / group_size]; zero int32 like it, or None where symmetric
  m.def(
      "quantize_int4(Tensor x, *, bool symmetric=True, Tensor? scale=None, Tensor? zero=None, "
      "int? group_size=None) -> (Tensor, Tensor, Tensor?)");

  // dequantize_int8: (q - zero) * scale in float32, rounded to `dtype`.
  //   q        int8 [..., K], contiguous
  //   scale    float, one element, q.shape[:-1] (+ [1]), or q.shape[:-1] + [G], G dividing K
  //   zero     int32, int8, float32 or bfloat16, one element or like scale. None: 0.
  //   dtype    float32 (also where None), bfloat16 or float16
  //   returns  dtype [..., K]
  m.def(
      "dequantize_int8(Tensor q, Tensor scale, Tensor? zero=None, *, ScalarType? dtype=None) -> "
      "Tensor");

  // dequantize_int4: dequantize_int8 of packed values; groups are multiples of 32.
  //   packed   uint8 [..., K/2], contiguous
  m.def(
      "dequantize_int4(Tensor packed, Tensor scale, Tensor? zero=None, *, ScalarType? dtype=None) "
      "-> Tensor");

  // weight_sums: the sum of each row, or group of a row; exact.
  //   w           int8 [N, K] or packed uint8 [N, K/2], contiguous
  //   group_size  columns in a group, a divisor of K (and a multiple of 32 where packed)
  //   returns     int32 [N]; with group_size [N, K / group_size]
  m.def("weight_sums(Tensor w, *, int? group_size=None) -> Tensor");

  // split_group_scales: group scales as a float scale a row times an integer multiplier a group,
  // the least-squares optimum. Implemented in Python (python/qutlass/ops.py) for every device.
  //   scales   float [N, G], finite and > 0 (a row with another gives scale NaN)
  //   zeros    int8 [N, G]: keeps multiplier * (q - zero) inside int8 for every q in [-8, 7]; on
  //            CUDA the host then waits to see whether any of them cannot be kept
  //   returns  b_scale float32 [N]; b_multiplier uint8 [N, G] in 1..15; the relative Frobenius
  //            error of their products, float32 []
  m.def("split_group_scales(Tensor scales, *, Tensor? zeros=None) -> (Tensor, Tensor, Tensor)");

  // matmul_int8_bf16_tn: out[m, n] = A[m, :] · W[n, :] (W8A8), A row-major, K contiguous in both.
  //   a        int8 [..., K], K a multiple of 16
  //   b        int8 [N, K], N >= 1, contiguous
  //   a_scale  float [M], [M, 1], a.shape[:-1] (+ [1]) or one element
  //   b_scale  float [N], [N, 1] or one element
  //   a_zero   int32 or int8 in [-128, 127], shaped as a_scale may be. None: 0.
  //   b_zero   int32 or int8 in [-128, 127], shaped as b_scale may be. None: 0.
  //   b_sum    int32 [N] or [N, 1], weight_sums(b): saves computing it where a_zero is given
  //   bias     float [N]. None: no addition.
  //   returns  bfloat16 [..., N]
  // acc = sum_k (a - a_zero)(b - b_zero), an exact integer; t = float32(acc) * b_scale;
  // t = t * a_scale; t = t + bias; out = bfloat16(t). The same bits on every device, with every
  // tile and in every batch.
  // K is at most 2^31 over the product of how far a - a_zero and b - b_zero reach (128 each, 255
  // with a zero point), so that acc fits int32: 131072 symmetric, 33024 with both zero points.
  // On CUDA a and b start at multiples of 16 bytes, and the rows of a are multiples of 16 bytes
  // apart.
  m.def(
      "matmul_int8_bf16_tn(Tensor a, Tensor b, Tensor a_scale, Tensor b_scale, "
      "Tensor? a_zero=None, Tensor? b_zero=None, Tensor? b_sum=None, Tensor? bias=None) -> Tensor");

  // matmul_w4a4_bf16_tn: matmul_int8_bf16_tn with both operands packed INT4 (W4A4).
  //   a        packed uint8 [..., K/2], K a multiple of 32
  //   b        packed uint8 [N, K/2], N >= 1, contiguous
  //   a_zero, b_zero  in [-8, 7]
  // The rest as there; K is limited by the reach of INT4 (8, 15 with a zero point).
  m.def(
      "matmul_w4a4_bf16_tn(Tensor a, Tensor b, Tensor a_scale, Tensor b_scale, "
      "Tensor? a_zero=None, Tensor? b_zero=None, Tensor? b_sum=None, Tensor? bias=None) -> Tensor");

  // matmul_w4a8_bf16_tn: INT8 activations by packed INT4 weights (W4A8).
  //   a        int8 [..., K], K a multiple of 32
  //   b        packed uint8 [N, K/2], N >= 1, contiguous
  // and one of three forms of the weight's scale, g = K / G in {32, 64, 128}:
  //   b_scale float [N], [N, 1] or one element; b_zero int32 or int8, shaped as b_scale may be;
  //     b_sum [N]: matmul_int8_bf16_tn with b_zero in [-8, 7].
  //   The same b_scale with b_multiplier uint8 [N, G] in 1..15; b_zero int8 [N, G]; b_sum [N, G]:
  //     the weight is b_scale[n] * w', w' = m[n, k/g] * (q - b_zero[n, k/g]), which must stay
  //     inside int8 (split_group_scales sees to it); acc = sum_k (a - a_zero) * w' is one exact
  //     integer, and the rest as in matmul_int8_bf16_tn.
  //   b_scale float [N, G], G > 1; b_zero int32 or int8 [N, G] in [-8, 7]; b_sum [N, G]: the exact
  //     integer of each group times its scale, summed over groups in float32, then times a_scale,
  //     plus bias. The same inputs give the same bits on the same device; against float64 the
  //     relative Frobenius error is at most 3e-3. K has no other limit.
  m.def(
      "matmul_w4a8_bf16_tn(Tensor a, Tensor b, Tensor a_scale, Tensor b_scale, "
      "Tensor? a_zero=None, Tensor? b_zero=None, Tensor? b_sum=None, Tensor? bias=None, "
      "Tensor? b_multiplier=None) -> Tensor");

  // matmul_int4_bf16_tn: bfloat16 activations by packed INT4 weights (W4A16); asked for, on integer
  // Tensor Cores.
  //   a        bfloat16 [..., K], K a multiple of 32
  //   b        packed uint8 [N, K/2], N >= 1, contiguous
  //   scales   float [N, G], K / G in {32, 64, 128} or K; [N] too where G is 1
  //   zeros    int32 or int8, or float32 or bfloat16 for fractional ones, shaped as scales.
  //            None: 0.
  //   bias     float [N]. None: no addition.
  //   act_bits 16, 8 or 4: how the activations are multiplied
  //   returns  bfloat16 [..., N]
  // act_bits=16: sum_k a * ((q - zeros) * scales) + bias, accumulated in float32. The same inputs
  // give the same bits on the same device; against float64 the relative Frobenius error is at most
  // 3e-3 at any K.
  // act_bits=8: (a8, a_scale) = quantize_int8(a), then matmul_w4a8_bf16_tn of a8 and b with scales
  // for b_scale, zeros for b_zero and the bias, bit for bit: one scale a row where G is 1, else
  // float group scales.
  // act_bits=4: the same with quantize_int4 and matmul_w4a4_bf16_tn; G is 1.
  // With 8 and 4 zeros are int32 or int8, K has the limit of that product, and a row of a with a
  // NaN or Inf gives a row of NaN. On CUDA quantizing is one launch more; its memory, M * K bytes
  // (half of that for INT4) and a float a row, comes from torch's allocator and is free again when
  // the call returns.
  // Alignment on CUDA as in matmul_int8_bf16_tn.
  m.def(
      "matmul_int4_bf16_tn(Tensor a, Tensor b, Tensor scales, Tensor? zeros=None, "
      "Tensor? bias=None, *, int act_bits=16) -> Tensor");

  // _gemm_with_tile: a product on a chosen row of the tile table, for tests and the bench; CUDA.
  //   op       the kernel family as the table names it ("w8a8", "w4a8_group" ...); for "w4a16"
  //            b_scale and b_zero are the operator's scales and zeros
  // Raises ValueError where the row cannot run the problem on the device.
  m.def(
      "_gemm_with_tile(str op, int tile, int split_k, Tensor a, Tensor b, Tensor? a_scale, "
      "Tensor? b_scale, Tensor? a_zero, Tensor? b_zero, Tensor? b_sum, Tensor? bias, "
      "Tensor? b_multiplier) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(qutlass, CPU, m) {
  qutlass::binding::register_operators<qutlass::binding::CpuBackend>(m);
}

STABLE_TORCH_LIBRARY_IMPL(qutlass, CUDA, m) {
  qutlass::binding::register_operators<qutlass::binding::CudaBackend>(m);
#ifdef QUTLASS_WITH_CUDA
  m.impl("_gemm_with_tile", TORCH_BOX(&qutlass::binding::gemm_with_tile));
#endif
}
