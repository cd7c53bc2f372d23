// Attention of up to 32 query rows over one split of the context in tiles, for pages of bfloat16.
//
// Keys and values lie in memory as tiles want them. The weights of 16 tokens, not 32, are multiplied at once: the next 16
// tokens may lie anywhere, and the order of a sum must not depend on that.
#pragma once

#include "amx.h"
#include "attention_split.h"

namespace caravan {
namespace {  // of attention.cpp alone

// Whether rows are attended in tiles. Heads of other sizes would need zeros after them.
template <class P>
inline bool attends_in_tiles(int64_t head_dim) {
  return std::is_same_v<P, bf16> && head_dim % (2 * kLanes) == 0 && has_tiles();
}

#ifdef CARAVAN_TILES
// The partial softmax of the rows over the split that begins at `start`; their outputs lie one after the other.
inline void attend_tiled(const Context<bf16>& context, const Tiles& split, const Row<bf16>* rows, int64_t num_rows,
                         int64_t start, Partial* partials) {
  const auto [begin, end] = seen(rows, num_rows, start);
  if (begin >= end) {
    for (int64_t r = 0; r < num_rows; r++) partials[r].maximum = kNothing;
    return;
  }
  const Pages<const bf16>& pages = context.pages;
  const int64_t head_dim = pages.head_dim, head_bytes = head_dim * sizeof(bf16), page_bytes = kLanes * head_bytes;
  alignas(64) float scores[kTiledRows][kSplit + kLanes];
  const Lines<bf16> queries = lines_of<bf16>(num_rows * head_dim);
  for (int64_t r = 0; r < num_rows; r++) std::memcpy(&queries[r * head_dim], rows[r].query.parts[0], head_bytes);
  auto fetch = [&](const bf16* page, int64_t first, int64_t last) {
    if (!split.fetches) return;
    for (int64_t byte = first; byte < last; byte += 64) __builtin_prefetch((const char*)page + byte, 0, 2);
  };

  TileSums sums;
  for (int64_t at = begin - start; at < end - start; at += 2 * kLanes) {
    const int64_t left = split.offsets[at / kLanes];
    const int64_t right = at + kLanes < end - start ? split.offsets[at / kLanes + 1] : left;  // once more, for nothing
    fetch(pages.values + left, 0, page_bytes);
    fetch(pages.values + right, 0, page_bytes);
    sums.begin(num_rows, kTileBytes);
    for (int64_t i = 0; i < head_dim; i += 2 * kLanes)
      sums.add<Pair>(&queries[i], head_bytes, pages.keys + left + i * kLanes, pages.keys + right + i * kLanes, kTileBytes);
    sums.store(&scores[0][at], sizeof(scores[0]));
  }

  for (int64_t r = 0; r < num_rows; r++)
    weigh(rows[r], start, begin, end, context, scores[r], partials[r],
          [&](int64_t at, f32x16, f32x16 p) { store_floats((bf16*)scores[r] + at, p); });  // in the place of the scores

  // After the last token is what was there before, which may be no number.
  const int64_t num_last = context.length - (end - 1) / kLanes * kLanes;
  Lines<bf16> last;
  if (num_last < kLanes) {
    last = lines_of<bf16>(kLanes * head_dim);
    std::memset(last.get(), 0, page_bytes);
    const bf16* values = pages.values + split.offsets[(end - 1 - start) / kLanes];
    std::memcpy(last.get(), values, divide_up(num_last, 2) * 2 * head_bytes);
  }
  for (int64_t column = 0; column < head_dim; column += 2 * kLanes) {
    sums.begin(num_rows, kLanes * sizeof(bf16));
    for (int64_t at = begin - start; at < end - start; at += kLanes) {
      const bool is_cut = last && at + kLanes >= end - start;
      const bf16* values = (is_cut ? last.get() : pages.values + split.offsets[at / kLanes]) + 2 * column;
      fetch(pages.keys + split.ahead[at / kLanes], column * kTileBytes / 2, (column + 2 * kLanes) * kTileBytes / 2);
      sums.add<Pair>((const bf16*)scores[0] + at, sizeof(scores[0]), values, values + 2 * kLanes, 2 * head_bytes);
    }
    sums.store(partials[0].output + column, head_dim * sizeof(float));
  }
}
#else
template <class... Anything>
void attend_tiled(const Anything&...) {}
#endif

}  // namespace
}  // namespace caravan
