#include "runtime/memory.h"

#include <c10/util/flat_hash_map.h>

#include <algorithm>
#include <limits>
#include <map>
#include <mutex>
#include <set>
#include <unordered_set>

#include "json.h"
#include "launch/dry.h"
#include "runtime/capture.h"
#include "python/python.h"
#include "launch/unwritten.h"
#include "record/recorder.h"
#include "runtime/memory_history.h"
#include "runtime/memory_report.h"

namespace bringup {

thread_local Purpose purpose;

void set_purpose(const char* op, c10::ScalarType dtype, c10::IntArrayRef sizes) {
  purpose.op = op;
  purpose.dtype = dtype;
  purpose.dims = uint8_t(std::min<size_t>(sizes.size(), 6));
  for (size_t i = 0; i < purpose.dims; ++i) purpose.sizes[i] = sizes[i];
}

namespace {

using c10::CachingAllocator::StatType;
using c10::CachingDeviceAllocator::DeviceStats;

// The size classes of torch's CUDA allocator, so that programs fragment memory as they do with CUDA.
constexpr size_t kRound = 512;              // block sizes are multiples of this
constexpr size_t kSmall = size_t(1) << 20;  // larger blocks are not in the small pool
constexpr size_t kSmallSegment = size_t(2) << 20;
constexpr size_t kLargeSegment = size_t(20) << 20;  // for blocks from kSmall to kMiddle
constexpr size_t kMiddle = size_t(10) << 20;
constexpr size_t kRoundLarge = size_t(2) << 20;  // segments for blocks of kMiddle and more are multiples of this

class Pool;

// Work that the stream of a block's next owner waits for. Both parts of a block that is split share it.
struct Use {
  Event* event;
  explicit Use(Event* event) : event(event) {}
  Use(const Use&) = delete;
  ~Use() { event_destroy(event); }
};
using Uses = std::vector<std::shared_ptr<Use>>;

struct Block : Held {
  Pool* pool = nullptr;
  int64_t number = 0;  // allocation number
  Stream* stream = nullptr;
  int64_t arena = 0;  // of the graphs that use it (see launch/graph.cpp); 0: of all
  bool small = false, allocated = false;
  Content content = Content::Unknown;
  Block *previous = nullptr, *next = nullptr;  // neighbours in the segment
  std::unordered_set<Stream*> users;           // other streams that use it, from record_stream
  Uses pending;                                // their work at the time when it was freed
  Traceback traceback;                         // of the allocation, if the history is recorded
  std::string metadata;
};

struct BySize {
  bool operator()(const Block* a, const Block* b) const {
    if (a->arena != b->arena) return a->arena < b->arena;
    if (a->stream != b->stream) return a->stream->id.id() < b->stream->id.id();
    if (a->bytes != b->bytes) return a->bytes < b->bytes;
    return a->address < b->address;
  }
};

// The segments of all devices, for `device_of`: address -> (bytes, device).
struct Segments {
  std::mutex mutex;
  std::map<const char*, std::pair<size_t, int>> ranges;
};

Segments& segments() {
  static auto* all = new Segments();
  return *all;
}

// Note [Reuse of memory is decided by the host's order, never by time]
// A block returns to its stream's pool as soon as the host frees it, although kernels on that stream may still use it: the work
// of its next owner is enqueued behind them. If other streams used the block (record_stream), freeing it records an event on each
// of them, and the next owner's stream waits for these events. torch's CUDA allocator polls the events instead, so its amount of
// reserved memory depends on timing. Here a program always reaches the same peaks.
//
// Note [No waiting under the allocator's mutex]
// Threads that hold the GIL free tensors, and kernels written in Python need the GIL. A thread that waited for a kernel or for
// the GIL while it held the mutex could cause a deadlock.
//
// Note [Giving memory back]
// Kernels that were launched before a segment was freed may still use it. So unused segments are first removed from the pool,
// where no thread can allocate them any more. Then the device is drained without the mutex; launches that other threads make
// meanwhile do not use these segments. Then the segments are returned to the driver. Only one thread does this at a time; others
// that find no memory wait for it and then try again.
class Pool {
 public:
  explicit Pool(int device) : device_(device) {}

