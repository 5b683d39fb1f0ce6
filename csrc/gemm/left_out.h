// SPDX-License-Identifier: Apache-2.0
// What a build leaves out of every GEMM kernel, whose results are then wrong: how much faster a
// kernel is without a part says what that part costs it (tools/leave_out.py). The CMake variable
// QUTLASS_LEAVE_OUT names the part.
#pragma once

namespace qutlass {

enum class Part {
  kNothing,
  kUnpacking,  // weights into the fragments of an mma
  kFolding,    // sums of a group into totals
  kCopying,    // operands into shared memory
  kLoading,    // fragments from shared memory
  kProducts,   // mma
  kStoring,    // the epilogue
};

#ifndef QUTLASS_LEAVE_OUT
#define QUTLASS_LEAVE_OUT kNothing
#endif
constexpr Part kLeftOut = Part::QUTLASS_LEAVE_OUT;
constexpr bool leaves_out(Part part) { return part == kLeftOut; }

constexpr const char* name_of(Part part) {
  switch (part) {
    case Part::kUnpacking: return "unpacking";
    case Part::kFolding: return "folding";
    case Part::kCopying: return "copying";
    case Part::kLoading: return "loading";
    case Part::kProducts: return "products";
    case Part::kStoring: return "storing";
    default: return "";
  }
}

}  // namespace qutlass
