// What the program launches, one row each: the trace that is priced later. See docs/design.md, "The prediction".
#pragma once
#include <atomic>

#include "launch/worker.h"
#include "python/lines.h"
#include "launch/signature.h"
#include "record/rows.h"

namespace bringup {

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
