// The history of the caching allocator: what torch.cuda.memory._record_memory_history records and _snapshot returns.
#pragma once
#include <torch/csrc/profiler/combined_traceback.h>

#include <atomic>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "text.h"

namespace bringup {

// In the order of `kActions`, their names in a snapshot.
enum class MemoryAction : uint8_t {
  Alloc,
  FreeRequested,
  FreeCompleted,
  SegmentAlloc,
  SegmentFree,
  SegmentMap,
  SegmentUnmap,
  OutOfMemory,
  Snapshot
};

using Traceback = std::shared_ptr<torch::CapturedTraceback>;  // null if none was asked for

struct MemoryEvent {
  MemoryAction action;
  uint64_t address;  // the free bytes of the device, for OutOfMemory
  size_t bytes;
  int64_t stream;
  Traceback traceback;
  int64_t time_us = 0;  // since 1970
  std::string metadata = {};
};

extern std::atomic<bool> history_now;
inline bool recording_history() { return history_now.load(std::memory_order_relaxed); }

// `enabled` is "state", "all" or "" (off), `context` is "state", "alloc", "all" or "" (no stacks), `stacks` is "python" or "all"
// (C++ frames, too). At most `most` events are kept per device; `skipped` are names of actions.
void record_memory_history(const std::string& enabled, const std::string& context, const std::string& stacks, int64_t most,
                           const std::vector<std::string>& skipped);
void set_memory_metadata(const std::string& text);  // of the events and blocks of this thread from now on
std::string memory_metadata();

// The stack of the calling thread, if the history asks for one. It acquires the GIL, so no mutex may be held.
Traceback traceback_for(MemoryAction action);

// The events of one device. The owner's mutex is held.
class MemoryHistory {
 public:
  void add(MemoryEvent event);
  void clear() { events_.clear(); }
  const std::deque<MemoryEvent>& events() const { return events_; }

 private:
  std::deque<MemoryEvent> events_;
};

// Writes a snapshot as JSON. Stacks are numbered, and become lists of frames at the end.
class SnapshotText {
 public:
  Text text;
  void events(const std::deque<MemoryEvent>& events);
  std::string number_of(const Traceback& traceback);  // its number in "stacks", or "null"
  void stacks();                                      // writes "frames" and "stacks"; acquires the GIL

 private:
  std::vector<Traceback> tracebacks_;
};

}  // namespace bringup
