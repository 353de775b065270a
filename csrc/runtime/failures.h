// A failed launch on its way to a user's thread, and the memory whose content it did not compute.
#pragma once
#include <c10/util/ArrayRef.h>

#include <atomic>
#include <exception>
#include <memory>
#include <vector>

namespace bringup {

// A failure is raised once, even if several streams carry it.
struct Failure {
  std::exception_ptr error;
  int64_t launch;  // number of the launch; of several failures, the one with the lowest number is raised
  std::atomic<bool> raised{false};
  std::atomic<int64_t> raised_at{0};  // number of the latest launch when it was raised
  std::atomic<int> others{0};         // later failures on its stream
  std::atomic<int> skipped{0};        // launches that did not run since they needed one of its results
};
using FailurePtr = std::shared_ptr<Failure>;

// Throws the first failure that has not been raised, if any. Its text counts the others, which are raised with it. With
// `to_program`, an error from Python is raised as its original exception; without, only its text is thrown.
void raise_first(const std::vector<FailurePtr>& failures, bool to_program = true);
// Throws this failure even if it was raised before, since the caller needs one of its results.
[[noreturn]] void raise_again(const FailurePtr& failure);

// Note [What depends on a failed launch does not run]
// The outputs of a failed launch were never computed. A later launch that reads them would overwrite tensors of the program with
// invalid values before the failure is raised. So the memory that a failed launch should have written is marked. A launch that
// reads marked memory does not run, and its outputs are marked. A mark ends when the failure has been raised and all launches
// issued before that have ended. Memory is identified by the number of its allocation, so the next owner of an address is not
// affected. Without failures, this costs one read of a counter per launch.
using Allocations = c10::ArrayRef<int64_t>;  // numbers of allocations; 0 for memory that is not the chip's
extern std::atomic<int> marked_allocations;
inline bool any_marked() { return marked_allocations.load(std::memory_order_acquire) > 0; }
void mark(Allocations allocations, const FailurePtr& failure);
void unmark(int64_t allocation);  // It was overwritten as a whole.
// Returns the failure that keeps the launch of this number from reading these allocations; null if it may read them.
FailurePtr mark_of(Allocations allocations, int64_t launch);
// Returns the failure that marked this allocation, if it has been raised. Work issued from now on may read such memory.
FailurePtr raised_mark_of(int64_t allocation);
// Removes the marks of failures that have been raised. Called when no launch is pending.
void forget_raised();

}  // namespace bringup
