// SPDX-License-Identifier: Apache-2.0
// One multistage threadblock mainloop for every product. It takes the place of CUTLASS 2.x's
// threadblock::MmaMultistage in a GemmUniversal kernel: cp.async stages in shared memory, fragments
// double-buffered in registers, mma.sync. What differs between the products is how a step's
// fragments are made from the bytes in shared memory, and whether partial sums are folded into
// float32 totals once a group.
//
// Shared memory holds rows of the operands as they are in global memory (4-bit weights stay 4-bit),
// in 16-byte chunks permuted by XOR so that both the copies and the fragment loads touch every bank
// once. Where the contract's nibble order puts k, with t = lane % 4 and g = lane / 4:
//
//   16-byte chunk of 32 int4 (one row n)   lane t of the quad gets one 32-bit word by ldmatrix:
//   byte:  0 1 2 3 | 4 5 6 7 | ...           low nibbles  k = 4t .. 4t+3       -> fragment b0
//   word:    t=0   |   t=1   | ...           high nibbles k = 16+4t .. 16+4t+3 -> fragment b1
//
// which is the k order of mma.m16n8k32.s8 itself. mma.m16n8k16.bf16 wants k = 2t, 2t+1, 8+2t, 9+2t
// in lane t, which are bytes 2t, 2t+1, 8+2t, 9+2t: two 32-bit loads and a byte permutation make
// that word, whose low nibbles are one instruction's fragment and whose high nibbles the next
// one's.
#pragma once

#include "common/load_param.cuh"
#include "cutlass/gemm/gemm.h"
#include "cutlass/layout/matrix.h"
#include "gemm/mma.cuh"
#include "gemm/problem.h"
#include "gemm/tiles.h"

namespace qutlass::threadblock {

using namespace qutlass::device;

// One operand's tile in shared memory: kRows rows of kRowBytes.
template <int kRows_, int kRowBytes_>
struct SharedTile {
  static constexpr int kRows = kRows_;
  static constexpr int kRowBytes = kRowBytes_;
  static constexpr int kBytes = kRows * kRowBytes;
  static constexpr int kChunks = kRowBytes / 16;  // of a row
  static_assert(kRowBytes >= 16 && (kRowBytes & (kRowBytes - 1)) == 0, "rows are powers of two");
  // Rows that share one 128-byte line of banks, and the chunk positions the XOR can move between.
  static constexpr int kRowsPerLine = kChunks >= 8 ? 1 : 8 / kChunks;
  static constexpr int kXorRange = kChunks >= 8 ? 8 : kChunks;
};

// Physical chunk = logical chunk ^ swizzle(row). Any 8 consecutive rows of one logical chunk lie on
// 8 different bank groups, which is what ldmatrix and cp.async want.
template <typename Tile>
__device__ __forceinline__ int swizzle(int row) {
  return (row / Tile::kRowsPerLine) % Tile::kXorRange;
}
// Copies one operand's tiles from global memory, k tile after k tile.
template <typename Tile, int kThreads>
class TileLoader {
  static constexpr int kAccesses = Tile::kRows * Tile::kChunks;
  static constexpr int kIterations = (kAccesses + kThreads - 1) / kThreads;
  static constexpr int kRowStep = kThreads / Tile::kChunks;  // rows from one access to the next
  static_assert(kThreads % Tile::kChunks == 0, "each thread stays in one column of chunks");
  static_assert(kRowStep % 8 == 0, "each thread stays at one chunk position");

  const char* pointer_;  // this thread's chunk of its first row, at the current k
  int step_;  // bytes from one access to the next
  uint32_t valid_rows_ = 0;  // bit i: row of access i exists
  uint32_t shared_;  // offset of the first access in a stage
  bool idle_;  // the tile has fewer chunks than the block has threads
  int k_left_;  // bytes of k from this chunk to the end

 public:
  // base: first row of the tile, rows: how many exist from it on, [k_begin, k_end) in bytes.
  __device__ TileLoader(const char* base, int64_t ld, int rows, int k_begin, int k_end,
                        int thread) {
    const int chunk = thread % Tile::kChunks;
    const int row0 = thread / Tile::kChunks;
    pointer_ = base + row0 * ld + k_begin + chunk * 16;
    step_ = kRowStep * static_cast<int>(ld);
    k_left_ = k_end - k_begin - chunk * 16;
    shared_ = row0 * Tile::kRowBytes + ((chunk ^ swizzle<Tile>(row0)) * 16);
    idle_ = row0 >= Tile::kRows;
#pragma unroll
    for (int i = 0; i < kIterations; ++i) {
      if (row0 + i * kRowStep < rows) valid_rows_ |= 1u << i;
    }
  }

