// The driver of the virtual chip. Device memory is a reserved range of host addresses; each stream is a queue with a thread.
#include "../driver.h"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#define BRINGUP_PAUSE() _mm_pause()
#else
#define BRINGUP_PAUSE() std::this_thread::yield()
#endif

namespace bringup_virtual {

constexpr size_t kPage = 4096;
constexpr int kMostAreas = 1024;      // ranges of addresses per device
constexpr size_t kQueueDepth = 4096;  // if so much work is pending, the host waits
// A worker checks this many times for new work before it sleeps, since waking a sleeping thread takes the host 5-20 us.
constexpr int kSpins = 5000;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

char* page_of(char* address) { return address - reinterpret_cast<uintptr_t>(address) % kPage; }

}  // namespace bringup_virtual

using namespace bringup_virtual;

// Note [Device addresses]
// A device reserves addresses for twice its capacity, since memory may be fragmented, and allocates whole pages. A page takes
// memory only when it is first accessed. In check mode, the same memory is mapped twice. The program's addresses stay protected,
// and kernels use the second mapping, which lies at a constant distance. Host code that dereferences a device address then
// faults. The handler notes the address and unprotects the page, so that the process continues, and the next synchronisation
// fails. The first area of addresses serves `alloc`; each range that is reserved is an area of its own.
namespace bringup_virtual {

struct Area {
  char* base = nullptr;
  char* shadow = nullptr;  // the second mapping in check mode, else equal to `base`
  size_t bytes = 0;

  bool contains(const void* address) const {
    auto* at = static_cast<const char*>(address);
    return at >= base && at < base + bytes;
  }
  bool is_checked() const { return shadow != base; }
};

}  // namespace bringup_virtual

struct bringup_device {
  int index = 0;
  size_t capacity = 0, used = 0;
  Area areas[kMostAreas];
  std::atomic<int> area_count{0};
  std::vector<Area> spare;  // ranges that were released
  bool check = false;
  std::mutex mutex;
  std::map<size_t, size_t> holes;  // free address ranges: offset -> bytes
  std::string error, shown;
  const void* error_about = nullptr;
  std::atomic<int> urgent{0};  // number of high-priority streams that are running a kernel
  std::atomic<char*> trespass{nullptr};

  int fail(const std::string& sentence, const void* about = nullptr) {
    std::lock_guard<std::mutex> lock(mutex);
    error = sentence;
    error_about = about;
    return BRINGUP_FAILED;
  }

  // The area of an address; null if it is not the device's. The fault handler calls it.
  const Area* area_of(const void* address) const {
    for (int i = 0; i < area_count.load(std::memory_order_acquire); ++i)
      if (areas[i].contains(address)) return &areas[i];
    return nullptr;
  }

  // Fails once if host code has dereferenced device memory, and protects the page again.
  int checked() {
    char* address = trespass.exchange(nullptr);
    if (!address) return BRINGUP_OK;
    mprotect(page_of(address), kPage, PROT_NONE);
    char text[96];
    snprintf(text, sizeof text, "host code dereferenced device memory at %p", static_cast<void*>(address));
    return fail(text, address);
  }
};

namespace bringup_virtual {

// Serves all devices in check mode. It is statically initialised, since the handler may run at any time.
struct FaultHandler {
  std::mutex mutex;
  bringup_device* devices[BRINGUP_MAX_DEVICES];
  std::atomic<int> count{0};
  struct sigaction previous;

  void add(bringup_device* device);
};
FaultHandler fault_handler;

void on_fault(int signal, siginfo_t* info, void* context) {
  char* address = static_cast<char*>(info->si_addr);
  for (int i = 0; i < fault_handler.count.load(); ++i) {
    bringup_device* device = fault_handler.devices[i];
    if (!device->area_of(address)) continue;
    if (mprotect(page_of(address), kPage, PROT_READ | PROT_WRITE) != 0) break;
    device->trespass.store(address);
    return;
  }
  if (fault_handler.previous.sa_flags & SA_SIGINFO) return fault_handler.previous.sa_sigaction(signal, info, context);
  if (fault_handler.previous.sa_handler != SIG_DFL && fault_handler.previous.sa_handler != SIG_IGN)
    return fault_handler.previous.sa_handler(signal);
  sigaction(signal, &fault_handler.previous, nullptr);  // restores the default; the faulting instruction runs again
}

void FaultHandler::add(bringup_device* device) {
  std::lock_guard<std::mutex> lock(mutex);
  int index = count.load();
  if (index == BRINGUP_MAX_DEVICES) return;
  devices[index] = device;
  count.store(index + 1);
  if (index > 0) return;
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
  sigaction(SIGSEGV, &action, &previous);
}

struct Work {
  bringup_host_fn fn;
  void* arg;
  bool kernel;  // kernels wait while a more urgent stream runs one; copies and events do not
};

}  // namespace bringup_virtual

