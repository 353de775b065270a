// What the program itself asks to wait for, while its clocks show the chip's time.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace bringup {

// What a row of kind Host waited for, in its flags. The numbers are in trace files: append only.
enum class WaitFor : uint8_t { Time, Descriptor, Process, Lock };

void watch_waits(bool on, const std::vector<std::string>& left_alone);  // folders of libraries that are not watched
void watch_new_libraries();

// The signal that the current thread was started with, once; 0: none.
void settle_interrupted();  // before somebody reads the recording: a wait of this thread that a signal ended
int64_t take_start_signal();
// The recording's number of the thread that the current one works for: of autograd's threads the one that runs backward;
// -1: it works for itself.
int32_t works_for();

// What the current thread waits for in this scope is not the program's: it computes in the place of the chip.
class WaitsAside {
 public:
  WaitsAside();
  ~WaitsAside();
};

}  // namespace bringup
