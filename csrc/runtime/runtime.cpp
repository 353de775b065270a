#include "runtime/runtime.h"

#include <dlfcn.h>
#include <pthread.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "python/lines.h"
#include "python/python.h"
#include "python/raised.h"
#include "runtime/capture.h"
#include "runtime/memory.h"
#include "record/recorder.h"
#include "runtime/pinned_watch.h"

extern "C" const bringup_driver* bringup_virtual_driver();

namespace bringup {

std::atomic<bool> driver_prepares{false}, memory_is_separate{false};

namespace {

std::mutex config_mutex;
Config the_config;
std::atomic<bool> is_configured{false};
std::atomic<int> asked_devices{1};
std::atomic<const bringup_driver*> the_driver{nullptr};
std::array<std::atomic<Device*>, kMaxDevices> devices;
std::atomic<bool> is_forked{false}, is_shut_down{false};
std::atomic<std::string (*)(int64_t)> native_launches{nullptr};

thread_local c10::DeviceIndex this_device = 0;
// The current stream of each device; null for the default stream.
thread_local std::array<Stream*, kMaxDevices> this_stream{};

constexpr uint32_t kVersion2 = 2;  // without a size, and without the entries after event_elapsed

void* same_address(bringup_device*, void* address) { return address; }

// Returns what the runtime knows of a loaded driver: entries that an older driver does not have are null.
const bringup_driver* adapted(const bringup_driver& loaded) {
  auto* known = new bringup_driver{};
  bool old = loaded.abi == kVersion2;
  std::memcpy(known, &loaded, old ? offsetof(bringup_driver, prepare) : std::min<size_t>(loaded.size, sizeof *known));
  if (old && !known->map) known->map = &same_address;
  if (!known->launch || !known->release) known->prepare = nullptr;
  return known;
}

// The names of the entries that are missing, of those that every driver needs.
std::string missing_entries(const bringup_driver& of) {
  const std::pair<const char*, bool> needed[] = {
      {"open", of.open},
      {"close", of.close},
      {"last_error", of.last_error},
      {"alloc", of.alloc},
      {"free", of.free},
      {"stream_create", of.stream_create},
      {"stream_destroy", of.stream_destroy},
      {"stream_synchronize", of.stream_synchronize},
      {"stream_query", of.stream_query},
      {"copy_h2d", of.copy_h2d},
      {"copy_d2h", of.copy_d2h},
      {"copy_d2d", of.copy_d2d},
      {"launch_host", of.launch_host},
      {"event_create", of.event_create},
      {"event_destroy", of.event_destroy},
      {"event_record", of.event_record},
      {"event_wait", of.event_wait},
      {"event_query", of.event_query},
      {"event_synchronize", of.event_synchronize},
      {"event_elapsed", of.event_elapsed},
  };
  std::string names;
  for (auto& [name, is_there] : needed)
    if (!is_there) names += (names.empty() ? "" : ", ") + std::string(name);
  return names;
}

const bringup_driver* load_driver(const std::string& path) {
  if (path.empty()) return bringup_virtual_driver();
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  TORCH_CHECK(library, "driver ", path, " cannot be loaded: ", dlerror());
  auto entry = reinterpret_cast<bringup_driver_entry_fn>(dlsym(library, "bringup_driver_entry"));
  TORCH_CHECK(entry, "driver ", path, " does not export bringup_driver_entry (see csrc/driver.h)");
  const bringup_driver* loaded = entry();
  TORCH_CHECK(loaded, "driver ", path, ": its bringup_driver_entry returns null (see csrc/driver.h)");
  TORCH_CHECK(loaded->abi == BRINGUP_DRIVER_ABI || loaded->abi == kVersion2, "driver ", path, " was built for driver ABI ",
              loaded->abi, "; this bringup needs ABI ", BRINGUP_DRIVER_ABI, ": rebuild it against csrc/driver.h");
  const bringup_driver* complete = adapted(*loaded);
  std::string missing = missing_entries(*complete);
  TORCH_CHECK(missing.empty(), "driver ", path, " lacks ", missing,
              ": set them, and size to sizeof(bringup_driver) (see csrc/driver.h)");
  return complete;
}

// Returns the driver's status. Throwing an error needs the GIL, whose holder may be waiting for this mutex, so the caller throws
// it.
int make_stream(Device& device, size_t id, int priority) {
  std::lock_guard<std::mutex> lock(device.mutex);
  auto& slot = device.streams[id];
  if (slot.load()) return BRINGUP_OK;
  bringup_stream* handle = nullptr;
  int status = driver().stream_create(device.handle, priority, &handle);
  c10::Device on(kChip, c10::DeviceIndex(device.index));
  if (status == BRINGUP_OK) slot = new Stream(c10::Stream(c10::Stream::UNSAFE, on, c10::StreamId(id)), priority, handle);
  return status;
}

Stream& open_stream(Device& device, size_t id, int priority) {
  auto& slot = device.streams[id];
  if (!slot.load()) check_driver(make_stream(device, id, priority), device, "the creation of a stream");
  return *slot.load();
}

std::string describe_native_launch(int64_t number) {
  auto* describe = native_launches.load();
  return number && describe ? describe(number) : "";
}

struct DriverError {
  std::string sentence;
  const void* address = nullptr;  // the device address that the sentence is about
  int64_t launch = 0;             // the number of the launch that it is about
};

DriverError last_error(Device& device) {
  DriverError error;
  if (driver().failed_launch) error.launch = driver().failed_launch(device.handle);
  error.sentence = driver().last_error(device.handle, &error.address);
  return error;
}

[[noreturn]] void raise(int device, const DriverError& error, const std::string& about) {
  std::string owner = error.address ? describe_owner(device, error.address) : "", where = describe(current_line());
  std::string launched = describe_native_launch(error.launch);
  TORCH_CHECK(false, "chip:", device, ": ", error.sentence, owner.empty() ? "" : ", which belongs to ", owner,
              launched.empty() ? "" : ", in ", launched, " (in ", about, where.empty() ? "" : " at ", where, ")");
}

// The first use chooses the chip, in any thread. Other threads wait for the choice.
void choose() {
  static std::recursive_mutex mutex;
  static bool choosing = false;
  std::unique_lock<std::recursive_mutex> lock(mutex, std::defer_lock);
  {
    ReleaseGil no_gil;  // the choosing thread runs Python
    lock.lock();
  }
  if (configured()) return;
  TORCH_CHECK(!std::exchange(choosing, true), "the chip was used while it was being chosen");
  struct Chosen {
    ~Chosen() { choosing = false; }
  } chosen;
  raising_in_python([] {
    Gil gil;
    call_python("bringup.device.torch_chip", "choose_from_environment", "");
  });
}

// As torch does: a program may set the allocator's variables until it uses the device, long after the chip was chosen.
void apply_environment() {
  raising_in_python([] {
    Gil gil;
    call_python("bringup.device.allocator_settings", "apply_environment", "");
  });
}

uint64_t least_range = UINT64_MAX;  // of the opened devices; guarded by config_mutex

// The bytes that a device is opened with. The virtual chip takes only a range of addresses, which has room for every chip that
// the process may change to: the allocator enforces the capacity.
uint64_t range_bytes(const Config& asked) {
  if (!asked.driver.empty()) return asked.device_bytes;
  uint64_t most = (uint64_t(16) << 40) / uint64_t(asked.devices);
  return asked.past_capacity ? most : std::max(asked.device_bytes, std::min(most, uint64_t(1) << 40));
}

Device& open_device(int index) {
  check_index(c10::DeviceIndex(index));
  TORCH_CHECK(!is_shut_down, "chip:", index, " is shut down: the interpreter is exiting");
  if (!configured()) choose();
  check_index(c10::DeviceIndex(index));
  if (!opened()) apply_environment();
  std::unique_lock<std::mutex> lock(config_mutex);
  if (Device* device = devices[index].load()) return *device;
  if (!the_driver.load()) {
    const bringup_driver* loaded = load_driver(the_config.driver);
    driver_prepares = loaded->prepare != nullptr;
    memory_is_separate = loaded->map == nullptr;
    the_driver.store(loaded);
    pthread_atfork(nullptr, nullptr, [] { is_forked = true; });
  }
  bringup_config request = {range_bytes(the_config), the_config.check ? 1 : 0};
  bringup_device* handle = nullptr;
  int status = driver().open(index, &request, &handle);
  if (status != BRINGUP_OK && request.device_bytes > the_config.device_bytes) {  // a limit such as that of `ulimit -v`
    request.device_bytes = the_config.device_bytes;
    status = driver().open(index, &request, &handle);
  }
  if (status == BRINGUP_OK) least_range = std::min(least_range, request.device_bytes);
  if (status != BRINGUP_OK) {
    std::string why = "could not reserve " + std::to_string(the_config.device_bytes) +
                      " bytes of memory; choose a smaller chip, or check the device";
    const void* about = nullptr;
    if (driver().abi >= BRINGUP_DRIVER_ABI) why = "says: " + std::string(driver().last_error(nullptr, &about));
    lock.unlock();
    TORCH_CHECK(false, "chip:", index, " (", the_config.chip, ") cannot be opened: the ", driver().name, " driver ", why);
  }
  auto device = std::make_unique<Device>(index, handle);
  if (make_stream(*device, 0, 0) != BRINGUP_OK) {
    DriverError error = last_error(*device);
    driver().close(handle);
    lock.unlock();
    raise(index, error, "the creation of a stream");
  }
  devices[index].store(device.get());
  return *device.release();
}

template <class F>
void for_each_stream(Device& device, F f) {
  for (auto& slot : device.streams)
    if (Stream* stream = slot.load()) f(*stream);
}

}  // namespace

void configure(Config requested) {
  std::lock_guard<std::mutex> lock(config_mutex);
  // Streams, events and their threads stay, so a virtual chip can only become another one of the same kind.
  bool alike = requested.driver.empty() && the_config.driver.empty() && requested.check == the_config.check &&
               requested.past_capacity == the_config.past_capacity && requested.devices == the_config.devices &&
               requested.device_bytes <= least_range;
  TORCH_CHECK(!opened() || alike, "the chip must be chosen before its first use: ", the_config.chip,
              " is already open in this process, with other devices, driver or checks, or with less room for memory");
  TORCH_CHECK(!requested.past_capacity || requested.driver.empty(),
              "only the virtual chip can exceed its capacity: leave out the driver, or leave out --oom=continue");
  TORCH_CHECK(requested.devices >= 1 && requested.devices <= kMaxDevices, "devices must be 1 to ", kMaxDevices, ", got ",
              requested.devices);
  the_config = std::move(requested);
  asked_devices = the_config.devices;
  is_configured = true;
}

const Config& config() { return the_config; }
bool configured() { return is_configured; }
bool opened() { return the_driver.load() != nullptr; }
bool opened(int index) { return devices[index].load() != nullptr; }
int device_count() noexcept { return asked_devices.load(); }
void set_device_count(int count) { asked_devices = count; }
const bringup_driver& driver() { return *the_driver.load(); }
bool forked() { return is_forked.load(std::memory_order_relaxed); }

void describe_launches_with(std::string (*describe)(int64_t)) { native_launches = describe; }

void check_index(c10::DeviceIndex index) {
  TORCH_CHECK(index >= 0 && index < device_count(), "chip:", int(index), " does not exist: this process has ", device_count(),
              device_count() == 1 ? " chip" : " chips", " (chip:0",
              device_count() > 1 ? " to chip:" + std::to_string(device_count() - 1) : "",
              "); ask for more with bringup.use(..., devices=N) or BRINGUP_DEVICES=N");
}

Device& device(int index) {
  TORCH_CHECK(!forked(),
              "the chip cannot be used in a forked process: start workers with the 'spawn' method, or use no chip tensors "
              "in them");
  if (index >= 0 && index < kMaxDevices)
    if (Device* open = devices[index].load(std::memory_order_acquire)) return *open;
  return open_device(index);
}

void throw_driver_error(Device& device, const std::string& about) { raise(device.index, last_error(device), about); }

Mapped::Mapped(int device_index, void* address) : device_(device_index), address_(address), host_(address) {
  if (!address) return;
  TORCH_CHECK(!separate_memory(), "the host cannot address the memory of the ", driver().name,
              " driver's device, which this needs; run it on the virtual chip");
  Device& on = device(device_index);
  host_ = driver().map(on.handle, address);
  if (!host_) address_ = nullptr;  // nothing to unmap
  if (!host_) throw_driver_error(on, "the mapping of memory for a kernel");
}

Mapped::~Mapped() {
  if (address_ && driver().unmap) driver().unmap(device(device_).handle, address_);
}

Counters& counters() {
  static Counters* all = new Counters();
  return *all;
}

bool launch_blocking() {
  static const bool blocking = [] {
    const char* value = std::getenv("BRINGUP_LAUNCH_BLOCKING");
    return value && *value && std::strcmp(value, "0") != 0;
  }();
  return blocking;
}

// ---- errors

FailurePtr Stream::fail(std::exception_ptr error, int64_t launch) {
  std::lock_guard<std::mutex> lock(mutex);
  if (failure && !failure->raised) {
    ++failure->others;
    return failure;
  }
  failure = std::make_shared<Failure>();
  failure->error = std::move(error);
  failure->launch = launch;
  return failure;
}

void Stream::adopt(const FailurePtr& other) {
  std::lock_guard<std::mutex> lock(mutex);
  if (other && !other->raised && (!failure || failure->raised)) failure = other;
}

FailurePtr Stream::pending() {
  std::lock_guard<std::mutex> lock(mutex);
  return failure && !failure->raised ? failure : nullptr;
}

FailurePtr Stream::take() {
  std::lock_guard<std::mutex> lock(mutex);
  return std::move(failure);
}

// ---- streams

c10::DeviceIndex current_device() { return this_device; }

void set_current_device(c10::DeviceIndex index) {
  if (index == this_device) return;
  check_index(index);
  this_device = index;
}

Stream& current_stream(c10::DeviceIndex index) {
  if (index < 0) index = this_device;
  if (index < kMaxDevices)
    if (Stream* stream = this_stream[index]) return *stream;
  Device& on = device(index);
  return *on.streams[0].load();
}

Stream& stream(const c10::Stream& id) {
  Device& on = device(id.device_index() < 0 ? this_device : id.device_index());
  TORCH_CHECK(
      id.device_type() == kChip && id.id() >= 0 && size_t(id.id()) < on.streams.size() && on.streams[size_t(id.id())].load(),
      "stream ", id.id(), " is not a stream of a chip");
  return *on.streams[size_t(id.id())].load();
}

c10::Stream exchange_stream(const c10::Stream& id) {
  Stream& next = stream(id);
  auto index = id.device_index() < 0 ? this_device : id.device_index();
  c10::Stream previous = current_stream(index).id;
  this_stream[size_t(index)] = id.id() == 0 ? nullptr : &next;
  return previous;
}

c10::Stream stream_from_pool(c10::DeviceIndex index, int priority) {
  static std::array<std::array<std::atomic<uint32_t>, 2>, kMaxDevices> next;
  if (index < 0) index = this_device;
  Device& on = device(index);
  bool high = priority < 0;
  uint32_t turn = next[size_t(index)][high].fetch_add(1) % kStreamsPerPriority;
  return open_stream(on, 1 + turn + (high ? kStreamsPerPriority : 0), high ? -1 : 0).id;
}

void launch(Stream& stream, bringup_host_fn fn, void* arg, const char* about) {
  if (C10_UNLIKELY(stream.capture != nullptr)) {
    fn(arg, 0);  // releases its argument
    refuse_capture(stream, about, "run it before the capture");
  }
  int status = driver().launch_host(stream.handle, fn, arg);
  if (C10_LIKELY(status == BRINGUP_OK)) return;
  fn(arg, 0);  // it was not enqueued, so only its argument is released
  throw_driver_error(device(stream.id.device_index()), std::string("a launch of ") + about);
}

namespace {

bool idle() {  // True if no launch is pending on any device.
  bool idle = true;
  for (auto& slot : devices)
    if (Device* on = slot.load()) for_each_stream(*on, [&](Stream& s) { idle = idle && driver().stream_query(s.handle) == 1; });
  return idle;
}

}  // namespace

void synchronize(Stream& stream, uint8_t flags) {
  refuse_capture(stream, "a wait for a stream", "read results after a replay");
  ++counters().synchronizations;
  if (C10_UNLIKELY(recording())) record_row(RowKind::StreamSync, &stream, current_line(), 0, 0, flags);
  HostTimeAside aside;
  Device& on = device(stream.id.device_index());
  int status;
  {
    ReleaseGil no_gil;
    status = driver().stream_synchronize(stream.handle);
  }
  stream_reached(stream);
  if (C10_UNLIKELY(any_marked()) && idle()) forget_raised();
  stream.raise();
  check_driver(status, on, "a wait for a stream");
}

// A query that returns true ends the program's waiting, so it is recorded as a wait.
bool query(Stream& stream) {
  refuse_capture(stream, "a query of a stream", "query it outside of the capture");
  int status = driver().stream_query(stream.handle);
  if (status < 0) throw_driver_error(device(stream.id.device_index()), "a query of a stream");
  if (status == 0) return false;
  stream_reached(stream);
  if (C10_UNLIKELY(recording())) record_row(RowKind::StreamSync, &stream, current_line(), 0, 0);
  stream.raise();
  return true;
}

void synchronize_device(int index) {
  refuse_capture(index, "a wait for the device", "synchronize outside of the capture");
  ++counters().synchronizations;
  Device& on = device(index);
  if (C10_UNLIKELY(recording())) record_row(RowKind::DeviceSync, on.streams[0].load(), current_line(), 0, 0);
  HostTimeAside aside;
  int status = BRINGUP_OK;
  {
    ReleaseGil no_gil;
    for_each_stream(on, [&](Stream& s) { status = std::max(status, driver().stream_synchronize(s.handle)); });
  }
  device_reached(index);
  std::vector<FailurePtr> failures;
  for_each_stream(on, [&](Stream& s) { failures.push_back(s.take()); });
  if (C10_UNLIKELY(any_marked()) && idle()) forget_raised();
  raise_first(failures);
  check_driver(status, on, "a wait for the device");
}

int drain(int index) {
  Device& on = device(index);
  ReleaseGil no_gil;
  int status = BRINGUP_OK;
  for_each_stream(on, [&](Stream& s) { status = std::max(status, driver().stream_synchronize(s.handle)); });
  return status;
}

void shutdown() {
  if (forked() || !opened() || is_shut_down) return;
  for (auto& slot : devices) {
    Device* on = slot.load();
    if (!on) continue;
    drain(on->index);
    for_each_stream(*on, [](Stream& s) {
      try {
        raise_first({s.take()}, /*to_program=*/false);
      } catch (const c10::Error& error) {
        std::fprintf(stderr, "bringup: a launch failed and nothing waited for it: %s\n", error.what_without_backtrace());
      } catch (const std::exception& error) {
        std::fprintf(stderr, "bringup: a launch failed and nothing waited for it: %s\n", error.what());
      }
    });
  }
  is_shut_down = true;
}

// ---- events

namespace {

struct FailureCarrier {
  Stream* stream;
  std::shared_ptr<FailurePtr> box;
};

// Runs in stream order: stores the failure that the stream had when it reached the event.
void store_failure(void* arg, int) {
  std::unique_ptr<FailureCarrier> carrier(static_cast<FailureCarrier*>(arg));
  *carrier->box = carrier->stream->pending();
}

// Runs in the order of the waiting stream, after its wait.
void take_failure(void* arg, int) {
  std::unique_ptr<FailureCarrier> carrier(static_cast<FailureCarrier*>(arg));
  carrier->stream->adopt(*carrier->box);
}

}  // namespace

Event* event_create(int index, bool timed) {
  Device& on = device(index);
  bringup_event* handle = nullptr;
  check_driver(driver().event_create(on.handle, &handle), on, "the creation of an event");
  static std::atomic<int64_t> next_id{0};
  return new Event{handle, next_id++, timed, {}, nullptr, nullptr, nullptr};
}

void event_destroy(Event* event) noexcept {
  if (!event || forked()) return;
  driver().event_destroy(event->handle);
  delete event;
}

namespace {

struct LatestRecord {
  Stream* stream;
  std::shared_ptr<Capture> capture;
  std::shared_ptr<FailurePtr> failure;
};

// Another thread may record the event again at any time.
LatestRecord latest_record(Event* event) {
  std::lock_guard<std::mutex> lock(event->mutex);
  return {event->stream, event->capture, event->failure};
}

}  // namespace

void event_record(Event* event, Stream& stream, const void* keeps) {
  if (Capture* capture = stream.capture; C10_UNLIKELY(capture != nullptr)) {
    std::lock_guard<std::mutex> lock(event->mutex);
    event->capture = capture->shared_from_this();
    return;
  }
  if (C10_UNLIKELY(recording())) record_event(stream, event->id, keeps);
  event_noted(event->id, stream);
  auto box = std::make_shared<FailurePtr>();
  launch(stream, store_failure, new FailureCarrier{&stream, box}, "an event");
  {
    std::lock_guard<std::mutex> lock(event->mutex);
    event->stream = &stream;
    event->capture = nullptr;
    event->failure = box;
  }
  check_driver(driver().event_record(event->handle, stream.handle), device(stream.id.device_index()), "the record of an event");
}

void event_wait(Event* event, Stream& stream, bool of_allocator) {
  LatestRecord latest = latest_record(event);
  if (C10_UNLIKELY(latest.capture != nullptr)) {
    if (!latest.capture->over) latest.capture->join(stream);
    return;
  }
  if (!latest.stream) return;  // never recorded
  refuse_capture(stream, "a wait for an event that was recorded outside of the capture", "record it in the capture");
  if (C10_UNLIKELY(recording()))
    record_row(RowKind::EventWait, &stream, current_line(), 0, event->id, of_allocator ? kOfAllocator : 0);
  event_followed(event->id, stream);
  check_driver(driver().event_wait(event->handle, stream.handle), device(stream.id.device_index()),
               "a stream's wait for an event");
  launch(stream, take_failure, new FailureCarrier{&stream, latest.failure}, "a wait for an event");
}

void follow(Stream& follower, Stream& leader) {
  if (&follower == &leader) return;
  std::unique_ptr<Event, decltype(&event_destroy)> event(event_create(leader.id.device_index(), false), &event_destroy);
  event_record(event.get(), leader);
  event_wait(event.get(), follower);
}

bool event_query(Event* event) {
  int status = driver().event_query(event->handle);
  if (status < 0) {
    std::unique_lock<std::mutex> lock(event->mutex);
    int index = event->stream ? event->stream->id.device_index() : current_device();
    lock.unlock();
    throw_driver_error(device(index), "a query of an event");
  }
  return status == 1;
}

bool poll(Event* event) {
  if (!event_query(event)) return false;
  event_reached(event->id);
  LatestRecord latest = latest_record(event);
  if (!latest.stream) return true;
  if (C10_UNLIKELY(recording())) record_row(RowKind::EventSync, latest.stream, current_line(), 0, event->id);
  if (*latest.failure) latest.stream->raise();
  return true;
}

void event_synchronize(Event* event) {
  LatestRecord latest = latest_record(event);
  if (C10_UNLIKELY(latest.capture != nullptr) && !latest.capture->over)
    refuse_capture(*latest.capture->streams.front(), "a wait for an event", "wait outside of the capture");
  ++counters().synchronizations;
  if (!latest.stream) return;
  if (C10_UNLIKELY(recording())) record_row(RowKind::EventSync, latest.stream, current_line(), 0, event->id);
  HostTimeAside aside;
  int status;
  {
    ReleaseGil no_gil;
    status = driver().event_synchronize(event->handle);
  }
  event_reached(event->id);
  check_driver(status, device(latest.stream->id.device_index()), "a wait for an event");
  if (*latest.failure) latest.stream->raise();
}

double event_elapsed_ms(Event* start, Event* end) {
  TORCH_CHECK(start->timed && end->timed, "elapsed_time needs two events created with enable_timing=True");
  TORCH_CHECK(start->stream && end->stream, "elapsed_time needs two recorded events: record both before the call");
  TORCH_CHECK(event_query(start) && event_query(end),
              "elapsed_time was called before both events were reached: synchronize the second event first");
  if (C10_UNLIKELY(recording())) {  // the predicted time, from a replay of the current recording
    return raising_in_python([&] {
      Gil gil;
      Ref elapsed = call_python("bringup.timeline.clock", "elapsed_ms", "LL", static_cast<long long>(start->id),
                                static_cast<long long>(end->id));
      return PyFloat_AsDouble(elapsed.get());
    });
  }
  double seconds = 0;
  check_driver(driver().event_elapsed(start->handle, end->handle, &seconds), device(end->stream->id.device_index()),
               "the time between two events");
  return seconds * 1e3;
}

}  // namespace bringup
