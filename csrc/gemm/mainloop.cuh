// SPDX-License-Identifier: Apache-2.0
// One multistage threadblock mainloop for every product: cp.async stages in shared memory,
// fragments double-buffered in registers, mma.sync. It has the part that CUTLASS 2.x's
// threadblock::MmaMultistage has in a GemmUniversal kernel, but runs a list of segments (see
// schedule.h) as one stream of k tiles, so that the copies of the next segment are under way while
// the last one's results are stored. What differs between the products is how a step's fragments
// are made from the bytes in shared memory, and whether partial sums are folded into float32 totals
// once a group.
//
// Where the contract's nibble order puts k, with t = lane % 4 and g = lane / 4:
//
//   16-byte chunk of 32 int4 (one row n)   lane t of the quad gets one 32-bit word by ldmatrix:
//   byte:  0 1 2 3 | 4 5 6 7 | ...           low nibbles  k = 4t .. 4t+3       -> fragment b0
//   word:    t=0   |   t=1   | ...           high nibbles k = 16+4t .. 16+4t+3 -> fragment b1
//
// which is the k order of mma.m16n8k32.s8 itself. The low nibbles are one mma.m16n8k16.bf16's
// fragment, the high ones the next one's; as which k a lane has is free where both operands agree,
// its k = 4t .. 4t+3 of the other operand are read by one 64-bit load. Two registers that a lane
// loads so are the 8-column operand of that mma, but not two of the 16-row one: so kW4A16 computes
// the transpose, with the weights as the 16 rows and the tokens as the 8 columns (kSwapped), which
// also halves the least number of tokens.
#pragma once

#include "cutlass/array.h"
#include "cutlass/gemm/gemm.h"
#include "gemm/group_cache.cuh"
#include "gemm/left_out.h"
#include "gemm/schedule.h"
#include "gemm/shared_tile.cuh"
#include "gemm/tiles.h"

namespace qutlass::threadblock {

// The operands of a product, rows in bytes.
struct Operands {
  const char* a = nullptr;
  const char* b = nullptr;
  int64_t lda = 0, ldb = 0;
  int rows = 0, columns = 0;  // M, N
};

// Calls f with the constants 0 .. kCount - 1. What is a loop in the source is a sequence for the
// compiler, which unrolls loops as large as the mainloop's only as long as it thinks them small.
template <int kCount, int kIndex = 0, typename F>
__device__ __forceinline__ void for_each_index(const F& f) {
  if constexpr (kIndex < kCount) {
    f(cutlass::platform::integral_constant<int, kIndex>{});
    for_each_index<kCount, kIndex + 1>(f);
  }
}

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
  static constexpr int kSlices = WarpCount::kK;  // warps that share an output and split its k

  static constexpr bool kBf16 = kOp == GemmOp::kW4A16;
  static constexpr bool kS4 = kOp == GemmOp::kW4A4;
  static constexpr bool kMultiplier = kOp == GemmOp::kW4A8Multiplier;
  // kW4A16, high tiles: weights are unpacked a k tile ahead of their use, once for all warps, into
  // shared memory, from where fragments come as those of operands that need no unpacking do. Packed
  // tiles run one ahead of those of A, so that there is one to unpack.
  static constexpr bool kStaged = is_staged(kOp, Shape::kM);
  // kW4A16, the others: the transpose is computed.
  static constexpr bool kSwapped = is_swapped(kOp, Shape::kM);
  static constexpr bool kSumsFractions = is_summed(kOp, Shape::kM, WarpShape::kM);
  // Scales multiply the sums of each group, which are then folded into float32 totals: that is
  // exact, but takes twice the registers. With kStaged they multiply the weights as they are
  // unpacked.
  static constexpr bool kFold = is_folded(kOp, Shape::kM);
  static constexpr bool kGroups = is_grouped(kOp);
  // Weights enter the mma as 16 * q, one AND away from the packed word.
  static constexpr bool kTimes16 = kOp == GemmOp::kW4A8 || kOp == GemmOp::kW4A8Group;

  using Partial = cutlass::platform::conditional_t<kBf16, float, int>;  // what mma accumulates
  using ElementC = cutlass::platform::conditional_t<kFold || kBf16, float, int>;  // what leaves

  static_assert(!kStaged || (kSlices == 1 && WarpShape::kM <= 64));

  // A step is the k of one B fragment load: 32 (64 for int4 x int4, 16 for unpacked bf16); bf16
  // runs two mma over packed 32.
  static constexpr int kStepK = kS4 ? 64 : kStaged ? 16 : 32;
  static constexpr int kHalves = kBf16 && !kStaged ? 2 : 1;
  static constexpr int kSteps = WarpShape::kK / kStepK;
  static constexpr int kSubsteps = kSteps * kHalves;
  static constexpr int kMTiles = (WarpShape::kM + 15) / 16;
  static constexpr int kNTiles = WarpShape::kN / 8;
  // Fragments of A a step, and their registers; those of B.
  static constexpr int kAFragments = kSwapped ? WarpShape::kM / 8 : kMTiles;
  static constexpr int kAWords = kSwapped ? 2 : 4;
  static constexpr int kBFragments = kSwapped ? kNTiles / 2 : kNTiles;
  static constexpr int kBWords = kSwapped ? 4 : 2;
  static constexpr bool kWideB =
      kOp == GemmOp::kW8A8 || kS4 || kStaged;  // 32 bytes of B a step, else 16
  // ldmatrix.x4 a step, of which the last may be half of one.
  static constexpr int kBLoads = kWideB ? kNTiles / 2 : (kNTiles + 3) / 4;
  // Fragments of A for the next step come into registers of their own; in the highest warp tiles,
  // which have none left, each comes into the place of its predecessor, right behind the last
  // product that reads that.
  static constexpr bool kInPlaceA = kMTiles >= (kOp == GemmOp::kW4A8Group ? 5 : 8);
  static constexpr int kABuffers = kInPlaceA ? 1 : 2;
  // Row sums of a are shared out over the warps that read the same rows, each of which reads its
  // share once more: that is cheaper than having every warp add all its fragments. What has no
  // others to share with adds the fragments it has.
  static constexpr int kSumTiles = (kMTiles + WarpCount::kN - 1) / WarpCount::kN;
  static constexpr bool kSumsOwn = WarpCount::kN == 1;

  // Multipliers make weights that are unsigned bytes, 128 too large. One m tile takes them so: 128
  // times the row sums of a, one more product for each fragment of it, are cheaper than an
  // instruction for each register of B (0.97 of the time at M 16, an H100; with two m tiles as
  // fast).
  static constexpr bool kUnsignedB = kMultiplier && kMTiles == 1;

  static_assert(Shape::kM % WarpShape::kM == 0 && Shape::kN % WarpShape::kN == 0 &&
                Shape::kK % WarpShape::kK == 0);
  static_assert(WarpShape::kM % (kSwapped && WarpCount::kM == 1 ? 8 : 16) == 0 &&
                WarpShape::kN % 16 == 0);
  static_assert(WarpShape::kK % kStepK == 0 && kStages >= 2);