  Block* allocate(size_t requested) {
    Stream& stream = current_stream(c10::DeviceIndex(device_));
    Line line = current_line();
    Traceback traceback = traceback_for(MemoryAction::Alloc);
    std::unique_lock<std::mutex> lock(mutex_);
    size_t bytes = std::max(kRound, (requested + kRound - 1) / kRound * kRound);
    Demand demand{stream, bytes, bytes <= kSmall, traceback};
    Block* block = take_or_grow(demand, lock);
    if (!block) {
      ++stats_.num_alloc_retries;
      lock.unlock();
      release_unused();
      lock.lock();
      block = take_or_grow(demand, lock);
      if (!block && config().past_capacity) {
        block = grow(demand, lock, true);
        if (block) warn_past_capacity(requested, line, lock);
      }
    }
    if (!block) {
      note(MemoryAction::OutOfMemory, limit() - std::min(limit(), size_t(stats_.reserved_bytes[0].current)), requested, stream,
           traceback);
      out_of_memory(requested, line, lock);
    }
    split(block, bytes);
    static std::atomic<int64_t> next_number{1};
    block->number = next_number++;
    block->allocated = true;
    block->requested = requested;
    block->line = line;
    block->purpose = purpose;
    block->content = Content::Unknown;
    block->traceback = std::move(traceback);
    block->metadata = recording_history() ? memory_metadata() : std::string();
    in_use_.emplace(block->address, block);
    count(block, true);
    note(MemoryAction::Alloc, block->address, requested, stream, block->traceback);
    Uses pending = block->pending;
    lock.unlock();
    if (C10_UNLIKELY(recording()))
      record_memory(RowKind::Alloc, stream, line, int64_t(block->bytes), block->address, purpose.grows ? kInitialised : 0);
    try {
      for (const auto& use : pending) event_wait(use->event, stream, true);
    } catch (...) {
      free(block);  // keeps its pending work
      throw;
    }
    if (!pending.empty()) {
      lock.lock();
      block->pending.clear();
    }
    return block;
  }

  // Called by destructors: never throws.
  void free(Block* block) noexcept {
    Traceback traceback = traceback_for(MemoryAction::FreeRequested), of_allocation;
    std::unique_lock<std::mutex> lock(mutex_);
    note(MemoryAction::FreeRequested, block->address, block->requested, *block->stream, traceback);
    std::unordered_set<Stream*> users;
    users.swap(block->users);
    if (!users.empty()) {
      lock.unlock();
      Uses pending;
      if (!note_uses(users, block->address, pending)) return;  // it stays allocated, since the end of its use is unknown
      lock.lock();
      block->pending.insert(block->pending.end(), pending.begin(), pending.end());
    }
    if (C10_UNLIKELY(recording())) record_memory(RowKind::Free, *block->stream, {}, int64_t(block->bytes), block->address);
    note(MemoryAction::FreeCompleted, block->address, block->requested, *block->stream, traceback);
    of_allocation.swap(block->traceback);  // destroyed after the mutex is released
    if (C10_UNLIKELY(watching_unwritten())) note_freed(block->number);
    in_use_.erase(block->address);
    count(block, false);
    block->allocated = false;
    merge(block, block->previous);
    merge(block, block->next);
    if (block->previous || block->next) inactive_split(block, 1);
    free_[block->small].insert(block);
  }

  void record_stream(void* address, Stream& stream) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto entry = in_use_.find(static_cast<char*>(address));
    if (entry != in_use_.end() && entry->second->stream != &stream) entry->second->users.insert(&stream);
  }

