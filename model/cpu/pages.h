// The pages of the KV cache: in which order the numbers of a block lie.
//
// For each KV head there are tiles of 16 tokens. A tile of keys is [head_dim / 2][16 tokens][2], so that one product of
// pairs serves 16 tokens; a tile of values is [8 pairs of tokens][head_dim][2]. In float32 the pairs are single numbers:
// [head_dim][16] and [16][head_dim].
#pragma once

#include <ATen/core/Tensor.h>

#include "vector.h"

namespace caravan {

// What one step of a sum of products takes of a row, and sixteen lanes of it.
template <class E>
struct Step;
template <>
struct Step<float> {
  static constexpr int64_t kWidth = 1;
  using Scalar = float;
  using Lanes = f32x16;
};
template <>
struct Step<bf16> {
  static constexpr int64_t kWidth = 2;
  using Scalar = uint32_t;
  using Lanes = u32x16;
};

template <class E>
struct Pages {
  E *keys, *values;
  int64_t block_size, num_kv_heads, head_dim;

  // Where the tile of a block begins whose first token is at `offset` in the block.
  int64_t tile(int64_t block, int64_t head, int64_t offset) const {
    return ((block * num_kv_heads + head) * block_size + offset) * head_dim;
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

}  // namespace caravan
