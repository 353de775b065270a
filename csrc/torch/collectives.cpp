// torch.distributed: gloo runs collectives on CPU tensors over the chip's memory.
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <functional>
#include <mutex>
#include <unordered_map>

#include "runtime/runtime.h"
#include "torch/views.h"

namespace bringup {
namespace {

using c10::IValue;
using Lent = std::unordered_map<const void*, at::Tensor>;  // CPU tensor -> chip tensor

IValue map_tensors(const IValue& value, const std::function<at::Tensor(const at::Tensor&)>& map) {
  if (value.isTensor()) return map(value.toTensor());
  if (value.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(map(tensor));
    return list;
  }
  if (!value.isList() || value.toList().empty() || !value.toListRef()[0].isTensorList()) return value;
  c10::List<c10::List<at::Tensor>> lists;  // one per process
  for (const IValue& element : value.toListRef()) lists.push_back(map_tensors(element, map).toTensorList());
  return lists;
}

// A group that torch knows under a backend for devices only, such as nccl, and the group with gloo that stands in for it.
struct StandIns {
  std::mutex mutex;
  std::unordered_map<const void*, IValue> of_group;
};

StandIns& stand_ins() {
  static auto* all = new StandIns();
  return *all;
}

const void* identity(const IValue& group) { return group.toObjectRef().getSlot(0).toCapsule().get(); }

// Puts the stand-in in place of the call's group. False if it has none.
bool replace_group(const c10::OperatorHandle& op, IValue* arguments) {
  auto index = op.schema().argumentIndexWithName("process_group");
  if (!index) return false;
  std::lock_guard<std::mutex> lock(stand_ins().mutex);
  auto entry = stand_ins().of_group.find(identity(arguments[*index]));
  if (entry == stand_ins().of_group.end()) return false;
  arguments[*index] = entry->second;
  return true;
}

// NCCL only looks at the numbers of elements in these collectives, gloo at the shapes.
bool ignores_shapes(const std::string& name) {
  return name.find("_base_") != std::string::npos || name.find("into_tensor") != std::string::npos;
}

void set_stand_in(const c10::OperatorHandle&, torch::jit::Stack* stack) {
  IValue other = torch::jit::pop(*stack), group = torch::jit::pop(*stack);
  std::lock_guard<std::mutex> lock(stand_ins().mutex);
  stand_ins().of_group[identity(group)] = other;
}

// Waits for earlier launches first. On a real device, the network's driver does so.
void collective(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  Lent lent;
  auto arguments = op.schema().arguments().size();
  bool flat = replace_group(op, &*(stack->end() - std::ptrdiff_t(arguments))) && ignores_shapes(op.schema().name());
  auto lend = [&](const at::Tensor& tensor) {
    if (!tensor.defined() || tensor.device().type() != kChip) return tensor;
    settle_stream(tensor.device().index());
    at::Tensor view = host_view(tensor);
    if (flat && view.is_contiguous()) view = view.view({-1});
    lent.emplace(view.unsafeGetTensorImpl(), tensor);
    return view;
  };
  auto give_back = [&](const at::Tensor& tensor) {
    auto entry = lent.find(tensor.unsafeGetTensorImpl());
    return entry == lent.end() ? tensor : entry->second;
  };
  std::vector<IValue> held;  // keeps the tensors alive whose addresses are in `lent`
  for (size_t i = stack->size() - arguments; i < stack->size(); ++i) {
    (*stack)[i] = (*stack)[i].isObject() ? (*stack)[i] : map_tensors((*stack)[i], lend);
    held.push_back((*stack)[i]);
  }
  op.callBoxed(stack);
  for (size_t i = stack->size() - op.schema().returns().size(); i < stack->size(); ++i)
    (*stack)[i] = map_tensors((*stack)[i], give_back);
}

struct Quiet final : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

}  // namespace

// Replaces c10d's kernels for the chip's dispatch key, which need a backend that supports the chip.
void register_collectives() {
  static auto* library = new torch::Library(torch::Library::IMPL, "c10d", c10::DispatchKey::PrivateUse1, __FILE__, __LINE__);
  Quiet quiet;
  c10::WarningUtils::WarningHandlerGuard no_warning(&quiet);
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const auto& name : dispatcher.getAllOpNames()) {
    auto op = name.name.compare(0, 6, "c10d::") == 0 ? dispatcher.findSchema(name) : std::nullopt;
    if (op && op->hasKernelForDispatchKey(c10::DispatchKey::PrivateUse1))
      library->impl(c10::toString(name).c_str(), torch::CppFunction::makeFromBoxedFunction<&collective>());
  }
  if (!dispatcher.findSchema({"c10d::allreduce_", ""})) return;  // torch without torch.distributed
  static auto* own = new torch::Library(torch::Library::FRAGMENT, "bringup", std::nullopt, __FILE__, __LINE__);
  const char* group = "__torch__.torch.classes.c10d.ProcessGroup";
  own->def((std::string("set_stand_in(") + group + " group, " + group + " stand_in) -> ()").c_str(),
           torch::CppFunction::makeFromBoxedFunction<&set_stand_in>());
}

}  // namespace bringup
