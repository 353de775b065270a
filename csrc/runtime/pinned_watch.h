// Detects accesses to page-locked host memory before the program has waited for its pending copy.
#pragma once
#include <cstddef>

#include "runtime/runtime.h"

namespace bringup {

// True while a program is sanitized. Memory allocated before is not watched.
bool pinned_is_watched();

// Note [Two mappings]
// A watched block is mapped twice. The program uses the first mapping, which is protected from the call of a copy until the host
// has waited for it. The order of events and waits decides this, not the clock, so each run detects the same accesses. Copies use
// the second mapping. An access to the protected mapping faults and is noted (pinned_watch.cpp, Note [The fault handler]).
void* watched_allocate(size_t bytes);
void watched_freed(void* block);          // The block returns to the allocator's cache.
void* copy_address(const void* address);  // The address in the second mapping; other addresses are returned unchanged.

void copy_pending(const void* address, bool to_host, Stream& stream);
void stream_reached(const Stream& stream);  // The host has waited for it.
void device_reached(int device);
void event_noted(int64_t event, const Stream& stream);
void event_followed(int64_t event, const Stream& stream);  // The stream waits for the event.
void event_reached(int64_t event);

}  // namespace bringup
