// torch's switches for CUDA programs: deterministic algorithms, and the debug mode for synchronising operations.
#pragma once
#include <string>

#include "launch/launch.h"

namespace bringup {

// Raises torch's error, or warns, if torch.use_deterministic_algorithms is on, the program says cuda, and CUDA's kernel for this
// call is not deterministic.
void refuse_nondeterministic(const Call& call);
void alert_nondeterministic(const char* kernel);  // the same for a kernel by name

// torch.cuda.set_sync_debug_mode: 0 is off, 1 warns, 2 raises.
void set_sync_debug_mode(int64_t mode);
int64_t sync_debug_mode();
// Called before the host waits for the device on the program's behalf.
void alert_wait();
// Flags of the call's row: kHostIndex if an argument is a host tensor with dimensions, kWaits if CUDA waits for the indices: it
// counts the elements of a mask first, and uploads an index of the host.
uint8_t index_flags(const Call& call);
bool waits_for_result(const Call& call);  // True if CUDA waits for the kernel, because its result has a size or value to read
void alert_wait(const Call& call, bool fallback);  // if CUDA would synchronise for this call

}  // namespace bringup