  using TileA = SharedTile<Shape::kM, Shape::kK * a_bits(kOp) / 8, kSwapped ? 2 : 1>;
  using TileB = SharedTile<Shape::kN, Shape::kK * b_bits(kOp) / 8>;
  // What fragments of B are read from.
  using TileW =
      cutlass::platform::conditional_t<kStaged, SharedTile<Shape::kN, Shape::kK * a_bits(kOp) / 8>,
                                       TileB>;

  // Of one warp, in the order [n tile][m tile][4]: row 16 * m + 8 * (r / 2) + lane / 4, column
  // 8 * n + 2 * (lane % 4) + (r % 2) of B as it lies in shared memory.
  // n tiles whose sum a warp ends up with; the last slices may get none.
  static constexpr int kOwnTiles = (kNTiles + kSlices - 1) / kSlices;
  static_assert(kNTiles % kOwnTiles == 0, "a slice gets all of its share or nothing");
  // Columns are dealt out so that a lane has eight neighbours, see dealt_row().
  static constexpr bool kDealt = kOwnTiles % 4 == 0;
  using Result = ElementC[kOwnTiles][kMTiles][4];

  static constexpr int kMinGroup = min_group_of(kOp, Shape::kK, WarpShape::kM, WarpShape::kK);
  static constexpr int kPeriodGroups = period_groups_of(kOp, Shape::kM, Shape::kN, Shape::kK,
                                                        WarpShape::kM, WarpShape::kK, kThreads);
  static constexpr int kPackGroups =
      pack_groups_of(kOp, Shape::kM, Shape::kN, Shape::kK, WarpShape::kM, WarpShape::kK, kThreads);
  using Groups = GroupCache<kOp, kStaged, kSumsFractions, kDealt, Shape::kN, Shape::kK, kMinGroup,
                            kPeriodGroups, kPackGroups, kThreads>;

  struct PackedStages {
    alignas(128) uint8_t a[kStages][TileA::kBytes];
    alignas(128) uint8_t b[kStages][TileB::kBytes];
  };
  struct UnpackedStages : PackedStages {
    alignas(128) uint8_t w[2][TileW::kBytes];
  };
  using Stages = cutlass::platform::conditional_t<kStaged, UnpackedStages, PackedStages>;
  // Sums of the slices, where they meet; transposed ones are put right on the way.
  static constexpr bool kExchanges = kSlices > 1;
  struct Exchange {
    alignas(128) int4 sum[kSlices][WarpCount::kM * WarpCount::kN][kNTiles][kMTiles][32];
  };
  // What copies have to know of a segment.
  struct alignas(16) Extent {
    int tile_m, tile_n, k_begin, k_end;
    __device__ static Extent of(const Segment& s) {
      return {s.tile_m, s.tile_n, s.k_begin, s.k_end};
    }
  };
  struct PlainStorage {
    // The segments that copies go on to, written by one thread a segment ahead, each where its
    // number modulo 4 says. Working them out takes divisions and registers that are short where the
    // copies are. With kStaged the copies of B may be two segments ahead of those of A.
    Extent upcoming[4];
    union {
      Stages stages;
      cutlass::platform::conditional_t<kExchanges, Exchange, Stages> exchange;
    };
  };
  struct GroupStorage : PlainStorage {
    alignas(128) typename Groups::Storage groups;
  };
  using SharedStorage = cutlass::platform::conditional_t<kGroups, GroupStorage, PlainStorage>;

 private:
  // 1.5 * 2^23 as an integer: int32 sums that start here are, read as float32, 1.5 * 2^23 + sum as
  // long as |sum| < 2^22, so that one float subtraction converts them. A group's 16 * sum is at
  // most 128 * 16 * 8 * 128 = 2^21.
  static constexpr int kMagicBits = 0x4B400000;
  static constexpr float kMagic = 12582912.f;

  // Copies run on into the next segment, unless the stages are needed to exchange sums.
  static constexpr bool kRunsOn = !kExchanges;

  uint32_t shared_a_;  // stage 0; what else there is in Stages lies at constant distances
  uint32_t shared_w_;  // kStaged: the unpacked tile that is read, the other one is written
  uint32_t lane_a_, lane_b_;  // this lane's offset in a stage at step 0
  int lane_;
  int warp_m_, warp_n_, warp_k_;

  const Operands& operands_;
  const Schedule& schedule_;
  const GroupParams& group_;
  SharedStorage& shared_;

  // The copies: which segment they are in, and what is left of it.
  TileLoader<TileA, kThreads> loader_a_;
  TileLoader<TileB, kThreads, kDealt> loader_b_;
  int load_segment_ = 0;
  int load_left_ = 0;  // k tiles
  int stage_ = 0;  // of the next k tile to compute

  struct NoGroups {
    __device__ NoGroups(const GroupParams&, SharedStorage&, int) {}
  };
  struct SegmentGroups : Groups {
    __device__ SegmentGroups(const GroupParams& params, SharedStorage& shared, int columns)
        : Groups(params, shared.groups, columns) {}
  };
  cutlass::platform::conditional_t<kGroups, SegmentGroups, NoGroups> groups_;
  // High tiles have no registers to keep them in so long, and more products to hide them behind.
  static constexpr bool kEarlyGroups = kGroups && Shape::kM <= 32;

  __device__ __forceinline__ void fetch_first_groups(const Segment& segment) {
    groups_.start(segment.tile_n * Shape::kN, segment.k_begin);
    groups_.fetch();
  }

 public:
  __device__ Mainloop(SharedStorage& shared, const Operands& operands, const Schedule& schedule,
                      const GroupParams& group, int warp, int lane)
      : shared_a_(shared_address(shared.stages.a)),
        shared_w_(shared_w0()),
        lane_(lane),
        operands_(operands),
        schedule_(schedule),
        group_(group),
        shared_(shared),
        groups_(group, shared, operands.columns) {
    warp_k_ = warp / (WarpCount::kM * WarpCount::kN);
    // Warps of the same rows follow each other, so that rows beyond M leave no scheduler idle.
    warp_m_ = warp % (WarpCount::kM * WarpCount::kN) / WarpCount::kN;
    warp_n_ = warp % WarpCount::kN;

    if constexpr (kSwapped) {
      const int row = warp_m_ * WarpShape::kM + lane / 4;
      lane_a_ =
          row * TileA::kRowBytes + (((lane % 4 / 2) ^ swizzle<TileA>(row)) * 16) + lane % 2 * 8;
    } else {
      const int row = warp_m_ * WarpShape::kM + lane % 16;
      lane_a_ = row * TileA::kRowBytes + (((lane / 16) ^ swizzle<TileA>(row)) * 16);
    }
    if constexpr (kWideB) {
      const int row = warp_n_ * WarpShape::kN + lane % 8 + lane / 16 * 8;
      lane_b_ = row * TileW::kRowBytes + (((lane / 8 % 2) ^ swizzle<TileW>(row)) * 16);
    } else {
      const int row = warp_n_ * WarpShape::kN + lane;
      lane_b_ = row * TileB::kRowBytes + swizzle<TileB>(row) * 16;
    }
    // k slices of the warps: their bytes are aligned powers of two, so XOR adds them.
    lane_a_ ^= warp_k_ * (WarpShape::kK * a_bits(kOp) / 8);
    lane_b_ ^= warp_k_ * (WarpShape::kK * b_bits(kOp) / 8);
  }

