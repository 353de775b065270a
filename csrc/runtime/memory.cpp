#include "runtime/memory.h"

#include <c10/util/flat_hash_map.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <set>
#include <unordered_set>

#include "launch/dry.h"
#include "python/python.h"
#include "record/recorder.h"
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

// The size classes of torch's CUDA allocator, so that a program fragments memory here as it does there.
constexpr size_t kRound = 512;              // every block
constexpr size_t kSmall = size_t(1) << 20;  // up to here: the small pool
constexpr size_t kSmallSegment = size_t(2) << 20;
constexpr size_t kLargeSegment = size_t(20) << 20;  // for blocks from kSmall to kMiddle
constexpr size_t kMiddle = size_t(10) << 20;
constexpr size_t kRoundLarge = size_t(2) << 20;  // segments for blocks from kMiddle on

class Pool;

// Work that the next owner's stream has to wait for. Both halves of a block that is split share it.
struct Use {
  Event* event;
  explicit Use(Event* event) : event(event) {}
  Use(const Use&) = delete;
  ~Use() { event_destroy(event); }
};
using Uses = std::vector<std::shared_ptr<Use>>;

struct Block : Held {
  Pool* pool = nullptr;
  int64_t number = 0;  // of the allocation
  Stream* stream = nullptr;
  bool small = false, allocated = false;
  Content content = Content::Unknown;
  Block *previous = nullptr, *next = nullptr;  // neighbours in the segment
  std::unordered_set<Stream*> users;           // other streams that use it: record_stream
  Uses pending;                                // by those, when it was freed
};

struct BySize {
  bool operator()(const Block* a, const Block* b) const {
    if (a->stream != b->stream) return a->stream->id.id() < b->stream->id.id();
    if (a->bytes != b->bytes) return a->bytes < b->bytes;
    return a->address < b->address;
  }
};

// Every segment of every device, for `device_of`: address -> (bytes, device).
struct Segments {
  std::mutex mutex;
  std::map<const char*, std::pair<size_t, int>> ranges;
};

Segments& segments() {
  static auto* all = new Segments();
  return *all;
}

// Note [Reuse of memory is decided by the host's order, never by time]
// A block returns to its stream's pool as soon as the host frees it, although kernels on that stream may still use it:
// whoever gets it next is enqueued behind them. If other streams used it (record_stream), events are recorded on them
// when it is freed, and its next owner's stream waits for those. torch's CUDA allocator polls the events instead, so
// there the amount of reserved memory depends on timing; here the same program always reaches the same peaks.
//
// Note [No waiting under the allocator's mutex]
// Tensors are freed by threads that hold the GIL, and kernels written in Python need it: whoever waited for a kernel or
// for the GIL while holding the mutex could wait for itself.
//
// Note [Giving memory back]
// A free segment may still be used by kernels that were launched before it was freed. So segments are first taken out of
// the pool, where no thread can get them any more; then the device is drained, without the mutex, and whatever other
// threads launch meanwhile is none of their users; then they go back to the driver. One thread at a time does so: another
// that finds no memory waits for it and looks again.
class Pool {
 public:
  explicit Pool(int device) : device_(device) {}

