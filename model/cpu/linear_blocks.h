// Linear layers over weights in blocks. They are compiled in a file of their own, in parallel with the others.
#pragma once

#include <c10/util/string_view.h>

#include "product.h"

namespace caravan {

// Multiply with weights in that format of block_forms.h; false if there is none of that name.
bool multiply_blocks(const uint8_t* packed, c10::string_view format, const Operands& operands);

}  // namespace caravan
