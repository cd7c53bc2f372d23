// The weights of a linear layer as they lie in memory, packed by model/cpu/linear.py, in tiles of 32 outputs.
#pragma once

#include "rows.h"

namespace caravan {

constexpr int64_t kColumns = 32;                            // outputs of a tile
constexpr int64_t kRowsAtOnce = kHasManyRegisters ? 6 : 2;  // rows that share each load of weights

// A tile of 32 outputs in bfloat16: [pair of inputs][32][2].
struct BFloat16Tile {
  const uint8_t* weights;
  int64_t num_pairs;

  template <int R>
  void multiply(const BFloat16Rows& rows, int64_t first, f32x16 (&result)[R][2]) const {
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
  // The bytes of a quad for 16 outputs; of 4 bits the half asked for is in the low or in the high halves of the bytes.
  u32x16 bytes_of(int quad, int half) const {
    return load<u32x16>(bytes + 4 * kColumns + quad * 16 * kBits + (kBits == 8 ? 64 * half : 0));
  }
  u32x16 quad(int quad, int half) const {
    if constexpr (kBits == 8) return bytes_of(quad, half);
    return (bytes_of(quad, half) >> 4 * half) & 0x0f0f0f0f;
  }
};

// A group's share of a sum is scale * (q . a) + offset * (sum of a); q . a is a sum of whole numbers and exact.
template <int kBits>
struct GroupedTile {
  const uint8_t* weights;

  template <int R>
  void multiply(const QuantizedRows& rows, int64_t first, f32x16 (&result)[R][2]) const {
    f32x16 sums[R][2] = {};
    for (int64_t g = 0; g < rows.num_groups; g++) {
      const Group<kBits> group{weights + g * Group<kBits>::kBytes};
      const int8_t* values = &rows.values[first * rows.width + g * kGroup];
      i32x16 dots[R][2] = {};
#pragma GCC unroll 8
      for (int quad = 0; quad < 8; quad++) {
        u32x16 low = group.quad(quad, 0), high = group.quad(quad, 1);
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

// The same groups multiplied in bfloat16. A value becomes one in registers without rounding: of 8 bits as it is, of 4
// bits with 128 added, which is a matter of setting bits. So a pair of inputs is the first and the third, or the second
// and the fourth, of a quad; in that order the rows have them.
template <int kBits>
struct WidenedTile {
  static constexpr float kAdded = kBits == 4 ? 128 : 0;
  const uint8_t* weights;

  // Inputs `odd` and `odd` + 2 of a quad, for sixteen outputs.
  static u32x16 pair(const Group<kBits>& group, int quad, int half, int odd) {
    u32x16 bytes = group.bytes_of(quad, half);
    if constexpr (kBits == 4) return select_bits(bytes >> (8 * odd + 4 * half), 0x000f000f, 0x43004300);
    auto bits = [](u32x16 value) { return (u32x16)__builtin_convertvector((i32x16)value, f32x16); };
    return bits((bytes >> 8 * odd) & 255) >> 16 | bits((bytes >> (16 + 8 * odd)) & 255);
  }

  template <int R>
  void multiply(const WidenedRows& rows, int64_t first, f32x16 (&result)[R][2]) const {
    f32x16 sums[R][2] = {};
    for (int64_t g = 0; g < rows.num_groups; g++) {
      const Group<kBits> group{weights + g * Group<kBits>::kBytes};
      const bf16* values = &rows.values[first * rows.width + g * kGroup];
      f32x16 dots[R][2] = {};
#pragma GCC unroll 8
      for (int quad = 0; quad < 8; quad++) {
#pragma GCC unroll 2
        for (int odd = 0; odd < 2; odd++) {
          u32x16 low_pair = pair(group, quad, 0, odd), high_pair = pair(group, quad, 1, odd);
#pragma GCC unroll 6
          for (int r = 0; r < R; r++) {
            uint32_t a = load<uint32_t>(values + r * rows.width + 4 * quad + 2 * odd);
            dots[r][0] = dot(dots[r][0], a, low_pair);
            dots[r][1] = dot(dots[r][1], a, high_pair);
          }
        }
      }
#pragma GCC unroll 2
      for (int half = 0; half < 2; half++) {
        f32x16 scale = group.scale(half), offset = group.offset(half) - kAdded * scale;
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
          sums[r][half] += dots[r][half] * scale;
          sums[r][half] += offset * rows.sums[(first + r) * rows.num_groups + g];
        }
      }
    }
    std::memcpy(result, sums, sizeof sums);
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

template <int kBits, template <int> class Tile, class RowsOfTile>
struct GroupedWeights {
  using Rows = RowsOfTile;
  const uint8_t* packed;
  int64_t num_inputs;
  Tile<kBits> tile(int64_t index) const {
    return {packed + index * divide_up(num_inputs, kGroup) * Group<kBits>::kBytes};
  }
};

template <int kBits>
using ByteWeights = GroupedWeights<kBits, GroupedTile, QuantizedRows>;
template <int kBits>
using WidenedWeights = GroupedWeights<kBits, WidenedTile, WidenedRows>;

}  // namespace caravan
