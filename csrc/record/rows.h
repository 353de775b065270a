// The kinds and flags of a trace's rows, for the recorder and for the replay, which needs nothing of torch.
#pragma once
#include <cstdint>

namespace bringup {

enum class RowKind : uint8_t {
#define ROW_KIND(name, text) name,
#include "record/rows.inc"
};
enum : uint8_t {  // flags of a row
#define ROW_FLAG(name, bit, text) name = 1 << bit,
#include "record/rows.inc"
};

}  // namespace bringup
