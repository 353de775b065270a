// What a signature returns: from torch's meta kernel, or from what a kernel returned.
#pragma once
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/record_function.h>

#include "launch/signature.h"

namespace bringup {

// The caller's modes, autocast and profiler must not see the calls that are made to learn something.
struct WithoutPython {
  c10::impl::ExcludeDispatchKeyGuard keys{
      c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot,
                           c10::DispatchKey::FuncTorchDynamicLayerFrontMode, c10::DispatchKey::FuncTorchDynamicLayerBackMode}) |
      c10::autocast_dispatch_keyset};
  at::AutoDispatchBelowADInplaceOrView below;
  at::DisableRecordFunctionGuard unprofiled;
  at::impl::TorchFunctionDisabledState previous = at::impl::PythonTorchFunctionTLS::get_disabled_state();
  WithoutPython() { at::impl::PythonTorchFunctionTLS::set_disabled_state(at::impl::TorchFunctionDisabledState::ALL_DISABLED); }
  ~WithoutPython() { at::impl::PythonTorchFunctionTLS::set_disabled_state(previous); }
};

// Asks torch's meta kernel, and tries the CPU's (probe.h). False if that says nothing: the call has to be run.
bool learn(Signature& signature, const Slots& slots, const c10::IValue* arguments);
// Takes what the CPU kernel has returned. False where a result is not a fresh plain tensor.
bool learn_from(Signature& signature, const Stack& results, const std::vector<at::Tensor>& inputs);

// The metadata of what a kernel returned for `inputs`, whose metadata before the call was `before`; nothing where a result is
// not a fresh plain tensor.
std::optional<Results> results_of(const Signature& signature, const Stack& results, const std::vector<at::Tensor>& inputs,
                                  const std::vector<TensorMeta>& before);

}  // namespace bringup
