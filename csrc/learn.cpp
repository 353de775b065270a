#include "learn.h"

#include <ATen/EmptyTensor.h>
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/record_function.h>

#include <mutex>
#include <unordered_set>

#include "runtime.h"

namespace bringup {

using c10::DispatchKey;
using c10::DispatchKeySet;
using c10::IValue;

namespace {

// Modes of the caller must not see the meta kernels' own calls.
struct NoPython {
  c10::impl::ExcludeDispatchKeyGuard keys{
      DispatchKeySet({DispatchKey::Python, DispatchKey::PythonTLSSnapshot, DispatchKey::FuncTorchDynamicLayerFrontMode,
                      DispatchKey::FuncTorchDynamicLayerBackMode}) |
      c10::autocast_dispatch_keyset};
  at::AutoDispatchBelowADInplaceOrView below;
  at::DisableRecordFunctionGuard unprofiled;
  at::impl::TorchFunctionDisabledState previous = at::impl::PythonTorchFunctionTLS::get_disabled_state();
  NoPython() { at::impl::PythonTorchFunctionTLS::set_disabled_state(at::impl::TorchFunctionDisabledState::ALL_DISABLED); }
  ~NoPython() { at::impl::PythonTorchFunctionTLS::set_disabled_state(previous); }
};

// Gradients that autograd did not ask for: CPU kernels leave them undefined, some meta kernels do not.
void drop_masked(Signature& signature, const IValue* arguments) {
  int mask_argument = signature.op->mask_argument;
  if (mask_argument < 0 || !arguments[mask_argument].isList()) return;
  auto mask = arguments[mask_argument].toListRef();
  for (size_t i = 0; i < std::min(mask.size(), signature.outputs.size()); ++i)
    if (!mask[i].toBool()) signature.outputs[i] = TensorMeta();
}

// Where torch's meta kernels of normalisations differ from its CPU kernels: in evaluation mode the CPU's batch
// normalisation returns empty statistics, and statistics have the input's dtype unless a parameter is wider.
void correct_promise(Signature& signature, const IValue* arguments) {
  static const auto* batch_norms = new std::unordered_set<std::string>{"aten::native_batch_norm",
                                                                       "aten::_native_batch_norm_legit",
                                                                       "aten::_native_batch_norm_legit.no_stats",
                                                                       "aten::_native_batch_norm_legit_no_training",
                                                                       "aten::_batch_norm_with_update",
                                                                       "aten::_batch_norm_no_update"};
  const std::string& name = signature.op->name;
  bool batch_norm = batch_norms->count(name) != 0;
  if ((!batch_norm && name != "aten::native_layer_norm") || signature.inputs.empty()) return;
  constexpr size_t kTraining = 5;  // argument of the first two
  bool decides = name == "aten::native_batch_norm" || name == "aten::_native_batch_norm_legit";
  bool empty =
      batch_norm && (decides ? !arguments[kTraining].toBool()
                             : name.find("_no_training") != std::string::npos || name.find("_no_update") != std::string::npos);
  c10::ScalarType dtype = signature.inputs[0].dtype;
  for (const TensorMeta& input : signature.inputs)
    if (input.defined && input.dtype == c10::kFloat && c10::isReducedFloatingType(dtype)) dtype = c10::kFloat;
  for (size_t i = 1; i < std::min<size_t>(signature.outputs.size(), 3); ++i) {
    TensorMeta& statistics = signature.outputs[i];
    if (empty) {
      statistics.sizes.assign(1, 0);
      statistics.strides.assign(1, 1);
    }
    statistics.dtype = dtype;
    statistics.nbytes = at::detail::computeStorageNbytes(statistics.sizes, statistics.strides, c10::elementSize(dtype));
  }
}

}  // namespace

bool store_results(Signature& signature, const Stack& results, const std::vector<at::Tensor>& inputs,
                   const IValue* promised_for) {
  const Op& op = *signature.op;
  std::vector<TensorMeta> outputs;
  std::vector<int> list_sizes;
  auto store = [&](const at::Tensor& tensor) {
    if (tensor.defined()) {
      if (tensor.layout() != c10::kStrided || tensor.is_quantized() || !tensor.has_storage()) return false;
      for (const auto& input : inputs)
        if (input.defined() && input.has_storage() && input.is_alias_of(tensor)) return false;
    }
    outputs.push_back(meta_of(tensor));
    return true;
  };
  for (size_t i = 0; i < op.returns.size(); ++i) {
    const IValue& value = results[i];
    if (op.returns[i].kind == ReturnInfo::Fresh) {
      if (!store(value.isTensor() ? value.toTensor() : at::Tensor())) return false;
    } else if (op.returns[i].kind == ReturnInfo::FreshList) {
      auto elements = value.toListRef();
      list_sizes.push_back(int(elements.size()));
      for (const IValue& element : elements)
        if (!store(element.toTensor())) return false;
    }
  }
  std::vector<std::pair<int, TensorMeta>> resized;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!inputs[i].defined() || signature.storage_of[i] < 0) continue;
    TensorMeta after = meta_of(inputs[i]);
    if (!after.same_layout(signature.inputs[i])) resized.emplace_back(int(i), std::move(after));
  }
  static std::mutex mutex;  // two threads may learn the same signature
  std::lock_guard<std::mutex> lock(mutex);
  if (signature.state != Signature::Unknown) return true;
  signature.outputs = std::move(outputs);
  signature.list_sizes = std::move(list_sizes);
  signature.resized = std::move(resized);
  if (promised_for) {
    drop_masked(signature, promised_for);
    correct_promise(signature, promised_for);
  }
  signature.state.store(Signature::Known, std::memory_order_release);
  return true;
}

bool learn_by_meta(Signature& signature, const Slots& slots, const IValue* arguments) {
  Op& op = *signature.op;
  if (!op.trust_meta) return false;
  try {
    NoPython guard;
    std::vector<at::Tensor> inputs;
    for (size_t i = 0; i < slots.size(); ++i) {
      const TensorMeta& meta = signature.inputs[i];
      if (signature.storage_of[i] < 0) {
        inputs.push_back(*slots[i].tensor);
        continue;
      }
      at::Tensor tensor = at::detail::empty_strided_meta(meta.sizes, meta.strides, meta.dtype);
      mark_conjugate(tensor, meta);
      inputs.push_back(std::move(tensor));
    }
    Stack stack = rebuild(op, arguments, c10::DeviceType::Meta, nullptr, [&](int slot) { return inputs[size_t(slot)]; });
    op.handle.redispatchBoxed(DispatchKeySet(DispatchKey::Meta), &stack);
    if (!store_results(signature, stack, inputs, arguments)) return false;
    ++counters().learned_by_meta;
    return true;
  } catch (const c10::NotImplementedError&) {
    if (!op.in_place) return false;
    signature.state.store(Signature::Known, std::memory_order_release);  // returns nothing new: there is nothing to learn
    return true;
  } catch (const std::exception&) {
    return false;  // no meta kernel for this case, or a mistake of the user: the CPU kernel tells which, in its words
  }
}

}  // namespace bringup
