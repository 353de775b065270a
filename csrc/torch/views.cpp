// CPU tensors over device memory, on which torch.compile's code (bringup/compile) and collectives run.
#include "torch/views.h"

#include <torch/library.h>

#include "launch/worker.h"
#include "launch/launch.h"
#include "launch/unwritten.h"
#include "launch/op.h"
#include "python/python.h"
#include "runtime/capture.h"
#include "runtime/runtime.h"

namespace bringup {
namespace {

struct Lease {  // keeps device memory mapped and alive while the host has a view of it
  c10::Storage storage;
  Mapped mapped;
};

void give_back(void* lent) { delete static_cast<Lease*>(lent); }

bool is_host_view(const at::Tensor& tensor) {
  return tensor.has_storage() && tensor.storage().data_ptr().get_deleter() == &give_back;
}

}  // namespace

at::Tensor host_view(const at::Tensor& tensor) {
  TORCH_CHECK(tensor.device().type() == kChip, "host_view needs a tensor on chip, got one on ", tensor.device());
  if (C10_UNLIKELY(watching_unwritten())) stop_watching(tensor);
  c10::Storage storage = tensor.storage();
  size_t bytes = storage.nbytes();
  auto* lent = new Lease{storage, Mapped(tensor.device().index(), storage.mutable_data())};
  auto borrowed = c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), c10::SymInt(int64_t(bytes)),
      c10::DataPtr(lent->mapped.host(), lent, &give_back, c10::Device(c10::kCPU)), nullptr, /*resizable=*/false);
  return alias(borrowed, meta_of(tensor), tensor.storage_offset());
}

namespace {

// Returns a chip tensor over the memory of a host view, with the view's sizes and strides.
at::Tensor chip_view(const at::Tensor& view) {
  TORCH_CHECK(is_host_view(view), "chip_view needs a tensor that host_view returned");
  const c10::Storage& storage = static_cast<Lease*>(view.storage().data_ptr().get_context())->storage;
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(storage),
                                                         c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), view.dtype());
  auto* impl = tensor.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(view.sizes(), view.strides(), view.storage_offset());
  impl->_set_conj(view.is_conj());
  impl->_set_neg(view.is_neg());
  return tensor;
}

}  // namespace

void settle_stream(int64_t index) {
  Stream& stream = current_stream(c10::DeviceIndex(index));
  refuse_capture(stream, "a graph of torch.compile", "use mode=\"reduce-overhead\" instead");
  int status;
  {
    ReleaseGil no_gil;
    status = driver().stream_synchronize(stream.handle);
  }
  stream.raise();
  check_driver(status, device(int(index)), "a wait for a stream");
}

TORCH_LIBRARY_FRAGMENT(bringup, m) {
  m.def("host_view(Tensor tensor) -> Tensor", &host_view);
  m.def("is_host_view(Tensor tensor) -> bool", &is_host_view);
  m.def("chip_view(Tensor view) -> Tensor", &chip_view);
  m.def("settle_stream(int device) -> ()", &settle_stream);
}

}  // namespace bringup
