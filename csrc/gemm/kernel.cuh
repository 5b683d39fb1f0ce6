// SPDX-License-Identifier: Apache-2.0
// A CUTLASS 2.x GemmUniversal kernel: threadblock swizzle, mainloop, visitor epilogue, launched by
// device::GemmUniversalBase. What it adds to CUTLASS's own kernels: the vectors of a tile are
// fetched before the mainloop, and split k is reduced in the same launch, exactly and in a fixed
// order.
#pragma once

#include <cstdlib>

#include "cutlass/gemm/device/gemm_universal_base.h"
#include "cutlass/gemm/kernel/params_universal_base.h"
#include "cutlass/gemm/threadblock/threadblock_swizzle.h"
#include "gemm/epilogue.cuh"
#include "gemm/mainloop.cuh"
#include "gemm/problem.h"

namespace qutlass::kernel {

using namespace qutlass::device;

template <GemmOp kOp, typename Shape, typename WarpShape, int kStages>
class QuantizedGemm {
 public:
  using Mma = threadblock::Mainloop<kOp, Shape, WarpShape, kStages>;
  using EpilogueFor = threadblock::EpilogueFor<Mma>;
  using Epilogue = typename EpilogueFor::Epilogue;
  using Vectors = threadblock::TileVectors<Shape::kM, Shape::kN, typename Mma::ElementC>;
  // Blocks that run together cover 8 columns of tiles, so that they share tiles of both operands in
  // L2.
  using ThreadblockSwizzle = cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<8>;

  // Names GemmUniversalBase asks for.
  using ElementA = uint8_t;
  using LayoutA = cutlass::layout::RowMajor;
  using ElementB = uint8_t;
  using LayoutB = cutlass::layout::ColumnMajor;
  using ElementC = cutlass::bfloat16_t;
  using LayoutC = cutlass::layout::RowMajor;
  static constexpr auto kTransformA = cutlass::ComplexTransform::kNone;
  static constexpr auto kTransformB = cutlass::ComplexTransform::kNone;
  using EpilogueOutputOp = typename EpilogueFor::OutputOp;
  using Operator = threadblock::WarpOperator<Mma>;
  static constexpr int kThreadCount = Mma::kThreads;
  using GemmCoord = cutlass::gemm::GemmCoord;

  struct SharedStorage {
    union {
      typename Mma::SharedStorage mainloop;
      typename Epilogue::SharedStorage epilogue;
    };
    Vectors vectors;
  };

  struct Arguments : cutlass::gemm::kernel::UniversalArgumentsBase {
    GemmArguments gemm;
    int split_k = 1;
    uint64_t ticket = 0;  // never the same twice, never 0
  };

  // The scratch memory of a split: for each tile and each part but the last, one flag and the
  // part's accumulators.
  struct Params {
    GemmArguments gemm;
    GemmCoord grid_tiled_shape;
    int swizzle_log_tile = 0;
    int split_k = 1;
    int k_per_split = 0;
    uint64_t ticket = 0;
    threadblock::GroupParams group;
    threadblock::EpilogueParams epilogue;
    uint64_t* flags = nullptr;
    char* partials = nullptr;

    Params() = default;
    Params(Arguments const& args, int, int)
        : gemm(args.gemm), split_k(args.split_k), ticket(args.ticket) {
      const GemmArguments& g = gemm;
      grid_tiled_shape = GemmCoord(static_cast<int>((g.M + Shape::kM - 1) / Shape::kM),
                                   static_cast<int>((g.N + Shape::kN - 1) / Shape::kN), split_k);
      swizzle_log_tile = ThreadblockSwizzle::get_log_tile(grid_tiled_shape);
      // Parts end at tile and at group boundaries.
      const int64_t quantum =
          g.group_size > Shape::kK && g.group_size < g.K ? g.group_size : Shape::kK;
      const int64_t quanta = (g.K + quantum - 1) / quantum;
      k_per_split = static_cast<int>((quanta + split_k - 1) / split_k * quantum);

      group.b_scale = g.b_scale.data;
      group.b_scale_dtype = g.b_scale.dtype;
      group.b_zero = g.b_zero.data;
      group.b_zero_dtype = g.b_zero.dtype;
      group.b_zero_stride = static_cast<int>(g.b_zero.stride);
      group.multiplier = g.b_multiplier;
      group.group_size = static_cast<int>(g.group_size);
      group.groups = static_cast<int>(g.groups());
      while (group.groups > 1 && int64_t{1} << group.group_shift > group.group_size)
        --group.group_shift;

      epilogue.out = g.out;
      epilogue.rows = static_cast<int>(g.M);
      epilogue.columns = static_cast<int>(g.N);
      epilogue.has_a_scale = g.a_scale.present();
      // Grouped scales are in the sums already; there the column scale is 1, or NaN for a column
      // whose weights were out of range.
      epilogue.has_b_scale = g.b_scale.present();
      epilogue.has_a_zero = g.a_zero.present();
      epilogue.has_bias = g.bias.present();
    }

