// The rows of a linear layer's input on their way to the product: a norm, SwiGLU or GEGLU, then the numbers it multiplies in.
#pragma once

#include <memory>
#include <utility>

#include "bytes.h"
#include "threads.h"
#include "vector.h"

namespace caravan {

constexpr int64_t kGroup = 32;      // inputs that share a place on a grid
constexpr int64_t kByteGroup = 64;  // inputs that share a scale in 8 bits

// What happens to a row before the product.
enum class Input { kPlain, kRmsNorm, kSwiGlu, kGeGlu };

struct InputStep {
  Input kind;
  NormWeight norm_weight;  // of kRmsNorm
  float eps;
};

// One row ready for the product: `row` has num_inputs numbers, `out` room for a whole number of the longer groups.
inline void prepare_row(const InputStep& step, const bf16* row, int64_t num_inputs, float* out) {
  const int64_t num_whole = num_inputs / kLanes * kLanes, rest = num_inputs - num_whole;
  auto each = [&](auto value) {  // value(i, count) are the numbers from i on
    for (int64_t i = 0; i < num_whole; i += kLanes) store(out + i, value(i, kLanes));
    if (rest) store(out + num_whole, value(num_whole, rest));
  };
  for (int64_t i = num_whole; i < divide_up(num_inputs, kByteGroup) * kByteGroup; i++) out[i] = 0;
  switch (step.kind) {
    case Input::kPlain:
      each([&](int64_t i, int64_t count) { return load_floats(row + i, count); });
      break;
    case Input::kRmsNorm: {
      const float scale = rms_scale(row, num_inputs, step.eps);
      each([&](int64_t i, int64_t count) {
        return load_floats(row + i, count) * scale * step.norm_weight.load(i, count);
      });
      break;
    }
    case Input::kSwiGlu:  // gate, then up
      each([&](int64_t i, int64_t count) {
        f32x16 gate = load_floats(row + i, count), up = load_floats(row + num_inputs + i, count);
        return gate / (1.0f + exp2(-kLog2E * gate)) * up;
      });
      break;
    case Input::kGeGlu:  // the same; x (1 + tanh u) / 2 is x / (1 + exp(-2 u)). Source: arXiv:1606.08415, section 2
      each([&](int64_t i, int64_t count) {
        f32x16 gate = load_floats(row + i, count), up = load_floats(row + num_inputs + i, count);
        f32x16 u = 0.797884561f * (gate + 0.044715f * gate * gate * gate);
        return gate / (1.0f + exp2(-2 * kLog2E * u)) * up;
      });
  }
}

// Rows in bfloat16, for weights in bfloat16. They are an odd number of cache lines apart, so that those of many rows do
// not all want the same places in a cache.
struct BFloat16Rows {
  static constexpr bool kGoInTiles = true;
  int64_t num_pairs, stride;
  Lines<Pair> pairs;

  BFloat16Rows(int64_t num_rows, int64_t num_inputs)
      : num_pairs(divide_up(num_inputs, kGroup) * kGroup / 2),
        stride(num_pairs / (kGroup / 2) % 2 ? num_pairs : num_pairs + kGroup / 2),
        pairs(lines_of<Pair>(num_rows * stride)) {}

  void set(int64_t row, const float* numbers) {
    for (int64_t i = 0; i < num_pairs; i += kLanes / 2) {
      bf16 rounded[kLanes];
      store_floats(rounded, load_floats(numbers + 2 * i));
      for (int64_t j = 0; j < kLanes / 2; j++) pairs[row * stride + i + j] = pair_of(load<uint32_t>(rounded + 2 * j));
    }
  }
};

// Rows in bfloat16, for weights on a grid; of each four numbers the second and the third change places.
struct GridRows {
  static constexpr bool kGoInTiles = true;
  int64_t num_pairs, num_groups;
  Lines<Pair> pairs;
  std::unique_ptr<float[]> sums;  // [row][group]

  GridRows(int64_t num_rows, int64_t num_inputs)
      : num_pairs(divide_up(num_inputs, kGroup) * kGroup / 2),
        num_groups(2 * num_pairs / kGroup),
        pairs(lines_of<Pair>(num_rows * num_pairs)),
        sums(new float[num_rows * num_groups]) {}

