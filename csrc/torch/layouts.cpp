// Sparse and quantized tensors on the chip. Their parts are in device memory, and operators run synchronously on host copies.
//
// These copies are the emulation's own, so they are not recorded. An operator has one row, whether the chip has a kernel for it
// or not: that is decided when the recording is priced.
#include <ATen/SparseCsrTensorImpl.h>
#include <ATen/SparseTensorImpl.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/native/SparseTensorUtils.h>
#include <ATen/ops/_coalesced_native.h>
#include <ATen/ops/_indices_native.h>
#include <ATen/ops/_nnz_native.h>
#include <ATen/ops/_sparse_compressed_tensor_unsafe.h>
#include <ATen/ops/_sparse_coo_tensor_unsafe.h>
#include <ATen/ops/_sparse_coo_tensor_with_dims_and_tensors_native.h>
#include <ATen/ops/_sparse_coo_tensor_with_dims_native.h>
#include <ATen/ops/_values_native.h>
#include <ATen/ops/ccol_indices_native.h>
#include <ATen/ops/col_indices_native.h>
#include <ATen/ops/copy_native.h>
#include <ATen/ops/crow_indices_native.h>
#include <ATen/ops/dense_dim_native.h>
#include <ATen/ops/empty_native.h>
#include <ATen/ops/indices_native.h>
#include <ATen/ops/is_coalesced_native.h>
#include <ATen/ops/q_scale_native.h>
#include <ATen/ops/q_zero_point_native.h>
#include <ATen/ops/qscheme_native.h>
#include <ATen/ops/row_indices_native.h>
#include <ATen/ops/sparse_dim_native.h>
#include <ATen/ops/sparse_resize_and_clear_native.h>
#include <ATen/ops/sparse_resize_native.h>
#include <ATen/ops/values_native.h>
#include <ATen/quantized/QTensorImpl.h>
#include <torch/library.h>

#include <unordered_set>

#include "launch/launch.h"
#include "torch/layouts.h"
#include "runtime/memory.h"
#include "launch/fallback.h"
#include "record/parts.h"
#include "runtime/capture.h"
#include "torch/ops.h"

