// Paged attention in place: queries against keys and values where they lie, in the pages of pages.h.
//
// Sources: PagedAttention (arXiv:2309.06180), section 4; FlashAttention (arXiv:2205.14135), section 3.1;
// FlashAttention-2 (arXiv:2307.08691), section 3.2 for work split over the context.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>
#include <memory>
#include <type_traits>
#include <vector>

#include "attention_split.h"
#include "kernels.h"
#include "threads.h"

namespace caravan {
namespace {

constexpr int64_t kUnitRows = 48;  // query rows, token by head, of one unit of work

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

template <class E, class P>
class Attention {
 public:
  Attention(const E* queries, Pages<const P> pages, Batch batch, int64_t num_heads, int64_t window, E* output)
      : queries_(queries), pages_(pages), batch_(batch), num_heads_(num_heads), group_(num_heads / pages.num_kv_heads),
        window_(window), scale_(kLog2E / std::sqrt((float)pages.head_dim)),
        width_(divide_up(pages.head_dim, kLanes) * kLanes), output_(output) {}

  void run() {
    list_units();
    std::unique_ptr<float[]> outputs(new float[num_partials_ * width_]());  // zero where a split is out of the window
    std::vector<Partial> partials(num_partials_);
    for (int64_t i = 0; i < num_partials_; i++) partials[i].output = &outputs[i * width_];
    share_out(units_.size(), [&](int64_t i) {
      const Unit& unit = units_[i];
      if (unit.split < 0)
        attend_all(unit);
      else
        attend(unit, rows_of(unit).get(), unit.split * kSplit, &partials[unit.partial]);
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

  // The rows of a unit, and behind them the parts of their queries if those are not the queries themselves.
  std::unique_ptr<Row<P>[]> rows_of(const Unit& unit) const {
    const int64_t first_query = batch_.query_starts[unit.sequence], last_query = batch_.query_starts[unit.sequence + 1];
    const int64_t first_position = batch_.lengths[unit.sequence] - (last_query - first_query), head_dim = pages_.head_dim;
    constexpr bool kIsScaled = std::is_same_v<P, Byte>;
    const int64_t num_bytes = kIsScaled ? 2 * width_ * unit.num_rows : 0;
    std::unique_ptr<Row<P>[]> rows(new Row<P>[unit.num_rows + divide_up(num_bytes, sizeof(Row<P>))]);
    int8_t* parts = (int8_t*)(rows.get() + unit.num_rows);
    for (int64_t r = 0; r < unit.num_rows; r++) {
      const int64_t row = unit.first_row + r, token = row / group_, position = first_position + token;
      const E* query = queries_ + query_of(first_query + token, unit.head, row % group_);
      rows[r].begin = std::max<int64_t>(0, position + 1 - window_);
      rows[r].end = position + 1;
      if constexpr (kIsScaled) {
        const float largest = largest_of(query, head_dim), inverse = inverse_of(largest, kNumFineSteps);
        int8_t *high = parts + 2 * r * width_, *low = high + width_;
        i32x16 wholes = {};
        for (int64_t i = 0; i < head_dim; i += kLanes)
          wholes += set_parts(load_floats(query + i, std::min(kLanes, head_dim - i)), inverse, high + i, low + i);
        rows[r].query = factor_of(high, low, largest, wholes);
      } else {
        rows[r].query = {{query}};
      }
    }
    return rows;
  }

  // The partial softmax of each row of the unit over one split.
  void attend(const Unit& unit, const Row<P>* rows, int64_t start, Partial* partials) const {
    const int32_t* table = batch_.block_tables + unit.sequence * batch_.table_width;
    const bool is_last_head = unit.head + 1 == pages_.num_kv_heads;
    const bool has_next = is_last_head && unit.sequence + 1 < batch_.num_sequences;
    const Context<P> context{pages_, table, unit.head, batch_.lengths[unit.sequence], scale_,
                             has_next ? table + batch_.table_width : table, is_last_head ? 0 : unit.head + 1};
    const int64_t step = divide_up(unit.num_rows, divide_up(unit.num_rows, kRows<P>));  // 4 rows are 2 and 2, not 3 and 1
    for (int64_t done = 0; done < unit.num_rows; done += step)
      attend_rows<P>(context, rows + done, std::min(step, unit.num_rows - done), start, partials + done);
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
    const auto rows = rows_of(unit);
    for (int64_t start = 0; start < end; start += kSplit) {
      attend(unit, rows.get(), start, next);
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
  const Pages<const P> pages_;
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
    with_page_element<E>(keys, [&](auto page_element) {
      using P = decltype(page_element);
      const Pages<const P> pages{(const P*)keys.const_data_ptr(), (const P*)values.const_data_ptr(), keys.size(1),
                                 keys.size(2), keys.size(3), queries.size(2)};
      Attention<E, P>((const E*)queries.const_data_ptr(), pages, batch, queries.size(1), window,
                      (E*)output.mutable_data_ptr())
          .run();
    });
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
