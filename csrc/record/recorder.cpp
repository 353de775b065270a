#include "record/recorder.h"

#include <c10/util/flat_hash_map.h>
#include <time.h>
#include <torch/library.h>

#include <cmath>
#include <deque>
#include <limits>
#include <memory>
#include <mutex>

#include "json.h"
#include "launch/ledger.h"
#include "launch/plan.h"
#include "record/residency.h"
#include "record/parts.h"
#include "record/waits.h"
#include "torch/profiler.h"

namespace bringup {

std::atomic<bool> recording_now{false};

namespace {

using c10::IValue;

// Note [Graphs of autograd]
// Autograd makes a node just before it calls the operator, so the first launch after a node was made belongs to it, if one of its
// tensors requires gradients: others follow nodes that launch nothing, such as those of views. Until the recording is read,
// `bytes` of a launch is the number of the node that it made or, in the backward pass, runs. Python code in a backward pass is a
// checkpoint that runs a part of the forward pass again, with gradients enabled, or a function or hook of the program; there,
// `bytes` is minus twice the number of the node that runs, and one less for a checkpoint. In the columns, `bytes` is a GraphUse.
enum GraphUse : int64_t { kNoNode, kNeverRan, kRan, kRebuilt, kWithin, kDifferentiable };
constexpr int64_t kInGraph = int64_t(1) << 62;  // of a backward pass's launch, beside the node that it runs

// At most 64 bytes, so that a million launches stay far below a gigabyte.
struct TraceRow {
  int64_t host_ns;     // CPU time of the launching thread since its previous row; of an allocation, its arena
  int64_t bytes;       // size of a copy or an allocation; of a launch: the node that it made or runs, see [Graphs of autograd]
  int64_t object;      // event id, address of an allocation, module of a call
  uint64_t first_use;  // into `uses`
  int32_t signature;   // -1: not a launch
  int32_t line, module;
  uint32_t use_count;
  int32_t views;  // view operators since the thread's previous row that carries time; of an allocation, bytes beyond the request
  int32_t thread;
  int16_t stream;
  int8_t device;
  RowKind kind;
  Phase phase;
  uint8_t flags;
};

static_assert(sizeof(TraceRow) <= 64);

struct LineHash {
  size_t operator()(const std::pair<void*, int64_t>& key) const {
    return std::hash<void*>()(key.first) * 31 + std::hash<int64_t>()(key.second);
  }
};

// Counts a thread's view operators since its previous row that carries time. The recording also reads the count, since the thread
// may end without another row.
struct ViewCount {
  std::atomic<int32_t> thread{0};  // the thread whose rows carry them
  std::atomic<int64_t> views{0};
};

struct Recording {
  std::mutex mutex;
  std::atomic<int64_t> number{0};  // of the recording in this process
  std::deque<TraceRow> rows, aside;
  std::vector<uint64_t> uses;  // address * 2 + written
  std::vector<std::string> signatures;
  std::unordered_map<std::string, int32_t> by_text;
  std::vector<std::pair<Line, std::string>> lines;  // the text is set for lines that a compiler names
  std::unordered_map<std::string, int32_t> line_texts;
  std::unordered_map<std::pair<void*, int64_t>, int32_t, LineHash> line_ids;
  std::atomic<int32_t> threads{0};
  std::atomic<int64_t> replays{0};  // of graphs
  Residency residency;              // only while a plan is in force
  std::mutex counts_mutex;          // locked after `mutex`
  std::vector<std::shared_ptr<ViewCount>> counts;

  std::shared_ptr<ViewCount> new_count(int32_t thread) {
    auto count = std::make_shared<ViewCount>();
    count->thread = thread;
    std::lock_guard<std::mutex> lock(counts_mutex);
    counts.push_back(count);
    return count;
  }
};

Recording& recording_state() {
  static auto* state = new Recording();
  return *state;
}

// Note [The host's own time]
// Reading a thread's CPU time takes 0.5 us, reading the wall clock 0.03 us. Between two launches in short succession both show
// the same. So the slow clock is only read after a longer gap, in which the thread may have waited.
struct ThreadClock {
  int64_t number = -1;  // the recording that this clock belongs to
  int32_t id = 0;
  std::shared_ptr<ViewCount> count;
  int64_t wall = 0, cpu = 0, since_cpu = 0;

  static int64_t read(clockid_t clock) {
    timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
  }

  void join(Recording& state) {
    if (number == state.number.load(std::memory_order_relaxed)) return;
    int32_t next = state.threads++;
    *this = {state.number, next, state.new_count(next), read(CLOCK_MONOTONIC), read(CLOCK_THREAD_CPUTIME_ID), 0};
  }

