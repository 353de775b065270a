// The operators with kernels of their own: memory, metadata, copies. All others use the boxed kernel in launch.cpp.
#include <ATen/EmptyTensor.h>
#include <ATen/ExpandUtils.h>
#include <ATen/TensorOperators.h>
#include <ATen/TensorUtils.h>
#include <ATen/native/Resize.h>
#include <ATen/native/TensorFactories.h>
#include <ATen/ops/_local_scalar_dense.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/is_set_to_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <torch/library.h>

#include <cstdlib>
#include <cstring>

#include "launch/dry.h"
#include "runtime/capture.h"
#include "runtime/generator.h"
#include "launch/launch.h"
#include "launch/plan.h"
#include "launch/switches.h"
#include "launch/unwritten.h"
#include "runtime/memory.h"
#include "runtime/pinned.h"
#include "torch/ops.h"
#include "record/parts.h"
#include "record/recorder.h"
#include "runtime/pinned_watch.h"

namespace bringup {

void wait_for_copy(Stream& stream, const at::Tensor& on_host, uint8_t flags) {
  try {
    synchronize(stream, flags);
  } catch (...) {
    hold(stream, on_host);  // if the wait itself failed, the copy may still be pending
    throw;
  }
}

namespace {

using at::Tensor;
using std::optional;

c10::DeviceIndex index_of(optional<c10::Device> device) {
  return device && device->has_index() ? device->index() : current_device();
}

void check_plain(optional<c10::Layout> layout, optional<bool> pin_memory) {
  TORCH_CHECK(!layout || *layout == c10::kStrided, "a chip tensor must be strided, got ", *layout);
  TORCH_CHECK(!pin_memory.value_or(false), "Only dense CPU tensors can be pinned");
}

Tensor empty_strided_on(c10::DeviceIndex device, c10::ScalarType dtype, at::IntArrayRef sizes, at::IntArrayRef strides) {
  at::detail::check_size_nonnegative(sizes);
  TensorMeta meta;
  meta.defined = true;
  meta.dtype = dtype;
  meta.sizes.assign(sizes.begin(), sizes.end());
  meta.strides.assign(strides.begin(), strides.end());
  meta.nbytes = at::detail::computeStorageNbytes(sizes, strides, c10::elementSize(dtype));
  return new_tensor(meta, device, "aten::empty");
}

Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride, optional<c10::ScalarType> dtype,
                     optional<c10::Layout> layout, optional<c10::Device> device, optional<bool> pin_memory) {
  check_plain(layout, pin_memory);
  Tensor tensor = empty_strided_on(index_of(device), c10::dtype_or_default(dtype), C10_AS_INTARRAYREF_SLOW(size),
                                   C10_AS_INTARRAYREF_SLOW(stride));
  if (C10_UNLIKELY(watching_unwritten())) mark_new(tensor);
  return tensor;
}

Tensor empty(c10::SymIntArrayRef size, optional<c10::ScalarType> dtype, optional<c10::Layout> layout,
             optional<c10::Device> device, optional<bool> pin_memory, optional<c10::MemoryFormat> format) {
  check_plain(layout, pin_memory);
  auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  c10::SmallVector<int64_t, 5> strides(sizes.size());
  int64_t next = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = next;
    next *= std::max<int64_t>(sizes[i], 1);
  }
  Tensor tensor = empty_strided_on(index_of(device), c10::dtype_or_default(dtype), sizes, strides);
  if (format && *format != c10::MemoryFormat::Contiguous) tensor.unsafeGetTensorImpl()->empty_tensor_restride(*format);
  if (C10_UNLIKELY(watching_unwritten())) mark_new(tensor);
  return tensor;
}

Tensor view(const Tensor& self, c10::SymIntArrayRef size) {
  if (C10_UNLIKELY(recording())) count_view();
  return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size));
}

Tensor as_strided(const Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride, optional<c10::SymInt> offset) {
  if (C10_UNLIKELY(recording())) count_view();
  optional<int64_t> at_offset;
  if (offset) at_offset = offset->guard_int(__FILE__, __LINE__);
  return at::native::as_strided_tensorimpl(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), at_offset);
}

