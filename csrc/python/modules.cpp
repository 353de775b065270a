#include "python/modules.h"

#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "launch/plan.h"
#include "python/python.h"

namespace bringup {
namespace {

struct ModuleWatch {
  std::atomic<const ModuleTargets*> targets{nullptr};
  std::mutex mutex;
  std::deque<ModuleTargets> history;  // never freed: a thread may still read the targets of an earlier recording
  std::unordered_map<void*, int32_t> names;
  std::atomic<uint64_t> forgotten{0};
};

ModuleWatch& module_watch() {
  static auto* the = new ModuleWatch();
  return *the;
}

int32_t name_module(const std::vector<void*>& chain) {  // innermost first
  Gil gil;
  Ref modules(PyTuple_New(ssize_t(chain.size())));
  for (size_t i = 0; i < chain.size(); ++i)
    PyTuple_SetItem(modules.get(), ssize_t(i), Ref::share(static_cast<PyObject*>(chain[i])).release());
  Ref module(PyImport_ImportModule("bringup.recording.modules"));
  Ref number(module ? PyObject_CallMethod(module.get(), "number_of", "(O)", modules.get()) : nullptr);
  int32_t name = number ? int32_t(PyLong_AsLong(number.get())) : -1;
  PyErr_Clear();
  return name;
}

}  // namespace

bool ModuleTargets::is_optimizer(void* code) const {
  return std::find(optimizer.begin(), optimizer.end(), code) != optimizer.end();
}

const ModuleTargets* module_targets() { return module_watch().targets.load(std::memory_order_acquire); }

int32_t number_of_module(void* innermost, c10::function_ref<std::vector<void*>()> chain) {
  struct Last {
    void* module = nullptr;
    int32_t number = -1;
    uint64_t forgotten = 0;
  };
  static thread_local Last last;
  uint64_t forgotten = module_watch().forgotten.load(std::memory_order_relaxed);
  if (last.module == innermost && last.forgotten == forgotten) return last.number;
  {
    std::lock_guard<std::mutex> lock(module_watch().mutex);
    auto name = module_watch().names.find(innermost);
    if (name != module_watch().names.end()) {
      last = {innermost, name->second, forgotten};
      return last.number;
    }
  }
  int32_t number = name_module(chain());
  std::lock_guard<std::mutex> lock(module_watch().mutex);
  if (module_watch().forgotten == forgotten)
    module_watch().names[innermost] = number;  // Otherwise the number may belong to an earlier recording.
  last = {innermost, number, forgotten};
  return number;
}

void watch_modules(int64_t call, const std::vector<int64_t>& optimizer) {
  std::lock_guard<std::mutex> lock(module_watch().mutex);
  module_watch().targets = nullptr;
  module_watch().names.clear();
  ++module_watch().forgotten;
  forget_lines_of_plan();
  if (!call) return;
  ModuleTargets targets{reinterpret_cast<void*>(call), {}};
  for (int64_t code : optimizer) targets.optimizer.push_back(reinterpret_cast<void*>(code));
  auto& history = module_watch().history;
  auto same = std::find(history.begin(), history.end(), targets);
  module_watch().targets.store(same == history.end() ? &history.emplace_back(std::move(targets)) : &*same,
                               std::memory_order_release);
}

void forget_module(int64_t address) {
  std::lock_guard<std::mutex> lock(module_watch().mutex);
  module_watch().names.erase(reinterpret_cast<void*>(address));
  ++module_watch().forgotten;
}

TORCH_LIBRARY_FRAGMENT(bringup, m) {
  m.def("watch_modules(int call, int[] optimizer) -> ()",
        [](int64_t call, const std::vector<int64_t>& optimizer) { watch_modules(call, optimizer); });
  m.def("forget_module(int address) -> ()", &forget_module);
}

}  // namespace bringup
