// Products of low-rank adapters. A row's numbers do not depend on the other rows of the step: each sum has one order.
#include "adapters.h"

#include <torch/library.h>

#include "input_name.h"
#include "norm_weight.h"
#include "threads.h"

namespace caravan {
namespace {

constexpr int64_t kMaxRows = std::tuple_size_v<decltype(AdaptedRows::rows)>;

// hidden[row][rank] = scale * A^T x for kRows rows x of num_inputs floats, `stride` apart. The sums over even and over odd
// inputs are added at the end: two chains of additions run at the same time.
template <int kRows>
void shrink(const AdapterPart& part, const float* x, int64_t stride, int64_t num_inputs, float* hidden) {
  const int64_t rank = part.a.size(1);
  const bf16* a = (const bf16*)part.a.const_data_ptr<at::BFloat16>();
  for (int64_t r = 0; r < rank; r += kLanes) {
    f32x16 even[kRows] = {}, odd[kRows] = {};
    int64_t i = 0;
    for (; i + 1 < num_inputs; i += 2) {
      const f32x16 first = load_floats(a + i * rank + r), second = load_floats(a + (i + 1) * rank + r);
      for (int row = 0; row < kRows; row++) {
        even[row] += first * x[row * stride + i];
        odd[row] += second * x[row * stride + i + 1];
      }
    }
    if (i < num_inputs) {
      const f32x16 last = load_floats(a + i * rank + r);
      for (int row = 0; row < kRows; row++) even[row] += last * x[row * stride + i];
    }
    for (int row = 0; row < kRows; row++) store(hidden + row * rank + r, (even[row] + odd[row]) * part.scale);
  }
}

// y[row] += B^T hidden[row] for kRows rows.
template <int kRows>
void expand(const AdapterPart& part, const float* hidden, const std::array<bf16*, kMaxRows>& y) {
  const int64_t rank = part.b.size(0), width = part.b.size(1);
  const bf16* b = (const bf16*)part.b.const_data_ptr<at::BFloat16>();
  for (int64_t i = 0; i < part.num_outputs; i += kLanes) {
    f32x16 sums[kRows] = {};
    for (int64_t r = 0; r < rank; r++) {
      const f32x16 weights = load_floats(b + r * width + i);
      for (int row = 0; row < kRows; row++) sums[row] += weights * hidden[row * rank + r];
    }
    const int64_t count = std::min(kLanes, part.num_outputs - i);
    for (int row = 0; row < kRows; row++) store_floats(y[row] + i, load_floats(y[row] + i, count) + sums[row], count);
  }
}

template <int kRows>
void add_product(const AdapterPart& part, const float* x, int64_t stride, int64_t num_inputs,
                 const std::array<bf16*, kMaxRows>& y) {
  const auto hidden = lines_of<float>(kRows * part.a.size(1));
  shrink<kRows>(part, x, stride, num_inputs, hidden.get());
  expand<kRows>(part, hidden.get(), y);
}

}  // namespace

void Adapters::add(int64_t slot, int64_t layer, int64_t linear, int64_t first, int64_t num_outputs, double scale,
                   at::Tensor a, at::Tensor b) {
  TORCH_CHECK_VALUE(a.dim() == 2 && b.dim() == 2 && a.size(1) == b.size(0) && a.size(1) % kLanes == 0 &&
                        b.size(1) % kLanes == 0 && b.size(1) >= num_outputs && a.is_contiguous() && b.is_contiguous(),
                    "the matrices of an adapter have other shapes");
  parts[{slot, layer, linear}].push_back({first, num_outputs, (float)scale, a, b});
}

void Adapters::remove(int64_t slot) {
  std::erase_if(parts, [&](const auto& entry) { return entry.first[0] == slot; });
}

void Adapters::apply(const std::vector<AdaptedRows>& tiles, int64_t layer, AdaptedLinear linear, const at::Tensor& x,
                     c10::string_view input, const OptionalTensor& norm_weight, double eps, const at::Tensor& y) const {
  const Input kind = input_named(input);
  const int64_t num_inputs = x.size(1) / (is_gated(kind) ? 2 : 1);
  const int64_t padded = divide_up(num_inputs, kByteGroup) * kByteGroup;
  const InputStep step{kind, norm_weight_of(norm_weight), (float)eps};
  const bf16* inputs = (const bf16*)x.const_data_ptr<at::BFloat16>();
  bf16* outputs = (bf16*)y.mutable_data_ptr<at::BFloat16>();
  share_out(tiles.size(), [&](int64_t index) {
    const AdaptedRows& tile = tiles[index];
    const auto found = parts.find({tile.slot, layer, (int64_t)linear});
    if (found == parts.end()) return;
    const auto prepared = lines_of<float>(kMaxRows * padded);
    for (int64_t i = 0; i < tile.num_rows; i++)
      prepare_row(step, inputs + tile.rows[i] * x.stride(0), num_inputs, prepared.get() + i * padded);
    for (const AdapterPart& part : found->second) {
      TORCH_CHECK_VALUE(part.a.size(0) == num_inputs && part.first + part.num_outputs <= y.size(1),
                        "an adapter is for a layer of another size");
      std::array<bf16*, kMaxRows> own{};
      for (int64_t i = 0; i < tile.num_rows; i++) own[i] = outputs + tile.rows[i] * y.stride(0) + part.first;
      switch (tile.num_rows) {
        case 1:
          add_product<1>(part, prepared.get(), padded, num_inputs, own);
          break;
        case 2:
          add_product<2>(part, prepared.get(), padded, num_inputs, own);
          break;
        case 3:
          add_product<3>(part, prepared.get(), padded, num_inputs, own);
          break;
        default:
          add_product<4>(part, prepared.get(), padded, num_inputs, own);
      }
    }
  });
}

std::vector<AdaptedRows> adapted_rows(const at::Tensor& slots) {
  const int64_t* slot_of = slots.const_data_ptr<int64_t>();
  std::map<int64_t, std::vector<int64_t>> rows;
  for (int64_t row = 0; row < slots.size(0); row++)
    if (slot_of[row] >= 0) rows[slot_of[row]].push_back(row);
  std::vector<AdaptedRows> tiles;
  for (const auto& [slot, own] : rows)
    for (size_t first = 0; first < own.size(); first += kMaxRows) {
      AdaptedRows tile{slot, {}, std::min<int64_t>(kMaxRows, own.size() - first)};
      std::copy_n(own.begin() + first, tile.num_rows, tile.rows.begin());
      tiles.push_back(tile);
    }
  return tiles;
}

}  // namespace caravan