Tensor reshape_alias(const Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  if (C10_UNLIKELY(recording())) count_view();
  return at::native::_reshape_alias(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
}

void fit_storage(const Tensor& self) {
  if (self.numel() == 0) return;
  size_t bytes = at::detail::computeStorageNbytes(self.sizes(), self.strides(), self.dtype().itemsize(), self.storage_offset());
  if (self.storage().nbytes() < bytes) resize_storage(self.storage().unsafeGetStorageImpl(), bytes);
}

const Tensor& resize_(const Tensor& self, c10::SymIntArrayRef size, optional<c10::MemoryFormat> format) {
  auto* impl = self.unsafeGetTensorImpl();
  auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  if (impl->sizes() != sizes) impl->set_sizes_contiguous(sizes);  // with the same sizes, it keeps its strides
  if (format) {
    TORCH_CHECK(*format != c10::MemoryFormat::Preserve, "Unsupported memory format", *format);
    impl->empty_tensor_restride(*format);
  }
  fit_storage(self);
  return self;
}

Tensor& set_storage(Tensor& self, at::Storage source, c10::SymInt offset, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  auto strides = C10_AS_INTARRAYREF_SLOW(stride);
  int64_t at_offset = offset.guard_int(__FILE__, __LINE__);
  at::native::checkSetStorage(self, source, at_offset, sizes, strides);
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_offset(at_offset);
  if (strides.data())
    impl->set_sizes_and_strides(sizes, strides, at_offset);
  else
    impl->set_sizes_contiguous(sizes);
  fit_storage(self);
  return self;
}

Tensor& set_whole_storage(Tensor& self, at::Storage source) {
  int64_t elements = int64_t(source.nbytes() / self.dtype().itemsize());
  return set_storage(self, std::move(source), 0, {elements}, {1});
}

Tensor& set_empty(Tensor& self) {
  Tensor fresh = empty_strided_on(self.device().index(), self.scalar_type(), {0}, {1});
  return set_storage(self, fresh.storage(), 0, {0}, {1});
}

// ---- copies

// A blocking upload waits for the stream, whatever its size. torch calls cudaMemcpyAsync and then cudaStreamSynchronize for it
// (memcpy_and_sync in c10/cuda/CUDAFunctions.h). A non-blocking one waits if it has to read pageable memory, but not up to this
// size, because a small transfer is first copied to a buffer (CUDA driver API documentation, "API synchronization behavior").
constexpr size_t kStaged = 64 * 1024;
bool upload_waits(bool pinned, bool non_blocking, size_t bytes) { return !non_blocking || (!pinned && bytes > kStaged); }

void copy_on_device(const Tensor& to, const Tensor& from) {
  static Op& op = find_op("aten::copy_");
  Stack stack{to, from, false};
  launch_boxed(op, &stack);
}

void* data_of(const Tensor& contiguous) { return contiguous.mutable_data_ptr(); }

// Returns a function that removes the mark of the target's memory (failures.h), if the copy overwrites all of it.
std::function<void()> unmarking(const Tensor& to) {
  StorageRef storage = storage_of(to);
  if (to.nbytes() < storage.bytes) return nullptr;
  return [number = storage.allocation] { unmark(number); };
}

// Note [Copies of what was not computed]
// A driver copies memory even if a failed launch did not compute it, and that is only known when the copy runs. So before a copy
// from chip memory, a function on the stream checks the source. If it is marked, the bytes that the copy overwrites are saved,
// and restored after the copy.
struct Overwritten {
  int device;  // -1: the host
  void* address;
  size_t bytes;
  FailurePtr cause{};
  std::vector<char> content{};

  template <class F>
  void look(F f) {
    if (device < 0) return f(static_cast<char*>(address));
    if (separate_memory()) return;  // a host function cannot save it: it keeps what the copy wrote, and stays marked
    Mapped memory(device, address);
    f(static_cast<char*>(memory.host()));
  }
};
using OverwrittenPtr = std::shared_ptr<Overwritten>;

OverwrittenPtr before_copy(Stream& stream, int64_t from, const Overwritten& target) {
  auto overwritten = std::make_shared<Overwritten>(target);
  enqueue(stream, "the start of a copy",
          [overwritten, from, launch = counters().launches.load(), raised = raised_mark_of(from)](bool should_execute) {
            if (!should_execute) return;
            FailurePtr cause = mark_of({from}, launch);
            if (cause != raised) overwritten->cause = cause;
            if (overwritten->cause)
              overwritten->look([&](char* at) { overwritten->content.assign(at, at + overwritten->bytes); });
          });
  return overwritten;
}

// `to` is the target's allocation, or 0 for host memory. `whole`: the copy overwrites all of it.
std::function<void()> after_copy(const OverwrittenPtr& overwritten, int64_t to, bool whole) {
  return [overwritten, to, whole] {
    if (!overwritten->cause) {
      if (whole) unmark(to);
      return;
    }
    ++overwritten->cause->skipped;
    mark({to}, overwritten->cause);
    overwritten->look([&](char* at) { std::copy(overwritten->content.begin(), overwritten->content.end(), at); });
    overwritten->content = {};
  };
}

void end_copy(Stream& stream, std::function<void()> over) {
  enqueue(stream, "the end of a copy", [over = std::move(over)](bool) { over(); });
}

void upload(const Tensor& to, const Tensor& from, bool non_blocking) {
  Stream& stream = current_stream(to.device().index());
  refuse_capture(stream, "a copy from the host", "copy before a replay, into a tensor that the graph reads");
  Device& on = device(to.device().index());
  size_t bytes = to.nbytes();
  bool pinned = is_pinned(from.const_data_ptr());
  bool waits = upload_waits(pinned, non_blocking, bytes);
  if (!non_blocking) alert_wait();
  static const std::string name = "upload";
  bool planned = C10_UNLIKELY(has_plan()) && planned_side(name, current_line()) == Planned::Host;
  if (C10_UNLIKELY(recording()))
    record_copy(RowKind::H2D, stream, int64_t(bytes), pinned ? kPinned : 0, nullptr, to.storage().data(),
                planned ? kPlacedOnHost : 0);
  std::optional<Unrecorded> quiet;  // a copy within the host's memory waits for nothing
  if (planned) quiet.emplace();
  if (C10_UNLIKELY(is_dry())) {
    set_dry_content(to, Content::Known);
    if (!dry_computes(to)) {
      if (waits) synchronize(stream, kOfUpload);
      return;
    }
  }
  if (C10_UNLIKELY(watching_unwritten())) note_overwritten(stream, to);
  if (!pinned && !waits) {
    std::shared_ptr<char[]> staged(new char[bytes]);
    HostTimeAside aside;  // the emulation's
    std::memcpy(staged.get(), from.const_data_ptr(), bytes);
    check_driver(driver().copy_h2d(stream.handle, data_of(to), staged.get(), bytes), on, "a copy to the chip");
    return hold(stream, staged, unmarking(to));
  }
  check_driver(driver().copy_h2d(stream.handle, data_of(to), copy_address(from.const_data_ptr()), bytes), on,
               "a copy to the chip");
  if (waits) return wait_for_copy(stream, from, kOfUpload);
  hold(stream, from, unmarking(to));
  copy_pending(from.const_data_ptr(), false, stream);
}

void download(const Tensor& to, const Tensor& from, bool non_blocking) {
  Stream& stream = current_stream(from.device().index());
  refuse_capture(stream, "a copy to the host", "read results after a replay");
  bool pinned = is_pinned(to.const_data_ptr());
  if (!non_blocking) alert_wait();
  std::optional<Unrecorded> quiet;  // a copy within the host's memory waits for nothing
  if (C10_UNLIKELY(recording())) {
    bool link = record_copy(RowKind::D2H, stream, int64_t(from.nbytes()), pinned ? kPinned : 0, from.storage().data(), nullptr);
    if (!link) quiet.emplace();
  }
  if (C10_UNLIKELY(is_dry()) && dry_content(from) != Content::Known) {
    notice_read(text_of(meta_of(from)));
    if (dry_content(from) == Content::Unknown) {
      if (!(non_blocking && pinned)) synchronize(stream, kOfDownload);
      return fill_stand_in(to);
    }
  }
  void* host = copy_address(to.const_data_ptr());
  if (C10_UNLIKELY(watching_unwritten())) note_download(stream, from);
  OverwrittenPtr overwritten = before_copy(stream, storage_of(from).allocation, {-1, host, from.nbytes()});
  check_driver(driver().copy_d2h(stream.handle, host, data_of(from), from.nbytes()), device(from.device().index()),
               "a copy from the chip");
  hold(stream, to, after_copy(overwritten, 0, false));
  if (non_blocking && pinned) return copy_pending(to.const_data_ptr(), true, stream);
  synchronize(stream, kOfDownload);
  if (overwritten->cause) raise_again(overwritten->cause);
}

void copy_between_devices(const Tensor& to, const Tensor& from) {
  Stream& target = current_stream(to.device().index());
  Stream& source = current_stream(from.device().index());
  for (Stream* stream : {&target, &source}) refuse_capture(*stream, "a copy between chips", "copy before a replay");
  follow(target, source);
  if (C10_UNLIKELY(recording()))
    record_copy(RowKind::D2D, target, int64_t(to.nbytes()), 0, from.storage().data(), to.storage().data(), from.device().index());
  if (is_dry()) set_dry_content(to, dry_content(from));
  if (!is_dry() || dry_computes(from)) {
    if (C10_UNLIKELY(watching_unwritten())) note_overwritten(target, to);
    StorageRef storage = storage_of(to);
    OverwrittenPtr overwritten =
        before_copy(target, storage_of(from).allocation, {to.device().index(), data_of(to), to.nbytes()});
    check_driver(driver().copy_d2d(target.handle, data_of(to), data_of(from), to.nbytes()), device(to.device().index()),
                 "a copy on the chip");
    end_copy(target, after_copy(overwritten, storage.allocation, to.nbytes() >= storage.bytes));
  }
  follow(source, target);  // the source's memory may be reused only after the copy
}

bool same_bytes(const Tensor& a, const Tensor& b) {
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() && a.strides() == b.strides() &&
         a.is_non_overlapping_and_dense() && a.is_conj() == b.is_conj() && a.is_neg() == b.is_neg();
}

Tensor dense(const Tensor& tensor) { return tensor.resolve_conj().resolve_neg().contiguous(); }

Tensor& copy_(Tensor& self, const Tensor& src, bool non_blocking) {
  if (self.is_same(src)) return self;
  if (src._is_zerotensor()) return self.zero_();
  bool to_chip = self.device().type() == kChip, from_chip = src.device().type() == kChip;
  if (to_chip && from_chip && self.device() == src.device()) {
    copy_on_device(self, src);
    return self;
  }
  // The memory of another accelerator is reached by way of the host.
  if (!from_chip && !src.device().is_cpu()) return copy_(self, src.to(c10::kCPU), false);
  if (!to_chip && !self.device().is_cpu()) return self.copy_(src.to(c10::kCPU));
  auto broadcast = at::infer_size(src.sizes(), self.sizes());
  TORCH_CHECK(broadcast == self.sizes(), "output with shape ", self.sizes(), " doesn't match the broadcast shape ", broadcast);
  if (self.numel() == 0) return self;
  // Only contiguous bytes are copied between devices. The dtype is changed on the chip.
  if (to_chip) {
    if (same_bytes(self, src)) {
      from_chip ? copy_between_devices(self, src) : upload(self, src, non_blocking);
      return self;
    }
    Tensor bytes = dense(src);
    Tensor arrived = empty_strided_on(self.device().index(), src.scalar_type(), bytes.sizes(), bytes.strides());
    from_chip ? copy_between_devices(arrived, bytes) : upload(arrived, bytes, non_blocking);
    copy_on_device(self, arrived);
    return self;
  }
  if (same_bytes(self, src)) {
    download(self, src, non_blocking);
    return self;
  }
  Tensor bytes = dense(src.to(self.scalar_type()));
  if (self.is_contiguous() && self.sizes() == bytes.sizes() && !self.is_conj() && !self.is_neg()) {
    download(self, bytes, non_blocking);
    return self;
  }
  Tensor arrived = at::empty(bytes.sizes(), bytes.options().device(c10::kCPU));
  download(arrived, bytes, false);
  self.copy_(arrived);
  return self;
}

Tensor copy_from(const Tensor& self, const Tensor& to, bool non_blocking) {
  Tensor target = to;
  return copy_(target, self, non_blocking);
}

Tensor copy_from_and_resize(const Tensor& self, const Tensor& to) {
  to.resize_(self.sizes());
  return copy_from(self, to, false);
}

c10::Scalar local_scalar_dense(const Tensor& self) {
  Tensor value = at::empty({}, self.options().device(c10::kCPU));
  Tensor bytes = self.is_conj() || self.is_neg() ? self.resolve_conj().resolve_neg() : self;
  download(value, bytes, false);
  return at::_local_scalar_dense(value);
}

void record_stream(Tensor& self, c10::Stream on) { chip_allocator().recordStream(self.storage().data_ptr(), on); }

Tensor efficientzerotensor(c10::SymIntArrayRef size, optional<c10::ScalarType> dtype, optional<c10::Layout>,
                           optional<c10::Device> device, optional<bool>) {
  at::native::ZeroTensorAllocator allocator{c10::Device(kChip, index_of(device))};
  auto keys = c10::DispatchKeySet({c10::DispatchKey::PrivateUse1, c10::DispatchKey::ZeroTensor});
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &allocator, keys, c10::dtype_or_default(dtype), std::nullopt);
}

