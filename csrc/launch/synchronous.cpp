#include "launch/synchronous.h"

#include "launch/dry.h"
#include "launch/learn.h"
#include "launch/ledger.h"
#include "launch/native.h"
#include "launch/probe.h"
#include "launch/switches.h"
#include "launch/unwritten.h"
#include "launch/view.h"
#include "python/python.h"
#include "record/parts.h"
#include "runtime/memory.h"
#include "runtime/pinned_watch.h"
#include "torch/layouts.h"

namespace bringup {

using c10::IValue;

namespace {

// Turns a result of a synchronous launch into a device tensor: a view if it shares an input's memory, else a copy.
at::Tensor take_over(const at::Tensor& result, const Launch& launch, const Slots& slots, Stream& stream, Content content) {
  if (!result.defined() || !result.device().is_cpu()) return result;
  for (size_t i = 0; i < launch.inputs.size(); ++i) {
    if (launch.signature->storage_of[i] < 0 || !result.has_storage() || !launch.inputs[i].is_alias_of(result)) continue;
    if (result.is_same(launch.inputs[i])) return *slots[i].tensor;
    const at::Tensor& base = *slots[i].tensor;
    return view_like(base, result);
  }
  if (result.layout() != c10::kStrided || result.is_quantized()) {
    Unrecorded unrecorded;  // only the emulation has this result on the host
    return place_on_chip(result, stream.id.device_index());
  }
  TensorMeta meta = meta_of(result);
  at::Tensor placed = new_tensor(meta, stream.id.device_index(), launch.signature->op->name.c_str());
  if (C10_UNLIKELY(!launch.marked_results.empty())) move_marks(launch, result, placed);
  if (meta.nbytes == 0 || (is_dry() && !dry_computes(placed))) return placed;
  if (is_dry()) set_dry_content(placed, std::max(content, Content::Guessed));
  void* home = placed.mutable_data_ptr();
  if (separate_memory()) {
    put(stream, home, meta, result);
    return placed;
  }
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
    if (separate_memory()) {
      bool staged = after.storage().data() == launch.storages[size_t(launch.signature->storage_of[i])].address;
      if (!staged) put(stream, static_cast<char*>(home) + size_t(offset) * tensor.dtype().itemsize(), meta, after);
      continue;
    }
    enqueue(stream, "a copy of a result",
            [after, home, offset, bytes, meta, index = stream.id.device_index()](bool should_execute) {
              if (!should_execute) return;
              Mapped memory(index, home);
              if (after.storage().data() != memory.host()) alias(borrow(memory.host(), bytes), meta, offset).copy_(after);
            });
  }
}

// Runs the launch and waits for it. If the wait fails, the launch may still run, so the stream keeps it alive.
void run_and_wait(const Call& call, std::unique_ptr<Launch>& launch) {
  Stream& stream = *call.stream;
  draw(*launch);
  Parts parts(stream, *launch, false);
  {
    Staging staging(*launch);
    parts.end(Part::Down);
    if (!separate_memory()) count_on_host(*launch, 0, 0);
    bringup::launch(stream, run_launch, launch.get(), call.op.name.c_str());
    parts.end(Part::Host);
    staging.write_back();
  }
  parts.end(Part::Up);
  int status;
  {
    ReleaseGil no_gil;
    status = driver().stream_synchronize(stream.handle);
  }
  if (status == BRINGUP_OK) return;
  hold(stream, std::shared_ptr<Launch>(std::move(launch)));
  throw_driver_error(device(stream.id.device_index()), "a wait for " + call.op.name);
}

Stack results_on_chip(const Call& call, Launch& launch, Content content) {
  Stack results;
  for (size_t i = 0; i < call.op.returns.size(); ++i) {
    IValue& value = launch.results[i];
    switch (call.op.returns[i].kind) {
      case ReturnInfo::Argument:
        results.emplace_back(call.arguments[call.op.returns[i].argument]);
        break;
      case ReturnInfo::Fresh:
        if (!value.isTensor() || is_host_output(call.op.name, i))
          results.emplace_back(value);
        else
          results.emplace_back(take_over(value.toTensor(), launch, call.slots, *call.stream, content));
        break;
      case ReturnInfo::FreshList: {
        c10::List<at::Tensor> list;
        for (const IValue& element : value.toListRef())
          list.push_back(take_over(element.toTensor(), launch, call.slots, *call.stream, content));
        results.emplace_back(std::move(list));
        break;
      }
      case ReturnInfo::Value:
        results.emplace_back(content == Content::Unknown && call.op.synchronous ? stand_in_value(value) : value);
    }
  }
  return results;
}

void run(const Call& call, bool fallback, bool planned) {
  Signature& signature = *call.signature;
  Op& op = call.op;
  Stream& stream = *call.stream;
  const Slots& slots = call.slots;
  const IValue* arguments = call.arguments;
  auto launch = new_launch(call.signature, stream, slots, arguments);
  launch->waited = true;
  launch->planned = planned;
  bool learning = signature.state == Signature::Unknown;
  Content content = C10_UNLIKELY(is_dry()) ? replace_unknown(*launch, slots, op.synchronous) : Content::Known;
  if (content != Content::Known && op.synchronous) notice_read(op.name + " of " + text_of(signature.inputs[0]));
  LaunchRow row{signature, arguments, stream, launch->line, launch->storages, {}, in_graph(call)};
  if (planned) row.replay = kPlacedOnHost;
  learning ? count_learning(op) : count_synchronous(op);
  run_and_wait(call, launch);
  if (op.synchronous) stream_reached(stream);
  if (launch->cause) raise_again(launch->cause);
  if (op.synchronous) stream.raise();
  if (launch->error) std::rethrow_exception(launch->error);
  TORCH_CHECK(launch->executed, op.name, " needs a value from the device, but the ", driver().name, " driver executes nothing");
  if (learning && !learn_from(signature, launch->results, launch->inputs)) signature.state = Signature::Synchronous;
  if (signature.doubtful)
    accept(signature, arguments, results_of(signature, launch->results, launch->inputs, signature.inputs).value_or(Results()));
  write_back(*launch, slots, stream);
  Stack results = results_on_chip(call, *launch, content);
  if (C10_UNLIKELY(recording())) {
    for (const IValue& value : results)
      if (value.isTensor() && !value.isList()) row.outputs.push_back(storage_of(value.toTensor()).address);
    record_launch(
        row,
        uint8_t((waits_for_result(call) && !learning ? kWaits : 0) | (fallback || planned ? kFallback : 0) | index_flags(call)),
        &results);
  }
  return_results(call, std::move(results));
}

}  // namespace

void run_synchronously(const Call& call, bool planned) { run(call, false, planned); }

void run_on_host(const Call& call) { run(call, true, false); }

}  // namespace bringup
