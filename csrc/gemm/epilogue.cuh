// SPDX-License-Identifier: Apache-2.0
// The epilogue visitor tree of every product:
//
//   StoreBf16( Dequantize( accumulator ) )
//
// with the contract's arithmetic, each step rounded to nearest even and never contracted:
//   t = float(acc - a_zero * Σ(b - b_zero)) * b_scale;  t = t * a_scale;  t = t + bias;  bf16(t)
//
// The nodes are CUTLASS 2.x visitors; what drives them is not CUTLASS's epilogue, which passes the
// 32-bit accumulators through shared memory eight rows at a time with a barrier each. Here every
// warp works on its own registers, of which a lane's belong to neighbouring columns (dealt_row()),
// or lanes exchange finished bfloat16 pairs, so that no shared memory is taken from the stages,
// whose copies for the next tile go on meanwhile.
#pragma once

#include <climits>

#include "common/load_param.cuh"
#include "cutlass/epilogue/threadblock/fusion/visitors.hpp"
#include "cutlass/gemm/gemm.h"
#include "cutlass/numeric_types.h"
#include "gemm/left_out.h"
#include "gemm/problem.h"
#include "gemm/schedule.h"
#include "gemm/tiles.h"

namespace qutlass::threadblock {

// What zero points of b take where there are no groups (kZeros): they are one a column, and the
// mainloop collects the row sums of a that they multiply.
template <int M, int N, bool kZeros>
struct ZeroPoints {
  alignas(16) int a_sum[M];  // Σ_k a
  alignas(16) int b_zero[N];
};
template <int M, int N>
struct ZeroPoints<M, N, false> {};
// The vectors one output tile needs, in shared memory.
template <int M, int N, typename Term_, bool kZeros>
struct TileVectors : ZeroPoints<M, N, kZeros> {
  using Term = Term_;              // as the accumulators
  alignas(16) float b_scale[N];
  alignas(16) Term column_term[N];  // Σ_k (b - b_zero), scaled where the accumulators are
  alignas(16) float bias[N];
  alignas(16) float a_scale[M];
  alignas(16) int a_zero[M];
};

struct EpilogueParams {
  void* out = nullptr;  // bfloat16 [rows, columns]
  int rows = 0, columns = 0;
  bool general = false;  // see EpilogueSteps
};

// Which steps there are, known to the compiler: tested for each element they would cost more than
// the steps themselves. kGeneral: zero points of a, bias and sums of 2^31, of which those that are
// absent have neutral vectors. kWhole: N is a multiple of what a lane stores at once. kQuads: where
// it is not, quads of lanes store together.
template <bool kAScale_, bool kBScale_, bool kGeneral_, bool kWhole_, bool kQuads_>
struct EpilogueSteps {
  static constexpr bool kAScale = kAScale_, kBScale = kBScale_, kGeneral = kGeneral_,
                        kWhole = kWhole_, kQuads = kQuads_;
};

// What a node knows on the device: the kernel's parameters, the tile's TileVectors, and where the
// warp's result lies in the tile.
struct EpilogueContext {
  const EpilogueParams* params = nullptr;
  const void* vectors = nullptr;
  int row = 0, column = 0;
};

struct NodeBase {
  struct SharedStorage {};
  using Arguments = EpilogueContext;
  using Params = EpilogueContext;
  template <class ProblemShape>
  static constexpr Params to_underlying_arguments(ProblemShape const&, Arguments const& args,
                                                  void*) {
    return args;
  }
  template <class ProblemShape>
  static size_t get_workspace_size(ProblemShape const&, Arguments const&) {
    return 0;
  }
};

// A visit is one thread's two neighbouring columns of an n tile of 8. The driver below counts
//   iter    packs of kPack n tiles (begin_step, end_step)
//   row     rows of the warp, 8 apart (begin_row, end_row)
//   column  n tiles of a pack
// The first of the two columns, counted from those of the pack. Packs of four n tiles are dealt out
// (dealt_row()): a lane has eight neighbours.
template <int kPack>
__device__ __forceinline__ int column_in_pack(int tile, int lane) {
  return kPack == 4 ? lane % 4 * 8 + tile * 2 : tile * 8 + lane % 4 * 2;
}

// accumulators -> float32
template <typename Vectors, typename Steps, int kPack>
struct DequantizeNode : NodeBase {
  const Params* params = nullptr;
  DequantizeNode() = default;
  CUTLASS_HOST_DEVICE DequantizeNode(Params const& p, SharedStorage const&) : params(&p) {}

