#include "fallback.h"

#include <torch/library.h>

#include "lines.h"

namespace bringup {
namespace {

std::atomic<bool> strict{false};

int rank(c10::ScalarType dtype) {
  if (c10::isComplexType(dtype)) return 3;
  if (c10::isFloatingType(dtype)) return 2;
  return dtype == c10::kBool ? 0 : 1;
}

// The dtype that an operation computes in: the first device tensor of the highest kind (complex, floating, integer, bool),
// those without dimensions only if there are no others. So an embedding is float32, though its indices are int64. The
// same rule as bringup.cost.signature.Signature.dtype.
c10::ScalarType deciding_dtype(const Slots& slots) {
  c10::ScalarType found = c10::ScalarType::Undefined;
  for (bool scalars : {false, true}) {
    for (const Slot& slot : slots) {
      if (!on_chip(*slot.tensor) || (slot.tensor->dim() == 0) != scalars) continue;
      c10::ScalarType dtype = slot.tensor->scalar_type();
      if (found == c10::ScalarType::Undefined || rank(dtype) > rank(found)) found = dtype;
    }
    if (found != c10::ScalarType::Undefined) break;
  }
  return found;
}

}  // namespace

bool falls_back(const Op& op, const Slots& slots) {
  c10::ScalarType dtype = deciding_dtype(slots);
  return dtype != c10::ScalarType::Undefined && (op.host_dtypes.load(std::memory_order_relaxed) >> int(dtype) & 1);
}

void refuse_if_strict(const Op& op, const Slots& slots, const std::string& chip) {
  if (!strict) return;
  std::string where = describe(current_line());
  TORCH_CHECK_NOT_IMPLEMENTED(false, op.name, " (", c10::getDtypeNames(deciding_dtype(slots)).first, ") would run on the host",
                              where.empty() ? "" : ", launched at " + where, ": chip ", chip,
                              " does not list it (add it under [ops] of the chip file, or leave out --strict)");
}

TORCH_LIBRARY_FRAGMENT(bringup, m) {
  m.def("set_fallbacks(str[] ops, int[] dtypes, bool strict) -> ()",
        [](std::vector<std::string> ops, std::vector<int64_t> dtypes, bool is_strict) {
          set_host_dtypes(ops, dtypes);
          strict = is_strict;
        });
}

}  // namespace bringup
