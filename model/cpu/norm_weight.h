// The weight of a norm as a tensor.
#pragma once

#include "kernels.h"
#include "vector.h"

namespace caravan {

inline NormWeight norm_weight_of(const OptionalTensor& tensor) {
  if (!tensor) return {nullptr, nullptr};
  if (tensor->scalar_type() == at::kFloat) return {nullptr, tensor->const_data_ptr<float>()};
  return {(const bf16*)tensor->const_data_ptr<at::BFloat16>(), nullptr};
}

}  // namespace caravan
