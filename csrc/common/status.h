// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace qutlass {

enum class StatusCode : int {
  kOk = 0,
  kInvalidArgument,  // a bug in the caller: the torch layer checks first and prints values
  kNotSupported,     // no kernel for this problem on this device
  kCudaError,        // `cuda_error` holds the cudaError_t
};

// What every core function returns. The core never throws and never prints.
struct Status {
  StatusCode code = StatusCode::kOk;
  int cuda_error = 0;
  const char* what = "";  // static storage

  constexpr bool ok() const { return code == StatusCode::kOk; }

  static constexpr Status success() { return {}; }
  static constexpr Status invalid(const char* what) {
    return {StatusCode::kInvalidArgument, 0, what};
  }
  static constexpr Status unsupported(const char* what) {
    return {StatusCode::kNotSupported, 0, what};
  }
  static constexpr Status cuda(int error, const char* what) {
    return {StatusCode::kCudaError, error, what};
  }
};

}  // namespace qutlass