  __device__ __forceinline__ void load(uint32_t shared) {
    const uint32_t valid = k_left_ > 0 ? valid_rows_ : 0;
#pragma unroll
    for (int i = 0; i < kIterations; ++i) {
      // A copy that is not valid writes zeros and reads nothing, wherever the pointer points.
      if (kAccesses >= kThreads || !idle_) {
        copy_async_16(shared + shared_ + i * kRowStep * Tile::kRowBytes, pointer_ + i * step_,
                      valid >> i & 1);
      }
    }
    pointer_ += Tile::kRowBytes;
    k_left_ -= Tile::kRowBytes;
  }
  static_assert(kAccesses < kThreads || kAccesses % kThreads == 0, "whole accesses");
};

// What the quantized operand carries besides its bytes, in the form the mainloop reads.
struct GroupParams {
  const void* b_scale = nullptr;  // kW4A8Group, kW4A16: [N, G]
  const void* b_zero = nullptr;  // [N, G] for the grouped products, else a row
  const uint8_t* multiplier = nullptr;  // kW4A8Multiplier: [N, G]
  DType b_scale_dtype = DType::kNone;
  DType b_zero_dtype = DType::kNone;
  int b_zero_stride = 0;  // not grouped: from one n to the next
  int group_shift = 31;  // k >> group_shift is k's group
  int group_size = 0;  // k
  int groups = 1;
};

// kOp_: the product. Shape_, WarpShape_: elements (GemmShape). kStages_: tiles in flight + 1.
template <GemmOp kOp_, typename Shape_, typename WarpShape_, int kStages_>
class Mainloop {
 public:
  static constexpr GemmOp kOp = kOp_;
  using Shape = Shape_;
  using WarpShape = WarpShape_;
  static constexpr int kStages = kStages_;
  using WarpCount = cutlass::gemm::GemmShape<Shape::kM / WarpShape::kM, Shape::kN / WarpShape::kN,
                                             Shape::kK / WarpShape::kK>;
  static constexpr int kThreads = 32 * WarpCount::kCount;

  static constexpr bool kBf16 = kOp == GemmOp::kW4A16;
  static constexpr bool kS4 = kOp == GemmOp::kW4A4;
  // Partial sums of one group are folded into float32 totals.
  static constexpr bool kFold = kOp == GemmOp::kW4A8Group || kOp == GemmOp::kW4A16;
  static constexpr bool kMultiplier = kOp == GemmOp::kW4A8Multiplier;
  // Weights enter the mma as 16 * q, one AND away from the packed word.
  static constexpr bool kTimes16 = kOp == GemmOp::kW4A8 || kOp == GemmOp::kW4A8Group;

  using Partial = cutlass::platform::conditional_t<kBf16, float, int>;  // what mma accumulates
  using ElementC = cutlass::platform::conditional_t<kFold, float, int>;  // what leaves the mainloop
  using InstructionShape = cutlass::gemm::GemmShape<16, 8, kS4 ? 64 : kBf16 ? 16 : 32>;

  // A step is the k of one B fragment load: 32 (64 for int4 x int4); bf16 runs two mma over it.
  static constexpr int kStepK = kS4 ? 64 : 32;
  static constexpr int kHalves = kBf16 ? 2 : 1;
  static constexpr int kSteps = WarpShape::kK / kStepK;
  static constexpr int kSubsteps = kSteps * kHalves;
  static constexpr int kMTiles = WarpShape::kM / 16;
  static constexpr int kNTiles = WarpShape::kN / 8;
  static constexpr bool kWideB = kOp == GemmOp::kW8A8 || kS4;  // 32 bytes of B a step, else 16
  static constexpr int kBLoads = kWideB ? kNTiles / 2 : kNTiles / 4;  // ldmatrix.x4 a step
  // Fractional zero points (kW4A16). What is left of them beside an integer would round the
  // weights; where the tile is low enough to have the registers, it goes on the sums instead, times
  // the row sum of a, which one more mma with ones gives. Low tiles are also those whose few
  // outputs do not average the weights' rounding away.
  static constexpr bool kExactRest = kBf16 && kMTiles <= 2;
  // Row sums of a are shared out over the warps that read the same rows.
  static constexpr int kSumTiles = (kMTiles + WarpCount::kN - 1) / WarpCount::kN;

  static_assert(Shape::kM % WarpShape::kM == 0 && Shape::kN % WarpShape::kN == 0 &&
                Shape::kK % WarpShape::kK == 0);
  static_assert(WarpShape::kM % 16 == 0 && WarpShape::kN % (kWideB ? 16 : 32) == 0);
  static_assert(WarpShape::kK % kStepK == 0 && kStages >= 2);

  using TileA = SharedTile<Shape::kM, Shape::kK * a_bits(kOp) / 8>;
  using TileB = SharedTile<Shape::kN, Shape::kK * b_bits(kOp) / 8>;

  // Group scales (multipliers) and zero points travel through shared memory too. Theirs are [N, G]
  // arrays of which a tile needs a narrow column, so a block of kGroupBlock groups is fetched at
  // once, as 32-bit words whatever the dtype, when the first tile that needs it is:
  // [block][column][word], a word of padding a column against bank conflicts. kGroupBlocks of them
  // cover the tiles in flight even with the smallest group, 32.
  static constexpr bool kGroups = kFold || kMultiplier;
  static constexpr int kGroupBlock = group_block_of(Shape::kK);
  static constexpr int kGroupBlocks = group_blocks_of(Shape::kK, kStages);
  static constexpr int kColumnWords = kGroupBlock + 1;
  static constexpr int kBlockWords = kColumnWords * Shape::kN;

  struct PlainStorage {
    alignas(128) uint8_t a[kStages][TileA::kBytes];
    alignas(128) uint8_t b[kStages][TileB::kBytes];
  };
  struct GroupStorage : PlainStorage {
    alignas(128) uint32_t scale[kGroupBlocks][kBlockWords];
    alignas(128) uint32_t zero[kGroupBlocks][kBlockWords];
  };
  using SharedStorage = cutlass::platform::conditional_t<kGroups, GroupStorage, PlainStorage>;