  // Returns unused segments to the driver.
  void release_unused() {
    Traceback traceback = traceback_for(MemoryAction::SegmentFree);
    ReleaseGil no_gil;
    std::lock_guard<std::mutex> one_at_a_time(release_mutex_);
    std::vector<Block*> unused;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      for (auto& pool : free_)
        std::erase_if(pool, [&](Block* block) {
          bool whole = !block->previous && !block->next && block->arena == 0;
          if (whole) unused.push_back(block);
          return whole;
        });
    }
    if (unused.empty()) return;
    int status = drain(device_);
    for (Block* block : unused)
      for (const auto& use : block->pending) status = std::max(status, driver().event_synchronize(use->event->handle));
    if (status != BRINGUP_OK) {  // kernels may still be using them
      {
        std::lock_guard<std::mutex> lock(mutex_);
        for (Block* block : unused) free_[block->small].insert(block);
      }
      throw_driver_error(device(device_), "a wait before memory is released");
    }
    std::vector<Block*> remaining, returned;
    for (Block* block : unused) {
      decltype(segments().ranges)::node_type range;  // removed first: another thread may get this address from the driver
      {
        std::lock_guard<std::mutex> lock(segments().mutex);
        range = segments().ranges.extract(block->address);
      }
      int freed = driver().free(device(device_).handle, block->address, block->bytes);
      status = std::max(status, freed);
      (freed == BRINGUP_OK ? returned : remaining).push_back(block);
      if (freed != BRINGUP_OK) {
        std::lock_guard<std::mutex> lock(segments().mutex);
        segments().ranges.insert(std::move(range));
        continue;
      }
      if (C10_UNLIKELY(recording())) record_row(RowKind::Release, block->stream, {}, int64_t(block->bytes), 0);
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      for (Block* block : returned) {
        note(MemoryAction::SegmentFree, block->address, block->bytes, *block->stream, traceback);
        ++stats_.num_device_free;
        change(stats_.segment, block, -1);
        change(stats_.reserved_bytes, block, -int64_t(block->bytes));
      }
      for (Block* block : remaining) free_[block->small].insert(block);  // the driver could not free them; tried again later
    }
    for (Block* block : returned) delete block;  // outside the mutex: this destroys events
    check_driver(status, device(device_), "the release of memory");
  }

