// SPDX-License-Identifier: Apache-2.0
// Which block computes which part of which output tile: plain integer arithmetic that host and
// device share, so that a test can walk a whole grid without a GPU.
//
// Every output tile is k_units units of k long. A block works through segments, runs of units of
// one tile:
//
//   shared tiles     their units in one line, `part` units a block (Stream-K, 2301.03598); a tile
//                    may begin in one block and end in a later one
//   whole tiles      one tile a block and round after that
//
//   blocks      0         1         2         3
//   units   |a a a a a b|b b b b c c|c c c d d d|d d        tiles a b c d of 5 units, part = 6
//
// The block that has a tile's last units finishes the tile: it adds what earlier blocks left in
// scratch memory. It waits for lower block indices only, which the GPU starts first, so it waits
// for blocks that run or are done, whatever else the GPU is doing. Each block does its last segment
// first: that is the one a later block waits for.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define QUTLASS_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define QUTLASS_HOST_DEVICE inline
#endif

namespace qutlass {

// Quotients of 0 <= n < 2^31 by a number known ahead, by a multiplication (Granlund and Montgomery,
// 1994): m = ceil(2^(31 + s) / d) with 2^s >= d is too large by less than 2^s / d, and n times that
// is not enough to reach the next quotient. A block divides before it can start its copies.
struct Divisor {
  int value = 1;
  uint32_t multiplier = 1u << 31;
  int shift = 0;

  Divisor() = default;
  explicit Divisor(int d) : value(d) {
    while (int64_t{1} << shift < d) ++shift;
    multiplier = static_cast<uint32_t>(((uint64_t{1} << (31 + shift)) + d - 1) / d);
  }
  QUTLASS_HOST_DEVICE int divide(int n) const {
    const uint64_t product = static_cast<uint64_t>(2 * static_cast<uint32_t>(n)) * multiplier;
    return static_cast<int>(static_cast<uint32_t>(product >> 32) >> shift);
  }
};

struct Segment {
  int tile = 0;  // of the output, in the order of the grid
  int tile_m = 0, tile_n = 0;
  int k_begin = 0, k_end = 0;  // k of the operands
  bool begins = true;  // holds the first k of the tile
  bool ends = true;  // holds the last k of the tile, and so finishes it
};

// Counts of tiles and of units in shared tiles are below 2^30, see schedule_fits().
struct Schedule {
  int tiles_m = 0, tiles_n = 0;
  int width = 1;  // columns of tiles that blocks cover before they go down a row of tiles
  int k = 0;  // K
  int unit = 0;  // k of a unit
  int k_units = 0;  // units of a tile
  Divisor padded_units;  // the same, rounded up to whole parts where every tile is cut alike
  int shared_tiles = 0;  // the first tiles, shared out by units
  int part = 0;  // units a block takes of them
  int blocks = 0;
  // Tiles of a strip of `width` columns; its columns, and those of the last strip.
  Divisor strip, strip_columns, last_columns;

  // The block that has a tile's first unit.
  QUTLASS_HOST_DEVICE int first_block(int tile) const { return tile * padded_units.value / part; }
  QUTLASS_HOST_DEVICE int tiles() const { return tiles_m * tiles_n; }
  // Whether any tile is computed by more than one block.
  QUTLASS_HOST_DEVICE bool splits() const { return shared_tiles > 0; }

