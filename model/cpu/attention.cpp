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

#include "attention_tiles.h"
#include "kernels.h"
#include "threads.h"

namespace caravan {
namespace {

constexpr int64_t kUnitRows = 96;  // query rows, token by head, of one unit of work
constexpr int64_t kUnitsOfThread = 8;  // which a thread should have at least, so that none waits for another

// Up to kUnitRows query rows of one sequence: rows of one KV head or, if it has few, of several heads, which lie next to
// each other in the pages; all of the context, or one split of it.
struct Unit {
  int64_t sequence, first_head, num_heads;
  int64_t first_row, num_rows;  // of each head
  int64_t split;                // -1: all of them
  int64_t partial;              // of the first row; used if split >= 0

  int64_t num_all_rows() const { return num_heads * num_rows; }
};

struct Batch {
  const int32_t *query_starts, *lengths, *block_tables;
  int64_t num_sequences, table_width;
};

template <class E, class P>
class Attention {
 public:
  Attention(const E* queries, Pages<const P> pages, Batch batch, int64_t num_heads, int64_t window, float soft_cap,
            E* output)
      : queries_(queries), pages_(pages), batch_(batch), num_heads_(num_heads), group_(num_heads / pages.num_kv_heads),
        window_(window), scale_(kLog2E / std::sqrt((float)pages.head_dim)),
        cap_(soft_cap * std::sqrt((float)pages.head_dim)),
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
      for (int64_t r = 0; r < unit.num_all_rows(); r++) {
        Partial& joined = partials[unit.partial + r];
        for (int64_t split = 1; split < num_splits; split++)
          joined.join(partials[unit.partial + r + split * unit.num_all_rows()], scale_, width_);
        write(unit, r, joined);
      }
    });
  }

 private:
  int64_t num_rows_of(int64_t sequence) const {
    return (batch_.query_starts[sequence + 1] - batch_.query_starts[sequence]) * group_;
  }

  // Splits become units of their own where else one thread would still be at a long context when the others are done.
  void list_units() {
    int64_t num_all_splits = 0;
    for (int64_t i = 0; i < batch_.num_sequences; i++) num_all_splits += divide_up(batch_.lengths[i], kSplit);
    const int64_t num_wanted = kUnitsOfThread * num_threads_here();
    const int64_t max_heads = divide_up(pages_.num_kv_heads * num_all_splits, num_wanted);
    for (int64_t sequence = 0; sequence < batch_.num_sequences; sequence++) {
      const int64_t num_rows = num_rows_of(sequence);
      const int64_t num_splits = divide_up(batch_.lengths[sequence], kSplit);
      const bool is_split = num_rows <= kUnitRows && num_splits > 1 && num_splits * num_wanted > num_all_splits;
      const int64_t num_heads = std::clamp<int64_t>(kUnitRows / std::max<int64_t>(1, num_rows), 1, max_heads);
      for (int64_t head = 0; head < pages_.num_kv_heads; head += num_heads) {
        Unit unit{sequence, head, std::min(num_heads, pages_.num_kv_heads - head), 0, num_rows, -1, 0};
        if (is_split) {
          unit.partial = num_partials_;
          for (unit.split = 0; unit.split < num_splits; unit.split++, unit.partial += unit.num_all_rows())
            units_.push_back(unit);
          num_partials_ = unit.partial;
          continue;
        }
        for (; unit.first_row < num_rows; unit.first_row += kUnitRows) {
          unit.num_rows = std::min(kUnitRows, num_rows - unit.first_row);
          units_.push_back(unit);
        }
      }
    }
  }

  // The rows of a unit, then the parts of their queries if those are not the queries themselves.
  std::unique_ptr<Row<P>[]> rows_of(const Unit& unit) const {
    const int64_t first_query = batch_.query_starts[unit.sequence], last_query = batch_.query_starts[unit.sequence + 1];
    const int64_t first_position = batch_.lengths[unit.sequence] - (last_query - first_query), head_dim = pages_.head_dim;
    using Part = typename Factor<P>::Part;
    constexpr int kParts = Factor<P>::kParts;
    constexpr bool kIsQuery = std::is_same_v<Part, E>;
    const int64_t num_rows = unit.num_all_rows(), num_parts = kIsQuery ? 0 : kParts * width_ * num_rows;
    std::unique_ptr<Row<P>[]> rows(new Row<P>[num_rows + divide_up(num_parts * sizeof(Part), sizeof(Row<P>))]);
    Part* parts = (Part*)(rows.get() + num_rows);
    for (int64_t r = 0; r < num_rows; r++) {
      const int64_t position = first_position + token_of(unit, r);
      const E* query = queries_ + query_of(unit, r);
      rows[r].begin = std::max<int64_t>(0, position + 1 - window_);
      rows[r].end = position + 1;
      Part* high = parts + kParts * r * width_;
      if constexpr (kIsQuery) {
        rows[r].query = {{query}};
      } else if constexpr (kParts == 1) {
        for (int64_t i = 0; i < head_dim; i += kLanes)
          store_floats(high + i, load_floats(query + i, std::min(kLanes, head_dim - i)));
        rows[r].query = {{high}};
      } else {
        const float largest = largest_of(query, head_dim), inverse = inverse_of(largest, kNumFineSteps);
        Part* low = high + width_;
        i32x16 wholes = {};
        for (int64_t i = 0; i < head_dim; i += kLanes)
          wholes += set_parts(load_floats(query + i, std::min(kLanes, head_dim - i)), inverse, high + i, low + i);
        rows[r].query = factor_of(high, low, largest, wholes);
      }
    }
    return rows;
  }

  // The partial softmax of each row of the unit over one split.
  void attend(const Unit& unit, const Row<P>* rows, int64_t start, Partial* partials) const {
    const int32_t* table = batch_.block_tables + unit.sequence * batch_.table_width;
    const int64_t length = batch_.lengths[unit.sequence], end_head = unit.first_head + unit.num_heads;
    const Context<P> context{pages_, length, scale_, cap_};
    const bool is_tiled = attends_in_tiles<P>(pages_.head_dim);
    const int64_t rows_at_once = is_tiled ? kTiledRows : kRows<P>;
    const int64_t step = divide_up(unit.num_rows, divide_up(unit.num_rows, rows_at_once));  // 4 are 2 and 2, not 3 and 1
    for (int64_t head = unit.first_head; head < end_head; head++, rows += unit.num_rows, partials += unit.num_rows) {
      Tiles split = {};
      Tiles::find(pages_, table, head, start, std::min(start + kSplit, length), split.offsets);
      find_ahead(unit, table, head, start, split);
      for (int64_t done = 0; done < unit.num_rows; done += step) {
        split.fetches = done == 0;
        const int64_t count = std::min(step, unit.num_rows - done);
        if constexpr (std::is_same_v<P, bf16>) {
          if (is_tiled) {
            attend_tiled(context, split, rows + done, count, start, partials + done);
            continue;
          }
        }
        attend_rows<P>(context, split, rows + done, count, start, partials + done);
      }
    }
  }

  // What is read after a head's split: the next head's, the next split, or the beginning of other heads or sequences.
  void find_ahead(const Unit& unit, const int32_t* table, int64_t head, int64_t start, Tiles& split) const {
    const int64_t length = batch_.lengths[unit.sequence], end_head = unit.first_head + unit.num_heads;
    int64_t next_start = start, next_head = head + 1, next_end = length;
    if (next_head == end_head) next_start = start + kSplit, next_head = unit.first_head;
    if (next_start >= length) {
      next_start = 0, next_head = end_head;
      if (next_head == pages_.num_kv_heads) {
        next_head = 0;
        if (unit.sequence + 1 < batch_.num_sequences) {
          table += batch_.table_width;
          next_end = batch_.lengths[unit.sequence + 1];
        }
      }
    }
    Tiles::find(pages_, table, next_head, next_start, std::min(next_start + kSplit, next_end), split.ahead);
  }

  void attend_all(const Unit& unit) const {
    const int64_t num_rows = unit.num_all_rows();
    std::unique_ptr<float[]> outputs(new float[2 * num_rows * width_]());
    Partial joined[kUnitRows], next[kUnitRows];
    for (int64_t r = 0; r < num_rows; r++) {
      joined[r].output = &outputs[r * width_];
      next[r].output = &outputs[(num_rows + r) * width_];
    }
    const int64_t num_queries = num_rows_of(unit.sequence) / group_;
    const int64_t last_token = token_of(unit, num_rows - 1);
    const int64_t end = batch_.lengths[unit.sequence] - num_queries + last_token + 1;
    const auto rows = rows_of(unit);
    attend(unit, rows.get(), 0, joined);
    for (int64_t start = kSplit; start < end; start += kSplit) {
      attend(unit, rows.get(), start, next);
      for (int64_t r = 0; r < num_rows; r++) joined[r].join(next[r], scale_, width_);
    }
    for (int64_t r = 0; r < num_rows; r++) write(unit, r, joined[r]);
  }

  void write(const Unit& unit, int64_t r, const Partial& partial) const {
    E* out = output_ + query_of(unit, r);
    for (int64_t i = 0; i < pages_.head_dim; i += kLanes)
      store_floats(out + i, load_floats(partial.output + i) / partial.sum, std::min(kLanes, pages_.head_dim - i));
  }

  // Which of the sequence's tokens row r of the unit is of, and where its query lies.
  int64_t token_of(const Unit& unit, int64_t r) const { return (unit.first_row + r % unit.num_rows) / group_; }
  int64_t query_of(const Unit& unit, int64_t r) const {
    const int64_t token = batch_.query_starts[unit.sequence] + token_of(unit, r);
    const int64_t head = (unit.first_head + r / unit.num_rows) * group_ + (unit.first_row + r % unit.num_rows) % group_;
    return (token * num_heads_ + head) * pages_.head_dim;
  }

  const E* queries_;
  const Pages<const P> pages_;
  const Batch batch_;
  const int64_t num_heads_, group_, window_;
  const float scale_, cap_;  // the cap of scores that are not scaled yet; 0: none
  const int64_t width_;
  E* output_;
  std::vector<Unit> units_;
  int64_t num_partials_ = 0;
};

}  // namespace