  // kMultiplier: whether this thread has put columns in place that have weights which left int8,
  // and which of the tile they are.
  __device__ __forceinline__ bool any_bad() const { return groups_.any_bad(); }
  template <typename Visit>
  __device__ __forceinline__ void for_bad(const Visit& visit) const {
    groups_.for_bad(visit);
  }
  // Whether this warp ends up with a result.
  __device__ __forceinline__ bool owns() const { return warp_k_ * kOwnTiles < kNTiles; }
  // The first row and column of the tile that this warp's result covers.
  __device__ __forceinline__ int result_row() const { return warp_m_ * WarpShape::kM; }
  __device__ __forceinline__ int result_column() const {
    return warp_n_ * WarpShape::kN + warp_k_ * kOwnTiles * 8;
  }

  // Starts the copies of the block's segment number `index`, where they do not run already, and
  // ahead of them the loads of its first groups. Returns at once; what the caller does next
  // overlaps them.
  __device__ __forceinline__ void prologue(const Segment& segment, int index) {
    if constexpr (kEarlyGroups) fetch_first_groups(segment);
    if (kRunsOn && index > 0) return;
    stage_ = 0;  // so that the compiler knows
    open(Extent::of(segment), index);
    const auto open_b_next = [&] {
      Segment next;
      if (kStaged && load_left_ == 1 && schedule_.segment(blockIdx.x, load_segment_ + 1, &next))
        open_b(Extent::of(next));
    };
    if constexpr (kStaged) {
      announce(index + 1);
      open_b(Extent::of(segment));
      loader_b_.load(stage_b(stage_), operands_.ldb);
      open_b_next();
    }
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) {
      load_tile(i, i + 1);
      --load_left_;
      // Short segments leave stages for the next ones.
      Segment next;
      if (kRunsOn && load_left_ == 0 && schedule_.segment(blockIdx.x, load_segment_ + 1, &next)) {
        open(Extent::of(next), load_segment_ + 1);
      }
      open_b_next();
    }
  }

  // The sums of a segment. vectors: the tile's TileVectors. Without groups, and where b has zero
  // points, they come to stand there, and the row sums of a, which are zeros before.
  template <typename Vectors>
  __device__ __forceinline__ void operator()(const Segment& segment, Result& result,
                                             Vectors& vectors) {
    if constexpr (kGroups) {
      // Groups that a warp's share of a k tile does not lie in whole change between steps.
      const bool per_step =
          kMinGroup < WarpShape::kK && group_.groups > 1 && 1 << group_.group_shift < WarpShape::kK;
      // Integer zero points leave an integer to subtract, see GroupCache.
      [[maybe_unused]] const bool fractional = group_.b_zero != nullptr &&
                                               group_.b_zero_dtype != DType::kInt8 &&
                                               group_.b_zero_dtype != DType::kInt32;
      if constexpr (kSwapped) {
        if (fractional) {
          if (per_step) return run<true, true>(segment, result, vectors);
          return run<true, false>(segment, result, vectors);
        }
      }
      if constexpr (kStaged) {
        // Where a group begins only decides which words are read.
        if (fractional || group_.b_scale_dtype != DType::kBFloat16)
          return run<true, true>(segment, result, vectors);
        return run<false, true>(segment, result, vectors);
      }
      if constexpr (kOp == GemmOp::kW4A8Group) {
        if (group_.b_zero != nullptr) {
          if (per_step) return run<true, true>(segment, result, vectors);
          return run<true, false>(segment, result, vectors);
        }
      }
      if (per_step) return run<false, true>(segment, result, vectors);
    } else {
      if (group_.b_zero != nullptr) return run<true, false>(segment, result, vectors);
    }
    run<false, false>(segment, result, vectors);
  }

 private:
  __device__ __forceinline__ uint32_t stage_b(int stage) const {
    return shared_a_ + kStages * TileA::kBytes + stage * TileB::kBytes;
  }
  __device__ __forceinline__ uint32_t shared_w0() const { return stage_b(kStages); }

  // All threads work it out: were that one thread's branch, the compiler would take warps to part
  // in the loop over k tiles, and keep what they share in registers of each lane (9.0).
  __device__ __forceinline__ void announce(int index) {
    Segment s;
    if (!schedule_.segment(blockIdx.x, index, &s)) s.k_end = 0;
    const uint32_t words[4] = {static_cast<uint32_t>(s.tile_m), static_cast<uint32_t>(s.tile_n),
                               static_cast<uint32_t>(s.k_begin), static_cast<uint32_t>(s.k_end)};
    store_shared_128_if(threadIdx.x == 0, shared_address(&shared_.upcoming[index % 4]), words);
  }

  __device__ __forceinline__ void open(const Extent& s, int index) {
    load_segment_ = index;
    if (kRunsOn) announce(index + (kStaged ? 2 : 1));
    load_left_ = (s.k_end - s.k_begin + Shape::kK - 1) / Shape::kK;
    const int row = s.tile_m * Shape::kM;
    loader_a_.start(operands_.a + row * operands_.lda, operands_.lda, operands_.rows - row,
                    s.k_begin * a_bits(kOp) / 8, s.k_end * a_bits(kOp) / 8);
    if constexpr (!kStaged) open_b(s);
  }
  __device__ __forceinline__ void open_b(const Extent& s) {
    const int column = s.tile_n * Shape::kN;
    loader_b_.start(operands_.b + column * operands_.ldb, operands_.ldb, operands_.columns - column,
                    s.k_begin * b_bits(kOp) / 8, s.k_end * b_bits(kOp) / 8);
  }

  // Goes on to the next segment where one is copied whole. A barrier has passed since it was
  // announced.
  __device__ __forceinline__ void open_next() {
    if (!kStaged || load_left_ == 0) {
      const Extent next = shared_.upcoming[(load_segment_ + 1) % 4];
      if (next.k_end > 0) open(next, load_segment_ + 1);
    }
    if (kStaged && load_left_ == 1) {
      const Extent next = shared_.upcoming[(load_segment_ + 1) % 4];
      if (next.k_end > 0) open_b(next);
    }
  }

  // Part number `part` of `parts` of the next tile's copies. Behind the last k tile of all come
  // zeros: copies that read nothing are cheaper than a branch in the loop.
  __device__ __forceinline__ void load_part(int part, int parts, int stage, int after) {
    constexpr int kA = decltype(loader_a_)::kAccesses, kB = decltype(loader_b_)::kAccesses;
#pragma unroll
    for (int i = 0; i < kA + kB; ++i) {
      if (leaves_out(Part::kCopying) || i * parts / (kA + kB) != part) continue;
      if (i < kA)
        loader_a_.access(i, shared_a_ + stage * TileA::kBytes, operands_.lda);
      else
        loader_b_.access(i - kA, stage_b(kStaged ? after : stage), operands_.ldb);
    }
    if (part < parts - 1) return;
    loader_a_.advance();
    loader_b_.advance();
    copy_async_commit();
  }
  __device__ __forceinline__ void load_tile(int stage, int after) { load_part(0, 1, stage, after); }

  // A lane's offset `offset` bytes of k further on. Only bits that the swizzle touches need XOR;
  // the others, which no lane has set, are left to the instruction that loads.
  __device__ __forceinline__ static uint32_t along_k(uint32_t lane, int offset) {
    return (lane ^ static_cast<uint32_t>(offset & 127)) + static_cast<uint32_t>(offset & ~127);
  }
  // Where fragments of A come one by one, an address that the compiler does not take apart: it
  // would keep, or work out again, the sums of its terms with each of the constants that are added
  // to it, which the instruction that loads adds itself.
  __device__ __forceinline__ uint32_t address_a(int stage, int substep) const {
    const uint32_t address = shared_a_ + stage * TileA::kBytes + along_k(lane_a_, substep * 32);
    return kInPlaceA ? static_cast<uint32_t>(opaque(static_cast<int>(address))) : address;
  }

  // from: address_a() of a stage and substep.
  __device__ __forceinline__ static void fetch_a_tile(uint32_t (&a)[kAWords], uint32_t from,
                                                      int m) {
    const uint32_t address = from + m * (4 * kAWords) * TileA::kRowBytes;
    if constexpr (kSwapped)
      load_shared_64(a, address);
    else
      ldmatrix_x4(a, address);
  }
  __device__ __forceinline__ static void fetch_a(uint32_t (&a)[kAFragments][kAWords],
                                                 uint32_t from) {
#pragma unroll
    for (int i = 0; i < kAFragments; ++i) fetch_a_tile(a[i], from, i);
  }

  // The other unpacked tile.
  __device__ __forceinline__ uint32_t other_w() const {
    return 2 * shared_w0() + TileW::kBytes - shared_w_;
  }

  // tile: address of the tile of B.
  __device__ __forceinline__ void fetch_b(uint32_t (&b)[kBLoads][4], uint32_t tile,
                                          int step) const {
    constexpr int kStepBytes = kWideB ? 32 : 16;
    constexpr int kRows = kWideB ? 16 : 32;
    const uint32_t base = tile + along_k(lane_b_, step * kStepBytes);
#pragma unroll
    for (int j = 0; j < kBLoads; ++j) {
      const uint32_t address = base + j * kRows * TileW::kRowBytes;
      if (kWideB || 4 * j + 2 < kNTiles)
        ldmatrix_x4(b[j], address);
      else
        ldmatrix_x2(b[j][0], b[j][1], address);
    }
  }

  // Adds the values of each row of a fragment to those of sum: a product with ones, whose columns
  // are all the row's sum.
  __device__ __forceinline__ static void sum_fragment(Partial (&sum)[4],
                                                      const uint32_t (&a)[kAWords]) {
    constexpr uint32_t kOne = kBf16 ? 0x3F803F80u : kS4 ? 0x11111111u : 0x01010101u;
    uint32_t ones[kBWords];
#pragma unroll
    for (int r = 0; r < kBWords; ++r) ones[r] = kOne;
    multiply(sum, a, ones, sum);
  }

  // This warp's share of the rows once more.
  __device__ __forceinline__ void fetch_share(uint32_t (&a)[kSumTiles][kAWords], int stage,
                                              int substep) const {
#pragma unroll
    for (int i = 0; i < kSumTiles; ++i) {
      const int m = warp_n_ * kSumTiles + i;
      if (kMTiles % WarpCount::kN == 0 || m < kMTiles)
        fetch_a_tile(a[i], address_a(stage, substep), m);
    }
  }

  __device__ __forceinline__ int warp_column() const { return warp_n_ * WarpShape::kN; }

  // d = a * b + c, where kSwapped d = b * a + c.
  __device__ __forceinline__ static void multiply(Partial (&d)[4], const uint32_t (&a)[kAWords],
                                                  const uint32_t (&b)[kBWords],
                                                  const Partial (&c)[4]) {
    if constexpr (kSwapped)
      mma_bf16(d, b, a, c);
    else if constexpr (kBf16)
      mma_bf16(d, a, b, c);
    else if constexpr (kS4)
      mma_s4(d, a, b, c);
    else if constexpr (kUnsignedB)
      mma_s8_u8(d, a, b, c);
    else
      mma_s8(d, a, b, c);
  }
  // The same to d itself where `really`.
  __device__ __forceinline__ static void accumulate(Partial (&d)[4], const uint32_t (&a)[kAWords],
                                                    const uint32_t (&b)[kBWords], bool really) {
    if constexpr (kSwapped)
      accumulate_bf16(d, b, a, really);
    else if constexpr (kBf16)
      accumulate_bf16(d, a, b, really);
    else if constexpr (kS4)
      accumulate_s4(d, a, b, really);
    else if constexpr (kUnsignedB)
      accumulate_s8_u8(d, a, b, really);
    else
      accumulate_s8(d, a, b, really);
  }

  // What unpacking needs of a group, for this thread's columns of the B fragments.
  struct UnpackParams {
    uint32_t c[kNTiles];  // array[kUnpack], see GroupCache; kSwapped: array[kRest]
    uint32_t scale[kNTiles];  // where unpacking scales, kSwapped: array[kScale]
  };
  template <bool kZeros>
  __device__ __forceinline__ void begin_group(UnpackParams& u, int slot) const {
    if constexpr (kMultiplier || kSwapped || (kOp == GemmOp::kW4A8Group && kZeros)) {
      const int column = warp_column() + lane_ / 4;
#pragma unroll
      for (int j = 0; j < kNTiles; ++j) {
        u.c[j] =
            shared_.groups.array[kSwapped ? Groups::kRest : Groups::kUnpack][slot][column + j * 8];
        if constexpr (kSwapped && kZeros && !kSumsFractions)
          u.scale[j] = shared_.groups.array[Groups::kScale][slot][column + j * 8];
      }
    }
  }

  // The nibbles q of x, the low and the high ones, as bytes q + 8.
  __device__ __forceinline__ static void offset_nibbles(uint32_t (&v)[2], uint32_t x) {
    if constexpr (kInPlaceA) {
      // The highest tiles have no register for the second constant.
      const uint32_t y = x ^ 0x88888888u;
      v[0] = y & 0x0F0F0F0Fu;
      v[1] = (y >> 4) & 0x0F0F0F0Fu;
    } else {
      v[0] = and_xor(x, 0x0F0F0F0Fu, 0x08080808u);
      v[1] = and_xor(x >> 4, 0x0F0F0F0Fu, 0x08080808u);
    }
  }
  // kW4A16: pairs of bfloat16 from the low (half 0) or the high nibbles of x. A byte 0 .. 240 is a
  // bfloat16 of that many units of 2^-133, a subnormal or one of the first normals: so no nibble
  // needs shifting, offset() multiplies the low ones by 16 times as much. PTX's fma on bfloat16
  // takes subnormals and has no form that flushes them.
  __device__ __forceinline__ static void widen_nibbles(uint32_t (&b)[2], uint32_t x, int half) {
    const uint32_t v =
        half == 0 ? and_xor(x, 0x0F0F0F0Fu, 0x08080808u) : and_xor(x, 0xF0F0F0F0u, 0x80808080u);
    b[0] = __byte_perm(v, 0, 0x4140);
    b[1] = __byte_perm(v, 0, 0x4342);
  }
  // v, of widen_nibbles(), as (q + 8) / kUnits, plus c.
  __device__ __forceinline__ static uint32_t offset(uint32_t v, int half, uint32_t c) {
    return bf16x2_fma(v, half == 0 ? 0x7F007F00u : 0x7D007D00u, c);  // 2^127, 2^123
  }
  // The weights of a pair, see GroupCache.
  template <bool kZeros>
  __device__ __forceinline__ static uint32_t scaled(uint32_t v, int half, const uint2& w,
                                                    const uint2& rest) {
    const uint32_t x = offset(v, half, w.x);
    // (v - c1) * (scale + rest of the scale), rounded once but for the small second term.
    if constexpr (kZeros) return bf16x2_fma(x, w.y, bf16x2_fma(x, rest.x, rest.y));
    return bf16x2_mul(x, w.y);
  }
  // kSwapped: q - zero of pairs. Without kSumsFractions, of fractional zero points, the weights:
  // rounded without their scale they would all be off by the same.
  template <bool kZeros>
  __device__ __forceinline__ static void settle(uint32_t (&v)[2], int half, const UnpackParams& u,
                                                int j) {
    const auto low = [](uint32_t x) { return __byte_perm(x, 0, 0x1010); };
    const auto high = [](uint32_t x) { return __byte_perm(x, 0, 0x3232); };
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if constexpr (kZeros && !kSumsFractions)
        v[i] = scaled<true>(v[i], half, make_uint2(low(u.c[j]), low(u.scale[j])),
                            make_uint2(high(u.scale[j]), high(u.c[j])));
      else
        v[i] = offset(v[i], half, kZeros ? low(u.c[j]) : u.c[j]);
    }
  }
  // array[which] of two words a column.
  __device__ __forceinline__ uint2 param_pair(int which, int slot, int column) const {
    return *reinterpret_cast<const uint2*>(&shared_.groups.array[which][slot][2 * column]);
  }

  // n tile j's fragment of one mma, from the packed word x.
  template <bool kZeros>
  __device__ __forceinline__ static void unpack(uint32_t (&b)[2], uint32_t x, const UnpackParams& u,
                                                int j) {
    if constexpr (leaves_out(Part::kUnpacking)) {
      b[0] = b[1] = x;
    } else if constexpr (kMultiplier) {
      const uint32_t m = u.c[j] & 0xFF, c = __byte_perm(u.c[j], 0, 0x1111);
      uint32_t v[2];
      offset_nibbles(v, x);
      constexpr uint32_t kSign = kUnsignedB ? 0 : 0x80808080u;
      b[0] = (v[0] * m + c) ^ kSign;
      b[1] = (v[1] * m + c) ^ kSign;
    } else if constexpr (kOp == GemmOp::kW4A8Group && kZeros) {
      uint32_t v[2];
      offset_nibbles(v, x);
      b[0] = (v[0] + u.c[j]) ^ 0x80808080u;
      b[1] = (v[1] + u.c[j]) ^ 0x80808080u;
    } else {
      b[0] = (x * 16u) & 0xF0F0F0F0u;
      b[1] = x & 0xF0F0F0F0u;
    }
  }

  // kStaged: a thread unpacks 16-byte chunks of 32 nibbles, the halves of each in turn.
  static constexpr int kThreadChunks = kStaged ? Shape::kN * TileB::kChunks / kThreads : 0;
  static constexpr int kChunkRows = kThreads / TileB::kChunks;  // from a chunk to a thread's next
  static_assert(!kStaged || (kThreadChunks * kThreads == Shape::kN * TileB::kChunks &&
                             kChunkRows % (TileB::kRowsPerLine * TileB::kXorRange) == 0 &&
                             kChunkRows % (TileW::kRowsPerLine * TileW::kXorRange) == 0),
                "a thread's chunks are whole, and swizzled alike");
  struct Chunk {
    uint32_t x[4];
    uint2 w, rest;  // see GroupCache
  };
  __device__ __forceinline__ static int chunk_row() {
    return static_cast<int>(threadIdx.x / TileB::kChunks);
  }
  __device__ __forceinline__ static int chunk_of_row() {
    return static_cast<int>(threadIdx.x % TileB::kChunks);
  }
  // This thread's chunk number i of the packed tile at `tile`, whose first k is `k`.
  template <bool kZeros>
  __device__ __forceinline__ void fetch_chunk(Chunk& c, int i, uint32_t tile, int k,
                                              const Groups& groups) const {
    const int row = chunk_row() + i * kChunkRows;
    load_shared_128(
        c.x, tile + row * TileB::kRowBytes + (chunk_of_row() ^ swizzle<TileB>(chunk_row())) * 16);
    const int slot = groups.slot(k + chunk_of_row() * 32);
    c.w = param_pair(Groups::kUnpack, slot, row);
    if constexpr (kZeros) c.rest = param_pair(Groups::kRest, slot, row);
  }
  // Its half `half`, 16 nibbles, to the unpacked tile at `tile`.
  template <bool kZeros>
  __device__ __forceinline__ void unpack_half(const Chunk& c, int i, int half,
                                              uint32_t tile) const {
    const uint32_t base = tile + (chunk_row() + i * kChunkRows) * TileW::kRowBytes;
    uint32_t low[4], high[4];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      uint32_t b[2];
      widen_nibbles(b, c.x[half * 2 + h], 0);
      low[h * 2] = scaled<kZeros>(b[0], 0, c.w, c.rest);
      low[h * 2 + 1] = scaled<kZeros>(b[1], 0, c.w, c.rest);
      widen_nibbles(b, c.x[half * 2 + h], 1);
      high[h * 2] = scaled<kZeros>(b[0], 1, c.w, c.rest);
      high[h * 2 + 1] = scaled<kZeros>(b[1], 1, c.w, c.rest);
    }
    const int to = chunk_of_row() * 4 + half;
    store_shared_128(base + ((to ^ swizzle<TileW>(chunk_row())) * 16), low);
    store_shared_128(base + (((to + 2) ^ swizzle<TileW>(chunk_row())) * 16), high);
  }

  // kZeros: zero points of the weights take part in unpacking, or need row sums of a; kStaged:
  // or scales are not bfloat16. kPerStep: groups change between steps, not only between k tiles.
  template <bool kZeros, bool kPerStep, typename Vectors>
  __device__ __forceinline__ void run(const Segment& segment, Result& result, Vectors& vectors);
};

