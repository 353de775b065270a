// Views: the host creates their metadata.
#pragma once
#include "launch/launch.h"

namespace bringup {

void run_view(const Call& call);

// Returns a view of `base` with the metadata of `result`, which the CPU kernel has computed.
at::Tensor view_like(const at::Tensor& base, const at::Tensor& result);

}  // namespace bringup
