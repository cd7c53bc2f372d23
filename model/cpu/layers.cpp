// The layers of a model one after the other, each model.llama.Block in six calls of kernels.
#include <torch/custom_class.h>
#include <torch/library.h>

#include <chrono>
#include <string>
#include <tuple>
#include <vector>

#include "kernels.h"
#include "threads.h"

namespace caravan {
namespace {

// Adds what passed since the last call to the seconds of a part: 0 linears, 1 attention. Without a place it does nothing.
class PartClock {
 public:
  explicit PartClock(const OptionalTensor& seconds) : seconds_(seconds ? seconds->mutable_data_ptr<double>() : nullptr) {
    if (seconds_) last_ = std::chrono::steady_clock::now();
  }
  void charge(int part) {
    if (!seconds_) return;
    const auto began = last_;
    skip();
    seconds_[part] += std::chrono::duration<double>(last_ - began).count();
  }
  void skip() {
    if (seconds_) last_ = std::chrono::steady_clock::now();
  }

 private:
  double* seconds_;
  std::chrono::steady_clock::time_point last_;
};

struct Weight {
  std::vector<WeightPart> parts;
  OptionalTensor bias;
};

// A weight as Python passes it: packed, formats and numbers of outputs of its parts.
using PassedWeight = std::tuple<std::vector<at::Tensor>, std::vector<std::string>, std::vector<int64_t>>;

Weight weight_of(const PassedWeight& passed, OptionalTensor bias = {}) {
  const auto& [packed, formats, num_outputs] = passed;
  return {weight_parts(packed, formats, num_outputs), bias};
}

struct Layer {
  int64_t window, num_heads;
  double eps;
  at::Tensor attention_norm;
  Weight qkv;
  OptionalTensor query_norm, key_norm;
  Weight output;
  at::Tensor feed_forward_norm;
  Weight gate_up;  // the gate's rows, then the up projection's
  Weight down;
};

// The layers in their order. They are passed once: a call from Python costs more with each argument.
struct Layers : torch::CustomClassHolder {
  void add(int64_t window, int64_t num_heads, double eps, at::Tensor attention_norm, PassedWeight qkv,
           OptionalTensor qkv_bias, OptionalTensor query_norm, OptionalTensor key_norm, PassedWeight output,
           OptionalTensor output_bias, at::Tensor feed_forward_norm, PassedWeight gate_up, PassedWeight down) {
    layers.push_back({window, num_heads, eps, attention_norm, weight_of(qkv, qkv_bias), query_norm, key_norm,
                      weight_of(output, output_bias), feed_forward_norm, weight_of(gate_up), weight_of(down)});
  }

  // The wanted rows of x [T, hidden_size] after all layers, which are all of them or some, in their order; this step's
  // keys and values are written into each layer's pages. What only the other rows would get from the last layer is left.
  at::Tensor run(at::Tensor x, at::Tensor cos, at::Tensor sin, at::Tensor slots, at::Tensor query_starts,
                 at::Tensor lengths, at::Tensor block_tables, std::vector<at::Tensor> key_pages,
                 std::vector<at::Tensor> value_pages, at::Tensor wanted_rows, OptionalTensor seconds) {
    with_team([&] {
      PartClock clock(seconds);
      for (size_t i = 0; i < layers.size(); i++) {
        const Layer& l = layers[i];
        at::Tensor qkv = linear(x, l.qkv.parts, "rms_norm", l.attention_norm, l.eps, l.qkv.bias, {}, false);
        clock.charge(0);
        at::Tensor queries =
            rotate_and_write(qkv, cos, sin, slots, key_pages[i], value_pages[i], l.query_norm, l.key_norm, l.eps);
        clock.skip();
        at::Tensor mixed =
            attend(queries, key_pages[i], value_pages[i], query_starts, lengths, block_tables, l.window).flatten(1);
        clock.charge(1);
        if (i + 1 == layers.size() && wanted_rows.size(0) < x.size(0)) {
          x = x.index_select(0, wanted_rows);
          mixed = mixed.index_select(0, wanted_rows);
        }
        x = linear(mixed, l.output.parts, "", {}, 0, l.output.bias, x, false);
        at::Tensor gate_up = linear(x, l.gate_up.parts, "rms_norm", l.feed_forward_norm, l.eps, {}, {}, false);
        x = linear(gate_up, l.down.parts, "swiglu", {}, 0, {}, x, false);
        clock.charge(0);
      }
    });
    return x;
  }

  std::vector<Layer> layers;
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(CARAVAN_LIBRARY, m) {
  m.class_<Layers>("Layers").def("add", &Layers::add).def("run", &Layers::run);
  m.def("make_layers", []() { return c10::make_intrusive<Layers>(); });
}

}  // namespace caravan
