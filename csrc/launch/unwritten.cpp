#include "launch/unwritten.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/MemoryOverlap.h>
#include <ATen/Operators.h>
#include <torch/library.h>

#include <cstring>
#include <mutex>
#include <set>
#include <unordered_map>

#include "json.h"
#include "launch/dry.h"
#include "launch/launch.h"
#include "python/python.h"
#include "runtime/memory.h"
#include "text.h"

namespace bringup {

std::atomic<bool> unwritten_is_watched{false};

using at::Tensor;

// A launch that used elements which were never written.
struct Read {
  std::string op;
  Line line;
  std::string kernel_line;  // of a program's own kernel
  Line allocated;
  std::string part;  // "rows 6 to 15 of dimension 2 of float32[4, 16, 16]"
  bool reported = false;
};
using ReadPtr = std::shared_ptr<Read>;
using ReadSet = std::set<ReadPtr>;

struct Marked {
  Tensor marks;  // bytes: 0xff if the byte of the allocation is marked, else 0
  TensorMeta meta;
  Line allocated;
  ReadSet reads;         // what its marked elements depend on; empty: they were never written
  bool pending = false;  // a result that no launch has read
};

namespace {

using MarkedPtr = std::shared_ptr<Marked>;

struct State {
  std::mutex mutex;
  std::unordered_map<int64_t, MarkedPtr> by_allocation, aside;
  std::vector<int64_t> freed;
  std::vector<ReadPtr> reported;
};

State& state() {
  static auto* all = new State();
  return *all;
}

MarkedPtr marked(int64_t allocation) {
  std::lock_guard<std::mutex> lock(state().mutex);
  auto entry = state().by_allocation.find(allocation);
  return entry == state().by_allocation.end() ? nullptr : entry->second;
}

void set_marked(int64_t allocation, MarkedPtr entry) {
  std::lock_guard<std::mutex> lock(state().mutex);
  if (entry)
    state().by_allocation[allocation] = std::move(entry);
  else
    state().by_allocation.erase(allocation);
}

void report(const ReadSet& reads) {
  std::lock_guard<std::mutex> lock(state().mutex);
  for (const ReadPtr& read : reads)
    if (!std::exchange(read->reported, true)) state().reported.push_back(read);
}

// ---- memory as elements

c10::ScalarType bits_of(c10::ScalarType dtype) {
  switch (c10::elementSize(dtype)) {
    case 1:
      return c10::ScalarType::Char;
    case 2:
      return c10::ScalarType::Short;
    case 4:
      return c10::ScalarType::Int;
    default:
      return c10::ScalarType::Long;
  }
}

// The bits of the two values in place of a marked element. The first one poisons what it meets; the second one is harmless.
int64_t bits_for(c10::ScalarType dtype, bool poison) {
  if (dtype == c10::ScalarType::Bool) return poison;
  if (!c10::isFloatingType(dtype) && !c10::isComplexType(dtype)) return poison ? 0x7f7f7f7f7f7f7f7f : 0;
  switch (c10::toRealValueType(dtype)) {
    case c10::ScalarType::Double:
      return poison ? 0x7ff8000000000000 : 0x3fe8000000000000;
    case c10::ScalarType::Float:
      return dtype == c10::ScalarType::ComplexFloat ? (poison ? 0x7fc000007fc00000 : 0x3f4000003f400000)
                                                    : (poison ? 0x7fc00000 : 0x3f400000);
    case c10::ScalarType::Half:
      return poison ? 0x7e00 : 0x3a00;
    case c10::ScalarType::BFloat16:
      return poison ? 0x7fc0 : 0x3f40;
    case c10::ScalarType::Float8_e4m3fnuz:
    case c10::ScalarType::Float8_e5m2fnuz:
      return poison ? -128 : 0x30;
    default:
      return poison ? 0x7f : 0x30;
  }
}

int64_t truncated(int64_t bits, c10::ScalarType type) {
  int shift = 64 - 8 * int(c10::elementSize(type));
  return int64_t(uint64_t(bits) << shift) >> shift;
}

// Memory as a row of integers of a dtype's size.
Tensor flat(void* memory, size_t bytes, c10::ScalarType dtype) {
  c10::ScalarType type = bits_of(dtype);
  TensorMeta meta;
  meta.defined = true;
  meta.dtype = type;
  meta.sizes = {int64_t(bytes / c10::elementSize(type))};
  meta.strides = {1};
  return alias(borrow(memory, bytes), meta, 0);
}

Tensor flat(const Tensor& bytes, c10::ScalarType dtype) { return flat(bytes.mutable_data_ptr(), size_t(bytes.numel()), dtype); }

// The marks of a view of an allocation. Dimensions that repeat the same elements have size 1, so that it can be written.
Tensor marks_of_view(const Marked& entry, const TensorMeta& meta, int64_t offset) {
  TensorMeta view = meta;
  view.conjugate = view.negative = false;
  size_t size = c10::elementSize(meta.dtype);
  view.dtype = bits_of(meta.dtype);
  int64_t parts = int64_t(size / c10::elementSize(view.dtype));  // 2 for complex128
  for (size_t i = 0; i < view.sizes.size(); ++i) {
    if (view.strides[i] == 0) view.sizes[i] = std::min<int64_t>(view.sizes[i], 1);
    view.strides[i] *= parts;
  }
  if (parts > 1) view.sizes.push_back(parts), view.strides.push_back(1);
  return alias(borrow(entry.marks.mutable_data_ptr(), size_t(entry.marks.numel())), view, offset * parts);
}

bool has_marks(const Tensor& marks) { return marks.numel() > 0 && marks.ne(0).any().item<bool>(); }

bool covers(const TensorMeta& meta, size_t bytes) {
  return size_t(c10::multiply_integers(meta.sizes)) * c10::elementSize(meta.dtype) >= bytes;
}

// ---- texts

constexpr size_t kMostSpans = 6;  // further ones are only counted

// Rising numbers as words: "3", "0 to 4 and 7", "1, 3 and 5 to 9".
std::string spans(const Tensor& numbers) {
  std::vector<std::string> texts;
  int64_t count = numbers.numel(), left = 0;
  for (int64_t i = 0, next; i < count; i = next) {
    int64_t first = numbers[i].item<int64_t>();
    for (next = i + 1; next < count && numbers[next].item<int64_t>() == first + next - i;) ++next;
    if (texts.size() == kMostSpans)
      left += next - i;
    else
      texts.push_back(std::to_string(first) + (next - i > 1 ? " to " + std::to_string(first + next - i - 1) : ""));
  }
  if (left) texts.push_back(std::to_string(left) + " more");
  std::string words;
  for (size_t i = 0; i < texts.size(); ++i) words += (i == 0 ? "" : i + 1 < texts.size() ? ", " : " and ") + texts[i];
  return words;
}

// Names the marked elements of an allocation: slices of one dimension if that is what they are, else from the first to the last.
std::string part_of(const TensorMeta& meta, const Tensor& marks) {
  std::string what = text_of(meta);
  Tensor elements = marks.ne(0);
  if (c10::elementSize(meta.dtype) == 16) elements = elements.view({-1, 2}).select(1, 0);
  int64_t count = elements.sum().item<int64_t>();
  std::string counted = std::to_string(count) + " of its " + std::to_string(elements.numel()) + " elements";
  if (elements.numel() == c10::multiply_integers(meta.sizes) && !meta.sizes.empty()) {
    Tensor shaped = elements.as_strided(meta.sizes, meta.strides);
    for (int64_t d = 0; d < shaped.dim(); ++d) {
      int64_t size = shaped.size(d), all = shaped.numel() / std::max<int64_t>(size, 1);
      Tensor slices = shaped.transpose(0, d).reshape({size, -1}).any(1).nonzero().reshape({-1});
      if (slices.numel() == size || slices.numel() * all != count) continue;
      bool vector = shaped.dim() == 1;
      std::string noun = vector ? "element" : "row";
      std::string of = vector ? " of " : " of dimension " + std::to_string(d) + " of ";
      return noun + (slices.numel() == 1 ? " " : "s ") + spans(slices) + of + what + " (" + counted + ")";
    }
  }
  Tensor places = elements.nonzero().reshape({-1});
  return "elements between " + std::to_string(places[0].item<int64_t>()) + " and " + std::to_string(places[-1].item<int64_t>()) +
         " of " + what + " (" + counted + ")";
}

// The marks that a view reads, as a row of integers of the allocation's dtype.
Tensor marks_read(const Marked& entry, const TensorMeta& meta, int64_t offset) {
  Marked touched{at::zeros_like(entry.marks), entry.meta, {}, {}, false};
  Tensor view = marks_of_view(touched, meta, offset);
  if (at::has_internal_overlap(view) == at::MemOverlap::Yes)
    touched.marks.fill_(255);
  else
    view.fill_(-1);
  return flat(touched.marks.bitwise_and_(entry.marks), entry.meta.dtype).clone();
}

// What a read of marked elements makes its results depend on. Memory that was never written at all is a matter for the check of
// the recording (recording/sanitize.py), which sees it without running anything.
ReadSet reads_of(Marked& entry, const std::function<Tensor()>& marks, const std::string& op, const Line& line,
                 const std::string& kernel_line = "") {
  entry.pending = false;
  if (!entry.reads.empty()) return entry.reads;
  if (entry.marks.all().item<bool>()) return {};
  auto read = std::make_shared<Read>();
  *read = {op, line, kernel_line, entry.allocated, part_of(entry.meta, marks()), false};
  return {read};
}

// ---- launches

struct Tracked {
  size_t storage;
  MarkedPtr entry;
  c10::ScalarType dtype;
};

void fill_marked(void* memory, const Tensor& marks, c10::ScalarType dtype, bool poison) {
  Tensor elements = flat(memory, size_t(marks.numel()), dtype);
  elements.masked_fill_(flat(marks, dtype).ne(0), truncated(bits_for(dtype, poison), elements.scalar_type()));
}

Tensor differing(const Tensor& a, const Tensor& b, c10::ScalarType dtype) {
  Tensor marks = at::zeros({a.numel()}, at::kByte);
  flat(marks, dtype).masked_fill_(flat(a, dtype).ne(flat(b, dtype)), -1);
  return marks;
}

// The memory that a launch changes: its results and the storages that it writes.
struct Region {
  int64_t allocation;
  void* memory;
  size_t bytes;
  TensorMeta meta;
  Tensor before = {}, harmless = {};  // content before the launch, and after it ran with harmless values
  Tensor copy() const { return flat(memory, bytes, c10::ScalarType::Byte).clone().view(c10::ScalarType::Byte); }
};

class Twice {
 public:
  Twice(Launch& launch, std::vector<Tracked> tracked, ReadSet reads)
      : launch_(launch), tracked_(std::move(tracked)), reads_(std::move(reads)) {
    int device = launch.stream->id.device_index();
    for (const StorageRef& storage : launch.storages) mapped_.emplace_back(device, storage.address);
    const Signature& signature = *launch.signature;
    for (size_t i = 0; i < launch.storages.size(); ++i) {
      if (!signature.storage_written[i]) continue;
      Region region{launch.storages[i].allocation, mapped_[i].host(), launch.storages[i].bytes, {}};
      for (size_t slot = 0; slot < signature.inputs.size(); ++slot)
        if (signature.storage_of[slot] == int(i) && signature.written[slot]) region.meta = signature.inputs[slot];
      region.before = region.copy();
      regions_.push_back(std::move(region));
    }
    for (size_t i = 0; i < launch.outputs.size(); ++i) {
      if (launch.outputs[i].bytes == 0) continue;
      void* memory = mapped_.emplace_back(device, launch.outputs[i].address).host();
      regions_.push_back({launch.outputs[i].allocation, memory, launch.outputs[i].bytes, signature.outputs[i]});
    }
    outputs_ = launch.outputs;
  }

