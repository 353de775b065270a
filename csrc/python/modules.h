// Which torch.nn.Module is being called, or which optimizer makes a step, while a program is recorded.
#pragma once
#include <c10/util/FunctionRef.h>

#include <cstdint>
#include <vector>

namespace bringup {

// Note [Modules and phases]
// While a program is recorded, the walk to the user's line goes on to the innermost call of a torch.nn.Module, whose
// `self` is the module, or to a step of an optimizer. A module is named by Python the first time it is met.
struct ModuleTargets {           // code objects
  void* call;                    // of Module's call
  std::vector<void*> optimizer;  // of the steps of torch.optim's
  bool is_optimizer(void* code) const;
  bool operator==(const ModuleTargets&) const = default;
};

// What the walk looks for; null while nothing is recorded.
const ModuleTargets* module_targets();
// The module's number in the recording. `chain()` lists the modules under way, innermost first.
int32_t number_of_module(void* innermost, c10::function_ref<std::vector<void*>()> chain);

// From now on lines say phase and module. 0 and empty end it.
void watch_modules(int64_t call, const std::vector<int64_t>& optimizer);
void forget_module(int64_t address);  // it died; another may get its address

}  // namespace bringup
