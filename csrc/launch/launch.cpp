#include "launch/launch.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/core/op_registration/adaption.h>
#include <ATen/native/Resize.h>
#include <torch/library.h>

#include "launch/dry.h"
#include "launch/graph.h"
#include "launch/native.h"
#include "launch/place.h"
#include "launch/switches.h"
#include "launch/synchronous.h"
#include "launch/view.h"
#include "launch/workspace.h"
#include "record/recorder.h"
#include "runtime/generator.h"
#include "runtime/memory.h"
#include "torch/ops.h"
#include "torch/profiler.h"
#include "torch/redirect.h"

namespace bringup {

using c10::DispatchKey;
using c10::DispatchKeySet;
using c10::IValue;

at::Tensor new_tensor(const TensorMeta& meta, c10::DeviceIndex device, const char* op) {
  if (!meta.defined) return {};
  set_purpose(op, meta.dtype, meta.sizes);
  auto storage = c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), c10::SymInt(int64_t(meta.nbytes)),
                                                       allocate_on(device, meta.nbytes), &chip_allocator(), true);
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(
      c10::Storage(std::move(storage)), DispatchKeySet(DispatchKey::PrivateUse1), c10::scalarTypeToTypeMeta(meta.dtype));
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(meta.sizes, meta.strides);
  mark_conjugate(tensor, meta);
  return tensor;
}

void enqueue(Stream& stream, const char* about, std::function<void(bool)> f) {
  struct Task {
    Stream& stream;
    const char* about;
    int64_t number;
    Line line;
    std::function<void(bool)> f;
  };
  launch(
      stream,
      [](void* argument, int should_execute) {
        std::unique_ptr<Task> task(static_cast<Task*>(argument));
        try {
          task->f(should_execute != 0);
        } catch (...) {
          std::string where = describe(task->line);
          launch_failed(task->stream, task->number, task->about + (where.empty() ? "" : ", launched at " + where));
        }
      },
      new Task{stream, about, counters().launches, current_line(), std::move(f)}, about);
}

void resize_written(const at::Tensor& tensor, const TensorMeta& meta) {
  const auto& storage = tensor.storage();
  size_t bytes = meta.nbytes + size_t(tensor.storage_offset()) * tensor.dtype().itemsize();
  if (storage.nbytes() < bytes) resize_storage(storage.unsafeGetStorageImpl(), bytes);
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(meta.sizes, meta.strides, tensor.storage_offset());
}

bool in_graph(const Call& call) {
  if (!c10::GradMode::is_enabled()) return false;
  for (const Slot& slot : call.slots)
    if (slot.tensor->defined() && slot.tensor->requires_grad()) return true;
  return false;
}

namespace {

using Storages = decltype(Launch::storages);

void find_storages(const Signature& signature, const Slots& slots, Storages* storages) {
  storages->resize(signature.storage_written.size());
  for (size_t i = 0; i < slots.size(); ++i)
    if (signature.storage_of[i] >= 0) (*storages)[size_t(signature.storage_of[i])] = storage_of(*slots[i].tensor);
}

// Copies the host's tensors, since the program may change them after the launch.
void keep_host_tensors(Launch& launch, const Slots& slots) {
  launch.host_tensors.resize(slots.size());
  for (size_t i = 0; i < slots.size(); ++i) {
    const at::Tensor& tensor = *slots[i].tensor;
    if (launch.signature->storage_of[i] >= 0 || !tensor.defined()) continue;
    bool constant = tensor.unsafeGetTensorImpl()->is_wrapped_number();  // a Python number, which the program cannot change
    launch.host_tensors[i] = constant ? tensor : tensor.clone();
  }
}

// The chip's generator that a launch on this stream draws from: the argument, else the device's default generator.
at::Generator generator_of(const IValue& value, const Stream& stream) {
  at::Generator generator = value.isGenerator() ? value.toGenerator() : at::Generator();
  if (!generator.defined()) generator = default_generator(stream.id.device_index());
  TORCH_CHECK(generator.device().type() == kChip, "Expected a '", named_cuda() ? "cuda" : "chip",
              "' device type for generator but found '", generator.device().type(), "'");
  return generator;
}

void take_arguments(Launch& launch, const IValue* arguments) {
  const Op& op = *launch.signature->op;
  for (size_t i = 0; i < op.args.size(); ++i) {
    const IValue& value = arguments[i];
    if (op.args[i].kind == ArgKind::Tensor && value.isTensor()) {
      launch.arguments.emplace_back(at::Tensor());
    } else if ((op.args[i].kind == ArgKind::Tensors || op.args[i].kind == ArgKind::OptionalTensors) && value.isList()) {
      c10::List<std::optional<at::Tensor>> shape;  // only records which elements are tensors
      for (const IValue& element : value.toListRef())
        shape.push_back(element.isTensor() ? std::optional<at::Tensor>(at::Tensor()) : std::nullopt);
      launch.arguments.emplace_back(std::move(shape));
    } else if (op.args[i].kind == ArgKind::Generator) {
      launch.draws_from = generator_of(value, *launch.stream);
      launch.arguments.emplace_back();
    } else {
      launch.arguments.emplace_back(value);
    }
  }
}

}  // namespace

