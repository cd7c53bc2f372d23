// One layer of the model: model.llama.Block in six calls of kernels.
#include <torch/library.h>

#include <chrono>

#include "kernels.h"

namespace caravan {
namespace {

// Adds what passed since the last call to the seconds of a part: 0 linears, 1 attention, 2 rest. Without a place, nothing.
class PartClock {
 public:
  explicit PartClock(const OptionalTensor& seconds) : seconds_(seconds ? seconds->mutable_data_ptr<double>() : nullptr) {
    if (seconds_) last_ = std::chrono::steady_clock::now();
  }
  void charge(int part) {
    if (!seconds_) return;
    const auto now = std::chrono::steady_clock::now();
    seconds_[part] += std::chrono::duration<double>(now - last_).count();
    last_ = now;
  }

 private:
  double* seconds_;
  std::chrono::steady_clock::time_point last_;
};

// The weights of a layer. Those of gate_up are the gate's rows, then the up projection's.
at::Tensor layer(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& slots,
                 const at::Tensor& query_starts, const at::Tensor& lengths, const at::Tensor& block_tables,
                 at::Tensor key_pages, at::Tensor value_pages, int64_t window, int64_t num_heads, double eps,
                 const at::Tensor& attention_norm, const at::Tensor& qkv_weight, c10::string_view qkv_format,
                 const OptionalTensor& qkv_bias, const OptionalTensor& query_norm, const OptionalTensor& key_norm,
                 const at::Tensor& output_weight, c10::string_view output_format, const OptionalTensor& output_bias,
                 const at::Tensor& feed_forward_norm, const at::Tensor& gate_up_weight, c10::string_view gate_up_format,
                 int64_t num_gate_up, const at::Tensor& down_weight, c10::string_view down_format,
                 const OptionalTensor& seconds) {
  PartClock clock(seconds);
  const int64_t hidden_size = x.size(1), num_kv_heads = key_pages.size(2), head_dim = key_pages.size(3);
  const int64_t num_qkv = (num_heads + 2 * num_kv_heads) * head_dim;
  at::Tensor qkv = linear(x, qkv_weight, qkv_format, num_qkv, "rms_norm", attention_norm, eps, qkv_bias, {}, false);
  clock.charge(0);
  at::Tensor queries = rotate_and_write(qkv, cos, sin, slots, key_pages, value_pages, query_norm, key_norm, eps);
  clock.charge(2);
  at::Tensor mixed = attend(queries, key_pages, value_pages, query_starts, lengths, block_tables, window).flatten(1);
  clock.charge(1);
  at::Tensor y = linear(mixed, output_weight, output_format, hidden_size, "", {}, 0, output_bias, x, false);
  at::Tensor gate_up =
      linear(y, gate_up_weight, gate_up_format, num_gate_up, "rms_norm", feed_forward_norm, eps, {}, {}, false);
  at::Tensor z = linear(gate_up, down_weight, down_format, hidden_size, "swiglu", {}, 0, {}, y, false);
  clock.charge(0);
  return z;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(CARAVAN_LIBRARY, m) {
  m.def(
      "layer(Tensor x, Tensor cos, Tensor sin, Tensor slots, Tensor query_starts, Tensor lengths, Tensor block_tables, "
      "Tensor(a!) key_pages, Tensor(b!) value_pages, int window, int num_heads, float eps, Tensor attention_norm, "
      "Tensor qkv_weight, "
      "str qkv_format, Tensor? qkv_bias, Tensor? query_norm, Tensor? key_norm, Tensor output_weight, "
      "str output_format, Tensor? output_bias, Tensor feed_forward_norm, Tensor gate_up_weight, str gate_up_format, "
      "int num_gate_up, Tensor down_weight, str down_format, Tensor(c!)? seconds) -> Tensor",
      layer);
}

}  // namespace caravan