template <GemmOp kOp_, typename Shape_, typename WarpShape_, int kStages_>
template <bool kZeros, bool kPerStep, typename Vectors>
__device__ __forceinline__ void Mainloop<kOp_, Shape_, WarpShape_, kStages_>::run(
    const Segment& segment, Result& result, Vectors& vectors) {
  Partial partial[kBFragments][kAFragments][4];
  [[maybe_unused]] float total[kFold ? kBFragments : 1][kFold ? kAFragments : 1][4];
  uint32_t a[kABuffers][kAFragments][kAWords];
  uint32_t b_raw[2][kBLoads][4];
  int own_sum[kSumTiles][4];

  // Fractional zero points: their rest is put right by the row sums of a, the same in every row, or
  // weights are rounded with it.
  constexpr bool kASums = kSumsFractions && kZeros;
  constexpr bool kScales = kSwapped && kZeros && !kSumsFractions;
  [[maybe_unused]] float a_sum_of_group[kAFragments][4];

  // With kUnsignedB those of the segment, the same in every column.
  [[maybe_unused]] Partial row_sum[kUnsignedB ? kMTiles : 1][4] = {};

  constexpr Partial kStart = kOp == GemmOp::kW4A8Group ? Partial(kMagicBits) : Partial(0);
#pragma unroll
  for (int j = 0; j < kBFragments; ++j)
#pragma unroll
    for (int i = 0; i < kAFragments; ++i)
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        if constexpr (kFold)
          total[j][i][r] = 0.f;
        else
          partial[j][i][r] = kStart;
      }
