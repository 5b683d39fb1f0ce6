// SPDX-License-Identifier: Apache-2.0
// The epilogue visitor tree of every product:
//
//   StoreBf16( Dequantize( accumulator ) )
//
// with the contract's arithmetic, each step rounded to nearest even and never contracted:
//   t = float(acc - a_zero * Σ(b - b_zero)) * b_scale;  t = t * a_scale;  t = t + bias;  bf16(t)
// Vectors of the tile are fetched once a block into shared memory before the mainloop, so that
// their latency is hidden and every dtype and broadcast form costs the same.
#pragma once

#include <climits>

#include "common/load_param.cuh"
#include "cutlass/epilogue/thread/linear_combination.h"
#include "cutlass/epilogue/threadblock/default_epilogue_tensor_op.h"
#include "cutlass/epilogue/threadblock/epilogue_with_visitor_callbacks.h"
#include "cutlass/epilogue/threadblock/fusion/visitors.hpp"
#include "cutlass/numeric_types.h"
#include "gemm/problem.h"
#include "gemm/tiles.h"

namespace qutlass::threadblock {

// The vectors one output tile needs, in shared memory.
template <int M, int N, typename Term_>
struct TileVectors {
  using Term = Term_;              // as the accumulators
  alignas(16) float b_scale[N];
  alignas(16) Term column_term[N];  // Σ_k (b - b_zero), scaled where the accumulators are
  alignas(16) float bias[N];
  alignas(16) float a_scale[M];
  alignas(16) int a_zero[M];
  alignas(16) int a_sum[M];        // Σ_k a, collected by the mainloop where b has zero points
};

struct EpilogueParams {
  void* out = nullptr;  // bfloat16 [rows, columns]
  int rows = 0, columns = 0;
  bool has_a_scale = false, has_b_scale = false, has_a_zero = false, has_bias = false;
  const void* vectors = nullptr;  // TileVectors; set by the kernel, which knows its shared memory
};

// Where a callback's (iteration, row, column) lies in the tile, from CUTLASS's output thread map.
template <typename ThreadMap>
struct TilePosition {
  cutlass::MatrixCoord start;
  __device__ explicit TilePosition(int thread) : start(ThreadMap::initial_offset(thread)) {}
  __device__ __forceinline__ int row(int iteration, int row) const {
    return start.row() + iteration * ThreadMap::Shape::kRow + row * ThreadMap::Delta::kRow;
  }
  __device__ __forceinline__ int column(int column) const {
    return start.column() + column * ThreadMap::Delta::kColumn;
  }
};

struct NodeBase {
  struct SharedStorage {};
  using Arguments = EpilogueParams;
  using Params = EpilogueParams;
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

// accumulators -> float32
template <typename ThreadMap, typename TileShape, typename Term>
struct DequantizeNode : NodeBase {
  using Vectors = TileVectors<TileShape::kM, TileShape::kN, Term>;
  const Params* params = nullptr;
  DequantizeNode() = default;
  CUTLASS_HOST_DEVICE DequantizeNode(Params const& p, SharedStorage const&) : params(&p) {}

  struct Callbacks : cutlass::epilogue::threadblock::detail::EmptyCallbacks {
    EpilogueParams p;
    TilePosition<ThreadMap> position;
    const Vectors* v;
    __device__ Callbacks(EpilogueParams const& p, int thread)
        : p(p), position(thread), v(static_cast<const Vectors*>(p.vectors)) {}

    template <typename Accumulator, int kSize>
    __device__ __forceinline__ cutlass::Array<float, kSize> visit(
        int iteration, int row_index, int column_index, int,
        cutlass::Array<Accumulator, kSize> const&, cutlass::Array<Accumulator, kSize> const& acc) {
      const int row = position.row(iteration, row_index);
      const int column = position.column(column_index);
      cutlass::Array<float, kSize> t;
      const Accumulator zero = p.has_a_zero ? static_cast<Accumulator>(v->a_zero[row]) : 0;
#pragma unroll
      for (int e = 0; e < kSize; ++e) {
        Accumulator x = acc[e];
        if (p.has_a_zero) x -= zero * v->column_term[column + e];
        if constexpr (cutlass::platform::is_same<Accumulator, int>::value) {
          // K is limited so that a sum reaches 2^31, one beyond int32, only where every value is
          // the most negative one; -2^31 is out of reach, so here it is that sum, wrapped.
          t[e] = x == INT_MIN ? 2147483648.f : __int2float_rn(x);
        } else {
          t[e] = x;
        }
      }
      if (p.has_b_scale) {
#pragma unroll
        for (int e = 0; e < kSize; ++e) t[e] = __fmul_rn(t[e], v->b_scale[column + e]);
      }
      if (p.has_a_scale) {
        const float scale = v->a_scale[row];
#pragma unroll
        for (int e = 0; e < kSize; ++e) t[e] = __fmul_rn(t[e], scale);
      }
      if (p.has_bias) {
#pragma unroll
        for (int e = 0; e < kSize; ++e) t[e] = __fadd_rn(t[e], v->bias[column + e]);
      }
      return t;
    }
  };

