#include "launch/fallback.h"

#include <torch/library.h>

#include <atomic>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "python/lines.h"

namespace bringup {
namespace {

// Operator -> the dtypes that run on the host, as bits. Operators without a row run on the chip.
struct FallbackTable {
  std::mutex mutex;
  std::unordered_map<std::string, uint64_t> rows;
};

FallbackTable& fallback_table() {
  static auto* all = new FallbackTable();
  return *all;
}

std::atomic<bool> strict{false};

void fill_table(const std::vector<std::string>& ops, const std::vector<int64_t>& dtypes, bool is_strict) {
  {
    std::lock_guard<std::mutex> lock(fallback_table().mutex);
    fallback_table().rows.clear();
    for (size_t i = 0; i < ops.size(); ++i) fallback_table().rows[ops[i]] = uint64_t(dtypes[i]);
  }
  for_each_op([](Op& op) { op.host_dtypes = dtypes_on_host(op.name); });
  strict = is_strict;
}

}  // namespace

uint64_t dtypes_on_host(const std::string& op) {
  std::lock_guard<std::mutex> lock(fallback_table().mutex);
  auto row = fallback_table().rows.find(op);
  return row == fallback_table().rows.end() ? 0 : row->second;
}

Where where_of(const Signature& signature) {
  uint64_t on_host = signature.op->host_dtypes.load(std::memory_order_relaxed);
  if (C10_LIKELY(on_host == 0) || signature.dtype == c10::ScalarType::Undefined) return Where::Chip;
  return on_host >> int(signature.dtype) & 1 ? Where::Host : Where::Chip;
}

namespace {

void refuse(const std::string& op, c10::ScalarType dtype, const std::string& chip) {
  std::string where = describe(current_line());
  TORCH_CHECK_NOT_IMPLEMENTED(false, op, " (", c10::getDtypeNames(dtype).first, ") would run on the host",
                              where.empty() ? "" : ", launched at " + where, ": chip ", chip,
                              " leaves it to the host (dtypes, groups or host under [ops] of the chip file: change "
                              "that entry, or leave out --strict)");
}

}  // namespace

void refuse_if_strict(const Signature& signature, const std::string& chip) {
  if (strict) refuse(signature.op->name, signature.dtype, chip);
}

void refuse_sparse_if_strict(const std::string& op, c10::ScalarType dtype, const std::string& chip) {
  if (strict && dtypes_on_host("sparse") >> int(dtype) & 1) refuse(op, dtype, chip);
}

TORCH_LIBRARY_FRAGMENT(bringup, m) { m.def("set_fallbacks(str[] ops, int[] dtypes, bool strict) -> ()", &fill_table); }

}  // namespace bringup
