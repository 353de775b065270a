// Functions of ops.cpp that other files use.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/StorageImpl.h>

#include "runtime/runtime.h"

namespace bringup {

// Waits for a copy to or from host memory. If the wait fails, keeps the host memory alive until the copy has ended.
void wait_for_copy(Stream& stream, const at::Tensor& on_host, uint8_t flags);

// Changes the size of a storage. Its first bytes are copied, in stream order.
void resize_storage(c10::StorageImpl* storage, size_t bytes);

}  // namespace bringup
