// A mixture of experts: model.experts.Experts after its norm, with the residual.
#pragma once

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels.h"
#include "threads.h"
#include "vector.h"

namespace caravan {

// A feed-forward network, which is one expert or the only network of a layer.
struct Network {
  std::vector<WeightPart> gate_up;  // the gate's rows, then the up projection's
  std::vector<WeightPart> down;
};

struct Router {
  std::vector<WeightPart> weight;
  int64_t num_chosen;
  bool normalizes_weights;
};

// An expert of a row and its weight in the row's sum.
struct Choice {
  int64_t expert;
  float weight;
};

// The experts of a row, the likeliest first, and of two equal logits the first one.
inline void choose_experts(const float* logits, int64_t num_experts, const Router& router, Choice* choices) {
  std::vector<int64_t> order(num_experts);
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + router.num_chosen, order.end(), [&](int64_t a, int64_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  });
  const float largest = logits[order[0]];
  float total = 0, total_of_chosen = 0;
  for (int64_t i = 0; i < num_experts; i++) total += std::exp(logits[i] - largest);
  for (int64_t rank = 0; rank < router.num_chosen; rank++) {
    choices[rank] = {order[rank], std::exp(logits[order[rank]] - largest) / total};
    total_of_chosen += choices[rank].weight;
  }
  if (router.normalizes_weights)
    for (int64_t rank = 0; rank < router.num_chosen; rank++) choices[rank].weight /= total_of_chosen;
}

// x + the sum of what each row's experts return, [T, hidden_size] in bfloat16.
//
// An expert is computed once, for all rows that chose it. The sum of a row is in float32 and in the order of its choices.
inline at::Tensor add_experts(const at::Tensor& x, const Router& router, const std::vector<Network>& experts,
                              const OptionalTensor& norm, double eps) {
  const int64_t num_rows = x.size(0), width = x.size(1), num_experts = experts.size(), k = router.num_chosen;
  const at::Tensor logits = linear(x, router.weight, "rms_norm", norm, eps, {}, {}, true);
  std::vector<Choice> choices(num_rows * k);
  share_out(num_rows, [&](int64_t row) {
    choose_experts(logits.const_data_ptr<float>() + row * num_experts, num_experts, router, &choices[row * k]);
  });
  std::vector<std::vector<int64_t>> places(num_experts);  // of each expert: where it is in `choices`
  for (int64_t place = 0; place < num_rows * k; place++) places[choices[place].expert].push_back(place);
  std::vector<at::Tensor> kept;  // what each expert returned
  std::vector<const float*> returned(num_rows * k);
  for (int64_t expert = 0; expert < num_experts; expert++) {
    const int64_t count = places[expert].size();
    if (!count) continue;
    at::Tensor some = x;
    if (count < num_rows) {
      at::Tensor rows = at::empty({count}, at::kLong);
      std::transform(places[expert].begin(), places[expert].end(), rows.mutable_data_ptr<int64_t>(),
                     [k](int64_t place) { return place / k; });
      some = x.index_select(0, rows);
    }
    const at::Tensor gate_up = linear(some, experts[expert].gate_up, "rms_norm", norm, eps, {}, {}, false);
    kept.push_back(linear(gate_up, experts[expert].down, "swiglu", {}, 0, {}, {}, true));
    for (int64_t i = 0; i < count; i++) returned[places[expert][i]] = kept.back().const_data_ptr<float>() + i * width;
  }
  at::Tensor sum = at::empty({num_rows, width}, x.options());
  share_out(num_rows, [&](int64_t row) {
    const bf16* from = (const bf16*)x.const_data_ptr<at::BFloat16>() + row * x.stride(0);
    bf16* to = (bf16*)sum.mutable_data_ptr<at::BFloat16>() + row * width;
    for (int64_t i = 0; i < width; i += kLanes) {
      const int64_t count = std::min(kLanes, width - i);
      f32x16 y = {};
      for (int64_t place = row * k; place < (row + 1) * k; place++)
        y += load_floats(returned[place] + i, count) * choices[place].weight;
      store_floats(to + i, y + load_floats(from + i, count), count);
    }
  });
  return sum;
}

}  // namespace caravan
