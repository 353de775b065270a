// What a signature returns: from torch's meta kernel, or from what a kernel returned.
#pragma once
#include "signature.h"

namespace bringup {

// False if torch has no meta kernel for this case, or the call is a mistake of the user: the CPU kernel tells which.
bool learn_by_meta(Signature& signature, const Slots& slots, const c10::IValue* arguments);

// Stores the metadata of what a kernel returned. False where a result is not a fresh plain tensor. `promised_for`: the
// results are a meta kernel's, for these arguments.
bool store_results(Signature& signature, const Stack& results, const std::vector<at::Tensor>& inputs,
                   const c10::IValue* promised_for = nullptr);

}  // namespace bringup
