// Dry runs: launches are recorded and allocate, and nothing is computed but small integers. See dry.cpp, Note [What a dry
// run computes].
#pragma once
#include <atomic>

#include "launch/worker.h"
#include "runtime/memory.h"

namespace bringup {

extern std::atomic<int> dry_contexts;  // they nest
inline bool is_dry() { return dry_contexts.load(std::memory_order_relaxed) > 0; }

// What is known of a tensor's content? On the CPU all; on the chip it is noted with its block of memory.
Content dry_content(const at::Tensor& tensor);
void set_dry_content(const at::Tensor& tensor, Content content);
// Would it be computed, if all that it follows from were known? Integers and booleans, while they are small.
bool dry_computes(const at::Tensor& tensor);
// Bytes of unknown dtype that a dry run does not copy.
bool is_dry_copy(size_t bytes);

// What a launch that has a known signature does to known memory, once its outputs are allocated.
void compute_known(const SignaturePtr& signature, Stream& stream, const Slots& slots, const c10::IValue* arguments,
                   at::ArrayRef<at::Tensor> outputs);

// What an operator reads, at worst; `replaced`: in place of unknown memory it gets stand-ins.
Content replace_unknown(Launch& launch, const Slots& slots, bool replaced);
c10::IValue stand_in_value(const c10::IValue& of);

// Fills a CPU tensor that the program reads.
void fill_stand_in(const at::Tensor& tensor);
// Warns, once per Python line, that a read got a stand-in; raises if the dry run is strict.
void notice_read(const std::string& what);

}  // namespace bringup