// An ordered queue executed by one thread. `enqueued` and `finished` count work since creation.
struct bringup_stream {
  bringup_device* device;
  bool high_priority;
  std::vector<Work> ring = std::vector<Work>(kQueueDepth);
  std::atomic<uint64_t> enqueued{0}, finished{0};
  std::atomic<bool> asleep{false}, stop{false};
  std::atomic<uint64_t> awaited{UINT64_MAX};  // the smallest count that a thread waits for
  std::mutex push_mutex, mutex;
  std::condition_variable work_ready, work_done;
  std::thread thread;

  bringup_stream(bringup_device* device, int priority) : device(device), high_priority(priority < 0) {
    thread = std::thread([this] { run(); });
    pthread_setname_np(thread.native_handle(), "bringup-stream");
  }

  void push(bringup_host_fn fn, void* arg, bool kernel = false) {
    std::lock_guard<std::mutex> order(push_mutex);
    uint64_t slot = enqueued.load(std::memory_order_relaxed);
    if (slot - finished.load() >= kQueueDepth) wait_for(slot - kQueueDepth + 1);
    ring[slot % kQueueDepth] = {fn, arg, kernel};
    enqueued.store(slot + 1);  // sequentially consistent with `asleep`: one of the two sides sees the other
    if (asleep.load()) {
      std::lock_guard<std::mutex> lock(mutex);
      work_ready.notify_one();
    }
  }

  void wait_for(uint64_t count) {
    for (int i = 0; i < kSpins && finished.load() < count; ++i) BRINGUP_PAUSE();
    if (finished.load() >= count) return;
    std::unique_lock<std::mutex> lock(mutex);
    while (true) {
      awaited.store(std::min(awaited.load(), count));  // sequentially consistent with `finished`, as in `push`
      if (finished.load() >= count) return;
      work_done.wait(lock);  // until then, not once per kernel: that would be CPU time of the waiting thread
    }
  }

  bool ready(uint64_t next) {
    for (int i = 0; i < kSpins; ++i) {
      if (enqueued.load() != next) return true;
      BRINGUP_PAUSE();
    }
    std::unique_lock<std::mutex> lock(mutex);
    asleep.store(true);
    work_ready.wait(lock, [&] { return enqueued.load() != next || stop.load(); });
    asleep.store(false);
    return enqueued.load() != next;
  }

  // A high-priority stream announces each kernel. Other streams wait before each of theirs until no such kernel is running.
  void begin_kernel() {
    if (high_priority) {
      device->urgent.fetch_add(1);
    } else {
      for (int urgent; (urgent = device->urgent.load()) > 0;) device->urgent.wait(urgent);
    }
  }

  void end_kernel() {
    if (high_priority && device->urgent.fetch_sub(1) == 1) device->urgent.notify_all();
  }

  void run() {
    for (uint64_t next = 0; ready(next); ++next) {
      Work work = ring[next % kQueueDepth];
      if (work.kernel) begin_kernel();
      work.fn(work.arg, 1);
      if (work.kernel) end_kernel();
      finished.store(next + 1);
      if (next + 1 >= awaited.load()) {
        std::lock_guard<std::mutex> lock(mutex);
        awaited.store(UINT64_MAX);  // who waits for more sets it again
        work_done.notify_all();
      }
    }
  }
};

namespace bringup_virtual {

struct EventState {
  std::mutex mutex;
  std::condition_variable changed;
  uint64_t recorded = 0, done = 0;  // versions
  double seconds = 0;               // time at which version `done` was reached

