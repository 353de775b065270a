#include "launch/view.h"

#include <vector>

#include <ATen/core/LegacyTypeDispatch.h>

#include "record/recorder.h"

namespace bringup {

using c10::DispatchKey;
using c10::DispatchKeySet;
using c10::IValue;

at::Tensor view_like(const at::Tensor& base, const at::Tensor& result) {
  auto view = at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(base.storage()), base.key_set(),
                                                       result.dtype());
  auto* impl = view.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(result.sizes(), result.strides(), result.storage_offset());
  impl->_set_conj(result.is_conj());
  impl->_set_neg(result.is_neg());
  return view;
}

namespace {

// Returns a CPU tensor with a device tensor's metadata and address. Its data must not be accessed.
at::Tensor metadata_on_host(const at::Tensor& tensor) {
  const auto& storage = tensor.storage();
  return alias(borrow(storage.mutable_data(), storage.nbytes()), meta_of(tensor), tensor.storage_offset());
}

}  // namespace

// Views do not access data, so the CPU kernel computes the metadata on an alias.
void run_view(const Call& call) {
  const Slots& slots = call.slots;
  if (C10_UNLIKELY(recording())) count_view();
  std::vector<at::Tensor> inputs;
  for (const Slot& slot : slots) inputs.push_back(on_chip(*slot.tensor) ? metadata_on_host(*slot.tensor) : *slot.tensor);
  Stack results = rebuild(call.op, call.arguments, c10::kCPU, nullptr, [&](int slot) { return inputs[size_t(slot)]; });
  {
    at::AutoDispatchBelowADInplaceOrView below;
    call.op.handle.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), &results);
  }
  auto as_view = [&](const at::Tensor& result) {
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (!inputs[i].is_alias_of(result)) continue;
      return view_like(*slots[i].tensor, result);
    }
    TORCH_CHECK(false, call.op.name, " was expected to return a view");
  };
  for (IValue& value : results) {
    if (value.isTensor()) {
      value = as_view(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& element : value.toTensorVector()) list.push_back(as_view(element));
      value = std::move(list);
    }
  }
  return_results(call, std::move(results));
}

}  // namespace bringup
