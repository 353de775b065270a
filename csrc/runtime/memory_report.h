// Texts about memory: the largest blocks, and the out-of-memory report.
#pragma once
#include <string>
#include <vector>

#include "python/lines.h"
#include "record/memory_replay.h"
#include "runtime/memory.h"

namespace bringup {

// The properties of a block that reports show. Unlike the others, they may be copied under the pool's mutex and used later.
struct Held {
  size_t requested = 0;  // bytes
  Line line;
  Purpose purpose;
};

// Free memory between live blocks, and one line whose blocks keep it apart.
struct Pieces {
  size_t count = 0, largest = 0;
  Line line;
  size_t neighbours = 0, neighbour_bytes = 0;  // live blocks of that line beside a piece
};

// An allocation that failed, and the state of its pool.
struct Shortage {
  size_t requested, allocated, reserved, limit;
  Line line;
  std::vector<Held> largest;
  Pieces pieces;
  Wanted wanted;
};

std::string human(size_t bytes);
std::string what_for(const Purpose& purpose);  // "float32[3, 4] by aten::add"
std::string blocks_json(const std::vector<Held>& blocks);

// These acquire the GIL.
[[noreturn]] void throw_out_of_memory(int device, const Shortage& shortage);
void say_past_capacity(int device, size_t requested, const Line& line);

}  // namespace bringup
