// Page-locked host memory under watch: a program that touches it before its copy is known to be over is found.
#pragma once
#include <cstddef>

#include "runtime/runtime.h"

namespace bringup {

// While a program is sanitized. Memory that was allocated before is not watched.
bool pinned_is_watched();

// Note [Two mappings]
// A watched block is mapped twice. The program has the first, which is protected from the copy's call until the host has
// waited for it (by the order of events and waits, not by the clock: so it is found in every run). Copies use the second.
// A touch of the first faults, and is noted (pinned_watch.cpp, Note [The fault handler]).
void* watched_allocate(size_t bytes);
void watched_freed(void* block);  // goes to the allocator's cache
void* copy_address(const void* address);

void copy_pending(const void* address, bool to_host, Stream& stream);
void stream_reached(const Stream& stream);  // the host waited for it
void device_reached(int device);
void event_noted(int64_t event, const Stream& stream);
void event_followed(int64_t event, const Stream& stream);  // the stream waits for it
void event_reached(int64_t event);

}  // namespace bringup
