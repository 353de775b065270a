#include "runtime/memory_report.h"

#include <algorithm>
#include <cstdio>

#include "json.h"
#include "python/python.h"
#include "record/recorder.h"

namespace bringup {

std::string human(size_t bytes) {
  const char* units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
  double size = double(bytes);
  int unit = 0;
  for (; size >= 1024 && unit < 4; ++unit) size /= 1024;
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.2f %s", size, units[unit]);
  return text;
}

std::string what_for(const Purpose& purpose) {
  Text text;
  if (purpose.dtype != c10::ScalarType::Undefined) {
    text << c10::getDtypeNames(purpose.dtype).first << "[";
    for (int i = 0; i < purpose.dims; ++i) text << (i ? ", " : "") << purpose.sizes[i];
    text << "]";
  }
  if (purpose.op) text << (text.str().empty() ? "" : " by ") << purpose.op;
  return text.str();
}

std::string blocks_json(const std::vector<Held>& blocks) {
  Text text;
  text << "[";
  bool first = true;
  for (const Held& block : blocks) {
    text << (first ? "" : ", ") << "{\"bytes\": " << block.requested << ", \"what\": " << json_text(what_for(block.purpose))
         << ", \"line\": " << json_text(describe(block.line)) << "}";
    first = false;
  }
  text << "]";
  return text.str();
}

void say_past_capacity(int device, size_t requested, const Line& line) {
  std::string where = describe(line);
  std::fprintf(stderr, "bringup: chip:%d (%s) would be out of memory here: %s%srequested %s of %s; going on (--oom=continue)\n",
               device, config().chip.c_str(), where.c_str(), where.empty() ? "" : ": ", human(requested).c_str(),
               human(config().room()).c_str());
}

namespace {

// Says that the request would fit if free memory were in one piece, what keeps it apart, and what helps.
std::string fragmentation(int device, const Shortage& shortage) {
  const Pieces& pieces = shortage.pieces;
  std::string where = describe(pieces.line);
  Text text;
  text << "fragmentation: the request would fit if free memory were in one piece; " << pieces.count
       << " free pieces, the largest " << human(pieces.largest) << ", lie between live tensors, most of them "
       << pieces.neighbours << " (" << human(pieces.neighbour_bytes) << ") "
       << (where.empty() ? "without a Python line" : "made at " + where) << "; ";
  constexpr const char* kOrder = "allocate the largest tensors first and in the same order in every step";
  if (expandable_segments()) {
    text << kOrder;
    return text.str();
  }
  std::optional<ReplayedMemory> replayed;
  if (recording())
    replayed =
        replay_with_expandable_segments({device, shortage.reserved, shortage.limit, config().device_bytes}, &shortage.wanted);
  if (replayed && !replayed->fits) {
    text << kOrder << " (expandable segments alone would not be enough)";
    return text.str();
  }
  text << "use expandable segments (PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True)";
  if (replayed)
    text << ", with which the request fits: the same allocations and frees would have reserved " << human(replayed->reserved);
  text << (replayed ? "; or " : ", or ") << kOrder;
  return text.str();
}

}  // namespace

void throw_out_of_memory(int device, const Shortage& shortage) {
  {
    Gil gil;
    call_python("bringup.device.memory_history", "out_of_memory", "iLLL", device, static_cast<long long>(shortage.requested),
                static_cast<long long>(config().device_bytes),
                static_cast<long long>(shortage.limit - std::min(shortage.limit, shortage.reserved)));
  }
  Purpose wanted = purpose;
  Text text;
  text << "chip:" << device << " (" << config().chip << ") is out of memory: requested " << human(shortage.requested);
  if (std::string what = what_for(wanted); !what.empty()) text << " (" << what << ")";
  if (std::string where = describe(shortage.line); !where.empty()) text << " at " << where;
  text << ", allocated " << human(shortage.allocated) << ", reserved " << human(shortage.reserved) << ", capacity "
       << human(config().device_bytes);
  if (config().context_bytes) text << " (of which the context takes " << human(config().context_bytes) << ")";
  if (shortage.limit != config().room()) text << ", limited by the program to " << human(shortage.limit);
  if (!shortage.largest.empty()) text << "\nlargest live tensors:";
  for (const Held& block : shortage.largest) {
    std::string where = describe(block.line), what = what_for(block.purpose);
    text << "\n  " << human(block.requested) << "  " << (what.empty() ? "?" : what) << "  "
         << (where.empty() ? "(no Python line)" : where);
  }
  if (shortage.pieces.count && shortage.requested <= shortage.limit - shortage.allocated)
    text << "\n" << fragmentation(device, shortage);
  text << "\nfree tensors, lower the batch size, or choose a chip with more memory (reserved but free, in smaller pieces: "
       << human(shortage.reserved - shortage.allocated) << ")";
  TORCH_CHECK_WITH(OutOfMemoryError, false, text.str());
}

}  // namespace bringup