at::Tensor attend(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values,
                  const at::Tensor& query_starts, const at::Tensor& lengths, const at::Tensor& block_tables,
                  int64_t window, double soft_cap) {
  at::Tensor output = at::empty(queries.sizes(), queries.options());
  const Batch batch{query_starts.const_data_ptr<int32_t>(), lengths.const_data_ptr<int32_t>(),
                    block_tables.const_data_ptr<int32_t>(), lengths.size(0), block_tables.size(1)};
  with_element(queries, [&](auto element) {
    using E = decltype(element);
    with_page_element<E>(keys, [&](auto page_element) {
      using P = decltype(page_element);
      const Pages<const P> pages{(const P*)keys.const_data_ptr(), (const P*)values.const_data_ptr(), keys.size(1),
                                 keys.size(2), keys.size(3), queries.size(2)};
      Attention<E, P>((const E*)queries.const_data_ptr(), pages, batch, queries.size(1), window, soft_cap,
                      (E*)output.mutable_data_ptr())
          .run();
    });
  });
  return output;
}

TORCH_LIBRARY_FRAGMENT(CARAVAN_LIBRARY, m) {
  m.def(
      "attend(Tensor queries, Tensor keys, Tensor values, Tensor query_starts, Tensor lengths, Tensor block_tables, "
      "int window, float soft_cap) -> Tensor",
      attend);
}

}  // namespace caravan
