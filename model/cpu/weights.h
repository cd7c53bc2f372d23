// The weights of a linear layer as they lie in memory, packed by model/cpu/linear.py, in tiles of 32 outputs.
#pragma once

#include "rows.h"

namespace caravan {

constexpr int64_t kColumns = 32;  // outputs of a tile

// A tile of 32 outputs in bfloat16: [pair of inputs][32][2].
struct BFloat16Tile {
  using Rows = BFloat16Rows;
  const uint8_t* weights;
  int64_t num_pairs;

  template <int R>
  void multiply(const Rows& rows, int64_t first, f32x16 (&result)[R][2]) const {
    f32x16 sums[R][2] = {};
    const bf16* row = &rows.values[first * rows.width];
    for (int64_t pair = 0; pair < num_pairs; pair++) {
      u32x16 low = load<u32x16>(weights + pair * 128), high = load<u32x16>(weights + pair * 128 + 64);
#pragma GCC unroll 6
      for (int r = 0; r < R; r++) {
        uint32_t a = load<uint32_t>(row + r * rows.width + 2 * pair);
        sums[r][0] = dot(sums[r][0], a, low);
        sums[r][1] = dot(sums[r][1], a, high);
      }
    }
    std::memcpy(result, sums, sizeof sums);
  }
};

// A tile of 32 outputs in groups of 32 inputs. Of each group: 32 scales and 32 offsets in float16, then, of 8 bits,
// [quad of inputs][32][4] bytes, of 4 bits [quad][16][4] bytes with outputs 0 to 15 in their low halves and 16 to 31 in
// their high halves. A weight is scale * q + offset.
template <int kBits>
struct Group {
  static constexpr int64_t kBytes = 4 * kColumns + kGroup * kColumns * kBits / 8;
  const uint8_t* bytes;

  f32x16 scale(int half) const { return load_floats((const float16*)bytes + half * kLanes); }
  f32x16 offset(int half) const { return load_floats((const float16*)bytes + kColumns + half * kLanes); }
  void quad(int quad, u32x16& low, u32x16& high) const {
    const uint8_t* at = bytes + 4 * kColumns + quad * 16 * kBits;
    if constexpr (kBits == 8) {
      low = load<u32x16>(at);
      high = load<u32x16>(at + 64);
    } else {
      u32x16 both = load<u32x16>(at);
      low = both & 0x0f0f0f0f;
      high = (both >> 4) & 0x0f0f0f0f;
    }
  }
};

// A group's share of a sum is scale * (q . a) + offset * (sum of a); q . a is a sum of whole numbers and exact.
template <int kBits>
struct GroupedTile {
  using Rows = QuantizedRows;
  const uint8_t* weights;

  template <int R>
  void multiply(const Rows& rows, int64_t first, f32x16 (&result)[R][2]) const {
    f32x16 sums[R][2] = {};
    for (int64_t g = 0; g < rows.num_groups; g++) {
      const Group<kBits> group{weights + g * Group<kBits>::kBytes};
      const int8_t* values = &rows.values[first * rows.width + g * kGroup];
      i32x16 dots[R][2] = {};
#pragma GCC unroll 8
      for (int quad = 0; quad < 8; quad++) {
        u32x16 low, high;
        group.quad(quad, low, high);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
          int32_t a = load<int32_t>(values + r * rows.width + 4 * quad);
          dots[r][0] = dot(dots[r][0], a, low);
          dots[r][1] = dot(dots[r][1], a, high);
        }
      }
#pragma GCC unroll 2
      for (int half = 0; half < 2; half++) {
        f32x16 scale = group.scale(half), offset = group.offset(half);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
          const int64_t at = (first + r) * rows.num_groups + g;
          sums[r][half] += __builtin_convertvector(dots[r][half], f32x16) * (scale * rows.scales[at]);
          sums[r][half] += offset * rows.sums[at];
        }
      }
    }
    std::memcpy(result, sums, sizeof sums);
  }
};

// Weights as they lie in memory; `tile` gives one tile to multiply with, for which it may use `scratch`.
struct BFloat16Weights {
  using Tile = BFloat16Tile;
  const uint8_t* packed;
  int64_t num_inputs;
  int64_t num_scratch_bytes() const { return 0; }
  Tile tile(int64_t index, uint8_t*) const {
    const int64_t num_pairs = divide_up(num_inputs, 2);
    return {packed + index * num_pairs * 128, num_pairs};
  }
};

template <int kBits>
struct GroupedWeights {
  using Tile = GroupedTile<kBits>;
  const uint8_t* packed;
  int64_t num_inputs;
  int64_t num_scratch_bytes() const { return 0; }
  Tile tile(int64_t index, uint8_t*) const {
    return {packed + index * divide_up(num_inputs, kGroup) * Group<kBits>::kBytes};
  }
};

// Groups multiplied in bfloat16: a tile is widened, once for all rows of a unit, and then is like any other.
template <int kBits>
struct WidenedWeights {
  using Tile = BFloat16Tile;
  const uint8_t* packed;
  int64_t num_inputs;
  int64_t num_groups() const { return divide_up(num_inputs, kGroup); }
  int64_t num_scratch_bytes() const { return num_groups() * kGroup * kColumns * sizeof(bf16); }
  Tile tile(int64_t index, uint8_t* scratch) const {
    const uint8_t* weights = packed + index * num_groups() * Group<kBits>::kBytes;
    for (int64_t g = 0; g < num_groups(); g++) {
      const Group<kBits> group{weights + g * Group<kBits>::kBytes};
      const f32x16 scales[2] = {group.scale(0), group.scale(1)}, offsets[2] = {group.offset(0), group.offset(1)};
#pragma GCC unroll 8
      for (int quad = 0; quad < 8; quad++) {
        u32x16 halves[2];
        group.quad(quad, halves[0], halves[1]);
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
          auto weight = [&](int i) {  // of input i of the quad, rounded to bfloat16 in the high half of each lane
            i32x16 q = (i32x16)((halves[half] >> (8 * i)) & 255);
            u32x16 bits = (u32x16)(__builtin_convertvector(q, f32x16) * scales[half] + offsets[half]);
            return bits + 0x7fff + ((bits >> 16) & 1);
          };
          for (int pair = 0; pair < 2; pair++)
            store(scratch + ((g * 16 + quad * 2 + pair) * 2 + half) * 64,
                  weight(2 * pair) >> 16 | (weight(2 * pair + 1) & 0xffff0000));
        }
      }
    }
    return {scratch, num_groups() * kGroup / 2};
  }
};

}  // namespace caravan
