// SPDX-License-Identifier: Apache-2.0
// The warp-wide instructions the mainloop is made of. CUTLASS wraps the integer mma only in its
// saturating form; sums here must wrap modulo 2^32 to stay exact, so these are the plain forms.
#pragma once

#include <cstdint>

namespace qutlass::device {

// mma_*: D = A * B + C. accumulate_*: D += A * B where `really`, which is the same in all lanes;
// else nothing, which costs an issue slot instead of a product, and no branch. On 8.x it is always
// done: there the compiler puts a WARPSYNC in front of each mma that has a predicate.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define QUTLASS_REALLY ""
#else
#define QUTLASS_REALLY "@p "
#endif
#define QUTLASS_MMA(NAME, SHAPE_AND_TYPES, T, R)                                              \
  __device__ __forceinline__ void mma_##NAME(T(&d)[4], const uint32_t (&a)[4],                \
                                             const uint32_t (&b)[2], const T(&c)[4]) {        \
    asm volatile("mma.sync.aligned." SHAPE_AND_TYPES                                          \
                 " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};\n"               \
                 : "=" R(d[0]), "=" R(d[1]), "=" R(d[2]), "=" R(d[3])                         \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), R(c[0]), \
                   R(c[1]), R(c[2]), R(c[3]));                                                \
  }                                                                                           \
  __device__ __forceinline__ void accumulate_##NAME(T(&d)[4], const uint32_t (&a)[4],         \
                                                    const uint32_t (&b)[2], bool really) {    \
    asm volatile("{.reg .pred p; setp.ne.b32 p, %10, 0;\n" QUTLASS_REALLY                     \
                 "mma.sync.aligned." SHAPE_AND_TYPES                                          \
                 " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};}\n"                  \
                 : "+" R(d[0]), "+" R(d[1]), "+" R(d[2]), "+" R(d[3])                         \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]),          \
                   "r"(static_cast<int>(really)));                                            \
  }

QUTLASS_MMA(s8, "m16n8k32.row.col.s32.s8.s8.s32", int, "r")         // A 16x32, B 32x8
QUTLASS_MMA(s8_u8, "m16n8k32.row.col.s32.s8.u8.s32", int, "r")      // the same, B unsigned
QUTLASS_MMA(s4, "m16n8k64.row.col.s32.s4.s4.s32", int, "r")         // A 16x64, B 64x8
QUTLASS_MMA(bf16, "m16n8k16.row.col.f32.bf16.bf16.f32", float, "f")  // A 16x16, B 16x8
#undef QUTLASS_MMA
#undef QUTLASS_REALLY

__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}
__device__ __forceinline__ void ldmatrix_x2(uint32_t& r0, uint32_t& r1, uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];\n"
               : "=r"(r0), "=r"(r1)
               : "r"(address));
}

// The transpose of an 8 x 8 matrix of words, of whose row lane / 4 a lane has x0 in column
// 2 * (lane % 4) and x1 in the next: the instruction moves halves.
__device__ __forceinline__ void transpose_8x8(float& y0, float& y1, float x0, float x1) {
  uint32_t half[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t pair =
        __byte_perm(__float_as_uint(x0), __float_as_uint(x1), i == 0 ? 0x5410 : 0x7632);
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(half[i]) : "r"(pair));
  }
  y0 = __uint_as_float(__byte_perm(half[0], half[1], 0x5410));
  y1 = __uint_as_float(__byte_perm(half[0], half[1], 0x7632));
}

__device__ __forceinline__ void load_shared_64(uint32_t (&x)[2], uint32_t address) {
  asm volatile("ld.shared.v2.b32 {%0,%1}, [%2];\n" : "=r"(x[0]), "=r"(x[1]) : "r"(address));
}

__device__ __forceinline__ void load_shared_128(uint32_t (&x)[4], uint32_t address) {
  asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(address));
}

__device__ __forceinline__ void store_shared_128(uint32_t address, const uint32_t (&x)[4]) {
  asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};\n" ::"r"(address), "r"(x[0]), "r"(x[1]),
               "r"(x[2]), "r"(x[3])
               : "memory");
}

// The same where `really`, without a branch.
__device__ __forceinline__ void store_shared_128_if(bool really, uint32_t address,
                                                    const uint32_t (&x)[4]) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %5, 0;\n"
      "@p st.shared.v4.b32 [%0], {%1,%2,%3,%4};}\n" ::"r"(address),
      "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(static_cast<int>(really))
      : "memory");
}

// 16 bytes to shared memory, zeros where `valid` is false (nothing is read then).
__device__ __forceinline__ void copy_async_16(uint32_t shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(shared),
               "l"(global), "r"(valid ? 16 : 0));
}
// The same where `really`, without a branch.
__device__ __forceinline__ void copy_async_16_if(bool really, uint32_t shared, const void* global,
                                                 bool valid) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %3, 0;\n"
      "@p cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;}\n" ::"r"(shared),
      "l"(global), "r"(valid ? 16 : 0), "r"(static_cast<int>(really)));
}
__device__ __forceinline__ void copy_async_4(uint32_t shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;\n" ::"r"(shared), "l"(global));
}
// Brings the line of `global` to L2.
__device__ __forceinline__ void prefetch(const void* global) {
  asm volatile("prefetch.global.L2 [%0];\n" ::"l"(global));
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;\n" ::); }
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending));
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// x - y * z modulo 2^32, where signed integers may not overflow.
__device__ __forceinline__ int wrapping_minus(int x, int64_t y, int z) {
  return static_cast<int>(static_cast<uint32_t>(x) -
                          static_cast<uint32_t>(y) * static_cast<uint32_t>(z));
}

// x, of which the compiler no longer knows where it came from: what is worked out from it is worked
// out where it is used, not ahead of a loop that has no registers left to keep it in.
__device__ __forceinline__ int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// (x & y) ^ z in one instruction: with two constants the compiler makes two of it, which take one
// as an immediate each.
__device__ __forceinline__ uint32_t and_xor(uint32_t x, uint32_t y, uint32_t z) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0x6A;\n" : "=r"(d) : "r"(x), "r"(y), "r"(z));
  return d;
}

// x * y + z on packed pairs of bfloat16, rounded once.
__device__ __forceinline__ uint32_t bf16x2_fma(uint32_t x, uint32_t y, uint32_t z) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;\n" : "=r"(d) : "r"(x), "r"(y), "r"(z));
  return d;
}

// x * y, the same.
__device__ __forceinline__ uint32_t bf16x2_mul(uint32_t x, uint32_t y) {
  return bf16x2_fma(x, y, 0x80008000u);
}

}  // namespace qutlass::device
