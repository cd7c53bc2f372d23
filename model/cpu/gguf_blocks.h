// The layouts of the blocks of GGUF files, and of one more; a row is blocks one after another. Any bytes are a valid block
// as long as its numbers are finite. Source of all other layouts: ggml's ggml-common.h and ggml-quants.c.
#pragma once

#include <c10/util/string_view.h>

#include <utility>

#include "block_tiles.h"

namespace caravan {

// A block in plain bytes: up to 256 inputs, or 32 of a kind with one level of scales.
struct Block {
  uint32_t d{}, dmin{};  // the bits of numbers of the type Form::Number; of one level: the scale and the offset
  uint8_t scales[16];
  uint8_t mins[16];
  uint8_t values[256];
};

template <class Number>
inline float as_float(uint32_t bits) {
  Number padded[kLanes] = {};
  std::memcpy(padded, &bits, sizeof(Number));
  return load_floats(padded)[0];
}

inline void split_halves(const uint8_t* from, int count, uint8_t* low, uint8_t* high) {
  for (int i = 0; i < count; i++) low[i] = from[i] & 15, high[i] = from[i] >> 4;
}

// Eight scales and eight mins of 6 bits in 12 bytes, of Q4_K and Q5_K.
inline void unpack_scales_and_mins(const uint8_t* from, Block& block) {
  for (int i = 0; i < 4; i++) {
    block.scales[i] = from[i] & 63, block.mins[i] = from[i + 4] & 63;
    block.scales[i + 4] = (from[i + 8] & 15) | from[i] >> 6 << 4;
    block.mins[i + 4] = from[i + 8] >> 4 | from[i + 4] >> 6 << 4;
  }
}

// 256 values of 2 bits: each 32 bytes are four times 32 inputs.
inline void unpack_pairs_of_bits(const uint8_t* from, uint8_t* values) {
  for (int half = 0; half < 2; half++)
    for (int shift = 0; shift < 4; shift++)
      for (int i = 0; i < 32; i++) values[half * 128 + shift * 32 + i] = from[half * 32 + i] >> 2 * shift & 3;
}

struct Q2KBlock {
  using Form = Q2K;
  static constexpr int kInputs = 256, kBytes = 84;
  static void unpack(const uint8_t* from, Block& block) {
    for (int i = 0; i < 16; i++) block.scales[i] = from[i] & 15, block.mins[i] = from[i] >> 4;
    unpack_pairs_of_bits(from + 16, block.values);
    block.d = load<uint16_t>(from + 80), block.dmin = load<uint16_t>(from + 82);
  }
};

struct Q3KBlock {
  using Form = Q3K;
  static constexpr int kInputs = 256, kBytes = 110;
  static void unpack(const uint8_t* from, Block& block) {
    const uint8_t *high = from, *scales = from + 96;
    unpack_pairs_of_bits(from + 32, block.values);
    for (int group = 0; group < 8; group++)
      for (int i = 0; i < 32; i++) block.values[group * 32 + i] |= (high[i] >> group & 1) << 2;
    for (int i = 0; i < 16; i++) {
      const int low = i < 8 ? scales[i] & 15 : scales[i - 8] >> 4;
      block.scales[i] = (low | (scales[8 + i % 4] >> i / 4 * 2 & 3) << 4) - 32;
    }
    block.d = load<uint16_t>(from + 108);
  }
};

struct Q4KBlock {
  using Form = Q4K;
  static constexpr int kInputs = 256, kBytes = 144;
  static void unpack(const uint8_t* from, Block& block) {
    block.d = load<uint16_t>(from), block.dmin = load<uint16_t>(from + 2);
    unpack_scales_and_mins(from + 4, block);
    for (int i = 0; i < 4; i++)
      split_halves(from + 16 + 32 * i, 32, block.values + 64 * i, block.values + 64 * i + 32);
  }
};

struct Q5KBlock {
  using Form = Q5K;
  static constexpr int kInputs = 256, kBytes = 176;
  static void unpack(const uint8_t* from, Block& block) {
    block.d = load<uint16_t>(from), block.dmin = load<uint16_t>(from + 2);
    unpack_scales_and_mins(from + 4, block);
    for (int i = 0; i < 4; i++)
      split_halves(from + 48 + 32 * i, 32, block.values + 64 * i, block.values + 64 * i + 32);
    for (int group = 0; group < 8; group++)
      for (int i = 0; i < 32; i++) block.values[group * 32 + i] |= (from[16 + i] >> group & 1) << 4;
  }
};

struct Q6KBlock {
  using Form = Q6K;
  static constexpr int kInputs = 256, kBytes = 210;
  static void unpack(const uint8_t* from, Block& block) {
    for (int half = 0; half < 2; half++) {
      uint8_t* values = block.values + 128 * half;
      split_halves(from + 64 * half, 64, values, values + 64);
      for (int part = 0; part < 4; part++)
        for (int i = 0; i < 32; i++) values[part * 32 + i] |= (from[128 + 32 * half + i] >> 2 * part & 3) << 4;
    }
    std::memcpy(block.scales, from + 192, 16);
    block.d = load<uint16_t>(from + 208);
  }
};

struct IQ4XSBlock {
  using Form = IQ4XS;
  static constexpr int kInputs = 256, kBytes = 136;
  static void unpack(const uint8_t* from, Block& block) {
    block.d = load<uint16_t>(from);
    const uint16_t high = load<uint16_t>(from + 2);
    for (int i = 0; i < 8; i++) {
      block.scales[i] = ((from[4 + i / 2] >> i % 2 * 4 & 15) | (high >> 2 * i & 3) << 4) - 32;
      split_halves(from + 8 + 16 * i, 16, block.values + 32 * i, block.values + 32 * i + 16);
    }
  }
};

struct IQ4NLBlock {
  using Form = IQ4NL;
  static constexpr int kInputs = 32, kBytes = 18;
  static void unpack(const uint8_t* from, Block& block) {
    block.d = load<uint16_t>(from);
    split_halves(from + 2, 16, block.values, block.values + 16);
  }
};

struct MXFP4Block {
  using Form = MXFP4;
  static constexpr int kInputs = 32, kBytes = 17;
  static void unpack(const uint8_t* from, Block& block) {
    // 2^(from[0] - 128) in bfloat16. From 253 on, the largest value is past float32, and 255 means NaN.
    block.d = from[0] > 252 ? 0x7fc0 : from[0] > 1 ? (from[0] - 1) << 7 : 0x20 << from[0];
    split_halves(from + 1, 16, block.values, block.values + 16);
  }
};

struct NVFP4Block {
  using Form = NVFP4;
  static constexpr int kInputs = 64, kBytes = 36;
  static void unpack(const uint8_t* from, Block& block) {
    block.d = std::bit_cast<uint32_t>(1.0f);
    for (int i = 0; i < 4; i++) {
      block.scales[i] = from[i] == 0x7f ? 0 : from[i] & 0x7f;  // without a sign; NaN is 0 in ggml
      split_halves(from + 4 + 8 * i, 8, block.values + 16 * i, block.values + 16 * i + 8);
    }
  }
};

// No block of GGUF's: after a factor in float32, which those files have in a tensor of its own.
struct NVFP4WithFactorBlock {
  using Form = NVFP4;
  static constexpr int kInputs = 64, kBytes = 4 + NVFP4Block::kBytes;
  static void unpack(const uint8_t* from, Block& block) {
    NVFP4Block::unpack(from + 4, block);
    block.d = load<uint32_t>(from);
  }
};

struct Q40Block {
  using Form = Q40;
  static constexpr int kInputs = 32, kBytes = 18;
  static void unpack(const uint8_t* from, Block& block) {
    block.d = load<uint16_t>(from);
    split_halves(from + 2, 16, block.values, block.values + 16);
  }
};

struct Q41Block {
  using Form = Grid4;
  static constexpr int kInputs = 32, kBytes = 20;
  static void unpack(const uint8_t* from, Block& block) {
    block.d = load<uint16_t>(from), block.dmin = load<uint16_t>(from + 2);
    split_halves(from + 4, 16, block.values, block.values + 16);
  }
};

inline void add_fifth_bits(uint32_t bits, uint8_t* values) {
  for (int i = 0; i < 32; i++) values[i] |= (bits >> i & 1) << 4;
}

struct Q50Block {
  using Form = Q50;
  static constexpr int kInputs = 32, kBytes = 22;
  static void unpack(const uint8_t* from, Block& block) {
    block.d = load<uint16_t>(from);
    split_halves(from + 6, 16, block.values, block.values + 16);
    add_fifth_bits(load<uint32_t>(from + 2), block.values);
  }
};

struct Q51Block {
  using Form = Grid5;
  static constexpr int kInputs = 32, kBytes = 24;
  static void unpack(const uint8_t* from, Block& block) {
    block.d = load<uint16_t>(from), block.dmin = load<uint16_t>(from + 2);
    split_halves(from + 8, 16, block.values, block.values + 16);
    add_fifth_bits(load<uint32_t>(from + 4), block.values);
  }
};

struct Q80Block {
  using Form = Q80;
  static constexpr int kInputs = 32, kBytes = 34;
  static void unpack(const uint8_t* from, Block& block) {
    block.d = load<uint16_t>(from);
    for (int i = 0; i < 32; i++) block.values[i] = from[2 + i] ^ 0x80;
  }
};

// Call f with the kind of block of that name; false if there is none.
template <class F>
bool with_block(c10::string_view name, const F& f) {
  auto is = [&](c10::string_view other, auto kind) { return name == other && (f(kind), true); };
  return is("Q2_K", Q2KBlock{}) || is("Q3_K", Q3KBlock{}) || is("Q4_K", Q4KBlock{}) || is("Q5_K", Q5KBlock{}) ||
         is("Q6_K", Q6KBlock{}) || is("IQ4_XS", IQ4XSBlock{}) || is("IQ4_NL", IQ4NLBlock{}) ||
         is("MXFP4", MXFP4Block{}) || is("NVFP4", NVFP4Block{}) || is("NVFP4 with a factor", NVFP4WithFactorBlock{}) ||
         is("Q4_0", Q40Block{}) || is("Q4_1", Q41Block{}) || is("Q5_0", Q50Block{}) || is("Q5_1", Q51Block{}) ||
         is("Q8_0", Q80Block{});
}

}  // namespace caravan
