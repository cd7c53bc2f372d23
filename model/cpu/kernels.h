// What the kernels do, as functions of tensors; each is an operator of its own, and layers.cpp puts them together.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

namespace caravan {

using OptionalTensor = std::optional<at::Tensor>;

// Some outputs of a weight, packed in one format, which names what the weights are and are multiplied in.
struct WeightPart {
  at::Tensor packed;
  std::string format;
  int64_t num_outputs;
};

// y = f(x) W^T + bias + residual; x is [T, inputs], before swiglu [T, 2 * inputs]; y is [T, outputs] in bfloat16 or
// float32, the outputs of one part after the other. `input` names f: "", "rms_norm", "swiglu" or "geglu".
at::Tensor linear(const at::Tensor& x, at::ArrayRef<WeightPart> parts, c10::string_view input,
                  const OptionalTensor& norm_weight, double eps, const OptionalTensor& bias,
                  const OptionalTensor& residual, bool float_out);

std::vector<WeightPart> weight_parts(const std::vector<at::Tensor>& packed, const std::vector<std::string>& formats,
                                     const std::vector<int64_t>& num_outputs);

// Keys and values [T, num_kv_heads, head_dim] into the slots [T] of one layer's pages.
void write(const at::Tensor& keys, const at::Tensor& values, const at::Tensor& slots, at::Tensor key_pages,
           at::Tensor value_pages);

// qkv [T, (num_heads + 2 * num_kv_heads) * head_dim]: the keys, rotated, and the values into their pages; the result is
// the rotated queries [T, num_heads, head_dim]. cos and sin are [T, head_dim / 2] in float32. With norms, each query and
// key is normalised before it is rotated, or all of a token's together if the weights are as long. Rotated queries are
// multiplied by query_scale [T], if there is one.
at::Tensor rotate_and_write(const at::Tensor& qkv, const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& slots,
                            at::Tensor key_pages, at::Tensor value_pages, const OptionalTensor& query_norm,
                            const OptionalTensor& key_norm, double eps, const OptionalTensor& query_scale);

// x + norm(y), both [T, hidden_size] in bfloat16.
at::Tensor add_normalized(const at::Tensor& x, const at::Tensor& y, const at::Tensor& norm_weight, double eps);

// Contract: model.attention.PagedAttention. A query looks back on `window` positions. A soft cap of 0 is none.
at::Tensor attend(const at::Tensor& queries, const at::Tensor& key_pages, const at::Tensor& value_pages,
                  const at::Tensor& query_starts, const at::Tensor& lengths, const at::Tensor& block_tables,
                  int64_t window, double soft_cap);

}  // namespace caravan