namespace bringup {
namespace {

using at::Tensor;

bool is_compressed(const Tensor& tensor) {
  auto layout = tensor.layout();
  return layout == c10::kSparseCsr || layout == c10::kSparseCsc || layout == c10::kSparseBsr || layout == c10::kSparseBsc;
}

bool is_column_major(const Tensor& tensor) { return tensor.layout() == c10::kSparseCsc || tensor.layout() == c10::kSparseBsc; }

Tensor quantized_on(const Tensor& tensor, c10::Device device) {
  size_t bytes = tensor.storage().nbytes();
  bool to_chip = device.type() == kChip;
  auto* allocator = to_chip ? static_cast<c10::Allocator*>(&chip_allocator()) : c10::GetAllocator(c10::kCPU);
  c10::DataPtr memory = to_chip ? allocate_on(device.index(), bytes) : allocator->allocate(bytes);
  c10::Storage storage(c10::Storage::use_byte_size_t(), int64_t(bytes), std::move(memory), allocator, true);
  auto key = to_chip ? c10::DispatchKey::QuantizedPrivateUse1 : c10::DispatchKey::QuantizedCPU;
  auto quantizer = at::get_qtensorimpl(tensor)->quantizer();
  Tensor moved =
      at::detail::make_tensor<at::QTensorImpl>(std::move(storage), c10::DispatchKeySet(key), tensor.dtype(), quantizer);
  moved.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  if (bytes == 0) return moved;
  c10::Device at = to_chip ? device : tensor.device();
  Stream& stream = current_stream(at.index());
  void* to = moved.storage().mutable_data();
  const void* from = tensor.storage().data();
  int status = to_chip ? driver().copy_h2d(stream.handle, to, from, bytes) : driver().copy_d2h(stream.handle, to, from, bytes);
  check_driver(status, bringup::device(at.index()), "a copy of a quantized tensor");
  wait_for_copy(stream, to_chip ? tensor : moved, to_chip ? kOfUpload : kOfDownload);
  return moved;
}

Tensor moved_to(const Tensor& tensor, c10::Device device) {
  if (!tensor.defined() || tensor.device() == device) return tensor;
  if (tensor.layout() == c10::kSparse) {
    Tensor moved = at::_sparse_coo_tensor_unsafe(tensor._indices().to(device), tensor._values().to(device), tensor.sizes(),
                                                 tensor.options().device(device), tensor.is_coalesced());
    return moved;
  }
  if (is_compressed(tensor)) {
    bool columns = is_column_major(tensor);
    Tensor compressed = columns ? tensor.ccol_indices() : tensor.crow_indices();
    Tensor plain = columns ? tensor.row_indices() : tensor.col_indices();
    return at::_sparse_compressed_tensor_unsafe(compressed.to(device), plain.to(device), tensor.values().to(device),
                                                tensor.sizes(), tensor.options().device(device));
  }
  if (tensor.is_quantized()) return quantized_on(tensor, device);
  return tensor.to(device);
}

void overwrite(const Tensor& target, const Tensor& source) {
  if (target.layout() == c10::kSparse) {
    auto* impl = at::sparse::get_sparse_impl(target);
    impl->resize_(source.sparse_dim(), source.dense_dim(), source.sizes());
    impl->set_indices_and_values_unsafe(source._indices().to(target.device()), source._values().to(target.device()));
    impl->set_coalesced(source.is_coalesced());
  } else if (is_compressed(target)) {
    Tensor moved = moved_to(source, target.device());
    bool columns = is_column_major(moved);
    static_cast<at::SparseCsrTensorImpl*>(target.unsafeGetTensorImpl())
        ->set_member_tensors(columns ? moved.ccol_indices() : moved.crow_indices(),
                             columns ? moved.row_indices() : moved.col_indices(), moved.values(), moved.sizes());
  } else if (target.is_quantized()) {
    Tensor moved = quantized_on(source, target.device());
    target.unsafeGetTensorImpl()->set_storage_keep_dtype(moved.storage());
    target.unsafeGetTensorImpl()->set_sizes_and_strides(moved.sizes(), moved.strides(), moved.storage_offset());
    at::get_qtensorimpl(target)->set_quantizer_(at::get_qtensorimpl(source)->quantizer());
  } else {
    if (target.sizes() != source.sizes()) target.resize_(source.sizes());
    target.copy_(source);
  }
}

template <class F>
void for_each_tensor(c10::IValue& value, F f) {
  if (value.isTensor()) {
    value = f(value.toTensor());
  } else if (value.isTensorList()) {
    c10::List<Tensor> list;
    for (const Tensor& tensor : value.toTensorVector()) list.push_back(f(tensor));
    value = std::move(list);
  }
}

// Replaces the arguments on the stack by the results, computed by the CPU's kernel on copies.
void compute_on_host(const c10::OperatorHandle& handle, const Op& op, Stack* stack, const std::vector<c10::IValue>& originals,
                     c10::Device device) {
  size_t count = op.args.size(), first = stack->size() - count;
  for (size_t i = first; i < stack->size(); ++i) {
    c10::IValue& value = (*stack)[i];
    for_each_tensor(value, [](const Tensor& tensor) {
      Tensor moved = moved_to(tensor, c10::Device(c10::kCPU));
      // Some kernels save data for the backward pass only if an input requires gradients.
      if (tensor.defined() && tensor.requires_grad() && !moved.is_same(tensor)) moved.set_requires_grad(true);
      return moved;
    });
    if (value.isDevice()) value = c10::Device(c10::kCPU);
  }
  std::vector<c10::IValue> arguments(stack->end() - std::ptrdiff_t(count), stack->end());
  handle.callBoxed(stack);
  size_t results = stack->size() - op.returns.size();
  for (size_t i = 0; i < count; ++i)
    if (op.args[i].written && originals[i].isTensor() && originals[i].toTensor().device().type() == kChip)
      overwrite(originals[i].toTensor(), arguments[i].toTensor());
  for (size_t i = 0; i < op.returns.size(); ++i) {
    c10::IValue& value = (*stack)[results + i];
    if (op.returns[i].kind == ReturnInfo::Argument)
      value = originals[size_t(op.returns[i].argument)];
    else
      for_each_tensor(value, [&](const Tensor& tensor) { return moved_to(tensor, device); });
  }
}

// True if the host needs the number of elements that the result has, as with CUDA: the operator waits. The product of a sparse
// and a dense tensor, and a dense tensor at the places of a sparse one, have as many elements as the sparse one.
bool returns_counts(const Op& op, const std::vector<c10::IValue>& arguments) {
  static const auto* names = new std::unordered_set<std::string>{"_coalesce",
                                                                 "_to_sparse",
                                                                 "_to_sparse_csr",
                                                                 "_to_sparse_csc",
                                                                 "_to_sparse_bsr",
                                                                 "_to_sparse_bsc",
                                                                 "_sparse_sparse_matmul",
                                                                 "sparse_mask",
                                                                 "_sparse_sum",
                                                                 "mul",
                                                                 "_local_scalar_dense"};
  std::string name = base_name(op.name);
  auto is_dense = [](const c10::IValue& value) {
    return value.isTensor() && value.toTensor().defined() && value.toTensor().layout() == c10::kStrided;
  };
  bool intersects = name == "mul" || name == "sparse_mask";
  if (intersects && std::any_of(arguments.begin(), arguments.end(), is_dense)) return false;
  return names->count(name) != 0;
}

void run_on_host(const c10::OperatorHandle& handle, Stack* stack) {
  Op& op = find_op(handle);
  size_t count = op.args.size();
  std::vector<c10::IValue> originals(stack->end() - std::ptrdiff_t(count), stack->end());
  c10::Device device(kChip, current_device());
  for (c10::IValue& value : originals)
    for_each_tensor(value, [&](const Tensor& tensor) {
      if (tensor.defined() && tensor.device().type() == kChip) device = tensor.device();
      return tensor;
    });
  refuse_capture(current_stream(device.index()), op.name + " on sparse or quantized tensors", "leave it out");
  ++counters().launches;
  count_synchronous(op);
  std::optional<PartsRow> row;
  if (C10_UNLIKELY(recording()) && !Unrecorded::on()) row.emplace(op, originals.data(), current_stream(device.index()));
  for (const c10::IValue& value : originals)
    if (value.isTensor() && value.toTensor().defined() && value.toTensor().layout() != c10::kStrided)
      refuse_sparse_if_strict(op.name, value.toTensor().scalar_type(), config().chip);
  bool waits = returns_counts(op, originals);
  {
    Unrecorded unrecorded;
    compute_on_host(handle, op, stack, originals, device);
  }
  if (row) row->record(Stack(stack->end() - std::ptrdiff_t(op.returns.size()), stack->end()), waits ? kWaits : 0);
}

// Runs a copy between chips by `f`, whose own copies to the host get no rows, and records one row for it.
template <class F>
Tensor copied_on_chip(const char* name, std::vector<c10::IValue> arguments, c10::Device device, F f) {
  const Op& op = find_op(name);
  std::optional<PartsRow> row;
  if (C10_UNLIKELY(recording()) && !Unrecorded::on()) {
    arguments.resize(op.args.size());
    row.emplace(op, arguments.data(), current_stream(device.index()));
  }
  Tensor result;
  {
    Unrecorded unrecorded;
    result = f();
  }
  if (row) row->record({result}, 0);
  return result;
}

Tensor& copy_any(Tensor& self, const Tensor& source, bool) {
  if (self.is_same(source)) return self;
  if (self.device().is_cpu()) return self.copy_(moved_to(source, c10::Device(c10::kCPU)));
  auto copy = [&] {
    Tensor on_host = moved_to(source, c10::Device(c10::kCPU));
    overwrite(self, on_host.scalar_type() == self.scalar_type() ? on_host : on_host.to(self.scalar_type()));
    return self;
  };
  if (source.device().type() == kChip)
    copied_on_chip("aten::copy_", {self, source}, self.device(), copy);
  else
    copy();
  return self;
}

Tensor to_copy_any(const Tensor& self, std::optional<c10::ScalarType> dtype, std::optional<c10::Layout> layout,
                   std::optional<c10::Device> device, std::optional<bool>, bool, std::optional<c10::MemoryFormat>) {
  c10::Device target = device.value_or(self.device());
  auto copy = [&] {
    Tensor on_host = moved_to(self, c10::Device(c10::kCPU));
    if (dtype && *dtype != self.scalar_type()) on_host = on_host.to(*dtype);
    if (layout && *layout != on_host.layout()) on_host = on_host.to_sparse(*layout);
    return moved_to(on_host, target);
  };
  bool stays = self.device().type() == kChip && target.type() == kChip;
  return stays ? copied_on_chip("aten::_to_copy", {self}, target, copy) : copy();
}

}  // namespace

Tensor place_on_chip(const Tensor& on_host, c10::DeviceIndex index) { return moved_to(on_host, c10::Device(kChip, index)); }

// The fallbacks below are not enough: torch makes some kernels for every device, and these allocate dense results as sparse ones.
void register_layouts() {
  using c10::DispatchKey;
  auto& dispatcher = c10::Dispatcher::singleton();
  for (auto [on_cpu, on_chip] : {std::pair(DispatchKey::SparseCPU, DispatchKey::SparsePrivateUse1),
                                 std::pair(DispatchKey::SparseCsrCPU, DispatchKey::SparseCsrPrivateUse1),
                                 std::pair(DispatchKey::QuantizedCPU, DispatchKey::QuantizedPrivateUse1)}) {
    auto* aten = new torch::Library(torch::Library::IMPL, "aten", on_chip, __FILE__, __LINE__);  // kept for good
    for (const auto& name : dispatcher.getAllOpNames()) {
      auto handle = name.name.compare(0, 6, "aten::") == 0 ? dispatcher.findSchema(name) : std::nullopt;
      if (!handle || !handle->hasKernelForDispatchKey(on_cpu) || handle->hasKernelForDispatchKey(on_chip)) continue;
      aten->impl(c10::toString(name).c_str(), torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
    }
  }
}

TORCH_LIBRARY_IMPL(_, SparsePrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>()); }
TORCH_LIBRARY_IMPL(_, SparseCsrPrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>()); }
TORCH_LIBRARY_IMPL(_, QuantizedPrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>()); }