  void wait_for(uint64_t version) {
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [&] { return done >= version; });
  }
};

}  // namespace bringup_virtual

struct bringup_event {
  std::shared_ptr<EventState> state = std::make_shared<EventState>();
};

namespace bringup_virtual {

struct EventWork {
  std::shared_ptr<EventState> state;
  uint64_t version;
};

struct CopyWork {
  void* to;
  const void* from;
  size_t bytes;
};

// The open devices, for copies between two of them: an address determines the device, and so the distance to the second mapping.
std::mutex devices_mutex;
std::vector<bringup_device*> devices;

// Reserves addresses, without pages.
int new_area(const bringup_device& device, size_t bytes, Area& area) {
  int flags = MAP_NORESERVE | (device.check ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS), fd = -1;
  if (device.check) {
    fd = memfd_create("bringup-device", MFD_CLOEXEC);
    if (fd < 0) return BRINGUP_FAILED;
    if (ftruncate(fd, off_t(bytes)) != 0) return close(fd), BRINGUP_FAILED;
  }
  void* base = mmap(nullptr, bytes, PROT_NONE, flags, fd, 0);
  void* shadow = device.check && base != MAP_FAILED ? mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, fd, 0) : base;
  if (fd >= 0) close(fd);  // the mappings keep the memory
  if (shadow == MAP_FAILED) {
    if (base != MAP_FAILED) munmap(base, bytes);
    return BRINGUP_OUT_OF_MEMORY;
  }
  area = {static_cast<char*>(base), static_cast<char*>(shadow), bytes};
  return BRINGUP_OK;
}

void add_area(bringup_device& device, const Area& area) {
  int count = device.area_count.load();
  device.areas[count] = area;
  device.area_count.store(count + 1, std::memory_order_release);
}

int open_device(int index, const bringup_config* config, bringup_device** out) {
  auto device = std::make_unique<bringup_device>();
  device->index = index;
  device->capacity = config->device_bytes;
  device->check = config->check != 0;
  Area area;
  int status = new_area(*device, round_up(config->device_bytes * 2, size_t(2) << 20), area);
  if (status != BRINGUP_OK) return status;
  add_area(*device, area);
  if (device->check) fault_handler.add(device.get());
  device->holes[0] = area.bytes;
  *out = device.release();
  std::lock_guard<std::mutex> lock(devices_mutex);
  devices.push_back(*out);
  return BRINGUP_OK;
}

void close_device(bringup_device* device) {
  {
    std::lock_guard<std::mutex> lock(devices_mutex);
    std::erase(devices, device);
  }
  if (device->check) return;  // the fault handler may still read it
  for (int i = 0; i < device->area_count; ++i) munmap(device->areas[i].base, device->areas[i].bytes);
  delete device;
}

const char* last_error(bringup_device* device, const void** about) {
  *about = nullptr;
  if (!device) return "there is no range of addresses for its memory; choose a smaller chip, or check the machine's limits";
  std::lock_guard<std::mutex> lock(device->mutex);
  *about = device->error_about;
  device->shown.swap(device->error);
  device->error.clear();
  return device->shown.c_str();
}

// Gives pages memory, or takes it back.
bool open_pages(const Area& area, char* at, size_t bytes) {
  return area.is_checked() || mprotect(at, bytes, PROT_READ | PROT_WRITE) == 0;
}

void close_pages(const Area& area, char* at, size_t bytes) {
  if (area.is_checked()) {
    madvise(area.shadow + (at - area.base), bytes, MADV_REMOVE);  // releases the pages of both mappings
  } else {
    madvise(at, bytes, MADV_DONTNEED);
    mprotect(at, bytes, PROT_NONE);
  }
}

int alloc(bringup_device* device, size_t bytes, void** address) {
  bytes = round_up(bytes, kPage);
  std::lock_guard<std::mutex> lock(device->mutex);
  if (device->used + bytes > device->capacity) return BRINGUP_OUT_OF_MEMORY;
  for (auto hole = device->holes.begin(); hole != device->holes.end(); ++hole) {
    auto [offset, size] = *hole;
    if (size < bytes) continue;
    char* at = device->areas[0].base + offset;
    if (!open_pages(device->areas[0], at, bytes)) return BRINGUP_OUT_OF_MEMORY;
    device->holes.erase(hole);
    if (size > bytes) device->holes[offset + bytes] = size - bytes;
    device->used += bytes;
    *address = at;
    return BRINGUP_OK;
  }
  return BRINGUP_OUT_OF_MEMORY;
}

