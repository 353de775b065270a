// Records the program's own waits while its clocks show the chip's time.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace bringup {

// The cause of a wait, in the flags of a Host row. Trace files contain the numbers, so only append.
enum class WaitFor : uint8_t { Time, Descriptor, Process, Lock };

void watch_waits(bool on, const std::vector<std::string>& left_alone);  // `left_alone`: folders of libraries not to watch
void watch_new_libraries();

void settle_interrupted();  // Records a wait of this thread that a signal ended. Called before the recording is read.
// Returns the signal with which the current thread was started, at the first call only; 0 if there is none.
int64_t take_start_signal();
// If the current thread is one of autograd's, returns the recording's number of the thread that runs the backward pass; else -1.
int32_t works_for();

// Waits of the current thread in this scope are not recorded, since it computes in place of the chip.
class WaitsAside {
 public:
  WaitsAside();
  ~WaitsAside();
};

}  // namespace bringup
