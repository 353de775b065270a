// What differs between the releases of torch that the core compiles against: 2.10 to 2.15.
#pragma once
#include <torch/headeronly/version.h>

// Of functions that torch's base classes have since 2.11.
#if TORCH_VERSION_MINOR >= 11
#define BRINGUP_OVERRIDE_2_11 override
#else
#define BRINGUP_OVERRIDE_2_11
#endif
