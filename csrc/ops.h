// What other files need of the hand-written operators.
#pragma once
#include <c10/core/StorageImpl.h>

namespace bringup {

// Gives the storage another size; keeps its first bytes, in stream order.
void resize_storage(c10::StorageImpl* storage, size_t bytes);

}  // namespace bringup
