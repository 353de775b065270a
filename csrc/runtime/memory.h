// The caching allocator of device memory.
#pragma once
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/ScalarType.h>
#include <c10/util/ArrayRef.h>

#include <string>
#include <unordered_set>

#include "python/lines.h"
#include "runtime/runtime.h"

namespace bringup {

// The purpose of an allocation, for the out-of-memory report. The launch sets it, and the allocator reads it.
struct Purpose {
  const char* op = nullptr;
  c10::ScalarType dtype = c10::ScalarType::Undefined;
  uint8_t dims = 0;
  int64_t sizes[6] = {};
  bool grows = false;  // it replaces a smaller allocation and receives its content
};
extern thread_local Purpose purpose;
void set_purpose(const char* op, c10::ScalarType dtype, c10::IntArrayRef sizes);

c10::DeviceAllocator& chip_allocator();
c10::DataPtr allocate_on(c10::DeviceIndex device, size_t bytes);  // for the device's current stream
// The live blocks as JSON, largest first: [{"bytes", "what", "line"}].
std::string live_blocks_json(int device, int64_t most);
// Describes the live tensor at an address: "int64[4] by aten::full made at train.py:5", or "" if there is none.
std::string describe_owner(int device, const void* address);
std::vector<std::pair<char*, size_t>> allocations(int device);  // live ones by address: start and requested bytes
// Arenas are memory that only the launches of some graphs use (see launch/graph.cpp). Gives an arena's memory to all launches;
// `users`: the streams on which its graphs were replayed.
void retire_arena(int device, int64_t arena, const std::unordered_set<Stream*>& users);
bool is_live(int device, const void* address, int64_t number);  // true if an address is that of a live allocation
// The number of a live allocation in this process; 0 for other memory.
int64_t allocation_number(const c10::DataPtr& memory);
// How much a dry run knows about the content of a live block (see dry.cpp). A new block is Unknown.
enum class Content : uint8_t { Unknown, Guessed, Drawn, Known };  // Guessed and Drawn: the block holds a stand-in
Content content_of(const c10::DataPtr& memory);
void set_content(const c10::DataPtr& memory, Content content);
// The segments and the history of all devices as JSON (see memory_history.py). Acquires the GIL.
std::string memory_snapshot_json();
void clear_memory_history();
// From now on, memory is taken from segments that grow (see blocks.h) if the driver has them.
void set_expandable_segments(bool on);
bool expandable_segments();
// What the recording's allocations would have reserved at most with expandable segments, per device; -1 if it is not known.
std::vector<int64_t> reserved_if_expandable();
void set_memory_limit(int device, double fraction);  // `fraction` of the capacity
c10::DeviceIndex device_of(const void* address);     // -1 if the address is not in device memory

}  // namespace bringup
