// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "common/device_info.h"

namespace qutlass {

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
