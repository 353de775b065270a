#include "launch/plan.h"

#include <torch/library.h>

#include <array>
#include <mutex>
#include <set>
#include <unordered_map>
#include <vector>

#include "python/python.h"

namespace bringup {

std::atomic<bool> plan_in_force{false};

namespace {

// The launches of one entry of the plan. A step calls the group `on_host.size()` times.
struct PlannedGroup {
  std::vector<bool> on_host;
  size_t next = 0;
  int64_t calls = 0;
};

// Where a launch comes from; texts are compared by Python, once for each of these.
struct Origin {
  const void* op;
  void* code;
  int64_t place;
  Phase phase;
  bool operator==(const Origin&) const = default;
};

struct OriginHash {
  size_t operator()(const Origin& origin) const {
    size_t hash = std::hash<const void*>()(origin.op) * 31 + std::hash<void*>()(origin.code);
    return (hash * 31 + std::hash<int64_t>()(origin.place)) * 31 + size_t(origin.phase);
  }
};

struct PlanState {
  std::mutex mutex;
  std::vector<PlannedGroup> groups;
  std::unordered_map<Origin, int64_t, OriginHash> group_of;  // -1: the plan does not name the launch
  int64_t as_planned = 0, without = 0, elsewhere = 0;
  std::array<std::set<std::string>, 2> ops_elsewhere;  // on the chip though planned for the host, and the other way round
};

PlanState& plan_state() {
  static auto* the = new PlanState();
  return *the;
}

int64_t find_group(const std::string& op, Line line) {
  line.backward = false;  // the plan names the forward operator's line
  std::string where = describe(line);
  Gil gil;
  Ref module(PyImport_ImportModule("bringup.placement.apply"));
  Ref number(module ? PyObject_CallMethod(module.get(), "group_of", "(ssii)", op.c_str(), where.c_str(), int(line.module),
                                          int(line.phase))
                    : nullptr);
  if (!number) throw_python_error();
  return PyLong_AsLong(number.get());
}

}  // namespace

Planned planned_side(const std::string& op, const Line& line) {
  Origin origin{&op, line.code, int64_t(uint64_t(uint32_t(line.module)) << 32 | uint32_t(line.instruction)), line.phase};
  PlanState& state = plan_state();
  std::unique_lock<std::mutex> lock(state.mutex);
  auto entry = state.group_of.find(origin);
  if (entry == state.group_of.end()) {
    lock.unlock();
    int64_t number = find_group(op, line);
    lock.lock();
    entry = state.group_of.insert_or_assign(origin, number).first;
  }
  if (entry->second < 0 || size_t(entry->second) >= state.groups.size()) return Planned::Nothing;
  PlannedGroup& group = state.groups[size_t(entry->second)];
  ++group.calls;
  bool on_host = group.on_host[group.next];
  group.next = (group.next + 1) % group.on_host.size();
  return on_host ? Planned::Host : Planned::Chip;
}

void count_planned(const std::string& op, Planned planned, bool on_host) {
  PlanState& state = plan_state();
  std::lock_guard<std::mutex> lock(state.mutex);
  if (planned == Planned::Nothing) {
    ++state.without;
  } else if ((planned == Planned::Host) == on_host) {
    ++state.as_planned;
  } else {
    ++state.elsewhere;
    state.ops_elsewhere[on_host].insert(op);
  }
}

void plan_begins_step() {
  std::lock_guard<std::mutex> lock(plan_state().mutex);
  for (PlannedGroup& group : plan_state().groups) group.next = 0;
}

void forget_lines_of_plan() {
  std::lock_guard<std::mutex> lock(plan_state().mutex);
  plan_state().group_of.clear();
}

namespace {

// `calls`: per group, the calls of a step; `on_host`: of all groups' calls, 1 for the host.
void set_plan(const std::vector<int64_t>& calls, const std::vector<int64_t>& on_host) {
  PlanState& state = plan_state();
  std::lock_guard<std::mutex> lock(state.mutex);
  state.groups.clear();
  state.group_of.clear();
  state.as_planned = state.without = state.elsewhere = 0;
  state.ops_elsewhere = {};
  size_t first = 0;
  for (int64_t count : calls) {
    TORCH_CHECK(count > 0 && first + size_t(count) <= on_host.size(), "the calls of a plan do not add up");
    PlannedGroup group;
    for (size_t i = first; i < first + size_t(count); ++i) group.on_host.push_back(on_host[i] != 0);
    state.groups.push_back(std::move(group));
    first += size_t(count);
  }
  plan_in_force = true;
}

// As planned, without a plan, elsewhere; then the calls of every group.
std::vector<int64_t> plan_counts() {
  PlanState& state = plan_state();
  std::lock_guard<std::mutex> lock(state.mutex);
  std::vector<int64_t> counts{state.as_planned, state.without, state.elsewhere};
  for (const PlannedGroup& group : state.groups) counts.push_back(group.calls);
  return counts;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bringup, m) {
  m.def("set_plan(int[] calls, int[] on_host) -> ()",
        [](const std::vector<int64_t>& calls, const std::vector<int64_t>& on_host) { set_plan(calls, on_host); });
  m.def("end_plan() -> ()", [] { plan_in_force = false; });
  m.def("has_plan() -> bool", [] { return has_plan(); });
  m.def("plan_counts() -> int[]", &plan_counts);
  m.def("ops_elsewhere(bool on_host) -> str[]", [](bool on_host) {
    std::lock_guard<std::mutex> lock(plan_state().mutex);
    const std::set<std::string>& ops = plan_state().ops_elsewhere[on_host];
    return std::vector<std::string>(ops.begin(), ops.end());
  });
}

}  // namespace bringup