int release(bringup_device* device, void* address, size_t bytes) {
  bytes = round_up(bytes, kPage);
  std::lock_guard<std::mutex> lock(device->mutex);
  size_t offset = size_t(static_cast<char*>(address) - device->areas[0].base);
  close_pages(device->areas[0], static_cast<char*>(address), bytes);
  device->used -= bytes;
  auto next = device->holes.lower_bound(offset);
  if (next != device->holes.end() && next->first == offset + bytes) {
    bytes += next->second;
    next = device->holes.erase(next);
  }
  if (next != device->holes.begin()) {
    auto previous = std::prev(next);
    if (previous->first + previous->second == offset) {
      previous->second += bytes;
      return BRINGUP_OK;
    }
  }
  device->holes[offset] = bytes;
  return BRINGUP_OK;
}

int range_reserve(bringup_device* device, size_t bytes, void** address) {
  std::lock_guard<std::mutex> lock(device->mutex);
  for (auto area = device->spare.begin(); area != device->spare.end(); ++area) {
    if (area->bytes != bytes) continue;
    *address = area->base;
    device->spare.erase(area);
    return BRINGUP_OK;
  }
  if (device->area_count == kMostAreas) return BRINGUP_OUT_OF_MEMORY;
  Area area;
  if (new_area(*device, bytes, area) != BRINGUP_OK) return BRINGUP_OUT_OF_MEMORY;
  add_area(*device, area);
  *address = area.base;
  return BRINGUP_OK;
}

// The addresses stay the device's, because the fault handler reads its areas without a lock.
int range_release(bringup_device* device, void* address, size_t) {
  std::lock_guard<std::mutex> lock(device->mutex);
  device->spare.push_back(*device->area_of(address));
  return BRINGUP_OK;
}

int range_map(bringup_device* device, void* address, size_t bytes) {
  std::lock_guard<std::mutex> lock(device->mutex);
  if (device->used + bytes > device->capacity) return BRINGUP_OUT_OF_MEMORY;
  if (!open_pages(*device->area_of(address), static_cast<char*>(address), bytes)) return BRINGUP_OUT_OF_MEMORY;
  device->used += bytes;
  return BRINGUP_OK;
}

int range_unmap(bringup_device* device, void* address, size_t bytes) {
  std::lock_guard<std::mutex> lock(device->mutex);
  close_pages(*device->area_of(address), static_cast<char*>(address), bytes);
  device->used -= bytes;
  return BRINGUP_OK;
}

char* mapped(bringup_device* device, const void* address) {
  auto* at = static_cast<char*>(const_cast<void*>(address));
  if (!device->check) return at;
  const Area* area = device->area_of(address);
  return area ? area->shadow + (at - area->base) : at;
}

void* map(bringup_device* device, void* address) { return mapped(device, address); }

int stream_create(bringup_device* device, int priority, bringup_stream** stream) {
  try {
    *stream = new bringup_stream(device, priority);
    return BRINGUP_OK;
  } catch (const std::exception& e) {
    return device->fail(std::string("a stream needs a thread: ") + e.what());
  }
}

void stream_destroy(bringup_stream* stream) {
  {
    std::lock_guard<std::mutex> lock(stream->mutex);
    stream->stop.store(true);
    stream->work_ready.notify_one();
  }
  stream->thread.join();
  delete stream;
}

int stream_synchronize(bringup_stream* stream) {
  stream->wait_for(stream->enqueued.load());
  return stream->device->checked();
}

int stream_query(bringup_stream* stream) { return stream->finished.load() >= stream->enqueued.load(); }

void run_copy(void* arg, int) {
  std::unique_ptr<CopyWork> copy(static_cast<CopyWork*>(arg));
  memcpy(copy->to, copy->from, copy->bytes);
}

int copy_h2d(bringup_stream* stream, void* to, const void* host, size_t bytes) {
  stream->push(run_copy, new CopyWork{mapped(stream->device, to), host, bytes});
  return BRINGUP_OK;
}

