// The kinds and flags of a trace's rows, for the recorder and for the replay, which needs nothing of torch.
#pragma once
#include <cstdint>

namespace bringup {

enum class RowKind : uint8_t {
#define ROW_KIND(name, text) name,
#include "record/rows.inc"
};
enum : uint8_t {  // Flags of a row. Rows of the kinds Owner and Host hold a number in their place.
#define ROW_FLAG(name, bit, text) name = 1 << bit,
#include "record/rows.inc"
};
// Rows of several kinds pass through the same code, so no two flags may share a bit.
#define ROW_FLAG(name, bit, text) +name
static_assert((0
#include "record/rows.inc"
               ) == 0xFF);  // eight flags, each with a bit of its own; a ninth needs a wider column

// The object of a launch, or of a copy between host and chip, that a plan puts on the host (see docs/placement.md).
constexpr int64_t kPlacedOnHost = -1;

// Kinds of owners that the core records; recording/rows.py has all of them.
constexpr int64_t kOwnedByBlas = 10;

}  // namespace bringup
