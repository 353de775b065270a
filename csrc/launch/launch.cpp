#include "launch/launch.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/op_registration/adaption.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/clone.h>
#include <torch/library.h>

#include "launch/dry.h"
#include "launch/fallback.h"
#include "runtime/generator.h"
#include "torch/layouts.h"
#include "launch/learn.h"
#include "runtime/memory.h"
#include "torch/ops.h"
#include "launch/probe.h"
#include "torch/profiler.h"
#include "python/python.h"
#include "record/recorder.h"
#include "runtime/pinned_watch.h"

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

namespace {

// The device of the call: that of its tensors, else of its device argument, else the current one. Refuses mixtures as
// torch does.
c10::DeviceIndex device_of_call(const Op& op, const Slots& slots, const IValue* arguments) {
  std::optional<c10::Device> found;
  for (const Slot& slot : slots)
    if (on_chip(*slot.tensor)) {
      found = slot.tensor->device();
      break;
    }
  if (!found) {
    for (size_t i = 0; i < op.args.size(); ++i)
      if (arguments[i].isDevice() && arguments[i].toDevice().type() == kChip && arguments[i].toDevice().has_index())
        return arguments[i].toDevice().index();
    return current_device();
  }
  for (const Slot& slot : slots) {
    const at::Tensor& tensor = *slot.tensor;
    if (!tensor.defined() || tensor.device() == *found) continue;
    bool written = op.args[size_t(slot.argument)].written;
    bool legal = tensor.device().is_cpu() && !written && (tensor.dim() == 0 || op.host_indices);
    if (!legal) {
      const auto& argument = op.handle.schema().arguments()[size_t(slot.argument)];
      std::string method = "wrapper_chip_" + op.name.substr(op.name.find("::") + 2);
      c10::impl::common_device_check_failure(*found, tensor, method.c_str(), argument.name().c_str());
    }
  }
  return found->index();
}

void resize_written(const at::Tensor& tensor, const TensorMeta& meta) {
  const auto& storage = tensor.storage();
  size_t bytes = meta.nbytes + size_t(tensor.storage_offset()) * tensor.dtype().itemsize();
  if (storage.nbytes() < bytes) resize_storage(storage.unsafeGetStorageImpl(), bytes);
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(meta.sizes, meta.strides, tensor.storage_offset());
}

using Storages = decltype(Launch::storages);

void find_storages(const Signature& signature, const Slots& slots, Storages* storages) {
  storages->resize(signature.storage_written.size());
  for (size_t i = 0; i < slots.size(); ++i)
    if (signature.storage_of[i] >= 0) (*storages)[size_t(signature.storage_of[i])] = storage_of(*slots[i].tensor);
}

}  // namespace

std::unique_ptr<Launch> new_launch(const SignaturePtr& of, Stream& stream, const Slots& slots, const IValue* arguments) {
  const Signature& signature = *of;
  const Op& op = *signature.op;
  auto launch = std::make_unique<Launch>();
  launch->signature = of;
  launch->stream = &stream;
  launch->number = counters().launches.load(std::memory_order_relaxed);
  launch->line = current_line();
  launch->threads = at::get_num_threads();
  bool any_host = false;  // or undefined
  find_storages(signature, slots, &launch->storages);
  for (size_t i = 0; i < slots.size(); ++i) {
    bool on_host = signature.storage_of[i] < 0;
    any_host |= on_host;
    launch->offsets.push_back(on_host ? 0 : slots[i].tensor->unsafeGetTensorImpl()->storage_offset());
  }
  if (any_host) {
    launch->host_tensors.resize(slots.size());
    for (size_t i = 0; i < slots.size(); ++i) {
      const at::Tensor& tensor = *slots[i].tensor;
      if (signature.storage_of[i] >= 0 || !tensor.defined()) continue;
      // The host may change a tensor after the launch; a wrapped Python number it cannot reach.
      bool constant = tensor.unsafeGetTensorImpl()->is_wrapped_number();
      launch->host_tensors[i] = constant ? tensor : tensor.clone();
    }
  }
  for (size_t i = 0; i < op.args.size(); ++i) {
    const IValue& value = arguments[i];
    if (op.args[i].kind == ArgKind::Tensor && value.isTensor()) {
      launch->arguments.emplace_back(at::Tensor());
    } else if ((op.args[i].kind == ArgKind::Tensors || op.args[i].kind == ArgKind::OptionalTensors) && value.isList()) {
      c10::List<std::optional<at::Tensor>> shape;  // which elements are tensors; not the tensors themselves
      for (const IValue& element : value.toListRef())
        shape.push_back(element.isTensor() ? std::optional<at::Tensor>(at::Tensor()) : std::nullopt);
      launch->arguments.emplace_back(std::move(shape));
    } else if (op.args[i].kind == ArgKind::Generator) {
      at::Generator generator = value.isGenerator() ? value.toGenerator() : at::Generator();
      if (!generator.defined()) generator = default_generator(stream.id.device_index());
      TORCH_CHECK(generator.device().type() == kChip, "Expected a 'chip' device type for generator but found '",
                  generator.device().type(), "'");
      launch->generator = static_cast<ChipGenerator*>(generator.unsafeGetGeneratorImpl())->draw_on(stream);
      launch->arguments.emplace_back();
    } else {
      launch->arguments.emplace_back(value);
    }
  }
  if (profiling()) launch->correlation = profiler_correlation();
  return launch;
}

