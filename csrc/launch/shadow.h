// The shadow of a driver's kernels: each launch runs on the CPU, too, and the results are compared.
#pragma once
#include <functional>
#include <string>

#include "launch/worker.h"

namespace bringup {

bool shadowing();

// Launches a kernel by `launch_kernel`, and enqueues the comparison with the CPU around it, in stream order.
void launch_shadowed(const Launch& launch, const std::function<void()>& launch_kernel);

// Counts a launch that the driver leaves to the host.
void shadow_refused(const Launch& launch, const std::string& reason);

// Counts a launch that draws random numbers, on the device or on the host: they are not those of a program on the CPU.
void shadow_drawn();

// Writes into a file, during this object's life, what the driver is doing: it may end the process, or never return.
class Named {
 public:
  Named(const char* activity, const Launch& launch);
  Named(const Named&) = delete;
  ~Named();
};

}  // namespace bringup
