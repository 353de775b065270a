// Devices, streams and events, and how an error travels from a stream to the user's thread.
#pragma once
#include <c10/core/Device.h>
#include <c10/core/Stream.h>
#include <c10/util/Exception.h>

#include <array>
#include <atomic>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "driver.h"
#include "runtime/failures.h"

namespace bringup {

constexpr c10::DeviceType kChip = c10::DeviceType::PrivateUse1;
constexpr int kMaxDevices = BRINGUP_MAX_DEVICES;
constexpr int kStreamsPerPriority = 32;  // as in torch.cuda: further Stream objects share the queues of older ones

struct Config {
  std::string chip;         // name of the chip file
  std::string description;  // one line for get_device_name
  int devices = 1;
  uint64_t device_bytes = 0;
  uint64_t context_bytes = 0;  // of them, what the driver's context and the libraries take
  uint64_t blas_bytes = 0;     // workspace of a handle and stream for products; see launch/workspace.cpp
  uint64_t blas_lt_bytes = 0;  // its second workspace, for products with a bias
  bool check = false;
  std::string driver;          // path of a driver library; empty for the virtual chip
  bool past_capacity = false;  // allocations may exceed room(); only for the virtual chip

  uint64_t room() const { return device_bytes - context_bytes; }  // what allocations can take
};

struct Capture;  // see capture.h

struct Stream {
  std::atomic<Capture*> capture{nullptr};  // null unless it captures
  c10::Stream id;
  int priority;
  bringup_stream* handle;
  std::mutex mutex;
  FailurePtr failure;  // the first one that has not been raised

  Stream(c10::Stream id, int priority, bringup_stream* handle) : id(id), priority(priority), handle(handle) {}

  FailurePtr fail(std::exception_ptr error, int64_t launch);  // Returns the stream's pending failure, old or new.
  void adopt(const FailurePtr& other);
  FailurePtr pending();
  FailurePtr take();
  void raise() { raise_first({take()}); }
};

struct Event {
  bringup_event* handle;
  int64_t id;
  bool timed;
  std::mutex mutex;
  Stream* stream = nullptr;             // of the latest record
  std::shared_ptr<Capture> capture;     // that the latest record belongs to
  std::shared_ptr<FailurePtr> failure;  // filled in stream order
};

struct Device {
  Device(int index, bringup_device* handle) : index(index), handle(handle) {}
  int index;
  bringup_device* handle;
  std::mutex mutex;                                                       // held to open a stream
  std::array<std::atomic<Stream*>, 1 + 2 * kStreamsPerPriority> streams;  // by stream id; null until first used, then permanent
};

// Configuration. Once a device is open, `configure` may only change to another virtual chip, while no memory is held.
void configure(Config config);
const Config& config();
bool configured();
bool opened();
bool opened(int index);
int device_count() noexcept;
void set_device_count(int count);  // The count that the environment requests; `configure` replaces it.

const bringup_driver& driver();
// Set when the driver is loaded.
extern std::atomic<bool> driver_prepares, memory_is_separate;
inline bool native_driver() { return driver_prepares.load(std::memory_order_relaxed); }  // It has kernels of its own.
// Host functions cannot address the device's memory: what they read and write is copied.
inline bool separate_memory() { return memory_is_separate.load(std::memory_order_relaxed); }
// `describe` says in words what a driver's kernel with this launch number was.
void describe_launches_with(std::string (*describe)(int64_t));
Device& device(int index);  // Opens the device at its first use.
void check_index(c10::DeviceIndex index);
// Throws the driver's sentence with the failed action ("a launch of aten::add") and the Python line. Acquires the GIL.
[[noreturn]] void throw_driver_error(Device& device, const std::string& about);
inline void check_driver(int status, Device& device, const char* about) {
  if (C10_UNLIKELY(status != BRINGUP_OK)) throw_driver_error(device, about);
}

// Streams. Each thread has its own current device, and its own current stream on each device.
c10::DeviceIndex current_device();
void set_current_device(c10::DeviceIndex index);
Stream& current_stream(c10::DeviceIndex index);
Stream& stream(const c10::Stream& id);
c10::Stream exchange_stream(const c10::Stream& id);
c10::Stream stream_from_pool(c10::DeviceIndex index, int priority);
void launch(Stream& stream, bringup_host_fn fn, void* arg, const char* about);

// Waiting. These throw the pending failures; `drain` and `shutdown` do not.
void synchronize(Stream& stream, uint8_t flags = 0);  // `flags`: of the recorded row
void synchronize_device(int index);
bool query(Stream& stream);
int drain(int index);  // Returns the driver's status.
void shutdown();       // Waits for all streams, and reports failures that were never raised on stderr.
bool launch_blocking();

Event* event_create(int index, bool timed);
void event_destroy(Event* event) noexcept;
// `keeps`: memory that the allocator does not reuse before the event. `of_allocator`: the wait is for such memory.
void event_record(Event* event, Stream& stream, const void* keeps = nullptr);
void event_wait(Event* event, Stream& stream, bool of_allocator = false);
void follow(Stream& follower, Stream& leader);  // Later work of `follower` waits for all work that `leader` has now.
bool event_query(Event* event);
bool poll(Event* event);  // A query by the program: recorded as a wait if the event is reached.
void event_synchronize(Event* event);
double event_elapsed_ms(Event* start, Event* end);

// The counters of `bringup.launch_stats()`.
struct Counters {
  std::atomic<int64_t> launches{0}, synchronous{0}, learned_by_meta{0}, learned_by_running{0}, synchronizations{0};
  std::atomic<int64_t> promises_copied{0};  // outputs that a kernel placed elsewhere, so that they had to be copied
};
Counters& counters();

// True in a process forked from one that had opened a device. Such a process must not launch.
bool forked();

// Maps device memory for a host function during this object's life.
class Mapped {
 public:
  Mapped(int device, void* address);
  Mapped(Mapped&& other) noexcept
      : device_(other.device_), address_(std::exchange(other.address_, nullptr)), host_(other.host_) {}
  Mapped(const Mapped&) = delete;
  ~Mapped();
  void* host() const { return host_; }

 private:
  int device_;
  void *address_, *host_;
};

}  // namespace bringup
