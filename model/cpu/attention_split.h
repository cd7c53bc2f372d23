// Attention of a few query rows over one split of the context: scores, softmax, and the mix of the values.
//
// The context is summed up in splits of 256 tokens, each a softmax of its own, joined in their order. What a query may
// not see adds exact zeros. So the bits of a row depend on nothing else in the call.
#pragma once

#include <limits>
#include <type_traits>
#include <utility>

#include "bytes.h"
#include "pages.h"
#include "threads.h"
#include "vector.h"

namespace caravan {
namespace {  // of attention.cpp alone

constexpr int64_t kSplit = 256;    // tokens of one softmax
constexpr float kNothing = -std::numeric_limits<float>::infinity();

// A row that multiplies what lies in pages: numbers or, for bytes, whole numbers of 15 bits in two parts,
// 128 * high + low. With them the sums are exact, and rounding the row costs less than rounding the pages did.
template <class P>
struct Factor {
  using Part = typename Step<P>::Part;
  static constexpr int kParts = 1;
  const Part* parts[kParts];
};
template <>
struct Factor<Byte> {
  using Part = Step<Byte>::Part;
  static constexpr int kParts = 2;
  const Part* parts[kParts];  // high, low
  float scale;
  int32_t excess;  // what the 128 that each byte of a page has too much adds to a sum
};

template <class P>
constexpr int kRows = (kHasWideRegisters ? 6 : 5) / Factor<P>::kParts;  // rows that share each load of keys or values
// Tiles, or groups of 16 head dimensions, side by side for this number of parts of rows: all sums are to stay in registers.
template <int kNumParts>
constexpr int kSideBySide = kHasWideRegisters ? 4 : kNumParts <= 3 ? 2 : 1;

// sums[r][c] += the first num_steps steps of part r of the rows times those of column group c. If `fetches`, as much of
// `ahead` is fetched into the cache meanwhile: pages lie anywhere, and the processor sees only where it has been.
template <class P, int R, int C>
inline void multiply(const typename Factor<P>::Part* const (&rows)[R], const P* const (&columns)[C],
                     const P* const (&ahead)[C], bool fetches, int64_t stride, int64_t num_steps,
                     typename Step<P>::Sum (&sums)[R][C]) {
  using S = Step<P>;
  for (int64_t step = 0; step < num_steps; step++) {
    typename S::Lanes lanes[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) lanes[c] = load<typename S::Lanes>(columns[c] + step * stride);
    if (fetches) {
#pragma GCC unroll 4
      for (int c = 0; c < C; c++) __builtin_prefetch(ahead[c] + step * stride, 0, 2);
    }
    add_products<R, C, typename S::Factor>([&](int r) { return S::factor(rows[r] + step * S::kWidth); }, lanes, sums);
  }
}

// What column group c of row r has summed up to, without the scale of the page.
template <class P, int R, int C>
inline f32x16 product(const Factor<P>* rows, const typename Step<P>::Sum (&sums)[R][C], int r, int c) {
  if constexpr (Factor<P>::kParts == 1) {
    return sums[r][c];
  } else {  // unsigned: the parts may leave the range that their sum keeps
    const u32x16 sum = ((u32x16)sums[2 * r][c] << 7) + (u32x16)sums[2 * r + 1][c] - (uint32_t)rows[r].excess;
    return convert<f32x16>((i32x16)sum) * rows[r].scale;
  }
}

// The numbers i to i + 15 of a row, which are multiples of scale, into its parts; returns their sum, for the excess.
inline i32x16 set_parts(f32x16 numbers, float inverse, int8_t* high, int8_t* low) {
  const i32x16 whole = round_to_whole(numbers * inverse);
  i8x16 high_bytes, low_bytes;
  split_in_bytes(whole, high_bytes, low_bytes);
  store(high, high_bytes);
  store(low, low_bytes);
  return whole;
}

inline Factor<Byte> factor_of(const int8_t* high, const int8_t* low, float largest, i32x16 sums) {
  return {{high, low}, largest / kNumFineSteps, 128 * sum_of(sums)};
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
template <class P>
struct Row {
  Factor<P> query;
  int64_t begin, end;
};

// Where in the pages the tiles of a split begin, and those that are read when it is done.
struct Tiles {
  int64_t offsets[kSplit / kLanes], ahead[kSplit / kLanes];
  bool fetches;  // whether what is ahead is fetched: the first rows that read a split do it for the others

  template <class P>
  static void find(const Pages<P>& pages, const int32_t* table, int64_t head, int64_t start, int64_t end, int64_t* into) {
    int64_t block = start / pages.block_size, offset = start % pages.block_size;
    for (int64_t position = start; position < end; position += kLanes) {
      *into++ = pages.tile(table[block], head, offset);
      offset += kLanes;
      if (offset >= pages.block_size) offset = 0, block++;
    }
  }
};

template <class P>
struct Context {
  const Pages<const P>& pages;
  int64_t length;  // tokens of the sequence
  float scale;     // of scores, times log2(e)
  float cap;       // of scores before that; 0: none
};

// The positions of the split that begins at `start` which some of the rows see, from the beginning of a tile.
template <class P>
inline std::pair<int64_t, int64_t> seen(const Row<P>* rows, int64_t num_rows, int64_t start) {
  int64_t begin = rows[0].begin, end = rows[0].end;
  for (int64_t r = 1; r < num_rows; r++) begin = std::min(begin, rows[r].begin), end = std::max(end, rows[r].end);
  return {std::max(start, begin / kLanes * kLanes), std::min(start + kSplit, end)};
}

// The softmax of a row's scores of the positions [begin, end): keep(at, s, p) gets sixteen scores and what they become.
// What the row does not see has the score kNothing and becomes zero. Others are capped first if there is a cap.
template <class P, class Keep>
inline void weigh(const Row<P>& row, int64_t start, int64_t begin, int64_t end, const Context<P>& context, float* scores,
                  Partial& partial, const Keep& keep) {
  constexpr int32_t kCount[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const i32x16 lane = load<i32x16>(kCount);
  f32x16 maxima = splat(kNothing);
  for (int64_t position = begin; position < end; position += kLanes) {
    f32x16 s = load_floats(&scores[position - start]);
    if (context.cap != 0) {
      s = soft_cap(s, context.cap);
      store(&scores[position - start], s);
    }
    if (position < row.begin || position + kLanes > row.end) {
      const i32x16 at = lane + (int32_t)position;
      s = select((at >= (int32_t)row.begin) & (at < (int32_t)row.end), s, splat(kNothing));
      store(&scores[position - start], s);
    }
    maxima = maximum(maxima, s);
  }
  partial.maximum = maximum_of(maxima);
  const float base = partial.maximum == kNothing ? 0 : partial.maximum;
  f32x16 sums = {};
  for (int64_t at = begin - start; at < end - start; at += kLanes) {
    const f32x16 s = load_floats(&scores[at]), p = exp2((s - base) * context.scale);
    sums += p;
    keep(at, s, p);
  }
  partial.sum = sum_of(sums);
}

// The partial softmax of R rows over the split that begins at `start`.
template <class P, int R>
void attend_split(const Context<P>& context, const Tiles& split, const Row<P>* rows, int64_t start,
                  Partial* partials) {
  using S = Step<P>;
  using Part = typename Factor<P>::Part;
  constexpr bool kIsScaled = std::is_same_v<P, Byte>;
  constexpr int kParts = Factor<P>::kParts, kColumns = kSideBySide<R * kParts>;
  const Pages<const P>& pages = context.pages;
  const int64_t head_dim = pages.head_dim;
  const auto [begin, end] = seen(rows, R, start);
  if (begin >= end) {
    for (int r = 0; r < R; r++) partials[r].maximum = kNothing;
    return;
  }

  alignas(64) float scores[R][kSplit];
  Factor<P> factors[R];
  const Part* parts[R * kParts];
  auto take = [&](int r, const Factor<P>& factor) {
    factors[r] = factor;
    for (int part = 0; part < kParts; part++) parts[r * kParts + part] = factor.parts[part];
  };
  for (int r = 0; r < R; r++) take(r, rows[r].query);
  auto score = [&](int64_t position, auto num_tiles) {
    constexpr int C = decltype(num_tiles)::value;
    const P *tiles[C], *values[C];
    for (int c = 0; c < C; c++) {
      const int64_t tile = split.offsets[(position - start) / kLanes + c];
      tiles[c] = pages.keys + tile, values[c] = pages.values + tile;
      if constexpr (kIsScaled) __builtin_prefetch(pages.scales(values[c]), 0, 2);
    }
    typename S::Sum sums[R * kParts][C] = {};
    const int64_t num_steps = divide_up(head_dim, S::kWidth);
    multiply<P, R * kParts, C>(parts, tiles, values, split.fetches, kLanes * S::kWidth, num_steps, sums);
    for (int r = 0; r < R; r++)
      for (int c = 0; c < C; c++) {
        f32x16 s = product<P>(factors, sums, r, c);
        if constexpr (kIsScaled) s *= load_floats(pages.scales(tiles[c]));
        store(&scores[r][position - start + c * kLanes], s);
      }
  };
  int64_t position = begin;
  for (; position + (kColumns - 1) * kLanes < end; position += kColumns * kLanes)
    score(position, std::integral_constant<int, kColumns>{});
  for (; position < end; position += kLanes) score(position, std::integral_constant<int, 1>{});

  alignas(64) Part weights[R * kParts][kSplit];
  for (int r = 0; r < R; r++) {
    weigh(rows[r], start, begin, end, context, scores[r], partials[r], [&](int64_t at, f32x16 s, f32x16 p) {
      if constexpr (kIsScaled) {  // what a row does not see has a scale that means nothing
        const f32x16 scales = load_floats(pages.scales(pages.values + split.offsets[at / kLanes]));
        store(&scores[r][at], select(s == kNothing, f32x16{}, p * scales));
      } else {
        store_floats(&weights[r][at], p);
      }
    });
    if constexpr (kIsScaled) {
      const int64_t first = begin - start, count = divide_up(end - begin, kLanes) * kLanes;
      const float largest = largest_of(&scores[r][first], count), inverse = inverse_of(largest, kNumFineSteps);
      Part *high = weights[2 * r], *low = weights[2 * r + 1];
      i32x16 wholes = {};
      for (int64_t at = first; at < first + count; at += kLanes)
        wholes += set_parts(load_floats(&scores[r][at]), inverse, high + at, low + at);
      take(r, factor_of(high, low, largest, wholes));
    }
  }

  auto mix = [&](int64_t column, auto num_columns) {
    constexpr int C = decltype(num_columns)::value;
    typename S::Sum sums[R * kParts][C] = {};
    for (int64_t position = begin; position < end; position += kLanes) {
      const P* tile = pages.values + split.offsets[(position - start) / kLanes];
      const P *columns[C], *ahead[C];
      const Part* shares[R * kParts];
      const P* next = pages.keys + split.ahead[(position - start) / kLanes];
      for (int c = 0; c < C; c++) {
        columns[c] = tile + (column + c * kLanes) * S::kWidth;
        ahead[c] = next + (column + c * kLanes) * S::kWidth;
      }
      if constexpr (kIsScaled) __builtin_prefetch(pages.scales(next), 0, 2);
      for (int r = 0; r < R * kParts; r++) shares[r] = &weights[r][position - start];
      const int64_t num_tokens = std::min(kLanes, context.length - position);  // after them is what was there before
      const int64_t num_steps = divide_up(num_tokens, S::kWidth);
      multiply<P, R * kParts, C>(shares, columns, ahead, split.fetches, head_dim * S::kWidth, num_steps, sums);
    }
    for (int r = 0; r < R; r++)
      for (int c = 0; c < C; c++) store(partials[r].output + column + c * kLanes, product<P>(factors, sums, r, c));
  };
  int64_t column = 0;
  for (; column + kColumns * kLanes <= head_dim; column += kColumns * kLanes)
    mix(column, std::integral_constant<int, kColumns>{});
  for (; column < head_dim; column += kLanes) mix(column, std::integral_constant<int, 1>{});
}

template <class P, int R = kRows<P>>
void attend_rows(const Context<P>& context, const Tiles& split, const Row<P>* rows, int64_t num_rows, int64_t start,
                 Partial* partials) {
  if (num_rows == R)
    attend_split<P, R>(context, split, rows, start, partials);
  else if constexpr (R > 1)
    attend_rows<P, R - 1>(context, split, rows, num_rows, start, partials);
}

}  // namespace
}  // namespace caravan
