// The host's views of device memory.
#pragma once
#include <ATen/core/Tensor.h>

namespace bringup {

// A CPU tensor over a chip's tensor. Whoever reads it must have waited for the stream.
at::Tensor host_view(const at::Tensor& tensor);

// Waits for the current stream; the program does not ask for it, so no row says so.
void settle_stream(int64_t index);

void register_collectives();

}  // namespace bringup
