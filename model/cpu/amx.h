// Products in tiles, eight registers of 16 rows of 64 bytes: Intel's AMX, for linear layers.
//
// A tile of rows (16 of them, 32 inputs in bfloat16 or 64 in bytes) times a tile of weights (16 pairs or quads of inputs,
// 16 outputs) is added to a tile of 16 rows and 16 outputs by one instruction. The weights lie in memory as it wants
// them. Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18; volume 2,
// TDPBF16PS, TDPBSUD.
//
// TDPBF16PS sums the products of the even inputs of its 32 and those of the odd ones, in float32, then adds both to the
// tile. That is another order than that of the other builds, so there are tiles for every number of rows, or for none.
#pragma once

#include "weights.h"

#if defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__AVX512BF16__) && defined(__AVX512VNNI__)
#include <ATen/cpu/Utils.h>

namespace caravan {

constexpr int64_t kTileRows = 16;
constexpr int64_t kTiledRows = 2 * kTileRows;  // rows that share each load of weights

// Whether so many rows are multiplied in tiles. The operating system is asked for room to save them in, once.
template <class Rows>
inline bool uses_tiles(int64_t num_rows) {
  if (std::is_same_v<Rows, ByteRows> && num_rows <= kRowsAtOnce) return false;  // the same whole numbers, and faster
  static const bool is_allowed = at::cpu::init_amx();
  return is_allowed;
}

// The sums of up to 32 rows and 32 outputs, in registers 0 to 3, while it lives. 4 and 5 are for rows, 6 and 7 for weights.
//
// The instructions are written out, for the compiler's functions do not tell it that they read memory.
class TileSums {
 public:
  ~TileSums() {
    if (num_rows_) asm volatile("tilerelease");
  }

  // Set the sums of so many rows to zero.
  void begin(int64_t num_rows) {
    if (num_rows != num_rows_) configure(num_rows);
    asm volatile("tilezero %tmm0\n\ttilezero %tmm1\n\ttilezero %tmm2\n\ttilezero %tmm3");
  }

  // Add rows [num_rows][64 bytes], so many bytes apart, times weights [16 pairs or quads][32 outputs].
  template <class Factor>
  void add(const void* rows, int64_t row_bytes, const void* weights) {
    load<6>(weights, 128);
    load<7>((const char*)weights + 64, 128);
    load<4>(rows, row_bytes);
    multiply<Factor, 0, 4, 6>();
    multiply<Factor, 1, 4, 7>();
    if (!is_double()) return;
    load<5>((const char*)rows + kTileRows * row_bytes, row_bytes);
    multiply<Factor, 2, 5, 6>();
    multiply<Factor, 3, 5, 7>();
  }

  // Write the sums [num_rows][32].
  void store(void* to) const {
    store<0>(to, 0, 0);
    store<1>(to, 0, 1);
    if (!is_double()) return;
    store<2>(to, kTileRows, 0);
    store<3>(to, kTileRows, 1);
  }

 private:
  void configure(int64_t num_rows) {
    num_rows_ = num_rows;
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shapes;
    for (int i : {0, 1, 4}) shapes.rows[i] = std::min(num_rows, kTileRows);
    for (int i : {2, 3, 5}) shapes.rows[i] = is_double() ? num_rows - kTileRows : kTileRows;
    asm volatile("ldtilecfg %0" ::"m"(shapes));
  }

  bool is_double() const { return num_rows_ > kTileRows; }

  template <int kTile>
  static void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTile) : "memory");
  }

  template <int kTile>
  static void store(void* to, int64_t row, int half) {
    char* at = (char*)to + row * 128 + half * 64;
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(at), "r"(128l), "i"(kTile) : "memory");
  }

  template <class Factor, int kSums, int kRows, int kWeights>
  static void multiply() {
    if constexpr (std::is_same_v<Factor, Pair>)
      asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kRows), "i"(kWeights));
    else  // signed bytes of rows, unsigned ones of weights
      asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kRows), "i"(kWeights));
  }

  int64_t num_rows_ = 0;
};

