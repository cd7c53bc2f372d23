// Paged attention in place: queries against keys and values where they lie, in the pages of pages.h.
//
// The context is summed up in splits of 256 tokens, each a softmax of its own, joined in their order. What a query may
// not see adds exact zeros. So the bits of a row depend on nothing else in the call.
// Sources: PagedAttention (arXiv:2309.06180), section 4; FlashAttention (arXiv:2205.14135), section 3.1;
// FlashAttention-2 (arXiv:2307.08691), section 3.2 for work split over the context.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>
#include <limits>
#include <memory>
#include <type_traits>
#include <vector>

#include "kernels.h"
#include "pages.h"
#include "threads.h"
#include "vector.h"

namespace caravan {
namespace {

constexpr int64_t kSplit = 256;    // tokens of one softmax
constexpr int64_t kUnitRows = 48;  // query rows, token by head, of one unit of work
constexpr int kRows = kHasManyRegisters ? 6 : 2;     // rows that share each load of keys or values
constexpr int kColumns = kHasManyRegisters ? 4 : 2;  // tiles, or groups of 16 head dimensions, side by side
constexpr float kNothing = -std::numeric_limits<float>::infinity();

// sums[r][c] += the first num_steps steps of row r times those of column group c.
template <class E, int R, int C>
inline void multiply(const E* const (&rows)[R], const E* const (&columns)[C], int64_t stride, int64_t num_steps,
                     f32x16 (&sums)[R][C]) {
  using S = Step<E>;
  for (int64_t step = 0; step < num_steps; step++) {
    typename S::Lanes lanes[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) lanes[c] = load<typename S::Lanes>(columns[c] + step * stride);
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
      const auto scalar = load<typename S::Scalar>(rows[r] + step * S::kWidth);
#pragma GCC unroll 4
      for (int c = 0; c < C; c++) sums[r][c] = dot(sums[r][c], scalar, lanes[c]);
    }
  }
}

// Softmax over part of the context: `sum` and `output` are relative to `maximum`, in units of the scores.
struct Partial {
  float maximum = kNothing, sum = 0;
  float* output;  // [head_dim, rounded up to 16]

  // Take in the next part of the context.
  void join(const Partial& next, float scale, int64_t head_dim) {
    if (next.maximum == kNothing) return;
    const float top = std::max(maximum, next.maximum);
    const float old_share = exp2(splat((maximum - top) * scale))[0];
    const float new_share = exp2(splat((next.maximum - top) * scale))[0];
    for (int64_t i = 0; i < head_dim; i += kLanes) {
      f32x16 joined = load_floats(output + i) * old_share;
      joined += load_floats(next.output + i) * new_share;
      store(output + i, joined);
    }
    float joined_sum = sum * old_share;
    joined_sum += next.sum * new_share;
    sum = joined_sum;
    maximum = top;
  }
};

// One query head at one position, and the positions [begin, end) it sees.
template <class E>
struct Row {
  const E* query;
  int64_t begin, end;
};

template <class E>
struct Context {
  const Pages<const E>& pages;
  const int32_t* block_table;
  int64_t head, length;  // KV head; tokens of the sequence
  float scale;           // of scores, times log2(e)