std::unique_ptr<Launch> new_launch(const SignaturePtr& interned, Stream& stream, const Slots& slots, const IValue* arguments) {
  const Signature& signature = *interned;
  auto launch = std::make_unique<Launch>();
  launches_in_this_thread = true;
  launch->signature = interned;
  launch->stream = &stream;
  launch->number = counters().launches.load(std::memory_order_relaxed);
  launch->line = current_line();
  launch->threads = at::get_num_threads();
  bool any_host = false;  // true if a tensor is on the host or undefined
  find_storages(signature, slots, &launch->storages);
  for (size_t i = 0; i < slots.size(); ++i) {
    bool on_host = signature.storage_of[i] < 0;
    any_host |= on_host;
    launch->offsets.push_back(on_host ? 0 : slots[i].tensor->unsafeGetTensorImpl()->storage_offset());
  }
  if (any_host) keep_host_tensors(*launch, slots);
  take_arguments(*launch, arguments);
  if (profiling()) launch->correlation = profiler_correlation();
  return launch;
}

namespace {

// Raises the error of torch's CUDA kernels for a tensor that is not on the device of the others.
[[noreturn]] void refuse_devices(const Op& op, const Slot& slot, c10::Device chip) {
  c10::Device device = slot.tensor->device();
  TORCH_CHECK(!(op.takes_indices && slot.argument == 0 && device.is_cpu()),
              "indices should be either on cpu or on the same device as the indexed tensor (", device, ")");
  const std::string& argument = op.handle.schema().arguments()[size_t(slot.argument)].name();
  TORCH_CHECK(false, "Expected all tensors to be on the same device, but got ", argument, " is on ", shown_name(device),
              ", different from other tensors on ", shown_name(chip), " (when checking argument in method wrapper_",
              named_cuda() ? "CUDA_" : "chip_", op.name.substr(op.name.find("::") + 2), ")");
}

// The device of a call: its tensors' device, else its device argument, else the current device. Raises torch's error if tensors
// are on several devices.
c10::DeviceIndex device_of_call(const Call& call) {
  const Op& op = call.op;
  const Slots& slots = call.slots;
  const IValue* arguments = call.arguments;
  std::optional<c10::Device> chip;
  for (const Slot& slot : slots)
    if (on_chip(*slot.tensor)) {
      chip = slot.tensor->device();
      break;
    }
  if (!chip) {
    for (size_t i = 0; i < op.args.size(); ++i)
      if (arguments[i].isDevice() && arguments[i].toDevice().type() == kChip && arguments[i].toDevice().has_index())
        return arguments[i].toDevice().index();
    return current_device();
  }
  for (const Slot& slot : slots) {
    const at::Tensor& tensor = *slot.tensor;
    if (!tensor.defined() || tensor.device() == *chip) continue;
    const ArgInfo& info = op.args[size_t(slot.argument)];
    bool may_be_on_host = op.takes_indices ? info.kind == ArgKind::OptionalTensors : op.host_indices;
    bool legal = tensor.device().is_cpu() && !info.written && (tensor.dim() == 0 || may_be_on_host);
    legal = legal && !(op.takes_indices && slot.argument == 0);
    if (!legal) refuse_devices(op, slot, *chip);
  }
  return chip->index();
}

// The results of a call whose metadata is known.
struct Promised {
  c10::SmallVector<IValue, 2> results;
  c10::SmallVector<at::Tensor, 4> outputs;  // the new tensors among the results
};

Promised promise(const Call& call) {
  const Signature& signature = *call.signature;
  Promised promised;
  size_t list = 0;
  auto fresh = [&] {
    const TensorMeta& meta = signature.outputs[promised.outputs.size()];
    promised.outputs.push_back(new_tensor(meta, call.stream->id.device_index(), call.op.name.c_str()));
    return promised.outputs.back();
  };
  for (const ReturnInfo& info : call.op.returns) {
    if (info.kind == ReturnInfo::Argument) {
      promised.results.emplace_back(call.arguments[info.argument]);
    } else if (info.kind == ReturnInfo::Fresh) {
      promised.results.emplace_back(fresh());
    } else {
      c10::List<at::Tensor> tensors;
      for (int i = 0; i < signature.list_sizes[list]; ++i) tensors.push_back(fresh());
      ++list;
      promised.results.emplace_back(std::move(tensors));
    }
  }
  return promised;
}

void resize_written(const Call& call, const Placement& placement) {
  for (const auto& [slot, meta] : call.signature->resized) {
    const at::Tensor& tensor = *call.slots[size_t(slot)].tensor;
    if (!placement.first) at::native::resize_output_check(tensor, meta.sizes);  // at the first launch, the meta kernel has warned
    resize_written(tensor, meta);
  }
}

void record(const Call& call, const Promised& promised, const Line& line, bool on_host, bool planned) {
  Storages storages;
  find_storages(*call.signature, call.slots, &storages);
  LaunchRow row{*call.signature, call.arguments, *call.stream, line, std::move(storages), {}, in_graph(call)};
  if (planned) row.replay = kPlacedOnHost;
  for (const at::Tensor& output : promised.outputs) row.outputs.push_back(storage_of(output).address);
  record_launch(row, uint8_t((on_host ? kFallback : 0) | index_flags(call)));
}

// True if the chip does not support the launch, or if the driver has no kernel for it though it has kernels.
bool runs_on_host(const Launch& launch, const Placement& placement) {
  return placement.fallback || placement.planned || (C10_UNLIKELY(native_driver()) && !launch.kernel && !is_dry());
}

// Captures the launch for a graph instead of running it.
void capture(const Call& call, const Placement& placement) {
  if (!call.signature->resized.empty()) refuse_capture(*call.stream, call.op.name + " with a result that grows", "warm up first");
  auto launch = new_launch(call.signature, *call.stream, call.slots, call.arguments);
  if (!is_dry()) launch->kernel = driver_kernel(*launch);
  bool on_host = runs_on_host(*launch, placement);
  Promised promised = promise(call);
  for (const at::Tensor& output : promised.outputs) {
    launch->outputs.push_back(storage_of(output));
    if (is_dry()) set_dry_content(output, Content::Unknown);
  }
  capture_launch(std::move(launch), uint8_t((on_host ? kFallback : 0) | index_flags(call)));
  return_results(call, std::move(promised.results));
}

void launch_on_chip(const Call& call, const Placement& placement) {
  resize_written(call, placement);
  auto launch = new_launch(call.signature, *call.stream, call.slots, call.arguments);
  launch->planned = placement.planned;
  if (C10_LIKELY(!placement.planned)) launch->kernel = driver_kernel(*launch);
  Promised promised = promise(call);
  if (C10_UNLIKELY(recording())) record(call, promised, launch->line, runs_on_host(*launch, placement), placement.planned);
  for (const at::Tensor& output : promised.outputs) launch->outputs.push_back(storage_of(output));
  start_launch(std::move(launch));
  return_results(call, std::move(promised.results));
  if (C10_UNLIKELY(launch_blocking())) synchronize(*call.stream);
}

void launch_dry(const Call& call, const Placement& placement) {
  resize_written(call, placement);
  Promised promised = promise(call);
  if (C10_UNLIKELY(recording()))
    record(call, promised, current_line(), placement.fallback || placement.planned, placement.planned);
  compute_known(call.signature, *call.stream, call.slots, call.arguments, promised.outputs);
  return_results(call, std::move(promised.results));
  if (C10_UNLIKELY(launch_blocking())) synchronize(*call.stream);
}

void bump_versions(const Call& call) {
  for (const Slot& slot : call.slots)
    if (call.op.args[size_t(slot.argument)].written) slot.tensor->unsafeGetTensorImpl()->bump_version();
}

}  // namespace

