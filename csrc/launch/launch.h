// The host's side of a launch: signature, outputs, queue.
#pragma once
#include <functional>
#include <memory>

#include "launch/worker.h"
#include "python/python.h"

namespace bringup {

// A call of an operator.
struct Call {
  Op& op;
  Stack* stack;                  // holds the arguments, and then the results
  const c10::IValue* arguments;  // in the stack
  Slots slots = {};
  Stream* stream = nullptr;
  SignaturePtr signature = {};  // null for a view
};

// The boxed kernel: every operator on device "chip" arrives here.
void launch_boxed(Op& op, Stack* stack);
void register_kernels();

std::unique_ptr<Launch> new_launch(const SignaturePtr& interned, Stream& stream, const Slots& slots,
                                   const c10::IValue* arguments);
bool in_graph(const Call& call);  // True if autograd may have made a node for the call
void resize_written(const at::Tensor& tensor, const TensorMeta& meta);
template <class Values>
void return_results(const Call& call, Values results) {
  call.stack->resize(call.stack->size() - call.op.args.size());
  for (c10::IValue& value : results) call.stack->push_back(std::move(value));
}

at::Tensor new_tensor(const TensorMeta& meta, c10::DeviceIndex device, const char* op);

// Enqueues `f`, which gets true if it shall execute. Does not wait.
void enqueue(Stream& stream, const char* about, std::function<void(bool)> f);
// Keeps a value alive until the stream reaches this point, since pending work uses it. If this cannot be enqueued, waits instead.
template <class Value>
void hold(Stream& stream, const Value& held, std::function<void()> over = nullptr) {
  try {
    enqueue(stream, "the end of a copy", [held, over = std::move(over)](bool) {
      if (over) over();
    });
  } catch (...) {
    ReleaseGil no_gil;
    if (driver().stream_synchronize(stream.handle) != BRINGUP_OK)
      new Value(held);  // kept for ever, since the end of its use is unknown
    throw;
  }
}

}  // namespace bringup
