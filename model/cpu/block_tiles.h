// The products of weights in blocks with rows in bytes.
//
// A weight is scale * (q - zero) + offset, as block_forms.h has it. For each group of 32 inputs a row is rounded to bytes:
// x = a * b + t. So the share of a sum of a part, whose weights have one scale, is
//   a * scale * (sum of (q - zero) * b)  +  t * scale * (sum of (q - zero))  +  offset * (sum of x),
// where the sums of q and b are whole numbers, exact in any order.
#pragma once

#include "block_forms.h"

namespace caravan {

constexpr int32_t kOnes = 0x01010101;  // four bytes of one: with them a product is a sum

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

}  // namespace caravan
