// The C++ core as one translation unit: torch's headers are read once, which halves the time of a cold build.
#define USE_KINETO
#define FMT_HEADER_ONLY
#include "lines.cpp"
#include "runtime.cpp"
#include "memory.cpp"
#include "generator.cpp"
#include "launch.cpp"
#include "ops.cpp"
#include "torch.cpp"
#include "autocast.cpp"
#include "profiler.cpp"
#include "bindings.cpp"
