// The recorder: one row per launch, copy, event, wait and allocation. See docs/design.md, "The prediction".
#pragma once
#include <atomic>

#include "launch/worker.h"
#include "python/lines.h"
#include "launch/signature.h"
#include "record/rows.h"
#include "text.h"

namespace bringup {

extern std::atomic<bool> recording_now;
inline bool recording() { return recording_now.load(std::memory_order_relaxed); }

// The data of a launch's row.
struct LaunchRow {
  const Signature& signature;
  const c10::IValue* arguments;
  const Stream& stream;
  Line line;
  c10::SmallVector<StorageRef, 6> storages;
  c10::SmallVector<void*, 2> outputs;
  bool in_graph = false;  // autograd may have made a node for the launch
  int64_t replay = 0;     // number of the replay of a graph that the launch belongs to; kPlacedOnHost: see rows.h
};
// `results` are the launch's results, if the signature does not tell them. The launch may already be running.
void record_launch(const LaunchRow& row, uint8_t flags, const Stack* results = nullptr);
void record_row(RowKind kind, const Stream* stream, const Line& line, int64_t bytes, int64_t object, uint8_t flags = 0);
void record_event(const Stream& stream, int64_t event, const void* keeps);  // `keeps`: as in event_record
// Records a copy. `from` and `to` are its storages on the device, or null for host memory; `other` is the source device.
// kPlacedOnHost: a plan leaves an upload on the host. Returns false if the copy stays on the host, since its value is there.
bool record_copy(RowKind kind, const Stream& stream, int64_t bytes, uint8_t flags, const void* from, const void* to,
                 int64_t other = 0);
// A block that the allocator hands out. A block is larger than the request, rounded, if the rest is too small to be of use.
struct AllocationRow {
  int64_t bytes, rounded;
  int64_t arena;  // of the graphs that use it (see launch/graph.cpp); 0: of all
  const void* address;
};
void record_allocation(const Stream& stream, const Line& line, const AllocationRow& allocation, uint8_t flags);
// A row about a device's memory. `bytes`: of an allocation, the rounded request.
struct MemoryRow {
  RowKind kind;
  uint8_t flags;
  int64_t stream, arena, bytes;
  uint64_t address;
};
std::vector<MemoryRow> recorded_memory(int device);
// The owner of a storage, as a kind of recording/rows.py and the number of a module (-1: none).
void record_owner(int64_t address, int64_t kind, int64_t module, int64_t itemsize, int64_t device);
void record_free(const Stream& stream, int64_t bytes, const void* address);
// Records a kernel of the program. Its counters are known after it has run; then its signature is amended.
struct RecordedRow {
  int64_t recording = -1;
  size_t row = 0;
};
RecordedRow record_kernel(const Line& line, const Stream& stream, const c10::SmallVector<StorageRef, 6>& storages,
                          const std::vector<int64_t>& written);
void amend_recorded(const RecordedRow& row, std::string signature);
void drop_recorded(const RecordedRow& row);  // the kernel failed: its row only carries the host's time
void wait_for_kernels();
// Records a launch whose signature is known as text. `uses`: its storages, each with true if it is written.
void record_described(const std::string& signature, const Stream& stream, const Line& line,
                      const std::vector<std::pair<const void*, bool>>& uses, uint8_t flags);
// The forms of tensors and arguments in a signature; `slot` counts the tensors.
void write_meta(Text& out, const TensorMeta& meta, int storage, bool written);
void write_value(Text& out, const c10::IValue& value, bool by_value, int& slot);

int64_t next_replay();  // The number of the recording's next replay of a graph, from 1.

int64_t launches_of_thread();  // recorded launches of this thread so far, without copies
int64_t recorded_rows();
int64_t recording_number();  // of the latest recording in this process

void count_view();       // Views have no rows: the thread's next row that carries time includes them.
int recording_thread();  // this thread's number in the recording

void skip_host_time();  // Leaves the host time since the thread's previous row out of the recording.
// The CPU time of a wait for the emulated chip is not the host's.
class HostTimeAside {
 public:
  HostTimeAside() = default;
  HostTimeAside(const HostTimeAside&) = delete;
  HostTimeAside& operator=(const HostTimeAside&) = delete;
  ~HostTimeAside() {
    if (C10_UNLIKELY(recording())) skip_host_time();
  }
};

}  // namespace bringup
