// How many operations a second all threads together make with nothing but the kernels' own products, all in registers.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <chrono>

#include "linear_tiles.h"

namespace caravan {
namespace {

constexpr int64_t kNumSteps = 1 << 20;

// Whatever v was, the compiler must take it for something else now.
template <class V>
inline void change(V& v) {
  if constexpr (kIsHalves<V>) {
    change(v.low);
    change(v.high);
  } else {
#if defined(__x86_64__)
    asm volatile("" : "+x"(v));
#else
    asm volatile("" : "+w"(v));
#endif
  }
}

template <class Factor, class Sum>
double operations_per_second() {
  constexpr int kNumSums = kHasWideRegisters ? 12 : 5;  // enough to hide the latency of each
  const int64_t num_threads = at::get_num_threads();
  const auto began = std::chrono::steady_clock::now();
  at::parallel_for(0, num_threads, 1, [&](int64_t, int64_t) {
    auto factor = Factor{}.parts[0];
    asm volatile("" : "+m"(factor));  // products with a known zero would be none
    auto column = part_of<0>(Factor{}, u32x16{});
    Sum sums[kNumSums] = {};
    for (int64_t step = 0; step < kNumSteps; step++) {
#pragma GCC unroll 12
      for (int i = 0; i < kNumSums; i++) {
        change(column);  // or one product would do for all
        sums[i] = dot(sums[i], factor, column);
      }
    }
#pragma GCC unroll 12
    for (int i = 0; i < kNumSums; i++) change(sums[i]);
  });
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  const int num_products = (std::is_same_v<Factor, Pair> ? 2 : 4) / Factor::kParts;  // of a lane
  return 2.0 * num_products * kLanes * kNumSums * kNumSteps * num_threads / seconds;
}

// The same in tiles, which come from the nearest cache.
template <class Factor>
double tiled_operations_per_second() {
  const int64_t num_threads = at::get_num_threads(), num_steps = kNumSteps / 8;
  const auto began = std::chrono::steady_clock::now();
  at::parallel_for(0, num_threads, 1, [&](int64_t, int64_t) {
    alignas(64) const uint8_t rows[kTiledRows][64] = {}, weights[16][128] = {};
    TileSums sums;
    sums.begin(kTiledRows, sizeof rows[0]);
    for (int64_t step = 0; step < num_steps; step++) sums.add<Factor>(rows, sizeof rows[0], weights);
  });
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  return 2.0 * kTiledRows * kColumns * (std::is_same_v<Factor, Pair> ? 32 : 64) * num_steps * num_threads / seconds;
}

template <class Factor, class Sum, class Rows>
double best() {
  const double untiled = operations_per_second<Factor, Sum>();
  return uses_tiles<Rows>(kTiledRows) ? std::max(untiled, tiled_operations_per_second<Factor>()) : untiled;
}

double peak(bool of_bytes) { return of_bytes ? best<Quad, i32x16, ByteRows>() : best<Pair, f32x16, BFloat16Rows>(); }

}  // namespace

TORCH_LIBRARY_FRAGMENT(caravan_peak, m) { m.def("peak(bool of_bytes) -> float", peak); }

}  // namespace caravan
