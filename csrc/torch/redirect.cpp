// For programs written for "cuda": operators that take the device "cuda" run on the chip.
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>

#include "runtime/runtime.h"
#include "torch/redirect.h"

namespace bringup {
namespace {

std::atomic<bool> is_named_cuda{false};
std::atomic<int64_t> redirected{0};

void call_on_chip(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  for (size_t i = stack->size() - op.schema().arguments().size(); i < stack->size(); ++i) {
    c10::IValue& value = (*stack)[i];
    if (value.isDevice() && value.toDevice().is_cuda()) value = c10::Device(kChip, value.toDevice().index());
  }
  ++redirected;
  op.callBoxed(stack);
}

// torch makes a device argument the current device before it creates a tensor there. So CUDA's guard changes the chip's device.
struct CudaGuard final : c10::impl::DeviceGuardImplInterface {
  static const c10::impl::DeviceGuardImplInterface& chip() { return *c10::impl::getDeviceGuardImpl(kChip); }
  static c10::Device as_chip(c10::Device device) { return {kChip, device.index()}; }
  static c10::Device as_cuda(c10::Device device) { return {c10::kCUDA, device.index()}; }

  c10::DeviceType type() const override { return c10::kCUDA; }
  c10::Device exchangeDevice(c10::Device next) const override { return as_cuda(chip().exchangeDevice(as_chip(next))); }
  c10::Device getDevice() const override { return as_cuda(chip().getDevice()); }
  void setDevice(c10::Device next) const override { chip().setDevice(as_chip(next)); }
  void uncheckedSetDevice(c10::Device next) const noexcept override { chip().uncheckedSetDevice(as_chip(next)); }
  c10::Stream getStream(c10::Device on) const override { return chip().getStream(as_chip(on)); }
  c10::Stream exchangeStream(c10::Stream next) const override { return chip().exchangeStream(next); }
  c10::DeviceIndex deviceCount() const noexcept override { return chip().deviceCount(); }
};

// No tensor has the dispatch key of CUDA, so the dispatcher selects these kernels only for a device argument.
void redirect_cuda() {
  static torch::Library* library = nullptr;
  if (library) return;
  is_named_cuda = true;
  static CudaGuard guard;
  // A build of torch for CUDA has one already, which fails without CUDA's driver.
  c10::impl::device_guard_impl_registry[size_t(c10::kCUDA)].store(&guard);
  library = new torch::Library(torch::Library::IMPL, "aten", c10::DispatchKey::CUDA, __FILE__, __LINE__);
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const auto& name : dispatcher.getAllOpNames()) {
    if (name.name.compare(0, 6, "aten::") != 0) continue;
    auto op = dispatcher.findSchema(name);
    if (!op || op->hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd)) continue;
    bool named = false;
    for (const auto& argument : op->schema().arguments()) named |= argument.name() == "device";
    if (named) library->impl(c10::toString(name).c_str(), torch::CppFunction::makeFromBoxedFunction<&call_on_chip>());
  }
}

}  // namespace

bool named_cuda() { return is_named_cuda.load(std::memory_order_relaxed); }

std::string shown_name(c10::Device device) {
  return named_cuda() && device.type() == kChip ? CudaGuard::as_cuda(device).str() : device.str();
}

TORCH_LIBRARY_FRAGMENT(bringup, m) {
  m.def("redirect_cuda() -> ()", &redirect_cuda);
  m.def("redirected() -> int", [] { return redirected.load(); });
}

}  // namespace bringup
