// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stdexcept>
#include <string>

#include "gemm/gemm.h"
#include "gemm/problem.h"
#include "quant/quant.h"
#include "torch/tensor.h"

// Where an operator runs. ops.cpp writes each operator once, against the members these have in
// common; an object lives for one call, and is made after the checks have passed.
namespace qutlass::binding {

// Throws std::runtime_error unless ok.
void raise_if_failed(const char* op, const Status&);

class CpuBackend {
 public:
  CpuBackend(const char* op, const TensorView& /*on*/) : op_(op) {}

  // Whether a value was out of range; if so, the flat index of the first one and what it is.
  bool pack_int4(PackArguments, int64_t* bad_index, int64_t* bad_value) const;
  void unpack_int4(const UnpackArguments&) const;
  void quantize(const QuantizeArguments&) const;
  void dequantize(const DequantizeArguments&) const;
  void weight_sums(const WeightSumsArguments&) const;
  void gemm(const GemmArguments&) const;

 private:
  const char* op_;
};

#ifdef QUTLASS_WITH_CUDA
// Makes the tensor's device current for the call and enqueues on torch's current stream there.
class CudaBackend {
 public:
  CudaBackend(const char* op, const TensorView& on);
  CudaBackend(const CudaBackend&) = delete;
  CudaBackend& operator=(const CudaBackend&) = delete;
  ~CudaBackend();

  bool pack_int4(PackArguments, int64_t* bad_index, int64_t* bad_value) const;
  void unpack_int4(const UnpackArguments&) const;
  void quantize(const QuantizeArguments&) const;
  void dequantize(const DequantizeArguments&) const;
  void weight_sums(const WeightSumsArguments&) const;
  void gemm(const GemmArguments&) const;
  // On a row of the tile table that the caller chose.
  void gemm(const GemmArguments&, const GemmConfig&) const;

 private:
  DeviceInfo limits() const;
  void launch(const GemmArguments&, const GemmConfig&, const DeviceInfo&) const;
  OwnedTensor scratch(size_t bytes) const;

  const char* op_;
  const TensorView& on_;
  DeviceGuardHandle guard_ = nullptr;  // null where the device was current already
  void* stream_ = nullptr;
};
#else
// The operators are registered for CUDA tensors all the same, to say what is missing. The inherited
// members are never reached.
class CudaBackend : public CpuBackend {
 public:
  CudaBackend(const char* op, const TensorView& on) : CpuBackend(op, on) {
    throw std::runtime_error(std::string(op) +
                             ": this build of qutlass has no CUDA kernels, got CUDA tensors "
                             "(python -m qutlass doctor says how to build with CUDA)");
  }
};
#endif

}  // namespace qutlass::binding
