#include "runtime/memory_history.h"

#include <c10/util/ApproximateClock.h>
#include <c10/util/flat_hash_map.h>

#include <algorithm>
#include <mutex>

#include "json.h"
#include "python/python.h"

namespace bringup {

std::atomic<bool> history_now{false};

namespace {

constexpr const char* kActions[] = {"alloc",        "free_requested", "free_completed", "segment_alloc",
                                    "segment_free", "segment_map",    "segment_unmap",  "oom",
                                    "snapshot"};

// What is recorded. Written under the mutex, and read without: a change beside allocations of other threads may reach them late.
struct Settings {
  std::mutex mutex;
  std::atomic<int> context{0};  // 0 none, 1 state, 2 alloc, 3 all
  std::atomic<bool> cpp{false};
  std::atomic<size_t> most{0};
  std::atomic<uint32_t> skipped{0};  // a bit per action
};

Settings& settings() {
  static auto* all = new Settings();
  return *all;
}

thread_local std::string metadata;

}  // namespace

void record_memory_history(const std::string& enabled, const std::string& context, const std::string& stacks, int64_t most,
                           const std::vector<std::string>& skipped) {
  static const std::vector<std::string> contexts{"", "state", "alloc", "all"};
  auto depth = std::find(contexts.begin(), contexts.end(), context);
  TORCH_CHECK(enabled.empty() || enabled == "state" || enabled == "all", "expected enabled to be None, 'state' or 'all', got '",
              enabled, "'");
  TORCH_CHECK(depth != contexts.end(), "expected context to be None, 'state', 'alloc' or 'all', got '", context, "'");
  TORCH_CHECK(stacks == "python" || stacks == "all", "expected stacks to be 'python' or 'all', got '", stacks, "'");
  TORCH_CHECK(most > 0, "expected max_entries to be positive, got ", most);
  uint32_t bits = 0;
  for (const std::string& name : skipped) {
    auto action = std::find(std::begin(kActions), std::end(kActions), name);
    TORCH_CHECK(action != std::end(kActions), "unknown action '", name, "' in skip_actions");
    bits |= 1u << (action - std::begin(kActions));
  }
  Settings& all = settings();
  std::lock_guard<std::mutex> lock(all.mutex);
  all.context = enabled.empty() ? 0 : int(depth - contexts.begin());
  all.cpp = stacks == "all";
  all.most = enabled == "all" ? size_t(most) : 1;
  all.skipped = bits;
  history_now = !enabled.empty();
}

void set_memory_metadata(const std::string& text) { metadata = text; }
std::string memory_metadata() { return metadata; }

Traceback traceback_for(MemoryAction action) {
  if (C10_LIKELY(!recording_history()) || !is_python_thread()) return nullptr;
  int context = settings().context;
  bool frees = action == MemoryAction::FreeRequested || action == MemoryAction::SegmentFree;
  if (context < (frees ? 3 : 1)) return nullptr;
  return torch::CapturedTraceback::gather(true, true, settings().cpp);
}

void MemoryHistory::add(MemoryEvent event) {
  Settings& all = settings();
  if (all.skipped & (1u << int(event.action))) return;
  if (all.context < 2) event.traceback = nullptr;  // "state": stacks of live memory only
  event.time_us = c10::getTime() / 1000;
  event.metadata = metadata;
  events_.push_back(std::move(event));
  while (events_.size() > all.most) events_.pop_front();
}

std::string SnapshotText::number_of(const Traceback& traceback) {
  if (!traceback) return "null";
  tracebacks_.push_back(traceback);
  return std::to_string(tracebacks_.size() - 1);
}

void SnapshotText::events(const std::deque<MemoryEvent>& events) {
  text << "[";
  bool first = true;
  for (const MemoryEvent& event : events) {
    const char* place = event.action == MemoryAction::OutOfMemory ? "device_free" : "addr";
    text << (first ? "" : ", ") << "{\"action\": \"" << kActions[int(event.action)] << "\", \"" << place
         << "\": " << event.address << ", \"size\": " << event.bytes << ", \"stream\": " << event.stream
         << ", \"time_us\": " << event.time_us << ", \"user_metadata\": " << json_text(event.metadata)
         << ", \"stack\": " << number_of(event.traceback) << "}";
    first = false;
  }
  text << "]";
}

void SnapshotText::stacks() {
  std::vector<torch::CapturedTraceback*> distinct;
  ska::flat_hash_map<torch::CapturedTraceback*, size_t> number;
  for (const Traceback& traceback : tracebacks_)
    if (number.emplace(traceback.get(), distinct.size()).second) distinct.push_back(traceback.get());
  auto symbolized = torch::symbolize(distinct);
  text << "\"frames\": [";
  bool first = true;
  for (const auto& frame : symbolized.all_frames) {
    text << (first ? "" : ", ") << "{\"filename\": " << json_text(frame.filename) << ", \"line\": " << frame.lineno
         << ", \"name\": " << json_text(frame.funcname) << "}";
    first = false;
  }
  text << "], \"stacks\": [";
  first = true;
  for (const Traceback& traceback : tracebacks_) {
    text << (first ? "[" : ", [");
    const auto& frames = symbolized.tracebacks[number[traceback.get()]];
    for (size_t i = 0; i < frames.size(); ++i) text << (i ? ", " : "") << frames[i];
    text << "]";
    first = false;
  }
  text << "]";
}

}  // namespace bringup
