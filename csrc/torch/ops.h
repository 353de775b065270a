// What other files need of the hand-written operators.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/StorageImpl.h>

#include "runtime/runtime.h"

namespace bringup {

// Waits for a copy to or from memory of the host, which lives until the copy is over even if the wait fails.
void wait_for_copy(Stream& stream, const at::Tensor& on_host, uint8_t flags);

// Gives the storage another size; keeps its first bytes, in stream order.
void resize_storage(c10::StorageImpl* storage, size_t bytes);

}  // namespace bringup
