// Numbers rounded to whole multiples of a scale.
#pragma once

#include "vector.h"

namespace caravan {

// The largest magnitude of `count` numbers; not finite if one of them is not.
// As integers the magnitudes have the order of the numbers, with infinity and NaN above them.
template <class E>
inline float largest_of(const E* x, int64_t count) {
  u32x16 largest = {};
  for (int64_t i = 0; i < count; i += kLanes) {
    const u32x16 bits = (u32x16)load_floats(x + i, std::min(kLanes, count - i)) & 0x7fffffff;
    largest = select(bits > largest, bits, largest);
  }
  const uint32_t bits = maximum_of(largest);
  float magnitude;
  std::memcpy(&magnitude, &bits, sizeof magnitude);
  return magnitude;
}

struct Range {
  float least, largest;
  float nothing;  // 0, or NaN if one of the numbers is not finite
};

// The least and the largest of `count` numbers, at most 32.
inline Range range_of(const float* x, int64_t count) {
  Range range{x[0], x[0], 0};
  for (int64_t i = 0; i < count; i++) {
    range.least = std::min(range.least, x[i]);
    range.largest = std::max(range.largest, x[i]);
    range.nothing += x[i] - x[i];
  }
  return range;
}

inline float inverse_of(float largest, float num_steps) { return largest > 0 ? num_steps / largest : 0.0f; }

// To the nearest whole number, ties to even; magnitudes below 2^22.
inline i32x16 round_to_whole(f32x16 x) { return (i32x16)(x + 12582912.0f) - 0x4b400000; }

// Whole numbers of 15 bits as 128 * high + low, each of them a signed byte.
constexpr float kNumFineSteps = 127 * 128;

inline void split_in_bytes(i32x16 whole, i8x16& high, i8x16& low) {
  const i32x16 upper = (whole + 64) >> 7;
  high = convert<i8x16>(upper);
  low = convert<i8x16>(whole - (upper << 7));
}

}  // namespace caravan
