#include "runtime/failures.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <mutex>
#include <typeinfo>
#include <unordered_map>

#include "python/raised.h"
#include "runtime/runtime.h"

namespace bringup {

std::atomic<int> marked_allocations{0};

namespace {

struct Marks {
  std::mutex mutex;
  std::unordered_map<int64_t, FailurePtr> by_allocation;  // the failure that marked an allocation
};

Marks& marks() {
  static auto* all = new Marks();
  return *all;
}

std::string count(int number, const char* one, const char* many) {
  return std::to_string(number) + " " + (number == 1 ? one : many);
}

// If the error is of this kind, throws a copy with the context. The original is shared: other threads may be reading it.
template <class Kind>
void throw_copy_as(const c10::Error& error, const std::string& context) {
  auto* same = dynamic_cast<const Kind*>(&error);
  if (!same) return;
  Kind copy(*same);
  copy.add_context(context);
  throw copy;
}

[[noreturn]] void throw_with(const FailurePtr& failure, const std::string& context, bool to_program = true) {
  try {
    std::rethrow_exception(failure->error);
  } catch (const PythonError& error) {
    PythonError copy(error);
    if (!context.empty()) copy.add_context(context);
    if (to_program) copy.raise_in_python();
    throw copy;
  } catch (const c10::Error& error) {
    if (context.empty()) throw;
    throw_copy_as<c10::OutOfMemoryError>(error, context);
    throw_copy_as<c10::NotImplementedError>(error, context);
    throw_copy_as<c10::IndexError>(error, context);
    throw_copy_as<c10::ValueError>(error, context);
    throw_copy_as<c10::TypeError>(error, context);
    throw_copy_as<c10::LinAlgError>(error, context);
    if (typeid(error) == typeid(c10::Error)) throw_copy_as<c10::Error>(error, context);
    throw;
  }
}

}  // namespace

void raise_first(const std::vector<FailurePtr>& failures, bool to_program) {
  std::vector<FailurePtr> mine;
  for (const FailurePtr& failure : failures)
    if (failure && !failure->raised.exchange(true)) mine.push_back(failure);
  if (mine.empty()) return;
  std::sort(mine.begin(), mine.end(), [](const auto& a, const auto& b) { return a->launch < b->launch; });
  int others = int(mine.size()) - 1, skipped = 0;
  for (const FailurePtr& failure : mine) {
    failure->raised_at = counters().launches.load();
    others += failure->others;
    skipped += failure->skipped;
  }
  std::string context;
  if (others > 0) context = "and " + count(others, "other launch failed", "other launches failed");
  if (skipped > 0)
    context += (others > 0 ? "; " : "") + count(skipped, "launch", "launches") + " that needed a result of it did not run";
  throw_with(mine[0], context, to_program);
}

void raise_again(const FailurePtr& failure) {
  raise_first({failure});
  throw_with(failure, "");
}

void mark(Allocations allocations, const FailurePtr& failure) {
  std::lock_guard<std::mutex> lock(marks().mutex);
  for (int64_t allocation : allocations)
    if (allocation) marks().by_allocation[allocation] = failure;
  marked_allocations = int(marks().by_allocation.size());
}

void unmark(int64_t allocation) {
  if (!any_marked()) return;
  std::lock_guard<std::mutex> lock(marks().mutex);
  marks().by_allocation.erase(allocation);
  marked_allocations = int(marks().by_allocation.size());
}

FailurePtr mark_of(Allocations allocations, int64_t launch) {
  if (!any_marked()) return nullptr;
  std::lock_guard<std::mutex> lock(marks().mutex);
  for (int64_t allocation : allocations) {
    auto entry = marks().by_allocation.find(allocation);
    if (entry == marks().by_allocation.end()) continue;
    if (!entry->second->raised || launch <= entry->second->raised_at) return entry->second;
  }
  return nullptr;
}

FailurePtr raised_mark_of(int64_t allocation) {
  if (!any_marked()) return nullptr;
  std::lock_guard<std::mutex> lock(marks().mutex);
  auto entry = marks().by_allocation.find(allocation);
  return entry != marks().by_allocation.end() && entry->second->raised ? entry->second : nullptr;
}

void forget_raised() {
  if (!any_marked()) return;
  std::lock_guard<std::mutex> lock(marks().mutex);
  std::erase_if(marks().by_allocation, [](const auto& item) { return item.second->raised.load(); });
  marked_allocations = int(marks().by_allocation.size());
}

}  // namespace bringup
