// A failed launch on its way to a user's thread, and the memory that it left without its results.
#pragma once
#include <c10/util/ArrayRef.h>

#include <atomic>
#include <exception>
#include <memory>
#include <vector>

namespace bringup {

// Raised once, whatever streams it has travelled to.
struct Failure {
  std::exception_ptr error;
  int64_t launch;  // number of the launch: of several failures the first launch's is raised
  std::atomic<bool> raised{false};
  std::atomic<int64_t> raised_at{0};  // launches under way
  std::atomic<int> others{0};         // later failures on its stream
  std::atomic<int> skipped{0};        // launches that needed a result of it and did not run
};
using FailurePtr = std::shared_ptr<Failure>;

// Throws the first of those that were not raised yet, if any, with the number of the others, which count as raised with it. An
// error of Python's becomes its exception where it goes `to_program`; otherwise it is thrown with its text.
void raise_first(const std::vector<FailurePtr>& failures, bool to_program = true);
// Throws this one, even if it was raised before: the caller needs a result of it.
[[noreturn]] void raise_again(const FailurePtr& failure);

// Note [What depends on a failed launch does not run]
// The results of a failed launch are memory that was never computed. A later launch that reads it would compute nonsense
// and write it over the program's tensors before anybody hears of the failure. So memory that a failed launch should have
// written is marked, launches that read marked memory do not run and mark what they should have written, and so on, until
// the failure was raised and every launch issued before that is over. Memory is known by the number of its allocation, so
// that whoever gets an address next is not concerned. As long as nothing has failed, all this costs one look at a counter.
using Allocations = c10::ArrayRef<int64_t>;  // numbers; 0: not an allocation of the chip
extern std::atomic<int> marked_allocations;
inline bool any_marked() { return marked_allocations.load(std::memory_order_acquire) > 0; }
void mark(Allocations allocations, const FailurePtr& failure);
void unmark(int64_t allocation);  // it was overwritten
// The failure that a launch of this number has to leave alone; null if it may read all of these.
FailurePtr mark_of(Allocations allocations, int64_t launch);
// The failure that left this allocation without its content, if it has been raised: what is issued now may read it.
FailurePtr raised_mark_of(int64_t allocation);
// Every launch is over: marks of failures that were raised are of no use any more.
void forget_raised();

}  // namespace bringup
