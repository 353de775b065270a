// Dry runs: launches are recorded and allocate memory, but only small integers are computed. See dry.cpp, Note [What a dry run
// computes].
#pragma once
#include <atomic>

#include "launch/worker.h"
#include "runtime/memory.h"

namespace bringup {

extern std::atomic<int> dry_contexts;  // the number of nested dry runs
inline bool is_dry() { return dry_contexts.load(std::memory_order_relaxed) > 0; }

// How much is known about a tensor's content. CPU tensors are known; for chip tensors it is stored with the block of memory.
Content dry_content(const at::Tensor& tensor);
void set_dry_content(const at::Tensor& tensor, Content content);
// True if a dry run computes this tensor when its inputs are known: integers and booleans of limited size.
bool dry_computes(const at::Tensor& tensor);
// True if a dry run omits a copy of so many bytes.
bool is_dry_copy(size_t bytes);

// Computes the results of a launch that a dry run computes, or fills them with stand-ins. Its outputs are allocated already.
void compute_known(const SignaturePtr& signature, Stream& stream, const Slots& slots, const c10::IValue* arguments,
                   at::ArrayRef<at::Tensor> outputs);

// Returns the least known content among an operator's inputs. With `replaced`, unknown inputs are replaced by stand-ins.
Content replace_unknown(Launch& launch, const Slots& slots, bool replaced);
c10::IValue stand_in_value(const c10::IValue& value);

// Fills a CPU tensor that the program reads.
void fill_stand_in(const at::Tensor& tensor);
// Warns, once per Python line, that the program reads a stand-in. Raises an error if the dry run is strict.
void notice_read(const std::string& what);

}  // namespace bringup
