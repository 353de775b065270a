// Note [Autograd's threads at exit]
// A backward pass ends for the program before autograd's thread has dropped the graph task, which owns a Python object
// (torch.autograd.graph stashes the caller's context). Without the GIL the thread waits there. If Python finalizes meanwhile, it
// ends the thread inside a destructor, and the process aborts: "terminate called without an active exception". A pass of nothing
// on the same thread ends after the thread has dropped everything of earlier ones, and its own task owns no Python object.
#include "torch/autograd_threads.h"

#include <torch/csrc/autograd/autograd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "python/python.h"
#include "runtime/runtime.h"

namespace bringup {
namespace {

// autograd starts its threads in the first pass on a device, and names them so.
bool autograd_has_threads() {
  std::error_code error;
  for (const auto& thread : std::filesystem::directory_iterator("/proc/self/task", error)) {
    std::string name;
    std::getline(std::ifstream(thread.path() / "comm"), name);
    if (name.rfind("pt_autograd", 0) == 0) return true;
  }
  return false;
}

}  // namespace

void wait_for_autograd() {
  if (forked() || !opened() || !autograd_has_threads()) return;
  c10::InferenceMode with_autograd(false);
  for (int index = 0; index < device_count(); ++index) {
    if (!opened(index)) continue;
    try {
      at::Tensor nothing = at::empty({0}, at::TensorOptions(c10::Device(kChip, c10::DeviceIndex(index)))).requires_grad_();
      ReleaseGil no_gil;
      torch::autograd::grad({nothing}, {nothing}, {nothing.detach()});
    } catch (const c10::Error&) {  // a device that failed: `shutdown` reports it
    }
  }
}

}  // namespace bringup
