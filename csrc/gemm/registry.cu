// SPDX-License-Identifier: Apache-2.0
#include <atomic>
#include <climits>
#include <random>

#include "gemm/gemm.h"
#include "gemm/registry.h"

namespace qutlass {

#define QUTLASS_TILE(...) const TileEntry& QUTLASS_TILE_ENTRY(__VA_ARGS__)();
#include "gemm/tiles.inc"
#undef QUTLASS_TILE

namespace {

const TileEntry& entry_of(int index) {
  using Get = const TileEntry& (*)();
  static constexpr Get kEntries[] = {
#define QUTLASS_TILE(...) &QUTLASS_TILE_ENTRY(__VA_ARGS__),
#include "gemm/tiles.inc"
#undef QUTLASS_TILE
  };
  return kEntries[index]();
}

// A number no other launch of any process-lifetime has: a random start, then the splitmix64 walk.
// Neither it nor its complement is 0, the value flags are left at.
uint64_t next_ticket() {
  static std::atomic<uint64_t> state{[] {
    std::random_device random;
    return static_cast<uint64_t>(random()) << 32 | random();
  }()};
  for (;;) {
    uint64_t x = state.fetch_add(0x9E3779B97F4A7C15ull, std::memory_order_relaxed);
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    x ^= x >> 31;
    if (x != 0 && ~x != 0) return x;
  }
}

bool is_empty(const GemmArguments& args) { return args.M == 0 || args.N == 0; }

}  // namespace

size_t gemm_workspace_bytes(const GemmArguments& args, const GemmConfig& config) {
  if (config.tile < 0 || is_empty(args) || config.split_k == 1) return 0;
  return entry_of(config.tile).workspace_bytes(args, config.split_k);
}

Status gemm_launch(const GemmArguments& args, const GemmConfig& config, const DeviceInfo& device,
                   void* workspace, void* stream) {
  if (is_empty(args)) return Status::success();
  if (args.M > INT_MAX || args.N > INT_MAX || args.K > INT_MAX) {
    return Status::invalid("M, N and K must fit in 32 bits");
  }
  // Within a tile of up to 256 rows the kernels count bytes in 32 bits.
  if (args.lda > INT_MAX / 256 || args.K > INT_MAX / 256) {
    return Status::unsupported("rows of a are more than 8 MiB apart, or K is more than 8388607");
  }
  const GemmProblem problem{args.op, args.M, args.N, args.K, args.group_size};
  if (!gemm_config_legal(problem, config, device)) {
    return Status::unsupported("no kernel for this problem fits this GPU");
  }
  return entry_of(config.tile)
      .launch(args, config.split_k, config.split_k == 1 ? 0 : next_ticket(), workspace,
              static_cast<CUstream_st*>(stream));
}

}  // namespace qutlass
