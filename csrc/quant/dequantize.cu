// SPDX-License-Identifier: Apache-2.0
//
// dequantize: out = (q - zero) * scale, two float32 roundings and then that of the output dtype.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/load_param.cuh"
#include "common/nibble.h"
#include "quant/launch.cuh"
#include "quant/quant.h"

namespace qutlass::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRun = 8;       // neighbouring values of one store: 16 bytes of a 16-bit dtype
constexpr int kInFlight = 2;  // units a thread loads before it uses the first

struct DequantizeKernelArguments {
  const void* q;
  int64_t values;      // rows * cols: neither input nor output has gaps
  int64_t group_size;  // divides cols, so that value e belongs to group e / group_size throughout
  Param scale, zero;
  void* out;
};

template <typename Out>
__device__ __forceinline__ Out narrow(float x);
template <>
__device__ __forceinline__ float narrow<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ __half narrow<__half>(float x) {
  return __float2half_rn(x);
}

struct Affine {
  float scale, zero;

  __device__ __forceinline__ Affine(const DequantizeKernelArguments& p, int64_t value) {
    const bool one = p.scale.stride == 0 && p.zero.stride == 0;
    const int64_t entry = one ? 0 : divide_index(value, p.group_size);
    scale = device::load_float(p.scale.data, p.scale.dtype, entry * p.scale.stride);
    zero = p.zero.data == nullptr
               ? 0.f
               : device::load_float(p.zero.data, p.zero.dtype, entry * p.zero.stride);
  }
  __device__ __forceinline__ float operator()(int q) const {
    return __fmul_rn(__fsub_rn(__int2float_rn(q), zero), scale);
  }
};

// Eight values, given as two words of four int8, to `out`, which is 16-byte aligned.
template <typename Out>
__device__ __forceinline__ void store_run(Out* out, uint32_t first, uint32_t second, Affine real) {
  alignas(16) Out value[kRun];
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    value[i] = narrow<Out>(real(static_cast<int8_t>((i < 4 ? first : second) >> (8 * (i % 4)))));
  }
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(value) / 16); ++i) {
    reinterpret_cast<uint4*>(out)[i] = reinterpret_cast<const uint4*>(value)[i];
  }
}

// A unit is 8 bytes of q: a run of INT8, or two runs of INT4, 16 columns apart.
template <typename Out, int kBits>
__global__ void __launch_bounds__(kThreads) dequantize_kernel(const DequantizeKernelArguments p) {
  constexpr int kPerUnit = 64 / kBits;
  const int64_t units = p.values / kPerUnit;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kThreads * kInFlight) + threadIdx.x;
  uint2 word[kInFlight];
#pragma unroll
  for (int i = 0; i < kInFlight; ++i) {
    const int64_t unit = first + i * kThreads;
    if (unit < units) word[i] = __ldg(static_cast<const uint2*>(p.q) + unit);
  }
#pragma unroll
  for (int i = 0; i < kInFlight; ++i) {
    const int64_t unit = first + i * kThreads;
    if (unit >= units) return;
    Out* out = static_cast<Out*>(p.out);
    if constexpr (kBits == 8) {
      const int64_t value = unit * kRun;
      store_run(out + value, word[i].x, word[i].y, Affine(p, value));
    } else {
      const int64_t low = unit / 2 * kInt4Block + unit % 2 * kRun, high = low + kInt4BlockBytes;
      const Affine real(p, low);
      store_run(out + low, int4_word_low(word[i].x), int4_word_low(word[i].y), real);
      store_run(out + high, int4_word_high(word[i].x), int4_word_high(word[i].y),
                p.group_size % kInt4Block == 0 ? real : Affine(p, high));
    }
  }
}

// Any alignment, any group size: one thread a byte of q.
template <typename Out, int kBits>
__global__ void __launch_bounds__(kThreads)
    dequantize_bytes_kernel(const DequantizeKernelArguments p) {
  const int64_t byte = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (byte >= p.values * kBits / 8) return;
  const uint8_t q = static_cast<const uint8_t*>(p.q)[byte];
  Out* out = static_cast<Out*>(p.out);
  if constexpr (kBits == 8) {
    out[byte] = narrow<Out>(Affine(p, byte)(static_cast<int8_t>(q)));
  } else {
    const int64_t low = byte / kInt4BlockBytes * kInt4Block + byte % kInt4BlockBytes;
    const int64_t high = low + kInt4BlockBytes;
    out[low] = narrow<Out>(Affine(p, low)(static_cast<int8_t>(int4_word_low(q))));
    out[high] = narrow<Out>(Affine(p, high)(static_cast<int8_t>(int4_word_high(q))));
  }
}

template <typename Out, int kBits>
Status dequantize_as(const DequantizeKernelArguments& p, void* stream) {
  constexpr int kPerUnit = 64 / kBits;
  const bool one = p.scale.stride == 0 && p.zero.stride == 0;
  if (aligned(p.q, 8) && aligned(p.out, 16) && p.values % kPerUnit == 0 &&
      (one || p.group_size % kRun == 0)) {
    return launch(&dequantize_kernel<Out, kBits>,
                  ceil_div(p.values / kPerUnit, kThreads * kInFlight), kThreads, stream,
                  "dequantize", p);
  }
  return launch(&dequantize_bytes_kernel<Out, kBits>, ceil_div(p.values * kBits / 8, kThreads),
                kThreads, stream, "dequantize", p);
}

template <typename Out>
Status dequantize_bits(int bits, const DequantizeKernelArguments& p, void* stream) {
  return bits == 8 ? dequantize_as<Out, 8>(p, stream) : dequantize_as<Out, 4>(p, stream);
}

}  // namespace

Status dequantize(const DequantizeArguments& a, void* stream) {
  if (a.bits != 8 && a.bits != 4) return Status::invalid("dequantize: bits must be 8 or 4");
  if (a.rows < 0 || a.cols < 0) return Status::invalid("dequantize: negative size");
  if (a.bits == 4 && a.cols % kInt4Block != 0) {
    return Status::invalid("dequantize: INT4 needs cols to be a multiple of 32");
  }
  if (a.rows * a.cols == 0) return Status::success();
  if (a.group_size <= 0 || a.cols % a.group_size != 0) {
    return Status::invalid("dequantize: group_size must divide cols");
  }
  if (!a.scale.present()) return Status::invalid("dequantize: no scale");
  const DequantizeKernelArguments p = {a.q, a.rows * a.cols, a.group_size, a.scale, a.zero, a.out};
  switch (a.out_dtype) {
    case DType::kFloat32: return dequantize_bits<float>(a.bits, p, stream);
    case DType::kBFloat16: return dequantize_bits<__nv_bfloat16>(a.bits, p, stream);
    case DType::kFloat16: return dequantize_bits<__half>(a.bits, p, stream);
    default: return Status::invalid("dequantize: out must be float32, bfloat16 or float16");
  }
}

}  // namespace qutlass::cuda
