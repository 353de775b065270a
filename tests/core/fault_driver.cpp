// Wraps the driver of the virtual chip and injects a fault into the n-th call of one entry: it fails, is slow, or returns late.
// Tests load it with BRINGUP_DRIVER. They control it with the functions at the end (ctypes), or with
// BRINGUP_FAULT=entry:call:mode. It counts live objects, so that a test can detect leaks.
#include <stdlib.h>

#include <map>

#include "../../csrc/drivers/virtual.cpp"

namespace faults {

enum Mode { kFail = 1, kSlow = 2, kLate = 3, kNoMemory = 4 };
constexpr auto kDelay = std::chrono::milliseconds(30);

struct Plan {
  std::mutex mutex;
  std::string entry;
  int call = 0, mode = 0;
  std::map<std::string, int> calls;  // since the plan was set
  int met = 0;
  std::string sentence;
};
Plan plan;

struct Alive {
  std::atomic<long> devices{0}, streams{0}, events{0}, bytes{0}, pinned{0}, mapped{0}, tasks{0}, ranges{0};
};
Alive alive;

const bringup_driver& real() { return *bringup_virtual_driver(); }

void read_environment() {
  static std::once_flag once;
  std::call_once(once, [] {
    const char* text = getenv("BRINGUP_FAULT");
    if (!text) return;
    std::string all = text;
    size_t first = all.find(':'), second = all.find(':', first + 1);
    plan.entry = all.substr(0, first);
    plan.call = atoi(all.substr(first + 1).c_str());
    plan.mode = atoi(all.substr(second + 1).c_str());
  });
}

// Returns the fault of this call; 0 if it has none.
int fault(const char* entry) {
  read_environment();
  std::lock_guard<std::mutex> lock(plan.mutex);
  int call = ++plan.calls[entry];
  if (plan.entry != entry || plan.call != call) return 0;
  ++plan.met;
  if (plan.mode == kFail) plan.sentence = "injected: call " + std::to_string(call) + " of " + entry + " failed";
  return plan.mode;
}

// Calls the real entry, with the delays of the plan before and after it.
template <class Call>
int with_fault(const char* entry, Call call) {
  int mode = fault(entry);
  if (mode == kFail) return BRINGUP_FAILED;
  if (mode == kNoMemory) return BRINGUP_OUT_OF_MEMORY;
  if (mode == kSlow) std::this_thread::sleep_for(kDelay);
  int status = call();
  if (mode == kLate) std::this_thread::sleep_for(kDelay);
  return status;
}

template <class Call>
void void_with_fault(const char* entry, Call call) {
  with_fault(entry, [&] {
    call();
    return BRINGUP_OK;
  });
}

void delay(void*, int) { std::this_thread::sleep_for(kDelay); }

// Slow work runs after a delay on the stream. A late call returns after a delay.
template <class Call>
int on_stream(const char* entry, bringup_stream* stream, Call call) {
  int mode = fault(entry);
  if (mode == kFail) return BRINGUP_FAILED;
  if (mode == kSlow) real().launch_host(stream, delay, nullptr);
  int status = call();
  if (mode == kLate) std::this_thread::sleep_for(kDelay);
  return status;
}

int open_device(int index, const bringup_config* config, bringup_device** out) {
  int status = with_fault("open", [&] { return real().open(index, config, out); });
  alive.devices += status == BRINGUP_OK;
  return status;
}
void close_device(bringup_device* device) {
  void_with_fault("close", [&] { real().close(device); });
  --alive.devices;
}
const char* last_error(bringup_device* device, const void** about) {
  static thread_local std::string shown;
  std::lock_guard<std::mutex> lock(plan.mutex);
  if (plan.sentence.empty()) return real().last_error(device, about);
  *about = nullptr;
  shown.swap(plan.sentence);
  plan.sentence.clear();
  return shown.c_str();
}
int alloc(bringup_device* device, size_t bytes, void** address) {
  int status = with_fault("alloc", [&] { return real().alloc(device, bytes, address); });
  if (status == BRINGUP_OK) alive.bytes += long(bytes);
  return status;
}
int free_(bringup_device* device, void* address, size_t bytes) {
  int status = with_fault("free", [&] { return real().free(device, address, bytes); });
  if (status == BRINGUP_OK) alive.bytes -= long(bytes);
  return status;
}
int range_reserve(bringup_device* device, size_t bytes, void** address) {
  int status = with_fault("range_reserve", [&] { return real().range_reserve(device, bytes, address); });
  alive.ranges += status == BRINGUP_OK;
  return status;
}
int range_release(bringup_device* device, void* address, size_t bytes) {
  int status = with_fault("range_release", [&] { return real().range_release(device, address, bytes); });
  alive.ranges -= status == BRINGUP_OK;
  return status;
}
int range_map(bringup_device* device, void* address, size_t bytes) {
  int status = with_fault("range_map", [&] { return real().range_map(device, address, bytes); });
  if (status == BRINGUP_OK) alive.bytes += long(bytes);
  return status;
}
int range_unmap(bringup_device* device, void* address, size_t bytes) {
  int status = with_fault("range_unmap", [&] { return real().range_unmap(device, address, bytes); });
  if (status == BRINGUP_OK) alive.bytes -= long(bytes);
  return status;
}
void* map(bringup_device* device, void* address) {
  void* host = nullptr;
  if (with_fault("map", [&] {
        host = real().map(device, address);
        return BRINGUP_OK;
      }) != BRINGUP_OK)
    return nullptr;
  ++alive.mapped;
  return host;
}
void unmap(bringup_device*, void*) {
  void_with_fault("unmap", [] {});
  --alive.mapped;
}
int host_alloc(bringup_device*, size_t bytes, void** pointer) {
  int status =
      with_fault("host_alloc", [&] { return posix_memalign(pointer, 4096, bytes) == 0 ? BRINGUP_OK : BRINGUP_OUT_OF_MEMORY; });
  if (status == BRINGUP_OK) alive.pinned += long(bytes);
  return status;
}
void host_free(bringup_device*, void* pointer, size_t bytes) {
  void_with_fault("host_free", [] {});
  free(pointer);
  alive.pinned -= long(bytes);
}
int stream_create(bringup_device* device, int priority, bringup_stream** stream) {
  int status = with_fault("stream_create", [&] { return real().stream_create(device, priority, stream); });
  alive.streams += status == BRINGUP_OK;
  return status;
}
void stream_destroy(bringup_stream* stream) {
  void_with_fault("stream_destroy", [&] { real().stream_destroy(stream); });
  --alive.streams;
}
int stream_synchronize(bringup_stream* stream) {  // a wait that fails has not waited
  return with_fault("stream_synchronize", [&] { return real().stream_synchronize(stream); });
}
int stream_query(bringup_stream* stream) {
  int busy = 0;
  int status = with_fault("stream_query", [&] {
    busy = real().stream_query(stream);
    return BRINGUP_OK;
  });
  return status == BRINGUP_OK ? busy : -1;
}
int copy_h2d(bringup_stream* stream, void* to, const void* from, size_t bytes) {
  return on_stream("copy_h2d", stream, [&] { return real().copy_h2d(stream, to, from, bytes); });
}
int copy_d2h(bringup_stream* stream, void* to, const void* from, size_t bytes) {
  return on_stream("copy_d2h", stream, [&] { return real().copy_d2h(stream, to, from, bytes); });
}
int copy_d2d(bringup_stream* stream, void* to, const void* from, size_t bytes) {
  return on_stream("copy_d2d", stream, [&] { return real().copy_d2d(stream, to, from, bytes); });
}
struct Task {
  bringup_host_fn fn;
  void* arg;
};
void run_task(void* arg, int execute) {
  std::unique_ptr<Task> task(static_cast<Task*>(arg));
  task->fn(task->arg, execute);
  --alive.tasks;
}
int launch_host(bringup_stream* stream, bringup_host_fn fn, void* arg) {
  return on_stream("launch_host", stream, [&] {
    ++alive.tasks;
    return real().launch_host(stream, run_task, new Task{fn, arg});
  });
}
int event_create(bringup_device* device, bringup_event** event) {
  int status = with_fault("event_create", [&] { return real().event_create(device, event); });
  alive.events += status == BRINGUP_OK;
  return status;
}
void event_destroy(bringup_event* event) {
  void_with_fault("event_destroy", [&] { real().event_destroy(event); });
  --alive.events;
}
int event_record(bringup_event* event, bringup_stream* stream) {
  return on_stream("event_record", stream, [&] { return real().event_record(event, stream); });
}
int event_wait(bringup_event* event, bringup_stream* stream) {
  return on_stream("event_wait", stream, [&] { return real().event_wait(event, stream); });
}
int event_query(bringup_event* event) {
  int done = 0;
  int status = with_fault("event_query", [&] {
    done = real().event_query(event);
    return BRINGUP_OK;
  });
  return status == BRINGUP_OK ? done : -1;
}
int event_synchronize(bringup_event* event) {
  return with_fault("event_synchronize", [&] { return real().event_synchronize(event); });
}
int event_elapsed(bringup_event* start, bringup_event* end, double* seconds) {
  return with_fault("event_elapsed", [&] { return real().event_elapsed(start, end, seconds); });
}

}  // namespace faults