  // In the order of CUTLASS's warp-level tensor op: [n][m][4].
  using FragmentC = cutlass::Array<ElementC, kMTiles * kNTiles * 4>;

 private:
  // 1.5 * 2^23 as an integer: int32 sums that start here are, read as float32, 1.5 * 2^23 + sum as
  // long as |sum| < 2^22, so that one float subtraction converts them. A group's 16 * sum is at
  // most 128 * 16 * 8 * 128 = 2^21.
  static constexpr int kMagicBits = 0x4B400000;
  static constexpr float kMagic = 12582912.f;

  uint32_t shared_a_, shared_b_;  // stage 0
  uint32_t lane_a_, lane_b_;  // this lane's offset in a stage at step 0
  int lane_;
  int warp_m_, warp_n_, warp_k_;

  TileLoader<TileA, kThreads> loader_a_;
  TileLoader<TileB, kThreads> loader_b_;
  int tiles_;  // k tiles of this block
  int loaded_ = 0;  // k tiles asked for
  int load_stage_ = 0;
  int loaded_blocks_ = 0;  // blocks of groups asked for

  const GroupParams& group_;
  SharedStorage& shared_;
  int column_begin_;  // first column of this block
  int columns_;  // columns of the whole matrix
  int k_begin_;  // first k of this block

 public:
  __device__ Mainloop(SharedStorage& shared, const char* a, int64_t lda, const char* b, int64_t ldb,
                      int rows, int columns, int column_begin, int k_begin, int k_end,
                      const GroupParams& group, int thread, int warp, int lane)
      : shared_a_(shared_address(shared.a)),
        shared_b_(shared_address(shared.b)),
        lane_(lane),
        loader_a_(a, lda, rows, k_begin * a_bits(kOp) / 8, k_end * a_bits(kOp) / 8, thread),
        loader_b_(b, ldb, columns - column_begin, k_begin * b_bits(kOp) / 8,
                  k_end * b_bits(kOp) / 8, thread),
        tiles_((k_end - k_begin + Shape::kK - 1) / Shape::kK),
        group_(group),
        shared_(shared),
        column_begin_(column_begin),
        columns_(columns),
        k_begin_(k_begin) {
    // The order of warps CUTLASS's epilogue assumes: m fastest, then n, then k.
    warp_k_ = warp / (WarpCount::kM * WarpCount::kN);
    warp_m_ = warp % (WarpCount::kM * WarpCount::kN) % WarpCount::kM;
    warp_n_ = warp % (WarpCount::kM * WarpCount::kN) / WarpCount::kM;

    {
      const int row = warp_m_ * WarpShape::kM + lane % 16;
      lane_a_ = row * TileA::kRowBytes + (((lane / 16) ^ swizzle<TileA>(row)) * 16);
    }
    if constexpr (kWideB) {
      const int row = warp_n_ * WarpShape::kN + lane % 8 + lane / 16 * 8;
      lane_b_ = row * TileB::kRowBytes + (((lane / 8 % 2) ^ swizzle<TileB>(row)) * 16);
    } else if constexpr (kBf16) {
      const int row = warp_n_ * WarpShape::kN + lane / 4;
      lane_b_ = row * TileB::kRowBytes + swizzle<TileB>(row) * 16 + lane % 4 / 2 * 4;
    } else {
      const int row = warp_n_ * WarpShape::kN + lane;
      lane_b_ = row * TileB::kRowBytes + swizzle<TileB>(row) * 16;
    }
    // k slices of the warps: their bytes are aligned powers of two, so XOR adds them.
    lane_a_ ^= warp_k_ * (WarpShape::kK * a_bits(kOp) / 8);
    lane_b_ ^= warp_k_ * (WarpShape::kK * b_bits(kOp) / 8);
  }

  // Fills all stages but one. Returns at once; what the caller does next overlaps the copies.
  __device__ __forceinline__ void prologue() {
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) load_tile();
  }

  // a_sum: shared memory, zeros, one a row of the threadblock tile; row sums of a are collected
  // there.
  __device__ __forceinline__ void operator()(FragmentC& accumulators, int* a_sum) {
    if constexpr (kOp == GemmOp::kW4A16) {
      // Integer zero points leave an integer to subtract, see begin_group.
      const bool fractional = group_.b_zero != nullptr && group_.b_zero_dtype != DType::kInt8 &&
                              group_.b_zero_dtype != DType::kInt32;
      if (fractional) return run<true>(accumulators, a_sum);
    }
    if constexpr (kOp == GemmOp::kW4A8Group) {
      if (group_.b_zero != nullptr) return run<true>(accumulators, a_sum);
    }
    run<false>(accumulators, a_sum);
  }

 private:
  __device__ __forceinline__ void load_tile() {
    if (loaded_ < tiles_) {
      loader_a_.load(shared_a_ + load_stage_ * TileA::kBytes);
      loader_b_.load(shared_b_ + load_stage_ * TileB::kBytes);
      if constexpr (kGroups) load_groups();
      ++loaded_;
      load_stage_ = load_stage_ + 1 == kStages ? 0 : load_stage_ + 1;
    }
    copy_async_commit();  // an empty group keeps the count of groups in step
  }

