// SPDX-License-Identifier: Apache-2.0
// What a build leaves out of every GEMM kernel, whose results are then wrong: how much faster a
// kernel is without a part says what that part costs it (tools/leave_out.py). The CMake variable
// QUTLASS_LEAVE_OUT names the part. Parts without which the compiler could drop others, whose
// results nothing would use, are none.
#pragma once

namespace qutlass {

enum class Part {
  kNothing,
  kUnpacking,  // weights into the fragments of an mma
  kCopying,    // operands into shared memory
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
    case Part::kCopying: return "copying";
    case Part::kStoring: return "storing";
    default: return "";
  }
}

}  // namespace qutlass