  struct Callbacks : cutlass::epilogue::threadblock::detail::EmptyCallbacks {
    using Term = typename Vectors::Term;
    // What has a scale of a may have a zero point of a.
    static constexpr bool kZero = Steps::kGeneral && Steps::kAScale;
    const Vectors* v;
    int row0, column0;
    // Of the pack's columns, and of the row.
    float b_scale[2 * kPack], a_scale;
    Term zero;
    int step = 0;

    __device__ Callbacks(EpilogueContext const& params, int lane)
        : v(static_cast<const Vectors*>(params.vectors)),
          row0(params.row + lane / 4),
          column0(params.column + column_in_pack<kPack>(0, lane)) {}

    __device__ __forceinline__ int at(int column) const {
      return column0 + step * kPack * 8 + column_in_pack<kPack>(column, 0);
    }
    __device__ __forceinline__ void begin_step(int s) {
      step = s;
      if constexpr (Steps::kBScale) {
#pragma unroll
        for (int j = 0; j < kPack; ++j) {
          const float2 pair = *reinterpret_cast<const float2*>(&v->b_scale[at(j)]);
          b_scale[2 * j] = pair.x;
          b_scale[2 * j + 1] = pair.y;
        }
      }
    }
    __device__ __forceinline__ void begin_row(int row) {
      if constexpr (Steps::kAScale) a_scale = v->a_scale[row0 + row * 8];
      if constexpr (kZero) zero = static_cast<Term>(v->a_zero[row0 + row * 8]);
    }

    template <typename Accumulator, int kSize>
    __device__ __forceinline__ cutlass::Array<float, kSize> visit(
        int, int, int column, int, cutlass::Array<Accumulator, kSize> const&,
        cutlass::Array<Accumulator, kSize> const& acc) {
      static_assert(kSize == 2);
      cutlass::Array<float, kSize> t;
#pragma unroll
      for (int e = 0; e < kSize; ++e) {
        Accumulator x = acc[e];
        if constexpr (kZero) x -= zero * v->column_term[at(column) + e];
        if constexpr (cutlass::platform::is_same<Accumulator, int>::value) {
          t[e] = __int2float_rn(x);
          // K is limited so that a sum reaches 2^31, one beyond int32, only where every value is
          // the most negative one; -2^31 is out of reach, so here it is that sum, wrapped.
          if (Steps::kGeneral && x == INT_MIN) t[e] = 2147483648.f;
        } else {
          t[e] = x;
        }
        if constexpr (Steps::kBScale) t[e] = __fmul_rn(t[e], b_scale[2 * column + e]);
        if constexpr (Steps::kAScale) t[e] = __fmul_rn(t[e], a_scale);
        if constexpr (Steps::kGeneral) t[e] = __fadd_rn(t[e], v->bias[at(column) + e]);
      }
      return t;
    }
  };

  template <class ProblemShape>
  __device__ Callbacks get_callbacks(cutlass::gemm::GemmCoord, int lane, ProblemShape) {
    return Callbacks(*params, lane);
  }
};

// float32 -> bfloat16 in global memory, any number of columns.
template <int kTileM, int kTileN, typename Steps, int kPack>
struct StoreBf16Node : NodeBase {
  const Params* params = nullptr;
  StoreBf16Node() = default;
  CUTLASS_HOST_DEVICE StoreBf16Node(Params const& p, SharedStorage const&) : params(&p) {}

  struct Callbacks : cutlass::epilogue::threadblock::detail::EmptyCallbacks {
    static constexpr int kElements = 2 * kPack;  // neighbours that a lane stores at once
    cutlass::bfloat16_t* out;  // this lane's first row and column
    cutlass::bfloat16_t* at;   // in the current row
    int64_t ld;
    int rows, columns;  // that exist from there on; rows of this tile
    int lane, step = 0;
    uint32_t pairs[kPack];