    static constexpr size_t kPartialBytes =
        sizeof(typename Mma::FragmentC) * static_cast<size_t>(kThreadCount);
    size_t parts() const {
      return static_cast<size_t>(grid_tiled_shape.m()) * grid_tiled_shape.n() * (split_k - 1);
    }
    size_t flag_bytes() const { return (parts() * sizeof(uint64_t) + 15) / 16 * 16; }
    size_t get_workspace_size() const {
      return split_k > 1 ? flag_bytes() + parts() * kPartialBytes : 0;
    }
    cutlass::Status init_workspace(void* workspace, cudaStream_t stream) {
      flags = static_cast<uint64_t*>(workspace);
      partials = static_cast<char*>(workspace) + flag_bytes();
      // Waiting reads flags that nothing has written yet, which is meant (see reduce) and which a
      // checker of uninitialised memory cannot know.
      static const bool clear = std::getenv("QUTLASS_CLEAR_FLAGS") != nullptr;
      if (clear && workspace && cudaMemsetAsync(flags, 0, flag_bytes(), stream) != cudaSuccess) {
        return cutlass::Status::kErrorInternal;
      }
      return cutlass::Status::kSuccess;
    }
    dim3 get_grid_dims() const { return ThreadblockSwizzle::get_grid_shape(grid_tiled_shape); }
    GemmCoord get_tiled_shape() const { return grid_tiled_shape; }
  };

  static cutlass::Status can_implement(Arguments const&) { return cutlass::Status::kSuccess; }

  __device__ static void invoke(Params const& params, SharedStorage& shared) {
    const GemmCoord tile = ThreadblockSwizzle::get_tile_offset(params.swizzle_log_tile);
    if (tile.m() >= params.grid_tiled_shape.m() || tile.n() >= params.grid_tiled_shape.n()) return;

    const GemmArguments& g = params.gemm;
    const int thread = threadIdx.x;
    const int warp = cutlass::canonical_warp_idx_sync();
    const int lane = thread % 32;
    const int row0 = tile.m() * Shape::kM, column0 = tile.n() * Shape::kN;
    const int k_begin = tile.k() * params.k_per_split;
    const int k_end = min(k_begin + params.k_per_split, static_cast<int>(g.K));
    const int64_t ldb = g.K * b_bits(kOp) / 8;

    Mma mma(shared.mainloop, static_cast<const char*>(g.a) + row0 * g.lda, g.lda,
            static_cast<const char*>(g.b) + column0 * ldb, ldb, static_cast<int>(g.M) - row0,
            static_cast<int>(g.N), column0, k_begin, k_end, params.group, thread, warp, lane);
    mma.prologue();
    load_vectors(params, shared.vectors, row0, column0, thread);

    typename Mma::FragmentC accumulators;
    mma(accumulators, shared.vectors.a_sum);

    if constexpr (Mma::kGroups) poison(shared.vectors, mma, lane);
    if (params.split_k > 1 && !reduce(params, shared, tile, accumulators, thread)) return;
    // Also orders load_vectors and poison before the epilogue.
    __syncthreads();

    threadblock::EpilogueParams p = params.epilogue;
    p.vectors = &shared.vectors;
    const typename EpilogueFor::Tree::Params tree = EpilogueFor::params(p);
    Epilogue epilogue(tree, shared.epilogue, thread, warp, lane);
    const cute::Shape<int32_t, int32_t, int32_t> shape{p.rows, p.columns, 1};
    epilogue(accumulators, tile, shape, thread);
  }

 private:
  __device__ static void load_vectors(Params const& params, Vectors& v, int row0, int column0,
                                      int thread) {
    const GemmArguments& g = params.gemm;
    for (int i = thread; i < Shape::kN; i += kThreadCount) {
      const int64_t n = min(column0 + i, static_cast<int>(g.N) - 1);
      v.b_scale[i] = Mma::kFold || !g.b_scale.present()
                         ? 1.f
                         : load_float(g.b_scale.data, g.b_scale.dtype, n * g.b_scale.stride);
      if (g.a_zero.present()) v.column_term[i] = column_term(g, n);
      if (g.bias.present()) v.bias[i] = load_float(g.bias.data, g.bias.dtype, n * g.bias.stride);
    }
    for (int i = thread; i < Shape::kM; i += kThreadCount) {
      const int64_t m = min(row0 + i, static_cast<int>(g.M) - 1);
      v.a_sum[i] = 0;
      if (g.a_scale.present())
        v.a_scale[i] = load_float(g.a_scale.data, g.a_scale.dtype, m * g.a_scale.stride);
      if (g.a_zero.present())
        v.a_zero[i] = load_int(g.a_zero.data, g.a_zero.dtype, m * g.a_zero.stride);
    }
  }

