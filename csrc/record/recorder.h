// What the program launches, one row each: the trace that is priced later. See docs/design.md, "The prediction".
#pragma once
#include <atomic>

#include "launch/worker.h"
#include "python/lines.h"
#include "launch/signature.h"

namespace bringup {

// The numbers are written to trace files: append only.
enum class RowKind : uint8_t {
  Launch,
  H2D,
  D2H,
  D2D,
  EventRecord,
  EventWait,
  StreamSync,
  DeviceSync,
  EventSync,
  Alloc,
  Free,
  Forward,  // an outermost module call begins
  Step,     // the program, or an optimizer, ended a step
  Reserve,  // the allocator took a segment from the device
  Release,  // and gave one back
  Owner,    // what a storage is for: bytes is bringup.recording.trace's kind, flags the bytes of an element
  Host,     // the host slept, or waited for something that is not the chip: object is nanoseconds, flags a WaitFor
  Signal,   // a thread lets another one go on
  Resume,   // which waited for the signal of the same object
};
const std::vector<std::string>& row_kinds();  // their names, in this order

// Flags of a row. The numbers are written to trace files, too.
enum : uint8_t {
  kPinned = 1,        // the host side of the copy is page-locked
  kWaits = 2,         // the host needs a value from the device to go on
  kFallback = 4,      // ran on the host when it was recorded
  kHostIndex = 8,     // a tensor on the host is among its arguments
  kInitialised = 16,  // of an allocation: it grew from another, whose content is copied
  kOfAllocator = 32,  // of an event: the allocator keeps memory that a stream uses, the storage of this row, from others
  kOfUpload = 64,     // of a wait: it is the end of a blocking copy to the chip
  kOfDownload = 128,  // or from it
};
const std::vector<std::string>& row_flags();  // their names, in this order

extern std::atomic<bool> recording_now;
inline bool recording() { return recording_now.load(std::memory_order_relaxed); }

// `results`: what the launch returned, where the signature does not say. `launch` may already be running.
struct LaunchRow {
  const Signature& signature;
  const c10::IValue* arguments;
  const Stream& stream;
  Line line;
  c10::SmallVector<StorageRef, 6> storages;
  c10::SmallVector<void*, 2> outputs;
};
void record_launch(const LaunchRow& row, uint8_t flags, const Stack* results = nullptr);
void record_row(RowKind kind, const Stream* stream, const Line& line, int64_t bytes, int64_t object, uint8_t flags = 0);
void record_event(const Stream& stream, int64_t event, const void* keeps);  // memory that the allocator keeps until then
// Of a copy that reads and writes these storages, where they are the device's. `other`: the device that it comes from.
void record_copy(RowKind kind, const Stream& stream, int64_t bytes, uint8_t flags, const void* from, const void* to,
                 int64_t other = 0);
void record_memory(RowKind kind, const Stream& stream, const Line& line, int64_t bytes, const void* address, uint8_t flags = 0);
// A kernel of the program's own. What it did is known when it has run: then its signature is amended.
struct RecordedRow {
  int64_t recording = -1;
  size_t row = 0;
};
RecordedRow record_kernel(const Line& line, const Stream& stream, const c10::SmallVector<StorageRef, 6>& storages,
                          const std::vector<int64_t>& written);
void amend_recorded(const RecordedRow& row, std::string signature);
void wait_for_kernels();

void count_view();       // host time without a row: the thread's next launch, copy or wait carries it
int recording_thread();  // this thread's number in the recording's rows

}  // namespace bringup