  int64_t tile(int64_t position) const {
    return pages.tile(block_table[position / pages.block_size], head, position % pages.block_size);
  }
};

// The partial softmax of R rows over the split that begins at `start`.
template <class E, int R>
void attend_split(const Context<E>& context, const Row<E>* rows, int64_t start, Partial* partials) {
  using S = Step<E>;
  const Pages<const E>& pages = context.pages;
  const int64_t head_dim = pages.head_dim;
  int64_t begin = rows[0].begin, end = rows[0].end;
  for (int r = 1; r < R; r++) begin = std::min(begin, rows[r].begin), end = std::max(end, rows[r].end);
  begin = std::max(start, begin / kLanes * kLanes);
  end = std::min(start + kSplit, end);
  if (begin >= end) {
    for (int r = 0; r < R; r++) partials[r].maximum = kNothing;
    return;
  }

  alignas(64) float scores[R][kSplit];
  const E* queries[R];
  for (int r = 0; r < R; r++) queries[r] = rows[r].query;
  auto score = [&](int64_t position, auto num_tiles) {
    constexpr int C = decltype(num_tiles)::value;
    const E* tiles[C];
    for (int c = 0; c < C; c++) tiles[c] = pages.keys + context.tile(position + c * kLanes);
    f32x16 sums[R][C] = {};
    multiply<E, R, C>(queries, tiles, kLanes * S::kWidth, head_dim / S::kWidth, sums);
    for (int r = 0; r < R; r++)
      for (int c = 0; c < C; c++) store(&scores[r][position - start + c * kLanes], sums[r][c]);
  };
  int64_t position = begin;
  for (; position + (kColumns - 1) * kLanes < end; position += kColumns * kLanes)
    score(position, std::integral_constant<int, kColumns>{});
  for (; position < end; position += kLanes) score(position, std::integral_constant<int, 1>{});

  alignas(64) E weights[R][kSplit];
  const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  for (int r = 0; r < R; r++) {
    f32x16 maxima = splat(kNothing);
    for (int64_t position = begin; position < end; position += kLanes) {
      const i32x16 at = lane + (int32_t)position;
      f32x16 s = load_floats(&scores[r][position - start]);
      s = (at >= (int32_t)rows[r].begin) & (at < (int32_t)rows[r].end) ? s : splat(kNothing);
      store(&scores[r][position - start], s);
      maxima = maximum(maxima, s);
    }
    const float top = maximum_of(maxima);
    const float base = top == kNothing ? 0 : top;
    f32x16 sums = {};
    for (int64_t position = begin; position < end; position += kLanes) {
      f32x16 p = exp2((load_floats(&scores[r][position - start]) - base) * context.scale);
      sums += p;
      store_floats(&weights[r][position - start], p);
    }
    partials[r].maximum = top;
    partials[r].sum = sum_of(sums);
  }

  auto mix = [&](int64_t column, auto num_columns) {
    constexpr int C = decltype(num_columns)::value;
    f32x16 sums[R][C] = {};
    for (int64_t position = begin; position < end; position += kLanes) {
      const E* tile = pages.values + context.tile(position);
      const E *columns[C], *shares[R];
      for (int c = 0; c < C; c++) columns[c] = tile + (column + c * kLanes) * S::kWidth;
      for (int r = 0; r < R; r++) shares[r] = &weights[r][position - start];
      const int64_t num_tokens = std::min(kLanes, context.length - position);  // behind them is what was there before
      multiply<E, R, C>(shares, columns, head_dim * S::kWidth, divide_up(num_tokens, S::kWidth), sums);
    }
    for (int r = 0; r < R; r++)
      for (int c = 0; c < C; c++) store(partials[r].output + column + c * kLanes, sums[r][c]);
  };
  int64_t column = 0;
  for (; column + kColumns * kLanes <= head_dim; column += kColumns * kLanes)
    mix(column, std::integral_constant<int, kColumns>{});
  for (; column < head_dim; column += kLanes) mix(column, std::integral_constant<int, 1>{});
}

template <class E, int R = kRows>
void attend_rows(const Context<E>& context, const Row<E>* rows, int64_t num_rows, int64_t start, Partial* partials) {
  if (num_rows == R)
    attend_split<E, R>(context, rows, start, partials);
  else if constexpr (R > 1)
    attend_rows<E, R - 1>(context, rows, num_rows, start, partials);
}

// Up to kUnitRows query rows of one sequence and KV head; all of the context, or one split of it.
struct Unit {
  int64_t sequence, head, first_row, num_rows;
  int64_t split;    // -1: all of them
  int64_t partial;  // of the first row; used if split >= 0
};

struct Batch {
  const int32_t *query_starts, *lengths, *block_tables;
  int64_t num_sequences, table_width;
};

template <class E>
class Attention {
 public:
  Attention(const E* queries, Pages<const E> pages, Batch batch, int64_t num_heads, int64_t window, E* output)
      : queries_(queries), pages_(pages), batch_(batch), num_heads_(num_heads), group_(num_heads / pages.num_kv_heads),
        window_(window), scale_(kLog2E / std::sqrt((float)pages.head_dim)),
        width_(divide_up(pages.head_dim, kLanes) * kLanes), output_(output) {}

  void run() {
    list_units();
    std::unique_ptr<float[]> outputs(new float[num_partials_ * width_]);
    std::vector<Partial> partials(num_partials_);
    for (int64_t i = 0; i < num_partials_; i++) partials[i].output = &outputs[i * width_];
    share_out(units_.size(), [&](int64_t i) {
      const Unit& unit = units_[i];
      if (unit.split < 0)
        attend_all(unit);
      else
        attend(unit, unit.split * kSplit, &partials[unit.partial]);
    });
    if (!num_partials_) return;
    share_out(units_.size(), [&](int64_t i) {
      const Unit& unit = units_[i];
      if (unit.split != 0) return;
      const int64_t num_splits = divide_up(batch_.lengths[unit.sequence], kSplit);
      for (int64_t r = 0; r < unit.num_rows; r++) {
        Partial& joined = partials[unit.partial + r];
        for (int64_t split = 1; split < num_splits; split++)
          joined.join(partials[unit.partial + r + split * unit.num_rows], scale_, width_);
        write(unit, r, joined);
      }
    });
  }

 private:
  int64_t num_rows_of(int64_t sequence) const {
    return (batch_.query_starts[sequence + 1] - batch_.query_starts[sequence]) * group_;
  }

