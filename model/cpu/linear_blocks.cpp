// Linear layers over weights in blocks.
#include "linear_blocks.h"

namespace caravan {

bool multiply_blocks(const uint8_t* packed, c10::string_view format, const Operands& operands) {
  return with_form(format, [&](auto form) {
    multiply(BlockWeights<decltype(form)>{packed, operands.num_inputs}, operands);
  });
}

}  // namespace caravan
