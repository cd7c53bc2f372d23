// Low-rank adapters of the linear layers, for the rows of a step that have one.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/custom_class.h>

#include <array>
#include <map>
#include <vector>

#include "kernels.h"

namespace caravan {

// What an adapter adds to some outputs of a linear layer, scale * B (A f(x)); LoRA (arXiv:2106.09685), section 4.1.
struct AdapterPart {
  int64_t first, num_outputs;
  float scale;
  at::Tensor a;  // [inputs][rank] in bfloat16; the rank is a multiple of 16, with zeros
  at::Tensor b;  // [rank][outputs] in bfloat16; the outputs are a multiple of 16, with zeros
};

enum class AdaptedLinear { kQkv, kOutput, kGateUp, kDown };

// Rows of a step that have the same adapter, which are computed together.
struct AdaptedRows {
  int64_t slot;
  std::array<int64_t, 4> rows;
  int64_t num_rows;
};

// The adapters in memory, each in a slot.
struct Adapters : torch::CustomClassHolder {
  std::map<std::array<int64_t, 3>, std::vector<AdapterPart>> parts;  // by slot, layer and AdaptedLinear

  void add(int64_t slot, int64_t layer, int64_t linear, int64_t first, int64_t num_outputs, double scale, at::Tensor a,
           at::Tensor b);
  void remove(int64_t slot);

  // y += scale * B (A f(x)) for the outputs y [T, outputs] of a linear layer with inputs x, as in `linear`.
  void apply(const std::vector<AdaptedRows>& tiles, int64_t layer, AdaptedLinear linear, const at::Tensor& x,
             c10::string_view input, const OptionalTensor& norm_weight, double eps, const at::Tensor& y) const;
};

// The rows that have an adapter, in groups, for the slot of each row or -1.
std::vector<AdaptedRows> adapted_rows(const at::Tensor& slots);

}  // namespace caravan
