// SPDX-License-Identifier: Apache-2.0
#include "cpu/gemm.h"

#include <torch/csrc/stable/c/shim.h>

#include <limits>

#include "common/parallel.h"
#include "torch/backend.h"

namespace qutlass::binding {
namespace {

// torch's own intra-op pool, so that torch.set_num_threads() and the thread affinity of the program
// hold for these kernels too, and no second pool fights with it for cores.
void run_on_torch_threads(int64_t begin, int64_t end, int64_t grain, ParallelRunner::RangeFn fn,
                          void* context) {
  struct Call {
    ParallelRunner::RangeFn fn;
    void* context;
  } call = {fn, context};
  QUTLASS_CHECK_TORCH(torch_parallel_for(
      begin, end, grain,
      [](int64_t from, int64_t to, void* ctx) {
        const Call& c = *static_cast<const Call*>(ctx);
        c.fn(c.context, from, to);
      },
      &call));
}

constexpr ParallelRunner kTorchThreads = {run_on_torch_threads};

int64_t value_at(const PackArguments& args, int64_t flat_index) {
  const int64_t at = flat_index / args.cols * args.w_stride + flat_index % args.cols;
  switch (args.w_dtype) {
    case DType::kInt8: return static_cast<const int8_t*>(args.w)[at];
    case DType::kUInt8: return static_cast<const uint8_t*>(args.w)[at];
    case DType::kInt16: return static_cast<const int16_t*>(args.w)[at];
    case DType::kInt32: return static_cast<const int32_t*>(args.w)[at];
    default: return static_cast<const int64_t*>(args.w)[at];
  }
}

}  // namespace

#ifndef QUTLASS_WITH_CUDA  // else in backend_cuda.cpp, which can spell CUDA's errors
void raise_if_failed(const char* op, const Status& status) {
  if (!status.ok()) throw std::runtime_error(std::string(op) + ": " + status.what);
}
#endif

bool CpuBackend::pack_int4(PackArguments args, int64_t* bad_index, int64_t* bad_value) const {
  args.first_bad = bad_index;
  raise_if_failed(op_, cpu::pack_int4(args, kTorchThreads));
  if (*bad_index == std::numeric_limits<int64_t>::max()) return false;
  *bad_value = value_at(args, *bad_index);
  return true;
}

void CpuBackend::unpack_int4(const UnpackArguments& args) const {
  raise_if_failed(op_, cpu::unpack_int4(args, kTorchThreads));
}

void CpuBackend::quantize(const QuantizeArguments& args) const {
  raise_if_failed(op_, cpu::quantize(args, kTorchThreads));
}

void CpuBackend::dequantize(const DequantizeArguments& args) const {
  raise_if_failed(op_, cpu::dequantize(args, kTorchThreads));
}

void CpuBackend::weight_sums(const WeightSumsArguments& args) const {
  raise_if_failed(op_, cpu::weight_sums(args, kTorchThreads));
}

void CpuBackend::gemm(const GemmArguments& args) const {
  raise_if_failed(op_, cpu::gemm(args, kTorchThreads));
}

}  // namespace qutlass::binding
