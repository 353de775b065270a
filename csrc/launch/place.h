// Who computes a launch?
#pragma once
#include "launch/launch.h"

namespace bringup {

enum class Answer : uint8_t {
  View,         // nobody: the host makes the metadata
  Synchronous,  // the CPU on the chip's memory, while the host waits: what comes back is not known before
  Host,         // the host, which the chip leaves it to, and which waits
  Dry,          // nobody in a dry run, but for small integers
  Chip,         // the CPU on the chip's memory in stream order: the host goes on
};

struct Placement {
  Answer answer;
  bool first = false;     // the first launch of its signature, so torch's meta kernel has just been asked
  bool fallback = false;  // the chip leaves it to the host, also in a dry run
};

// Decides, and learns for that what the launch returns. Raises what torch or a strict chip refuses, before anything is changed.
Placement place(const Call& call);

}  // namespace bringup
