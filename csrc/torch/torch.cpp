// The interfaces through which torch uses a device: guard (streams, events), hooks, allocator, generator.
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include "launch/switches.h"
#include "runtime/generator.h"
#include "runtime/memory.h"
#include "runtime/pinned.h"
#include "torch/ops.h"
#include "runtime/runtime.h"
#include "torch/versions.h"

namespace bringup {
namespace {

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kChip; }
  c10::Device exchangeDevice(c10::Device next) const override {
    c10::Device previous = getDevice();
    set_current_device(next.index());
    return previous;
  }
  c10::Device getDevice() const override { return {kChip, current_device()}; }
  void setDevice(c10::Device next) const override { set_current_device(next.index()); }
  void uncheckedSetDevice(c10::Device next) const noexcept override {
    if (next.index() >= 0 && next.index() < device_count()) set_current_device(next.index());
  }
  c10::DeviceIndex deviceCount() const noexcept override { return c10::DeviceIndex(device_count()); }

  c10::Stream getStream(c10::Device on) const override {
    if (!opened() || forked()) return getDefaultStream(on);
    return current_stream(on.index()).id;
  }
  c10::Stream getDefaultStream(c10::Device on) const override {
    return c10::Stream(c10::Stream::DEFAULT, on.has_index() ? on : getDevice());
  }
  c10::Stream getStreamFromGlobalPool(c10::Device on, bool high) const override {
    return stream_from_pool(on.index(), high ? -1 : 0);
  }
  c10::Stream getNewStream(c10::Device on, int priority) const override { return stream_from_pool(on.index(), priority); }
  c10::Stream exchangeStream(c10::Stream next) const override { return exchange_stream(next); }
  void* getStreamNativeHandle(const c10::Stream on) const BRINGUP_OVERRIDE_2_11 { return stream(on).handle; }
  bool queryStream(const c10::Stream& on) const override { return query(stream(on)); }
  void synchronizeStream(const c10::Stream& on) const override {
    alert_wait();
    synchronize(stream(on));
  }
  void synchronizeDevice(c10::DeviceIndex index) const override { synchronize_device(index); }

  void record(void** event, const c10::Stream& on, c10::DeviceIndex index, c10::EventFlag flag) const override {
    TORCH_CHECK(index == -1 || index == on.device_index(), "an event of chip:", int(index),
                " cannot be recorded on a stream of chip:", int(on.device_index()));
    if (!*event) *event = event_create(on.device_index(), flag == c10::EventFlag::BACKEND_DEFAULT);
    event_record(static_cast<Event*>(*event), stream(on));
  }
  void block(void* event, const c10::Stream& on) const override {
    if (event) event_wait(static_cast<Event*>(event), stream(on));
  }
  bool queryEvent(void* event) const override { return !event || poll(static_cast<Event*>(event)); }
  void synchronizeEvent(void* event) const override {
    if (event) event_synchronize(static_cast<Event*>(event));
  }
  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override { event_destroy(static_cast<Event*>(event)); }
  double elapsedTime(void* start, void* end, const c10::DeviceIndex) const override {
    TORCH_CHECK(start && end, "elapsed_time needs two recorded events: record both before the call");
    return event_elapsed_ms(static_cast<Event*>(start), static_cast<Event*>(end));
  }
  void recordDataPtrOnStream(const c10::DataPtr& data, const c10::Stream& on) const override {
    chip_allocator().recordStream(data, on);
  }
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return device_count() > 0; }
  c10::DeviceIndex deviceCount() const override { return c10::DeviceIndex(device_count()); }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return opened() && !forked(); }
  void setCurrentDevice(c10::DeviceIndex index) const override { set_current_device(index); }
  c10::DeviceIndex getCurrentDevice() const override { return current_device(); }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override {
    auto previous = current_device();
    set_current_device(index);
    return previous;
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override {
    return index < 0 ? current_device() : exchangeDevice(index);
  }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex index) const override { return default_generator(index); }
  at::Generator getNewGenerator(c10::DeviceIndex index) const override {
    return at::make_generator<ChipGenerator>(index < 0 ? current_device() : index);
  }
  at::Device getDeviceFromPtr(void* data) const override {
    auto index = device_of(data);
    TORCH_CHECK(index >= 0, "the pointer ", data, " is not memory of a chip");
    return {kChip, index};
  }
  bool isPinnedPtr(const void* data) const override { return is_pinned(data); }
  at::Allocator* getPinnedMemoryAllocator() const override { return pinned_allocator(); }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    resize_storage(storage.unsafeGetStorageImpl(), bytes);
  }
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

}  // namespace

void register_device() {
  c10::SetAllocator(kChip, &chip_allocator());
  register_pinned_allocator();
  at::RegisterPrivateUse1HooksInterface(new Hooks());
}

}  // namespace bringup