  Block* allocate(size_t requested) {
    Stream& stream = current_stream(c10::DeviceIndex(device_));
    Line line = current_line();
    std::unique_lock<std::mutex> lock(mutex_);
    size_t bytes = std::max(kRound, (requested + kRound - 1) / kRound * kRound);
    bool small = bytes <= kSmall;
    Block* block = take_or_grow(stream, bytes, small, lock);
    if (!block) {
      ++stats_.num_alloc_retries;
      lock.unlock();
      release_unused();
      lock.lock();
      block = take_or_grow(stream, bytes, small, lock);
      if (!block && config().past_capacity) {
        block = grow(stream, bytes, small, lock, true);
        if (block) warn_past_capacity(requested, line, lock);
      }
    }
    if (!block) out_of_memory(requested, line, lock);
    split(block, bytes);
    static std::atomic<int64_t> next_number{1};
    block->number = next_number++;
    block->allocated = true;
    block->requested = requested;
    block->line = line;
    block->purpose = purpose;
    block->content = Content::Unknown;
    in_use_.emplace(block->address, block);
    count(block, true);
    Uses pending = block->pending;
    lock.unlock();
    if (C10_UNLIKELY(recording()))
      record_memory(RowKind::Alloc, stream, line, int64_t(block->bytes), block->address, purpose.grows ? kInitialised : 0);
    try {
      for (const auto& use : pending) event_wait(use->event, stream, true);
    } catch (...) {
      free(block);  // with what it still has to wait for
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
    std::unique_lock<std::mutex> lock(mutex_);
    std::unordered_set<Stream*> users;
    users.swap(block->users);
    if (!users.empty()) {
      lock.unlock();
      Uses pending;
      if (!note_uses(users, block->address, pending)) return;  // nobody knows when it is free: it stays allocated
      lock.lock();
      block->pending.insert(block->pending.end(), pending.begin(), pending.end());
    }
    if (C10_UNLIKELY(recording())) record_memory(RowKind::Free, *block->stream, {}, int64_t(block->bytes), block->address);
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
    auto found = in_use_.find(static_cast<char*>(address));
    if (found != in_use_.end() && found->second->stream != &stream) found->second->users.insert(&stream);
  }

  // Gives whole free segments back to the driver.
  void release_unused() {
    ReleaseGil no_gil;
    std::lock_guard<std::mutex> one_at_a_time(release_mutex_);
    std::vector<Block*> taken;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      for (auto& pool : free_)
        std::erase_if(pool, [&](Block* block) {
          bool whole = !block->previous && !block->next;
          if (whole) taken.push_back(block);
          return whole;
        });
    }
    if (taken.empty()) return;
    int status = drain(device_);
    for (Block* block : taken)
      for (const auto& use : block->pending) status = std::max(status, driver().event_synchronize(use->event->handle));
    if (status != BRINGUP_OK) {  // kernels may still use them
      {
        std::lock_guard<std::mutex> lock(mutex_);
        for (Block* block : taken) free_[block->small].insert(block);
      }
      throw_driver_error(device(device_), "a wait before memory is given back");
    }
    std::vector<Block*> kept, given;
    for (Block* block : taken) {
      decltype(segments().ranges)::node_type range;  // taken out first: the driver may give the address to another thread
      {
        std::lock_guard<std::mutex> lock(segments().mutex);
        range = segments().ranges.extract(block->address);
      }
      int freed = driver().free(device(device_).handle, block->address, block->bytes);
      status = std::max(status, freed);
      (freed == BRINGUP_OK ? given : kept).push_back(block);
      if (freed != BRINGUP_OK) {
        std::lock_guard<std::mutex> lock(segments().mutex);
        segments().ranges.insert(std::move(range));
        continue;
      }
      if (C10_UNLIKELY(recording())) record_row(RowKind::Release, block->stream, {}, int64_t(block->bytes), 0);
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      for (Block* block : given) {
        ++stats_.num_device_free;
        change(stats_.segment, block, -1);
        change(stats_.reserved_bytes, block, -int64_t(block->bytes));
      }
      for (Block* block : kept) free_[block->small].insert(block);  // still the driver's, and tried again later
    }
    for (Block* block : given) delete block;  // and its events
    check_driver(status, device(device_), "giving memory back");
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
    size_t own = limit_;
    return own ? own : config().device_bytes;
  }
  void set_limit(double fraction) {
    std::lock_guard<std::mutex> lock(mutex_);
    limit_ = size_t(double(config().device_bytes) * fraction);
  }

