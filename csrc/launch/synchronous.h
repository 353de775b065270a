// Launches that the host waits for.
#pragma once
#include "launch/launch.h"

namespace bringup {

// For launches whose results' metadata is not known before: it depends on data, or is learned by this launch.
// `planned`: a plan puts it on the host.
void run_synchronously(const Call& call, bool planned);
// For launches that the chip does not support.
void run_on_host(const Call& call);

}  // namespace bringup
