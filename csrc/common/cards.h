// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "common/device_info.h"

namespace qutlass {

// The limits are those of the CUDA programming guide's table of compute capabilities, the rest the
// data sheets' of the A100 40 GB, RTX 3090, RTX 4090 and H200.
inline constexpr DeviceInfo kCards[] = {
    {80, 108, 163 << 10, 164 << 10, int64_t{40} << 20, 1.555e12},
    {86, 82, 99 << 10, 100 << 10, int64_t{6} << 20, 0.936e12},
    {89, 128, 99 << 10, 100 << 10, int64_t{72} << 20, 1.008e12},
    {90, 132, 227 << 10, 228 << 10, int64_t{50} << 20, 4.8e12},
};

// A card of each compute capability, so that a choice can be explained, and with QUTLASS_ASSUME_SM
// also run, where there is none. Null: no such card.
const DeviceInfo* find_card(int sm);

// QUTLASS_ASSUME_SM=86 gives whatever GPU is there the limits of that card wherever kernels are
// chosen and checked for legality, so that the choices of one GPU can be run, and their results
// checked, on a newer one. Times then mean nothing.
struct Assumption {
  const DeviceInfo* card = nullptr;  // null: none is in force
  std::string error;                 // what is wrong with the variable, else empty
};

Assumption parse_assumption(const char* value);  // null and "": none
// That of the environment, read once.
const Assumption& assumption();

// The limits that selection works with on a GPU that has those of `info`: the GPU's own, or in
// their place those of an assumed card. info->sm is 0 where no GPU is there: any card will do.
Status apply_assumption(const Assumption&, DeviceInfo* info);

}  // namespace qutlass