  // Gives an arena's memory to all launches. `users`: the streams on which its graphs were replayed.
  void retire(int64_t arena, const std::unordered_set<Stream*>& users) {
    Uses pending;
    bool is_known = note_uses(users, nullptr, pending);
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto& pool : free_) {
      std::vector<Block*> blocks;
      std::erase_if(pool, [&](Block* block) {
        if (block->arena == arena) blocks.push_back(block);
        return block->arena == arena;
      });
      if (!is_known) continue;  // the end of its use is unknown, so it is not used again
      for (Block* block : blocks) {
        block->arena = 0;
        block->pending.insert(block->pending.end(), pending.begin(), pending.end());
        pool.insert(block);
      }
    }
    for (auto& [address, block] : in_use_) {
      if (block->arena != arena) continue;
      block->arena = 0;
      block->users.insert(users.begin(), users.end());
    }
  }

  bool is_live(const void* address, int64_t number) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto entry = in_use_.find(static_cast<char*>(const_cast<void*>(address)));
    return entry != in_use_.end() && entry->second->number == number;
  }

  DeviceStats stats() {
    std::lock_guard<std::mutex> lock(mutex_);
    return stats_;
  }

  template <class F>
  void for_each_stat(F f) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto* array : {&stats_.allocation, &stats_.segment, &stats_.active, &stats_.inactive_split, &stats_.allocated_bytes,
                        &stats_.reserved_bytes, &stats_.active_bytes, &stats_.inactive_split_bytes, &stats_.requested_bytes})
      for (auto& stat : *array) f(stat);
  }

  void reset_counts() {
    for_each_stat([](auto& stat) { stat.reset_accumulated(); });
    std::lock_guard<std::mutex> lock(mutex_);
    stats_.num_alloc_retries = stats_.num_ooms = stats_.num_device_alloc = stats_.num_device_free = 0;
  }

  size_t limit() const {
    size_t own = limit_, room = config().room();
    return own ? std::min(own, room) : room;
  }
  void set_limit(double fraction) {
    std::lock_guard<std::mutex> lock(mutex_);
    limit_ = size_t(double(config().device_bytes) * fraction);
  }

  void clear_history() {
    std::lock_guard<std::mutex> lock(mutex_);
    history_.clear();
  }

  // Writes the device's segments, and its events as the last element. The tracebacks in `out` outlive the mutex.
  void snapshot(SnapshotText& segments_out, SnapshotText& events_out);

  std::optional<Held> owner(const void* address) {
    auto* at = static_cast<const char*>(address);
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto& [start, block] : in_use_)
      if (at >= start && at < start + block->bytes) return *block;
    return std::nullopt;
  }

  std::vector<std::pair<char*, size_t>> alive() {
    std::vector<std::pair<char*, size_t>> blocks;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      for (auto& [start, block] : in_use_) blocks.emplace_back(start, block->requested);
    }
    std::sort(blocks.begin(), blocks.end());
    return blocks;
  }

  std::vector<Held> largest(size_t most) {
    std::lock_guard<std::mutex> lock(mutex_);
    return largest_locked(most);
  }

 private:
  int device_;
  std::mutex mutex_, release_mutex_;  // release_mutex_ is locked before mutex_
  std::set<Block*, BySize> free_[2];  // large, small
  ska::flat_hash_map<char*, Block*> in_use_;
  DeviceStats stats_;
  std::atomic<size_t> limit_{0};
  MemoryHistory history_;

  // An allocation that is being served.
  struct Demand {
    Stream& stream;
    size_t bytes;
    bool small;
    const Traceback& traceback;
  };

  template <class Address>
  void note(MemoryAction action, Address address, size_t bytes, const Stream& stream, const Traceback& traceback) {
    if (C10_LIKELY(!recording_history())) return;
    history_.add({action, uint64_t(address), bytes, int64_t(stream.id.id()), traceback});
  }

  StatType pool_of(const Block* block) { return block->small ? StatType::SMALL_POOL : StatType::LARGE_POOL; }

  void change(c10::CachingAllocator::StatArray& array, const Block* block, int64_t amount) {
    for (StatType type : {StatType::AGGREGATE, pool_of(block)}) {
      auto& stat = array[size_t(type)];
      amount >= 0 ? stat.increase(size_t(amount)) : stat.decrease(size_t(-amount));
    }
  }

  void count(const Block* block, bool allocated) {
    int64_t sign = allocated ? 1 : -1;
    change(stats_.allocation, block, sign);
    change(stats_.active, block, sign);
    change(stats_.allocated_bytes, block, sign * int64_t(block->bytes));
    change(stats_.active_bytes, block, sign * int64_t(block->bytes));
    change(stats_.requested_bytes, block, sign * int64_t(block->requested));
  }

  void inactive_split(const Block* block, int64_t sign) {
    change(stats_.inactive_split, block, sign);
    change(stats_.inactive_split_bytes, block, sign * int64_t(block->bytes));
  }

  // Records an event on each stream. If the driver cannot, waits for the stream instead. False if that wait fails too.
  bool note_uses(const std::unordered_set<Stream*>& users, const void* address, Uses& uses) noexcept {
    for (Stream* user : users) {
      try {
        auto use = std::make_shared<Use>(event_create(user->id.device_index(), false));
        event_record(use->event, *user, address);
        uses.push_back(std::move(use));
      } catch (...) {
        user->fail(std::current_exception(), counters().launches);
        ReleaseGil no_gil;
        if (driver().stream_synchronize(user->handle) != BRINGUP_OK) return false;
      }
    }
    return true;
  }

  static int64_t arena_of(const Stream& stream) {
    Capture* capture = stream.capture;
    return capture ? capture->arena : 0;
  }

  Block* take_or_grow(const Demand& demand, std::unique_lock<std::mutex>& lock) {
    Block* block = take(demand);
    return block ? block : grow(demand, lock);
  }

  Block* take(const Demand& demand) {
    Block key;
    key.stream = &demand.stream;
    key.arena = arena_of(demand.stream);
    key.bytes = demand.bytes;
    auto& free = free_[demand.small];
    auto entry = free.lower_bound(&key);
    if (entry == free.end() || (*entry)->stream != &demand.stream || (*entry)->arena != key.arena) return nullptr;
    Block* block = *entry;
    free.erase(entry);
    if (block->previous || block->next) inactive_split(block, -1);
    return block;
  }

  // `anyway`: the segment may exceed the chip's capacity, but not a limit that the program has set.
  Block* grow(const Demand& demand, std::unique_lock<std::mutex>& lock, bool anyway = false) {
    size_t segment = demand.small             ? kSmallSegment
                     : demand.bytes < kMiddle ? kLargeSegment
                                              : (demand.bytes + kRoundLarge - 1) / kRoundLarge * kRoundLarge;
    size_t reserved = size_t(stats_.reserved_bytes[0].current);
    if (reserved + segment > limit() && !(anyway && limit() == config().room())) return nullptr;
    void* address = nullptr;
    int status = driver().alloc(device(device_).handle, segment, &address);
    if (status == BRINGUP_OUT_OF_MEMORY) return nullptr;
    if (status != BRINGUP_OK) {
      lock.unlock();  // the error's text may need the owner of an address
      throw_driver_error(device(device_), "an allocation of " + human(segment));
    }
    auto* block = new Block();
    block->pool = this;
    block->address = static_cast<char*>(address);
    block->bytes = segment;
    block->stream = &demand.stream;
    block->arena = arena_of(demand.stream);
    block->small = demand.small;
    {
      std::lock_guard<std::mutex> lock(segments().mutex);
      segments().ranges[block->address] = {segment, device_};
    }
    if (C10_UNLIKELY(recording())) record_row(RowKind::Reserve, &demand.stream, {}, int64_t(segment), 0);
    ++stats_.num_device_alloc;
    change(stats_.segment, block, 1);
    change(stats_.reserved_bytes, block, int64_t(segment));
    note(MemoryAction::SegmentAlloc, block->address, segment, demand.stream, demand.traceback);
    return block;
  }

  void split(Block* block, size_t bytes) {
    size_t rest = block->bytes - bytes;
    if (rest < kRound || (!block->small && rest <= kSmall)) return;
    auto* tail = new Block();
    tail->pool = this;
    tail->address = block->address + bytes;
    tail->bytes = rest;
    tail->stream = block->stream;
    tail->arena = block->arena;
    tail->small = block->small;
    tail->previous = block;
    tail->next = block->next;
    if (block->next) block->next->previous = tail;
    block->next = tail;
    block->bytes = bytes;
    tail->pending = block->pending;
    free_[tail->small].insert(tail);
    inactive_split(tail, 1);
  }

  void merge(Block* block, Block* other) {
    if (!other || other->allocated) return;
    free_[other->small].erase(other);
    inactive_split(other, -1);
    block->address = std::min(block->address, other->address);
    block->bytes += other->bytes;
    if (other == block->previous) {
      block->previous = other->previous;
      if (block->previous) block->previous->next = block;
    } else {
      block->next = other->next;
      if (block->next) block->next->previous = block;
    }
    block->pending.insert(block->pending.end(), other->pending.begin(), other->pending.end());
    delete other;
  }

  // Free blocks in segments that also hold live blocks, and the line whose live blocks beside them are the largest.
  Pieces pieces_locked() {
    Pieces pieces;
    for (auto& pool : free_)
      for (const Block* block : pool)
        if (block->previous || block->next) {
          ++pieces.count;
          pieces.largest = std::max(pieces.largest, block->bytes);
        }
    struct Group : Pieces {
      int64_t first = std::numeric_limits<int64_t>::max();  // allocation number
    };
    std::map<std::pair<void*, int64_t>, Group> by_line;
    for (auto& [address, block] : in_use_) {
      bool beside = (block->previous && !block->previous->allocated) || (block->next && !block->next->allocated);
      if (!beside) continue;
      Group& group = by_line[{block->line.code, block->line.instruction}];
      group.line = block->line;
      group.first = std::min(group.first, block->number);
      ++group.neighbours;
      group.neighbour_bytes += block->bytes;
    }
    const Group* most = nullptr;
    for (auto& [line, group] : by_line)
      if (!most || group.neighbour_bytes > most->neighbour_bytes ||
          (group.neighbour_bytes == most->neighbour_bytes && group.first < most->first))
        most = &group;
    if (most) {
      pieces.line = most->line;
      pieces.neighbours = most->neighbours;
      pieces.neighbour_bytes = most->neighbour_bytes;
    }
    return pieces;
  }

  std::vector<Held> largest_locked(size_t most) {
    std::vector<Held> live;
    for (auto& [address, block] : in_use_) live.push_back(*block);
    most = std::min(most, live.size());
    std::partial_sort(live.begin(), live.begin() + std::ptrdiff_t(most), live.end(), [](const Held& a, const Held& b) {
      return a.requested != b.requested ? a.requested > b.requested : a.address < b.address;
    });
    live.resize(most);
    return live;
  }

  bool warned_ = false;
  void warn_past_capacity(size_t requested, const Line& line, std::unique_lock<std::mutex>& lock);
  [[noreturn]] void out_of_memory(size_t requested, const Line& line, std::unique_lock<std::mutex>& lock);
};