int copy_d2h(bringup_stream* stream, void* host, const void* from, size_t bytes) {
  stream->push(run_copy, new CopyWork{host, mapped(stream->device, from), bytes});
  return BRINGUP_OK;
}

char* mapped_anywhere(const void* address) {
  std::lock_guard<std::mutex> lock(devices_mutex);
  for (bringup_device* device : devices)
    if (device->area_of(address)) return mapped(device, address);
  return nullptr;
}

int copy_d2d(bringup_stream* stream, void* to, const void* from, size_t bytes) {
  stream->push(run_copy, new CopyWork{mapped_anywhere(to), mapped_anywhere(from), bytes});
  return BRINGUP_OK;
}

int launch_host(bringup_stream* stream, bringup_host_fn fn, void* arg) {
  stream->push(fn, arg, true);
  return BRINGUP_OK;
}

int event_create(bringup_device*, bringup_event** event) {
  *event = new bringup_event();
  return BRINGUP_OK;
}

void event_destroy(bringup_event* event) { delete event; }

void run_record(void* arg, int) {
  std::unique_ptr<EventWork> work(static_cast<EventWork*>(arg));
  std::lock_guard<std::mutex> lock(work->state->mutex);
  if (work->version > work->state->done) {
    work->state->done = work->version;
    work->state->seconds = now();
  }
  work->state->changed.notify_all();
}

void run_wait(void* arg, int) {
  std::unique_ptr<EventWork> work(static_cast<EventWork*>(arg));
  work->state->wait_for(work->version);
}

int event_record(bringup_event* event, bringup_stream* stream) {
  uint64_t version;
  {
    std::lock_guard<std::mutex> lock(event->state->mutex);
    version = ++event->state->recorded;
  }
  stream->push(run_record, new EventWork{event->state, version});
  return BRINGUP_OK;
}

uint64_t latest(bringup_event* event) {
  std::lock_guard<std::mutex> lock(event->state->mutex);
  return event->state->recorded;
}

int event_wait(bringup_event* event, bringup_stream* stream) {
  uint64_t version = latest(event);
  if (version > 0) stream->push(run_wait, new EventWork{event->state, version});
  return BRINGUP_OK;
}

int event_query(bringup_event* event) {
  std::lock_guard<std::mutex> lock(event->state->mutex);
  return event->state->done >= event->state->recorded;
}

int event_synchronize(bringup_event* event) {
  event->state->wait_for(latest(event));
  return BRINGUP_OK;
}

int event_elapsed(bringup_event* start, bringup_event* end, double* seconds) {
  *seconds = 0;
  if (start->state == end->state) return BRINGUP_OK;
  std::scoped_lock lock(start->state->mutex, end->state->mutex);
  *seconds = end->state->seconds - start->state->seconds;
  return BRINGUP_OK;
}

}  // namespace bringup_virtual

extern "C" const bringup_driver* bringup_virtual_driver() {
  static const bringup_driver driver = {
      .abi = BRINGUP_DRIVER_ABI,
      .size = sizeof(bringup_driver),
      .name = "virtual",
      .open = open_device,
      .close = close_device,
      .last_error = last_error,
      .alloc = alloc,
      .free = release,
      .range_reserve = range_reserve,
      .range_release = range_release,
      .range_map = range_map,
      .range_unmap = range_unmap,
      .map = map,
      .unmap = nullptr,
      .host_alloc = nullptr,
      .host_free = nullptr,
      .stream_create = stream_create,
      .stream_destroy = stream_destroy,
      .stream_synchronize = stream_synchronize,
      .stream_query = stream_query,
      .copy_h2d = copy_h2d,
      .copy_d2h = copy_d2h,
      .copy_d2d = copy_d2d,
      .launch_host = launch_host,
      .event_create = event_create,
      .event_destroy = event_destroy,
      .event_record = event_record,
      .event_wait = event_wait,
      .event_query = event_query,
      .event_synchronize = event_synchronize,
      .event_elapsed = event_elapsed,
      .prepare = nullptr,
      .launch = nullptr,
      .release = nullptr,
      .failed_launch = nullptr,
  };
  return &driver;
}