#pragma unroll
  for (int i = 0; i < kSumTiles; ++i)
#pragma unroll
    for (int r = 0; r < 4; ++r) own_sum[i][r] = 0;

  // Grouped products apply zero points to the weights as they unpack them; the others subtract
  // b_zero[n] * (row sum of a) at the end.
  constexpr bool kRowSums = !kGroups && kZeros;
  constexpr bool kSumShare = kRowSums && !kSumsOwn;
  // With row sums, high tiles without unpacking have their copies between the first products rather
  // than ahead of them: up to 9 % faster so (an H100), where the plain loop is as fast either way.
  constexpr bool kSpreadCopies = kRowSums && kWideB && kMTiles >= 4;
  // Other high tiles have theirs behind the first products, which then need not wait until all are
  // issued. Low tiles wait for their copies, kStaged is 4 % faster with copies first (an H100).
  constexpr bool kCopiesFirst = !kSpreadCopies && (kStaged || kMTiles < 4);
  // Whether the loop over k tiles has one in it that stops only where something else is to be done.
  // That saves W8A8 up to 5 %, other middling products, and of groups also higher ones, 2 to 8 %;
  // the highest others spill or are 4 % slower, low ones of groups 3 % (an H100). With row sums it
  // is W4A8 that it saves 3 %, where a warp's sums and its share of the rows leave registers for
  // it, and W8A8 that comes out with all its copies ahead of its products, 15 % slower.
  constexpr int kSums = kAFragments * kBFragments * 4 * (kFold ? 2 : 1);
  constexpr bool kNestsSums = kOp == GemmOp::kW4A8 && kSums + 8 * kSumTiles <= 136;
  constexpr bool kNested = kGroups ? !kStaged && Shape::kM > (kBf16 ? 16 : 32) && kSums <= 144
                                   : (kRowSums ? kNestsSums : kOp == GemmOp::kW8A8) || kSums <= 64;
  const int tiles = (segment.k_end - segment.k_begin + Shape::kK - 1) / Shape::kK;
  const int column_begin = segment.tile_n * Shape::kN;

  // The next fragment of B is unpacked ahead of the products of this one: where unpacking takes
  // long, they hide it. A step's first fragment, too, where there are registers to keep it in and
  // enough products (with two m tiles that is 4 % slower, with three 12 % faster; an H100).
  constexpr bool kUnpacksAhead = kMultiplier || (kOp == GemmOp::kW4A8Group && kZeros);
  constexpr bool kAheadOfStep = kUnpacksAhead && kMTiles > 2 && !kInPlaceA;

  [[maybe_unused]] UnpackParams params;
  [[maybe_unused]] Chunk chunk;
  [[maybe_unused]] int slot = 0, last_slot = 0;
  [[maybe_unused]] int k = segment.k_begin + warp_k_ * WarpShape::kK;  // of this warp's tile

  // Zero points are on their way while the first tile is.
  [[maybe_unused]] int b_zero = 0;
  static_assert(!kRowSums || Shape::kN <= kThreads);
  if constexpr (kRowSums) {
    const int64_t n = min(column_begin + static_cast<int>(threadIdx.x), operands_.columns - 1);
    b_zero = load_int(group_.b_zero, group_.b_zero_dtype, n * group_.b_zero_stride);
  }

  // Since the last segment's groups were read a barrier has passed.
  [[maybe_unused]] auto& groups = groups_;
  if constexpr (kGroups) {
    if constexpr (!kEarlyGroups) fetch_first_groups(segment);
    groups.commit();
    groups.fetch();
  }
  copy_async_wait<kStages - 2>();
  if constexpr (kRowSums) {
    if (threadIdx.x < Shape::kN) vectors.b_zero[threadIdx.x] = b_zero;
  }
  __syncthreads();
  if constexpr (kGroups) {
    if constexpr (kStaged) {
      // The first tile; the others are unpacked while the ones before them are multiplied.
#pragma unroll
      for (int u = 0; u < 2 * kThreadChunks; ++u) {
        if (u % 2 == 0) fetch_chunk<kZeros>(chunk, u / 2, stage_b(stage_), k, groups);
        unpack_half<kZeros>(chunk, u / 2, u % 2, shared_w_);
      }
      __syncthreads();
    } else {
      slot = groups.slot(k);
      begin_group<kZeros>(params, slot);
    }
  }
  fetch_a(a[0], address_a(stage_, 0));
  fetch_b(b_raw[0], kStaged ? shared_w_ : stage_b(stage_), 0);

  // Fragment j of B in substep s, from what was loaded for its step.
  const auto fragment = [&](uint32_t (&b)[kBWords], const int s, const int j) {
    const uint32_t (&raw)[kBLoads][4] = b_raw[s / kHalves % 2];
    if constexpr (kWideB) {
      b[0] = raw[j / 2][j % 2 * 2];
      b[1] = raw[j / 2][j % 2 * 2 + 1];
    } else if constexpr (kSwapped) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint32_t x = raw[j / 2][j % 2 * 2 + h];
        uint32_t rows[2] = {x, x};
        if constexpr (!leaves_out(Part::kUnpacking)) {
          widen_nibbles(rows, x, s % kHalves);
          settle<kZeros>(rows, s % kHalves, params, 2 * j + h);
        }
        b[h] = rows[0];
        b[h + 2] = rows[1];
      }
    } else {
      unpack<kZeros>(b, raw[j / 4][j % 4], params, j);
    }
  };
  [[maybe_unused]] uint32_t ahead[kBWords];
  if constexpr (kAheadOfStep) fragment(ahead, 0, 0);

  // Adds the sums of a group, which is in last_slot, to the totals.
  const auto fold = [&] {
    if constexpr (kFold) {
#pragma unroll
      for (int j = 0; j < kBFragments; ++j) {
        // Of the two columns that this lane has of the fragment.
        const auto columns = [&](int which, uint32_t mask) {
          const auto& array = shared_.groups.array[which][last_slot];
          const int column =
              warp_column() + (kSwapped ? lane_ / 4 + j * 16 : lane_ % 4 * 2 + j * 8);
          return make_float2(__uint_as_float(array[column] & mask),
                             __uint_as_float(array[column + (kSwapped ? 8 : 1)] & mask));
        };
        [[maybe_unused]] float2 rest;
        if constexpr (kASums) rest = columns(Groups::kRest, 0xFFFF0000u);  // -c1
        float2 scale = {1.f, 1.f};
        if constexpr (!kScales) scale = columns(Groups::kScale, 0xFFFFFFFFu);
#pragma unroll
        for (int i = 0; i < kAFragments; ++i)
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            const bool second = kSwapped ? r / 2 : r % 2;
            float p;
            if constexpr (kASums)
              p = fmaf(second ? rest.y : rest.x, a_sum_of_group[i][r], partial[j][i][r]);
            else if constexpr (kBf16)
              p = partial[j][i][r];
            else
              p = __int_as_float(partial[j][i][r]) - kMagic;
            total[j][i][r] = fmaf(p, second ? scale.y : scale.x, total[j][i][r]);
          }
      }
    }
  };

  const Partial start[4] = {kStart, kStart, kStart, kStart};
  // Rows beyond M cost an issue slot, not a product (9.0). There are few predicate registers, so
  // high tiles leave them out by 32. The first rows of a threadblock tile are real.
  constexpr int kFragmentRows = WarpShape::kM / kAFragments;
  constexpr int kStrip = strip_of(kOp, Shape::kM, WarpShape::kM) / kFragmentRows;
  static_assert(kAFragments % kStrip == 0);
  bool real[kAFragments / kStrip];