void Pool::warn_past_capacity(size_t requested, const Line& line, std::unique_lock<std::mutex>& lock) {
  if (std::exchange(warned_, true)) return;
  lock.unlock();  // describing the line acquires the GIL
  say_past_capacity(device_, requested, line);
  lock.lock();
}

void Pool::out_of_memory(size_t requested, const Line& line, std::unique_lock<std::mutex>& lock) {
  ++stats_.num_ooms;
  Shortage shortage{requested,
                    size_t(stats_.allocated_bytes[0].current),
                    size_t(stats_.reserved_bytes[0].current),
                    limit(),
                    line,
                    largest_locked(5),
                    pieces_locked()};
  lock.unlock();  // describing lines acquires the GIL, whose holder may be waiting for this mutex
  throw_out_of_memory(device_, shortage);
}

void Pool::snapshot(SnapshotText& segments_out, SnapshotText& events_out) {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<const Block*> heads;
  auto add = [&](const Block* block) {
    if (!block->previous) heads.push_back(block);
  };
  for (auto& [address, block] : in_use_) add(block);
  for (auto& pool : free_) std::for_each(pool.begin(), pool.end(), add);
  std::sort(heads.begin(), heads.end(), [](const Block* a, const Block* b) { return a->address < b->address; });
  Text& text = segments_out.text;
  size_t allocated = 0;
  for (const Block* head : heads) {
    size_t total = 0, in_use = 0, requested = 0;
    Text blocks;
    for (const Block* block = head; block; block = block->next) {
      total += block->bytes;
      in_use += block->allocated ? block->bytes : 0;
      requested += block->allocated ? block->requested : 0;
      blocks << (block == head ? "" : ", ") << R"({"address": )" << uint64_t(block->address) << R"(, "size": )" << block->bytes
             << R"(, "requested_size": )" << (block->allocated ? block->requested : 0) << R"(, "state": )"
             << (block->allocated ? R"("active_allocated")" : R"("inactive")") << R"(, "user_metadata": )"
             << json_text(block->allocated ? block->metadata : "") << R"(, "stack": )" << segments_out.number_of(block->traceback)
             << "}";
    }
    text << (text.str().empty() ? "" : ", ") << R"({"device": )" << device_ << R"(, "address": )" << uint64_t(head->address)
         << R"(, "total_size": )" << total << R"(, "allocated_size": )" << in_use << R"(, "active_size": )" << in_use
         << R"(, "requested_size": )" << requested << R"(, "stream": )" << int64_t(head->stream->id.id())
         << R"(, "segment_type": )" << (head->small ? R"("small")" : R"("large")") << R"(, "blocks": [)" << blocks.str() << "]}";
    allocated += in_use;
  }
  if (recording_history()) history_.add({MemoryAction::Snapshot, 0, allocated, 0, nullptr});
  events_out.events(history_.events());
}

