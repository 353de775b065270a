// The plan of a placement: which launches and uploads run on the host. See docs/placement.md.
#pragma once
#include <atomic>
#include <string>

#include "python/lines.h"

namespace bringup {

extern std::atomic<bool> plan_in_force;
inline bool has_plan() { return plan_in_force.load(std::memory_order_relaxed); }

enum class Planned : uint8_t { Nothing, Chip, Host };

// What the plan says of the next launch of an operator at a line; "upload" is the operator of copies to the chip. Each call
// counts: a group of launches may be divided by the numbers of its calls in a step.
Planned planned_side(const std::string& op, const Line& line);
// Counts a launch by whether it ran where the plan puts it, and keeps its operator's name if it did not.
void count_planned(const std::string& op, Planned planned, bool on_host);
void plan_begins_step();
void forget_lines_of_plan();  // The numbers of modules have changed.

}  // namespace bringup