// CUDA's histc accepts integers, and programs rely on that. The CPU kernel only accepts floating-point numbers.
Tensor histc(const Tensor& self, int64_t bins, const c10::Scalar& min, const c10::Scalar& max) {
  static Op& op = find_op("aten::histc");
  if (self.is_floating_point()) alert_nondeterministic("_histc_cuda with floating point input");
  bool integral = c10::isIntegralType(self.scalar_type(), /*includeBool=*/false);
  Stack stack{integral ? self.to(c10::kDouble) : self, bins, min, max};
  launch_boxed(op, &stack);
  Tensor counts = stack[0].toTensor();
  return integral ? counts.to(self.scalar_type()) : counts;
}

// With this, module.to("chip") keeps its Parameters, as between the CPU and CUDA, so that optimizers created before stay valid.
bool has_compatible_shallow_copy_type(const Tensor& self, const Tensor& from) {
  auto plain = [](const Tensor& tensor) {
    return tensor.layout() == c10::kStrided && !tensor.is_quantized() &&
           (tensor.device().is_cpu() || tensor.device().type() == kChip) && !tensor.key_set().has(c10::DispatchKey::Python);
  };
  auto* to = self.unsafeGetTensorImpl();
  return (plain(self) && plain(from)) || to->has_compatible_shallow_copy_type(from.key_set());
}

}  // namespace
}  // namespace bringup