Pool& pool(int device) {
  static std::mutex mutex;
  static std::array<std::atomic<Pool*>, kMaxDevices> pools;
  check_index(c10::DeviceIndex(device));
  if (Pool* existing = pools[size_t(device)].load(std::memory_order_acquire)) return *existing;
  std::lock_guard<std::mutex> lock(mutex);
  if (!pools[size_t(device)]) pools[size_t(device)] = new Pool(device);
  return *pools[size_t(device)];
}

void release_block(void* context) {
  auto* block = static_cast<Block*>(context);
  if (!forked()) block->pool->free(block);  // a forked child inherits tensors, not the device
}

struct ChipAllocator final : c10::DeviceAllocator {
  c10::DataPtr allocate(size_t bytes) override { return allocate_on(current_device(), bytes); }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    auto index = device_of(to);
    if (is_dry_copy(bytes)) return;
    Stream& stream = current_stream(index);
    refuse_capture(stream, "a copy of a storage", "copy it before the capture");
    check_driver(driver().copy_d2d(stream.handle, to, from, bytes), device(index), "a copy on the chip");
  }
  bool initialized() override { return opened(); }
  void emptyCache(c10::MempoolId_t) override {
    if (!opened()) return;
    for (int i = 0; i < device_count(); ++i) pool(i).release_unused();
  }
  void recordStream(const c10::DataPtr& data, c10::Stream on) override {
    if (data.get()) pool(data.device().index()).record_stream(data.get(), stream(on));
  }
  DeviceStats getDeviceStats(c10::DeviceIndex device) override { return pool(device).stats(); }
  void resetAccumulatedStats(c10::DeviceIndex device) override { pool(device).reset_counts(); }
  void resetPeakStats(c10::DeviceIndex device) override {
    pool(device).for_each_stat([](auto& stat) { stat.reset_peak(); });
  }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex index) override {
    device(index);
    size_t reserved = size_t(pool(index).stats().reserved_bytes[0].current), limit = pool(index).limit();
    return {limit - std::min(limit, reserved), config().device_bytes};
  }
};

}  // namespace

