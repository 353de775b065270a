// What the chip leaves to the host.
#pragma once
#include "launch/signature.h"

namespace bringup {

// Does the chip leave this call to the host? Decided by the operator and the dtype that it computes in.
bool falls_back(const Signature& signature);

// Raises if the user wants no fallback (--strict).
void refuse_if_strict(const Signature& signature, const std::string& chip);

}  // namespace bringup
