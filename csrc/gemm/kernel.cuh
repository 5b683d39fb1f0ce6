// SPDX-License-Identifier: Apache-2.0
// A GemmUniversal kernel, launched by CUTLASS's device::GemmUniversalBase: schedule, mainloop and
// visitor epilogue. Blocks run lists of segments (schedule.h); an output tile that several of them
// share is summed in the same launch, in a fixed order.
#pragma once

#include <cmath>
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
  using Epilogue = threadblock::EpilogueFor<Mma>;
  using Vectors = typename Epilogue::Vectors;

  // Names GemmUniversalBase asks for.
  using ElementA = uint8_t;
  using LayoutA = cutlass::layout::RowMajor;
  using ElementB = uint8_t;
  using LayoutB = cutlass::layout::ColumnMajor;
  using ElementC = cutlass::bfloat16_t;
  using LayoutC = cutlass::layout::RowMajor;
  static constexpr auto kTransformA = cutlass::ComplexTransform::kNone;
  static constexpr auto kTransformB = cutlass::ComplexTransform::kNone;
  struct EpilogueOutputOp {
    using ElementOutput = cutlass::bfloat16_t;
    using ElementAccumulator = typename Mma::ElementC;
    using ElementCompute = float;
    static constexpr int kCount = 1;
  };
  struct Operator {};
  using ThreadblockSwizzle = cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<>;
  static constexpr int kThreadCount = Mma::kThreads;
  using GemmCoord = cutlass::gemm::GemmCoord;

  struct SharedStorage {
    typename Mma::SharedStorage mainloop;
    // Of this tile and of the next, whose vectors arrive while this one's are in use.
    Vectors vectors[2];
  };

  struct Arguments : cutlass::gemm::kernel::UniversalArgumentsBase {
    GemmArguments gemm;
    int split_k = 1;
    uint64_t ticket = 0;  // never the same twice, never 0
  };

  // The scratch memory of shared tiles: for each block one flag and one result.
  //
  // A block reads its parameters from constant memory by lines of 64 bytes, each of which it waits
  // for: what its copies need comes first.
  struct alignas(64) Params {
    Schedule schedule;
    threadblock::Operands operands;
    threadblock::GroupParams group;
    bool quads = false;  // see column_terms
    threadblock::EpilogueParams epilogue;
    uint64_t* flags = nullptr;
    char* partials = nullptr;
    uint64_t ticket = 0;
    GemmArguments gemm;

    Params() = default;
    Params(Arguments const& args, int sm_count, int blocks_per_sm)
        : ticket(args.ticket), gemm(args.gemm) {
      const GemmArguments& g = gemm;
      const int resident = sm_count * (blocks_per_sm > 0 ? blocks_per_sm : 1);
      // Tiles that run together form the rectangle that reads the fewest bytes.
      const double width = std::sqrt(static_cast<double>(resident) * Shape::kM * a_bits(kOp) /
                                     (Shape::kN * b_bits(kOp)));
      schedule = make_schedule(g.M, g.N, g.K, Shape::kM, Shape::kN, Shape::kK, g.group_size,
                               args.split_k, resident, static_cast<int>(width + 0.5));

      operands.a = static_cast<const char*>(g.a);
      operands.b = static_cast<const char*>(g.b);
      operands.lda = g.lda;
      operands.ldb = g.K * b_bits(kOp) / 8;
      operands.rows = static_cast<int>(g.M);
      operands.columns = static_cast<int>(g.N);

      group.b_scale = g.b_scale.data;
      group.b_scale_dtype = g.b_scale.dtype;
      group.b_zero = g.b_zero.data;
      group.b_zero_dtype = g.b_zero.dtype;
      group.b_zero_stride = static_cast<int>(g.b_zero.stride);
      group.multiplier = g.b_multiplier;
      group.groups = static_cast<int>(g.groups());
      while (group.groups > 1 && int64_t{1} << group.group_shift > g.group_size)
        --group.group_shift;
      if constexpr (Mma::kGroups) {
        group.period =
            group.groups == 1 ? 1 << 30 : (Mma::kPeriodGroups << group.group_shift) / Shape::kK;
      }

      group.packs = Mma::kMultiplier && in_packs(g, Mma::kPackGroups);
      quads = Mma::kGroups && in_packs(g, 4) && is_aligned(g.b_sum.data, 4 * sizeof(int)) &&
              (!g.b_zero.present() || g.b_zero.dtype == DType::kInt8);

      epilogue.out = g.out;
      epilogue.rows = static_cast<int>(g.M);
      epilogue.columns = static_cast<int>(g.N);
      // 128 * 128 * 131072 is 2^31. Rows that are not stored whole take the general steps, too.
      epilogue.general = g.a_zero.present() || g.bias.present() ||
                         (kOp == GemmOp::kW8A8 && g.K >= 131072) || g.N % 8 != 0;
    }

    static constexpr size_t kPartialBytes =
        sizeof(typename Mma::Result) * static_cast<size_t>(kThreadCount);
    size_t flag_bytes() const {
      return (static_cast<size_t>(schedule.blocks) * sizeof(uint64_t) + 15) / 16 * 16;
    }
    size_t get_workspace_size() const {
      return schedule.splits() ? flag_bytes() + schedule.blocks * kPartialBytes : 0;
    }
    cutlass::Status init_workspace(void* workspace, cudaStream_t stream) {
      flags = static_cast<uint64_t*>(workspace);
      partials = static_cast<char*>(workspace) + flag_bytes();
      // Waiting reads flags that nothing has written yet, which is meant (see collect) and which a
      // checker of uninitialised memory cannot know.
      static const bool clear = std::getenv("QUTLASS_CLEAR_FLAGS") != nullptr;
      if (clear && schedule.splits() &&
          cudaMemsetAsync(flags, 0, flag_bytes(), stream) != cudaSuccess) {
        return cutlass::Status::kErrorInternal;
      }
      return cutlass::Status::kSuccess;
    }
    dim3 get_grid_dims() const { return dim3(schedule.blocks); }
    GemmCoord get_tiled_shape() const { return GemmCoord(schedule.tiles_m, schedule.tiles_n, 1); }
  };

  static cutlass::Status can_implement(Arguments const&) { return cutlass::Status::kSuccess; }

  __device__ static void invoke(Params const& params, SharedStorage& shared) {
    Segment segment;
    if (!params.schedule.segment(blockIdx.x, 0, &segment)) return;
    const int thread = threadIdx.x;
    const int warp = cutlass::canonical_warp_idx_sync();
    const int lane = static_cast<int>(threadIdx.x % 32);

    Mma mma(shared.mainloop, params.operands, params.schedule, params.group, warp, lane);
    for (int index = 0;; ++index) {
      mma.prologue(segment, index);
      // Even and odd segments have vectors of their own: slower warps may still be storing the tile
      // before this one.
      Vectors& v = shared.vectors[index % 2];
      load_vectors(params, v, segment, thread);
      if constexpr (Mma::kGroups && !Mma::kBf16) {
        if (params.gemm.a_zero.present() && segment.ends) column_terms(params, v, segment, thread);
      }

      typename Mma::Result result;
      mma(segment, result, v);
      // Worked out again, which is cheaper than keeping it in registers through the products.
      params.schedule.segment(blockIdx.x, index, &segment);

      bool bad = false;
      if constexpr (Mma::kMultiplier) {
        bad = __syncthreads_or(mma.any_bad());
        if (bad) poison(mma, v);
      }
      if (segment.ends) {
        if (!segment.begins) collect(params, v, segment, result, thread);
        // Copies of vectors are of the age of the segment's first tiles.
        if (segment.k_end - segment.k_begin <= Shape::kK * kStages) copy_async_wait<0>();
        if constexpr (!Mma::kGroups) {
          if (params.gemm.a_zero.present() && params.gemm.b_zero.present())
            subtract_zeros(params, v, thread);
        }
        __syncthreads();
        const threadblock::EpilogueContext context{&params.epilogue, &v, mma.result_row(),
                                                   mma.result_column()};
        if (mma.owns()) Epilogue::run(context, segment, result, opaque(lane));
      } else {
        leave(params, result, bad, thread);
      }
      if (!params.schedule.segment(blockIdx.x, index + 1, &segment)) return;
    }
  }

 private:
  // Visits 0 .. kCount - 1, shared out over the block's threads.
  template <int kCount, typename Visit>
  __device__ __forceinline__ static void for_shares(int thread, const Visit& visit) {
#pragma unroll
    for (int first = 0; first < kCount; first += kThreadCount) {
      if (first + kThreadCount <= kCount || first + thread < kCount) visit(first + thread);
    }
  }

  // 32-bit values go to shared memory by themselves; the others are widened on the way, for which
  // the thread waits.
  __device__ static void bring(float* to, Param const& from, int64_t index, float absent) {
    if (from.dtype == DType::kFloat32) {
      copy_async_4(shared_address(to), static_cast<const float*>(from.data) + index * from.stride);
    } else {
      *to = from.present() ? load_float(from.data, from.dtype, index * from.stride) : absent;
    }
  }
  __device__ static void bring(int* to, Param const& from, int64_t index, int absent) {
    if (from.dtype == DType::kInt32) {
      copy_async_4(shared_address(to), static_cast<const int*>(from.data) + index * from.stride);
    } else {
      *to = from.present() ? load_int(from.data, from.dtype, index * from.stride) : absent;
    }
  }

  __device__ static void load_vectors(Params const& params, Vectors& v, Segment const& s,
                                      int thread) {
    const GemmArguments& g = params.gemm;
    const bool general = params.epilogue.general;
    if constexpr (!Mma::kGroups) for_shares<Shape::kM>(thread, [&](int i) { v.a_sum[i] = 0; });
    if (!s.ends) return;
    for_shares<Shape::kN>(thread, [&](int i) {
      const int64_t n = min(s.tile_n * Shape::kN + i, params.operands.columns - 1);
      if constexpr (Epilogue::kBScale) bring(&v.b_scale[i], g.b_scale, n, 0.f);
      if (!general) return;
      bring(&v.bias[i], g.bias, n, -0.f);  // x + -0 is x, also where x is -0
      if (!g.a_zero.present()) {
        v.column_term[i] = 0;
      } else if constexpr (!Mma::kGroups) {
        bring(&v.column_term[i], g.b_sum, n, 0);
      }
    });
    for_shares<Shape::kM>(thread, [&](int i) {
      const int64_t m = min(s.tile_m * Shape::kM + i, params.operands.rows - 1);
      if constexpr (Epilogue::kAScale) bring(&v.a_scale[i], g.a_scale, m, 0.f);
      if (general) bring(&v.a_zero[i], g.a_zero, m, 0);
    });
  }

  // What a_zero multiplies: Σ_k (b - b_zero) of a row of b, modulo 2^32. The sums of b are there.
  __device__ static void subtract_zeros(Params const& params, Vectors& v, int thread) {
    // Each thread goes on with what it brought itself.
    for_shares<Shape::kN>(thread, [&](int i) {
      v.column_term[i] = wrapping_minus(v.column_term[i], params.gemm.K, v.b_zero[i]);
    });
  }

  // The same with groups: Σ_groups m * (sum - g * zero) with multipliers, Σ_groups scale * (sum -
  // g * zero), a float, with scales. This waits for its loads, so threads have many of them under
  // way, of four groups each where that is possible.
  __device__ static void column_terms(Params const& params, Vectors& v, Segment const& s,
                                      int thread) {
    const GemmArguments& g = params.gemm;
    if (!params.quads)
      column_terms_of<1, float>(params, v, s, thread);
    else if (Mma::kMultiplier || g.b_scale.dtype == DType::kFloat32)
      column_terms_of<4, float>(params, v, s, thread);
    else
      column_terms_of<4, uint16_t>(params, v, s, thread);
  }
  // Whether arrays of groups can be read by `count`.
  static bool in_packs(GemmArguments const& g, int count) {
    const auto aligned = [&](Param const& array) {
      return !array.present() || is_aligned(array.data, count * size_of(array.dtype));
    };
    return g.groups() % count == 0 && aligned(g.b_zero) &&
           (Mma::kMultiplier ? is_aligned(g.b_multiplier, count) : aligned(g.b_scale));
  }
  static bool is_aligned(const void* data, int bytes) {
    return reinterpret_cast<uintptr_t>(data) % bytes == 0;
  }
  // kCount neighbours.
  template <int kCount, typename T>
  __device__ __forceinline__ static cutlass::AlignedArray<T, kCount> load_some(const void* data,
                                                                               int64_t at) {
    return *reinterpret_cast<const cutlass::AlignedArray<T, kCount>*>(static_cast<const T*>(data) +
                                                                      at);
  }
  // kCount: groups that a thread reads at once. Scale: where it is four, the width of scales.
  template <int kCount, typename Scale>
  __device__ static void column_terms_of(Params const& params, Vectors& v, Segment const& s,
                                         int thread) {
    const GemmArguments& g = params.gemm;
    const int groups = params.group.groups;
    // Neighbouring threads share a column.
    constexpr int kSharers =
        threadblock::power_of_two_from((kThreadCount + Shape::kN - 1) / Shape::kN, 4);
    static_assert(kSharers <= 32 && kThreadCount % kSharers == 0);
    constexpr int kColumns = kThreadCount / kSharers;  // at once
    const int sharer = thread % kSharers;
    const auto row_of = [&](int column) {
      return int64_t{min(s.tile_n * Shape::kN + column, params.operands.columns - 1)} * groups;
    };
    // Columns come in rounds, of which each waits for its loads: from L2, but for the first.
    constexpr int kLine = 128 / sizeof(int);
    for (int first = 0; first < Shape::kN; first += kColumns) {
      const int64_t row = row_of(first + thread / kSharers);
      for (int i = kLine * sharer; i < groups; i += kLine * kSharers)
        prefetch(static_cast<const int*>(g.b_sum.data) + row + i);
    }
    // All threads go round as often as each other, see StoreBf16Node::exchange.
    for (int first = 0; first < Shape::kN; first += kColumns) {
      const int column = first + thread / kSharers;
      const int64_t row = row_of(column);
      typename Vectors::Term term = 0;
      // Loads that stand behind no branch are under way together. What lies beyond the last group
      // is read from there, and counts nothing.
      constexpr int kTogether = 4;
      for (int base = 0; base < groups; base += kTogether * kCount * kSharers) {
#pragma unroll
        for (int j = 0; j < kTogether; ++j) {
          const int own = base + kCount * (j * kSharers + sharer);
          const int64_t i = row + min(own, groups - kCount);
          const auto sum = load_some<kCount, int>(g.b_sum.data, i);
          cutlass::AlignedArray<signed char, kCount> zero{};
          if (kCount > 1 && g.b_zero.present())
            zero = load_some<kCount, signed char>(g.b_zero.data, i);
          const auto part = [&](int e) {
            int z = zero[e];
            if (kCount == 1 && g.b_zero.present()) z = load_int(g.b_zero.data, g.b_zero.dtype, i);
            return sum[e] - static_cast<int>(g.group_size) * z;
          };
          typename Vectors::Term these = 0;
          if constexpr (Mma::kMultiplier) {
            const auto m = load_some<kCount, uint8_t>(g.b_multiplier, i);
#pragma unroll
            for (int e = 0; e < kCount; ++e) these += m[e] * part(e);
          } else if constexpr (kCount == 1) {
            these = load_float(g.b_scale.data, g.b_scale.dtype, i) * part(0);
          } else {
            const auto scale = load_some<kCount, Scale>(g.b_scale.data, i);
#pragma unroll
            for (int e = 0; e < kCount; ++e) these += to_float(scale[e], g.b_scale.dtype) * part(e);
          }
          if (own < groups) term += these;
        }
      }
#pragma unroll
      for (int distance = kSharers / 2; distance > 0; distance /= 2)
        term += __shfl_xor_sync(0xffffffffu, term, distance);
      if (sharer == 0 && (Shape::kN % kColumns == 0 || column < Shape::kN))
        v.column_term[column] = term;
    }
  }
  __device__ __forceinline__ static float to_float(float x, DType) { return x; }
  __device__ __forceinline__ static float to_float(uint16_t x, DType dtype) {
    return dtype == DType::kFloat16 ? __half2float(__ushort_as_half(x))
                                    : __uint_as_float(static_cast<uint32_t>(x) << 16);
  }

  // Columns with weights that left int8 become NaN rather than wrong.
  __device__ static void poison(const Mma& mma, Vectors& v) {
    copy_async_wait<0>();  // or scales might come later
    __syncthreads();
    mma.for_bad([&](int column) { v.b_scale[column] = __int_as_float(0x7FC00000); });
    __syncthreads();
  }

  // A segment that does not finish its tile leaves its sums in scratch memory and raises the
  // block's flag. The flag is a ticket no other launch has, so scratch memory needs no clearing;
  // its complement says that some column went wrong.
  __device__ static void leave(Params const& params, typename Mma::Result& result, bool bad,
                               int thread) {
    auto* to = reinterpret_cast<int4*>(params.partials + blockIdx.x * Params::kPartialBytes);
#pragma unroll
    for (int j = 0; j < Mma::kOwnTiles; ++j)
#pragma unroll
      for (int i = 0; i < Mma::kMTiles; ++i)
        __stcg(to + (j * Mma::kMTiles + i) * kThreadCount + thread,
               reinterpret_cast<const int4&>(result[j][i]));
    __threadfence();
    __syncthreads();
    if (thread == 0) {
      const uint64_t flag = bad ? ~params.ticket : params.ticket;
      asm volatile("st.release.gpu.global.u64 [%0], %1;\n" ::"l"(params.flags + blockIdx.x),
                   "l"(flag)
                   : "memory");
    }
  }

  // Adds what the blocks before this one left of the tile, the lowest first, so that the result
  // does not depend on who came first. Flags are taken down again, so that a replay of the same
  // launch in a CUDA graph starts clean.
  __device__ static void collect(Params const& params, Vectors& v, Segment const& s,
                                 typename Mma::Result& result, int thread) {
    const int first = params.schedule.first_block(s.tile);
    const int count = static_cast<int>(blockIdx.x) - first;
    bool bad = false;
    for (int part = thread; part < count; part += kThreadCount) {
      uint64_t seen;
      uint64_t* flag = params.flags + first + part;
      do {
        asm volatile("ld.acquire.gpu.global.u64 %0, [%1];\n" : "=l"(seen) : "l"(flag) : "memory");
      } while (seen != params.ticket && seen != ~params.ticket);
      bad |= seen != params.ticket;
      *flag = 0;
    }
    if (__syncthreads_or(bad)) {
      for_shares<Shape::kN>(thread, [&](int i) { v.b_scale[i] = __int_as_float(0x7FC00000); });
      __syncthreads();
    }
    for (int part = 0; part < count; ++part) {
      const auto* from = reinterpret_cast<const int4*>(
          params.partials + static_cast<size_t>(first + part) * Params::kPartialBytes);
#pragma unroll
      for (int j = 0; j < Mma::kOwnTiles; ++j) {
        // Not more loads at once than there are registers for.
        if (j * Mma::kMTiles % 8 == 0) __syncwarp();
#pragma unroll
        for (int i = 0; i < Mma::kMTiles; ++i) {
          const int4 x = __ldcg(from + (j * Mma::kMTiles + i) * kThreadCount + thread);
          const auto* values = reinterpret_cast<const typename Mma::ElementC*>(&x);
#pragma unroll
          for (int r = 0; r < 4; ++r) result[j][i][r] += values[r];
        }
      }
    }
  }
};

}  // namespace qutlass::kernel