    __device__ Callbacks(EpilogueContext const& context, cutlass::gemm::GemmCoord tile, int lane)
        : ld(context.params->columns), lane(lane) {
      const EpilogueParams& p = *context.params;
      // With two n tiles, after the exchange below.
      const int t = lane % 4;
      const int first = kPack == 2 ? t % 2 * 8 + t / 2 * 4 : column_in_pack<kPack>(0, lane);
      const int row = tile.m() * kTileM + context.row + lane / 4;
      const int column = tile.n() * kTileN + context.column + first;
      out = static_cast<cutlass::bfloat16_t*>(p.out) + row * ld + column;
      rows = min(p.rows - row, kTileM - context.row - lane / 4);
      columns = p.columns - column;
    }

    __device__ __forceinline__ void begin_step(int s) {
      step = s;
      at = out + s * kPack * 8;
    }

    template <typename Accumulator, int kSize>
    __device__ __forceinline__ cutlass::Array<float, kSize> visit(
        int, int, int column, int, cutlass::Array<Accumulator, kSize> const&,
        cutlass::Array<float, kSize> const& t) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(t[0], t[1]);
      pairs[column] = reinterpret_cast<const uint32_t&>(pair);
      return t;
    }

    // Two lanes of a quad swap one of two registers.
    __device__ __forceinline__ void swap(uint32_t& low, uint32_t& high, int distance) const {
      const bool upper = lane & distance;
      const uint32_t got = __shfl_xor_sync(0xffffffffu, upper ? low : high, distance);
      (upper ? low : high) = got;
    }

    // Rows that are not 16-byte aligned, whole quads of 32 columns: four words of a row at a time,
    // a word a lane, so that what a quad stores at once is one piece. Where a row begins at half a
    // word, every word takes its first column from the lane before, and the two columns at the ends
    // go by themselves.
    struct QuadWords {
      uint32_t words[4], last;
      bool odd;
    };
    // All lanes take part, whatever there is to store: a compiler that cannot see that warps stay
    // together synchronises them before each mma of the next tile, which costs a quarter of its
    // rate.
    __device__ __forceinline__ QuadWords exchange(const cutlass::bfloat16_t* pointer) const {
      QuadWords q;
      q.odd = reinterpret_cast<uintptr_t>(pointer) % 4 != 0;
      q.last = pairs[3] >> 16;
      const uint32_t before = __shfl_up_sync(0xffffffffu, pairs[3], 1);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        q.words[i] =
            q.odd ? __byte_perm(i == 0 ? before : pairs[i - 1], pairs[i], 0x5432) : pairs[i];
      }
      swap(q.words[0], q.words[1], 1);
      swap(q.words[2], q.words[3], 1);
      swap(q.words[0], q.words[2], 2);
      swap(q.words[1], q.words[3], 2);
      return q;
    }
    __device__ __forceinline__ void store(const QuadWords& q, cutlass::bfloat16_t* pointer) const {
      const int t = lane % 4;
      cutlass::bfloat16_t* first = pointer - t * 8 - q.odd;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i > 0 || t > 0 || !q.odd)
          *reinterpret_cast<uint32_t*>(first + (i * 4 + t) * 2) = q.words[i];
      }
      if (q.odd && t % 3 == 0) {
        *reinterpret_cast<uint16_t*>(first + (t == 0 ? 1 : 32)) =
            static_cast<uint16_t>(t == 0 ? q.words[0] >> 16 : q.last);
      }
    }

    // Of two n tiles, lane t has columns 2t and 2t + 1 of each; a swap gives it four neighbours of
    // one, so that a quad stores whole 32-byte sectors.
    __device__ __forceinline__ void end_row(int row) {
      if constexpr (kPack == 2) swap(pairs[0], pairs[1], 1);
      cutlass::bfloat16_t* pointer = at;
      at += 8 * ld;
      [[maybe_unused]] QuadWords quad;
      if constexpr (Steps::kQuads) quad = exchange(pointer);
      if (row * 8 >= rows) return;
      const int left = columns - step * kPack * 8;
      if constexpr (Steps::kQuads) {
        if (left + lane % 4 * 8 >= 32) return store(quad, pointer);
      }
      if (left <= 0) return;
      if constexpr (Steps::kWhole) {
        if constexpr (kPack == 4)
          *reinterpret_cast<uint4*>(pointer) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
        else if constexpr (kPack == 2)
          *reinterpret_cast<uint2*>(pointer) = make_uint2(pairs[0], pairs[1]);
        else
          *reinterpret_cast<uint32_t*>(pointer) = pairs[0];
      } else {
        const auto* values = reinterpret_cast<const cutlass::bfloat16_t*>(pairs);
#pragma unroll
        for (int e = 0; e < kElements; ++e) {
          if (e < left) pointer[e] = values[e];
        }
      }
    }
  };

  template <class ProblemShape>
  __device__ Callbacks get_callbacks(cutlass::gemm::GemmCoord tile, int lane, ProblemShape) {
    return Callbacks(*params, tile, lane);
  }
};

