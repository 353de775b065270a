// Launches that the host waits for.
#pragma once
#include "launch/launch.h"

namespace bringup {

// What comes back is not known before: it depends on data, or torch's meta kernel does not say, and is learned here.
void run_synchronously(const Call& call);
// The chip leaves it to the host.
void run_on_host(const Call& call);

}  // namespace bringup