#pragma unroll
  for (int i = 0; i < kAFragments / kStrip; ++i) {
    const int row = warp_m_ * WarpShape::kM + i * kStrip * kFragmentRows;
    real[i] = (WarpCount::kM == 1 && i == 0) || segment.tile_m * Shape::kM + row < operands_.rows;
  }
  // The next tile has landed for every thread, and every warp has read all of this one.
  const auto land = [] {
    copy_async_wait<kStages - 2>();
    __syncthreads();
  };
  // A period's groups are put in place between two tiles: slower warps are through with what stood
  // there, and one more barrier comes before they are read. With kStaged they are read a tile
  // sooner.
  [[maybe_unused]] int until_groups = 0;
  if constexpr (kGroups)
    until_groups = group_.period - groups.skipped(segment.k_begin) / Shape::kK - (kStaged ? 2 : 1);
#pragma unroll 1
  for (int left = tiles; left > 0;) {
    if constexpr (kGroups) {
      if (__builtin_expect(until_groups == 0, kNested)) {
        groups.commit();
        groups.fetch();
        until_groups = group_.period;
      }
    }
    // Tiles between which nothing else is to be done.
    int run = 1;
    if constexpr (kNested) {
      run = left;
      if constexpr (kGroups) run = min(run, until_groups);
      if (kRunsOn && load_left_ > 0) run = min(run, load_left_);
    }
    left -= run;
    until_groups -= run;
    load_left_ -= run;
#pragma unroll 1
    do {
      const int next_stage = stage_ + 1 == kStages ? 0 : stage_ + 1;
      const auto substep = [&](const auto index) {
        constexpr int kLast = kSubsteps - 1;
        const int s = index, step = s / kHalves;
        [[maybe_unused]] uint32_t share[kSumTiles][kAWords] = {};
        if constexpr (kSumShare) fetch_share(share, stage_, s);
        if (s == kLast && !kInPlaceA) land();
        const int fetch_stage = s == kLast ? next_stage : stage_;
        const auto fetch_tile = [&] {
          if constexpr (kStaged)
            return s == kLast ? other_w() : shared_w_;
          else
            return stage_b(fetch_stage);
        };
        const int next = s == kLast ? 0 : s + 1;
        // Which register buffer a step uses must be a constant: an odd number of steps a tile would
        // swap the buffers from tile to tile, so its last step hands over through buffer 0.
        const uint32_t from_a = address_a(fetch_stage, next);
        if constexpr (!kInPlaceA) fetch_a(a[(s + 1) % 2], from_a);
        if (s % kHalves == kHalves - 1 && !(kInPlaceA && s == kLast)) {
          fetch_b(b_raw[(step + 1) % 2], fetch_tile(), next / kHalves);
        }
        const int load_stage = stage_ == 0 ? kStages - 1 : stage_ - 1;
        if (kCopiesFirst && s == 0) load_tile(load_stage, stage_);

        // Sums start afresh where a group does.
        const bool fresh = kFold && (kPerStep ? s % kHalves == 0 : s == 0);
        uint32_t (&fa)[kAFragments][kAWords] = a[s % kABuffers];
#pragma unroll
        for (int j = 0; j < kBFragments; ++j) {
          uint32_t b[kBWords];
          if (kAheadOfStep || (kUnpacksAhead && j > 0)) {
#pragma unroll
            for (int r = 0; r < kBWords; ++r) b[r] = ahead[r];
          } else {
            fragment(b, s, j);
          }
          const bool last_j = j == kBFragments - 1;
          if constexpr (kStaged && !leaves_out(Part::kUnpacking)) {
            // The next tile's unpacking is spread over all steps but the last; a chunk comes a few
            // products ahead of its use. Behind the segment's last tile it goes to waste.
            constexpr int kPlaces = kLast * kNTiles, kAhead = 2;
#pragma unroll
            for (int u = 0; u < 2 * kThreadChunks; ++u) {
              const int place = u * kPlaces / (2 * kThreadChunks);
              if (s * kNTiles + j == place && u % 2 == 0) {
                fetch_chunk<kZeros>(chunk, u / 2, stage_b(next_stage), k + Shape::kK, groups);
              }
              if (s * kNTiles + j == place + kAhead)
                unpack_half<kZeros>(chunk, u / 2, u % 2, other_w());
            }
          }
          if (kInPlaceA && s == kLast && last_j) {
            land();
            fetch_b(b_raw[(step + 1) % 2], fetch_tile(), next / kHalves);
          }
          if constexpr (kGroups && !kStaged) {
            // What the next group needs is fetched while the last products of this one run, behind
            // the barrier that those who put it in place have passed.
            if (last_j && s % kHalves == kHalves - 1 && (kPerStep || s == kLast)) {
              if (s == kLast) k += Shape::kK;
              last_slot = slot;
              slot = groups.slot(s == kLast ? k : k + (step + 1) * 32);
              begin_group<kZeros>(params, slot);
            }
          }
          if (kUnpacksAhead && !last_j)
            fragment(ahead, s, j + 1);
          else if (kAheadOfStep)
            fragment(ahead, s == kLast ? kSteps % 2 * kHalves : s + 1, 0);
#pragma unroll
          for (int i = 0; i < kAFragments; ++i) {
            // Serpentine over m, so that consecutive instructions share a register operand; but
            // fragments come in the order in which the next step reads them.
            const int m = j % 2 && !(kInPlaceA && last_j) ? kAFragments - 1 - i : i;
            if (fresh)
              multiply(partial[j][m], fa[m], b, start);
            else
              accumulate(partial[j][m], fa[m], b, real[m / kStrip]);
            if (kInPlaceA && last_j) fetch_a_tile(fa[m], from_a, m);
          }
          if constexpr (kSpreadCopies) {
            constexpr int kParts = kSubsteps * kBFragments / 4;
            if (s * kBFragments + j < kParts)
              load_part(s * kBFragments + j, kParts, load_stage, stage_);
          } else {
            if (!kCopiesFirst && s == 0 && j == 0) load_tile(load_stage, stage_);
          }
        }
        if constexpr (kASums) {
#pragma unroll
          for (int i = 0; i < kAFragments; ++i) {
            if (fresh) {
#pragma unroll
              for (int r = 0; r < 4; ++r) a_sum_of_group[i][r] = 0.f;
            }
            sum_fragment(a_sum_of_group[i], fa[i]);
          }
        }
        if constexpr (kUnsignedB) {
#pragma unroll
          for (int i = 0; i < kMTiles; ++i) sum_fragment(row_sum[i], fa[i]);
        }
        if constexpr (kRowSums) {
#pragma unroll
          for (int i = 0; i < kSumTiles; ++i)
            sum_fragment(own_sum[i], kSumShare ? share[i] : fa[i]);
        }
        if constexpr (kSubsteps % 2 == 1 && !kInPlaceA) {
          if (s == kLast) {
#pragma unroll
            for (int i = 0; i < kAFragments; ++i)
#pragma unroll
              for (int r = 0; r < kAWords; ++r) a[0][i][r] = a[1][i][r];
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
        if constexpr (kFold) {
          if (s % kHalves == kHalves - 1 && (kPerStep || s == kLast)) {
            fold();
          }
        }
      };
      if constexpr (kRowSums) {
        for_each_index<kSubsteps>(substep);
      } else {
#pragma unroll
        for (int s = 0; s < kSubsteps; ++s) substep(s);
      }
      stage_ = next_stage;
      if constexpr (kStaged) {
        shared_w_ = other_w();
        k += Shape::kK;
      }
    } while (--run > 0);
    if (kRunsOn && __builtin_expect(load_left_ <= (kStaged ? 1 : 0), kNested)) open_next();
  }

  if constexpr (!kFold && !kBf16) {
#pragma unroll
    for (int j = 0; j < kNTiles; ++j)
#pragma unroll
      for (int i = 0; i < kMTiles; ++i)
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          if constexpr (kTimes16) partial[j][i][r] >>= 4;
          if constexpr (kUnsignedB)
            partial[j][i][r] = wrapping_minus(partial[j][i][r], 128, row_sum[i][r / 2 * 2]);
        }
    if constexpr (kRowSums) {
      int* const a_sum = vectors.a_sum + result_row();
#pragma unroll
      for (int i = 0; i < kSumTiles; ++i) {
        const int m = warp_n_ * kSumTiles + i;
        if (m < kMTiles && lane_ % 4 == 0) {
          atomicAdd(a_sum + m * 16 + lane_ / 4, own_sum[i][0]);
          atomicAdd(a_sum + m * 16 + lane_ / 4 + 8, own_sum[i][2]);
        }
      }
      __syncthreads();
      if (warp_k_ == 0) {  // the sums are over all slices, which are added below
        const int lane = opaque(lane_);
#pragma unroll
        for (int j = 0; j < kNTiles; ++j)
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const int column = warp_column() + j * 8 + lane % 4 * 2 + c;
            const int zero = vectors.b_zero[kDealt ? dealt_row(column) : column];
#pragma unroll
            for (int i = 0; i < kMTiles; ++i) {
              const int* const sums = a_sum + i * 16 + lane / 4;
              partial[j][i][c] = wrapping_minus(partial[j][i][c], zero, sums[0]);
              partial[j][i][c + 2] = wrapping_minus(partial[j][i][c + 2], zero, sums[8]);
            }
          }
      }
    }
  }
  const auto hand_over = [&](auto& sums) {
    if constexpr (kBf16) {
#pragma unroll
      for (int j = 0; j < kBFragments; ++j)
#pragma unroll
        for (int i = 0; i < kAFragments; ++i)
#pragma unroll
          for (int r = 0; r < 4; ++r) sums[j][i][r] *= Groups::kUnits;
    }
    if constexpr (kExchanges) {
      // The stages become the place where slices meet: nothing may still be copied there.
      copy_async_wait<0>();
      __syncthreads();
      auto& exchange = shared_.exchange.sum;
      const int at = warp_n_ * WarpCount::kM + warp_m_;
#pragma unroll
      for (int j = 0; j < kBFragments; ++j)
#pragma unroll
        for (int i = 0; i < kAFragments; ++i) {
          if constexpr (kSwapped) {
            // Column 16 * j + 8 * (r / 2) + g of row 8 * i + 2 * t + r % 2, where Result has it.
            const int g = lane_ / 4, t = lane_ % 4;
#pragma unroll
            for (int r = 0; r < 4; ++r) {
              int4& to = exchange[warp_k_][at][2 * j + r / 2][i / 2][(2 * t + r % 2) * 4 + g / 2];
              reinterpret_cast<ElementC*>(&to)[i % 2 * 2 + g % 2] = sums[j][i][r];
            }
          } else {
            exchange[warp_k_][at][j][i][lane_] = reinterpret_cast<const int4&>(sums[j][i]);
          }
        }
      __syncthreads();
#pragma unroll
      for (int j = 0; j < kOwnTiles; ++j)
#pragma unroll
        for (int i = 0; i < kMTiles; ++i) {
#pragma unroll
          for (int slice = 0; slice < kSlices; ++slice) {
            const int4 x = exchange[slice][at][(warp_k_ * kOwnTiles + j) % kNTiles][i][lane_];
            const ElementC* values = reinterpret_cast<const ElementC*>(&x);
#pragma unroll
            for (int r = 0; r < 4; ++r)
              result[j][i][r] = slice == 0 ? values[r] : result[j][i][r] + values[r];
          }
        }
      __syncthreads();  // before the stages are filled again
    } else if constexpr (kSwapped) {
#pragma unroll
      for (int j = 0; j < kBFragments; ++j)
#pragma unroll
        for (int i = 0; i < kAFragments; ++i)
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            float (&to)[4] = result[2 * j + h][i / 2];
            transpose_8x8(to[i % 2 * 2], to[i % 2 * 2 + 1], sums[j][i][2 * h],
                          sums[j][i][2 * h + 1]);
          }
    } else {
#pragma unroll
      for (int j = 0; j < kNTiles; ++j)
#pragma unroll
        for (int i = 0; i < kMTiles; ++i)
#pragma unroll
          for (int r = 0; r < 4; ++r) result[j][i][r] = sums[j][i][r];
    }
  };
  if constexpr (kFold)
    hand_over(total);
  else
    hand_over(partial);
}

}  // namespace qutlass::threadblock
