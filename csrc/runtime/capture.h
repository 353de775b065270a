// The state of a stream that captures its launches for a graph (launch/graph.h).
#pragma once
#include <string>
#include <vector>

#include "runtime/runtime.h"

namespace bringup {

// A capture under way. Streams join it when they wait for an event that was recorded on one of its streams.
struct Capture : std::enable_shared_from_this<Capture> {
  int64_t graph = 0;
  int64_t arena = 0;  // the memory that its launches allocate (runtime/memory.h)
  int device = 0;
  std::vector<Stream*> streams;
  bool over = false;
  std::string refused;  // the first call that cannot be captured; empty if there was none

  void join(Stream& stream);
};

// Raises an error if the stream captures: what `about` names would run now, and not at every replay.
void refuse_capture(Stream& stream, const std::string& about, const char* instead);
// The same for any stream of a device.
void refuse_capture(int device, const std::string& about, const char* instead);

}  // namespace bringup
