// Views: metadata only, made by the host.
#pragma once
#include "launch/launch.h"

namespace bringup {

void run_view(const Call& call);

// A view of `base` with the metadata that the CPU kernel gave to `result`.
at::Tensor view_like(const at::Tensor& base, const at::Tensor& result);

}  // namespace bringup
