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
#include "runtime/blocks.h"
#include "runtime/capture.h"
#include "python/python.h"
#include "launch/unwritten.h"
#include "record/recorder.h"
#include "runtime/memory_history.h"
#include "runtime/memory_report.h"

namespace bringup {

thread_local Purpose purpose;
std::atomic<bool> expandable_segments_on{false};

void set_purpose(const char* op, c10::ScalarType dtype, c10::IntArrayRef sizes) {
  purpose.op = op;
  purpose.dtype = dtype;
  purpose.dims = uint8_t(std::min<size_t>(sizes.size(), 6));
  for (size_t i = 0; i < purpose.dims; ++i) purpose.sizes[i] = sizes[i];
}

namespace {

using c10::CachingAllocator::StatType;
using c10::CachingDeviceAllocator::DeviceStats;

class Pool;

// Work that the stream of a block's next owner waits for. Both parts of a block that is split share it.
struct Use {
  Event* event;
  explicit Use(Event* event) : event(event) {}
  Use(const Use&) = delete;
  ~Use() { event_destroy(event); }
};
using Uses = std::vector<std::shared_ptr<Use>>;

struct Block : Held, BlockBase<Block> {
  Pool* pool = nullptr;
  int64_t number = 0;       // allocation number
  Stream* owner = nullptr;  // its stream
  Content content = Content::Unknown;
  std::unordered_set<Stream*> users;  // other streams that use it, from record_stream
  Uses pending;                       // their work at the time when it was freed
  Traceback traceback;                // of the allocation, if the history is recorded
  std::string metadata;

  Block* part() const {
    auto* rest = new Block();
    rest->pool = pool;
    rest->owner = owner;
    rest->pending = pending;
    return rest;
  }
  void absorb(const Block& other) { pending.insert(pending.end(), other.pending.begin(), other.pending.end()); }
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
    bool expandable = uses_expandable_segments();
    std::unique_lock<std::mutex> lock(mutex_);
    size_t bytes = block_bytes(requested);
    Demand demand{stream, {arena_of(stream), stream.id.id(), bytes <= kSmall}, bytes, expandable, traceback};
    Block* block = take_or_grow(demand, lock);
    if (!block) {
      ++stats_.num_alloc_retries;
      lock.unlock();
      release_unused(kOfAllocator);
      lock.lock();
      block = take_or_grow(demand, lock);
      if (!block && config().past_capacity) {
        demand.past_capacity = true;
        block = grow(demand, lock);
        if (block) warn_past_capacity(requested, line, lock);
      }
    }
    if (!block) {
      note(MemoryAction::OutOfMemory, limit() - std::min(limit(), size_t(stats_.reserved_bytes[0].current)), requested, stream,
           traceback);
      out_of_memory(demand, requested, line, lock);
    }
    blocks_.split(block, bytes, demand.expandable);
    static std::atomic<int64_t> next_number{1};
    block->number = next_number++;
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
      record_allocation(stream, line, {int64_t(block->bytes), int64_t(bytes), demand.group.arena, block->address},
                        purpose.grows ? kInitialised : 0);
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
    note(MemoryAction::FreeRequested, block->address, block->requested, *block->owner, traceback);
    std::unordered_set<Stream*> users;
    users.swap(block->users);
    if (!users.empty()) {
      lock.unlock();
      Uses pending;
      if (!note_uses(users, block->address, pending)) return;  // it stays allocated, since the end of its use is unknown
      lock.lock();
      block->pending.insert(block->pending.end(), pending.begin(), pending.end());
    }
    if (C10_UNLIKELY(recording())) record_free(*block->owner, int64_t(block->bytes), block->address);
    note(MemoryAction::FreeCompleted, block->address, block->requested, *block->owner, traceback);
    of_allocation.swap(block->traceback);  // destroyed after the mutex is released
    if (C10_UNLIKELY(watching_unwritten())) note_freed(block->number);
    in_use_.erase(block->address);
    count(block, false);
    blocks_.add(block);
  }

  void record_stream(void* address, Stream& stream) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto entry = in_use_.find(static_cast<char*>(address));
    if (entry != in_use_.end() && entry->second->owner != &stream) entry->second->users.insert(&stream);
  }

