// What is said of memory: who holds it, and why there is no more.
#pragma once
#include <string>
#include <vector>

#include "python/lines.h"
#include "runtime/memory.h"

namespace bringup {

// What reports say of a block. The rest of it changes without the mutex, or is of no use to others.
struct Held {
  char* address = nullptr;
  size_t bytes = 0, requested = 0;
  Line line;
  Purpose purpose;
};

// An allocation that failed, and the pool that it failed in.
struct Shortage {
  size_t requested, allocated, reserved, limit;
  Line line;
  std::vector<Held> largest;
};

std::string human(size_t bytes);
std::string what_for(const Purpose& purpose);  // "float32[3, 4] by aten::add"
std::string blocks_json(const std::vector<Held>& blocks);

// These take the GIL.
[[noreturn]] void throw_out_of_memory(int device, const Shortage& shortage);
void say_past_capacity(int device, size_t requested, const Line& line);

}  // namespace bringup
