// One operation on the host's side: signature, outputs, queue.
#pragma once
#include <functional>
#include <memory>

#include "kernel.h"

namespace bringup {

// The boxed kernel: every operator on device "chip" arrives here.
void launch_boxed(Op& op, Stack* stack);
void register_kernels();

std::unique_ptr<Launch> new_launch(const SignaturePtr& of, Stream& stream, const Slots& slots, const c10::IValue* arguments);
at::Tensor new_tensor(const TensorMeta& meta, c10::DeviceIndex device, const char* op);

// Runs `f` in stream order (with a flag whether to execute), without waiting.
void enqueue(Stream& stream, std::function<void(bool)> f);

}  // namespace bringup
