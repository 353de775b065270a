// Sparse and quantized tensors.
#pragma once
#include <ATen/core/Tensor.h>

namespace bringup {

// Copies a CPU tensor of any layout to a chip.
at::Tensor place_on_chip(const at::Tensor& on_host, c10::DeviceIndex index);

// Registers every kernel that torch's CPU has for such tensors.
void register_layouts();

}  // namespace bringup
