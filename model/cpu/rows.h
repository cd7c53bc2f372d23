// The rows of a linear layer's input on their way to the product: a norm or SwiGLU, then the numbers it multiplies in.
#pragma once

#include <memory>
#include <utility>

#include "bytes.h"
#include "threads.h"
#include "vector.h"

namespace caravan {

constexpr int64_t kGroup = 32;         // inputs of a row that share a scale or a sum
constexpr int64_t kLongestGroup = 64;  // inputs of a weight that share one

// What happens to a row before the product.
enum class Input { kPlain, kRmsNorm, kSwiGlu };

struct InputStep {
  Input kind;
  const bf16* norm_weight;  // of kRmsNorm
  float eps;
};

// One row ready for the product: `row` has num_inputs numbers, `out` room for a whole number of the longest groups.
inline void prepare_row(const InputStep& step, const bf16* row, int64_t num_inputs, float* out) {
  const int64_t num_whole = num_inputs / kLanes * kLanes, rest = num_inputs - num_whole;
  auto each = [&](auto value) {  // value(i, count) are the numbers from i on
    for (int64_t i = 0; i < num_whole; i += kLanes) store(out + i, value(i, kLanes));
    if (rest) store(out + num_whole, value(num_whole, rest));
  };
  for (int64_t i = num_whole; i < divide_up(num_inputs, kLongestGroup) * kLongestGroup; i++) out[i] = 0;
  switch (step.kind) {
    case Input::kPlain:
      each([&](int64_t i, int64_t count) { return load_floats(row + i, count); });
      break;
    case Input::kRmsNorm: {
      const float scale = rms_scale(row, num_inputs, step.eps);
      each([&](int64_t i, int64_t count) {
        return load_floats(row + i, count) * scale * load_floats(step.norm_weight + i, count);
      });
      break;
    }
    case Input::kSwiGlu:  // gate, then up
      each([&](int64_t i, int64_t count) {
        f32x16 gate = load_floats(row + i, count), up = load_floats(row + num_inputs + i, count);
        return gate / (1.0f + exp2(-kLog2E * gate)) * up;
      });
  }
}

// Rows in bfloat16, for weights in bfloat16.
struct BFloat16Rows {
  int64_t width;
  std::unique_ptr<bf16[]> values;

  BFloat16Rows(int64_t num_rows, int64_t num_inputs)
      : width(divide_up(num_inputs, kGroup) * kGroup), values(new bf16[num_rows * width]) {}

  void set(int64_t row, const float* numbers) {
    for (int64_t i = 0; i < width; i += kLanes) store_floats(&values[row * width + i], load_floats(numbers + i));
  }
};

// Rows in bfloat16, for weights on a grid; of each four numbers the second and the third change places.
struct GridRows {
  int64_t width, num_groups;
  std::unique_ptr<bf16[]> values;
  std::unique_ptr<float[]> sums;  // [row][group]

  GridRows(int64_t num_rows, int64_t num_inputs)
      : width(divide_up(num_inputs, kGroup) * kGroup),
        num_groups(width / kGroup),
        values(new bf16[num_rows * width]),
        sums(new float[num_rows * num_groups]) {}

  void set(int64_t row, const float* numbers) {
    for (int64_t group = 0; group < num_groups; group++) {
      f32x16 sum = {};
      for (int64_t i = group * kGroup; i < (group + 1) * kGroup; i += kLanes) {
        bf16 rounded[kLanes];
        store_floats(rounded, load_floats(numbers + i));
        sum += load_floats(rounded);
        u16x16 ordered = load<u16x16>(rounded);
        for (int quad = 0; quad < kLanes; quad += 4) std::swap(ordered[quad + 1], ordered[quad + 2]);
        store(&values[row * width + i], ordered);
      }
      sums[row * num_groups + group] = sum_of(sum);
    }
  }
};

// Rows in 8 bits with a scale for each group, for weights in 8 bits.
// A number that is not finite makes its scale such a number, and so the whole row of the result.
struct ByteRows {
  int64_t width, num_groups;
  std::unique_ptr<int8_t[]> values;
  std::unique_ptr<float[]> scales;    // [row][group]
  std::unique_ptr<int32_t[]> starts;  // [row][group]: -128 times the sum of the values

  ByteRows(int64_t num_rows, int64_t num_inputs)
      : width(divide_up(num_inputs, kLongestGroup) * kLongestGroup),
        num_groups(width / kGroup),
        values(new int8_t[num_rows * width]),
        scales(new float[num_rows * num_groups]),
        starts(new int32_t[num_rows * num_groups]) {}

  void set(int64_t row, const float* numbers) {
    for (int64_t group = 0; group < num_groups; group++) {
      const float* from = numbers + group * kGroup;
      int8_t* to = &values[row * width + group * kGroup];
      const float largest = largest_of(from, kGroup), inverse = inverse_of(largest, 127);
      const i32x16 low_values = round_to_whole(load_floats(from) * inverse);
      const i32x16 high_values = round_to_whole(load_floats(from + kLanes) * inverse);
      store(to, __builtin_convertvector(low_values, i8x16));
      store(to + kLanes, __builtin_convertvector(high_values, i8x16));
      scales[row * num_groups + group] = largest / 127.0f;
      starts[row * num_groups + group] = -128 * sum_of(low_values + high_values);
    }
  }
};

}  // namespace caravan
