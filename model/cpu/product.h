// The product of rows with one packed weight. Each kind of weights has a build of its own: linear.cpp and
// linear_blocks.cpp name them, and are compiled side by side.
//
// The bits of a row of the result depend on that row and the weights alone: each element is one sum over the inputs in
// their order, whatever the number of rows, threads and tiles.
#pragma once

#include <type_traits>

#include "block_tiles.h"
#include "linear_tiles.h"

namespace caravan {

constexpr int64_t kRowsOfUnit = 96;  // rows of a thread's unit of work

// Rows of numbers in bfloat16 or float32.
struct Output {
  uint8_t* bytes;
  int64_t stride;  // numbers from one row to the next
  bool is_float;

  [[gnu::always_inline]] void store(int64_t row, int64_t column, const f32x16& y, int64_t count) const {
    const int64_t at = row * stride + column;
    if (is_float)
      store_floats((float*)bytes + at, y, count);
    else
      store_floats((bf16*)bytes + at, y, count);
  }
};

// y = f(x) W^T + bias + residual, for num_outputs columns of y.
struct Operands {
  InputStep input;  // f
  const bf16* x;
  int64_t x_stride, num_rows, num_inputs, num_outputs;
  const bf16* bias;      // or null
  const bf16* residual;  // or null; its rows are as far apart as those of the output
  Output out;
};

// Call f with the number of rows, 1 to kRowsAtOnce, as a constant.
template <int R, class F>
void with_constant(int64_t num_rows, const F& f) {
  if (num_rows == R)
    f(std::integral_constant<int, R>{});
  else if constexpr (R > 1)
    with_constant<R - 1>(num_rows, f);
}

template <class Weights>
class Product {
 public:
  Product(const Weights& weights, const Operands& operands)
      : weights_(weights),
        operands_(operands),
        rows_(operands.num_rows, operands.num_inputs),
        is_tiled_(uses_tiles<typename Weights::Rows>(operands.num_rows)) {}

  void run() {
    const int64_t num_rows = operands_.num_rows, num_threads = num_threads_here();
    const int64_t num_tiles = divide_up(operands_.num_outputs, kColumns);
    if (is_tiled_ && num_rows >= 2 * kTiledRows * num_threads) {  // each thread has rows of its own, in its own cache
      const int64_t num_rounds = divide_up(num_rows, kOwnRows * num_threads);
      const int64_t num_own = divide_up(num_rows, num_rounds * num_threads * kTiledRows) * kTiledRows;
      share_out(divide_up(num_rows, num_own), [&](int64_t unit) {
        const int64_t begin = unit * num_own, end = std::min(begin + num_own, num_rows);
        for (int64_t row = begin; row < end; row++) prepare(row);
        for (int64_t index = 0; index < num_tiles; index++) multiply(index, begin, end, true);
      });
      return;
    }
    if (num_rows <= 2)
      for (int64_t row = 0; row < num_rows; row++) prepare(row);
    else
      share_out(num_rows, [&](int64_t row) { prepare(row); });
    const int64_t rows_of_unit = is_tiled_ ? 4 * kTiledRows : kRowsOfUnit, num_chunks = divide_up(num_rows, rows_of_unit);
    share_out(num_tiles * num_chunks, [&](int64_t unit) {
      const int64_t begin = unit % num_chunks * rows_of_unit, end = std::min(begin + rows_of_unit, num_rows);
      multiply(unit / num_chunks, begin, end, end == num_rows);
    });
  }

 private:
  void prepare(int64_t row) {
    std::unique_ptr<float[]> numbers(new float[divide_up(operands_.num_inputs, kByteGroup) * kByteGroup]);
    prepare_row(operands_.input, operands_.x + row * operands_.x_stride, operands_.num_inputs, numbers.get());
    rows_.set(row, numbers.get());
  }

