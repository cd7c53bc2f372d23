// The forms of weights in blocks, with the 2 to 8 bits that files have, in tiles of 32 outputs.
//
// A weight is scale * (q - zero) + offset. Inputs that share a scale are a part: 16 or 32. A group is 32 inputs.
// model/cpu/blocks.cpp packs the tiles, block_tiles.h multiplies with them.
#pragma once

#include <c10/util/string_view.h>

#include "byte_sums.h"
#include "weights.h"

namespace caravan {

// Some bits of all values of a group; values with more bits have a plane of low bits and one of high bits. A plane of 8
// bits is [quad of inputs][32 outputs][4 inputs]. One of fewer bits is [line][16 outputs][4 inputs]: a byte of place o
// has the bits of outputs o and o + 16, for the 4 / bits quads of the line, with the first quad in the lowest bits.
template <int kBits>
struct Plane {
  static constexpr int kBytes = kGroup * kColumns * kBits / 8;
  static constexpr int kQuadsOfLine = kBits == 8 ? 1 : 4 / kBits;
  static constexpr uint32_t kMask = 0x01010101u * ((1 << kBits) - 1);

  static u32x16 quad(const uint8_t* plane, int quad, int half) {
    if constexpr (kBits == 8) return load<u32x16>(plane + quad * 128 + half * 64);
    const u32x16 line = load<u32x16>(plane + quad / kQuadsOfLine * 64);
    return (line >> kBits * (2 * (quad % kQuadsOfLine) + half)) & kMask;
  }

  // Set the bits of four values, one in each byte of `values`; they must be zero before.
  static void set(uint8_t* plane, int quad, int output, uint32_t values) {
    const int half = output / kLanes, lane = output % kLanes;
    uint8_t* place = plane + (kBits == 8 ? quad * 128 + half * 64 : quad / kQuadsOfLine * 64) + lane * 4;
    const int shift = kBits == 8 ? 0 : kBits * (2 * (quad % kQuadsOfLine) + half);
    const uint32_t set = load<uint32_t>(place) | (values & kMask) << shift;
    std::memcpy(place, &set, sizeof set);
  }
};

template <int kLowBits, int kHighBits = 0>
struct Values {
  static constexpr int kBits = kLowBits + kHighBits;
  using Low = Plane<kLowBits>;
  using High = Plane<kHighBits ? kHighBits : 1>;
  static constexpr int kBytes = Low::kBytes + (kHighBits ? High::kBytes : 0);

  static u32x16 quad(const uint8_t* values, int quad, int half) {
    const u32x16 low = Low::quad(values, quad, half);
    if constexpr (kHighBits == 0) return low;
    return low | High::quad(values + Low::kBytes, quad, half) << kLowBits;
  }

  static void set(uint8_t* values, int quad, int output, uint32_t bytes) {
    Low::set(values, quad, output, bytes);
    if constexpr (kHighBits != 0) High::set(values + Low::kBytes, quad, output, bytes >> kLowBits);
  }
};

// Numbers that 4 bits stand for in IQ4_NL and IQ4_XS, plus 128. Source: ggml's ggml-common.h, kvalues_iq4nl.
struct IQ4Numbers {
  static constexpr int kBits = 8;
  static constexpr uint8_t kTable[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};
};

// Numbers of type E2M1, twice, plus 12. Source: OCP Microscaling Formats 1.0, 5.3.3.
struct E2M1Numbers {
  static constexpr int kBits = 5;
  static constexpr uint8_t kTable[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
};

template <class Numbers>
struct TableValues {
  static constexpr int kBits = Numbers::kBits;
  static constexpr int kBytes = Plane<4>::kBytes;
  static constexpr const uint8_t (&kTable)[16] = Numbers::kTable;

  static u32x16 quad(const uint8_t* values, int quad, int half) {
    return look_up(kTable, Plane<4>::quad(values, quad, half));
  }
  static void set(uint8_t* values, int quad, int output, uint32_t bytes) { Plane<4>::set(values, quad, output, bytes); }
};

// Scales and offsets as numbers of 16 bits for each 32 inputs: [32] and [32] before the values of each group.
template <class V, bool kOffset = true, int kZeroPoint = 0, class N = float16>
struct OneLevel {
  using Values = V;
  using Number = N;
  static constexpr bool kHasOffset = kOffset;
  static constexpr int kZero = kZeroPoint, kPart = 32, kGroupsOfBlock = 1, kHeadBytes = 0;
  static constexpr int kScaleBytes = kOffset ? 128 : 64;

