// What the chip leaves to the host.
#pragma once
#include "signature.h"

namespace bringup {

// Does the chip leave this call to the host? Decided by the operator and one dtype: see `deciding_dtype`.
bool falls_back(const Op& op, const Slots& slots);

// Raises if the user wants no fallback (--strict).
void refuse_if_strict(const Op& op, const Slots& slots, const std::string& chip);

}  // namespace bringup