  std::optional<Held> owner(const void* address) {
    auto* at = static_cast<const char*>(address);
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto& [start, block] : in_use_)
      if (at >= start && at < start + block->bytes) return *block;
    return std::nullopt;
  }

  std::vector<std::pair<char*, size_t>> alive() {
    std::vector<std::pair<char*, size_t>> found;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      for (auto& [start, block] : in_use_) found.emplace_back(start, block->requested);
    }
    std::sort(found.begin(), found.end());
    return found;
  }

  std::vector<Held> largest(size_t most) {
    std::lock_guard<std::mutex> lock(mutex_);
    return largest_locked(most);
  }

 private:
  int device_;
  std::mutex mutex_, release_mutex_;  // the second is taken first
  std::set<Block*, BySize> free_[2];  // large, small
  ska::flat_hash_map<char*, Block*> in_use_;
  DeviceStats stats_;
  std::atomic<size_t> limit_{0};

  StatType pool_of(const Block* block) { return block->small ? StatType::SMALL_POOL : StatType::LARGE_POOL; }

  void change(c10::CachingAllocator::StatArray& array, const Block* block, int64_t amount) {
    for (StatType type : {StatType::AGGREGATE, pool_of(block)}) {
      auto& stat = array[size_t(type)];
      amount >= 0 ? stat.increase(size_t(amount)) : stat.decrease(size_t(-amount));
    }
  }

  void count(const Block* block, bool taken) {
    int64_t sign = taken ? 1 : -1;
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

  // Notes what streams do until now. Where the driver has no event for that, the stream is waited for; false if that fails.
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

  Block* take_or_grow(Stream& stream, size_t bytes, bool small, std::unique_lock<std::mutex>& lock) {
    Block* block = take(stream, bytes, small);
    return block ? block : grow(stream, bytes, small, lock);
  }

  Block* take(Stream& stream, size_t bytes, bool small) {
    Block key;
    key.stream = &stream;
    key.bytes = bytes;
    auto found = free_[small].lower_bound(&key);
    if (found == free_[small].end() || (*found)->stream != &stream) return nullptr;
    Block* block = *found;
    free_[small].erase(found);
    if (block->previous || block->next) inactive_split(block, -1);
    return block;
  }

  // `anyway`: past the chip's capacity, but never past what the program has set itself as a limit.
  Block* grow(Stream& stream, size_t bytes, bool small, std::unique_lock<std::mutex>& lock, bool anyway = false) {
    size_t segment = small             ? kSmallSegment
                     : bytes < kMiddle ? kLargeSegment
                                       : (bytes + kRoundLarge - 1) / kRoundLarge * kRoundLarge;
    size_t reserved = size_t(stats_.reserved_bytes[0].current);
    if (reserved + segment > limit() && !(anyway && limit() == config().device_bytes)) return nullptr;
    void* address = nullptr;
    int status = driver().alloc(device(device_).handle, segment, &address);
    if (status == BRINGUP_OUT_OF_MEMORY) return nullptr;
    if (status != BRINGUP_OK) {
      lock.unlock();  // the error names the owner of an address
      throw_driver_error(device(device_), "an allocation of " + human(segment));
    }
    auto* block = new Block();
    block->pool = this;
    block->address = static_cast<char*>(address);
    block->bytes = segment;
    block->stream = &stream;
    block->small = small;
    {
      std::lock_guard<std::mutex> lock(segments().mutex);
      segments().ranges[block->address] = {segment, device_};
    }
    if (C10_UNLIKELY(recording())) record_row(RowKind::Reserve, &stream, {}, int64_t(segment), 0);
    ++stats_.num_device_alloc;
    change(stats_.segment, block, 1);
    change(stats_.reserved_bytes, block, int64_t(segment));
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
  lock.unlock();  // the line takes the GIL
  say_past_capacity(device_, requested, line);
  lock.lock();
}

void Pool::out_of_memory(size_t requested, const Line& line, std::unique_lock<std::mutex>& lock) {
  ++stats_.num_ooms;
  Shortage shortage{
      requested,        size_t(stats_.allocated_bytes[0].current), size_t(stats_.reserved_bytes[0].current), limit(), line,
      largest_locked(5)};
  lock.unlock();  // the lines take the GIL, whose holder may be waiting for this mutex
  throw_out_of_memory(device_, shortage);
}

Pool& pool(int device) {
  static std::mutex mutex;
  static std::array<std::atomic<Pool*>, kMaxDevices> pools;
  check_index(c10::DeviceIndex(device));
  if (Pool* found = pools[size_t(device)].load(std::memory_order_acquire)) return *found;
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

void set_memory_limit(int device, double fraction) { pool(device).set_limit(fraction); }

}  // namespace bringup
