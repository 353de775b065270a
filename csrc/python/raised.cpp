#include "python/raised.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <mutex>
#include <utility>
#include <vector>

#include "python/python.h"

namespace bringup {
namespace {

struct Dropped {
  std::mutex mutex;
  std::vector<int64_t> numbers;  // of exceptions that nothing will raise any more
};

Dropped& dropped() {
  static auto* all = new Dropped();
  return *all;
}

void drop(const int64_t* number) {
  std::lock_guard<std::mutex> lock(dropped().mutex);
  dropped().numbers.push_back(*number);
  delete number;
}

std::vector<int64_t> take_dropped() {
  std::lock_guard<std::mutex> lock(dropped().mutex);
  return std::exchange(dropped().numbers, {});
}

}  // namespace

PythonError::PythonError(int64_t number, const std::string& text)
    : c10::Error(c10::SourceLocation{"", "", 0}, text), number_(new int64_t(number), &drop) {}

void PythonError::raise_in_python() const {
  if (!is_python_thread()) return;
  static auto raise =
      c10::Dispatcher::singleton().findSchemaOrThrow("bringup::raise_error", "").typed<void(int64_t, const std::string&)>();
  // The program's modes must not see this call.
  c10::impl::ExcludeDispatchKeyGuard without_modes(
      c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot,
                           c10::DispatchKey::FuncTorchDynamicLayerFrontMode, c10::DispatchKey::FuncTorchDynamicLayerBackMode}));
  raise.call(*number_, std::string(what_without_backtrace()).substr(msg().size()));
}

TORCH_LIBRARY_FRAGMENT(bringup, m) {
  m.def("raise_error(int number, str context) -> ()");
  m.def("dropped_errors() -> int[]", &take_dropped);
}

}  // namespace bringup
