#include "launch/fallback.h"

#include <torch/library.h>

#include "python/lines.h"

namespace bringup {
namespace {

std::atomic<bool> strict{false};

}  // namespace

bool falls_back(const Signature& signature) {
  uint64_t on_host = signature.op->host_dtypes.load(std::memory_order_relaxed);
  return C10_UNLIKELY(on_host != 0) && signature.dtype != c10::ScalarType::Undefined && (on_host >> int(signature.dtype) & 1);
}

void refuse_if_strict(const Signature& signature, const std::string& chip) {
  if (!strict) return;
  std::string where = describe(current_line());
  TORCH_CHECK_NOT_IMPLEMENTED(false, signature.op->name, " (", c10::getDtypeNames(signature.dtype).first,
                              ") would run on the host", where.empty() ? "" : ", launched at " + where, ": chip ", chip,
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