  // Rows begin to end times the tile of weights of that index. If it is not wanted again, the next one is fetched.
  void multiply(int64_t index, int64_t begin, int64_t end, bool is_last) {
    const int64_t num_passes = divide_up(end - begin, is_tiled_ ? kTiledRows : kRowsAtOnce);
    const auto tile = weights_.tile(index);
    Ahead ahead{tile.weights + tile.num_bytes(), 0};
    if (is_last && (is_tiled_ || num_passes > 1))  // without tiles one pass is over before it could help
      ahead.lines_at_once = divide_up(tile.num_bytes(), 64 * num_passes * tile.num_steps());
    if constexpr (Weights::Rows::kGoInTiles) {
      if (is_tiled_) {
        multiply_in_tiles(tile, rows_, begin, end, ahead, [&](int64_t first, int64_t count, const f32x16(*sums)[2]) {
          for (int64_t r = 0; r < count; r++)
            for (int half = 0; half < 2; half++) finish(first + r, index * kColumns + half * kLanes, sums[r][half]);
        });
        return;
      }
    }
    const int64_t step = divide_up(end - begin, num_passes);  // 8 rows are 4 and 4, not 6 and 2
    if constexpr (requires { multiply_wide(tile, index, begin, end, step, ahead); }) {
      if (num_passes > 1) return multiply_wide(tile, index, begin, end, step, ahead);
    }
    for (int64_t first = begin; first < end; first += step) {
      with_constant<kRowsAtOnce>(std::min(step, end - first), [&](auto constant) {
        constexpr int R = decltype(constant)::value;
        constexpr int C = kHalvesAtOnce<R>;
        for (int half = 0; half < 2; half += C) {
          f32x16 sums[R][C] = {};
          tile.template multiply<R, C>(rows_, first, half, half == 0 ? ahead : Ahead{}, sums);
          for (int r = 0; r < R; r++)
            for (int c = 0; c < C; c++) finish(first + r, index * kColumns + (half + c) * kLanes, sums[r][c]);
        }
      });
      ahead.bytes += ahead.lines_at_once * 64 * tile.num_steps();
    }
  }

  // Many rows times a tile in blocks: some steps of it are widened to bytes, which all rows are multiplied with.
  template <class Form>
  void multiply_wide(const BlockTile<Form>& tile, int64_t index, int64_t begin, int64_t end, int64_t step, Ahead ahead) {
    f32x16 sums[kRowsOfUnit][2];
    for (int64_t r = 0; r < end - begin; r++) sums[r][0] = sums[r][1] = f32x16{};
    for (int64_t first_step = 0; first_step < tile.num_steps(); first_step += kStepsAtOnce) {
      const Steps steps{first_step, std::min(first_step + kStepsAtOnce, tile.num_steps())};
      const WideBlocks<Form> wide(tile, steps);
      Ahead part = ahead;
      for (int64_t first = begin; first < end; first += step, part.bytes += part.lines_at_once * 64 * tile.num_steps())
        with_constant<kRowsAtOnce>(std::min(step, end - first), [&](auto constant) {
          caravan::multiply<decltype(constant)::value>(wide, steps, rows_, first, part, sums + first - begin);
        });
    }
    for (int64_t r = 0; r < end - begin; r++)
      for (int half = 0; half < 2; half++) finish(begin + r, index * kColumns + half * kLanes, sums[r][half]);
  }

  [[gnu::always_inline]] void finish(int64_t row, int64_t column, f32x16 y) {
    const int64_t count = std::min(kLanes, operands_.num_outputs - column);
    if (count <= 0) return;
    if (operands_.bias) y += load_floats(operands_.bias + column, count);
    if (operands_.residual) y += load_floats(operands_.residual + row * operands_.out.stride + column, count);
    operands_.out.store(row, column, y, count);
  }

  const Weights weights_;
  const Operands operands_;
  typename Weights::Rows rows_;
  const bool is_tiled_;
};

template <class Weights>
void multiply(const Weights& weights, const Operands& operands) {
  Product<Weights>(weights, operands).run();
}

}  // namespace caravan
