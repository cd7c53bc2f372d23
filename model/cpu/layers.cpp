// The layers of a model one after the other, each model.llama.Block in six calls of kernels.
#include <torch/custom_class.h>
#include <torch/library.h>

#include <chrono>
#include <string>
#include <vector>

#include "kernels.h"

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
  at::Tensor packed;
  std::string format;
  OptionalTensor bias;
};

struct Layer {
  int64_t window, num_heads;
  double eps;
  at::Tensor attention_norm;
  Weight qkv;
  OptionalTensor query_norm, key_norm;
  Weight output;
  at::Tensor feed_forward_norm;
  Weight gate_up;  // the gate's rows, then the up projection's
  int64_t num_gate_up;
  Weight down;
};

// The layers in their order. They are passed once: a call from Python costs more with each argument.
struct Layers : torch::CustomClassHolder {
  void add(int64_t window, int64_t num_heads, double eps, at::Tensor attention_norm, at::Tensor qkv,
           std::string qkv_format, OptionalTensor qkv_bias, OptionalTensor query_norm, OptionalTensor key_norm,
           at::Tensor output, std::string output_format, OptionalTensor output_bias, at::Tensor feed_forward_norm,
           at::Tensor gate_up, std::string gate_up_format, int64_t num_gate_up, at::Tensor down,
           std::string down_format) {
    layers.push_back({window,
                      num_heads,
                      eps,
                      attention_norm,
                      {qkv, qkv_format, qkv_bias},
                      query_norm,
                      key_norm,
                      {output, output_format, output_bias},
                      feed_forward_norm,
                      {gate_up, gate_up_format, {}},
                      num_gate_up,
                      {down, down_format, {}}});
  }

  // The wanted rows of x [T, hidden_size] after all layers, which are all of them or some, in their order; this step's
  // keys and values are written into each layer's pages. What only the other rows would get from the last layer is left.
  at::Tensor run(at::Tensor x, at::Tensor cos, at::Tensor sin, at::Tensor slots, at::Tensor query_starts,
                 at::Tensor lengths, at::Tensor block_tables, std::vector<at::Tensor> key_pages,
                 std::vector<at::Tensor> value_pages, at::Tensor wanted_rows, OptionalTensor seconds) {
    PartClock clock(seconds);
    const int64_t hidden_size = x.size(1), num_kv_heads = key_pages[0].size(2), head_dim = 2 * cos.size(1);
    for (size_t i = 0; i < layers.size(); i++) {
      const Layer& l = layers[i];
      const int64_t num_qkv = (l.num_heads + 2 * num_kv_heads) * head_dim;
      at::Tensor qkv = linear(x, l.qkv.packed, l.qkv.format, num_qkv, "rms_norm", l.attention_norm, l.eps, l.qkv.bias, {},
                              false);
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
      x = linear(mixed, l.output.packed, l.output.format, hidden_size, "", {}, 0, l.output.bias, x, false);
      at::Tensor gate_up = linear(x, l.gate_up.packed, l.gate_up.format, l.num_gate_up, "rms_norm",
                                  l.feed_forward_norm, l.eps, {}, {}, false);
      x = linear(gate_up, l.down.packed, l.down.format, hidden_size, "swiglu", {}, 0, {}, x, false);
      clock.charge(0);
    }
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
