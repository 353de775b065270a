#include "runtime/pinned_watch.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <mutex>
#include <set>
#include <torch/library.h>
#include <vector>

#include "python/handlers.h"
#include "json.h"
#include "python/lines.h"

namespace bringup {
namespace {

std::atomic<bool> is_pinned_watched{false};

// Note [The fault handler]
// The handler may interrupt any code, so it does not allocate, lock or call Python. It only accesses tables at fixed addresses.
// Watched blocks lie in one range of addresses, and a table maps each page to its block. The handler notes the running frames,
// marks the block as touched, and unprotects it. The next thread that processes the block under the mutex reads the note.
// A thread without Python frames, such as one of OpenMP, unprotects only what follows its access. So the thread that runs the
// Python line, whose part comes first, still faults and leaves the note.
constexpr size_t kPageBytes = 4096;
constexpr size_t kRange = size_t(256) << 30;  // addresses, not memory; an address is used once
constexpr size_t kBlocks = size_t(1) << 22;
constexpr size_t kNotes = size_t(1) << 16;  // further accesses are reported without a line

struct Watched {
  char *first, *second;  // the two mappings
  size_t bytes;
  std::atomic<bool> touched;
  std::atomic<int64_t> note;  // -1: none
};

struct Note {
  RawFrames frames;
  std::atomic<bool> written;
};

template <class T>
T* reserve(size_t count, int access) {
  void* memory = mmap(nullptr, count * sizeof(T), access, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  TORCH_CHECK(memory != MAP_FAILED, "no address range is left for watching page-locked memory");
  return static_cast<T*>(memory);
}

struct Tables {
  char* range = reserve<char>(kRange, PROT_NONE);
  std::atomic<uint32_t>* owner = reserve<std::atomic<uint32_t>>(kRange / kPageBytes, PROT_READ | PROT_WRITE);  // 0: none
  Watched* blocks = reserve<Watched>(kBlocks, PROT_READ | PROT_WRITE);                                         // from 1
  Note* notes = reserve<Note>(kNotes, PROT_READ | PROT_WRITE);
  std::atomic<int64_t> notes_taken{0};
  struct sigaction previous = {};
};

std::atomic<Tables*> tables{nullptr};

uint32_t block_of(const Tables& in, const void* address) {
  auto* at = static_cast<const char*>(address);
  return at >= in.range && at < in.range + kRange ? in.owner[size_t(at - in.range) / kPageBytes].load() : 0;
}

// The program has accessed a block before it waited for the pending copy. The faulting instruction runs again.
void on_touch(int signal, siginfo_t* info, void* context) {
  int error = errno;
  Tables& all = *tables.load();
  if (uint32_t number = block_of(all, info->si_addr)) {
    Watched& block = all.blocks[number];
    RawFrames frames = raw_frames();
    if (frames.count && block.note < 0) {
      int64_t place = all.notes_taken.fetch_add(1), none = -1;
      if (place < int64_t(kNotes)) {
        all.notes[place].frames = frames;
        all.notes[place].written = true;
        block.note.compare_exchange_strong(none, place);  // the first of several threads
      }
    }
    block.touched = true;  // after the note, so that a reader of the mark finds it
    size_t before = size_t(static_cast<char*>(info->si_addr) - block.first) / kPageBytes * kPageBytes;
    if (frames.count) before = 0;
    mprotect(block.first + before, block.bytes - before, PROT_READ | PROT_WRITE);
    errno = error;
    return;
  }
  if (all.previous.sa_flags & SA_SIGINFO) return all.previous.sa_sigaction(signal, info, context);
  if (all.previous.sa_handler != SIG_DFL && all.previous.sa_handler != SIG_IGN) return all.previous.sa_handler(signal);
  sigaction(signal, &all.previous, nullptr);  // restores the default; the faulting instruction runs again
}

struct PendingCopy {
  int64_t number;
  bool to_host;
  Line line;
  std::set<const Stream*> streams;  // a wait for one of these includes the copy
  std::set<int64_t> events;
};

struct Touch {
  bool to_host;
  Line copy;
  int64_t note;
};

struct PinnedWatch {
  std::mutex mutex;
  std::map<uint32_t, std::vector<PendingCopy>> pending;  // by block
  std::vector<Touch> touches;
  int64_t copies = 0;
  size_t used = 0;  // bytes of the address range
  uint32_t blocks = 0;

  void protect(uint32_t number) {
    Watched& block = tables.load()->blocks[number];
    int allowed = PROT_READ | PROT_WRITE;
    if (auto entry = pending.find(number); entry != pending.end())
      for (const PendingCopy& copy : entry->second) allowed &= copy.to_host ? PROT_NONE : PROT_READ;
    mprotect(block.first, block.bytes, allowed);
  }

  // Reports the pending copies of a block that was touched. The handler has unprotected it.
  void settle(uint32_t number) {
    Watched& block = tables.load()->blocks[number];
    if (!block.touched) return;
    if (auto entry = pending.find(number); entry != pending.end()) {
      for (const PendingCopy& copy : entry->second) touches.push_back({copy.to_host, copy.line, block.note});
      pending.erase(entry);
    }
    block.note = -1;
    block.touched = false;
    protect(number);  // a part of it may still be protected
  }

  template <class Over>
  void end(Over over) {
    std::lock_guard<std::mutex> lock(mutex);
    std::vector<uint32_t> busy;
    for (auto& [number, copies] : pending) busy.push_back(number);
    for (uint32_t number : busy) {
      settle(number);
      auto entry = pending.find(number);
      if (entry == pending.end() || std::erase_if(entry->second, over) == 0) continue;
      if (entry->second.empty()) pending.erase(entry);
      protect(number);
    }
  }
};

PinnedWatch& pinned_watch() {
  static auto* one = new PinnedWatch();
  return *one;
}

Tables& open_tables() {
  prepare_raw_frames();  // acquires the GIL, so it is called before the static initialisation that other threads wait for
  static Tables* all = [] {
    auto* fresh = new Tables();
    tables = fresh;
    struct sigaction action = {};
    action.sa_sigaction = on_touch;
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    sigaction_(SIGSEGV, &action, &fresh->previous);  // returns the program's own handler
    return fresh;
  }();
  return *all;
}

}  // namespace

bool pinned_is_watched() { return is_pinned_watched.load(std::memory_order_relaxed); }

void* watched_allocate(size_t bytes) {
  Tables& all = open_tables();
  PinnedWatch& watch = pinned_watch();
  bytes = (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
  std::lock_guard<std::mutex> lock(watch.mutex);
  TORCH_CHECK_WITH(OutOfMemoryError, watch.used + bytes <= kRange && watch.blocks + 1 < kBlocks, "--sanitize=race watches up to ",
                   kRange >> 30, " GiB of page-locked memory in ", kBlocks, " blocks: leave it out");
  int file = memfd_create("bringup-pinned", MFD_CLOEXEC);
  TORCH_CHECK(file >= 0 && ftruncate(file, off_t(bytes)) == 0, "no memory is left for a pinned block of ", bytes, " bytes");
  char* at = all.range + watch.used;
  void* first = mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0);
  void* second = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  TORCH_CHECK(first != MAP_FAILED && second != MAP_FAILED, "no address range is left for a pinned block of ", bytes, " bytes");
  uint32_t number = ++watch.blocks;
  Watched& block = all.blocks[number];
  block.first = at;
  block.second = static_cast<char*>(second);
  block.bytes = bytes;
  block.note = -1;
  for (size_t page = 0; page < bytes / kPageBytes; ++page) all.owner[watch.used / kPageBytes + page] = number;
  watch.used += bytes;
  return first;
}

void watched_freed(void* address) {
  PinnedWatch& watch = pinned_watch();
  std::lock_guard<std::mutex> lock(watch.mutex);
  uint32_t number = block_of(*tables.load(), address);
  watch.settle(number);
  watch.pending.erase(number);
  watch.protect(number);
}

void* copy_address(const void* address) {
  const Tables* all = tables.load();
  uint32_t number = all ? block_of(*all, address) : 0;
  if (!number) return const_cast<void*>(address);
  const Watched& block = all->blocks[number];
  return block.second + (static_cast<const char*>(address) - block.first);
}

void copy_pending(const void* address, bool to_host, Stream& stream) {
  if (!pinned_is_watched() || copy_address(address) == address) return;
  Line line = current_line();
  PinnedWatch& watch = pinned_watch();
  std::lock_guard<std::mutex> lock(watch.mutex);
  uint32_t number = block_of(*tables.load(), address);
  watch.settle(number);
  watch.pending[number].push_back({watch.copies++, to_host, line, {&stream}, {}});
  watch.protect(number);
}

void stream_reached(const Stream& stream) {
  if (pinned_is_watched()) pinned_watch().end([&](const PendingCopy& copy) { return copy.streams.count(&stream) != 0; });
}

void device_reached(int device) {
  if (!pinned_is_watched()) return;
  pinned_watch().end([&](const PendingCopy& copy) {
    for (const Stream* stream : copy.streams)
      if (stream->id.device_index() == device) return true;
    return false;
  });
}

void event_reached(int64_t event) {
  if (pinned_is_watched()) pinned_watch().end([&](const PendingCopy& copy) { return copy.events.count(event) != 0; });
}

void event_noted(int64_t event, const Stream& stream) {
  if (!pinned_is_watched()) return;
  PinnedWatch& watch = pinned_watch();
  std::lock_guard<std::mutex> lock(watch.mutex);
  for (auto& [number, copies] : watch.pending)
    for (PendingCopy& copy : copies) {
      copy.events.erase(event);
      if (copy.streams.count(&stream)) copy.events.insert(event);
    }
}

void event_followed(int64_t event, const Stream& stream) {
  if (!pinned_is_watched()) return;
  PinnedWatch& watch = pinned_watch();
  std::lock_guard<std::mutex> lock(watch.mutex);
  for (auto& [number, copies] : watch.pending)
    for (PendingCopy& copy : copies)
      if (copy.events.count(event)) copy.streams.insert(&stream);
}

namespace {

Line line_of(int64_t note) {
  if (note < 0) return {};
  const Note& entry = tables.load()->notes[note];
  return entry.written ? user_line(entry.frames) : Line();
}

// The accesses noted since the last call, as JSON: [{"to_host", "copy", "line"}].
std::string touches_json() {
  std::vector<Touch> touches;
  {
    PinnedWatch& watch = pinned_watch();
    std::lock_guard<std::mutex> lock(watch.mutex);
    std::vector<uint32_t> busy;
    for (auto& [number, copies] : watch.pending) busy.push_back(number);
    for (uint32_t number : busy) watch.settle(number);
    touches.swap(watch.touches);
  }
  Text text;
  text << "[";
  for (size_t i = 0; i < touches.size(); ++i)
    text << (i ? ", " : "") << "{\"to_host\": " << (touches[i].to_host ? "true" : "false")
         << ", \"copy\": " << json_text(describe(touches[i].copy))
         << ", \"line\": " << json_text(describe(line_of(touches[i].note))) << "}";
  text << "]";
  return text.str();
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bringup, m) {
  m.def("watch_pinned(bool on) -> ()", [](bool on) { is_pinned_watched = on; });
  m.def("pinned_touches() -> str", &touches_json);
}

}  // namespace bringup
