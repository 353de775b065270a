// What the recorded allocations would have reserved with expandable segments.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>

namespace bringup {

// The state of a device's allocator: the bytes that it holds now, and those that it may take from the device.
struct ReservedNow {
  int device;
  size_t reserved, limit, capacity;
};

// A request that found no memory.
struct Wanted {
  int64_t arena, stream;
  size_t requested;
};

struct ReplayedMemory {
  size_t peak = 0;      // the most bytes that would have been reserved
  size_t reserved = 0;  // at the end, with the request
  bool fits = true;     // the allocations and the request find memory within the limit
};

// Replays the allocations and frees of the latest recording by the rules of runtime/blocks.h, then the request, if there is
// one. Nothing if the recording does not hold all memory that the allocator holds.
std::optional<ReplayedMemory> replay_with_expandable_segments(const ReservedNow& now, const Wanted* wanted = nullptr);

}  // namespace bringup
