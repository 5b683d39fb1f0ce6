// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "common/parallel.h"
#include "common/status.h"
#include "gemm/problem.h"

namespace qutlass::cpu {

// Every product of GemmOp on host memory, bit for bit what the contract says.
Status gemm(const GemmArguments&, const ParallelRunner&);
// The instruction set the int8 products were dispatched to ("avx2", "avx512vnni", "generic" ...).
const char* gemm_isa();

}  // namespace qutlass::cpu