extern "C" {

const bringup_driver* bringup_driver_entry() {
  static const bringup_driver driver = {
      .abi = BRINGUP_DRIVER_ABI,
      .size = sizeof(bringup_driver),
      .name = "fault-injecting",
      .open = faults::open_device,
      .close = faults::close_device,
      .last_error = faults::last_error,
      .alloc = faults::alloc,
      .free = faults::free_,
      .range_reserve = faults::range_reserve,
      .range_release = faults::range_release,
      .range_map = faults::range_map,
      .range_unmap = faults::range_unmap,
      .map = faults::map,
      .unmap = faults::unmap,
      .host_alloc = faults::host_alloc,
      .host_free = faults::host_free,
      .stream_create = faults::stream_create,
      .stream_destroy = faults::stream_destroy,
      .stream_synchronize = faults::stream_synchronize,
      .stream_query = faults::stream_query,
      .copy_h2d = faults::copy_h2d,
      .copy_d2h = faults::copy_d2h,
      .copy_d2d = faults::copy_d2d,
      .launch_host = faults::launch_host,
      .event_create = faults::event_create,
      .event_destroy = faults::event_destroy,
      .event_record = faults::event_record,
      .event_wait = faults::event_wait,
      .event_query = faults::event_query,
      .event_synchronize = faults::event_synchronize,
      .event_elapsed = faults::event_elapsed,
      .prepare = nullptr,
      .launch = nullptr,
      .release = nullptr,
      .failed_launch = nullptr,
  };
  return &driver;
}

// Sets the plan: the n-th call of an entry from now on has a fault. 0: no fault.
void fault_plan(const char* entry, int call, int mode) {
  using faults::plan;
  std::lock_guard<std::mutex> lock(plan.mutex);
  plan.entry = entry;
  plan.call = call;
  plan.mode = mode;
  plan.calls.clear();
  plan.met = 0;
  plan.sentence.clear();
}
int fault_met() {
  using faults::plan;
  std::lock_guard<std::mutex> lock(plan.mutex);
  return plan.met;
}
// The numbers of live devices, streams, events, bytes, pinned bytes, mapped addresses, tasks and ranges of addresses.
void fault_alive(long* counts) {
  using faults::alive;
  const std::atomic<long>* all[] = {&alive.devices, &alive.streams, &alive.events, &alive.bytes,
                                    &alive.pinned,  &alive.mapped,  &alive.tasks,  &alive.ranges};
  for (const auto* count : all) *counts++ = count->load();
}
}
