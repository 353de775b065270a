// Finds results that depend on elements of torch.empty's memory that were never written.
#pragma once
#include <functional>
#include <string>

#include "launch/worker.h"

namespace bringup {

// Note [Unwritten memory]
// While the program is sanitized, memory of torch.empty is filled with NaN (integers with bytes 0x7f), and has a mark for each
// byte that was not written since. A launch that only writes removes marks. A launch that reads a marked element runs twice, with
// two values in place of the marked elements. What has two different results depends on them: these results are marked in their
// turn, and remember the read. What is equal in both does not depend on them, as after torch.where. So an operator needs no rule
// of its own, and a masked read is no mistake. A read is reported if the host reads a marked result, or if one remains that no
// launch has read. Marks are set and read in stream order, by the number of an allocation.
extern std::atomic<bool> unwritten_is_watched;
inline bool watching_unwritten() { return unwritten_is_watched.load(std::memory_order_relaxed); }

// Marks new memory as a whole. Called by the factories whose memory is the program's own to fill.
void mark_new(const at::Tensor& tensor);
// Removes the marks of a contiguous tensor: it is overwritten by work that is enqueued next.
void note_overwritten(Stream& stream, const at::Tensor& tensor);
// Reports a read by the host if the contiguous tensor has marks.
void note_download(Stream& stream, const at::Tensor& tensor);
// Ends the watch of a tensor's memory, which is about to be used in ways that are not launches. Waits for the stream.
void stop_watching(const at::Tensor& tensor);
void note_freed(int64_t allocation);

// Runs a launch (on the worker): once, or twice if it reads marked elements.
void run_watched(Launch& launch, const std::function<void()>& execute);
// Gives the marks of a waiting launch's result to the tensor that it is copied to.
void move_marks(const Launch& launch, const at::Tensor& result, const at::Tensor& placed);

}  // namespace bringup
