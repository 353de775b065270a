#include "launch/learn.h"

#include <ATen/EmptyTensor.h>

#include <algorithm>
#include <mutex>
#include <unordered_set>

#include "launch/probe.h"
#include "runtime/runtime.h"

namespace bringup {

using c10::DispatchKey;
using c10::DispatchKeySet;
using c10::IValue;

namespace {

// Drops gradients that autograd has not requested. CPU kernels leave them undefined, but some meta kernels do not.
void drop_masked(const Op& op, Results& promised, const IValue* arguments) {
  if (op.mask_argument < 0 || !arguments[op.mask_argument].isList()) return;
  auto mask = arguments[op.mask_argument].toListRef();
  for (size_t i = 0; i < std::min(mask.size(), promised.outputs.size()); ++i)
    if (!mask[i].toBool()) promised.outputs[i] = TensorMeta();
}

// Corrects what torch's meta kernel promises for an encoder's attention: without weights, the second result is undefined.
void correct_attention(const Signature& signature, Results& promised, const IValue* arguments) {
  if (signature.op->name != "aten::_native_multi_head_attention" || promised.outputs.size() != 2) return;
  const IValue* need_weights = argument_of(*signature.op, arguments, "need_weights");
  if (need_weights && need_weights->isBool() && !need_weights->toBool()) promised.outputs[1] = TensorMeta();
}

// Corrects what torch's meta kernels promise for normalisations. In evaluation mode, the CPU's batch normalisation returns empty
// statistics. Statistics have the input's dtype unless a parameter has a wider one.
void correct_promise(const Signature& signature, Results& promised, const IValue* arguments) {
  static const auto* batch_norms = new std::unordered_set<std::string>{"aten::native_batch_norm",
                                                                       "aten::_native_batch_norm_legit",
                                                                       "aten::_native_batch_norm_legit.no_stats",
                                                                       "aten::_native_batch_norm_legit_no_training",
                                                                       "aten::_batch_norm_with_update",
                                                                       "aten::_batch_norm_no_update"};
  const std::string& name = signature.op->name;
  bool batch_norm = batch_norms->count(name) != 0;
  if ((!batch_norm && name != "aten::native_layer_norm") || signature.inputs.empty()) return;
  constexpr size_t kTraining = 5;  // the index of `training` in the two operators of the next line
  bool decides = name == "aten::native_batch_norm" || name == "aten::_native_batch_norm_legit";
  bool empty =
      batch_norm && (decides ? !arguments[kTraining].toBool()
                             : name.find("_no_training") != std::string::npos || name.find("_no_update") != std::string::npos);
  c10::ScalarType dtype = signature.inputs[0].dtype;
  for (const TensorMeta& input : signature.inputs)
    if (input.defined && input.dtype == c10::kFloat && c10::isReducedFloatingType(dtype)) dtype = c10::kFloat;
  for (size_t i = 1; i < std::min<size_t>(promised.outputs.size(), 3); ++i) {
    TensorMeta& statistics = promised.outputs[i];
    if (empty) {
      statistics.sizes.assign(1, 0);
      statistics.strides.assign(1, 1);
    }
    statistics.dtype = dtype;
    statistics.nbytes = at::detail::computeStorageNbytes(statistics.sizes, statistics.strides, c10::elementSize(dtype));
  }
}

// Returns what torch's meta kernel promises. Returns nothing if there is no meta kernel for this case, or if it refuses the call.
// In the second case, the CPU kernel raises the error in its own words.
std::optional<Results> ask_meta(const Signature& signature, const Slots& slots, const IValue* arguments) {
  const Op& op = *signature.op;
  try {
    WithoutPython guard;
    std::vector<at::Tensor> inputs;
    std::vector<at::Tensor> first(signature.storage_written.size());  // of each storage, so that tensors overlap as in the call
    for (size_t i = 0; i < slots.size(); ++i) {
      const TensorMeta& meta = signature.inputs[i];
      if (signature.storage_of[i] < 0 || signature.same_as[i] >= 0) {
        inputs.push_back(signature.storage_of[i] < 0 ? *slots[i].tensor : inputs[size_t(signature.same_as[i])]);
        continue;
      }
      at::Tensor tensor = at::detail::empty_strided_meta(meta.sizes, meta.strides, meta.dtype);
      at::Tensor& of_storage = first[size_t(signature.storage_of[i])];
      if (!of_storage.defined()) of_storage = tensor;
      tensor.unsafeGetTensorImpl()->set_storage_keep_dtype(of_storage.storage());
      tensor.unsafeGetTensorImpl()->set_storage_offset(slots[i].tensor->storage_offset());
      mark_conjugate(tensor, meta);
      inputs.push_back(std::move(tensor));
    }
    Stack stack = rebuild(op, arguments, c10::DeviceType::Meta, nullptr, [&](int slot) { return inputs[size_t(slot)]; });
    op.handle.redispatchBoxed(DispatchKeySet(DispatchKey::Meta), &stack);
    std::optional<Results> promised = results_of(signature, stack, inputs, signature.inputs);
    if (!promised) return promised;
    for (const auto& [slot, meta] : promised->resized)  // some meta kernels resize where CPU kernels refuse
      if (!op.args[size_t(slots[size_t(slot)].argument)].out) return std::nullopt;
    drop_masked(op, *promised, arguments);
    correct_promise(signature, *promised, arguments);
    correct_attention(signature, *promised, arguments);
    ++counters().learned_by_meta;
    return promised;
  } catch (const c10::NotImplementedError&) {
    if (op.in_place) return Results();  // it returns nothing new, so there is nothing to learn
    return std::nullopt;
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

// True if another argument is in the same storage.
bool shares_storage(const Signature& signature, size_t input) {
  const auto& storages = signature.storage_of;
  return std::count(storages.begin(), storages.end(), storages[input]) > 1;
}

void publish(Signature& signature, Results results, bool doubtful) {
  static std::mutex mutex;  // two threads may learn the same signature
  std::lock_guard<std::mutex> lock(mutex);
  if (signature.state != Signature::Unknown) return;
  static_cast<Results&>(signature) = std::move(results);
  signature.doubtful = doubtful;
  signature.state.store(Signature::Known, std::memory_order_release);
}

}  // namespace

std::optional<Results> results_of(const Signature& signature, const Stack& results, const std::vector<at::Tensor>& inputs,
                                  const std::vector<TensorMeta>& before) {
  const Op& op = *signature.op;
  Results learned;
  auto store = [&](const at::Tensor& tensor) {
    if (tensor.defined()) {
      if (tensor.layout() != c10::kStrided || tensor.is_quantized() || !tensor.has_storage()) return false;
      for (const auto& input : inputs)
        if (input.defined() && input.has_storage() && input.is_alias_of(tensor)) return false;
    }
    learned.outputs.push_back(meta_of(tensor));
    return true;
  };
  for (size_t i = 0; i < op.returns.size(); ++i) {
    const IValue& value = results[i];
    if (op.returns[i].kind == ReturnInfo::Fresh) {
      if (!store(value.isTensor() ? value.toTensor() : at::Tensor())) return std::nullopt;
    } else if (op.returns[i].kind == ReturnInfo::FreshList) {
      auto elements = value.toListRef();
      learned.list_sizes.push_back(int(elements.size()));
      for (const IValue& element : elements)
        if (!store(element.toTensor())) return std::nullopt;
    }
  }
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!inputs[i].defined() || signature.storage_of[i] < 0) continue;
    TensorMeta after = meta_of(inputs[i]);
    if (after.same_layout(before[i])) continue;
    if (shares_storage(signature, i))
      return std::nullopt;  // resizing it before the launch would change its overlap with the other argument
    learned.resized.emplace_back(int(i), std::move(after));
  }
  return learned;
}

bool learn(Signature& signature, const Slots& slots, const IValue* arguments) {
  if (!signature.op->trust_meta) return false;
  std::optional<Results> results = ask_meta(signature, slots, arguments);
  if (!results) return false;
  Verdict verdict = judge(signature, slots, arguments, *results);
  if (verdict == Verdict::Unlike) return false;
  publish(signature, std::move(*results), verdict == Verdict::Doubtful);
  return true;
}

bool learn_from(Signature& signature, const Stack& results, const std::vector<at::Tensor>& inputs) {
  std::optional<Results> learned = results_of(signature, results, inputs, signature.inputs);
  if (learned) publish(signature, std::move(*learned), false);
  return learned.has_value();
}

}  // namespace bringup