// sums[r] = what rows first to first + num_rows, at most 32, give for the tile of weights.
inline void multiply(const BFloat16Tile& tile, const BFloat16Rows& rows, int64_t first, int64_t num_rows,
                     const Ahead& ahead, TileSums& tiles, f32x16 (*sums)[2]) {
  constexpr int64_t kPairs = BFloat16Tile::kPairsOfStep;
  const Pair* row = &rows.pairs[first * rows.num_pairs];
  tiles.begin(num_rows);
  int64_t pair = 0;
  for (; pair + kPairs <= tile.num_pairs; pair += kPairs) {
    ahead.fetch(pair / kPairs);
    tiles.add<Pair>(row + pair, rows.num_pairs * sizeof(Pair), tile.weights + pair * 128);
  }
  if (pair < tile.num_pairs) {  // the rows end with zeros, the weights do not
    alignas(64) uint8_t last[kPairs * 128] = {};
    std::memcpy(last, tile.weights + pair * 128, (tile.num_pairs - pair) * 128);
    tiles.add<Pair>(row + pair, rows.num_pairs * sizeof(Pair), last);
  }
  tiles.store(sums);
}

inline void multiply(const ByteTile& tile, const ByteRows& rows, int64_t first, int64_t num_rows, const Ahead& ahead,
                     TileSums& tiles, f32x16 (*sums)[2]) {
  i32x16 dots[kTiledRows][2];
  for (int64_t r = 0; r < num_rows; r++) sums[r][0] = sums[r][1] = f32x16{};
  for (int64_t g = 0; g < tile.num_groups; g++) {
    const uint8_t* group = tile.weights + g * ByteTile::kGroupBytes;
    const int64_t at = first * rows.num_groups + g;
    ahead.fetch(g);
    tiles.begin(num_rows);
    tiles.add<Quad>(&rows.quads[at * kByteGroup / 4], rows.num_groups * kByteGroup, group + 2 * kColumns);
    tiles.store(dots);
    const f32x16 scales[2] = {load_floats((const float16*)group), load_floats((const float16*)group + kLanes)};
    for (int64_t r = 0; r < num_rows; r++)
      for (int half = 0; half < 2; half++) {
        const int64_t place = at + r * rows.num_groups;
        add_scaled(dots[r][half] + rows.starts[place], scales[half], rows.scales[place], sums[r][half]);
      }
  }
}

// The weights are widened two groups ahead: a tile cannot be loaded before what it loads has left the store buffer.
template <int kBits>
inline void multiply(const GridTile<kBits>& tile, const GridRows& rows, int64_t first, int64_t num_rows,
                     const Ahead& ahead, TileSums& tiles, f32x16 (*sums)[2]) {
  using Tile = GridTile<kBits>;
  constexpr int kAhead = 2;
  u32x16 pairs[2 * kAhead][kGroup / 2][2];
  f32x16 dots[kTiledRows][2];
  auto widen = [&](int64_t g) {
    if (g >= tile.num_groups) return;
    const uint8_t* quads = tile.weights + g * Tile::kGroupBytes + 4 * kColumns;
#pragma GCC unroll 8
    for (int quad = 0; quad < kGroup / 4; quad++)
#pragma GCC unroll 2
      for (int odd = 0; odd < 2; odd++)
        for (int half = 0; half < 2; half++)
          pairs[g % (2 * kAhead)][2 * quad + odd][half] = Tile::pair(quads, quad, half, odd);
  };
  for (int64_t r = 0; r < num_rows; r++) sums[r][0] = sums[r][1] = f32x16{};
  for (int64_t g = 0; g < kAhead; g++) widen(g);
  for (int64_t g = 0; g < tile.num_groups; g++) {
    ahead.fetch(g);
    tiles.begin(num_rows);
    tiles.add<Pair>(&rows.pairs[first * rows.num_pairs + g * kGroup / 2], rows.num_pairs * sizeof(Pair),
                    pairs[g % (2 * kAhead)]);
    tiles.store(dots);
    widen(g + kAhead);
    for (int half = 0; half < 2; half++) {
      const auto [scale, offset] = Tile::grid(tile.weights + g * Tile::kGroupBytes, half);
      for (int64_t r = 0; r < num_rows; r++) {
        sums[r][half] += dots[r][half] * scale;
        sums[r][half] += offset * rows.sums[(first + r) * rows.num_groups + g];
      }
    }
  }
}

}  // namespace caravan
#else
namespace caravan {

constexpr int64_t kTiledRows = 1;
struct TileSums {
  void begin(int64_t) {}
  template <class Factor>
  void add(const void*, int64_t, const void*) {}
};
template <class Rows>
constexpr bool uses_tiles(int64_t) {
  return false;
}
template <class... Anything>
void multiply(const Anything&...) {}

}  // namespace caravan
#endif
