// The weights of a linear layer as they lie in memory, packed by model/cpu/linear.py, in tiles of 32 outputs.
#pragma once

#include "rows.h"

namespace caravan {

constexpr int64_t kColumns = 32;                            // outputs of a tile
constexpr int64_t kRowsAtOnce = 6;                          // rows that share each load of weights

// Halves of a tile, of sixteen outputs, that R rows are multiplied with at once, so that the sums lie in registers.
template <int R>
constexpr int kHalvesAtOnce = kHasWideRegisters || R <= 3 ? 2 : 1;

// Steps of a tile of weights, first to end.
struct Steps {
  int64_t first, end;
};

constexpr int64_t kStepsAtOnce = 9;  // of 2 KB of weights, which stay in the first cache while rows are multiplied with them

// Weights to prefetch while others are multiplied: some cache lines at each of a number of steps. Without, a thread would
// wait for the memory with the first rows of a tile, and let the memory wait with the others.
struct Ahead {
  const uint8_t* bytes;
  int64_t lines_at_once;

  void fetch(int64_t step) const {
    const uint8_t* line = bytes + step * lines_at_once * 64;
    for (int64_t i = 0; i < lines_at_once; i++) __builtin_prefetch(line + i * 64, 0, 2);
  }
};

// A tile of 32 outputs in bfloat16: [pair of inputs][32][2].
//
// `multiply` adds to sums[r][c] what rows first to first + R give for the sixteen outputs of half `half` + c.
struct BFloat16Tile {
  static constexpr int64_t kPairsOfStep = 16;
  const uint8_t* weights;
  int64_t num_pairs;

  int64_t num_bytes() const { return num_pairs * 128; }
  int64_t num_steps() const { return divide_up(num_pairs, kPairsOfStep); }

  template <int R, int C>
  void multiply(const BFloat16Rows& rows, int64_t first, int half, const Ahead& ahead, f32x16 (&sums)[R][C]) const {
    const Pair* row = &rows.pairs[first * rows.stride];
    for (int64_t pair = 0; pair < num_pairs; pair++) {
      if (pair % kPairsOfStep == 0) ahead.fetch(pair / kPairsOfStep);
      u32x16 columns[C];
      for (int c = 0; c < C; c++) columns[c] = load<u32x16>(weights + pair * 128 + 64 * (half + c));
      add_products<R, C, Pair>([&](int r) { return row[r * rows.stride + pair]; }, columns, sums);
    }
  }
};

// sum += whole numbers times the scales of their weights and of their row.
inline void add_scaled(const i32x16& dots, const f32x16& scales, float row_scale, f32x16& sum) {
  sum += convert<f32x16>(dots) * (scales * row_scale);
}

// A tile of 32 outputs in 8 bits, in groups of 64 inputs: 32 scales in float16, then [quad of inputs][32][4] bytes, which
// are weights / scale + 128, for one factor of a product of bytes has no sign.
struct ByteTile {
  static constexpr int64_t kGroupBytes = kColumns * (2 + kByteGroup);
  const uint8_t* weights;
  int64_t num_groups;

  int64_t num_bytes() const { return num_groups * kGroupBytes; }
  int64_t num_steps() const { return num_groups; }

  // The products with a group of the rows are whole numbers and exact; what the 128 adds they begin without.
  template <int R, int C>
  void multiply(const ByteRows& rows, int64_t first, int half, const Ahead& ahead, f32x16 (&sums)[R][C]) const {
    constexpr int kQuads = kByteGroup / 4;
    const int64_t stride = rows.num_groups;
    for (int64_t g = 0; g < num_groups; g++) {
      const uint8_t* group = weights + g * kGroupBytes;
      const int64_t at = first * stride + g;
      ahead.fetch(g);
      if (ahead.lines_at_once == 0)
        for (int64_t line = 0; line < kGroupBytes; line += 64) __builtin_prefetch(group + 4 * kGroupBytes + line);
      i32x16 dots[R][C];
#pragma GCC unroll 6
      for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) dots[r][c] = splat(rows.starts[at + r * stride]);
#pragma GCC unroll kUnrolled
      for (int quad = 0; quad < kQuads; quad++) {
        u32x16 columns[C];
        for (int c = 0; c < C; c++) columns[c] = load<u32x16>(group + 2 * kColumns + quad * 128 + 64 * (half + c));
        add_products<R, C, Quad>([&](int r) { return rows.quads[(at + r * stride) * kQuads + quad]; }, columns, dots);
      }
      for (int c = 0; c < C; c++) {
        const f32x16 scale = load_floats((const float16*)group + (half + c) * kLanes);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) add_scaled(dots[r][c], scale, rows.scales[at + r * stride], sums[r][c]);
      }
    }
  }
};