  template <class ProblemShape>
  __device__ Callbacks get_callbacks(cutlass::gemm::GemmCoord, int thread, ProblemShape) {
    return Callbacks(*params, thread);
  }
};

// float32 -> bfloat16 in global memory, any number of columns.
template <typename ThreadMap, typename TileShape>
struct StoreBf16Node : NodeBase {
  const Params* params = nullptr;
  StoreBf16Node() = default;
  CUTLASS_HOST_DEVICE StoreBf16Node(Params const& p, SharedStorage const&) : params(&p) {}

  struct Callbacks : cutlass::epilogue::threadblock::detail::EmptyCallbacks {
    TilePosition<ThreadMap> position;
    cutlass::bfloat16_t* out;  // of the tile
    int64_t ld;
    int rows, columns;  // that exist from the tile on
    bool aligned;
    __device__ Callbacks(EpilogueParams const& p, cutlass::gemm::GemmCoord tile, int thread)
        : position(thread), ld(p.columns) {
      const int row = tile.m() * TileShape::kM, column = tile.n() * TileShape::kN;
      out = static_cast<cutlass::bfloat16_t*>(p.out) + row * ld + column;
      rows = p.rows - row;
      columns = p.columns - column;
      aligned = p.columns % ThreadMap::kElementsPerAccess == 0;
    }

    template <typename Accumulator, int kSize>
    __device__ __forceinline__ cutlass::Array<cutlass::bfloat16_t, kSize> visit(
        int iteration, int row_index, int column_index, int,
        cutlass::Array<Accumulator, kSize> const&, cutlass::Array<float, kSize> const& t) {
      const int row = position.row(iteration, row_index);
      const int column = position.column(column_index);
      alignas(16) __nv_bfloat162 pairs[(kSize + 1) / 2];
#pragma unroll
      for (int e = 0; e < kSize / 2; ++e) {
        pairs[e] = __floats2bfloat162_rn(t[2 * e], t[2 * e + 1]);
      }
      static_assert(kSize % 2 == 0);
      auto& d = reinterpret_cast<cutlass::Array<cutlass::bfloat16_t, kSize>&>(pairs);
      if (row < rows) {
        cutlass::bfloat16_t* pointer = out + row * ld + column;
        if (aligned && column + kSize <= columns) {
          using Vector = cutlass::AlignedArray<cutlass::bfloat16_t, kSize>;
          *reinterpret_cast<Vector*>(pointer) = reinterpret_cast<Vector const&>(pairs);
        } else {
#pragma unroll
          for (int e = 0; e < kSize; ++e) {
            if (column + e < columns) pointer[e] = d[e];
          }
        }
      }
      return d;
    }
  };

  template <class ProblemShape>
  __device__ Callbacks get_callbacks(cutlass::gemm::GemmCoord tile, int thread, ProblemShape) {
    return Callbacks(*params, tile, thread);
  }
};

// What CUTLASS's epilogue wants to know of the warp-level operator: its shape and its accumulators.
template <typename Mainloop>
struct WarpOperator {
  using Shape = typename Mainloop::WarpShape;
  using ElementC = typename Mainloop::ElementC;
  using LayoutC = cutlass::layout::RowMajor;
  struct Policy {
    struct Operator {
      using Shape = typename Mainloop::InstructionShape;
      using ElementC = typename Mainloop::ElementC;
      using FragmentC = cutlass::Array<ElementC, 4>;
    };
  };
};

template <typename Mainloop>
struct EpilogueFor {
  using Shape = typename Mainloop::Shape;
  using WarpShape = typename Mainloop::WarpShape;
  static constexpr int kElementsPerAccess = epilogue_access_of(
      Shape::kM, Shape::kN, Shape::kK, WarpShape::kM, WarpShape::kN, WarpShape::kK);
  static_assert(kElementsPerAccess >= 2, "more threads than the tile's rows can use");
  // The output type only picks the layout in shared memory: CUTLASS has a conflict-free one for
  // eight 16-bit values and the plain one for 32-bit values. What is stored is StoreBf16Node's
  // business.
  using LayoutType = cutlass::platform::conditional_t<kElementsPerAccess == 8, cutlass::half_t,
                                                      typename Mainloop::ElementC>;
  using OutputOp = cutlass::epilogue::thread::LinearCombination<LayoutType, kElementsPerAccess,
                                                                typename Mainloop::ElementC, float>;
  using DefaultFor = cutlass::epilogue::threadblock::DefaultEpilogueTensorOp<
      Shape, WarpOperator<Mainloop>, Mainloop::WarpCount::kK, OutputOp, kElementsPerAccess>;
  using Default = typename DefaultFor::Epilogue;
  using ThreadMap = typename DefaultFor::OutputTileThreadMap;
  using Tree = cutlass::epilogue::threadblock::Sm80EVT<
      StoreBf16Node<ThreadMap, Shape>,
      cutlass::epilogue::threadblock::Sm80EVT<
          DequantizeNode<ThreadMap, Shape, typename Mainloop::ElementC>,
          cutlass::epilogue::threadblock::VisitorAccFetch>>;
  using Epilogue =
      cutlass::epilogue::threadblock::EpilogueWithVisitorCallbacks<Default, Tree, /*Stages=*/1>;

  CUTLASS_HOST_DEVICE static typename Tree::Params params(EpilogueParams const& p) {
    typename Tree::Params tree;
    tree.op_0.op_1 = p;  // op_0: the inner tree (its op_0 is the fetch)
    tree.op_1 = p;
    return tree;
  }
};

}  // namespace qutlass::threadblock
