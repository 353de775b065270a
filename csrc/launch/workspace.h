// Memory that a chip's library of products keeps, as cuBLAS does under torch.
#pragma once
#include "launch/launch.h"

namespace bringup {

// True for operators that torch's CUDA build computes with cuBLAS.
bool uses_blas(const std::string& name);
// Allocates the workspaces of a product, unless its thread and stream have them.
void keep_workspaces(const Call& call);
// The same for a product of a compiled graph, which is not launched as an operator.
void keep_workspaces_of(const std::string& op, bool has_bias, c10::DeviceIndex device);
// Frees the workspaces of all threads and streams, as torch._C._cuda_clearCublasWorkspaces does.
void clear_workspaces();

}  // namespace bringup
