// The layers of a model one after the other: model.llama.Block in a few calls of kernels.
#include <torch/custom_class.h>
#include <torch/library.h>

#include <chrono>
#include <string>
#include <tuple>
#include <vector>

#include "adapters.h"
#include "exchange.h"
#include "experts.h"
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
  double soft_cap, eps;
  OptionalTensor attention_norm;
  Weight qkv;
  OptionalTensor query_norm, key_norm;
  Weight output;
  OptionalTensor attention_post_norm, feed_forward_norm;
  std::string activation;
  OptionalTensor feed_forward_post_norm;
  std::optional<Router> router;  // without, the layer has one network
  std::vector<Network> networks;
};

// How the outputs of the layers are split between ranks: numbers of each rank, in their order.
struct Split {
  c10::intrusive_ptr<Exchange> exchange;  // null: one rank has all outputs
  std::vector<int64_t> head_sizes, hidden_sizes, inner_sizes;

  // Each output is a sum over all inputs, so the next product needs the outputs of all ranks.
  at::Tensor gather(const at::Tensor& part, const std::vector<int64_t>& sizes) const {
    return exchange ? exchange->gather(part, sizes) : part;
  }

  // [T, 2 * inner]: gate and up of this rank lie side by side, and so must those of all ranks.
  at::Tensor gather_gate_up(const at::Tensor& part) const {
    if (!exchange) return part;
    const int64_t num_rows = part.size(0);
    return exchange->gather(part.view({2 * num_rows, -1}), inner_sizes).view({num_rows, -1});
  }

  // The columns of x [T, hidden_size] that this rank computes anew.
  at::Tensor own(const at::Tensor& x) const {
    if (!exchange) return x;
    int64_t first = 0;
    for (int64_t other = 0; other < exchange->rank; other++) first += hidden_sizes[other];
    return x.narrow(1, first, hidden_sizes[exchange->rank]).contiguous();
  }
};

// The layers in their order. They are passed once: a call from Python costs more with each argument.
struct Layers : torch::CustomClassHolder {
  void add_layer(int64_t window, int64_t num_heads, double soft_cap, double eps, OptionalTensor attention_norm,
                 PassedWeight qkv, OptionalTensor qkv_bias, OptionalTensor query_norm, OptionalTensor key_norm,
                 PassedWeight output, OptionalTensor output_bias, OptionalTensor attention_post_norm,
                 OptionalTensor feed_forward_norm, std::string activation, OptionalTensor feed_forward_post_norm) {
    layers.push_back({window, num_heads, soft_cap, eps, attention_norm, weight_of(qkv, qkv_bias), query_norm, key_norm,
                      weight_of(output, output_bias), attention_post_norm, feed_forward_norm, activation,
                      feed_forward_post_norm, {}, {}});
  }

  void add_router(PassedWeight router, int64_t num_chosen, bool normalizes_weights) {
    layers.back().router = Router{weight_of(router).parts, num_chosen, normalizes_weights};
  }

  void add_network(PassedWeight gate_up, PassedWeight down) {
    layers.back().networks.push_back({weight_of(gate_up).parts, weight_of(down).parts});
  }

  // From now on a layer has the outputs of one rank.
  void split_up(c10::intrusive_ptr<Exchange> exchange, std::vector<int64_t> head_sizes,
                std::vector<int64_t> hidden_sizes, std::vector<int64_t> inner_sizes) {
    split = {exchange, head_sizes, hidden_sizes, inner_sizes};
  }

  // The wanted rows of x [T, hidden_size] after all layers, which are all of them or some, in their order; this step's
  // keys and values are written into each layer's pages. What only the other rows would get from the last layer is left.
  at::Tensor run(at::Tensor x, at::Tensor cos, at::Tensor sin, at::Tensor slots, at::Tensor query_starts,
                 at::Tensor lengths, at::Tensor block_tables, std::vector<at::Tensor> key_pages,
                 std::vector<at::Tensor> value_pages, at::Tensor wanted_rows, OptionalTensor query_scale,
                 OptionalTensor seconds) {
    return run_layers(x, cos, sin, slots, query_starts, lengths, block_tables, key_pages, value_pages, wanted_rows,
                      query_scale, seconds, {}, 0, {});
  }

  // The same, with the adapters in the slots of some rows: row_slots [T], -1 for rows without. The first layer here is
  // number first_layer of the model.
  at::Tensor run_adapted(at::Tensor x, at::Tensor cos, at::Tensor sin, at::Tensor slots, at::Tensor query_starts,
                         at::Tensor lengths, at::Tensor block_tables, std::vector<at::Tensor> key_pages,
                         std::vector<at::Tensor> value_pages, at::Tensor wanted_rows, OptionalTensor query_scale,
                         OptionalTensor seconds, c10::intrusive_ptr<Adapters> adapters, int64_t first_layer,
                         at::Tensor row_slots) {
    return run_layers(x, cos, sin, slots, query_starts, lengths, block_tables, key_pages, value_pages, wanted_rows,
                      query_scale, seconds, adapters, first_layer, row_slots);
  }

