// SPDX-License-Identifier: Apache-2.0
#pragma once

// Include first in every .cpp of this folder. The contract rounds every multiplication and addition
// on its own; a compiler that fuses them (GCC does by default wherever the target has FMA) changes
// bits. Said in the source so that it does not hang on the flags of a build.
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif
#if defined(__FAST_MATH__)
#error "qutlass: -ffast-math breaks the rounding that the operator contract promises"
#endif
