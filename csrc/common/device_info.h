// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "common/status.h"

namespace qutlass {

// What selection needs to know of a GPU. Plain data, so that a test can describe a card it lacks.
struct DeviceInfo {
  int sm = 0;                   // 10 * major + minor: 80, 86, 89, 90
  int sm_count = 0;             // multiprocessors
  int smem_per_block = 0;       // opt-in limit a block, bytes
  int smem_per_sm = 0;          // bytes
  int64_t l2_bytes = 0;
  double bandwidth = 0;         // device memory, bytes/s; 0: unknown

  // mma.sync on s4 operands is one SASS instruction on these and emulated elsewhere.
  constexpr bool native_int4() const { return sm >= 80 && sm < 90; }
};

// Cached per device; defined where the CUDA runtime is (csrc/common/device_info.cu).
Status query_device(int device, DeviceInfo* info);

}  // namespace qutlass
