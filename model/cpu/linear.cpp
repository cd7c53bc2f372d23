// Linear layers over packed weights in bfloat16, 8 bits, or 8 or 4 bits on a grid, and over those of linear_blocks.cpp.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "input_name.h"
#include "kernels.h"
#include "linear_blocks.h"
#include "norm_weight.h"

namespace caravan {
namespace {

const bf16* pointer(const OptionalTensor& tensor) {
  return tensor ? (const bf16*)tensor->const_data_ptr<at::BFloat16>() : nullptr;
}

void multiply(const at::Tensor& packed, c10::string_view format, const Operands& operands) {
  const uint8_t* bytes = (const uint8_t*)packed.const_data_ptr();
  if (format == "bfloat16")
    multiply(BFloat16Weights{bytes, operands.num_inputs}, operands);
  else if (format == "int8")
    multiply(ByteWeights{bytes, operands.num_inputs}, operands);
  else if (format == "grid of 8 bits")
    multiply(GridWeights<8>{bytes, operands.num_inputs}, operands);
  else if (format == "grid of 4 bits")
    multiply(GridWeights<4>{bytes, operands.num_inputs}, operands);
  else
    TORCH_CHECK_VALUE(multiply_blocks(bytes, format, operands), "there is no format ", format);
}

}  // namespace

at::Tensor linear(const at::Tensor& x, at::ArrayRef<WeightPart> parts, c10::string_view input,
                  const OptionalTensor& norm_weight, double eps, const OptionalTensor& bias,
                  const OptionalTensor& residual, bool float_out) {
  const Input kind = input_named(input);
  const int64_t num_rows = x.size(0), num_inputs = x.size(1) / (is_gated(kind) ? 2 : 1);
  int64_t num_outputs = 0;
  for (const WeightPart& part : parts) num_outputs += part.num_outputs;
  at::Tensor out = at::empty({num_rows, num_outputs}, x.options().dtype(float_out ? at::kFloat : at::kBFloat16));
  int64_t first = 0;
  for (const WeightPart& part : parts) {
    auto from = [&](const bf16* numbers) { return numbers ? numbers + first : nullptr; };
    multiply(part.packed, part.format,
             {.input = {kind, norm_weight_of(norm_weight), (float)eps},
              .x = (const bf16*)x.const_data_ptr<at::BFloat16>(),
              .x_stride = x.stride(0),
              .num_rows = num_rows,
              .num_inputs = num_inputs,
              .num_outputs = part.num_outputs,
              .bias = from(pointer(bias)),
              .residual = from(pointer(residual)),
              .out = {(uint8_t*)out.mutable_data_ptr() + first * out.element_size(), num_outputs, float_out}});
    first += part.num_outputs;
  }
  return out;
}

std::vector<WeightPart> weight_parts(const std::vector<at::Tensor>& packed, const std::vector<std::string>& formats,
                                     const std::vector<int64_t>& num_outputs) {
  std::vector<WeightPart> parts;
  for (size_t i = 0; i < packed.size(); i++) parts.push_back({packed[i], formats[i], num_outputs[i]});
  return parts;
}

TORCH_LIBRARY_FRAGMENT(CARAVAN_LIBRARY, m) {
  m.def(
      "linear(Tensor x, Tensor[] packed, str[] formats, int[] num_outputs, str input, Tensor? norm_weight, float eps, "
      "Tensor? bias, Tensor? residual, bool float_out) -> Tensor",
      [](const at::Tensor& x, std::vector<at::Tensor> packed, std::vector<std::string> formats,
         std::vector<int64_t> num_outputs, c10::string_view input, const OptionalTensor& norm_weight, double eps,
         const OptionalTensor& bias, const OptionalTensor& residual, bool float_out) {
        return linear(x, weight_parts(packed, formats, num_outputs), input, norm_weight, eps, bias, residual, float_out);
      });
  m.def("has_byte_products() -> bool", [] { return kHasByteProducts; });
}

}  // namespace caravan
