// Calls that torch's CPU kernel refuses are refused at the call, before anything is changed.
#pragma once
#include "launch/signature.h"

namespace bringup {

enum class Verdict {
  Legal,
  Doubtful,  // the trial failed, so the launch itself decides
  Unlike,    // the CPU kernel returns something else than torch's meta kernel promises
};

// Tries a call of a new signature (see probe.cpp). `results` are what the meta kernel promises; they become what the CPU kernel
// returned. Throws the kernel's error if it refuses the dtypes. In a dry run, where no launch follows, it also throws errors
// about shapes.
Verdict judge(const Signature& signature, const Slots& slots, const c10::IValue* arguments, Results& results);
// Notes that the kernel has accepted a doubtful call, and the layout of what it returned.
void accept(Signature& signature, const c10::IValue* arguments, const Results& returned);

}  // namespace bringup