  // Splits become units of their own only when there are few sequences and the threads would else wait for one.
  void list_units() {
    const bool is_scarce = batch_.num_sequences * pages_.num_kv_heads < 8 * at::get_num_threads();
    for (int64_t sequence = 0; sequence < batch_.num_sequences; sequence++) {
      const int64_t num_rows = num_rows_of(sequence);
      const int64_t num_splits = divide_up(batch_.lengths[sequence], kSplit);
      const bool is_split = is_scarce && num_rows <= kUnitRows && num_splits > 1;
      for (int64_t head = 0; head < pages_.num_kv_heads; head++) {
        if (!is_split) {
          for (int64_t first = 0; first < num_rows; first += kUnitRows)
            units_.push_back({sequence, head, first, std::min(kUnitRows, num_rows - first), -1, 0});
          continue;
        }
        for (int64_t split = 0; split < num_splits; split++)
          units_.push_back({sequence, head, 0, num_rows, split, num_partials_ + split * num_rows});
        num_partials_ += num_splits * num_rows;
      }
    }
  }

  // The partial softmax of each row of the unit over one split.
  void attend(const Unit& unit, int64_t start, Partial* partials) const {
    const int64_t length = batch_.lengths[unit.sequence], first_query = batch_.query_starts[unit.sequence];
    const int64_t first_position = length - (batch_.query_starts[unit.sequence + 1] - first_query);
    const Context<E> context{pages_, batch_.block_tables + unit.sequence * batch_.table_width, unit.head, length, scale_};
    for (int64_t done = 0; done < unit.num_rows; done += kRows) {
      const int64_t num_rows = std::min<int64_t>(kRows, unit.num_rows - done);
      Row<E> rows[kRows];
      for (int64_t r = 0; r < num_rows; r++) {
        const int64_t row = unit.first_row + done + r, token = row / group_, position = first_position + token;
        rows[r].query = queries_ + query_of(first_query + token, unit.head, row % group_);
        rows[r].begin = std::max<int64_t>(0, position + 1 - window_);
        rows[r].end = position + 1;
      }
      attend_rows<E>(context, rows, num_rows, start, partials + done);
    }
  }

  void attend_all(const Unit& unit) const {
    std::unique_ptr<float[]> outputs(new float[2 * unit.num_rows * width_]());
    Partial joined[kUnitRows], next[kUnitRows];
    for (int64_t r = 0; r < unit.num_rows; r++) {
      joined[r].output = &outputs[r * width_];
      next[r].output = &outputs[(unit.num_rows + r) * width_];
    }
    const int64_t num_queries = num_rows_of(unit.sequence) / group_;
    const int64_t last_token = (unit.first_row + unit.num_rows - 1) / group_;
    const int64_t end = batch_.lengths[unit.sequence] - num_queries + last_token + 1;
    for (int64_t start = 0; start < end; start += kSplit) {
      attend(unit, start, next);
      for (int64_t r = 0; r < unit.num_rows; r++) joined[r].join(next[r], scale_, width_);
    }
    for (int64_t r = 0; r < unit.num_rows; r++) write(unit, r, joined[r]);
  }

  void write(const Unit& unit, int64_t r, const Partial& partial) const {
    const int64_t row = unit.first_row + r;
    E* out = output_ + query_of(batch_.query_starts[unit.sequence] + row / group_, unit.head, row % group_);
    for (int64_t i = 0; i < pages_.head_dim; i += kLanes)
      store_floats(out + i, load_floats(partial.output + i) / partial.sum, std::min(kLanes, pages_.head_dim - i));
  }

  int64_t query_of(int64_t token, int64_t kv_head, int64_t member) const {
    return (token * num_heads_ + kv_head * group_ + member) * pages_.head_dim;
  }

  const E* queries_;
  const Pages<const E> pages_;
  const Batch batch_;
  const int64_t num_heads_, group_, window_;
  const float scale_;
  const int64_t width_;
  E* output_;
  std::vector<Unit> units_;
  int64_t num_partials_ = 0;
};

}  // namespace

at::Tensor attend(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values,
                  const at::Tensor& query_starts, const at::Tensor& lengths, const at::Tensor& block_tables,
                  int64_t window) {
  at::Tensor output = at::empty(queries.sizes(), queries.options());
  const Batch batch{query_starts.const_data_ptr<int32_t>(), lengths.const_data_ptr<int32_t>(),
                    block_tables.const_data_ptr<int32_t>(), lengths.size(0), block_tables.size(1)};
  with_element(queries, [&](auto element) {
    using E = decltype(element);
    const Pages<const E> pages{(const E*)keys.const_data_ptr(), (const E*)values.const_data_ptr(), keys.size(1), keys.size(2),
                         keys.size(3)};
    Attention<E>((const E*)queries.const_data_ptr(), pages, batch, queries.size(1), window,
                 (E*)output.mutable_data_ptr())
        .run();
  });
  return output;
}

TORCH_LIBRARY_FRAGMENT(CARAVAN_LIBRARY, m) {
  m.def(
      "attend(Tensor queries, Tensor keys, Tensor values, Tensor query_starts, Tensor lengths, Tensor block_tables, "
      "int window) -> Tensor",
      attend);
}

}  // namespace caravan
