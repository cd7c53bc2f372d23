// Weights in blocks, with the 2 to 8 bits that GGUF files have, in tiles of 32 outputs; and their products with rows in
// bytes.
//
// A weight is scale * (q - zero) + offset. Inputs that share a scale are a part: 16 or 32. A group is 32 inputs, for
// which a row is rounded to bytes: x = a * b + t. So a part's share of a sum is
//   a * scale * (sum of (q - zero) * b)  +  t * scale * (sum of (q - zero))  +  offset * (sum of x),
// where the sums of q and b are whole numbers, exact in any order. model/cpu/blocks.cpp packs the tiles.
#pragma once

#include "byte_sums.h"
#include "weights.h"

namespace caravan {

constexpr int32_t kOnes = 0x01010101;  // four bytes of one: with them a product is a sum

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
struct TableValues {
  static constexpr int kBits = 8;
  static constexpr int kBytes = Plane<4>::kBytes;
  static constexpr uint8_t kTable[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

  static u32x16 quad(const uint8_t* values, int quad, int half) {
    return look_up(kTable, Plane<4>::quad(values, quad, half));
  }
  static void set(uint8_t* values, int quad, int output, uint32_t bytes) { Plane<4>::set(values, quad, output, bytes); }
};

// Scales and offsets in float16 for each 32 inputs: [32] and [32] before the values of each group.
template <class V, bool kOffset = true, int kZeroPoint = 0>
struct OneLevel {
  using Values = V;
  static constexpr bool kHasOffset = kOffset;
  static constexpr int kZero = kZeroPoint, kPart = 32, kGroupsOfBlock = 1, kHeadBytes = 0;
  static constexpr int kScaleBytes = kOffset ? 128 : 64;

  static f32x16 scale(const uint8_t*, const uint8_t* group, int, int half) {
    return load_floats((const float16*)group + half * kLanes);
  }
  static f32x16 offset(const uint8_t*, const uint8_t* group, int, int half) {
    return load_floats((const float16*)group + kColumns + half * kLanes);
  }
};

// For each 256 inputs d [32] in float16, and dmin [32] if there are mins; for each part a scale [32] and a min [32] in
// bytes. A scale is d times that byte, an offset -dmin times that byte; both products are exact in float32.
template <class V, int kPartInputs, bool kHasMins, int kZeroPoint = 0>
struct TwoLevels {
  using Values = V;
  static constexpr bool kHasOffset = kHasMins;
  static constexpr int kZero = kZeroPoint, kPart = kPartInputs, kGroupsOfBlock = 8;
  static constexpr int kHeadBytes = kHasMins ? 128 : 64;
  static constexpr int kScaleBytes = kGroup / kPart * kColumns * (kHasMins ? 2 : 1);

  static f32x16 scale(const uint8_t* head, const uint8_t* group, int part, int half) {
    return load_floats((const float16*)head + half * kLanes) *
           load_signed_bytes(group + part * kColumns + half * kLanes);
  }
  static f32x16 offset(const uint8_t* head, const uint8_t* group, int part, int half) {
    return load_floats((const float16*)head + kColumns + half * kLanes) *
           load_signed_bytes(group + (kGroup / kPart + part) * kColumns + half * kLanes) * -1.0f;
  }
};

template <class Form>
struct BlockTile {
  using Values = typename Form::Values;
  static constexpr int kParts = kGroup / Form::kPart, kQuads = Form::kPart / 4;
  static constexpr int64_t kGroupBytes = Form::kScaleBytes + Values::kBytes;
  static constexpr int64_t kBlockBytes = Form::kHeadBytes + Form::kGroupsOfBlock * kGroupBytes;
  static constexpr int64_t kFarAhead = 4 * kGroupBytes;  // one row is done with a group before the next has come
  static constexpr int64_t kLines = (kGroupBytes + 63) / 64;

  const uint8_t* weights;
  int64_t num_groups;

  int64_t num_bytes() const { return num_groups / Form::kGroupsOfBlock * kBlockBytes; }
  int64_t num_steps() const { return num_groups; }

  const uint8_t* head(int64_t g) const { return weights + g / Form::kGroupsOfBlock * kBlockBytes; }
  const uint8_t* group(int64_t g) const { return head(g) + Form::kHeadBytes + g % Form::kGroupsOfBlock * kGroupBytes; }

