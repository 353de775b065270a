#pragma once

namespace bringup {

// Waits until autograd's threads hold nothing of a backward pass that has ended. Call it before Python finalizes, see the .cpp
// file.
void wait_for_autograd();

}  // namespace bringup
