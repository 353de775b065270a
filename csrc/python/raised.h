// An error that Python raised in a function that the core called, on its way to a user's thread.
#pragma once
#include <c10/util/Exception.h>

#include <cstdint>
#include <memory>
#include <string>

namespace bringup {

// Note [Python's errors cross the core by number]
// Any thread may drop a failure, even while the interpreter exits and the GIL cannot be acquired. So the core holds no Python
// object for it: bringup.device.raised keeps the exception under a number. When the last copy of a PythonError is destroyed, its
// number is listed, and Python drops the exception when it keeps the next one. A user's thread raises the exception by calling an
// operator that Python implements. The dispatcher carries the exception, so its type and attributes survive.
class PythonError final : public c10::Error {
 public:
  PythonError(int64_t number, const std::string& text);

  // Raises the Python exception with this error's context. Returns in threads without Python, where only the text can be thrown.
  void raise_in_python() const;

 private:
  std::shared_ptr<const int64_t> number_;
};

// Calls `f`, which holds the GIL in a scope of its own, and raises its PythonError as the Python exception.
template <class F>
auto raising_in_python(F f) {
  try {
    return f();
  } catch (const PythonError& error) {
    error.raise_in_python();
    throw;
  }
}

}  // namespace bringup