namespace {

template <class Values>
void return_results(const Op& op, Stack* stack, Values results) {
  stack->resize(stack->size() - op.args.size());
  for (IValue& value : results) stack->push_back(std::move(value));
}

// A view of `base` with the metadata that the CPU kernel gave to `result`.
at::Tensor view_like(const at::Tensor& base, const at::Tensor& result) {
  auto view = at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(base.storage()), base.key_set(),
                                                       result.dtype());
  auto* impl = view.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(result.sizes(), result.strides(), result.storage_offset());
  impl->_set_conj(result.is_conj());
  impl->_set_neg(result.is_neg());
  return view;
}

// A result of a synchronous run becomes a device tensor: a view if it shares an input's memory, else a copy.
at::Tensor take_over(const at::Tensor& result, const Launch& launch, const Slots& slots, Stream& stream, Content content) {
  if (!result.defined() || !result.device().is_cpu()) return result;
  for (size_t i = 0; i < launch.inputs.size(); ++i) {
    if (launch.signature->storage_of[i] < 0 || !result.has_storage() || !launch.inputs[i].is_alias_of(result)) continue;
    if (result.is_same(launch.inputs[i])) return *slots[i].tensor;
    const at::Tensor& base = *slots[i].tensor;
    return view_like(base, result);
  }
  if (result.layout() != c10::kStrided || result.is_quantized()) return place_on_chip(result, stream.id.device_index());
  TensorMeta meta = meta_of(result);
  at::Tensor placed = new_tensor(meta, stream.id.device_index(), launch.signature->op->name.c_str());
  if (meta.nbytes == 0 || (is_dry() && !dry_computes(placed))) return placed;
  if (is_dry()) set_dry_content(placed, std::max(content, Content::Guessed));
  void* home = placed.mutable_data_ptr();
  enqueue(stream, "a copy of a result", [result, home, meta, index = stream.id.device_index()](bool should_execute) {
    if (!should_execute) return;
    Mapped memory(index, home);
    alias(borrow(memory.host(), meta.nbytes), meta, 0).copy_(result);
  });
  return placed;
}

void write_back(const Launch& launch, const Slots& slots, Stream& stream) {
  for (size_t i = 0; i < launch.inputs.size(); ++i) {
    if (launch.signature->storage_of[i] < 0 || !launch.signature->op->args[size_t(slots[i].argument)].written) continue;
    const at::Tensor& after = launch.inputs[i];
    const at::Tensor& tensor = *slots[i].tensor;
    TensorMeta meta = meta_of(after);
    if (meta.same_layout(launch.signature->inputs[i])) continue;
    resize_written(tensor, meta);
    void* home = tensor.storage().mutable_data();
    int64_t offset = tensor.storage_offset();
    size_t bytes = tensor.storage().nbytes();
    if (meta.nbytes == 0 || (is_dry() && !dry_computes(tensor))) continue;
    enqueue(stream, "a copy of a result",
            [after, home, offset, bytes, meta, index = stream.id.device_index()](bool should_execute) {
              if (!should_execute) return;
              Mapped memory(index, home);
              if (after.storage().data() != memory.host()) alias(borrow(memory.host(), bytes), meta, offset).copy_(after);
            });
  }
}

uint8_t host_index(const Signature& signature, const Slots& slots) {
  for (size_t i = 0; i < slots.size(); ++i)
    if (signature.storage_of[i] < 0 && slots[i].tensor->defined() && slots[i].tensor->dim() > 0) return kHostIndex;
  return 0;
}

