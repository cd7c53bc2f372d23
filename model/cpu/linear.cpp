// Linear layers over packed weights: bfloat16, 8 bits, or 8 or 4 bits on a grid.
//
// The bits of a row of the result depend on that row and the weights alone: each element is one sum over the inputs in
// their order, whatever the number of rows, threads and tiles.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <type_traits>

#include "kernels.h"
#include "linear_tiles.h"

namespace caravan {
namespace {

constexpr int64_t kRowsOfUnit = 96;  // rows of a thread's unit of work

// Call f with the number of rows, 1 to kRowsAtOnce, as a constant.
template <int R, class F>
void with_constant(int64_t num_rows, const F& f) {
  if (num_rows == R)
    f(std::integral_constant<int, R>{});
  else if constexpr (R > 1)
    with_constant<R - 1>(num_rows, f);
}

template <class Weights, class Out>
class Product {
 public:
  Product(const Weights& weights, const InputStep& input, const bf16* x, int64_t x_stride, int64_t num_rows,
          int64_t num_outputs, const bf16* bias, const bf16* residual, Out* out)
      : weights_(weights), input_(input), x_(x), x_stride_(x_stride), num_rows_(num_rows), num_outputs_(num_outputs),
        bias_(bias), residual_(residual), out_(out), rows_(num_rows, weights.num_inputs),
        is_tiled_(uses_tiles<typename Weights::Rows>(num_rows)) {}

  void run() {
    const int64_t num_tiles = divide_up(num_outputs_, kColumns), num_threads = at::get_num_threads();
    if (is_tiled_ && num_rows_ >= 2 * kTiledRows * num_threads) {  // each thread has rows of its own, in its own cache
      const int64_t num_rounds = divide_up(num_rows_, kOwnRows * num_threads);
      const int64_t num_own = divide_up(num_rows_, num_rounds * num_threads * kTiledRows) * kTiledRows;
      share_out(divide_up(num_rows_, num_own), [&](int64_t unit) {
        const int64_t begin = unit * num_own, end = std::min(begin + num_own, num_rows_);
        for (int64_t row = begin; row < end; row++) prepare(row);
        for (int64_t index = 0; index < num_tiles; index++) multiply(index, begin, end, true);
      });
      return;
    }
    if (num_rows_ <= 2)
      for (int64_t row = 0; row < num_rows_; row++) prepare(row);
    else
      share_out(num_rows_, [&](int64_t row) { prepare(row); });
    const int64_t rows_of_unit = is_tiled_ ? 4 * kTiledRows : kRowsOfUnit, num_chunks = divide_up(num_rows_, rows_of_unit);
    share_out(num_tiles * num_chunks, [&](int64_t unit) {
      const int64_t begin = unit % num_chunks * rows_of_unit, end = std::min(begin + rows_of_unit, num_rows_);
      multiply(unit / num_chunks, begin, end, end == num_rows_);
    });
  }

 private:
  void prepare(int64_t row) {
    std::unique_ptr<float[]> numbers(new float[divide_up(weights_.num_inputs, kByteGroup) * kByteGroup]);
    prepare_row(input_, x_ + row * x_stride_, weights_.num_inputs, numbers.get());
    rows_.set(row, numbers.get());
  }

  // Rows begin to end times the tile of weights of that index. If it is not wanted again, the next one is fetched.
  void multiply(int64_t index, int64_t begin, int64_t end, bool is_last) {
    const auto tile = weights_.tile(index);
    const int64_t num_passes = divide_up(end - begin, is_tiled_ ? kTiledRows : kRowsAtOnce);
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

  __attribute__((always_inline)) void finish(int64_t row, int64_t column, f32x16 y) {
    const int64_t at = row * num_outputs_ + column, count = std::min(kLanes, num_outputs_ - column);
    if (count <= 0) return;
    if (bias_) y += load_floats(bias_ + column, count);
    if (residual_) y += load_floats(residual_ + at, count);
    store_floats(out_ + at, y, count);
  }

  const Weights weights_;
  const InputStep input_;
  const bf16* const x_;
  const int64_t x_stride_, num_rows_, num_outputs_;
  const bf16 *const bias_, *const residual_;
  Out* const out_;
  typename Weights::Rows rows_;
  const bool is_tiled_;
};

const bf16* pointer(const OptionalTensor& tensor) {
  return tensor ? (const bf16*)tensor->const_data_ptr<at::BFloat16>() : nullptr;
}

}  // namespace

at::Tensor linear(const at::Tensor& x, const at::Tensor& packed, c10::string_view format, int64_t num_outputs,
                  c10::string_view input, const OptionalTensor& norm_weight, double eps, const OptionalTensor& bias,
                  const OptionalTensor& residual, bool float_out) {
  const Input kind = input == "rms_norm" ? Input::kRmsNorm : input == "swiglu" ? Input::kSwiGlu : Input::kPlain;
  const int64_t num_rows = x.size(0), num_inputs = x.size(1) / (kind == Input::kSwiGlu ? 2 : 1);
  const InputStep input_step{kind, pointer(norm_weight), (float)eps};
  at::Tensor out = at::empty({num_rows, num_outputs}, x.options().dtype(float_out ? at::kFloat : at::kBFloat16));
  auto with = [&](auto weights) {
    auto into = [&](auto* y) {
      Product<decltype(weights), std::remove_pointer_t<decltype(y)>>(
          weights, input_step, (const bf16*)x.const_data_ptr<at::BFloat16>(), x.stride(0), num_rows, num_outputs,
          pointer(bias), pointer(residual), y)
          .run();
    };
    if (float_out)
      into(out.mutable_data_ptr<float>());
    else
      into((bf16*)out.mutable_data_ptr<at::BFloat16>());
  };
  const uint8_t* bytes = (const uint8_t*)packed.const_data_ptr();
  if (format == "bfloat16")
    with(BFloat16Weights{bytes, num_inputs});
  else if (format == "int8")
    with(ByteWeights{bytes, num_inputs});
  else if (format == "grid of 8 bits")
    with(GridWeights<8>{bytes, num_inputs});
  else if (format == "grid of 4 bits")
    with(GridWeights<4>{bytes, num_inputs});
  else if (format == "grid of 4 bits times bytes")
    with(NibbleWeights{bytes, num_inputs});
  else
    TORCH_CHECK_VALUE(false, "there is no format ", format);
  return out;
}

TORCH_LIBRARY_FRAGMENT(CARAVAN_LIBRARY, m) {
  m.def(
      "linear(Tensor x, Tensor packed, str format, int num_outputs, str input, Tensor? norm_weight, float eps, "
      "Tensor? bias, Tensor? residual, bool float_out) -> Tensor",
      linear);
  m.def("has_byte_products() -> bool", [] { return kHasByteProducts; });
}

}  // namespace caravan
