// Another accelerator in the same process, under PyTorch's device type MAIA: its memory is the host's, and it can copy.
#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstring>

namespace {

using at::Tensor;

struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::MAIA> {};
C10_REGISTER_GUARD_IMPL(MAIA, Guard);

c10::DispatchKeySet keys() { return c10::DispatchKeySet(c10::DispatchKey::MAIA); }

Tensor maia_empty_strided(c10::SymIntArrayRef sizes, c10::SymIntArrayRef strides, std::optional<at::ScalarType> dtype,
                          std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  Tensor host = at::empty_strided(C10_AS_INTARRAYREF_SLOW(sizes), C10_AS_INTARRAYREF_SLOW(strides), dtype.value_or(at::kFloat));
  c10::DataPtr data(
      host.data_ptr(), new Tensor(host), [](void* held) { delete static_cast<Tensor*>(held); },
      c10::Device(c10::DeviceType::MAIA, 0));
  c10::Storage storage(c10::Storage::use_byte_size_t(), host.storage().nbytes(), std::move(data));
  Tensor result = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), keys(), host.dtype());
  result.unsafeGetTensorImpl()->set_sizes_and_strides(host.sizes(), host.strides());
  return result;
}

Tensor maia_empty(c10::SymIntArrayRef sizes, std::optional<at::ScalarType> dtype, std::optional<at::Layout> layout,
                  std::optional<at::Device> device, std::optional<bool> pinned, std::optional<at::MemoryFormat>) {
  Tensor like = at::empty(C10_AS_INTARRAYREF_SLOW(sizes));
  return maia_empty_strided(sizes, like.sym_strides(), dtype, layout, device, pinned);
}

// The host's view of the same memory.
Tensor on_host(const Tensor& tensor) {
  if (tensor.device().is_cpu()) return tensor;
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), tensor.options().device(at::kCPU));
}

Tensor& copy_(Tensor& self, const Tensor& from, bool) {
  TORCH_CHECK(from.device().is_cpu() || from.device().type() == c10::DeviceType::MAIA, "MAIA cannot read ", from.device());
  on_host(self).copy_(on_host(from));
  return self;
}

Tensor copy_from(const Tensor& self, const Tensor& to, bool) {
  on_host(to).copy_(on_host(self));
  return to;
}

TORCH_LIBRARY_IMPL(aten, MAIA, m) {
  m.impl("empty.memory_format", &maia_empty);
  m.impl("empty_strided", &maia_empty_strided);
  m.impl("copy_", &copy_);
  m.impl("_copy_from", &copy_from);
}

}  // namespace