void launch_boxed(Op& op, Stack* stack) {
  Call call{op, stack, stack->data() + (stack->size() - op.args.size())};
  collect(op, call.arguments, call.slots);
  call.stream = &current_stream(device_of_call(call));
  if (!op.is_view) {
    install_steering();
    ++counters().launches;
    call.signature = intern(op, call.slots, call.arguments);
  }
  if (C10_UNLIKELY(at::globalContext().deterministicAlgorithms())) refuse_nondeterministic(call);
  Placement placement = place(call);
  alert_wait(call, placement.answer == Answer::Host);
  if (C10_UNLIKELY(op.uses_blas) && (placement.answer == Answer::Chip || placement.answer == Answer::Dry)) keep_workspaces(call);
  if (C10_UNLIKELY(op.bumps_versions)) bump_versions(call);
  if (C10_UNLIKELY(call.stream->capture != nullptr)) {
    if (placement.answer == Answer::Chip || placement.answer == Answer::Dry) return capture(call, placement);
    if (placement.answer == Answer::Host) refuse_capture(*call.stream, op.name + ", which runs on the host,", "leave it out");
    if (placement.answer == Answer::Synchronous)
      refuse_capture(*call.stream, op.name, op.synchronous ? "its result depends on data" : "run it once before the capture");
  }
  switch (placement.answer) {
    case Answer::View:
      return run_view(call);
    case Answer::Synchronous:
      return run_synchronously(call, placement.planned);
    case Answer::Host:
      return run_on_host(call);
    case Answer::Dry:
      return launch_dry(call, placement);
    case Answer::Chip:
      return launch_on_chip(call, placement);
  }
}

