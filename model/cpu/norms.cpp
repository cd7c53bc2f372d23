// A norm of what a part of a layer returns, before it is added to the residual stream.
#include <ATen/ops/empty_like.h>

#include "norm_weight.h"
#include "threads.h"

namespace caravan {

at::Tensor add_normalized(const at::Tensor& x, const at::Tensor& y, const at::Tensor& norm_weight, double eps) {
  at::Tensor out = at::empty_like(x);
  const int64_t num_columns = x.size(1);
  const NormWeight weight = norm_weight_of(norm_weight);
  share_out(x.size(0), [&](int64_t row) {
    const bf16* from = (const bf16*)x.const_data_ptr<at::BFloat16>() + row * num_columns;
    const bf16* added = (const bf16*)y.const_data_ptr<at::BFloat16>() + row * num_columns;
    bf16* to = (bf16*)out.mutable_data_ptr<at::BFloat16>() + row * num_columns;
    const float scale = rms_scale(added, num_columns, eps);
    for (int64_t i = 0; i < num_columns; i += kLanes) {
      const int64_t count = std::min(kLanes, num_columns - i);
      store_floats(to + i, load_floats(from + i, count) + load_floats(added + i, count) * scale * weight.load(i, count),
                   count);
    }
  });
  return out;
}

}  // namespace caravan
