// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <utility>

#include "common/param.h"

// A call into torch's C shim. Ours, because torch renamed its own macro after 2.11.
#define QUTLASS_CHECK_TORCH(call)                                         \
  do {                                                                    \
    if ((call) != 0) throw std::runtime_error("torch: " #call " failed"); \
  } while (0)

namespace qutlass::binding {

// How tensors cross the boundary. Operators take and return plain handles instead of
// torch::stable::Tensor: a handle is trivially copyable, so TORCH_BOX passes it through without the
// shared_ptr that a stable::Tensor allocates for each argument of each call. Each handle owns a
// reference, which whoever receives it has to free (see Inputs). It is a struct because a bare
// pointer to torch's global type would make TORCH_BOX's own calls ambiguous.
struct TensorHandle {
  AtenTensorHandle value;
};
using OptionalTensorHandle = std::optional<TensorHandle>;

// Owns one reference to a tensor.
class OwnedTensor {
 public:
  OwnedTensor() = default;
  explicit OwnedTensor(AtenTensorHandle handle) : handle_(handle) {}
  OwnedTensor(OwnedTensor&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  OwnedTensor& operator=(OwnedTensor&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~OwnedTensor() {
    if (handle_) aoti_torch_delete_tensor_object(handle_);
  }

  AtenTensorHandle get() const { return handle_; }
  // Hands the reference to the caller, who returns it to torch.
  TensorHandle release() { return {std::exchange(handle_, nullptr)}; }

 private:
  AtenTensorHandle handle_ = nullptr;
};

enum class DeviceKind : int32_t { kCpu = 0, kCuda = 1, kOther = 2 };

// What a check may know of a tensor: plain data that borrows from a live tensor, or, for the fake
// kernels, from arrays that Python fills (python/qutlass/ops.py mirrors the layout field by field).
struct TensorView {
  const char* dtype_name = nullptr;  // "int8" as in torch.int8
  const int64_t* sizes = nullptr;
  const int64_t* strides = nullptr;  // elements
  const void* data = nullptr;        // null in a fake tensor, and in an empty one
  int64_t ndim = 0;
  DeviceKind device = DeviceKind::kCpu;
  int32_t device_index = 0;          // 0 on CPU
  DType dtype = DType::kNone;        // kNone: one that no operator takes

  int64_t last() const { return sizes[ndim - 1]; }
  int64_t numel() const {
    int64_t n = 1;
    for (int64_t i = 0; i < ndim; ++i) n *= sizes[i];
    return n;
  }
};

TensorView view_of(AtenTensorHandle);
DType dtype_of_name(const char* name);
// torch's own number of a dtype, and back.
int32_t torch_dtype_of(DType);
DType dtype_of_torch(int32_t torch_dtype);
const char* name_of_torch(int32_t torch_dtype);

// The sizes of a tensor to be made.
class Shape {
 public:
  static constexpr int64_t kMaxDims = 64;  // the checks refuse tensors of more

  Shape() = default;
  // The first `count` sizes of a view.
  Shape(const TensorView& view, int64_t count) {
    for (int64_t i = 0; i < count; ++i) add(view.sizes[i]);
  }
  Shape& add(int64_t size) {
    sizes_[ndim_++] = size;
    return *this;
  }
  const int64_t* sizes() const { return sizes_; }
  int64_t ndim() const { return ndim_; }

 private:
  int64_t sizes_[kMaxDims + 1];
  int64_t ndim_ = 0;
};

// An uninitialised contiguous tensor on the device of `like`.
OwnedTensor empty(const Shape&, DType, const TensorView& like);
void* data_of(const OwnedTensor&);

// The tensor arguments of one call: takes their references over from the stack and frees them when
// the call ends, whichever way it ends.
template <int kCount>
class Inputs {
 public:
  template <typename... Handles>
  explicit Inputs(Handles... handles) : owned_{own(handles)...} {
    static_assert(sizeof...(Handles) == kCount);
    for (int i = 0; i < kCount; ++i) {
      if (!owned_[i].get()) continue;
      views_[i] = view_of(owned_[i].get());
      pointers_[i] = &views_[i];
    }
  }
  Inputs(const Inputs&) = delete;
  Inputs& operator=(const Inputs&) = delete;

  const TensorView& operator[](int i) const { return views_[i]; }
  // In the order of the schema; null where an optional argument is absent.
  const TensorView* const* views() const { return pointers_; }

 private:
  static OwnedTensor own(TensorHandle handle) { return OwnedTensor(handle.value); }
  static OwnedTensor own(const OptionalTensorHandle& handle) {
    return OwnedTensor(handle ? handle->value : nullptr);
  }

  OwnedTensor owned_[kCount];
  TensorView views_[kCount];
  const TensorView* pointers_[kCount] = {};
};

}  // namespace qutlass::binding