  __device__ __forceinline__ void fetch_a(uint32_t (&a)[kMTiles][4], int stage, int substep) const {
    const uint32_t base =
        shared_a_ + stage * TileA::kBytes + (lane_a_ ^ static_cast<uint32_t>(substep * 32));
#pragma unroll
    for (int i = 0; i < kMTiles; ++i) ldmatrix_x4(a[i], base + i * 16 * TileA::kRowBytes);
  }

  __device__ __forceinline__ void fetch_b(uint32_t (&b)[kBLoads][4], int stage, int step) const {
    constexpr int kStepBytes = kWideB ? 32 : 16;
    constexpr int kRows = kWideB ? 16 : 32;
    const uint32_t base =
        shared_b_ + stage * TileB::kBytes + (lane_b_ ^ static_cast<uint32_t>(step * kStepBytes));
    if constexpr (kBf16) {
      const uint32_t halves = lane_ % 2 ? 0x7632 : 0x5410;
#pragma unroll
      for (int j = 0; j < kNTiles; ++j) {
        const uint32_t low = load_shared_32(base + j * 8 * TileB::kRowBytes);
        const uint32_t high = load_shared_32(base + j * 8 * TileB::kRowBytes + 8);
        b[j / 4][j % 4] = __byte_perm(low, high, halves);
      }
    } else {
#pragma unroll
      for (int j = 0; j < kBLoads; ++j) ldmatrix_x4(b[j], base + j * kRows * TileB::kRowBytes);
    }
  }

  // Sum of the four int8 (eight int4, times 16) of a register.
  __device__ __forceinline__ static int sum_of(uint32_t x, int sum) {
    constexpr int kOnes = 0x01010101;
    if constexpr (kS4) {
      sum = __dp4a(static_cast<int>(x & 0xF0F0F0F0u), kOnes, sum);
      return __dp4a(static_cast<int>((x << 4) & 0xF0F0F0F0u), kOnes, sum);
    } else {
      return __dp4a(static_cast<int>(x), kOnes, sum);
    }
  }

  // Reads this warp's share of the rows once more, which is cheaper than having every warp add all
  // its fragments: one ldmatrix beside dozens of mma.
  __device__ __forceinline__ void sum_rows(int (&sum)[kSumTiles][2], int stage, int substep) const {
    const uint32_t base =
        shared_a_ + stage * TileA::kBytes + (lane_a_ ^ static_cast<uint32_t>(substep * 32));
#pragma unroll
    for (int i = 0; i < kSumTiles; ++i) {
      const int m = warp_n_ * kSumTiles + i;
      if (m < kMTiles) {
        uint32_t x[4];
        ldmatrix_x4(x, base + m * 16 * TileA::kRowBytes);
        sum[i][0] = sum_of(x[2], sum_of(x[0], sum[i][0]));
        sum[i][1] = sum_of(x[3], sum_of(x[1], sum[i][1]));
      }
    }
  }

  // Adds the four lanes of a quad; each then holds the sum.
  __device__ __forceinline__ static int quad_sum(int x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
  }

  // The words of rows n of an [N, G] array with groups [g0, g0 + kGroupBlock), to `shared`.
  __device__ __forceinline__ void copy_groups(uint32_t shared, const void* array, int size,
                                              int g0) const {
    constexpr int kWords = Shape::kN * kGroupBlock;
    static_assert(kWords % kThreads == 0 && kThreads % kGroupBlock == 0);
    const int w = static_cast<int>(threadIdx.x) % kGroupBlock;
    // A row's groups need not start at a word.
    const bool needed = size == 4 || w <= kGroupBlock * size / 4;
    const auto base = reinterpret_cast<uintptr_t>(array);
    const uintptr_t end = base + static_cast<int64_t>(columns_) * group_.groups * size;
#pragma unroll
    for (int i = 0; i < kWords / kThreads; ++i) {
      const int column = static_cast<int>(threadIdx.x) / kGroupBlock + i * (kThreads / kGroupBlock);
      const int n = column_begin_ + column;
      const uintptr_t row = base + (static_cast<int64_t>(n) * group_.groups + g0) * size;
      const uintptr_t word = (row & ~uintptr_t{3}) + w * 4;
      const int left = static_cast<int>(static_cast<uint32_t>(end) - static_cast<uint32_t>(word));
      const uint32_t to = shared + (column * kColumnWords + w) * 4;
      if (left <= 0 || left >= 4) {
        copy_async_4(to, reinterpret_cast<const void*>(word), n < columns_ && needed && left > 0);
      }
    }
    // The array may end inside a word, of which nothing more may be touched. With few groups more
    // than one of the last columns lies in it.
    const int tail = static_cast<int>(end & 3);
    if (size == 4 || tail == 0 || column_begin_ + Shape::kN + 4 < columns_) return;
    const auto* bytes = reinterpret_cast<const unsigned char*>(end - tail);
#pragma unroll 1
    for (int i = 0; i < kWords / kThreads; ++i) {
      const int column = static_cast<int>(threadIdx.x) / kGroupBlock + i * (kThreads / kGroupBlock);
      const int n = column_begin_ + column;
      const uintptr_t row = base + (static_cast<int64_t>(n) * group_.groups + g0) * size;
      if (n >= columns_ || (row & ~uintptr_t{3}) + w * 4 != end - tail) continue;
      uint32_t x = __ldg(bytes);
      if (tail > 1) x |= static_cast<uint32_t>(__ldg(bytes + 1)) << 8;
      if (tail > 2) x |= static_cast<uint32_t>(__ldg(bytes + 2)) << 16;
      store_shared_32(shared + (column * kColumnWords + w) * 4, x);
    }
  }