// Construction and metadata use torch's device-independent kernels.
TORCH_LIBRARY_IMPL(aten, SparsePrivateUse1, m) {
  m.impl("empty.memory_format", &at::native::empty_sparse_symint);
  m.impl("_sparse_coo_tensor_with_dims", &at::native::new_with_dims_sparse);
  m.impl("_sparse_coo_tensor_with_dims_and_tensors", &at::native::new_with_dims_and_tensor_sparse_symint);
  m.impl("sparse_dim", &at::native::sparse_dim_sparse);
  m.impl("dense_dim", &at::native::dense_dim_sparse);
  m.impl("_nnz", &at::native::_nnz_sparse);
  m.impl("_indices", &at::native::_indices_sparse);
  m.impl("_values", &at::native::_values_sparse);
  m.impl("indices", &at::native::indices_sparse);
  m.impl("values", &at::native::values_sparse);
  m.impl("is_coalesced", &at::native::is_coalesced_sparse);
  m.impl("_coalesced_", &at::native::_coalesced_sparse_);
  m.impl("sparse_resize_", &at::native::sparse_resize_);
  m.impl("sparse_resize_and_clear_", &at::native::sparse_resize_and_clear_);
  m.impl("copy_", &copy_any);
  m.impl("_to_copy", &to_copy_any);
}

