// The names of what happens to a row before a product, as Python passes them.
#pragma once

#include <c10/util/Exception.h>
#include <c10/util/string_view.h>

#include "rows.h"

namespace caravan {

inline Input input_named(c10::string_view name) {
  if (name == "rms_norm") return Input::kRmsNorm;
  if (name == "swiglu") return Input::kSwiGlu;
  if (name == "geglu") return Input::kGeGlu;
  TORCH_CHECK_VALUE(name.empty(), "there is no input ", name);
  return Input::kPlain;
}

// Whether a row has two numbers for each input of the product: the gate's, then the up projection's.
inline bool is_gated(Input input) { return input == Input::kSwiGlu || input == Input::kGeGlu; }

}  // namespace caravan