  // What a_zero multiplies: Σ_k (b - b_zero) of one row of b, modulo 2^32. With multipliers
  // Σ_groups m * (sum - g * zero); with group scales Σ_groups scale * (sum - g * zero), a float.
  __device__ static typename Vectors::Term column_term(GemmArguments const& g, int64_t n) {
    const auto* sums = static_cast<const int*>(g.b_sum.data) + n * g.b_sum.stride;
    const auto zero = [&](int i) {
      return g.b_zero.present() ? load_int(g.b_zero.data, g.b_zero.dtype, n * g.b_zero.stride + i)
                                : 0;
    };
    if constexpr (Mma::kGroups) {
      const int groups = static_cast<int>(g.groups());
      typename Vectors::Term term = 0;
      for (int i = 0; i < groups; ++i) {
        const int part = __ldg(sums + i) - static_cast<int>(g.group_size) * zero(i);
        if constexpr (Mma::kMultiplier) {
          term += __ldg(g.b_multiplier + n * groups + i) * part;
        } else {
          term += load_float(g.b_scale.data, g.b_scale.dtype, n * g.b_scale.stride + i) * part;
        }
      }
      return term;
    } else {
      return static_cast<int>(static_cast<uint32_t>(__ldg(sums)) -
                              static_cast<uint32_t>(g.K) * static_cast<uint32_t>(zero(0)));
    }
  }

  // Columns whose weights left int8 become NaN rather than wrong.
  __device__ static void poison(Vectors& v, Mma const& mma, int lane) {
#pragma unroll
    for (int j = 0; j < Mma::kNTiles; ++j) {
      if (mma.bad_columns_ >> j & 1) {
        v.b_scale[mma.warp_column() + j * 8 + lane / 4] = __int_as_float(0x7FC00000);
      }
    }
  }

  // Parts 0 .. split_k-2 leave their sums in scratch memory and raise a flag; the last part waits
  // for them and adds them in order, so the result does not depend on who came first. Blocks start
  // in the order of their index, so those waited for are running or done. The flag is a ticket no
  // other launch has, so scratch memory needs no clearing; it is taken down again, so a replay of
  // the same launch in a CUDA graph starts clean. Returns whether this block goes on to the
  // epilogue.
  __device__ static bool reduce(Params const& params, SharedStorage& shared, GemmCoord tile,
                                typename Mma::FragmentC& accumulators, int thread) {
    constexpr int kVectors = Mma::FragmentC::kElements / 4;
    const int others = params.split_k - 1;
    const size_t first =
        (static_cast<size_t>(tile.m()) * params.grid_tiled_shape.n() + tile.n()) * others;
    auto* own = reinterpret_cast<int4*>(&accumulators);
    if (tile.k() < others) {
      auto* partial =
          reinterpret_cast<int4*>(params.partials + (first + tile.k()) * Params::kPartialBytes);
#pragma unroll
      for (int i = 0; i < kVectors; ++i) partial[i * kThreadCount + thread] = own[i];
      uint64_t flag = params.ticket;
      if constexpr (Mma::kGroups) {
        // A part that met a bad column says so with the flag.
        __syncthreads();  // poison
        bool bad = false;
        for (int i = thread; i < Shape::kN; i += kThreadCount)
          bad |= isnan(shared.vectors.b_scale[i]);
        if (__syncthreads_or(bad)) flag = ~flag;
      }
      __threadfence();
      __syncthreads();
      if (thread == 0) {
        asm volatile("st.release.gpu.global.u64 [%0], %1;\n" ::"l"(params.flags + first + tile.k()),
                     "l"(flag)
                     : "memory");
      }
      return false;
    }
    bool bad = false;
    for (int part = 0; part < others; ++part) {
      if (thread == 0) {
        uint64_t seen;
        uint64_t* flag = params.flags + first + part;
        do {
          asm volatile("ld.acquire.gpu.global.u64 %0, [%1];\n" : "=l"(seen) : "l"(flag) : "memory");
        } while (seen != params.ticket && seen != ~params.ticket);
        bad |= seen != params.ticket;
        *flag = 0;
      }
      __syncthreads();
      const auto* partial =
          reinterpret_cast<const int4*>(params.partials + (first + part) * Params::kPartialBytes);
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        const int4 x = __ldcg(partial + i * kThreadCount + thread);
        const int values[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if constexpr (Mma::kFold)
            accumulators[i * 4 + e] += __int_as_float(values[e]);
          else
            accumulators[i * 4 + e] += values[e];
        }
      }
    }
    if constexpr (Mma::kGroups) {
      if (__syncthreads_or(bad)) {
        for (int i = thread; i < Shape::kN; i += kThreadCount) {
          shared.vectors.b_scale[i] = __int_as_float(0x7FC00000);
        }
      }
    }
    return true;
  }
};

}  // namespace qutlass::kernel