TORCH_LIBRARY_IMPL(aten, SparseCsrPrivateUse1, m) {
  m.impl("empty.memory_format", &at::native::empty_sparse_compressed);
  m.impl("sparse_dim", &at::native::sparse_dim_sparse_csr);
  m.impl("dense_dim", &at::native::dense_dim_sparse_csr);
  m.impl("_nnz", &at::native::_nnz_sparse_csr);
  m.impl("crow_indices", &at::native::crow_indices_sparse_csr);
  m.impl("col_indices", &at::native::col_indices_sparse_csr);
  m.impl("ccol_indices", &at::native::ccol_indices_sparse_csr);
  m.impl("row_indices", &at::native::row_indices_sparse_csr);
  m.impl("values", &at::native::values_sparse_csr);
  m.impl("copy_", &copy_any);
  m.impl("_to_copy", &to_copy_any);
}

TORCH_LIBRARY_IMPL(aten, QuantizedPrivateUse1, m) {
  m.impl("q_scale", &at::native::q_scale_quant);
  m.impl("q_zero_point", &at::native::q_zero_point_quant);
  m.impl("qscheme", &at::native::qscheme_quant);
  m.impl("copy_", &copy_any);
  m.impl("_to_copy", &to_copy_any);
}

}  // namespace bringup