// Runs while the host waits: `to_host`, since the chip cannot.
void run_synchronously(const SignaturePtr& of, Stream& stream, const Slots& slots, Stack* stack, const IValue* arguments,
                       bool to_host = false) {
  Signature& signature = *of;
  Op& op = *signature.op;
  auto launch = new_launch(of, stream, slots, arguments);
  launch->waited = true;
  bool learning = signature.state == Signature::Unknown;
  Content content = C10_UNLIKELY(is_dry()) ? replace_unknown(*launch, slots, op.synchronous) : Content::Known;
  if (content != Content::Known && op.synchronous) notice_read(op.name + " of " + text_of(signature.inputs[0]));
  LaunchRow row{signature, arguments, stream, launch->line, launch->storages, {}};
  learning ? count_learning(op) : count_synchronous(op);
  bringup::launch(stream, run_launch, launch.get(), op.name.c_str());
  int status;
  {
    ReleaseGil no_gil;
    status = driver().stream_synchronize(stream.handle);
  }
  if (status != BRINGUP_OK) {  // it may still run
    hold(stream, std::shared_ptr<Launch>(std::move(launch)));
    throw_driver_error(device(stream.id.device_index()), "a wait for " + op.name);
  }
  if (op.synchronous) stream_reached(stream);
  if (launch->cause) raise_again(launch->cause);
  if (op.synchronous) stream.raise();
  if (launch->error) std::rethrow_exception(launch->error);
  TORCH_CHECK(launch->executed, op.name, " needs a value from the device, and the ", driver().name, " driver executes nothing");
  if (learning && !learn_from(signature, launch->results, launch->inputs)) signature.state = Signature::Synchronous;
  accept(signature, arguments);
  write_back(*launch, slots, stream);
  Stack results;
  for (size_t i = 0; i < op.returns.size(); ++i) {
    IValue& value = launch->results[i];
    switch (op.returns[i].kind) {
      case ReturnInfo::Argument:
        results.emplace_back(arguments[op.returns[i].argument]);
        break;
      case ReturnInfo::Fresh:
        if (!value.isTensor() || is_host_output(op.name, i))
          results.emplace_back(value);
        else
          results.emplace_back(take_over(value.toTensor(), *launch, slots, stream, content));
        break;
      case ReturnInfo::FreshList: {
        c10::List<at::Tensor> list;
        for (const IValue& element : value.toListRef())
          list.push_back(take_over(element.toTensor(), *launch, slots, stream, content));
        results.emplace_back(std::move(list));
        break;
      }
      case ReturnInfo::Value:
        results.emplace_back(content == Content::Unknown && op.synchronous ? stand_in_value(value) : value);
    }
  }
  if (C10_UNLIKELY(recording())) {
    for (const IValue& value : results)
      if (value.isTensor() && !value.isList()) row.outputs.push_back(storage_of(value.toTensor()).address);
    record_launch(row,
                  uint8_t((op.synchronous && !learning ? kWaits : 0) | (to_host ? kFallback : 0) | host_index(signature, slots)),
                  &results);
  }
  return_results(op, stack, std::move(results));
}

// A CPU tensor with a device tensor's metadata and address; nothing may touch its data.
at::Tensor metadata_on_host(const at::Tensor& tensor) {
  const auto& storage = tensor.storage();
  return alias(borrow(storage.mutable_data(), storage.nbytes()), meta_of(tensor), tensor.storage_offset());
}

// Views touch no data: the CPU kernel computes the metadata, on an alias.
void run_view(Op& op, const Slots& slots, Stack* stack, const IValue* arguments) {
  std::vector<at::Tensor> inputs;
  for (const Slot& slot : slots) inputs.push_back(on_chip(*slot.tensor) ? metadata_on_host(*slot.tensor) : *slot.tensor);
  Stack results = rebuild(op, arguments, c10::kCPU, nullptr, [&](int slot) { return inputs[size_t(slot)]; });
  {
    at::AutoDispatchBelowADInplaceOrView below;
    op.handle.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), &results);
  }
  auto as_view = [&](const at::Tensor& result) {
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (!inputs[i].is_alias_of(result)) continue;
      return view_like(*slots[i].tensor, result);
    }
    TORCH_CHECK(false, op.name, " was expected to return a view");
  };
  for (IValue& value : results) {
    if (value.isTensor()) {
      value = as_view(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& element : value.toTensorVector()) list.push_back(as_view(element));
      value = std::move(list);
    }
  }
  return_results(op, stack, std::move(results));
}

}  // namespace

