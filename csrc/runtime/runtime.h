// Devices, streams, events and the way of an error from a stream to the user's thread.
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
constexpr int kStreamsPerPriority = 32;  // as CUDA: a new Stream beyond that shares a queue with an older one

struct Config {
  std::string chip;         // name of the chip file
  std::string description;  // one line for get_device_name
  int devices = 1;
  uint64_t device_bytes = 0;
  bool check = false;
  std::string driver;          // empty: the virtual chip; else the path of a driver library
  bool past_capacity = false;  // go on beyond device_bytes; the virtual chip only
};

struct Stream {
  c10::Stream id;
  int priority;
  bringup_stream* handle;
  std::mutex mutex;
  FailurePtr failure;  // the first that was not raised yet

  Stream(c10::Stream id, int priority, bringup_stream* handle) : id(id), priority(priority), handle(handle) {}

  FailurePtr fail(std::exception_ptr error, int64_t launch);  // the failure that it counts with
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
  std::shared_ptr<FailurePtr> failure;  // filled in stream order
};

struct Device {
  Device(int index, bringup_device* handle) : index(index), handle(handle) {}
  int index;
  bringup_device* handle;
  std::mutex mutex;                                                       // of opening a stream
  std::array<std::atomic<Stream*>, 1 + 2 * kStreamsPerPriority> streams;  // by stream id; null until used, then for ever
};

// Configuration. `configure` is refused once a device is open.
void configure(Config config);
const Config& config();
bool configured();
bool opened();
int device_count() noexcept;
void set_device_count(int count);  // until configured: what the environment asks for

const bringup_driver& driver();
Device& device(int index);  // opens it on first use
void check_index(c10::DeviceIndex index);
// Raises the driver's sentence, with what it was about ("a launch of aten::add") and the Python line. Takes the GIL.
[[noreturn]] void throw_driver_error(Device& device, const std::string& about);
inline void check_driver(int status, Device& device, const char* about) {
  if (C10_UNLIKELY(status != BRINGUP_OK)) throw_driver_error(device, about);
}

// Streams. The current device and the current stream of a device belong to the thread.
c10::DeviceIndex current_device();
void set_current_device(c10::DeviceIndex index);
Stream& current_stream(c10::DeviceIndex index);
Stream& stream(const c10::Stream& id);
c10::Stream exchange_stream(const c10::Stream& id);
c10::Stream stream_from_pool(c10::DeviceIndex index, int priority);
void launch(Stream& stream, bringup_host_fn fn, void* arg, const char* about);

// Waiting. These raise what failed; `drain` and `shutdown` do not.
void synchronize(Stream& stream, uint8_t flags = 0);  // of the wait's row
void synchronize_device(int index);
bool query(Stream& stream);
int drain(int index);  // the driver's status
void shutdown();       // waits for every stream, reports failures that nobody saw on stderr, ends the workers
bool launch_blocking();

Event* event_create(int index, bool timed);
void event_destroy(Event* event) noexcept;
// `keeps`: the allocator keeps this memory until the event is reached. `of_allocator`: the stream gets such memory.
void event_record(Event* event, Stream& stream, const void* keeps = nullptr);
void event_wait(Event* event, Stream& stream, bool of_allocator = false);
void follow(Stream& follower, Stream& leader);  // one stream waits for all that the other has enqueued so far
bool event_query(Event* event);
bool poll(Event* event);  // the program asks
void event_synchronize(Event* event);
double event_elapsed_ms(Event* start, Event* end);

// Counters for `bringup.launch_stats()`.
struct Counters {
  std::atomic<int64_t> launches{0}, synchronous{0}, learned_by_meta{0}, learned_by_running{0}, synchronizations{0};
  std::atomic<int64_t> promises_copied{0};  // outputs that the kernel placed elsewhere and that were copied
};
Counters& counters();

// True in a process forked from one that had the device open: nothing may be launched there.
bool forked();

// Device memory as a host function sees it, for as long as this lives.
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
