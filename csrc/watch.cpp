#include "watch.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <map>
#include <set>
#include <sstream>
#include <torch/library.h>

#include "json.h"
#include "lines.h"

namespace bringup {
namespace {

std::atomic<bool> is_watching{false};

struct PendingCopy {
  int64_t number;
  bool to_host;
  Line line;
  std::set<const Stream*> streams;  // whoever waits for one of these has waited for the copy
  std::set<int64_t> events;
};

struct PinnedBlock {
  char* second;
  size_t bytes;
  std::vector<PendingCopy> pending;
};

struct Touch {
  bool to_host;
  Line copy, line;
};

struct PinnedWatch {
  std::mutex mutex;
  std::map<const char*, PinnedBlock> blocks;
  std::vector<Touch> touches;
  int64_t copies = 0;
  struct sigaction previous = {};
  bool installed = false;

  std::map<const char*, PinnedBlock>::iterator find(const void* address) {
    auto* at = static_cast<const char*>(address);
    auto after = blocks.upper_bound(at);
    if (after == blocks.begin()) return blocks.end();
    --after;
    return at < after->first + after->second.bytes ? after : blocks.end();
  }

  static void protect(const char* start, const PinnedBlock& block) {
    int allowed = PROT_READ | PROT_WRITE;
    for (const PendingCopy& copy : block.pending) allowed &= copy.to_host ? PROT_NONE : PROT_READ;
    mprotect(const_cast<char*>(start), block.bytes, allowed);
  }

  template <class Over>
  void end(Over over) {
    std::lock_guard<std::mutex> lock(mutex);
    for (auto& [start, block] : blocks) {
      size_t before = block.pending.size();
      std::erase_if(block.pending, over);
      if (block.pending.size() != before) protect(start, block);
    }
  }
};

PinnedWatch& pinned_watch() {
  static auto* one = new PinnedWatch();
  return *one;
}

// The program touched a block whose copy it has not waited for. The faulting instruction runs again.
void on_touch(int signal, siginfo_t* info, void* context) {
  PinnedWatch& all = pinned_watch();
  if (all.mutex.try_lock()) {
    std::lock_guard<std::mutex> lock(all.mutex, std::adopt_lock);
    auto found = all.find(info->si_addr);
    if (found != all.blocks.end()) {
      Line line = current_line();
      for (const PendingCopy& copy : found->second.pending) all.touches.push_back({copy.to_host, copy.line, line});
      found->second.pending.clear();
      PinnedWatch::protect(found->first, found->second);
      return;
    }
  }
  if (all.previous.sa_flags & SA_SIGINFO) return all.previous.sa_sigaction(signal, info, context);
  sigaction(signal, &all.previous, nullptr);
}

}  // namespace

bool watching() { return is_watching.load(std::memory_order_relaxed); }

void* watched_allocate(size_t bytes) {
  int file = memfd_create("bringup-pinned", MFD_CLOEXEC);
  TORCH_CHECK(file >= 0 && ftruncate(file, off_t(bytes)) == 0, "no memory for a pinned block of ", bytes, " bytes");
  void* first = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  void* second = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  TORCH_CHECK(first != MAP_FAILED && second != MAP_FAILED, "no address range for a pinned block of ", bytes, " bytes");
  PinnedWatch& all = pinned_watch();
  std::lock_guard<std::mutex> lock(all.mutex);
  all.blocks[static_cast<char*>(first)] = {static_cast<char*>(second), bytes, {}};
  if (!std::exchange(all.installed, true)) {
    struct sigaction action = {};
    action.sa_sigaction = on_touch;
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &all.previous);
  }
  return first;
}

void watched_freed(void* block) {
  PinnedWatch& all = pinned_watch();
  std::lock_guard<std::mutex> lock(all.mutex);
  auto found = all.find(block);
  if (found == all.blocks.end()) return;
  found->second.pending.clear();
  PinnedWatch::protect(found->first, found->second);
}

void* copy_address(const void* address) {
  void* plain = const_cast<void*>(address);
  PinnedWatch& all = pinned_watch();
  if (!all.installed) return plain;
  std::lock_guard<std::mutex> lock(all.mutex);
  auto found = all.find(address);
  return found == all.blocks.end() ? plain : found->second.second + (static_cast<const char*>(address) - found->first);
}

void copy_pending(const void* address, bool to_host, Stream& stream) {
  if (!watching()) return;
  PinnedWatch& all = pinned_watch();
  Line line = current_line();
  std::lock_guard<std::mutex> lock(all.mutex);
  auto found = all.find(address);
  if (found == all.blocks.end()) return;
  found->second.pending.push_back({all.copies++, to_host, line, {&stream}, {}});
  PinnedWatch::protect(found->first, found->second);
}

void stream_reached(const Stream& stream) {
  if (watching()) pinned_watch().end([&](const PendingCopy& copy) { return copy.streams.count(&stream) != 0; });
}

void device_reached(int device) {
  if (!watching()) return;
  pinned_watch().end([&](const PendingCopy& copy) {
    for (const Stream* stream : copy.streams)
      if (stream->id.device_index() == device) return true;
    return false;
  });
}

void event_reached(int64_t event) {
  if (watching()) pinned_watch().end([&](const PendingCopy& copy) { return copy.events.count(event) != 0; });
}

void event_noted(int64_t event, const Stream& stream) {
  if (!watching()) return;
  PinnedWatch& all = pinned_watch();
  std::lock_guard<std::mutex> lock(all.mutex);
  for (auto& [start, block] : all.blocks)
    for (PendingCopy& copy : block.pending) {
      copy.events.erase(event);
      if (copy.streams.count(&stream)) copy.events.insert(event);
    }
}

void event_followed(int64_t event, const Stream& stream) {
  if (!watching()) return;
  PinnedWatch& all = pinned_watch();
  std::lock_guard<std::mutex> lock(all.mutex);
  for (auto& [start, block] : all.blocks)
    for (PendingCopy& copy : block.pending)
      if (copy.events.count(event)) copy.streams.insert(&stream);
}

namespace {

// What was touched since the last call, as JSON: [{"to_host", "copy", "line"}].
std::string touches_json() {
  std::vector<Touch> found;
  {
    PinnedWatch& all = pinned_watch();
    std::lock_guard<std::mutex> lock(all.mutex);
    found.swap(all.touches);
  }
  std::ostringstream text;
  text << "[";
  for (size_t i = 0; i < found.size(); ++i)
    text << (i ? ", " : "") << "{\"to_host\": " << (found[i].to_host ? "true" : "false")
         << ", \"copy\": " << json_text(describe(found[i].copy)) << ", \"line\": " << json_text(describe(found[i].line)) << "}";
  text << "]";
  return text.str();
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bringup, m) {
  m.def("watch_pinned(bool on) -> ()", [](bool on) { is_watching = on; });
  m.def("pinned_touches() -> str", &touches_json);
}

}  // namespace bringup