  // The block's segment number `index`, counted from 0; false if it has no more.
  QUTLASS_HOST_DEVICE bool segment(int block, int index, Segment* s) const {
    int begin = 0, end = k_units;
    int tile = 0, shared_segments = 0;
    if (shared_tiles > 0) {
      const int all = shared_tiles * padded_units.value;
      const int low = block * part;
      const int high = low + part < all ? low + part : all;
      if (low < high) {
        const int last = padded_units.divide(high - 1);
        shared_segments = last - padded_units.divide(low) + 1;
        if (index < shared_segments) {
          tile = last - index;
          const int origin = tile * padded_units.value;
          if (low > origin) begin = low - origin;
          if (high < origin + k_units) end = high - origin;
        }
      }
    }
    if (index >= shared_segments) {
      tile = shared_tiles + block + (index - shared_segments) * blocks;
      if (tile >= tiles()) return false;
    }
    const int column = strip.divide(tile) * width;
    const bool whole = tiles_n - column >= width;
    const int within = tile - column * tiles_m;
    const int row = whole ? strip_columns.divide(within) : last_columns.divide(within);
    s->tile = tile;
    s->tile_m = row;
    s->tile_n = column + within - row * (whole ? strip_columns.value : last_columns.value);
    s->k_begin = begin * unit;
    s->k_end = end == k_units ? k : end * unit;
    s->begins = begin == 0;
    s->ends = end == k_units;
    return true;
  }
};

// split_k >= 1: every tile is cut into that many parts, a block each. kStreamK: as many blocks as
// run at once (`resident`) share the work evenly.
constexpr int kStreamK = 0;

// Whether make_schedule's counts stay in range.
constexpr bool schedule_fits(int64_t M, int64_t N, int64_t K, int tile_m, int tile_n, int tile_k,
                             int split_k) {
  const int64_t tiles = ((M + tile_m - 1) / tile_m) * ((N + tile_n - 1) / tile_n);
  const int64_t units = split_k > 1 ? K / tile_k + 1 + split_k : 1;
  return tiles < (1 << 30) && tiles * units < (1 << 30);
}

// k of a unit. Segments begin at groups: what a block keeps of a group it then keeps from its
// start.
constexpr int64_t schedule_unit(int64_t K, int tile_k, int64_t group_size) {
  return group_size > tile_k && group_size < K ? group_size : tile_k;
}

// What Stream-K cuts up: all tiles where there are fewer than run at once, else those beyond whole
// rounds, and one round more where those alone would be cut into more than two or three. Not more
// than that: blocks that share tiles are at different k, and so read little at the same time.
constexpr int64_t stream_k_tiles(int64_t tiles, int64_t resident) {
  const int64_t left = tiles % resident;
  return tiles < resident || left == 0 || 2 * left >= resident ? left : resident + left;
}

inline Schedule make_schedule(int64_t M, int64_t N, int64_t K, int tile_m, int tile_n, int tile_k,
                              int64_t group_size, int split_k, int resident, int width) {
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  Schedule s;
  s.tiles_m = static_cast<int>(ceil_div(M, tile_m));
  s.tiles_n = static_cast<int>(ceil_div(N, tile_n));
  s.width = width < s.tiles_n ? width : s.tiles_n;
  s.k = static_cast<int>(K);
  s.unit = static_cast<int>(schedule_unit(K, tile_k, group_size));
  s.k_units = static_cast<int>(ceil_div(K, s.unit));
  s.padded_units = Divisor(s.k_units);
  s.strip = Divisor(s.width * s.tiles_m);
  s.strip_columns = Divisor(s.width);
  s.last_columns = Divisor(s.tiles_n % s.width > 0 ? s.tiles_n % s.width : s.width);
  const int64_t tiles = static_cast<int64_t>(s.tiles_m) * s.tiles_n;
  if (split_k > 1) {
    s.shared_tiles = static_cast<int>(tiles);
    s.part = static_cast<int>(ceil_div(s.k_units, split_k));
    s.padded_units = Divisor(s.part * split_k);
    s.blocks = static_cast<int>(tiles * split_k);
    return s;
  }
  const int64_t shared = stream_k_tiles(tiles, resident);
  const int64_t part = ceil_div(shared * s.k_units, resident);
  const bool cuts = split_k == kStreamK && shared > 0 && (tiles > resident || part < s.k_units);
  if (cuts) {
    s.shared_tiles = static_cast<int>(shared);
    s.part = static_cast<int>(part);
    s.blocks = static_cast<int>(tiles < resident ? ceil_div(shared * s.k_units, part) : resident);
  } else {
    s.blocks = static_cast<int>(split_k == 1 || tiles < resident ? tiles : resident);
  }
  return s;
}

}  // namespace qutlass
