// SPDX-License-Identifier: Apache-2.0
#include "torch/tensor.h"

#include <array>
#include <cstring>
#include <stdexcept>
#include <string>

namespace qutlass::binding {
namespace {

struct DTypeRow {
  int32_t torch_dtype;
  const char* name;
  DType dtype;
};

// torch numbers its dtypes behind functions, so that the numbers may change between versions. They
// are asked for once.
class DTypeTable {
 public:
  static const DTypeTable& get() {
    static const DTypeTable table;
    return table;
  }

  const DTypeRow& of_torch(int32_t torch_dtype) const {
    static constexpr DTypeRow kUnknown = {-1, "another dtype", DType::kNone};
    if (torch_dtype < 0 || torch_dtype >= kNumbers || !by_number_[torch_dtype]) return kUnknown;
    return *by_number_[torch_dtype];
  }
  const std::array<DTypeRow, 20>& rows() const { return rows_; }

 private:
  DTypeTable() {
    for (const DTypeRow& row : rows_) {
      if (row.torch_dtype >= 0 && row.torch_dtype < kNumbers) by_number_[row.torch_dtype] = &row;
    }
  }

  static constexpr int kNumbers = 128;
  // Those that no operator takes are here for their names.
  std::array<DTypeRow, 20> rows_ = {{
      {aoti_torch_dtype_float32(), "float32", DType::kFloat32},
      {aoti_torch_dtype_bfloat16(), "bfloat16", DType::kBFloat16},
      {aoti_torch_dtype_float16(), "float16", DType::kFloat16},
      {aoti_torch_dtype_int8(), "int8", DType::kInt8},
      {aoti_torch_dtype_uint8(), "uint8", DType::kUInt8},
      {aoti_torch_dtype_int16(), "int16", DType::kInt16},
      {aoti_torch_dtype_int32(), "int32", DType::kInt32},
      {aoti_torch_dtype_int64(), "int64", DType::kInt64},
      {aoti_torch_dtype_float64(), "float64", DType::kNone},
      {aoti_torch_dtype_bool(), "bool", DType::kNone},
      {aoti_torch_dtype_uint16(), "uint16", DType::kNone},
      {aoti_torch_dtype_uint32(), "uint32", DType::kNone},
      {aoti_torch_dtype_uint64(), "uint64", DType::kNone},
      {aoti_torch_dtype_complex32(), "complex32", DType::kNone},
      {aoti_torch_dtype_complex64(), "complex64", DType::kNone},
      {aoti_torch_dtype_complex128(), "complex128", DType::kNone},
      {aoti_torch_dtype_float8_e4m3fn(), "float8_e4m3fn", DType::kNone},
      {aoti_torch_dtype_float8_e5m2(), "float8_e5m2", DType::kNone},
      {aoti_torch_dtype_float8_e4m3fnuz(), "float8_e4m3fnuz", DType::kNone},
      {aoti_torch_dtype_float8_e5m2fnuz(), "float8_e5m2fnuz", DType::kNone},
  }};
  std::array<const DTypeRow*, kNumbers> by_number_ = {};
};

}  // namespace

TensorView view_of(AtenTensorHandle handle) {
  static const int32_t kTorchCpu = aoti_torch_device_type_cpu();
  static const int32_t kTorchCuda = aoti_torch_device_type_cuda();
  TensorView view;
  int64_t* sizes = nullptr;
  int64_t* strides = nullptr;
  int32_t torch_dtype = 0;
  int32_t device = 0;
  QUTLASS_CHECK_TORCH(aoti_torch_get_dim(handle, &view.ndim));
  QUTLASS_CHECK_TORCH(aoti_torch_get_sizes(handle, &sizes));
  QUTLASS_CHECK_TORCH(aoti_torch_get_strides(handle, &strides));
  QUTLASS_CHECK_TORCH(aoti_torch_get_dtype(handle, &torch_dtype));
  QUTLASS_CHECK_TORCH(aoti_torch_get_device_type(handle, &device));
  QUTLASS_CHECK_TORCH(torch_get_const_data_ptr(handle, &view.data));
  view.sizes = sizes;
  view.strides = strides;
  const DTypeRow& row = DTypeTable::get().of_torch(torch_dtype);
  view.dtype = row.dtype;
  view.dtype_name = row.name;
  view.device = device == kTorchCpu    ? DeviceKind::kCpu
                : device == kTorchCuda ? DeviceKind::kCuda
                                       : DeviceKind::kOther;
  if (view.device != DeviceKind::kCpu) {
    QUTLASS_CHECK_TORCH(aoti_torch_get_device_index(handle, &view.device_index));
  }
  return view;
}

DType dtype_of_name(const char* name) {
  for (const DTypeRow& row : DTypeTable::get().rows()) {
    if (std::strcmp(row.name, name) == 0) return row.dtype;
  }
  return DType::kNone;
}

int32_t torch_dtype_of(DType dtype) {
  for (const DTypeRow& row : DTypeTable::get().rows()) {
    if (row.dtype == dtype) return row.torch_dtype;
  }
  return -1;
}

DType dtype_of_torch(int32_t torch_dtype) { return DTypeTable::get().of_torch(torch_dtype).dtype; }

const char* name_of_torch(int32_t torch_dtype) {
  return DTypeTable::get().of_torch(torch_dtype).name;
}

OwnedTensor empty(const Shape& shape, DType dtype, const TensorView& like) {
  static const int32_t kTorchCpu = aoti_torch_device_type_cpu();
  static const int32_t kTorchCuda = aoti_torch_device_type_cuda();
  int64_t strides[Shape::kMaxDims + 1];
  int64_t stride = 1;
  for (int64_t i = shape.ndim() - 1; i >= 0; --i) {
    strides[i] = stride;
    if (shape.sizes()[i] > 1) stride *= shape.sizes()[i];
  }
  AtenTensorHandle handle = nullptr;
  const bool on_gpu = like.device == DeviceKind::kCuda;
  // The C interface drops torch's own exception, so what it was about is said here.
  if (aoti_torch_empty_strided(shape.ndim(), shape.sizes(), strides, torch_dtype_of(dtype),
                               on_gpu ? kTorchCuda : kTorchCpu, like.device_index,
                               &handle) != TORCH_SUCCESS) {
    throw std::runtime_error("qutlass: torch could not allocate " +
                             std::to_string(stride * size_of(dtype)) + " bytes on " +
                             (on_gpu ? "cuda:" + std::to_string(like.device_index) : "cpu"));
  }
  return OwnedTensor(handle);
}

void* data_of(const OwnedTensor& tensor) {
  void* data = nullptr;
  QUTLASS_CHECK_TORCH(torch_get_mutable_data_ptr(tensor.get(), &data));
  return data;
}

}  // namespace qutlass::binding
