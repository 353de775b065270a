// The torch.nn.Module that is being called, or the optimizer that makes a step, while a program is recorded.
#pragma once
#include <c10/util/FunctionRef.h>

#include <cstdint>
#include <vector>

namespace bringup {

// Note [Modules and phases]
// While a program is recorded, the walk over the frames continues past the user's line. It stops at the innermost call of a
// torch.nn.Module, whose `self` is the module, or at a step of an optimizer. Python names a module at its first call.
struct ModuleTargets {           // The code objects that the walk looks for.
  void* call;                    // torch.nn.Module's call
  std::vector<void*> optimizer;  // the `step` of each optimizer of torch.optim
  bool is_optimizer(void* code) const;
  bool operator==(const ModuleTargets&) const = default;
};

// Null while nothing is recorded.
const ModuleTargets* module_targets();
// The module's number in the recording. `chain()` lists the modules that are being called, innermost first.
int32_t number_of_module(void* innermost, c10::function_ref<std::vector<void*>()> chain);

// Starts to add phase and module to lines. 0 and an empty list stop it.
void watch_modules(int64_t call, const std::vector<int64_t>& optimizer);
void forget_module(int64_t address);  // The module was destroyed, and another may get its address.

}  // namespace bringup
