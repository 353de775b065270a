// Operators whose kernel for the chip the program brings, with torch.library.
#include <torch/library.h>

#include <vector>

#include "launch/launch.h"
#include "record/recorder.h"

namespace bringup {

using c10::IValue;

// Note [Rows of overridden operators]
// torch's dispatcher calls the program's kernel instead of launch_boxed, which records launches. So device/overrides.py wraps the
// kernel: it first sends the call to the dispatch key kArguments, whose kernel only keeps the arguments, and sends the results to
// `end_override` afterwards. The operator then gets a row, unless the kernel has launched others: those are its work.
namespace {

constexpr c10::DispatchKey kArguments = c10::DispatchKey::PrivateUse3;  // no tensor of the chip has it

struct Overridden {
  Op* op;
  std::vector<IValue> arguments;
  Line line;
  int64_t launches;  // of this thread before it
};

std::vector<Overridden>& open_overrides() {
  static thread_local std::vector<Overridden> open;
  return open;
}

void keep_arguments(const c10::OperatorHandle& handle, Stack* stack) {
  Op& op = find_op(handle);
  open_overrides().push_back({&op, torch::jit::last(*stack, op.args.size()).vec(), current_line(), launches_of_thread()});
  torch::jit::drop(*stack, op.args.size());
  for (size_t i = 0; i < op.returns.size(); ++i) stack->emplace_back();
}

// Adds the kernel; an operator may be overridden several times.
void watch_override(const std::string& name) {
  static auto* libraries = new std::vector<std::unique_ptr<torch::Library>>();
  std::string space = name.substr(0, name.find("::"));
  libraries->push_back(std::make_unique<torch::Library>(torch::Library::IMPL, space, kArguments, __FILE__, __LINE__));
  libraries->back()->impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&keep_arguments>());
}

void end_override(const std::vector<at::Tensor>& results, bool succeeded) {
  Overridden call = std::move(open_overrides().back());
  open_overrides().pop_back();
  Op& op = *call.op;
  if (!succeeded || !recording() || op.is_view || launches_of_thread() != call.launches) return;
  Slots slots;
  collect(op, call.arguments.data(), slots);
  c10::DeviceIndex index = -1;
  for (const Slot& slot : slots)
    if (on_chip(*slot.tensor)) index = slot.tensor->device().index();
  for (const at::Tensor& result : results)
    if (index < 0 && on_chip(result)) index = result.device().index();
  if (index < 0) return;
  SignaturePtr signature = intern(op, slots, call.arguments.data());
  LaunchRow row{*signature, call.arguments.data(), current_stream(index), call.line, {}, {}};
  row.storages.resize(signature->storage_written.size());
  for (size_t i = 0; i < slots.size(); ++i)
    if (signature->storage_of[i] >= 0) row.storages[size_t(signature->storage_of[i])] = storage_of(*slots[i].tensor);
  Stack returned;
  size_t next = 0;
  for (const ReturnInfo& info : op.returns) {
    bool is_fresh = info.kind == ReturnInfo::Fresh && next < results.size();
    if (info.kind == ReturnInfo::FreshList)
      returned.emplace_back(std::vector<at::Tensor>(results.begin() + std::ptrdiff_t(next), results.end()));
    else
      returned.emplace_back(is_fresh ? IValue(results[next++]) : IValue());
  }
  for (const at::Tensor& result : results)
    if (on_chip(result)) row.outputs.push_back(storage_of(result).address);
  record_launch(row, 0, &returned);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bringup, m) {
  m.def("watch_override(str name) -> ()", [](std::string name) { watch_override(name); });
  m.def("end_override(Tensor[] results, bool succeeded) -> ()",
        [](std::vector<at::Tensor> results, bool succeeded) { end_override(results, succeeded); });
}

}  // namespace bringup