  // Called for every tile; fetches when the tile begins a new block of groups.
  __device__ __forceinline__ void load_groups() {
    const int first = k_begin_ >> group_.group_shift;
    const int g = (k_begin_ + loaded_ * Shape::kK) >> group_.group_shift;
    if ((g - first) / kGroupBlock < loaded_blocks_) return;
    const int g0 = first + loaded_blocks_ * kGroupBlock;
    const int to = loaded_blocks_ % kGroupBlocks;
    if constexpr (kFold) {
      copy_groups(shared_address(shared_.scale[to]), group_.b_scale, size_of(group_.b_scale_dtype),
                  g0);
    } else {
      copy_groups(shared_address(shared_.scale[to]), group_.multiplier, 1, g0);
    }
    if (group_.b_zero) {
      copy_groups(shared_address(shared_.zero[to]), group_.b_zero, size_of(group_.b_zero_dtype),
                  g0);
    }
    ++loaded_blocks_;
  }

  // Element (column, g) of an array that was copied by copy_groups: its word, and the bits before
  // it.
  struct WordOf {
    uint32_t word;
    int bit;
  };
  __device__ __forceinline__ WordOf word_of(const uint32_t* block, const void* array, int size,
                                            int column, int g0, int g) const {
    const uint32_t* words = block + column * kColumnWords;
    if (size == 4) return {words[g - g0], 0};
    const int base = static_cast<int>(reinterpret_cast<uintptr_t>(array)) & 3;
    // Differences of addresses: their low bits are enough.
    const uint32_t row = base + ((column_begin_ + column) * group_.groups + g0) * size;
    const uint32_t at = row + (g - g0) * size;
    return {words[(at >> 2) - (row >> 2)], static_cast<int>(at & 3) * 8};
  }
  // An int8 or int32 out of its word, without a branch.
  __device__ __forceinline__ static int int_in(uint32_t word, int bit, bool is_int8) {
    const int unused = is_int8 ? 24 : 0;
    return static_cast<int>(word << (unused - bit)) >> unused;
  }
  template <DType kType>
  __device__ __forceinline__ static float float_in(uint32_t word, int bit) {
    if constexpr (kType == DType::kBFloat16)
      return __uint_as_float(word >> bit << 16);
    else if constexpr (kType == DType::kFloat16)
      return __half2float(__ushort_as_half(static_cast<unsigned short>(word >> bit)));
    else
      return __uint_as_float(word);
  }

  // What unpacking needs of a group, for this thread's columns of the B fragments: kW4A16 the pairs
  // (c0, c0) and (c1, c1), kW4A8Multiplier m and c, kW4A8Group with zero points c.
  struct GroupFragment {
    uint32_t unpack[kNTiles][2];
    __device__ GroupFragment() {
#pragma unroll
      for (int j = 0; j < kNTiles; ++j) {
        unpack[j][0] = 0xC308C308u;  // kW4A16 without zero points: -136
        unpack[j][1] = 0;
      }
    }
  };

  // Where a group lies in shared memory.
  struct GroupPlace {
    int g, g0, slot;
  };
  __device__ __forceinline__ GroupPlace place_of(int k) const {
    const int g = k >> group_.group_shift, first = k_begin_ >> group_.group_shift;
    const int block = (g - first) / kGroupBlock;
    return {g, first + block * kGroupBlock, block % kGroupBlocks};
  }

