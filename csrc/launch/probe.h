// What torch's CPU kernel refuses is refused at the call, before anything was changed.
#pragma once
#include "launch/signature.h"

namespace bringup {

enum class Verdict {
  Legal,
  Doubtful,  // the try failed: the launch itself has to tell
  Unlike,    // it returns something else than torch's meta kernel promises
};

// Tries a call that was never launched, see probe.cpp. `results` are those that the meta kernel promises; they become
// those that the kernel returned. Throws what the kernel said of the dtypes; in a dry run, where no launch tells, of the
// shapes too.
Verdict judge(const Signature& signature, const Slots& slots, const c10::IValue* arguments, Results& results);
// The kernel itself has accepted a doubtful call.
void accept(Signature& signature, const c10::IValue* arguments);

}  // namespace bringup
