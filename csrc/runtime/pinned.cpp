#include "runtime/pinned.h"

#include <ATen/Context.h>
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/detail/CUDAHooksInterface.h>

#include <cstdlib>
#include <map>
#include <mutex>

#include "runtime/memory_report.h"
#include "runtime/pinned_watch.h"
#include "runtime/runtime.h"

namespace bringup {
namespace {

// Page-locked host memory. Pending copies keep their host tensor alive, so a freed block is unused and returns to the cache.
struct PinnedAllocator final : at::HostAllocator {
  std::mutex mutex;
  std::map<const char*, size_t> live;  // address -> bytes
  std::multimap<size_t, void*> idle;   // bytes -> address
  at::HostStats stats;

  c10::DataPtr allocate(size_t bytes) override {
    Device& on = device(current_device());
    size_t rounded = 4096;
    while (rounded < bytes) rounded *= 2;
    void* pointer = cached(rounded);
    bool count_new = !pointer;
    if (!pointer) pointer = fresh(on, rounded, bytes);
    std::lock_guard<std::mutex> lock(mutex);
    live[static_cast<char*>(pointer)] = rounded;
    stats.active_requests.increase(1);
    stats.active_bytes.increase(rounded);
    if (count_new) {
      ++stats.num_host_alloc;
      stats.allocations.increase(1);
      stats.allocated_bytes.increase(rounded);
    }
    return {pointer, pointer, [](void* p) { static_cast<PinnedAllocator*>(pinned_allocator())->free(p); },
            c10::Device(c10::kCPU)};
  }
  void* cached(size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex);
    auto [entry, last] = idle.equal_range(bytes);
    while (entry != last && pinned_is_watched() != (copy_address(entry->second) != entry->second)) ++entry;
    if (entry == last) return nullptr;
    void* pointer = entry->second;
    idle.erase(entry);
    return pointer;
  }
  // Called without the mutex: throwing an error needs the GIL, whose holder may be waiting for the mutex.
  static void* fresh(Device& on, size_t bytes, size_t requested) {
    void* pointer = nullptr;
    int status = BRINGUP_OK;
    if (driver().host_alloc)
      status = driver().host_alloc(on.handle, bytes, &pointer);
    else if (pinned_is_watched())
      pointer = watched_allocate(bytes);
    else if (posix_memalign(&pointer, 4096, bytes) != 0)
      status = BRINGUP_OUT_OF_MEMORY;
    TORCH_CHECK_WITH(OutOfMemoryError, status != BRINGUP_OUT_OF_MEMORY, "no pinned host memory left: requested ",
                     human(requested));
    check_driver(status, on, "an allocation of page-locked memory");
    return pointer;
  }
  void free(void* pointer) {
    std::lock_guard<std::mutex> lock(mutex);
    auto entry = live.find(static_cast<char*>(pointer));
    if (copy_address(pointer) != pointer) watched_freed(pointer);
    stats.active_requests.decrease(1);
    stats.active_bytes.decrease(entry->second);
    idle.emplace(entry->second, pointer);
    live.erase(entry);
  }
  bool contains(const void* pointer) {
    auto* at = static_cast<const char*>(pointer);
    std::lock_guard<std::mutex> lock(mutex);
    auto after = live.upper_bound(at);
    if (after == live.begin()) return false;
    auto [start, bytes] = *std::prev(after);
    return at < start + bytes;
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return [](void* p) { static_cast<PinnedAllocator*>(pinned_allocator())->free(p); };
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
  bool record_event(void*, void*, c10::Stream) override { return true; }  // pending copies keep their tensors alive
  void empty_cache() override {
    std::lock_guard<std::mutex> lock(mutex);
    std::erase_if(idle, [&](const auto& block) {
      auto [bytes, pointer] = block;
      bool watched = copy_address(pointer) != pointer;  // it stays in the cache for sanitized programs
      if (watched) return false;
      ++stats.num_host_free;
      stats.allocations.decrease(1);
      stats.allocated_bytes.decrease(bytes);
      if (driver().host_free)
        driver().host_free(device(0).handle, pointer, bytes);
      else
        ::free(pointer);
      return true;
    });
  }
  at::HostStats get_stats() override {
    std::lock_guard<std::mutex> lock(mutex);
    return stats;
  }
  void reset_accumulated_stats() override {
    for_each_stat([](auto& stat) { stat.reset_accumulated(); });
    stats.num_host_alloc = stats.num_host_free = 0;
  }
  void reset_peak_stats() override {
    for_each_stat([](auto& stat) { stat.reset_peak(); });
  }

  template <class F>
  void for_each_stat(F f) {
    std::lock_guard<std::mutex> lock(mutex);
    for (auto* stat : {&stats.active_requests, &stats.active_bytes, &stats.allocations, &stats.allocated_bytes}) f(*stat);
  }
};

PinnedAllocator& the_pinned_allocator() {
  static auto* allocator = new PinnedAllocator();
  return *allocator;
}

}  // namespace

c10::Allocator* pinned_allocator() { return &the_pinned_allocator(); }
bool is_pinned(const void* pointer) {
  // Where there is a CUDA device, torch pins memory with CUDA's allocator for every accelerator (ATen/EmptyTensor.cpp).
  static const bool beside_cuda = at::globalContext().hasCUDA();
  return the_pinned_allocator().contains(pointer) || (beside_cuda && at::detail::getCUDAHooks().isPinnedPtr(pointer));
}
void register_pinned_allocator() { at::setHostAllocator(kChip, &the_pinned_allocator()); }

}  // namespace bringup
