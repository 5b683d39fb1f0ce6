// SPDX-License-Identifier: Apache-2.0
// Operand tiles in shared memory, and the copies that fill them.
#pragma once

#include "gemm/mma.cuh"

namespace qutlass::threadblock {

using namespace qutlass::device;

// One operand's tile in shared memory: kRows rows of kRowBytes, as they are in global memory, in
// 16-byte chunks that an XOR permutes so that both the copies and the fragment loads touch every
// bank once. kTogether_: how many neighbouring chunks of a row are read at once.
template <int kRows_, int kRowBytes_, int kTogether_ = 1>
struct SharedTile {
  static constexpr int kRows = kRows_;
  static constexpr int kRowBytes = kRowBytes_;
  static constexpr int kTogether = kTogether_;
  static constexpr int kBytes = kRows * kRowBytes;
  static constexpr int kChunks = kRowBytes / 16;  // of a row
  static_assert(kRowBytes >= 16 && (kRowBytes & (kRowBytes - 1)) == 0, "rows are powers of two");
  // Rows that share one 128-byte line of banks, and the chunk positions the XOR can move between.
  static constexpr int kRowsPerLine = kChunks >= 8 ? 1 : 8 / kChunks;
  static constexpr int kXorRange = kChunks >= 8 ? 8 : kChunks;
};

// Physical chunk = logical chunk ^ swizzle(row). Any 8 consecutive rows of one logical chunk lie on
// 8 different bank groups, which is what ldmatrix and cp.async want; so do any 4 of two
// neighbouring chunks that are read at once.
template <typename Tile>
__host__ __device__ constexpr int swizzle(int row) {
  return row / Tile::kRowsPerLine * Tile::kTogether % Tile::kXorRange;
}

// Where row `row` of a tile of B lies in shared memory when its columns of the output are to be
// dealt out so that a lane gets eight neighbours: in a warp's result, lane t of a quad has columns
// 2t and 2t + 1 of every n tile, so n tile j takes columns 8t + 2j and 8t + 2j + 1 of each 32. A
// permutation of bits, so that it distributes over sums of rows that have no bit in common, and its
// own inverse.
__host__ __device__ constexpr int dealt_row(int row) {
  return (row & ~31) | (row & 6) << 2 | (row & 24) >> 2 | (row & 1);
}

// The least power of two that is at least n, and at least `least`, which is one.
constexpr int power_of_two_from(int n, int least) {
  return least >= n ? least : power_of_two_from(n, 2 * least);
}

// Copies one operand's tiles from global memory, k tile after k tile. kDealt: see dealt_row().
//
// A thread has one 16-byte chunk of every line of kColumns chunks of its rows. Lines of 128 bytes,
// the shortest that one access should cover, leave it the fewest rows: chunks of a row lie at
// constant distances, so that their copies need no addresses of their own.
template <typename Tile, int kThreads, bool kDealt = false>
class TileLoader {
  static constexpr int kLeast = power_of_two_from((kThreads + Tile::kRows - 1) / Tile::kRows, 8);
  static constexpr int kColumns = Tile::kChunks < kLeast ? Tile::kChunks : kLeast;
  static constexpr int kLines = Tile::kChunks / kColumns;  // of a row
  static constexpr int kRowStep = kThreads / kColumns;  // from a thread's row to its next
  static constexpr int kRowsOfThread = (Tile::kRows + kRowStep - 1) / kRowStep;
  static_assert(kThreads % kColumns == 0 && Tile::kChunks % kColumns == 0);
  static_assert((kRowStep & (kRowStep - 1)) == 0 ||
                    (!kDealt && kRowStep % (Tile::kRowsPerLine * Tile::kXorRange) == 0),
                "a step has no bit in common with a first row, or none that is permuted");
  static_assert(kColumns >= Tile::kXorRange, "the swizzle stays within a line");

  __host__ __device__ static constexpr int place(int row) { return kDealt ? dealt_row(row) : row; }

  // This thread's first row, and its chunk of a line; cheap to work out again.
  __device__ __forceinline__ static int row() { return static_cast<int>(threadIdx.x / kColumns); }
  __device__ __forceinline__ static int chunk() { return static_cast<int>(threadIdx.x % kColumns); }

  uint32_t shared_;      // offset of the first access in a stage
  const char* pointer_ = nullptr;  // this thread's chunk of its first row, at the current k
  int rows_ = 0;    // that exist from this thread's first one on
  int k_left_ = 0;  // bytes of k from this chunk to the end

 public:
  __device__ TileLoader()
      : shared_(place(row()) * Tile::kRowBytes + ((chunk() ^ swizzle<Tile>(place(row()))) * 16)) {}

  // Whether this thread has a row number i; the compiler knows where all do.
  __device__ __forceinline__ static bool has_row(int i) {
    return (i + 1) * kRowStep <= Tile::kRows || row() + i * kRowStep < Tile::kRows;
  }

  // base: first row of the tile, rows: how many exist from it on, [k_begin, k_end) in bytes.
  __device__ __forceinline__ void start(const char* base, int64_t ld, int rows, int k_begin,
                                        int k_end) {
    pointer_ = base + row() * ld + k_begin + chunk() * 16;
    k_left_ = k_end - k_begin - chunk() * 16;
    rows_ = has_row(0) ? rows - row() : 0;
  }
  static constexpr int kAccesses = kRowsOfThread * kLines;
  // Copies this thread's chunk number `index` of the tile.
  __device__ __forceinline__ void access(int index, uint32_t shared, int64_t ld) const {
    const int i = index / kLines, j = index % kLines;
    const int down = place(i * kRowStep);
    const uint32_t to = shared + (shared_ ^ swizzle<Tile>(down) * 16) + down * Tile::kRowBytes;
    // A copy that is not valid writes zeros and reads nothing, wherever the pointer points.
    const int rows = k_left_ > j * kColumns * 16 ? rows_ : 0;
    const char* const from = pointer_ + i * (kRowStep * ld) + j * kColumns * 16;
    if constexpr (kRowsOfThread * kRowStep == Tile::kRows)
      copy_async_16(to + j * kColumns * 16, from, i * kRowStep < rows);
    else
      copy_async_16_if(has_row(i), to + j * kColumns * 16, from, i * kRowStep < rows);
  }
  // Goes on to the next tile.
  __device__ __forceinline__ void advance() {
    pointer_ += Tile::kRowBytes;
    k_left_ -= Tile::kRowBytes;
  }
  __device__ __forceinline__ void load(uint32_t shared, int64_t ld) {
#pragma unroll
    for (int i = 0; i < kAccesses; ++i) access(i, shared, ld);
    advance();
  }
};

}  // namespace qutlass::threadblock
