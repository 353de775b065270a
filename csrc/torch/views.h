// CPU tensors over device memory.
#pragma once
#include <ATen/core/Tensor.h>

namespace bringup {

// Returns a CPU tensor over a chip tensor's memory. The caller waits for the stream before it is read.
at::Tensor host_view(const at::Tensor& tensor);

// Waits for the current stream. The program does not request this wait, so it is not recorded.
void settle_stream(int64_t index);

void register_collectives();

}  // namespace bringup
