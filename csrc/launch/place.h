// Decides where a launch is computed.
#pragma once
#include "launch/launch.h"

namespace bringup {

enum class Answer : uint8_t {
  View,         // nothing is computed: the host creates the metadata
  Synchronous,  // on the chip's memory, while the host waits: the results' metadata is not known before
  Host,         // on the host, since the chip does not support it and no plan is in force; the host waits
  Dry,          // a dry run: only small integers are computed
  Chip,         // on the chip's memory in stream order; the host does not wait
};

struct Placement {
  Answer answer;
  bool first = false;     // the first launch of its signature: torch's meta kernel has just run
  bool fallback = false;  // the chip does not support it; also set in dry runs
  bool planned = false;   // a plan is in force and puts it on the host; its results are there, and are copied only if needed
};

// Returns the decision, for which it may have to learn what the launch returns. Raises an error if torch or a strict chip refuses
// the call; nothing has been changed then.
Placement place(const Call& call);

}  // namespace bringup