namespace bringup {

void resize_storage(c10::StorageImpl* storage, size_t bytes) {
  TORCH_CHECK(storage->resizable(), "Trying to resize storage that is not resizable");
  auto index = storage->device().index();
  purpose.grows = storage->nbytes() > 0;
  c10::DataPtr grown = allocate_on(index, bytes);
  size_t common = std::min(bytes, storage->nbytes());
  if (common > 0 && storage->data() && !is_dry_copy(common)) {
    Stream& stream = current_stream(index);
    OverwrittenPtr lost = before_copy(stream, allocation_number(storage->data_ptr()), {index, grown.get(), common});
    check_driver(driver().copy_d2d(stream.handle, grown.get(), storage->data(), common), device(index), "a copy on the chip");
    end_copy(stream, after_copy(lost, allocation_number(grown), true));
  }
  if (is_dry()) set_content(grown, content_of(storage->data_ptr()));
  storage->set_data_ptr_noswap(std::move(grown));
  storage->set_nbytes(bytes);
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("as_strided", &as_strided);
  m.impl("view", &view);
  m.impl("_reshape_alias", &reshape_alias);
  m.impl("resize_", &resize_);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("set_.source_Storage", &set_whole_storage);
  m.impl("set_.source_Tensor", &at::native::set_tensor_);
  m.impl("set_", &set_empty);
  m.impl("is_set_to", &at::native::is_set_to);
  m.impl("copy_", &copy_);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &local_scalar_dense);
  m.impl("record_stream", &record_stream);
  m.impl("_efficientzerotensor", &efficientzerotensor);
  m.impl("histc", &histc);
  m.impl("_has_compatible_shallow_copy_type", &has_compatible_shallow_copy_type);
}

}  // namespace bringup