  void set(int64_t row, const float* numbers) {
    for (int64_t group = 0; group < num_groups; group++) {
      f32x16 sum = {};
      for (int64_t i = group * kGroup; i < (group + 1) * kGroup; i += kLanes) {
        bf16 rounded[kLanes];
        store_floats(rounded, load_floats(numbers + i));
        sum += load_floats(rounded);
        Pair* out = &pairs[row * num_pairs + i / 2];
        for (int quad = 0; quad < kLanes; quad += 4) {
          const uint32_t first = load<uint32_t>(rounded + quad), second = load<uint32_t>(rounded + quad + 2);
          *out++ = pair_of((first & 0xffff) | second << 16);
          *out++ = pair_of(first >> 16 | (second & 0xffff0000));
        }
      }
      sums[row * num_groups + group] = sum_of(sum);
    }
  }
};

// Round a group of numbers to bytes times a scale: return the scale and the sum of the bytes.
// A number that is not finite makes its scale such a number, and so the whole row of the result.
template <int64_t kCount>
inline std::pair<float, int32_t> round_to_bytes(const float* from, int8_t (&bytes)[kCount]) {
  const float largest = largest_of(from, kCount), inverse = inverse_of(largest, 127);
  i32x16 sum = {};
  for (int64_t i = 0; i < kCount; i += kLanes) {
    const i32x16 whole = round_to_whole(load_floats(from + i) * inverse);
    store(bytes + i, convert<i8x16>(whole));
    sum += whole;
  }
  return {largest / 127.0f, sum_of(sum)};
}

// Rows in 8 bits with a scale for each group, for weights in 8 bits.
struct ByteRows {
  static constexpr bool kGoInTiles = true;
  int64_t num_groups;
  Lines<Quad> quads;
  std::unique_ptr<float[]> scales;    // [row][group]
  std::unique_ptr<int32_t[]> starts;  // [row][group]: -128 times the sum of the values

  ByteRows(int64_t num_rows, int64_t num_inputs)
      : num_groups(divide_up(num_inputs, kByteGroup)),
        quads(lines_of<Quad>(num_rows * num_groups * kByteGroup / 4)),
        scales(new float[num_rows * num_groups]),
        starts(new int32_t[num_rows * num_groups]) {}

  void set(int64_t row, const float* numbers) {
    for (int64_t group = 0; group < num_groups; group++) {
      const int64_t at = row * num_groups + group;
      int8_t bytes[kByteGroup];
      const auto [scale, sum] = round_to_bytes(numbers + group * kByteGroup, bytes);
      for (int64_t i = 0; i < kByteGroup / 4; i++) quads[at * kByteGroup / 4 + i] = quad_of(load<uint32_t>(bytes + 4 * i));
      scales[at] = scale;
      starts[at] = -128 * sum;
    }
  }
};

// Rows in 8 bits, for weights in blocks: for each group of 32 the bytes b, a scale a and a zero t, so that a number is
// a * b + t. The bytes span from the least number of the group to the largest. With the zero their error is half of
// that without: a group of activations is seldom even about 0.
template <int kPart>  // inputs whose sums are wanted
struct BlockRows {
  static constexpr bool kGoInTiles = false;  // sums of 32 inputs are too short for them
  static constexpr int kParts = kGroup / kPart;
  int64_t num_inputs, num_groups;
  Lines<int32_t> quads;                  // [row][group][8], four bytes each
  std::unique_ptr<float[]> scales;       // [row][group]
  std::unique_ptr<float[]> zeros;        // [row][group]
  std::unique_ptr<float[]> sums;         // [row][group][part]: of the rounded numbers
  std::unique_ptr<int32_t[]> byte_sums;  // [row][group][part]

  BlockRows(int64_t num_rows, int64_t num_inputs)
      : num_inputs(num_inputs),
        num_groups(divide_up(num_inputs, kGroup)),
        quads(lines_of<int32_t>(num_rows * num_groups * kGroup / 4)),
        scales(new float[num_rows * num_groups]),
        zeros(new float[num_rows * num_groups]),
        sums(new float[num_rows * num_groups * kParts]),
        byte_sums(new int32_t[num_rows * num_groups * kParts]) {}

  void set(int64_t row, const float* numbers) {
    for (int64_t group = 0; group < num_groups; group++) {
      const int64_t at = row * num_groups + group, count = std::min(kGroup, num_inputs - group * kGroup);
      const float* from = numbers + group * kGroup;
      const auto [least, largest, nothing] = range_of(from, count);
      const float half = largest / 2 - least / 2 + nothing, zero = largest / 2 + least / 2 + nothing;
      const float inverse = inverse_of(half, 127);
      int8_t bytes[kGroup] = {};  // those past the last input stay 0, and are in no sum
      for (int64_t i = 0; i < kGroup; i += kLanes) {
        const int64_t some = std::clamp<int64_t>(count - i, 0, kLanes);
        const i8x16 rounded = convert<i8x16>(round_to_whole((load_floats(from + i) - zero) * inverse));
        std::memcpy(bytes + i, &rounded, some);
      }
      std::memcpy(&quads[at * kGroup / 4], bytes, kGroup);
      scales[at] = half / 127;
      zeros[at] = zero;
      for (int64_t part = 0; part < kParts; part++) {
        int32_t sum = 0;
        for (int i = 0; i < kPart; i++) sum += bytes[part * kPart + i];
        const int64_t num_summed = std::clamp<int64_t>(count - part * kPart, 0, kPart);
        byte_sums[at * kParts + part] = sum;
        sums[at * kParts + part] = half / 127 * (float)sum + zero * (float)num_summed;
      }
    }
  }
};

}  // namespace caravan