  // scale * (sum of (q - zero)) of a part.
  static f32x16 scaled_sum(const f32x16& scale, const i32x16& sum) {
    return scale * convert<f32x16>(sum - Form::kPart * Form::kZero);
  }

  f32x16 weight_sum(const f32x16& scale, const uint8_t* group, int part, int half) const {
    ByteSums<Values::kBits> sum;
    sum.start(i32x16{});
#pragma GCC unroll kUnrolled
    for (int quad = 0; quad < kQuads; quad++)
      sum.add(kOnes, Values::quad(group + Form::kScaleBytes, part * kQuads + quad, half));
    return scaled_sum(scale, sum.total());
  }

  // Add to sums[r][c] the products of rows first to first + R with the sixteen outputs of half `half` + c.
  template <int R, int C>
  void multiply(const BlockRows<Form::kPart>& rows, int64_t first, int half, const Ahead&, f32x16 (&sums)[R][C]) const {
    if (half == 0) return multiply_from<0>(rows, first, sums);
    if constexpr (C == 1) multiply_from<1>(rows, first, sums);  // the half as a constant needs no register
  }

  template <int kHalf, int R, int C>
  void multiply_from(const BlockRows<Form::kPart>& rows, int64_t first, f32x16 (&sums)[R][C]) const {
    const int64_t stride = rows.num_groups;
    for (int64_t g = 0; g < num_groups; g++) {
      const uint8_t *const head = this->head(g), *const group = this->group(g);
      const int64_t at = first * stride + g;
      for (int64_t line = 0; line < kLines; line++) __builtin_prefetch(group + kFarAhead + line * 64);
      for (int part = 0; part < kParts; part++) {
        ByteSums<Values::kBits> dots[R][C], own[C];
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
          const i32x16 start = Form::kZero ? splat(-Form::kZero * rows.byte_sums[(at + r * stride) * kParts + part]) : i32x16{};
          for (int c = 0; c < C; c++) dots[r][c].start(start);
        }
        for (int c = 0; c < C; c++) own[c].start(i32x16{});
#pragma GCC unroll kUnrolled
        for (int quad = 0; quad < kQuads; quad++) {
          u32x16 columns[C];
          for (int c = 0; c < C; c++) {
            columns[c] = Values::quad(group + Form::kScaleBytes, part * kQuads + quad, kHalf + c);
            own[c].add(kOnes, columns[c]);
          }
#pragma GCC unroll 6
          for (int r = 0; r < R; r++) {
            const int32_t a = rows.quads[(at + r * stride) * (kGroup / 4) + part * kQuads + quad];
            for (int c = 0; c < C; c++) dots[r][c].add(a, columns[c]);
          }
        }
        for (int c = 0; c < C; c++) {
          const f32x16 scale = Form::scale(head, group, part, kHalf + c);
          const f32x16 sum = scaled_sum(scale, own[c].total());
          f32x16 offset{};
          if constexpr (Form::kHasOffset) offset = Form::offset(head, group, part, kHalf + c);
#pragma GCC unroll 6
          for (int r = 0; r < R; r++) {
            const int64_t row = at + r * stride;
            add_scaled(dots[r][c].total(), scale, rows.scales[row], sums[r][c]);
            sums[r][c] += sum * rows.zeros[row];
            if constexpr (Form::kHasOffset) sums[r][c] += offset * rows.sums[row * kParts + part];
          }
        }
      }
    }
  }
};

// Some steps of a tile, with the values widened to bytes and the scales, weight sums and offsets in float32.
template <class Form>
struct WideBlocks {
  static constexpr int kParts = BlockTile<Form>::kParts, kQuads = BlockTile<Form>::kQuads;
  struct Part {
    u32x16 quads[kQuads][2];
    f32x16 scales[2], sums[2], offsets[2];
  };
  Part parts[kStepsAtOnce * kParts];

