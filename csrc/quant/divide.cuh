// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace qutlass::cuda {

// Division of many values by one, each quotient rounded exactly as IEEE division rounds it and then
// to an integer, without a division per value. Good for divisors in this range, which keeps every
// step below clear of over- and underflow wherever the quotient does not round to 0 anyway.
constexpr float kLeastDivisor = 0x1p-90f, kGreatestDivisor = 0x1p90f;

// RN(1 / divisor). The hardware's estimate and one Newton step are what __frcp_rn() runs for
// exponents away from the ends; without its path for the others, which costs registers.
__device__ __forceinline__ float rounded_reciprocal(float divisor) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(divisor));
  return __fmaf_rn(y, -__fmaf_rn(divisor, y, -1.f), y);
}

// A float plus this has its value, rounded half to even, in the low bits of its pattern, negative
// numbers in two's complement: a conversion on the FMA pipe, which is several times as wide as the
// one that converts. Good for magnitudes up to 2^22.
constexpr float kIntegerBias = 12582912.f;  // 1.5 * 2^23

// rint(RN(x / divisor)) + kIntegerBias. With y = RN(1 / s), q0 = x * y is within 2 ulp of the
// quotient; a step q1 = q0 + (x - q0 * s) * y brings it within one ulp, and the same step from
// there is RN(x / s) (Markstein's theorem: y correctly rounded, q1 within an ulp, no over- or
// underflow). A plain x * y would not do: bf16 data often lands on a quotient that rounds to k +
// 1/2, where the last bit decides between two integers.
__device__ __forceinline__ float rounded_quotient(float x, float divisor, float reciprocal) {
  float q = __fmul_rn(x, reciprocal);
  q = __fmaf_rn(__fmaf_rn(-q, divisor, x), reciprocal, q);
  q = __fmaf_rn(__fmaf_rn(-q, divisor, x), reciprocal, q);
  return __fadd_rn(q, kIntegerBias);
}

}  // namespace qutlass::cuda