  void run(const std::function<void()>& execute) {
    Tensor random = generator_state();
    put(false);
    execute();
    for (Region& region : regions_) region.harmless = region.copy();
    std::vector<c10::IValue> harmless = results();
    for (Region& region : regions_)
      if (region.before.defined()) std::memcpy(region.memory, region.before.const_data_ptr(), region.bytes);
    launch_.outputs = outputs_;
    launch_.inputs.clear();
    launch_.results.clear();
    if (random.defined()) launch_.generator.set_state(random);
    put(true);
    try {
      execute();
    } catch (...) {
      report(reads_);  // an index, for example
      throw;
    }
    for (Region& region : regions_) settle(region);
    if (launch_.waited) settle_results(harmless);
  }

 private:
  Tensor generator_state() { return launch_.generator.defined() ? launch_.generator.get_state() : Tensor(); }

  void put(bool poison) {
    for (const Tracked& item : tracked_) fill_marked(mapped_[item.storage].host(), item.entry->marks, item.dtype, poison);
  }

  std::vector<c10::IValue> results() {
    std::vector<c10::IValue> copies;
    for (const c10::IValue& value : launch_.results)
      copies.push_back(value.isTensor() && value.toTensor().defined() ? c10::IValue(value.toTensor().clone()) : value);
    return copies;
  }