  int64_t elapsed() {
    constexpr int64_t kLongGap = 20000;
    int64_t now = read(CLOCK_MONOTONIC);
    int64_t gap = now - wall;
    wall = now;
    if (gap < kLongGap) {
      since_cpu += gap;
      return gap;
    }
    int64_t used = read(CLOCK_THREAD_CPUTIME_ID);
    int64_t own = std::clamp<int64_t>(used - cpu - since_cpu, 0, gap);
    cpu = used;
    since_cpu = 0;
    return own;
  }
};

thread_local ThreadClock thread_clock;

}  // namespace

// ---- signatures as text

void write_meta(Text& out, const TensorMeta& meta, int storage, bool written) {
  if (!meta.defined) {
    out << "null";
    return;
  }
  out << "[\"" << c10::getDtypeNames(meta.dtype).first << "\",[";
  for (size_t i = 0; i < meta.sizes.size(); ++i) out << (i ? "," : "") << meta.sizes[i];
  out << "],[";
  for (size_t i = 0; i < meta.strides.size(); ++i) out << (i ? "," : "") << meta.strides[i];
  out << "]," << storage << "," << (written ? 1 : 0) << "]";
}

void write_value(Text& out, const IValue& value, bool by_value, int& slot) {
  if (value.isTensor()) {
    out << "{\"tensor\":" << slot++ << "}";
  } else if (value.isList()) {
    out << "[";
    bool first = true;
    for (const IValue& element : value.toListRef()) {
      out << (first ? "" : ",");
      write_value(out, element, by_value, slot);
      first = false;
    }
    out << "]";
  } else if (value.isInt() && by_value) {
    out << value.toInt();
  } else if (value.isBool() && by_value) {
    out << (value.toBool() ? "true" : "false");
  } else if (value.isDouble() && by_value && std::isfinite(value.toDouble())) {
    out << value.toDouble();
  } else if (value.isString()) {
    out << json_text(value.toStringRef());
  } else {
    out << "null";
  }
}

namespace {

std::vector<std::string> names_of(uint8_t tf32) {
  std::vector<std::string> names;
  if (tf32 & kTf32Matmul) names.push_back("matmul");
  if (tf32 & kTf32Convolution) names.push_back("convolution");
  if (tf32 & kTf32Rnn) names.push_back("rnn");
  return names;
}

void write_outputs(Text& out, const Stack* results, const Signature& signature) {
  bool first = true;
  auto one = [&](const TensorMeta& meta) {
    out << (first ? "" : ",");
    write_meta(out, meta, -1, true);
    first = false;
  };
  if (!results) {
    for (const TensorMeta& meta : signature.outputs) one(meta);
    return;
  }
  for (size_t i = 0; i < results->size(); ++i) {
    if (signature.op->returns[i].kind == ReturnInfo::Argument) continue;
    const IValue& value = (*results)[i];
    if (value.isTensor())
      one(meta_of(value.toTensor()));
    else if (value.isTensorList())
      for (const at::Tensor& tensor : value.toTensorVector()) one(meta_of(tensor));
  }
}

std::string text_of(const Signature& signature, const IValue* arguments, const Stack* results) {
  const Op& op = *signature.op;
  Text out;
  out << "{\"op\":" << json_text(op.name) << ",\"inputs\":[";
  for (size_t i = 0; i < signature.inputs.size(); ++i) {
    out << (i ? "," : "");
    write_meta(out, signature.inputs[i], signature.storage_of[i], signature.written[i]);
  }
  out << "],\"outputs\":[";
  write_outputs(out, results, signature);
  out << "],\"args\":{";
  int slot = 0;
  const auto& schema = op.handle.schema().arguments();
  for (size_t i = 0; i < op.args.size(); ++i) {
    out << (i ? "," : "") << json_text(schema[i].name()) << ":";
    write_value(out, arguments[i], op.by_value || op.args[i].kind != ArgKind::Scalar, slot);
  }
  out << "}";
  if (signature.switches & kNoCudnnAttention) out << ",\"cudnn\":false";
  if (op.multiplies && signature.switches != kTf32Default) {
    out << ",\"tf32\":[";
    const char* separator = "";
    for (const std::string& name : names_of(signature.switches)) {
      out << separator << json_text(name);
      separator = ",";
    }
    out << "]";
  }
  out << "}";
  return out.str();
}

int32_t intern_text(Recording& state, std::string text) {
  auto [entry, added] = state.by_text.try_emplace(text, int32_t(state.signatures.size()));
  if (added) state.signatures.push_back(std::move(text));
  return entry->second;
}

int32_t intern_signature(Recording& state, const LaunchRow& row, const Stack* results) {
  if (results) return intern_text(state, text_of(row.signature, row.arguments, results));
  auto& slot = row.signature.recorded;
  int64_t cached = slot.load(std::memory_order_relaxed);
  if (cached >> 32 == state.number) return int32_t(cached & 0xffffffff);
  int32_t id = intern_text(state, text_of(row.signature, row.arguments, nullptr));
  slot.store(state.number << 32 | id, std::memory_order_relaxed);
  return id;
}

int32_t intern_line(Recording& state, const Line& line) {
  if (!line.code) return -1;
  int64_t place = int64_t(line.stack + 1) << 32 | uint32_t(line.instruction);
  auto [entry, added] = state.line_ids.try_emplace({line.code, place}, int32_t(state.lines.size()));
  if (added) {
    state.lines.emplace_back(line, "");
    state.lines.back().first.backward = false;
  }
  return entry->second;
}

template <class To>
To narrow(uint64_t value, const char* what) {
  TORCH_CHECK(value <= uint64_t(std::numeric_limits<To>::max()), "a recording holds at most ", std::numeric_limits<To>::max(),
              " ", what, ", got ", value);
  return To(value);
}

// True for rows that carry host time. Memory is allocated within a launch, so rows of the allocator and its events carry none.
bool carries_time(RowKind kind, uint8_t flags) {
  if (kind == RowKind::EventRecord || kind == RowKind::EventWait) return !(flags & kOfAllocator);
  return kind != RowKind::Alloc && kind != RowKind::Free && kind != RowKind::Reserve && kind != RowKind::Release &&
         kind != RowKind::Owner;
}

int32_t take_views(ViewCount& count) {
  return narrow<int32_t>(uint64_t(count.views.exchange(0, std::memory_order_relaxed)), "views between two launches");
}

void add_row(Recording& state, TraceRow& row) {
  row.use_count = narrow<uint32_t>(state.uses.size() - row.first_use, "tensors in a launch");
  state.rows.push_back(row);
  if (C10_UNLIKELY(profiling())) profiler_note_row(state.rows.size() - 1);
}

thread_local int64_t launches = 0;

// The node that autograd made for the launch under way; 0: none. Each node belongs to the first launch that asks.
int64_t take_node() {
  static thread_local int64_t taken = 0;
  int64_t node = latest_node();
  if (node == taken) return 0;
  taken = node;
  return node;
}

int64_t within_pass(int64_t runs, bool rebuilds) { return -2 * runs - int64_t(rebuilds); }

int64_t node_of_launch(const Line& line, bool in_graph) {
  int64_t made = take_node();
  if (line.phase == Phase::Backward) return line.runs | (in_graph ? kInGraph : 0);
  if (line.runs) return within_pass(line.runs, c10::GradMode::is_enabled());
  return in_graph ? made : 0;
}

TraceRow new_row(Recording& state, RowKind kind, const Stream* stream, const Line& line, uint8_t flags = 0) {
  TraceRow row{};
  thread_clock.join(state);
  int32_t master = works_for();
  row.thread = master >= 0 ? master : thread_clock.id;
  if (int64_t signal = take_start_signal()) {
    TraceRow start = new_row(state, RowKind::Resume, nullptr, {});
    start.object = signal;
    add_row(state, start);
  }
  if (carries_time(kind, flags)) {
    row.host_ns = thread_clock.elapsed();
    row.views = take_views(*thread_clock.count);
  }
  row.kind = kind;
  row.flags = flags;
  row.signature = -1;
  row.line = intern_line(state, line);
  row.module = line.module;
  row.phase = line.phase;
  row.device = stream ? int8_t(stream->id.device_index()) : int8_t(current_device());
  row.stream = stream ? int16_t(stream->id.id()) : int16_t(-1);
  row.first_use = state.uses.size();
  return row;
}

void add_use(Recording& state, const void* address, bool written) {
  if (address) state.uses.push_back(uint64_t(reinterpret_cast<uintptr_t>(address)) * 2 + written);
}

// ---- copies that a plan makes necessary, see record/residency.h

void add_copy(Recording& state, RowKind kind, const Stream& stream, const Line& line, const void* address, int64_t bytes) {
  TraceRow row = new_row(state, kind, &stream, line, kPinned);
  row.bytes = bytes;
  add_use(state, address, kind == RowKind::H2D);
  add_row(state, row);
}

// Adds the copies of what a launch or copy reads and its side does not have, and the host's wait for those that go down.
void add_copies(Recording& state, const Stream& stream, const Line& line, const std::vector<Touched>& touched, bool on_host) {
  bool waits = false;
  for (const Touched& storage : touched) {
    if (!storage.read || !state.residency.fetch(storage, on_host)) continue;
    add_copy(state, on_host ? RowKind::D2H : RowKind::H2D, stream, line, storage.address, state.residency.bytes(storage));
    waits |= on_host;
  }
  if (waits) {
    TraceRow row = new_row(state, RowKind::StreamSync, &stream, line, kOfDownload);
    add_row(state, row);
  }
  for (const Touched& storage : touched)
    if (storage.written) state.residency.write(storage, on_host);
}

std::vector<Touched> touched_by(const LaunchRow& launch) {
  const Signature& signature = launch.signature;
  std::vector<Touched> touched;
  for (size_t s = 0; s < launch.storages.size(); ++s) {
    const StorageRef& storage = launch.storages[s];
    if (!storage.address) continue;
    bool read = false;
    for (size_t i = 0; i < signature.inputs.size(); ++i) {
      if (signature.storage_of[i] != int32_t(s)) continue;
      bool whole = signature.inputs[i].nbytes >= storage.bytes;
      read |= !(signature.written[i] && signature.op->overwrites && whole);
    }
    touched.push_back({storage.address, int64_t(storage.bytes), read, signature.storage_written[s] != 0});
  }
  for (size_t i = 0; i < launch.outputs.size(); ++i)
    if (launch.outputs[i]) touched.push_back({launch.outputs[i], 0, false, true});
  return touched;
}

// Adds rows for the views, of all threads, that no row carries yet. Called before the recording is read.
void settle_views(Recording& state) {
  if (!recording()) return;
  std::lock_guard<std::mutex> lock(state.counts_mutex);
  for (const auto& count : state.counts) {
    int32_t views = take_views(*count);
    if (views == 0) continue;
    TraceRow row{};
    row.kind = RowKind::Host;
    row.signature = row.line = row.module = -1;
    row.device = int8_t(current_device());
    row.stream = -1;
    row.thread = count->thread;
    row.first_use = state.uses.size();
    row.views = views;
    if (count == thread_clock.count) row.host_ns = thread_clock.elapsed();
    add_row(state, row);
  }
}

void forget_views(Recording& state) {
  std::lock_guard<std::mutex> lock(state.counts_mutex);
  for (const auto& count : state.counts) count->views = 0;
}

}  // namespace

int64_t launches_of_thread() { return launches; }

int64_t recorded_rows() {
  Recording& state = recording_state();
  std::lock_guard<std::mutex> lock(state.mutex);
  return int64_t(state.rows.size());
}

int64_t recording_number() { return recording_state().number; }

void count_view() {
  if (C10_UNLIKELY(Unrecorded::on())) return;
  thread_clock.join(recording_state());
  int32_t master = works_for();
  thread_clock.count->thread.store(master >= 0 ? master : thread_clock.id, std::memory_order_relaxed);
  thread_clock.count->views.fetch_add(1, std::memory_order_relaxed);
}

int recording_thread() {
  thread_clock.join(recording_state());
  return thread_clock.id;
}

void skip_host_time() {
  thread_clock.join(recording_state());
  thread_clock.elapsed();
}

// The compiled program that the thread executes: its launches are one call of the host, as those of a graph. 0: none.
static thread_local int64_t program_under_way = 0;

void record_launch(const LaunchRow& launch, uint8_t flags, const Stack* results) {
  if (C10_UNLIKELY(Unrecorded::on())) return;
  Recording& state = recording_state();
  std::lock_guard<std::mutex> lock(state.mutex);
  if (C10_UNLIKELY(has_plan())) add_copies(state, launch.stream, launch.line, touched_by(launch), launch.replay == kPlacedOnHost);
  TraceRow row = new_row(state, RowKind::Launch, &launch.stream, launch.line, flags);
  row.signature = intern_signature(state, launch, results);
  row.object = launch.replay ? launch.replay : program_under_way;
  row.bytes = node_of_launch(launch.line, launch.in_graph);
  const auto& written = launch.signature.storage_written;
  for (size_t i = 0; i < launch.storages.size(); ++i) add_use(state, launch.storages[i].address, written[i]);
  for (void* output : launch.outputs) add_use(state, output, true);
  add_row(state, row);
  launches += launch.signature.op->name != "aten::copy_";
}

void record_row(RowKind kind, const Stream* stream, const Line& line, int64_t bytes, int64_t object, uint8_t flags) {
  if (C10_UNLIKELY(Unrecorded::on()) && carries_time(kind, flags)) return;
  Recording& state = recording_state();
  std::lock_guard<std::mutex> lock(state.mutex);
  TraceRow row = new_row(state, kind, stream, line, flags);
  row.bytes = bytes;
  row.object = object;
  add_row(state, row);
}

void record_event(const Stream& stream, int64_t event, const void* keeps) {
  Line line = current_line();
  Recording& state = recording_state();
  std::lock_guard<std::mutex> lock(state.mutex);
  TraceRow row = new_row(state, RowKind::EventRecord, &stream, line, keeps ? kOfAllocator : 0);
  row.object = event;
  add_use(state, keeps, false);
  add_row(state, row);
}

bool record_copy(RowKind kind, const Stream& stream, int64_t bytes, uint8_t flags, const void* from, const void* to,
                 int64_t other) {
  if (C10_UNLIKELY(Unrecorded::on())) return true;
  Line line = current_line();
  Recording& state = recording_state();
  std::lock_guard<std::mutex> lock(state.mutex);
  if (C10_UNLIKELY(has_plan())) {
    if (kind == RowKind::D2H && state.residency.on_host(from)) other = kPlacedOnHost;
    std::vector<Touched> touched;
    if (from) touched.push_back({from, 0, true, false});
    if (to) touched.push_back({to, bytes, !state.residency.is_whole(to, bytes), true});
    add_copies(state, stream, line, touched, kind != RowKind::D2D && other == kPlacedOnHost);
  }
  TraceRow row = new_row(state, kind, &stream, line, flags);
  row.bytes = bytes;
  row.object = other;
  add_use(state, from, false);
  add_use(state, to, true);
  add_row(state, row);
  return kind == RowKind::D2D || other != kPlacedOnHost;
}

void record_owner(int64_t address, int64_t kind, int64_t module, int64_t itemsize, int64_t device) {
  if (!recording()) return;
  Recording& state = recording_state();
  std::lock_guard<std::mutex> lock(state.mutex);
  TraceRow row = new_row(state, RowKind::Owner, nullptr, {}, uint8_t(itemsize));
  row.object = address;
  row.bytes = kind;
  row.module = int32_t(module);
  row.device = int8_t(device);
  add_row(state, row);
}

void record_allocation(const Stream& stream, const Line& line, const AllocationRow& allocation, uint8_t flags) {
  Recording& state = recording_state();
  std::lock_guard<std::mutex> lock(state.mutex);
  if (C10_UNLIKELY(has_plan())) state.residency.allocate(allocation.address, allocation.bytes);
  TraceRow row = new_row(state, RowKind::Alloc, &stream, line, flags);
  row.bytes = allocation.bytes;
  row.object = int64_t(reinterpret_cast<uintptr_t>(allocation.address));
  row.views = narrow<int32_t>(uint64_t(allocation.bytes - allocation.rounded), "bytes of a block beyond its request");
  row.host_ns = allocation.arena;
  add_row(state, row);
}

std::vector<MemoryRow> recorded_memory(int device) {
  Recording& state = recording_state();
  std::lock_guard<std::mutex> lock(state.mutex);
  std::vector<MemoryRow> memory;
  for (const TraceRow& row : state.rows) {
    bool allocates = row.kind == RowKind::Alloc;
    if (row.device != device ||
        (!allocates && row.kind != RowKind::Free && row.kind != RowKind::Reserve && row.kind != RowKind::Release))
      continue;
    memory.push_back({row.kind, row.flags, row.stream, allocates ? row.host_ns : 0, row.bytes - (allocates ? row.views : 0),
                      uint64_t(row.object)});
  }
  return memory;
}

void record_free(const Stream& stream, int64_t bytes, const void* address) {
  record_row(RowKind::Free, &stream, {}, bytes, int64_t(reinterpret_cast<uintptr_t>(address)));
}

// Records a kernel of a compiled graph. `read` and `written` are on the chip. The compiler provides the line ("": the caller's),
// the module (-1: none, -2: the caller's), and whether the graph is a backward graph. `node` is autograd's node for a forward
// graph that has a backward graph, the same for all its kernels; 0: none. `replay` numbers the replay of a graph that the kernel
// belongs to; 0 if the host launches it alone.
void record_compiled(const std::string& signature, at::TensorList read, at::TensorList written, const std::string& line,
                     int64_t module, bool backward, int64_t node, int64_t replay) {
  if (!recording()) return;
  Line here = current_line();
  const Stream& stream = current_stream((written.empty() ? read : written).front().device().index());
  Recording& state = recording_state();
  std::lock_guard<std::mutex> lock(state.mutex);
  if (C10_UNLIKELY(has_plan())) {
    std::vector<Touched> touched;
    for (const at::Tensor& tensor : read) touched.push_back({tensor.storage().data(), 0, true, false});
    for (const at::Tensor& tensor : written) touched.push_back({tensor.storage().data(), 0, false, true});
    add_copies(state, stream, here, touched, false);
  }
  TraceRow row = new_row(state, RowKind::Launch, &stream, here);
  row.signature = intern_text(state, signature);
  if (module != -2) row.module = int32_t(module);
  row.object = replay;
  if (backward) row.phase = Phase::Backward;
  row.bytes = backward ? here.runs : here.runs ? within_pass(here.runs, true) : node;
  if (!line.empty()) {
    auto [entry, added] = state.line_texts.try_emplace(line, int32_t(state.lines.size()));
    if (added) state.lines.emplace_back(Line{}, line);
    row.line = entry->second;
  }
  for (const at::Tensor& tensor : read) add_use(state, tensor.storage().data(), false);
  for (const at::Tensor& tensor : written) add_use(state, tensor.storage().data(), true);
  add_row(state, row);
  ++launches;
}

void record_described(const std::string& signature, const Stream& stream, const Line& line,
                      const std::vector<std::pair<const void*, bool>>& uses, uint8_t flags) {
  Recording& state = recording_state();
  std::lock_guard<std::mutex> lock(state.mutex);
  if (C10_UNLIKELY(has_plan())) {
    std::vector<Touched> touched;
    for (const auto& [memory, is_written] : uses) touched.push_back({memory, 0, true, is_written});
    add_copies(state, stream, line, touched, false);
  }
  TraceRow row = new_row(state, RowKind::Launch, &stream, line, flags);
  row.signature = intern_text(state, signature);
  row.bytes = node_of_launch(line, false);
  for (const auto& [memory, written] : uses) add_use(state, memory, written);
  add_row(state, row);
}

int64_t next_replay() { return ++recording_state().replays; }

RecordedRow record_kernel(const Line& line, const Stream& stream, const c10::SmallVector<StorageRef, 6>& storages,
                          const std::vector<int64_t>& written) {
  Recording& state = recording_state();
  std::lock_guard<std::mutex> lock(state.mutex);
  if (C10_UNLIKELY(has_plan())) {
    std::vector<Touched> touched;
    for (size_t i = 0; i < storages.size(); ++i)
      touched.push_back({storages[i].address, int64_t(storages[i].bytes), true, written[i] != 0});
    add_copies(state, stream, line, touched, false);
  }
  TraceRow row = new_row(state, RowKind::Launch, &stream, line);
  row.bytes = node_of_launch(line, false);
  for (size_t i = 0; i < storages.size(); ++i) add_use(state, storages[i].address, written[i] != 0);
  add_row(state, row);
  ++launches;
  return {state.number, state.rows.size() - 1};
}

void amend_recorded(const RecordedRow& row, std::string signature) {
  Recording& state = recording_state();
  std::lock_guard<std::mutex> lock(state.mutex);
  if (row.recording == state.number && row.row < state.rows.size())
    state.rows[row.row].signature = intern_text(state, std::move(signature));
}

void drop_recorded(const RecordedRow& dropped) {
  Recording& state = recording_state();
  std::lock_guard<std::mutex> lock(state.mutex);
  if (dropped.recording != state.number || dropped.row >= state.rows.size()) return;
  TraceRow& row = state.rows[dropped.row];
  row.kind = RowKind::Host;
  row.stream = -1;
  row.bytes = 0;
  row.use_count = 0;
}

// ---- Python's side

namespace {

void start_recording() {
  Recording& state = recording_state();
  TORCH_CHECK(!recording(), "a recording is under way: stop it before another one starts");
  std::lock_guard<std::mutex> lock(state.mutex);
  ++state.number;
  state.rows.clear();
  state.aside.clear();
  state.uses.clear();
  state.signatures.clear();
  state.by_text.clear();
  state.lines.clear();
  state.line_texts.clear();
  state.line_ids.clear();
  state.residency.clear();
  state.threads = 0;
  state.replays = 0;
  {
    std::lock_guard<std::mutex> counts_lock(state.counts_mutex);
    state.counts.clear();
  }
  recording_now = true;
}

// Replaces addresses by numbers in order of first appearance, so that the same program gives the same numbers.
struct StorageNumbers {
  ska::flat_hash_map<uint64_t, int64_t> numbers;
  int64_t next = 0;
  int64_t fresh(uint64_t address) { return numbers[address] = next++; }
  int64_t number_of(uint64_t address) {
    auto entry = numbers.find(address);
    return entry == numbers.end() ? fresh(address) : entry->second;
  }
};

// The nodes that backward passes ran.
ska::flat_hash_set<int64_t> nodes_that_ran(const std::deque<TraceRow>& rows) {
  ska::flat_hash_set<int64_t> nodes;
  for (const TraceRow& row : rows) {
    if (row.kind != RowKind::Launch) continue;
    if (row.bytes < 0) nodes.insert(-row.bytes / 2);
    if (row.bytes > 0 && row.phase == Phase::Backward) nodes.insert(row.bytes & ~kInGraph);
  }
  return nodes;
}

int64_t graph_use(const TraceRow& row, const ska::flat_hash_set<int64_t>& ran) {
  if (row.phase == Phase::Backward) return row.bytes & kInGraph ? kDifferentiable : kNoNode;
  if (!row.bytes) return kNoNode;
  if (row.bytes < 0) return row.bytes % 2 ? kRebuilt : kWithin;
  return ran.count(row.bytes) ? kRan : kNeverRan;
}

template <class T, class F>
at::Tensor column(const std::deque<TraceRow>& rows, size_t first, c10::ScalarType dtype, F value) {
  at::Tensor tensor = at::empty({int64_t(rows.size() - first)}, at::TensorOptions(dtype).device(c10::kCPU));
  T* out = static_cast<T*>(tensor.mutable_data_ptr());
  for (size_t i = first; i < rows.size(); ++i) *out++ = T(value(rows[i]));
  return tensor;
}

// The rows from `start` on, as columns. Storages are numbered only if `start` is 0. Without `settle`, no row is added for
// views, so that the recording is the same whoever reads it meanwhile.
std::vector<at::Tensor> recorded_columns(int64_t start, bool settle) {
  wait_for_kernels();
  Recording& state = recording_state();
  std::lock_guard<std::mutex> lock(state.mutex);
  if (settle) settle_views(state);
  const auto& rows = state.rows;
  size_t first = size_t(std::min<int64_t>(start, int64_t(rows.size())));
  using c10::ScalarType;
  auto ran = first == 0 ? nodes_that_ran(rows) : ska::flat_hash_set<int64_t>();
  auto bytes = [&](const TraceRow& row) {
    if (row.kind != RowKind::Launch) return row.bytes;
    return first == 0 ? graph_use(row, ran) : kNoNode;
  };
  std::vector<at::Tensor> columns{
      column<uint8_t>(rows, first, ScalarType::Byte, [](const TraceRow& row) { return row.kind; }),
      column<uint8_t>(rows, first, ScalarType::Byte, [](const TraceRow& row) { return row.flags; }),
      column<uint8_t>(rows, first, ScalarType::Byte, [](const TraceRow& row) { return row.phase; }),
      column<int8_t>(rows, first, ScalarType::Char, [](const TraceRow& row) { return row.device; }),
      column<int16_t>(rows, first, ScalarType::Short, [](const TraceRow& row) { return row.stream; }),
      column<int32_t>(rows, first, ScalarType::Int, [](const TraceRow& row) { return row.thread; }),
      column<int32_t>(rows, first, ScalarType::Int,
                      [](const TraceRow& row) { return row.kind == RowKind::Alloc ? 0 : row.views; }),
      column<int32_t>(rows, first, ScalarType::Int, [](const TraceRow& row) { return row.signature; }),
      column<int32_t>(rows, first, ScalarType::Int, [](const TraceRow& row) { return row.line; }),
      column<int32_t>(rows, first, ScalarType::Int, [](const TraceRow& row) { return row.module; }),
      column<int64_t>(rows, first, ScalarType::Long,
                      [](const TraceRow& row) { return row.kind == RowKind::Alloc ? 0 : row.host_ns; }),
      column<int64_t>(rows, first, ScalarType::Long, bytes),
  };
  StorageNumbers storages;
  at::Tensor objects = at::empty({int64_t(rows.size() - first)}, at::kLong);
  at::Tensor uses = at::empty({first == 0 ? int64_t(state.uses.size()) : 0}, at::kLong);
  at::Tensor offsets = at::zeros({first == 0 ? int64_t(rows.size()) + 1 : 0}, at::kLong);
  auto* object = objects.mutable_data_ptr<int64_t>();
  auto* use = uses.mutable_data_ptr<int64_t>();
  auto* offset = offsets.mutable_data_ptr<int64_t>();
  for (size_t i = first; i < rows.size(); ++i) {
    const TraceRow& row = rows[i];
    bool memory = row.kind == RowKind::Alloc || row.kind == RowKind::Free || row.kind == RowKind::Owner;
    if (!memory || first > 0)
      *object++ = row.object;
    else
      *object++ = row.kind == RowKind::Alloc ? storages.fresh(uint64_t(row.object)) : storages.number_of(uint64_t(row.object));
    if (first > 0) continue;
    for (size_t k = row.first_use; k < row.first_use + row.use_count; ++k)
      *use++ = storages.number_of(state.uses[k] >> 1) * 2 + int64_t(state.uses[k] & 1);
    offset[1] = offset[0] + row.use_count;
    ++offset;
  }
  uses = uses.narrow(0, 0, use - uses.const_data_ptr<int64_t>());  // fewer than all if rows were set aside
  columns.insert(columns.end(), {objects, uses, offsets});
  return columns;
}

std::vector<std::string> recorded_signatures(int64_t start) {  // JSON
  wait_for_kernels();
  Recording& state = recording_state();
  std::lock_guard<std::mutex> lock(state.mutex);
  return {state.signatures.begin() + std::min<int64_t>(start, int64_t(state.signatures.size())), state.signatures.end()};
}

std::vector<std::string> recorded_lines() {
  std::vector<std::pair<Line, std::string>> lines;
  {
    std::lock_guard<std::mutex> lock(recording_state().mutex);
    lines = recording_state().lines;
  }
  std::vector<std::string> texts;
  texts.reserve(lines.size());
  for (const auto& [line, text] : lines)
    texts.push_back(text.empty() ? describe(line) : text);  // acquires the GIL, so the mutex must not be held
  return texts;
}

// For each line the number of its chain of frames, -1: none; and of each chain its caller's, its line and its function.
std::tuple<std::vector<int64_t>, std::vector<int64_t>, std::vector<std::string>, std::vector<std::string>> recorded_stacks() {
  std::tuple<std::vector<int64_t>, std::vector<int64_t>, std::vector<std::string>, std::vector<std::string>> result;
  auto& [of_line, callers, lines, functions] = result;
  {
    std::lock_guard<std::mutex> lock(recording_state().mutex);
    for (const auto& [line, text] : recording_state().lines) of_line.push_back(line.stack);
  }
  for (const StackFrame& frame : kept_stacks()) {
    callers.push_back(frame.caller);
    lines.push_back(describe(frame.line));
    functions.push_back(function_of(frame));
  }
  return result;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bringup, m) {
  m.def("start_recording() -> ()", &start_recording);
  m.def("stop_recording() -> ()", [] { recording_now = false; });
  m.def("set_recording_aside(bool aside) -> ()", [](bool aside) {  // rows between the two calls are dropped
    wait_for_kernels();
    Recording& state = recording_state();
    std::lock_guard<std::mutex> lock(state.mutex);
    aside ? settle_views(state) : forget_views(state);
    std::swap(state.rows, state.aside);
    if (!aside) state.aside.clear();
    skip_host_time();
  });
  m.def("is_recording() -> bool", [] { return recording(); });
  m.def("asking_thread() -> int", [] {  // the number of the thread that asks for the time; waits of new libraries count, too
    watch_new_libraries();
    return int64_t(recording_thread());
  });
  m.def("recorded_rows() -> int", [] {
    settle_interrupted();
    std::lock_guard<std::mutex> lock(recording_state().mutex);
    settle_views(recording_state());
    return int64_t(recording_state().rows.size());
  });
  m.def("row_count() -> int", &recorded_rows);  // unlike `recorded_rows`, adds no rows for views
  m.def("recorded_columns(int start, bool settle=True) -> Tensor[]", &recorded_columns);
  m.def("recorded_signatures(int start) -> str[]", &recorded_signatures);
  m.def("recorded_lines() -> str[]", &recorded_lines);
  m.def("keep_stacks(bool keep) -> int", [](bool keep) { return int64_t(keep_stacks(keep)); });
  m.def("recorded_stacks() -> (int[], int[], str[], str[])", &recorded_stacks);
  m.def("record_mark(int kind, int object) -> ()", [](int64_t kind, int64_t object) {
    if (recording()) record_row(RowKind(kind), nullptr, current_line(), 0, object);
    if (has_plan() && RowKind(kind) == RowKind::Step) plan_begins_step();
    mark_in_ledger(RowKind(kind), object);
  });
  m.def("record_owner(int address, int kind, int module, int itemsize, int device) -> ()", &record_owner);
  m.def(
      "record_compiled(str signature, Tensor[] read, Tensor[] written, str line, int module, bool backward, int node, "
      "int replay) -> ()",
      [](const std::string& signature, const std::vector<at::Tensor>& read, const std::vector<at::Tensor>& written,
         const std::string& line, int64_t module, bool backward, int64_t node,
         int64_t replay) { record_compiled(signature, read, written, line, module, backward, node, replay); });
  m.def("latest_node() -> int", &latest_node);
  m.def("next_replay() -> int", &next_replay);
  // Numbers the compiled program that this thread executes, as `next_replay` does; returns the number before.
  m.def("set_program(int number) -> int", [](int64_t number) { return std::exchange(program_under_way, number); });
  m.def("skip_host_time() -> ()", &skip_host_time);
  m.def("be_quiet(bool quiet) -> ()", [](bool quiet) { quiet ? Unrecorded::enter() : Unrecorded::leave(); });
  m.def("tf32_switches() -> str[]", [] { return names_of(tf32_switches()); });  // those that are on
  // The names of the kinds, flags, phases and waits, in the order of their numbers.
  m.def("row_kinds() -> str[]", [] {
    return std::vector<std::string>{
#define ROW_KIND(name, text) text,
#include "record/rows.inc"
    };
  });
  m.def("row_flags() -> str[]", [] {
    return std::vector<std::string>{
#define ROW_FLAG(name, bit, text) text,
#include "record/rows.inc"
    };
  });
  m.def("row_phases() -> str[]", [] { return std::vector<std::string>{"forward", "backward", "optimizer"}; });
  m.def("row_waits() -> str[]", [] { return std::vector<std::string>{"sleep", "descriptor", "process", "lock"}; });
}

}  // namespace bringup
