// The pages of the KV cache: in which order the numbers of a block lie.
//
// For each KV head there are tiles of 16 tokens. A tile of keys is [head_dim / 2][16 tokens][2], so that one product of
// pairs serves 16 tokens; a tile of values is [8 pairs of tokens][head_dim][2]. In float32 the pairs are single numbers:
// [head_dim][16] and [16][head_dim].
//
// In 8 bits each key and each value has a scale of its own: it is the scale times its numbers, which lie here plus 128.
// A tile has quads instead of pairs, [head_dim / 4][16 tokens][4] and [4 quads of tokens][head_dim][4], and after them
// its 16 scales in float32.
#pragma once

#include <ATen/core/Tensor.h>

#include <type_traits>

#include "vector.h"

namespace caravan {

struct Byte {
  uint8_t bits;  // the number plus 128
};

// What one step of a sum of products takes of a row, whose numbers are Parts, and sixteen lanes of it.
template <class P>
struct Step;
template <>
struct Step<float> {
  static constexpr int64_t kWidth = 1;
  using Part = float;
  using Lanes = f32x16;
  using Sum = f32x16;
  using Factor = Single;
  static Single factor(const float* row) { return {{*row}}; }
};
template <>
struct Step<bf16> {
  static constexpr int64_t kWidth = 2;
  using Lanes = u32x16;
  using Sum = f32x16;
  using Factor = Pair;
#if defined(__AVX512BF16__)
  using Part = bf16;
  static Pair factor(const bf16* row) { return pair_of(load<uint32_t>(row)); }
#else  // widened once for the whole row
  using Part = float;
  static Pair factor(const float* row) { return {{row[0], row[1]}}; }
#endif
};
template <>
struct Step<Byte> {
  static constexpr int64_t kWidth = 4;
  using Part = int8_t;
  using Lanes = u32x16;
  using Sum = i32x16;
  using Factor = Quad;
  static Quad factor(const int8_t* row) { return quad_of(load<uint32_t>(row)); }
};

template <class P>
struct Pages {
  P *keys, *values;
  int64_t block_size, num_kv_heads, token_size, head_dim;  // token_size: of a key or value with its scale

  // Where the tile of a block begins whose first token is at `offset` in the block.
  int64_t tile(int64_t block, int64_t head, int64_t offset) const {
    return ((block * num_kv_heads + head) * block_size + offset) * token_size;
  }

  // The scales of a tile of bytes.
  auto scales(P* tile) const {
    using Scale = std::conditional_t<std::is_const_v<P>, const float, float>;
    return (Scale*)(tile + kLanes * (token_size - (int64_t)sizeof(float)));
  }
};

// Call f with a number of the type that the tensor has.
template <class F>
void with_element(const at::Tensor& tensor, const F& f) {
  if (tensor.scalar_type() == at::kBFloat16)
    f(bf16{});
  else
    f(float{});
}

// Call f with a number of the type that the pages have, which are of 8 bits or of the rows' own type.
template <class E, class F>
void with_page_element(const at::Tensor& pages, const F& f) {
  if (pages.scalar_type() == at::kChar)
    f(Byte{});
  else
    f(E{});
}

}  // namespace caravan
