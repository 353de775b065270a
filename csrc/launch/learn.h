// Learns what a signature returns: from torch's meta kernel, or from the results of the CPU kernel.
#pragma once
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/record_function.h>

#include "launch/signature.h"

namespace bringup {

// Hides calls that are made for learning from the program's modes, autocast and profiler.
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

// Runs torch's meta kernel, and tries the CPU kernel (probe.h). False if this does not tell; then the call has to be run.
bool learn(Signature& signature, const Slots& slots, const c10::IValue* arguments);
// Learns from the results of the CPU kernel. False if a result is not a new dense tensor.
bool learn_from(Signature& signature, const Stack& results, const std::vector<at::Tensor>& inputs);

// Returns the metadata of a kernel's results. `inputs` are its inputs, and `before` is their metadata before the call. Returns
// nothing if a result is not a new dense tensor.
std::optional<Results> results_of(const Signature& signature, const Stack& results, const std::vector<at::Tensor>& inputs,
                                  const std::vector<TensorMeta>& before);

}  // namespace bringup
