// Page-locked host memory.
#pragma once
#include <c10/core/Allocator.h>

namespace bringup {

void register_pinned_allocator();
c10::Allocator* pinned_allocator();
bool is_pinned(const void* pointer);

}  // namespace bringup
