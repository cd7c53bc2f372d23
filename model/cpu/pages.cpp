// Keys and values into their pages, and the rotary embedding that comes just before.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <memory>

#include "bytes.h"
#include "norm_weight.h"
#include "pages.h"
#include "threads.h"

namespace caravan {
namespace {

// Put one key and one value of a token and KV head into their places.
template <class E>
void write_head(const Pages<E>& pages, int64_t slot, int64_t next_slot, int64_t head, const E* key, const E* value) {
  constexpr int64_t kWidth = Step<E>::kWidth;
  const int64_t offset = slot % pages.block_size, lane = offset % kLanes, head_dim = pages.head_dim;
  const int64_t tile = pages.tile(slot / pages.block_size, head, offset - lane);
  E* keys = pages.keys + tile + lane * kWidth;
  E* values = pages.values + tile + lane / kWidth * head_dim * kWidth + lane % kWidth;
  for (int64_t i = 0; i < head_dim; i += kWidth) std::memcpy(keys + i * kLanes, key + i, kWidth * sizeof(E));
  for (int64_t i = 0; i < head_dim; i++) values[i * kWidth] = value[i];
  // A token whose pair is still to come is multiplied with it, by zero: what lies there must not be NaN.
  if (kWidth == 2 && lane % 2 == 0 && next_slot != slot + 1)
    for (int64_t i = 0; i < head_dim; i++) values[i * kWidth + 1] = E{};
}

// The same in 8 bits: multiples of the largest magnitude / 127.
template <class E>
void write_head(const Pages<Byte>& pages, int64_t slot, int64_t, int64_t head, const E* key, const E* value) {
  const int64_t offset = slot % pages.block_size, lane = offset % kLanes, head_dim = pages.head_dim;
  const int64_t tile = pages.tile(slot / pages.block_size, head, offset - lane);
  auto each = [&](const E* x, Byte* tile_begin, auto place) {
    const float largest = largest_of(x, head_dim), inverse = inverse_of(largest, 127);
    pages.scales(tile_begin)[lane] = largest / 127;
    for (int64_t i = 0; i < head_dim; i += kLanes) {
      const int64_t count = std::min(kLanes, head_dim - i);
      const i32x16 whole = round_to_whole(load_floats(x + i, count) * inverse) + 128;
      for (int64_t j = 0; j < count; j++) place(i + j).bits = (uint8_t)whole[j];
    }
  };
  Byte *keys = pages.keys + tile, *values = pages.values + tile;
  each(key, keys, [&](int64_t i) -> Byte& { return keys[i / 4 * kLanes * 4 + lane * 4 + i % 4]; });
  each(value, values, [&](int64_t i) -> Byte& { return values[(lane / 4 * head_dim + i) * 4 + lane % 4]; });
}

// RMSNorm of each head of a token by itself or of all together.
struct HeadNorm {
  NormWeight weight;
  int64_t width;  // numbers that are normalised together
  float eps;