c10::DeviceAllocator& chip_allocator() {
  static auto* allocator = new ChipAllocator();
  return *allocator;
}

c10::DataPtr allocate_on(c10::DeviceIndex index, size_t bytes) {
  device(index);
  c10::Device on(kChip, index);
  if (bytes == 0) return {nullptr, on};
  Pool& from = pool(index);
  Block* block = from.allocate(bytes);
  purpose = {};
  return {block->address, block, release_block, on};
}

c10::DeviceIndex device_of(const void* address) {
  auto* at = static_cast<const char*>(address);
  std::lock_guard<std::mutex> lock(segments().mutex);
  auto after = segments().ranges.upper_bound(at);
  if (after == segments().ranges.begin()) return -1;
  auto [start, range] = *std::prev(after);
  return at < start + range.first ? c10::DeviceIndex(range.second) : c10::DeviceIndex(-1);
}

void retire_arena(int device, int64_t arena, const std::unordered_set<Stream*>& users) { pool(device).retire(arena, users); }

bool is_live(int device, const void* address, int64_t number) { return pool(device).is_live(address, number); }

int64_t allocation_number(const c10::DataPtr& memory) {
  return memory.get_deleter() == release_block ? static_cast<Block*>(memory.get_context())->number : 0;
}

Content content_of(const c10::DataPtr& memory) {
  return memory.get_deleter() == release_block ? static_cast<Block*>(memory.get_context())->content : Content::Unknown;
}

void set_content(const c10::DataPtr& memory, Content content) {
  if (memory.get_deleter() == release_block) static_cast<Block*>(memory.get_context())->content = content;
}

std::string live_blocks_json(int device, int64_t most) { return blocks_json(pool(device).largest(size_t(most))); }

std::string describe_owner(int device, const void* address) {
  auto block = pool(device).owner(address);
  if (!block) return "";
  std::string where = describe(block->line);
  return what_for(block->purpose) + (where.empty() ? "" : " made at " + where);
}

std::vector<std::pair<char*, size_t>> allocations(int device) { return pool(device).alive(); }

void clear_memory_history() {
  for (int i = 0; opened() && i < device_count(); ++i) pool(i).clear_history();
}

std::string memory_snapshot_json() {
  Text out;
  SnapshotText segments, events;
  for (int i = 0; i < device_count(); ++i) {
    if (i > 0) events.text << ", ";
    pool(i).snapshot(segments, events);
  }
  out << R"({"segments": {"list": [)" << segments.text.str() << "], ";
  segments.text = Text();
  segments.stacks();
  out << segments.text.str() << R"(}, "traces": {"list": [)" << events.text.str() << "], ";
  events.text = Text();
  events.stacks();
  out << events.text.str() << "}}";
  return out.str();
}

void set_memory_limit(int device, double fraction) { pool(device).set_limit(fraction); }

}  // namespace bringup