  void settle(const Region& region) {
    MarkedPtr entry = marked(region.allocation);
    Tensor poisoned = region.copy();
    c10::ScalarType dtype = entry ? entry->meta.dtype : region.meta.dtype;
    Tensor marks = differing(region.harmless, poisoned, dtype);
    if (!has_marks(marks)) return set_marked(region.allocation, nullptr);
    auto after = std::make_shared<Marked>();
    *after = {marks, region.meta, launch_.line, reads_, true};
    if (entry) {
      *after = *entry;
      after->marks = marks;
      Tensor alone = left_alone(region, *entry, poisoned);
      if (has_marks(flat(marks, dtype).masked_fill(alone, 0))) {
        after->reads.insert(reads_.begin(), reads_.end());
        after->pending = !after->reads.empty();
      }
    } else if (reads_.empty()) {
      return;
    }
    set_marked(region.allocation, after);
  }

  // The marked elements that still have the value which was put in their place.
  static Tensor left_alone(const Region& region, const Marked& entry, const Tensor& poisoned) {
    c10::ScalarType dtype = entry.meta.dtype;
    Tensor marks = flat(entry.marks, dtype).ne(0);
    auto same = [&](const Tensor& content, bool poison) {
      Tensor elements = flat(content, dtype);
      return elements.eq(truncated(bits_for(dtype, poison), elements.scalar_type()));
    };
    return marks.logical_and_(same(region.harmless, false)).logical_and_(same(poisoned, true));
  }