  std::vector<Layer> layers;
  Split split;

 private:
  at::Tensor run_layers(at::Tensor x, const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& slots,
                        const at::Tensor& query_starts, const at::Tensor& lengths, const at::Tensor& block_tables,
                        const std::vector<at::Tensor>& key_pages, const std::vector<at::Tensor>& value_pages,
                        const at::Tensor& wanted_rows, const OptionalTensor& query_scale, const OptionalTensor& seconds,
                        const c10::intrusive_ptr<Adapters>& adapters, int64_t first_layer, at::Tensor row_slots) {
    std::vector<AdaptedRows> adapted;
    if (adapters) adapted = adapted_rows(row_slots);
    with_team([&] {
      PartClock clock(seconds);
      for (size_t i = 0; i < layers.size(); i++) {
        const Layer& l = layers[i];
        auto adapt = [&](AdaptedLinear linear, const at::Tensor& from, c10::string_view input, const OptionalTensor& norm,
                         const at::Tensor& to) {
          if (!adapted.empty()) adapters->apply(adapted, first_layer + i, linear, from, input, norm, l.eps, to);
        };
        // f(x) W^T + bias, of x after a norm if there is one.
        auto normalized_linear = [&](const OptionalTensor& norm, const std::vector<WeightPart>& weight,
                                     const OptionalTensor& bias, AdaptedLinear name) {
          const char* input = norm ? "rms_norm" : "";
          at::Tensor y = linear(x, weight, input, norm, l.eps, bias, {}, false);
          adapt(name, x, input, norm, y);
          return y;
        };
        // x plus what a part of the layer returns, after a norm if there is one.
        auto add = [&](const at::Tensor& inner, c10::string_view input, const std::vector<WeightPart>& weight,
                       const OptionalTensor& bias, AdaptedLinear name, const OptionalTensor& post_norm) {
          OptionalTensor residual;
          if (!post_norm) residual = split.own(x);
          at::Tensor y = linear(inner, weight, input, {}, 0, bias, residual, false);
          adapt(name, inner, input, {}, y);
          y = split.gather(y, split.hidden_sizes);
          return post_norm ? add_normalized(x, y, *post_norm, l.eps) : y;
        };
        at::Tensor qkv = normalized_linear(l.attention_norm, l.qkv.parts, l.qkv.bias, AdaptedLinear::kQkv);
        clock.charge(0);
        at::Tensor queries = rotate_and_write(qkv, cos, sin, slots, key_pages[i], value_pages[i], l.query_norm,
                                              l.key_norm, l.eps, query_scale);
        clock.skip();
        at::Tensor mixed = attend(queries, key_pages[i], value_pages[i], query_starts, lengths, block_tables, l.window,
                                  l.soft_cap)
                               .flatten(1);
        clock.charge(1);
        if (i + 1 == layers.size() && wanted_rows.size(0) < x.size(0)) {
          x = x.index_select(0, wanted_rows);
          if (wanted_rows.size(0) == 0) break;  // the pages are written; there is nothing to gather
          mixed = mixed.index_select(0, wanted_rows);
          if (adapters) adapted = adapted_rows(row_slots.index_select(0, wanted_rows));
        }
        mixed = split.gather(mixed, split.head_sizes);
        x = add(mixed, "", l.output.parts, l.output.bias, AdaptedLinear::kOutput, l.attention_post_norm);
        if (l.router) {
          x = add_experts(x, *l.router, l.networks, l.feed_forward_norm, l.eps);
        } else {
          const Network& network = l.networks[0];
          at::Tensor gate_up = normalized_linear(l.feed_forward_norm, network.gate_up, {}, AdaptedLinear::kGateUp);
          x = add(split.gather_gate_up(gate_up), l.activation, network.down, {}, AdaptedLinear::kDown,
                  l.feed_forward_post_norm);
        }
        clock.charge(0);
      }
    });
    return x;
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(CARAVAN_LIBRARY, m) {
  m.class_<Exchange>("Exchange")  // before it is named in the schema of Layers
      .def("gather", &Exchange::gather)
      .def("close", &Exchange::close)
      .def("failure", &Exchange::failure);
  m.def("share_memory", shared_memory_exchange);
  m.def("join_group", group_exchange);
  m.class_<Adapters>("Adapters").def("add", &Adapters::add).def("remove", &Adapters::remove);
  m.class_<Layers>("Layers")
      .def("add", &Layers::add_layer)
      .def("add_router", &Layers::add_router)
      .def("add_network", &Layers::add_network)
      .def("split_up", &Layers::split_up)
      .def("run", &Layers::run)
      .def("run_adapted", &Layers::run_adapted);
  m.def("make_adapters", []() { return c10::make_intrusive<Adapters>(); });
  m.def("make_layers", []() { return c10::make_intrusive<Layers>(); });
}

}  // namespace caravan
