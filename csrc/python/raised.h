// An error that Python raised in a kernel, on its way to a user's thread.
#pragma once
#include <c10/util/Exception.h>

#include <cstdint>
#include <memory>
#include <string>

namespace bringup {

// Note [Python's errors cross the core by number]
// Any thread may drop a failure, also while the interpreter exits, when the GIL cannot be taken. So the core holds no Python
// object for it. The exception stays on Python's side (bringup.triton.launcher) under a number. When the last copy of an error is
// dropped, its number is listed, and Python drops the exception when the next kernel fails. A user's thread raises the exception
// by calling an operator that Python implements: the dispatcher carries it, so its type and its attributes survive.
class PythonError final : public c10::Error {
 public:
  PythonError(int64_t number, const std::string& text);

  // Raises the Python exception, with this error's context. Returns in threads without Python, where only the text can be thrown.
  void raise_in_python() const;

 private:
  std::shared_ptr<const int64_t> number_;
};

}  // namespace bringup