// A tile of 32 outputs on a grid, in groups of 32 inputs. Of each group: 32 scales and 32 offsets in float16, then, of 8
// bits, [quad of inputs][32][4] bytes, of 4 bits [quad][16][4] bytes with outputs 0 to 15 in their low halves and 16 to
// 31 in their high halves. A weight is scale * q + offset, a group's share of a sum scale * (q . a) + offset * (sum of a).
//
// q becomes a bfloat16 in registers without rounding: of 8 bits as it is, of 4 bits with 128 added, which is a matter of
// setting bits. So a pair of inputs is the first and the third, or the second and the fourth, of a quad; in that order
// the rows have them.
template <int kBits>
struct GridTile {
  static constexpr float kAdded = kBits == 4 ? 128 : 0;
  static constexpr int64_t kGroupBytes = 4 * kColumns + kGroup * kColumns * kBits / 8;
  const uint8_t* weights;
  int64_t num_groups;

  int64_t num_bytes() const { return num_groups * kGroupBytes; }
  int64_t num_steps() const { return num_groups; }

  // Inputs `odd` and `odd` + 2 of a quad, for the sixteen outputs of a half.
  static u32x16 pair(const uint8_t* quads, int quad, int half, int odd) {
    const u32x16 bytes = load<u32x16>(quads + quad * 16 * kBits + (kBits == 8 ? 64 * half : 0));
    if constexpr (kBits == 4) return select_bits(bytes >> (8 * odd + 4 * half), 0x000f000f, 0x43004300);
    auto bits = [](u32x16 value) { return (u32x16)convert<f32x16>((i32x16)value); };
    return bits((bytes >> 8 * odd) & 255) >> 16 | bits((bytes >> (16 + 8 * odd)) & 255);
  }

  // The scales and the offsets, without what was added to q, of the sixteen outputs of a half.
  static std::pair<f32x16, f32x16> grid(const uint8_t* group, int half) {
    const float16* scales = (const float16*)group + half * kLanes;
    const f32x16 scale = load_floats(scales);
    return {scale, load_floats(scales + kColumns) - kAdded * scale};
  }

  template <int R, int C>
  void multiply(const GridRows& rows, int64_t first, int half, const Ahead& ahead, f32x16 (&sums)[R][C]) const {
    for (int64_t g = 0; g < num_groups; g++) {
      const uint8_t* group = weights + g * kGroupBytes;
      ahead.fetch(g);
      const Pair* row = &rows.pairs[first * rows.num_pairs + g * kGroup / 2];
      f32x16 dots[R][C] = {};
#pragma GCC unroll kUnrolled
      for (int quad = 0; quad < 8; quad++)
#pragma GCC unroll 2
        for (int odd = 0; odd < 2; odd++) {
          u32x16 columns[C];
          for (int c = 0; c < C; c++) columns[c] = pair(group + 4 * kColumns, quad, half + c, odd);
          add_products<R, C, Pair>([&](int r) { return row[r * rows.num_pairs + 2 * quad + odd]; }, columns, dots);
        }
      for (int c = 0; c < C; c++) {
        const auto [scale, offset] = grid(group, half + c);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
          sums[r][c] += dots[r][c] * scale;
          sums[r][c] += offset * rows.sums[(first + r) * rows.num_groups + g];
        }
      }
    }
  }
};

// Weights as they lie in memory; `tile` gives one tile to multiply with.
struct BFloat16Weights {
  using Rows = BFloat16Rows;
  const uint8_t* packed;
  int64_t num_inputs;
  BFloat16Tile tile(int64_t index) const {
    const int64_t num_pairs = divide_up(num_inputs, 2);
    return {packed + index * num_pairs * 128, num_pairs};
  }
};

struct ByteWeights {
  using Rows = ByteRows;
  const uint8_t* packed;
  int64_t num_inputs;
  ByteTile tile(int64_t index) const {
    const int64_t num_groups = divide_up(num_inputs, kByteGroup);
    return {packed + index * num_groups * ByteTile::kGroupBytes, num_groups};
  }
};

template <int kBits>
struct GridWeights {
  using Rows = GridRows;
  const uint8_t* packed;
  int64_t num_inputs;
  GridTile<kBits> tile(int64_t index) const {
    const int64_t num_groups = divide_up(num_inputs, kGroup);
    return {packed + index * num_groups * GridTile<kBits>::kGroupBytes, num_groups};
  }
};

}  // namespace caravan