  WideBlocks(const BlockTile<Form>& tile, Steps steps) {
    for (int64_t g = steps.first; g < steps.end; g++)
      for (int part = 0; part < kParts; part++) {
        Part& wide = parts[(g - steps.first) * kParts + part];
        const uint8_t *head = tile.head(g), *group = tile.group(g);
        for (int half = 0; half < 2; half++) {
#pragma GCC unroll 8
          for (int quad = 0; quad < kQuads; quad++)
            wide.quads[quad][half] = Form::Values::quad(group + Form::kScaleBytes, part * kQuads + quad, half);
          wide.scales[half] = Form::scale(head, group, part, half);
          wide.sums[half] = tile.weight_sum(wide.scales[half], group, part, half);
          if constexpr (Form::kHasOffset) wide.offsets[half] = Form::offset(head, group, part, half);
        }
      }
  }
};

// Add to sums[r] the products of rows first to first + R with these steps.
template <int R, class Form>
void multiply(const WideBlocks<Form>& wide, Steps steps, const BlockRows<Form::kPart>& rows, int64_t first,
              const Ahead& ahead, f32x16 (*sums)[2]) {
  constexpr int kParts = WideBlocks<Form>::kParts, kQuads = WideBlocks<Form>::kQuads, C = kHalvesAtOnce<R>;
  for (int half = 0; half < 2; half += C) {
    f32x16 own[R][C];
    for (int r = 0; r < R; r++)
      for (int c = 0; c < C; c++) own[r][c] = sums[r][half + c];
    for (int64_t part = 0; part < (steps.end - steps.first) * kParts; part++) {
      const auto& columns = wide.parts[part];
      const int64_t g = steps.first + part / kParts, stride = rows.num_groups, at = first * stride + g;
      if (half == 0 && part % kParts == 0) ahead.fetch(g);
      ByteSums<Form::Values::kBits> dots[R][C];
#pragma GCC unroll 6
      for (int r = 0; r < R; r++) {
        const int64_t place = (at + r * stride) * kParts + part % kParts;
        const i32x16 start = Form::kZero ? splat(-Form::kZero * rows.byte_sums[place]) : i32x16{};
        for (int c = 0; c < C; c++) dots[r][c].start(start);
      }
      const int32_t* quads = &rows.quads[at * (kGroup / 4) + part % kParts * kQuads];
#pragma GCC unroll kUnrolled
      for (int quad = 0; quad < kQuads; quad++)
#pragma GCC unroll 6
        for (int r = 0; r < R; r++)
          for (int c = 0; c < C; c++)
            dots[r][c].add(quads[r * stride * (kGroup / 4) + quad], columns.quads[quad][half + c]);
#pragma GCC unroll 6
      for (int r = 0; r < R; r++) {
        const int64_t row = at + r * stride, place = row * kParts + part % kParts;
        for (int c = 0; c < C; c++) {
          add_scaled(dots[r][c].total(), columns.scales[half + c], rows.scales[row], own[r][c]);
          own[r][c] += columns.sums[half + c] * rows.zeros[row];
          if constexpr (Form::kHasOffset) own[r][c] += columns.offsets[half + c] * rows.sums[place];
        }
      }
    }
    for (int r = 0; r < R; r++)
      for (int c = 0; c < C; c++) sums[r][half + c] = own[r][c];
  }
}

template <class Form>
struct BlockWeights {
  using Rows = BlockRows<Form::kPart>;
  const uint8_t* packed;
  int64_t num_inputs;
  BlockTile<Form> tile(int64_t index) const {
    const int64_t num_groups = divide_up(num_inputs, kGroup);
    return {packed + index * (num_groups / Form::kGroupsOfBlock) * BlockTile<Form>::kBlockBytes, num_groups};
  }
};

using Q2K = TwoLevels<Values<2>, 16, true>;
using Q3K = TwoLevels<Values<2, 1>, 16, false, 4>;
using Q4K = TwoLevels<Values<4>, 32, true>;
using Q5K = TwoLevels<Values<4, 1>, 32, true>;
using Q6K = TwoLevels<Values<4, 2>, 16, false, 32>;
using IQ4XS = TwoLevels<TableValues, 32, false, 128>;
using IQ4NL = OneLevel<TableValues, false, 128>;
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
         is("IQ4_XS", IQ4XS{}) || is("IQ4_NL", IQ4NL{}) || is("grid of 4 bits times bytes", Grid4{}) ||
         is("grid of 5 bits times bytes", Grid5{}) || is("Q4_0", Q40{}) || is("Q5_0", Q50{}) || is("Q8_0", Q80{});
}

}  // namespace caravan
