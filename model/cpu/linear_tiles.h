// Linear layers in tiles: rows times weights that lie in memory as tiles want them.
#pragma once

#include "amx.h"
#include "weights.h"

namespace caravan {

// Whether this number of rows is multiplied in tiles.
template <class Rows>
inline bool uses_tiles(int64_t num_rows) {
  if (!Rows::kGoInTiles) return false;
  if (std::is_same_v<Rows, ByteRows> && num_rows <= kRowsAtOnce) return false;  // the same whole numbers, and faster
  return has_tiles();
}

#ifdef CARAVAN_TILES
constexpr int64_t kOwnRows = 256;    // rows at most that a thread multiplies with all weights
constexpr int64_t kRowBytes = 128;   // of the sums of a row

// Each `multiply` adds to sums[r], or begins with, what rows first to first + num_rows, at most 32, give for some steps.
inline void multiply(const BFloat16Tile& tile, Steps steps, const BFloat16Rows& rows, int64_t first, int64_t num_rows,
                     const Ahead& ahead, TileSums& tiles, f32x16 (*sums)[2]) {
  constexpr int64_t kPairs = BFloat16Tile::kPairsOfStep;
  if (steps.first)
    tiles.resume(num_rows, kTileBytes, sums, kRowBytes);
  else
    tiles.begin(num_rows, kTileBytes);
  const Pair* row = &rows.pairs[first * rows.stride];
  const int64_t num_whole = std::min(steps.end, tile.num_pairs / kPairs);
  for (int64_t step = steps.first; step < num_whole; step++) {
    ahead.fetch(step);
    tiles.add<Pair>(row + step * kPairs, rows.stride * sizeof(Pair), tile.weights + step * kPairs * 128);
  }
  if (num_whole < steps.end) {
    alignas(64) uint8_t last[kPairs * 128] = {};  // the rows end with zeros, the weights do not
    const int64_t pair = num_whole * kPairs;
    std::memcpy(last, tile.weights + pair * 128, (tile.num_pairs - pair) * 128);
    tiles.add<Pair>(row + pair, rows.stride * sizeof(Pair), last);
  }
  tiles.store(sums, kRowBytes);
}

inline void set_zero(int64_t num_rows, f32x16 (*sums)[2]) {
  for (int64_t r = 0; r < num_rows; r++) sums[r][0] = sums[r][1] = f32x16{};
}

inline void multiply(const ByteTile& tile, Steps steps, const ByteRows& rows, int64_t first, int64_t num_rows,
                     const Ahead& ahead, TileSums& tiles, f32x16 (*sums)[2]) {
  i32x16 dots[kTiledRows][2];
  if (!steps.first) set_zero(num_rows, sums);
  for (int64_t g = steps.first; g < steps.end; g++) {
    const uint8_t* group = tile.weights + g * ByteTile::kGroupBytes;
    const int64_t at = first * rows.num_groups + g;
    ahead.fetch(g);
    tiles.begin(num_rows, kTileBytes);
    tiles.add<Quad>(&rows.quads[at * kByteGroup / 4], rows.num_groups * kByteGroup, group + 2 * kColumns);
    tiles.store(dots, kRowBytes);
    const f32x16 scales[2] = {load_floats((const float16*)group), load_floats((const float16*)group + kLanes)};
    for (int64_t r = 0; r < num_rows; r++)
      for (int half = 0; half < 2; half++) {
        const int64_t place = at + r * rows.num_groups;
        add_scaled(dots[r][half] + rows.starts[place], scales[half], rows.scales[place], sums[r][half]);
      }
  }
}

// A step of a tile on a grid as pairs.
typedef u32x16 WideStep[kGroup / 2][2];
template <int kBits>
inline void widen(const GridTile<kBits>& tile, int64_t step, WideStep& pairs) {
  const uint8_t* quads = tile.weights + step * GridTile<kBits>::kGroupBytes + 4 * kColumns;
#pragma GCC unroll 8
  for (int quad = 0; quad < kGroup / 4; quad++)
#pragma GCC unroll 2
    for (int odd = 0; odd < 2; odd++)
      for (int half = 0; half < 2; half++) pairs[2 * quad + odd][half] = GridTile<kBits>::pair(quads, quad, half, odd);
}

template <int kBits>
inline void add_step(const GridTile<kBits>& tile, const WideStep& pairs, int64_t step, const GridRows& rows,
                     int64_t first, int64_t num_rows, TileSums& tiles, f32x16 (*sums)[2]) {
  f32x16 dots[kTiledRows][2];
  tiles.begin(num_rows, kTileBytes);
  tiles.add<Pair>(&rows.pairs[first * rows.num_pairs + step * kGroup / 2], rows.num_pairs * sizeof(Pair), pairs);
  tiles.store(dots, kRowBytes);
  for (int half = 0; half < 2; half++) {
    const auto [scale, offset] = tile.grid(tile.weights + step * tile.kGroupBytes, half);
    for (int64_t r = 0; r < num_rows; r++) {
      sums[r][half] += dots[r][half] * scale;
      sums[r][half] += offset * rows.sums[(first + r) * rows.num_groups + step];
    }
  }
}

// The weights are widened two groups ahead: a tile cannot be loaded before what it loads has left the store buffer.
template <int kBits>
inline void multiply(const GridTile<kBits>& tile, Steps steps, const GridRows& rows, int64_t first, int64_t num_rows,
                     const Ahead& ahead, TileSums& tiles, f32x16 (*sums)[2]) {
  constexpr int kAhead = 2;
  WideStep pairs[2 * kAhead];
  auto widen_step = [&](int64_t step) {
    if (step < steps.end) widen(tile, step, pairs[step % (2 * kAhead)]);
  };
  if (!steps.first) set_zero(num_rows, sums);
  for (int64_t step = steps.first; step < steps.first + kAhead; step++) widen_step(step);
  for (int64_t step = steps.first; step < steps.end; step++) {
    ahead.fetch(step);
    widen_step(step + kAhead);
    add_step(tile, pairs[step % (2 * kAhead)], step, rows, first, num_rows, tiles, sums);
  }
}

// Steps that are widened once for many rows.
template <int kBits>
struct WideTile {
  GridTile<kBits> tile;
  WideStep pairs[kStepsAtOnce];