// Walks a warp's result, Mainloop::Result, through the tree.
template <typename Mainloop>
struct EpilogueFor {
  using Shape = typename Mainloop::Shape;
  using Vectors =
      TileVectors<Shape::kM, Shape::kN, typename Mainloop::ElementC, !Mainloop::kGroups>;
  static constexpr int kTiles = Mainloop::kOwnTiles;
  static constexpr int kPack = kTiles % 4 == 0 ? 4 : kTiles % 2 == 0 ? 2 : 1;
  // Where scales are in the sums already there is no column scale left.
  static constexpr bool kAScale = Mainloop::kOp != GemmOp::kW4A16;
  static constexpr bool kBScale = !Mainloop::kGroups || Mainloop::kMultiplier;

  template <typename Steps>
  using Tree = cutlass::epilogue::threadblock::Sm80EVT<
      StoreBf16Node<Shape::kM, Shape::kN, Steps, kPack>,
      cutlass::epilogue::threadblock::Sm80EVT<DequantizeNode<Vectors, Steps, kPack>,
                                              cutlass::epilogue::threadblock::VisitorAccFetch>>;

  __device__ __forceinline__ static void run(const EpilogueContext& context, const Segment& segment,
                                             typename Mainloop::Result& result, int lane) {
    if constexpr (leaves_out(Part::kStoring)) return;
    const bool whole = context.params->columns % (2 * kPack) == 0;
    if (!whole)
      visit<true, false>(context, segment, result, lane);
    else if (context.params->general)
      visit<true, true>(context, segment, result, lane);
    else
      visit<false, true>(context, segment, result, lane);
  }

 private:
  template <bool kGeneral, bool kWhole>
  __device__ __forceinline__ static void visit(const EpilogueContext& context,
                                               const Segment& segment,
                                               typename Mainloop::Result& result, int lane) {
    constexpr bool kQuads = !kWhole && kPack == 4;
    using Tree = Tree<EpilogueSteps<kAScale, kBScale, kGeneral, kWhole, kQuads>>;
    using Accumulator = typename Mainloop::ElementC;
    typename Tree::Params params;
    params.op_0.op_1 = context;  // op_0: the inner tree (its op_0 is the fetch)
    params.op_1 = context;
    typename Tree::SharedStorage none;
    Tree tree(params, none);
    const cutlass::gemm::GemmCoord tile(segment.tile_m, segment.tile_n, 0);
    const EpilogueParams& p = *context.params;
    auto callbacks = tree.get_callbacks(
        tile, lane, cute::Shape<int32_t, int32_t, int32_t>{p.rows, p.columns, 1});
    callbacks.begin_epilogue();
#pragma unroll
    for (int step = 0; step < kTiles / kPack; ++step) {
      callbacks.begin_step(step);
#pragma unroll
      for (int row = 0; row < 2 * Mainloop::kMTiles; ++row) {
        callbacks.begin_row(row);
#pragma unroll
        for (int j = 0; j < kPack; ++j) {
          const Accumulator* x = result[step * kPack + j][row / 2];
          cutlass::Array<Accumulator, 2> pair;
          pair[0] = x[row % 2 * 2];
          pair[1] = x[row % 2 * 2 + 1];
          callbacks.visit(step, row, j, 0, pair);
        }
        callbacks.end_row(row);
      }
      callbacks.end_step(step);
    }
    callbacks.end_epilogue();
  }
};

}  // namespace qutlass::threadblock