  // Returns unused segments, and unused pages of expandable ones, to the driver. `flags` of the recording's rows: kOfAllocator if
  // an allocation needs them.
  void release_unused(uint8_t flags = 0) {
    Traceback traceback = traceback_for(MemoryAction::SegmentFree);
    ReleaseGil no_gil;
    std::lock_guard<std::mutex> one_at_a_time(release_mutex_);
    std::vector<Block*> unused;
    bool holds_memory;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      unused = blocks_.unused();
      holds_memory = stats_.reserved_bytes[0].current > 0;
    }
    if (unused.empty()) {  // the program's request is recorded all the same, since pages that expand would be released here
      if (C10_UNLIKELY(recording()) && holds_memory && !flags)
        record_row(RowKind::Release, &current_stream(c10::DeviceIndex(device_)), {}, 0, 0);
      release_addresses(BRINGUP_OK);
      return;
    }
    int status = drain(device_);
    for (Block* block : unused)
      for (const auto& use : block->pending) status = std::max(status, driver().event_synchronize(use->event->handle));
    if (status != BRINGUP_OK) {  // kernels may still be using them
      {
        std::lock_guard<std::mutex> lock(mutex_);
        for (Block* block : unused) blocks_.add(block);
      }
      throw_driver_error(device(device_), "a wait before memory is released");
    }
    std::vector<Block*> remaining, returned;
    for (Block* block : unused) {
      int freed = block->range ? driver().range_unmap(device(device_).handle, block->address, block->bytes)
                               : free_addresses(driver().free, block->address, block->bytes);
      status = std::max(status, freed);
      (freed == BRINGUP_OK ? returned : remaining).push_back(block);
      if (freed == BRINGUP_OK && C10_UNLIKELY(recording()))
        record_row(RowKind::Release, block->owner, {}, int64_t(block->bytes), 0, flags);
    }
    std::vector<Uses> past;  // destroyed outside the mutex: this destroys events
    for (Block* block : leave(returned, remaining, traceback, past)) delete block;
    release_addresses(status);
  }

  // Gives an arena's memory to all launches. `users`: the streams on which its graphs were replayed.
  void retire(int64_t arena, const std::unordered_set<Stream*>& users) {
    Uses pending;
    bool is_known = note_uses(users, nullptr, pending);
    std::lock_guard<std::mutex> lock(mutex_);
    blocks_.retire(arena, is_known, [&](Block* block) {  // if the end of its use is unknown, it is not used again
      block->pending.insert(block->pending.end(), pending.begin(), pending.end());
    });
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

  ReservedNow reserved_now() {
    std::lock_guard<std::mutex> lock(mutex_);
    return {device_, size_t(stats_.reserved_bytes[0].current), limit(), config().device_bytes};
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
  FreeBlocks<Block, Pool> blocks_{*this};
  ska::flat_hash_map<char*, Block*> in_use_;
  DeviceStats stats_;
  std::atomic<size_t> limit_{0};
  MemoryHistory history_;

  // An allocation that is being served.
  struct Demand {
    Stream& stream;
    BlockGroup group;
    size_t bytes;
    bool expandable;
    const Traceback& traceback;
    bool past_capacity = false;  // memory may exceed the chip's capacity, but not a limit that the program has set
    int status = BRINGUP_OK;     // of the driver
  };
  Demand* growing_ = nullptr;  // by `blocks_.expand`

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

  // ---- what `blocks_` needs of the device

  friend class FreeBlocks<Block, Pool>;

  bool has_room(size_t bytes) const {
    bool beyond = growing_->past_capacity && limit() == config().room();
    return beyond || size_t(stats_.reserved_bytes[0].current) + bytes <= limit();
  }

  char* reserve(size_t bytes) {
    void* address = nullptr;
    growing_->status = driver().range_reserve(device(device_).handle, bytes, &address);
    if (growing_->status != BRINGUP_OK) return nullptr;
    std::lock_guard<std::mutex> lock(segments().mutex);
    segments().ranges[static_cast<char*>(address)] = {bytes, device_};
    return static_cast<char*>(address);
  }

  bool map(Block& pages, size_t bytes) {
    growing_->status = driver().range_map(device(device_).handle, pages.address, bytes);
    if (growing_->status != BRINGUP_OK) return false;
    pages.pool = this;
    pages.owner = &growing_->stream;
    if (C10_UNLIKELY(recording())) record_row(RowKind::Reserve, &growing_->stream, {}, int64_t(bytes), 0);
    ++stats_.num_device_alloc;
    change(stats_.reserved_bytes, &pages, int64_t(bytes));
    note(MemoryAction::SegmentMap, pages.address, bytes, growing_->stream, growing_->traceback);
    return true;
  }

  void count_part(const Block& block, int n) {
    change(stats_.inactive_split, &block, n);
    change(stats_.inactive_split_bytes, &block, n * int64_t(block.bytes));
  }

  // ----

  // Gives addresses back to the driver by one of its functions.
  int free_addresses(int (*function)(bringup_device*, void*, size_t), char* address, size_t bytes) {
    decltype(segments().ranges)::node_type range;  // removed first: another thread may get this address from the driver
    {
      std::lock_guard<std::mutex> lock(segments().mutex);
      range = segments().ranges.extract(address);
    }
    int status = function(device(device_).handle, address, bytes);
    if (status != BRINGUP_OK) {
      std::lock_guard<std::mutex> lock(segments().mutex);
      segments().ranges.insert(std::move(range));
    }
    return status;
  }

  // Releases the addresses of expandable segments without memory, and raises the driver's error, if there is or was one.
  void release_addresses(int status) {
    std::vector<Block*> empty;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      empty = blocks_.empty_segments();
    }
    if (empty.empty() && status == BRINGUP_OK) return;  // the device may not be open
    for (Block* segment : empty) {
      int freed = free_addresses(driver().range_release, segment->address, segment->bytes);
      status = std::max(status, freed);
      if (freed == BRINGUP_OK) {
        delete segment;
      } else {  // tried again later
        std::lock_guard<std::mutex> lock(mutex_);
        blocks_.keep(segment);
      }
    }
    check_driver(status, device(device_), "the release of memory");
  }

  // Counts what the driver took back, and keeps what it could not take. Returns the segments, for the caller to delete, and
  // collects in `past` the work that the pages of others waited for.
  std::vector<Block*> leave(const std::vector<Block*>& returned, const std::vector<Block*>& remaining, const Traceback& traceback,
                            std::vector<Uses>& past) {
    std::vector<Block*> gone;
    std::lock_guard<std::mutex> lock(mutex_);
    for (Block* block : returned) {
      note(block->range ? MemoryAction::SegmentUnmap : MemoryAction::SegmentFree, block->address, block->bytes, *block->owner,
           traceback);
      ++stats_.num_device_free;
      if (!block->range) change(stats_.segment, block, -1);
      change(stats_.reserved_bytes, block, -int64_t(block->bytes));
      past.emplace_back().swap(block->pending);
      if (block->range)
        blocks_.leave(block);
      else
        gone.push_back(block);
    }
    for (Block* block : remaining) blocks_.add(block);  // tried again later
    return gone;
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

  static bool uses_expandable_segments() {
    if (C10_LIKELY(!expandable_segments())) return false;
    if (!driver().range_reserve) {
      TORCH_WARN_ONCE("expandable_segments has no effect: the ", driver().name,
                      " driver cannot map memory into reserved addresses");
    }
    return driver().range_reserve;
  }

  Block* take_or_grow(Demand& demand, std::unique_lock<std::mutex>& lock) {
    Block* block = blocks_.take(demand.group, demand.bytes, demand.expandable);
    return block ? block : grow(demand, lock);
  }

  // Takes memory from the driver; null if there is none.
  Block* grow(Demand& demand, std::unique_lock<std::mutex>& lock) {
    growing_ = &demand;
    Block* block = demand.expandable ? blocks_.expand(demand.group, demand.bytes, config().device_bytes) : new_segment(demand);
    growing_ = nullptr;
    if (demand.status == BRINGUP_FAILED) {
      lock.unlock();  // the error's text may need the owner of an address
      throw_driver_error(device(device_), "an allocation of " + human(demand.bytes));
    }
    return block;
  }

  Block* new_segment(Demand& demand) {
    size_t segment = segment_bytes(demand.bytes);
    if (!has_room(segment)) return nullptr;
    void* address = nullptr;
    demand.status = driver().alloc(device(device_).handle, segment, &address);
    if (demand.status != BRINGUP_OK) return nullptr;
    auto* block = new Block();
    block->pool = this;
    block->address = static_cast<char*>(address);
    block->bytes = segment;
    block->owner = &demand.stream;
    block->arena = demand.group.arena;
    block->stream = demand.group.stream;
    block->small = demand.group.small;
    block->state = BlockState::Allocated;
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

  // Free blocks in segments that also hold live blocks, and the line whose live blocks beside them are the largest.
  Pieces pieces_locked() {
    Pieces pieces;
    for (bool small : {false, true})
      for (const Block* block : blocks_.free(small))
        if (block->is_part()) {
          ++pieces.count;
          pieces.largest = std::max(pieces.largest, block->bytes);
        }
    struct Group : Pieces {
      int64_t first = std::numeric_limits<int64_t>::max();  // allocation number
    };
    std::map<std::pair<void*, int64_t>, Group> by_line;
    for (auto& [address, block] : in_use_) {
      bool beside = (block->previous && block->previous->is_free()) || (block->next && block->next->is_free());
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
    std::vector<const Block*> live;
    for (auto& [address, block] : in_use_) live.push_back(block);
    most = std::min(most, live.size());
    auto end = live.begin() + std::ptrdiff_t(most);
    std::partial_sort(live.begin(), end, live.end(), [](const Block* a, const Block* b) {
      return a->requested != b->requested ? a->requested > b->requested : a->address < b->address;
    });
    std::vector<Held> held;
    std::transform(live.begin(), end, std::back_inserter(held), [](const Block* block) -> Held { return *block; });
    return held;
  }

  bool warned_ = false;
  void warn_past_capacity(size_t requested, const Line& line, std::unique_lock<std::mutex>& lock);
  [[noreturn]] void out_of_memory(const Demand& demand, size_t requested, const Line& line, std::unique_lock<std::mutex>& lock);
};

void Pool::warn_past_capacity(size_t requested, const Line& line, std::unique_lock<std::mutex>& lock) {
  if (std::exchange(warned_, true)) return;
  lock.unlock();  // describing the line acquires the GIL
  say_past_capacity(device_, requested, line);
  lock.lock();
}

void Pool::out_of_memory(const Demand& demand, size_t requested, const Line& line, std::unique_lock<std::mutex>& lock) {
  ++stats_.num_ooms;
  Shortage shortage{requested,
                    size_t(stats_.allocated_bytes[0].current),
                    size_t(stats_.reserved_bytes[0].current),
                    limit(),
                    line,
                    largest_locked(5),
                    pieces_locked(),
                    {demand.group.arena, demand.group.stream, requested}};
  lock.unlock();  // describing lines acquires the GIL, whose holder may be waiting for this mutex
  throw_out_of_memory(device_, shortage);
}

void Pool::snapshot(SnapshotText& segments_out, SnapshotText& events_out) {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<const Block*> heads;
  auto has_memory = [](const Block* block) {
    return block && (block->state == BlockState::Allocated || block->state == BlockState::Free);
  };
  auto add = [&](const Block* block) {
    if (!has_memory(block->previous)) heads.push_back(block);
  };
  for (auto& [address, block] : in_use_) add(block);
  for (bool small : {false, true}) std::for_each(blocks_.free(small).begin(), blocks_.free(small).end(), add);
  std::sort(heads.begin(), heads.end(), [](const Block* a, const Block* b) { return a->address < b->address; });
  Text& text = segments_out.text;
  size_t allocated = 0;
  for (const Block* head : heads) {
    size_t total = 0, in_use = 0, requested = 0;
    Text blocks;
    for (const Block* block = head; has_memory(block); block = block->next) {
      bool is_live = block->state == BlockState::Allocated;
      total += block->bytes;
      in_use += is_live ? block->bytes : 0;
      requested += is_live ? block->requested : 0;
      blocks << (block == head ? "" : ", ") << R"({"address": )" << uint64_t(block->address) << R"(, "size": )" << block->bytes
             << R"(, "requested_size": )" << (is_live ? block->requested : 0) << R"(, "state": )"
             << (is_live ? R"("active_allocated")" : R"("inactive")") << R"(, "user_metadata": )"
             << json_text(is_live ? block->metadata : "") << R"(, "stack": )" << segments_out.number_of(block->traceback) << "}";
    }
    text << (text.str().empty() ? "" : ", ") << R"({"device": )" << device_ << R"(, "address": )" << uint64_t(head->address)
         << R"(, "total_size": )" << total << R"(, "allocated_size": )" << in_use << R"(, "active_size": )" << in_use
         << R"(, "requested_size": )" << requested << R"(, "stream": )" << head->stream << R"(, "is_expandable": )"
         << (head->range ? "true" : "false") << R"(, "segment_type": )" << (head->small ? R"("small")" : R"("large")")
         << R"(, "blocks": [)" << blocks.str() << "]}";
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

void set_expandable_segments(bool on) { expandable_segments_on = on; }

bool expandable_segments() { return expandable_segments_on.load(std::memory_order_relaxed); }

std::vector<int64_t> reserved_if_expandable() {
  std::vector<int64_t> peaks;
  for (int i = 0; i < device_count(); ++i) {
    auto replayed = expandable_segments() ? std::nullopt : replay_with_expandable_segments(pool(i).reserved_now());
    peaks.push_back(replayed ? int64_t(replayed->peak) : -1);
  }
  return peaks;
}

void set_memory_limit(int device, double fraction) { pool(device).set_limit(fraction); }

}  // namespace bringup