  WideTile(const GridTile<kBits>& tile, Steps steps) : tile(tile) {
    for (int64_t step = steps.first; step < steps.end; step++) widen(tile, step, pairs[step - steps.first]);
  }
};

template <int kBits>
inline void multiply(const WideTile<kBits>& wide, Steps steps, const GridRows& rows, int64_t first, int64_t num_rows,
                     const Ahead& ahead, TileSums& tiles, f32x16 (*sums)[2]) {
  if (!steps.first) set_zero(num_rows, sums);
  for (int64_t step = steps.first; step < steps.end; step++) {
    ahead.fetch(step);
    add_step(wide.tile, wide.pairs[step - steps.first], step, rows, first, num_rows, tiles, sums);
  }
}

template <class Tile>
inline const Tile& prepared(const Tile& tile, Steps) { return tile; }
template <int kBits>
inline WideTile<kBits> prepared(const GridTile<kBits>& tile, Steps steps) { return {tile, steps}; }

// Rows begin to end, at most kOwnRows, times the tile of weights; finish(first, count, sums) gets the sums of some rows.
// Many rows are multiplied with some steps after the others, so that these are read from the first cache.
template <class Tile, class Rows, class Finish>
inline void multiply_in_tiles(const Tile& tile, const Rows& rows, int64_t begin, int64_t end, const Ahead& ahead,
                              const Finish& finish) {
  f32x16 sums[kOwnRows][2];
  TileSums tiles;
  const int64_t num_steps = tile.num_steps();
  if (end - begin <= kTiledRows) {
    multiply(tile, {0, num_steps}, rows, begin, end - begin, ahead, tiles, sums);
    return finish(begin, end - begin, sums);
  }
  const int64_t num_at_once = divide_up(num_steps, divide_up(num_steps, kStepsAtOnce));
  for (int64_t step = 0; step < num_steps; step += num_at_once) {
    const Steps steps{step, std::min(step + num_at_once, num_steps)};
    const auto& weights = prepared(tile, steps);
    Ahead part = ahead;
    for (int64_t first = begin; first < end; first += kTiledRows, part.bytes += part.lines_at_once * 64 * num_steps) {
      const int64_t count = std::min(kTiledRows, end - first);
      f32x16(*some)[2] = num_at_once < num_steps ? sums + first - begin : sums;
      multiply(weights, steps, rows, first, count, part, tiles, some);
      if (steps.end == num_steps) finish(first, count, some);
    }
  }
}
#else
constexpr int64_t kOwnRows = 1;
template <class... Anything>
void multiply_in_tiles(const Anything&...) {}
#endif

}  // namespace caravan