  static f32x16 scale(const uint8_t*, const uint8_t* group, int, int half) {
    return load_floats((const Number*)group + half * kLanes);
  }
  static f32x16 offset(const uint8_t*, const uint8_t* group, int, int half) {
    return load_floats((const Number*)group + kColumns + half * kLanes);
  }
};

struct SignedBytes {
  static f32x16 load(const uint8_t* from) { return load_signed_bytes(from); }
  static float widen(uint8_t byte) { return (int8_t)byte; }
};

// Half of a number of type E4M3 without a sign, for values that are twice those of E2M1.
struct E4M3Halves {
  static f32x16 load(const uint8_t* from) { return load_e4m3(from) * 0.5f; }
  static float widen(uint8_t byte) {
    const uint8_t padded[kLanes] = {byte};
    return load(padded)[0];
  }
};

// For each 256 inputs d [32], and dmin [32] if there are mins; for each part a scale [32] and a min [32] in bytes. A scale
// is d times that byte, an offset -dmin times that byte. With d and dmin in float16 both products are exact in float32.
template <class V, int kPartInputs, bool kHasMins, int kZeroPoint = 0, class S = SignedBytes, class N = float16,
          int kNumGroups = 8>
struct TwoLevels {
  using Values = V;
  using Number = N;
  using Scales = S;
  static constexpr bool kHasOffset = kHasMins;
  static constexpr int kZero = kZeroPoint, kPart = kPartInputs, kGroupsOfBlock = kNumGroups;
  static constexpr int kHeadBytes = kColumns * sizeof(Number) * (kHasMins ? 2 : 1);
  static constexpr int kScaleBytes = kGroup / kPart * kColumns * (kHasMins ? 2 : 1);

  static f32x16 scale(const uint8_t* head, const uint8_t* group, int part, int half) {
    return load_floats((const Number*)head + half * kLanes) * Scales::load(group + part * kColumns + half * kLanes);
  }
  static f32x16 offset(const uint8_t* head, const uint8_t* group, int part, int half) {
    return load_floats((const Number*)head + kColumns + half * kLanes) *
           load_signed_bytes(group + (kGroup / kPart + part) * kColumns + half * kLanes) * -1.0f;
  }
};

using Q2K = TwoLevels<Values<2>, 16, true>;
using Q3K = TwoLevels<Values<2, 1>, 16, false, 4>;
using Q4K = TwoLevels<Values<4>, 32, true>;
using Q5K = TwoLevels<Values<4, 1>, 32, true>;
using Q6K = TwoLevels<Values<4, 2>, 16, false, 32>;
using IQ4XS = TwoLevels<TableValues<IQ4Numbers>, 32, false, 128>;
using IQ4NL = OneLevel<TableValues<IQ4Numbers>, false, 128>;
using MXFP4 = OneLevel<TableValues<E2M1Numbers>, false, 12, bf16>;
using NVFP4 = TwoLevels<TableValues<E2M1Numbers>, 16, false, 12, E4M3Halves, float, 2>;
using Grid4 = OneLevel<Values<4>>;
using Grid5 = OneLevel<Values<4, 1>>;
using Q40 = OneLevel<Values<4>, false, 8>;
using Q50 = OneLevel<Values<4, 1>, false, 16>;
using Q80 = OneLevel<Values<8>, false, 128>;

// Call f with the form of the format of that name; false if there is none.
template <class F>
bool with_form(c10::string_view name, const F& f) {
  auto is = [&](c10::string_view other, auto form) { return name == other && (f(form), true); };
  return is("Q2_K", Q2K{}) || is("Q3_K", Q3K{}) || is("Q4_K", Q4K{}) || is("Q5_K", Q5K{}) || is("Q6_K", Q6K{}) ||
         is("IQ4_XS", IQ4XS{}) || is("IQ4_NL", IQ4NL{}) || is("MXFP4", MXFP4{}) || is("NVFP4", NVFP4{}) ||
         is("grid of 4 bits times bytes", Grid4{}) || is("grid of 5 bits times bytes", Grid5{}) || is("Q4_0", Q40{}) ||
         is("Q5_0", Q50{}) || is("Q8_0", Q80{});
}

}  // namespace caravan