  HeadNorm(const OptionalTensor& tensor, double eps)
      : weight(norm_weight_of(tensor)), width(tensor ? tensor->size(0) : 0), eps(eps) {}
};

// RMSNorm, if there is one, and the rotation of the pairs (i, i + head_dim / 2) of head number `head` of x; then all of it
// times `factor`.
template <class E>
void rotate(const E* x, int64_t head, int64_t head_dim, const float* cos, const float* sin, const HeadNorm& norm,
            float factor, E* out) {
  const E* of_head = x + head * head_dim;
  const bool is_together = norm.width > head_dim;
  const float scale = norm.weight ? rms_scale(is_together ? x : of_head, norm.width, norm.eps) : 1;
  const int64_t half = head_dim / 2, first = is_together ? head * head_dim : 0;
  for (int64_t i = 0; i < half; i += kLanes) {
    const int64_t count = std::min(kLanes, half - i);
    f32x16 a = load_floats(of_head + i, count), b = load_floats(of_head + half + i, count);
    if (norm.weight) {
      a = a * scale * norm.weight.load(first + i, count);
      b = b * scale * norm.weight.load(first + half + i, count);
    }
    f32x16 c = load_floats(cos + i, count), s = load_floats(sin + i, count);
    store_floats(out + i, (a * c - b * s) * factor, count);
    store_floats(out + half + i, (b * c + a * s) * factor, count);
  }
}

template <class P>
Pages<P> pages_of(at::Tensor& keys, at::Tensor& values, int64_t head_dim) {
  return {(P*)keys.mutable_data_ptr(), (P*)values.mutable_data_ptr(), keys.size(1), keys.size(2), keys.size(3), head_dim};
}

constexpr int64_t kTokensOfUnit = 16;  // tokens of a thread's unit of work: a tile, if they begin with one

// f(token, its slot, the slot of the token after it or -1) for each token, on all threads.
template <class F>
void each_token(const at::Tensor& slots, const F& f) {
  const int64_t num_tokens = slots.size(0), *slot = slots.const_data_ptr<int64_t>();
  share_out(divide_up(num_tokens, kTokensOfUnit), [&](int64_t unit) {
    const int64_t end = std::min(num_tokens, (unit + 1) * kTokensOfUnit);
    for (int64_t token = unit * kTokensOfUnit; token < end; token++)
      f(token, slot[token], token + 1 < num_tokens ? slot[token + 1] : -1);
  });
}

}  // namespace

void write(const at::Tensor& keys, const at::Tensor& values, const at::Tensor& slots, at::Tensor key_pages,
           at::Tensor value_pages) {
  with_element(keys, [&](auto element) {
    using E = decltype(element);
    with_page_element<E>(key_pages, [&](auto page_element) {
      const auto pages = pages_of<decltype(page_element)>(key_pages, value_pages, keys.size(2));
      const E *key = (const E*)keys.const_data_ptr(), *value = (const E*)values.const_data_ptr();
      each_token(slots, [&](int64_t token, int64_t slot, int64_t next_slot) {
        for (int64_t head = 0; head < pages.num_kv_heads; head++)
          write_head(pages, slot, next_slot, head, key + token * keys.stride(0) + head * pages.head_dim,
                     value + token * values.stride(0) + head * pages.head_dim);
      });
    });
  });
}

at::Tensor rotate_and_write(const at::Tensor& qkv, const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& slots,
                            at::Tensor key_pages, at::Tensor value_pages, const OptionalTensor& query_norm,
                            const OptionalTensor& key_norm, double eps, const OptionalTensor& query_scale) {
  const int64_t head_dim = 2 * cos.size(1), num_kv_heads = key_pages.size(2);
  const int64_t num_heads = qkv.size(1) / head_dim - 2 * num_kv_heads;
  at::Tensor queries = at::empty({qkv.size(0), num_heads, head_dim}, qkv.options());
  with_element(qkv, [&](auto element) {
    using E = decltype(element);
    const E* x = (const E*)qkv.const_data_ptr();
    const HeadNorm of_queries(query_norm, eps), of_keys(key_norm, eps);
    const float* scales = query_scale ? query_scale->const_data_ptr<float>() : nullptr;
    E* query = (E*)queries.mutable_data_ptr();
    with_page_element<E>(key_pages, [&](auto page_element) {
      const auto pages = pages_of<decltype(page_element)>(key_pages, value_pages, head_dim);
      each_token(slots, [&](int64_t token, int64_t slot, int64_t next_slot) {
        const float* c = cos.const_data_ptr<float>() + token * head_dim / 2;
        const float* s = sin.const_data_ptr<float>() + token * head_dim / 2;
        const E* row = x + token * qkv.size(1);
        for (int64_t head = 0; head < num_heads; head++)
          rotate(row, head, head_dim, c, s, of_queries, scales ? scales[token] : 1,
                 query + (token * num_heads + head) * head_dim);
        std::unique_ptr<E[]> key(new E[head_dim]);
        for (int64_t head = 0; head < num_kv_heads; head++) {
          rotate(row + num_heads * head_dim, head, head_dim, c, s, of_keys, 1, key.get());
          write_head(pages, slot, next_slot, head, key.get(), row + (num_heads + num_kv_heads + head) * head_dim);
        }
      });
    });
  });
  return queries;
}

TORCH_LIBRARY_FRAGMENT(CARAVAN_LIBRARY, m) {
  m.def("write(Tensor keys, Tensor values, Tensor slots, Tensor(a!) key_pages, Tensor(b!) value_pages) -> ()", write);
}

}  // namespace caravan