void launch_boxed(Op& op, Stack* stack) {
  const IValue* arguments = stack->data() + (stack->size() - op.args.size());
  Slots slots;
  collect(op, arguments, slots);
  c10::DeviceIndex index = device_of_call(op, slots, arguments);
  Stream& stream = current_stream(index);
  if (op.is_view) {
    if (C10_UNLIKELY(recording())) count_view();
    return run_view(op, slots, stack, arguments);
  }
  install_steering();
  ++counters().launches;
  SignaturePtr of = intern(op, slots, arguments);
  Signature& signature = *of;
  refuse_overlaps(signature, slots);
  int state = signature.state.load(std::memory_order_acquire);
  bool first = state == Signature::Unknown;
  if (first && learn(signature, slots, arguments)) state = Signature::Known;
  bool to_host = falls_back(signature);
  if (to_host) refuse_if_strict(signature, config().chip);
  bool dry = C10_UNLIKELY(is_dry());
  if (dry && signature.doubtful) {  // no launch will tell
    Results promised = signature;
    judge(signature, slots, arguments, promised);
  }
  if (C10_UNLIKELY(op.bumps_versions))
    for (const Slot& slot : slots)
      if (op.args[size_t(slot.argument)].written) slot.tensor->unsafeGetTensorImpl()->bump_version();
  if (state != Signature::Known || ((to_host || signature.doubtful) && !dry))
    return run_synchronously(of, stream, slots, stack, arguments, to_host);

  for (const auto& [slot, meta] : signature.resized) {
    if (!first) at::native::resize_output_check(*slots[size_t(slot)].tensor, meta.sizes);  // the meta kernel warned
    resize_written(*slots[size_t(slot)].tensor, meta);
  }
  std::unique_ptr<Launch> launch;
  if (!dry) launch = new_launch(of, stream, slots, arguments);
  c10::SmallVector<IValue, 2> results;
  c10::SmallVector<at::Tensor, 4> outputs;
  size_t list = 0;
  auto fresh = [&] {
    outputs.push_back(new_tensor(signature.outputs[outputs.size()], index, op.name.c_str()));
    return outputs.back();
  };
  for (const ReturnInfo& info : op.returns) {
    if (info.kind == ReturnInfo::Argument) {
      results.emplace_back(arguments[info.argument]);
    } else if (info.kind == ReturnInfo::Fresh) {
      results.emplace_back(fresh());
    } else {
      c10::List<at::Tensor> tensors;
      for (int i = 0; i < signature.list_sizes[list]; ++i) tensors.push_back(fresh());
      ++list;
      results.emplace_back(std::move(tensors));
    }
  }
  if (C10_UNLIKELY(recording())) {
    Storages storages;
    find_storages(signature, slots, &storages);
    LaunchRow row{signature, arguments, stream, launch ? launch->line : current_line(), std::move(storages), {}};
    for (const at::Tensor& output : outputs) row.outputs.push_back(storage_of(output).address);
    record_launch(row, uint8_t((to_host ? kFallback : 0) | host_index(signature, slots)));
  }
  if (launch) {
    for (const at::Tensor& output : outputs) launch->outputs.push_back(storage_of(output));
    bringup::launch(stream, run_launch, launch.release(), op.name.c_str());
  } else {
    launch_dry(of, stream, slots, arguments, outputs);
  }
  return_results(op, stack, std::move(results));
  if (C10_UNLIKELY(launch_blocking())) synchronize(stream);
}

namespace {

struct BoxedOp final : c10::OperatorKernel {
  c10::OperatorHandle handle;
  std::atomic<Op*> op{nullptr};
  explicit BoxedOp(const c10::OperatorHandle& handle) : handle(handle) {}
  void operator()(const c10::OperatorHandle&, DispatchKeySet, Stack* stack) {
    Op* found = op.load(std::memory_order_acquire);
    if (C10_UNLIKELY(!found)) op.store(found = &find_op(handle), std::memory_order_release);
    launch_boxed(*found, stack);
  }
};

// Operators that other libraries registered for the CPU.
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
    if (has_native_kernel(name) || handle->hasKernelForDispatchKey(DispatchKey::PrivateUse1)) continue;
    if (!handle->hasKernelForDispatchKey(DispatchKey::CPU) && !is_kept_whole(name)) continue;
    aten->impl(name.c_str(), torch::CppFunction::makeFromBoxedFunctor(std::make_unique<BoxedOp>(*handle)));
  }
  others->fallback(torch::CppFunction::makeFromBoxedFunction<&launch_unregistered>());
}

}  // namespace bringup