  // Scales of this thread's columns of the accumulators.
  using Scales = float[kNTiles][2];
  template <DType kType, bool kZeros>
  __device__ __forceinline__ void read_scales(Scales& scales, GroupPlace const& at) const {
#pragma unroll
    for (int j = 0; j < kNTiles; ++j)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int column = warp_column() + j * 8 + lane_ % 4 * 2 + c;
        const WordOf x =
            word_of(shared_.scale[at.slot], group_.b_scale, size_of(kType), column, at.g0, at.g);
        scales[j][c] = float_in<kType>(x.word, x.bit);
        // Without zero points the sums hold 16 * q.
        if constexpr (kOp == GemmOp::kW4A8Group && !kZeros) scales[j][c] *= 0.0625f;
      }
  }
  template <bool kZeros>
  __device__ __forceinline__ void read_scales(Scales& scales, int k) const {
    const GroupPlace at = place_of(k);
    switch (group_.b_scale_dtype) {
      case DType::kBFloat16: return read_scales<DType::kBFloat16, kZeros>(scales, at);
      case DType::kFloat16: return read_scales<DType::kFloat16, kZeros>(scales, at);
      default: return read_scales<DType::kFloat32, kZeros>(scales, at);
    }
  }

  // A fractional zero point as an integer c0 - 136, which unpacking subtracts, and the rest c1.
  __device__ __forceinline__ static void split_zero(float zero, float& c0, float& c1) {
    c0 = fminf(fmaxf(rintf(136.f + zero), -256.f), 256.f);
    c1 = zero - (c0 - 136.f);
  }
  // The rests of this thread's columns of the accumulators.
  __device__ __forceinline__ void read_rests(Scales& rests, int k) const {
    const GroupPlace at = place_of(k);
    const bool narrow = group_.b_zero_dtype == DType::kBFloat16;
#pragma unroll
    for (int j = 0; j < kNTiles; ++j)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int column = warp_column() + j * 8 + lane_ % 4 * 2 + c;
        const WordOf x =
            word_of(shared_.zero[at.slot], group_.b_zero, narrow ? 2 : 4, column, at.g0, at.g);
        float c0;
        split_zero(narrow ? float_in<DType::kBFloat16>(x.word, x.bit) : __uint_as_float(x.word), c0,
                   rests[j][c]);
      }
  }

  // Takes up the group of k for unpacking.
  template <bool kZeros>
  __device__ __forceinline__ void begin_group(GroupFragment& f, int k) {
    const bool has_zero = group_.b_zero != nullptr;
    if (!kMultiplier && !has_zero) return;  // what GroupFragment starts with stays right
    const GroupPlace at = place_of(k);
    const int g0 = at.g0, g = at.g;
    const uint32_t* zeros = shared_.zero[at.slot];
    const bool is_int8 = group_.b_zero_dtype == DType::kInt8;
    const int zero_size = is_int8 ? 1 : kZeros && group_.b_zero_dtype == DType::kBFloat16 ? 2 : 4;
#pragma unroll
    for (int j = 0; j < kNTiles; ++j) {
      const int column = warp_column() + j * 8 + lane_ / 4;
      [[maybe_unused]] const bool real = column_begin_ + column < columns_ && g < group_.groups;
      WordOf z{0, 0};
      if (!kMultiplier || has_zero) z = word_of(zeros, group_.b_zero, zero_size, column, g0, g);
      if constexpr (kBf16) {
        // w = (v - c0) - c1 with v = 136 + q: c0 an integer that bfloat16 holds, so that the first
        // difference is exact; c1 the rest of a fractional zero point. An integer zero point for
        // which bfloat16 does not hold c0 makes its column NaN.
        float c0, c1 = 0.f;
        if constexpr (kZeros) {
          const float zero = zero_size == 2 ? float_in<DType::kBFloat16>(z.word, z.bit)
                                            : float_in<DType::kFloat32>(z.word, z.bit);
          split_zero(zero, c0, c1);
        } else {
          c0 = __int2float_rn(136 + int_in(z.word, z.bit, is_int8));
          if (__bfloat162float(__float2bfloat16_rn(c0)) != c0) c0 = __int_as_float(0x7FC00000);
        }
        const __nv_bfloat162 p0 = __float2bfloat162_rn(-c0);
        const __nv_bfloat162 p1 = __float2bfloat162_rn(-c1);
        f.unpack[j][0] = reinterpret_cast<const uint32_t&>(p0);
        f.unpack[j][1] = reinterpret_cast<const uint32_t&>(p1);
      } else if constexpr (kMultiplier) {
        // w = m * (q - zero) as the unsigned byte m * (q + 8) + c, c = 128 - m * (8 + zero), less
        // 128. Where some q of -8..7 would leave int8 the column becomes NaN.
        const WordOf x = word_of(shared_.scale[at.slot], group_.multiplier, 1, column, g0, g);
        const int m = x.word >> x.bit & 0xFF;
        const int c = 128 - m * (8 + int_in(z.word, z.bit, is_int8));
        if (real && (m < 1 || m > 15 || c < 0 || 15 * m + c > 255)) bad_columns_ |= 1u << j;
        f.unpack[j][0] = m;
        f.unpack[j][1] = (c & 0xFF) * 0x01010101u;
      } else if constexpr (kZeros) {
        // w = q - zero as the unsigned byte (q + 8) + c, c = 120 - zero, less 128. Where w would
        // leave int8 the column becomes NaN.
        const int c = 120 - int_in(z.word, z.bit, is_int8);
        if (real && (c < 0 || c > 240)) bad_columns_ |= 1u << j;
        f.unpack[j][0] = (c & 0xFF) * 0x01010101u;
      }
    }
  }

 public:
  // Bit j: weights of column 8 * j + lane / 4 of this warp left int8; its outputs shall be NaN.
  uint32_t bad_columns_ = 0;
  __device__ __forceinline__ int warp_column() const { return warp_n_ * WarpShape::kN; }

 private:
  // kZeros: the weights' zero points take part in unpacking (see operator()).
  template <bool kZeros>
  __device__ __forceinline__ void run(FragmentC& accumulators, int* a_sum);
};

template <GemmOp kOp_, typename Shape_, typename WarpShape_, int kStages_>
template <bool kZeros>
__device__ __forceinline__ void Mainloop<kOp_, Shape_, WarpShape_, kStages_>::run(
    FragmentC& accumulators, int* a_sum) {
  Partial partial[kNTiles][kMTiles][4];
  [[maybe_unused]] float total[kFold ? kNTiles : 1][kFold ? kMTiles : 1][4];
  uint32_t a[2][kMTiles][4];
  uint32_t b_raw[2][kBLoads][4];
  uint32_t b[kNTiles][2];
  int own_sum[kSumTiles][2];
  [[maybe_unused]] float a_sum_of_group[kExactRest ? kMTiles : 1]
                                       [4];  // every column is the row sum

  const Partial start = [] {
    if constexpr (kOp == GemmOp::kW4A8Group)
      return Partial(kMagicBits);
    else
      return Partial(0);
  }();
#pragma unroll
  for (int j = 0; j < kNTiles; ++j)
#pragma unroll
    for (int i = 0; i < kMTiles; ++i)
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        partial[j][i][r] = start;
        if constexpr (kFold) total[j][i][r] = 0.f;
      }
