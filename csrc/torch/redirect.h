// Programs that say cuda.
#pragma once
#include <c10/core/Device.h>

#include <string>

namespace bringup {

bool named_cuda();                           // True if "cuda" means the chip in this process.
std::string shown_name(c10::Device device);  // as the program calls it: "cuda:0" or "chip:0"

}  // namespace bringup