  void settle_results(const std::vector<c10::IValue>& harmless) {
    for (size_t i = 0; i < harmless.size(); ++i) {
      const c10::IValue &a = harmless[i], &b = launch_.results[i];
      if (!a.isTensor()) {
        if (!a.isList() && a != b) report(reads_);
        continue;
      }
      const Tensor &x = a.toTensor(), &y = b.toTensor();
      if (!x.defined() || x.layout() != c10::kStrided) continue;
      if (x.sizes() != y.sizes()) {
        report(reads_);
      } else if (y.numel() > 0 && y.is_non_overlapping_and_dense() && !reads_.empty()) {
        size_t bytes = size_t(y.nbytes());
        Tensor marks = differing(flat(x.mutable_data_ptr(), bytes, c10::ScalarType::Byte),
                                 flat(y.mutable_data_ptr(), bytes, c10::ScalarType::Byte), y.scalar_type());
        if (!has_marks(marks)) continue;
        auto entry = std::make_shared<Marked>();
        *entry = {marks, meta_of(y), launch_.line, reads_, true};
        launch_.marked_results.emplace_back(y.const_data_ptr(), entry);
      }
    }
  }

  Launch& launch_;
  std::vector<Tracked> tracked_;
  ReadSet reads_;
  std::vector<Mapped> mapped_;
  std::vector<Region> regions_;
  decltype(Launch::outputs) outputs_;
};

// True if a call has a probability of dropout, and it is 0: attention's kernels then draw no numbers.
bool drops_nothing(const Launch& launch) {
  const auto& arguments = launch.signature->op->handle.schema().arguments();
  for (size_t i = 0; i < std::min(arguments.size(), launch.arguments.size()); ++i)
    if (arguments[i].name() == "dropout_p") return launch.arguments[i].isDouble() && launch.arguments[i].toDouble() == 0;
  return false;
}

// True if an operator gives the same result when it runs again with the same arguments and generator.
bool repeatable(const Launch& launch) {
  const Op& op = *launch.signature->op;
  bool own_generator = false;
  for (const ArgInfo& argument : op.args) own_generator |= argument.kind == ArgKind::Generator;
  if (op.name.compare(0, 6, "aten::") != 0) return false;
  return own_generator || !op.handle.hasTag(at::Tag::nondeterministic_seeded) || drops_nothing(launch);
}

// Removes the marks of what a launch that ran once has written; an operator that cannot run twice may have written everything.
void unmark_written(const Launch& launch, const std::vector<Tracked>& tracked) {
  const Signature& signature = *launch.signature;
  for (const Tracked& item : tracked)
    for (size_t slot = 0; slot < signature.inputs.size(); ++slot) {
      if (signature.storage_of[slot] != int(item.storage) || !signature.written[slot]) continue;
      const StorageRef& storage = launch.storages[item.storage];
      bool whole = !repeatable(launch) || covers(signature.inputs[slot], storage.bytes);
      if (!whole && !signature.op->overwrites) continue;
      if (whole) {
        set_marked(storage.allocation, nullptr);
        break;
      }
      Tensor view = marks_of_view(*item.entry, signature.inputs[slot], launch.offsets[slot]);
      if (at::has_internal_overlap(view) != at::MemOverlap::Yes) view.zero_();
      if (!has_marks(item.entry->marks)) set_marked(storage.allocation, nullptr);
    }
}

void poison_new(int device, const StorageRef& storage, const TensorMeta& meta, const Line& line) {
  Mapped memory(device, storage.address);
  auto entry = std::make_shared<Marked>();
  *entry = {at::full({int64_t(storage.bytes)}, 255, at::kByte), meta, line, {}, false};
  fill_marked(memory.host(), entry->marks, meta.dtype, true);
  set_marked(storage.allocation, entry);
}

void forget(const std::vector<int64_t>& freed) {
  std::lock_guard<std::mutex> lock(state().mutex);
  for (int64_t allocation : freed) state().by_allocation.erase(allocation);
}

}  // namespace

void mark_new(const Tensor& tensor) {
  StorageRef storage = storage_of(tensor);
  if (storage.bytes == 0 || is_dry() || tensor.is_quantized()) return;
  std::vector<int64_t> freed;
  {
    std::lock_guard<std::mutex> lock(state().mutex);
    freed = std::move(state().freed);
    state().freed.clear();
  }
  int device = tensor.device().index();
  enqueue(current_stream(c10::DeviceIndex(device)), "the watch of new memory",
          [device, storage, meta = meta_of(tensor), line = current_line(), freed](bool should_execute) {
            at::AutoDispatchBelowADInplaceOrView below;
            forget(freed);
            if (should_execute) poison_new(device, storage, meta, line);
          });
}

void note_overwritten(Stream& stream, const Tensor& tensor) {
  StorageRef storage = storage_of(tensor);
  size_t start = size_t(tensor.storage_offset()) * tensor.dtype().itemsize();
  enqueue(stream, "the watch of a copy", [storage, start, bytes = tensor.nbytes()](bool) {
    MarkedPtr entry = marked(storage.allocation);
    if (!entry) return;
    at::AutoDispatchBelowADInplaceOrView below;
    entry->marks.narrow(0, int64_t(start), int64_t(bytes)).zero_();
    if (!has_marks(entry->marks)) set_marked(storage.allocation, nullptr);
  });
}

void note_download(Stream& stream, const Tensor& tensor) {
  StorageRef storage = storage_of(tensor);
  enqueue(stream, "the watch of a copy",
          [storage, meta = meta_of(tensor), offset = tensor.storage_offset(), line = current_line()](bool should_execute) {
            MarkedPtr entry = should_execute ? marked(storage.allocation) : nullptr;
            if (!entry) return;
            at::AutoDispatchBelowADInplaceOrView below;
            if (has_marks(marks_of_view(*entry, meta, offset)))
              report(reads_of(*entry, [&] { return marks_read(*entry, meta, offset); }, "a copy to the host", line));
          });
}

void stop_watching(const Tensor& tensor) {
  Stream& stream = current_stream(tensor.device().index());
  enqueue(stream, "the watch of a view", [number = storage_of(tensor).allocation](bool) { set_marked(number, nullptr); });
  ReleaseGil no_gil;
  check_driver(driver().stream_synchronize(stream.handle), device(int(stream.id.device_index())), "a wait for a stream");
}

void note_freed(int64_t allocation) {
  std::lock_guard<std::mutex> lock(state().mutex);
  state().freed.push_back(allocation);
}

void run_watched(Launch& launch, const std::function<void()>& execute) {
  const Signature& signature = *launch.signature;
  std::vector<Tracked> tracked;
  for (size_t i = 0; i < launch.storages.size(); ++i)
    if (MarkedPtr entry = marked(launch.storages[i].allocation)) tracked.push_back({i, entry, entry->meta.dtype});
  if (tracked.empty()) return execute();
  ReadSet reads;
  bool reads_marks = false;
  for (const Tracked& item : tracked)
    for (size_t slot = 0; slot < signature.inputs.size(); ++slot) {
      if (signature.storage_of[slot] != int(item.storage) || (signature.written[slot] && signature.op->overwrites)) continue;
      const TensorMeta& meta = signature.inputs[slot];
      int64_t offset = launch.offsets[slot];
      if (!has_marks(marks_of_view(*item.entry, meta, offset))) continue;
      reads_marks = true;
      ReadSet more =
          reads_of(*item.entry, [&] { return marks_read(*item.entry, meta, offset); }, signature.op->name, launch.line);
      reads.insert(more.begin(), more.end());
    }
  if (reads_marks && !launch.guesses && repeatable(launch)) return Twice(launch, tracked, reads).run(execute);
  execute();
  unmark_written(launch, tracked);
}

void move_marks(const Launch& launch, const Tensor& result, const Tensor& placed) {
  for (const auto& [address, entry] : launch.marked_results)
    if (address == result.const_data_ptr() && size_t(entry->marks.numel()) == placed.storage().nbytes())
      set_marked(storage_of(placed).allocation, entry);
}

// ---- Python's side

namespace {

// The marks of an allocation, as bytes that may be changed; empty if it has none.
Tensor unwritten_marks(int64_t allocation) {
  MarkedPtr entry = marked(allocation);
  return entry ? entry->marks : at::empty({0}, at::kByte);
}

// A kernel of the program has read these marked bytes.
void unwritten_read(int64_t allocation, const Tensor& bytes, const std::string& op, const std::string& line) {
  MarkedPtr entry = marked(allocation);
  if (entry) report(reads_of(*entry, [&] { return flat(bytes, entry->meta.dtype); }, op, Line{}, line));
}

// Reports the results that no launch has read.
void report_pending() {
  std::set<int64_t> freed(state().freed.begin(), state().freed.end());
  for (auto& [allocation, entry] : state().by_allocation) {
    if (!entry->pending || freed.count(allocation)) continue;
    for (const ReadPtr& read : entry->reads)
      if (!std::exchange(read->reported, true)) state().reported.push_back(read);
  }
}

void watch_unwritten(bool watch) {
  if (!watch && unwritten_is_watched && opened())
    for (int index = 0; index < device_count(); ++index) drain(index);
  unwritten_is_watched = watch;
  std::lock_guard<std::mutex> lock(state().mutex);
  if (watch) return;
  report_pending();
  state().freed.clear();
  state().by_allocation.clear();
}

// Keeps the marks as they are, and returns to them.
void set_unwritten_aside(bool aside) {
  std::lock_guard<std::mutex> lock(state().mutex);
  if (!aside) {
    state().by_allocation = std::move(state().aside);
    state().aside.clear();
    return;
  }
  for (const auto& [allocation, entry] : state().by_allocation) {
    auto copy = std::make_shared<Marked>(*entry);
    copy->marks = entry->marks.clone();
    state().aside[allocation] = copy;
  }
}

// Returns the reads of unwritten memory since the last call, as JSON.
std::string unwritten_reads() {
  std::vector<ReadPtr> reads;
  {
    std::lock_guard<std::mutex> lock(state().mutex);
    report_pending();
    reads.swap(state().reported);
  }
  Text out;
  out << "[";
  for (size_t i = 0; i < reads.size(); ++i) {
    const Read& read = *reads[i];
    out << (i ? "," : "") << "{\"op\":" << json_text(read.op) << ",\"line\":" << json_text(describe(read.line))
        << ",\"kernel_line\":" << json_text(read.kernel_line) << ",\"allocated\":" << json_text(describe(read.allocated))
        << ",\"part\":" << json_text(read.part) << "}";
  }
  out << "]";
  return out.str();
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bringup, m) {
  m.def("watch_unwritten(bool watch) -> ()", &watch_unwritten);
  m.def("set_unwritten_aside(bool aside) -> ()", &set_unwritten_aside);
  m.def("unwritten_reads() -> str", &unwritten_reads);
  m.def("unwritten_marks(int allocation) -> Tensor", &unwritten_marks);
  m.def("unwritten_read(int allocation, Tensor bytes, str op, str line) -> ()", &unwritten_read);
}

}  // namespace bringup