#pragma unroll
  for (int i = 0; i < kSumTiles; ++i) own_sum[i][0] = own_sum[i][1] = 0;
  if constexpr (kExactRest) {
#pragma unroll
    for (int i = 0; i < kMTiles; ++i)
#pragma unroll
      for (int r = 0; r < 4; ++r) a_sum_of_group[i][r] = 0.f;
  }

  // Grouped products apply zero points to the weights as they unpack them; the others subtract
  // b_zero[n] * (row sum of a) at the end.
  const bool row_sums = !kGroups && group_.b_zero != nullptr;

  // A warp folds its sums once a group, or at the end of its slice of the tile if that comes first.
  [[maybe_unused]] GroupFragment group;
  int group_steps = 0, steps_left = 0;
  if constexpr (kGroups) {
    const bool sliced = WarpCount::kK > 1 && group_.group_size > WarpShape::kK;
    group_steps = steps_left = (sliced ? WarpShape::kK : group_.group_size) >> 5;
  }
  // k: any of the group. Beyond the last group (the end of the last tile) the sums are 0 and there
  // are no scales.
  auto fold = [&](int k) {
    if constexpr (kFold) {
      if (k >> group_.group_shift >= group_.groups) return;
      Scales scales;
      read_scales<kZeros>(scales, k);
      [[maybe_unused]] Scales rests;
      if constexpr (kZeros && kExactRest) read_rests(rests, k);
#pragma unroll
      for (int j = 0; j < kNTiles; ++j)
#pragma unroll
        for (int i = 0; i < kMTiles; ++i)
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            float p;
            if constexpr (kZeros && kExactRest) {
              p = fmaf(-rests[j][r % 2], a_sum_of_group[i][r], partial[j][i][r]);
            } else if constexpr (kBf16)
              p = partial[j][i][r];
            else
              p = __int_as_float(partial[j][i][r]) - kMagic;
            total[j][i][r] = fmaf(p, scales[j][r % 2], total[j][i][r]);
            partial[j][i][r] = start;
          }
      if constexpr (kZeros && kExactRest) {
#pragma unroll
        for (int i = 0; i < kMTiles; ++i)
#pragma unroll
          for (int r = 0; r < 4; ++r) a_sum_of_group[i][r] = 0.f;
      }
    }
  };

  copy_async_wait<kStages - 2>();
  __syncthreads();
  int stage = 0;
  fetch_a(a[0], 0, 0);
  fetch_b(b_raw[0], 0, 0);
  if (row_sums) sum_rows(own_sum, 0, 0);
  if constexpr (kGroups) begin_group<kZeros>(group, k_begin_ + warp_k_ * WarpShape::kK);

  for (int tile = 0; tile < tiles_; ++tile) {
    const int next_stage = stage + 1 == kStages ? 0 : stage + 1;
#pragma unroll
    for (int s = 0; s < kSubsteps; ++s) {
      constexpr int kLast = kSubsteps - 1;
      if (s == kLast) {
        // The next tile has landed for every thread, and every warp has read all of this one.
        copy_async_wait<kStages - 2>();
        __syncthreads();
      }
      const int fetch_stage = s == kLast ? next_stage : stage;
      const int next = s == kLast ? 0 : s + 1;
      // Which register buffer a step uses must be a constant: an odd number of steps a tile would
      // swap the buffers from tile to tile, so its last step hands over through buffer 0.
      fetch_a(a[(s + 1) % 2], fetch_stage, next);
      if (row_sums && (s < kLast || tile + 1 < tiles_)) sum_rows(own_sum, fetch_stage, next);
      const int step = s / kHalves;
      if (s % kHalves == kHalves - 1) {
        fetch_b(b_raw[(step + 1) % 2], fetch_stage, next / kHalves);
      }
      if (s == 0) load_tile();

      // Fragments of B.
      uint32_t (&raw)[kBLoads][4] = b_raw[step % 2];
#pragma unroll
      for (int j = 0; j < kNTiles; ++j) {
        if constexpr (kWideB) {
          b[j][0] = raw[j / 2][j % 2 * 2];
          b[j][1] = raw[j / 2][j % 2 * 2 + 1];
        } else {
          const uint32_t x = raw[j / 4][j % 4];
          if constexpr (kOp == GemmOp::kW4A8Group && kZeros) {
            b[j][0] = (((x & 0x0F0F0F0Fu) ^ 0x08080808u) + group.unpack[j][0]) ^ 0x80808080u;
            b[j][1] = (((x >> 4 & 0x0F0F0F0Fu) ^ 0x08080808u) + group.unpack[j][0]) ^ 0x80808080u;
          } else if constexpr (kTimes16) {
            b[j][0] = (x * 16u) & 0xF0F0F0F0u;
            b[j][1] = x & 0xF0F0F0F0u;
          } else if constexpr (kMultiplier) {
            const uint32_t low = (x & 0x0F0F0F0Fu) ^ 0x08080808u;
            const uint32_t high = (x >> 4 & 0x0F0F0F0Fu) ^ 0x08080808u;
            b[j][0] = (low * group.unpack[j][0] + group.unpack[j][1]) ^ 0x80808080u;
            b[j][1] = (high * group.unpack[j][0] + group.unpack[j][1]) ^ 0x80808080u;
          } else {
            // A byte u = q + 8 below the byte 0x43 is the bfloat16 128 + u.
            const uint32_t y = s % 2 == 0 ? x : x >> 4;
            const uint32_t u = (y & 0x0F0F0F0Fu) ^ 0x08080808u;
            constexpr uint32_t kOne = 0x3F803F80u;
            b[j][0] = bf16x2_fma(__byte_perm(u, 0x43434343u, 0x4140), kOne, group.unpack[j][0]);
            b[j][1] = bf16x2_fma(__byte_perm(u, 0x43434343u, 0x4342), kOne, group.unpack[j][0]);
            if constexpr (kZeros && !kExactRest) {
              b[j][0] = bf16x2_fma(b[j][0], kOne, group.unpack[j][1]);
              b[j][1] = bf16x2_fma(b[j][1], kOne, group.unpack[j][1]);
            }
          }
        }
      }

      uint32_t (&fa)[kMTiles][4] = a[s % 2];
#pragma unroll
      for (int j = 0; j < kNTiles; ++j)
#pragma unroll
        for (int i = 0; i < kMTiles; ++i) {
          // Serpentine over m, so that consecutive instructions share a register operand.
          const int m = j % 2 ? kMTiles - 1 - i : i;
          if constexpr (kBf16)
            mma_bf16(partial[j][m], fa[m], b[j]);
          else if constexpr (kS4)
            mma_s4(partial[j][m], fa[m], b[j]);
          else
            mma_s8(partial[j][m], fa[m], b[j]);
        }
      if constexpr (kZeros && kExactRest) {
        const uint32_t ones[2] = {0x3F803F80u, 0x3F803F80u};
#pragma unroll
        for (int i = 0; i < kMTiles; ++i) mma_bf16(a_sum_of_group[i], fa[i], ones);
      }
      if constexpr (kSubsteps % 2 == 1) {
        if (s == kLast) {
#pragma unroll
          for (int i = 0; i < kMTiles; ++i)
#pragma unroll
            for (int r = 0; r < 4; ++r) a[0][i][r] = a[1][i][r];
        }
      }
      if constexpr (kSteps % 2 == 1) {
        if (s == kLast) {
#pragma unroll
          for (int j = 0; j < kBLoads; ++j)
#pragma unroll
            for (int r = 0; r < 4; ++r) b_raw[0][j][r] = b_raw[1][j][r];
        }
      }
      if constexpr (kGroups) {
        if (s % kHalves == kHalves - 1 && --steps_left == 0) {
          const int k = k_begin_ + tile * Shape::kK + warp_k_ * WarpShape::kK + step * 32;
          fold(k);
          steps_left = group_steps;
          if (s < kLast) {
            begin_group<kZeros>(group, k + 32);
          } else if (tile + 1 < tiles_) {
            begin_group<kZeros>(group, k + 32 + Shape::kK - WarpShape::kK);
          }
        }
      }
    }
    stage = next_stage;
  }
  if constexpr (kFold) {
    // A group that is longer than this block's k (one scale a row) ends here.
    if (steps_left != group_steps) fold(k_begin_);
  }
  if constexpr (!kFold) {
#pragma unroll
    for (int j = 0; j < kNTiles; ++j)
#pragma unroll
      for (int i = 0; i < kMTiles; ++i)
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          if constexpr (kTimes16) partial[j][i][r] >>= 4;
        }
    if (row_sums) {
#pragma unroll
      for (int i = 0; i < kSumTiles; ++i) {
        const int m = warp_n_ * kSumTiles + i;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int sum = quad_sum(own_sum[i][h]) >> (kS4 ? 4 : 0);
          if (m < kMTiles && lane_ % 4 == 0) {
            atomicAdd(a_sum + warp_m_ * WarpShape::kM + m * 16 + h * 8 + lane_ / 4, sum);
          }
        }
      }
      __syncthreads();
    }
    if (row_sums && warp_k_ == 0) {  // the sums are over all slices, the epilogue adds the slices
      const int* rows = a_sum + warp_m_ * WarpShape::kM + lane_ / 4;
#pragma unroll
      for (int j = 0; j < kNTiles; ++j)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int n =
              min(column_begin_ + warp_column() + j * 8 + lane_ % 4 * 2 + c, columns_ - 1);
          const int zero = load_int(group_.b_zero, group_.b_zero_dtype,
                                    static_cast<int64_t>(n) * group_.b_zero_stride);
#pragma unroll
          for (int i = 0; i < kMTiles; ++i) {
            partial[j][i][c] -= zero * rows[i * 16];
            partial[j][i][c + 2] -= zero * rows[i * 16 + 8];
          }
        }
    }
  }
#pragma unroll
  for (int j = 0; j < kNTiles; ++j)
#pragma unroll
    for (int i = 0; i < kMTiles; ++i)
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        if constexpr (kFold)
          accumulators[(j * kMTiles + i) * 4 + r] = total[j][i][r];
        else
          accumulators[(j * kMTiles + i) * 4 + r] = partial[j][i][r];
      }

  copy_async_wait<0>();
  __syncthreads();  // the epilogue reuses the stages' memory
}

}  // namespace qutlass::threadblock