namespace {

struct BoxedOp final : c10::OperatorKernel {
  c10::OperatorHandle handle;
  std::atomic<Op*> op{nullptr};
  explicit BoxedOp(const c10::OperatorHandle& handle) : handle(handle) {}
  void operator()(const c10::OperatorHandle&, DispatchKeySet, Stack* stack) {
    Op* cached = op.load(std::memory_order_acquire);
    if (C10_UNLIKELY(!cached)) op.store(cached = &find_op(handle), std::memory_order_release);
    launch_boxed(*cached, stack);
  }
};

// Launches operators that other libraries have registered for the CPU.
void launch_unregistered(const c10::OperatorHandle& handle, Stack* stack) {
  TORCH_CHECK_NOT_IMPLEMENTED(handle.hasComputedKernelForDispatchKey(DispatchKey::CPU), c10::toString(handle.operator_name()),
                              " does not run on 'chip': it has neither a kernel for chip nor one for the CPU. Register one with "
                              "torch.library (device_types=\"cpu\" is enough)");
  launch_boxed(find_op(handle), stack);
}

}  // namespace

void register_kernels() {
  static auto* aten = new torch::Library(torch::Library::IMPL, "aten", DispatchKey::PrivateUse1, __FILE__, __LINE__);
  static auto* others = new torch::Library(torch::Library::IMPL, "_", DispatchKey::PrivateUse1, __FILE__, __LINE__);
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const auto& op_name : dispatcher.getAllOpNames()) {
    if (op_name.name.compare(0, 6, "aten::") != 0) continue;
    auto handle = dispatcher.findSchema(op_name);
    if (!handle) continue;
    std::string name = c10::toString(op_name);
    if (handle->hasKernelForDispatchKey(DispatchKey::PrivateUse1)) continue;  // written by hand
    if (!handle->hasKernelForDispatchKey(DispatchKey::CPU) && !is_kept_whole(name)) continue;
    aten->impl(name.c_str(), torch::CppFunction::makeFromBoxedFunctor(std::make_unique<BoxedOp>(*handle)));
  }
  others->fallback(torch::CppFunction::makeFromBoxedFunction<&launch_unregistered>());
}

}  // namespace bringup
