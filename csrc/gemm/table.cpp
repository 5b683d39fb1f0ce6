// SPDX-License-Identifier: Apache-2.0
#include <string>

#include "gemm/gemm.h"
#include "gemm/tiles.h"

namespace qutlass {

namespace {

constexpr const char* instruction_of(GemmOp op) {
  switch (op) {
    case GemmOp::kW4A4: return "mma.m16n8k64.s32.s4.s4";
    case GemmOp::kW4A16: return "mma.m16n8k16.f32.bf16.bf16";
    default: return "mma.m16n8k32.s32.s8.s8";
  }
}

#define QUTLASS_TILE(OP, M, N, K, WM, WN, WK, STAGES)      \
  {GemmOp::OP,                                             \
   nullptr,                                                \
   M,                                                      \
   N,                                                      \
   K,                                                      \
   WM,                                                     \
   WN,                                                     \
   WK,                                                     \
   STAGES,                                                 \
   threads_of(M, N, K, WM, WN, WK),                        \
   smem_bytes_of(GemmOp::OP, M, N, K, WM, WN, WK, STAGES), \
   instruction_of(GemmOp::OP)},
constexpr GemmTile kTiles[] = {
#include "gemm/tiles.inc"
};
#undef QUTLASS_TILE
constexpr int kCount = static_cast<int>(sizeof(kTiles) / sizeof(kTiles[0]));

// The rows with their names, which only strings at run time can build.
struct NamedTiles {
  std::string names[kCount];
  GemmTile tiles[kCount];
  NamedTiles() {
    for (int i = 0; i < kCount; ++i) {
      tiles[i] = kTiles[i];
      const GemmTile& t = tiles[i];
      const auto by = [](int m, int n, int k) {
        return std::to_string(m) + "x" + std::to_string(n) + "x" + std::to_string(k);
      };
      names[i] = std::string(name_of(t.op)) + "_" + by(t.m, t.n, t.k) + "_w" +
                 by(t.warp_m, t.warp_n, t.warp_k) + "_s" + std::to_string(t.stages);
      tiles[i].name = names[i].c_str();
    }
  }
};

}  // namespace

int gemm_tile_count() { return kCount; }

const GemmTile& gemm_tile(int index) {
  static const NamedTiles named;
  return named.tiles[index];
}

}  // namespace qutlass
