// The caching allocator of device memory.
#pragma once
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/ScalarType.h>
#include <c10/util/ArrayRef.h>

#include <string>

#include "python/lines.h"
#include "runtime/runtime.h"

namespace bringup {

// What an allocation is for, shown in the out-of-memory report. Set by the launch, read by the allocator.
struct Purpose {
  const char* op = nullptr;
  c10::ScalarType dtype = c10::ScalarType::Undefined;
  uint8_t dims = 0;
  int64_t sizes[6] = {};
  bool grows = false;  // from another allocation, whose content it takes over
};
extern thread_local Purpose purpose;
void set_purpose(const char* op, c10::ScalarType dtype, c10::IntArrayRef sizes);

c10::DeviceAllocator& chip_allocator();
c10::DataPtr allocate_on(c10::DeviceIndex device, size_t bytes);  // on the device's current stream
// Largest live blocks first: [{"bytes", "what", "line"}] as JSON.
std::string live_blocks_json(int device, int64_t most);
// The live tensor that an address belongs to: "int64[4] by aten::full made at train.py:5"; "" for none.
std::string describe_owner(int device, const void* address);
std::vector<std::pair<char*, size_t>> allocations(int device);  // alive ones in order: start, bytes asked for
// Counts the allocations of the process: the number of a live one, 0 for other memory.
int64_t allocation_number(const c10::DataPtr& memory);
// A note of dry runs at a live block (see dry.cpp): what is its content? A fresh one's is unknown.
enum class Content : uint8_t { Unknown, Guessed, Drawn, Known };  // the two in the middle are stand-ins
Content content_of(const c10::DataPtr& memory);
void set_content(const c10::DataPtr& memory, Content content);
void set_memory_limit(int device, double fraction);  // of the capacity
c10::DeviceIndex device_of(const void* address);     // of a live allocation's segment; -1: not device memory

}  // namespace bringup
