// One operation on the host's side: signature, outputs, queue.
#pragma once
#include <functional>
#include <memory>

#include "launch/worker.h"
#include "python/python.h"

namespace bringup {

// A call of an operator on its way to who computes it.
struct Call {
  Op& op;
  Stack* stack;                  // takes the results in place of the arguments
  const c10::IValue* arguments;  // on the stack
  Slots slots = {};
  Stream* stream = nullptr;
  SignaturePtr signature = {};  // none for a view
};

// The boxed kernel: every operator on device "chip" arrives here.
void launch_boxed(Op& op, Stack* stack);
void register_kernels();

std::unique_ptr<Launch> new_launch(const SignaturePtr& of, Stream& stream, const Slots& slots, const c10::IValue* arguments);
uint8_t host_index(const Call& call);  // kHostIndex if a host tensor with dimensions is among the arguments
void resize_written(const at::Tensor& tensor, const TensorMeta& meta);
template <class Values>
void return_results(const Call& call, Values results) {
  call.stack->resize(call.stack->size() - call.op.args.size());
  for (c10::IValue& value : results) call.stack->push_back(std::move(value));
}

at::Tensor new_tensor(const TensorMeta& meta, c10::DeviceIndex device, const char* op);

// Runs `f` in stream order (with a flag whether to execute), without waiting.
void enqueue(Stream& stream, const char* about, std::function<void(bool)> f);
// Keeps something until the stream has reached this point, also where it cannot be enqueued: work that uses it is under way.
template <class Kept>
void hold(Stream& stream, const Kept& kept, std::function<void()> over = nullptr) {
  try {
    enqueue(stream, "the end of a copy", [kept, over = std::move(over)](bool) {
      if (over) over();
    });
  } catch (...) {
    ReleaseGil no_gil;
    if (driver().stream_synchronize(stream.handle) != BRINGUP_OK) new Kept(kept);  // nobody knows when it is over
    throw;
  }
}

}  // namespace bringup
