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

// A tile of 32 outputs in groups of 32 inputs, multiplied in bfloat16. After scales and offsets the values lie in words of
// 32 bits. A vector of sixteen words holds, side by side in each word, values of several vectors of eight outputs times a
// pair of inputs, [8][2]: of 4 bits two pairs of all 32 outputs, of 8 bits one pair.
template <int kBits>
struct WidenedGroup {
  const uint8_t* bytes;
  f32x16 scales[4], offsets[4];  // [16 outputs and 16 outputs][8 and 8], each twice

  explicit WidenedGroup(const uint8_t* bytes) : bytes(bytes) {
    for (int half = 0; half < 2; half++) {
      const Group<kBits> group{this->bytes};
      twice_each(group.scale(half), scales[2 * half], scales[2 * half + 1]);
      twice_each(group.offset(half), offsets[2 * half], offsets[2 * half + 1]);
    }
  }

  // The weights of a pair of inputs, rounded to bfloat16, for outputs 0 to 15 and 16 to 31.
  void pair(int pair, u32x16& low, u32x16& high) const {
    const uint8_t* at = bytes + 4 * kColumns;
    if constexpr (kBits == 8) {
      const u32x16 words = load<u32x16>(at + pair * 64), rest = words >> 16;
      low = two_bf16(weight<0>(words, 0), weight<1>(words, 1));
      high = two_bf16(weight<0>(rest, 2), weight<1>(rest, 3));
    } else {
      u32x16 words = load<u32x16>(at + pair / 2 * 64);
      if (pair % 2) words >>= 16;
      low = two_bf16(weight<0>(words, 0), weight<1>(words, 1));
      high = two_bf16(weight<2>(words, 2), weight<3>(words, 3));
    }
  }

 private:
  // A value inside a word, in the fraction of a float whose exponent makes its lowest bit 1; what is before it goes.
  template <int kPlace>
  f32x16 weight(u32x16 words, int vector) const {
    constexpr uint32_t kMask = ((1u << kBits) - 1) << (kBits * kPlace), kExponent = (150u - kBits * kPlace) << 23;
    const f32x16 value = (f32x16)select_bits(words, kMask, kExponent) - (float)(1u << (23 - kBits * kPlace));
    return value * scales[vector] + offsets[vector];
  }
};

template <int kBits>
struct WidenedTile {
  const uint8_t* weights;

  template <int R>
  void multiply(const BFloat16Rows& rows, int64_t first, f32x16 (&result)[R][2]) const {
    f32x16 sums[R][2] = {};
    const bf16* row = &rows.values[first * rows.width];
    for (int64_t g = 0; g < rows.width / kGroup; g++) {
      const WidenedGroup<kBits> group(weights + g * Group<kBits>::kBytes);
#pragma GCC unroll 16
      for (int pair = 0; pair < kGroup / 2; pair++) {
        u32x16 low, high;
        group.pair(pair, low, high);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
          uint32_t a = load<uint32_t>(row + r * rows.width + g * kGroup + 2 * pair);
          sums[r][0] = dot(sums[r][0], a, low);
          sums[r][1] = dot(sums[r][1], a, high);
        }
      }
    }
    std::memcpy(result, sums, sizeof sums);
  }
};

// Weights as they lie in memory; `with_tile` calls f with one tile to multiply a number of rows with, for which it may
// use `scratch`.
struct BFloat16Weights {
  using Rows = BFloat16Rows;
  const uint8_t* packed;
  int64_t num_inputs;
  int64_t num_scratch_bytes() const { return 0; }
  template <class F>
  void with_tile(int64_t index, int64_t, uint8_t*, const F& f) const {
    const int64_t num_pairs = divide_up(num_inputs, 2);
    f(BFloat16Tile{packed + index * num_pairs * 128, num_pairs});
  }
};

template <int kBits>
struct GroupedWeights {
  using Rows = QuantizedRows;
  const uint8_t* packed;
  int64_t num_inputs;
  int64_t num_scratch_bytes() const { return 0; }
  template <class F>
  void with_tile(int64_t index, int64_t, uint8_t*, const F& f) const {
    f(GroupedTile<kBits>{packed + index * divide_up(num_inputs, kGroup) * Group<kBits>::kBytes});
  }
};

// Groups multiplied in bfloat16: widened as they are read, or for many rows once for all.
template <int kBits>
struct WidenedWeights {
  using Rows = BFloat16Rows;
  const uint8_t* packed;
  int64_t num_inputs;
  int64_t num_groups() const { return divide_up(num_inputs, kGroup); }
  int64_t num_scratch_bytes() const { return num_groups() * kGroup * kColumns * sizeof(bf16); }
  template <class F>
  void with_tile(int64_t index, int64_t num_rows, uint8_t* scratch, const F& f) const {
    const uint8_t* weights = packed + index * num_groups() * Group<kBits>::kBytes;
    if (num_rows <= kRowsAtOnce) return f(WidenedTile<kBits>{weights});
    for (int64_t g = 0; g < num_groups(); g++) {
      const WidenedGroup<kBits> group(weights + g * Group<kBits>::kBytes);
#pragma GCC unroll 16
      for (int pair = 0; pair < kGroup / 2; pair++) {
        u32x16 low, high;
        group.pair(pair, low, high);
        store(scratch + (g * kGroup / 2 + pair) * 128, low);
        store(scratch + (g * kGroup / 2 + pair) * 128 + 64, high);
      }
    }
    f(BFloat16Tile{scratch, num_groups() * kGroup / 2});
  }
};

}  // namespace caravan
