// How ranks, the processes that compute one model together, get the outputs that the others have computed.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/custom_class.h>

#include <string>
#include <vector>

namespace caravan {

class Exchange : public torch::CustomClassHolder {
 public:
  // The parts [T, sizes[rank]] of all ranks side by side, [T, sum of sizes], on each of them; all ranks call it with the
  // same T and sizes. Throws if one of them is gone or does not call in time, and from then on.
  virtual at::Tensor gather(const at::Tensor& part, const std::vector<int64_t>& sizes) = 0;

  // Leave the others, whose `gather` throws from now on. No other thread may be in a call.
  virtual void close() = 0;

  // Why `gather` throws; empty while it does not.
  std::string failure() const { return failure_; }

  const int64_t rank, num_ranks;

 protected:
  Exchange(int64_t rank, int64_t num_ranks) : rank(rank), num_ranks(num_ranks) {
    TORCH_CHECK_VALUE(0 <= rank && rank < num_ranks, "rank ", rank, " of ", num_ranks);
  }

  // Check what is passed to `gather`, and return the sum of the sizes.
  int64_t checked_width(const at::Tensor& part, const std::vector<int64_t>& sizes) const;

  std::string failure_;
};

// Through memory that all ranks map: a file of zeros at first, which gets its size from them.
c10::intrusive_ptr<Exchange> shared_memory_exchange(int64_t descriptor, int64_t rank, int64_t num_ranks,
                                                    double timeout_seconds);

// Through the process group of that name of torch.distributed, which has a timeout of its own.
c10::intrusive_ptr<Exchange> group_exchange(std::string group_name, int64_t rank, int64_t num_ranks);

}  // namespace caravan
