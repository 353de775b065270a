// Adds the device's rows to torch.profiler.
#pragma once
#include <atomic>
#include <cstdint>
#include <string>

#include "runtime/runtime.h"

namespace bringup {

extern std::atomic<bool> profiling_now;
inline bool profiling() { return profiling_now.load(std::memory_order_relaxed); }
int64_t profiler_now();          // the profiler's clock, in nanoseconds
int64_t profiler_correlation();  // the number of the CPU operator that launches
void profiler_record(const std::string& name, const Stream& stream, int64_t start, int64_t end, int64_t correlation);
// Notes which CPU operator has recorded a row. A profile that ends under the same recording shows the predicted times of its
// rows.
void profiler_note_row(size_t row);
void register_profiler();

}  // namespace bringup
