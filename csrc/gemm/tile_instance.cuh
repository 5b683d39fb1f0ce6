// SPDX-License-Identifier: Apache-2.0
// One row of tiles.inc as code. CMake writes a translation unit a row that expands
// QUTLASS_INSTANTIATE, so that rows compile in parallel.
#pragma once

#include "gemm/kernel.cuh"
#include "gemm/registry.h"
#include "gemm/tiles.h"

namespace qutlass {

template <typename Kernel>
struct TileRunner {
  using Gemm = cutlass::gemm::device::GemmUniversalBase<Kernel>;

  static typename Kernel::Arguments arguments(const GemmArguments& g, int split_k,
                                              uint64_t ticket) {
    typename Kernel::Arguments args;
    args.mode = cutlass::gemm::GemmUniversalMode::kGemm;
    args.gemm = g;
    args.split_k = split_k;
    args.ticket = ticket;
    return args;
  }

  static size_t workspace_bytes(const GemmArguments& g, int split_k) {
    return Gemm::get_workspace_size(arguments(g, split_k, 0));
  }

  static Status launch(const GemmArguments& g, int split_k, uint64_t ticket, void* workspace,
                       cudaStream_t stream) {
    Gemm gemm;
    if (gemm.initialize(arguments(g, split_k, ticket), workspace, stream) !=
        cutlass::Status::kSuccess) {
      return Status::cuda(static_cast<int>(cudaGetLastError()), "preparing the kernel failed");
    }
    cudaGetLastError();
    if (gemm.run(stream) != cutlass::Status::kSuccess) {
      return Status::cuda(static_cast<int>(cudaPeekAtLastError()), "launching the kernel failed");
    }
    return Status::success();
  }
};

#ifdef __CUDA_ARCH__
#define QUTLASS_ARCH __CUDA_ARCH__
#else
#define QUTLASS_ARCH 800  // any: bounds are for the device
#endif

// The entry is CUTLASS's, with launch bounds.
#define QUTLASS_INSTANTIATE(OP, M, N, K, WM, WN, WK, STAGES)                                     \
  namespace qutlass {                                                                            \
  using Kernel = kernel::QuantizedGemm<GemmOp::OP, cutlass::gemm::GemmShape<M, N, K>,            \
                                       cutlass::gemm::GemmShape<WM, WN, WK>, STAGES>;            \
  static_assert(sizeof(Kernel::SharedStorage) ==                                                 \
                    smem_bytes_of(GemmOp::OP, M, N, K, WM, WN, WK, STAGES),                      \
                "tiles.h derives another size");                                                 \
  static_assert(Kernel::kThreadCount == threads_of(M, N, K, WM, WN, WK));                        \
  }                                                                                              \
  template <>                                                                                    \
  __global__ void __launch_bounds__(                                                             \
      qutlass::Kernel::kThreadCount,                                                             \
      qutlass::min_blocks_of(qutlass::GemmOp::OP, M, N, K, WM, WN, WK, STAGES, QUTLASS_ARCH))    \
      cutlass::Kernel2<qutlass::Kernel>(qutlass::Kernel::Params params) {                        \
    extern __shared__ int qutlass_shared[];                                                      \
    qutlass::Kernel::invoke(params,                                                              \
                            *reinterpret_cast<qutlass::Kernel::SharedStorage*>(qutlass_shared)); \
  }                                                                                              \
  namespace qutlass {                                                                            \
  const TileEntry& QUTLASS_TILE_ENTRY(OP, M, N, K, WM, WN, WK, STAGES)() {                       \
    static const TileEntry entry{&TileRunner<Kernel>::workspace_bytes,                           \
                                 &TileRunner<Kernel>::launch};                                   \
    return entry;                                                                                \
  }                                                                                              \
  }

}  // namespace qutlass
