#include "launch/ledger.h"

#include <torch/library.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "json.h"
#include "launch/native.h"
#include "record/recorder.h"
#include "text.h"

namespace bringup {

struct LedgerKey {
  std::string op;
  bool on_device;
  std::string reason;
  bool kernel_possible;
  auto operator<=>(const LedgerKey&) const = default;
};

namespace {

// The latest marks; what runs between two of them is kept apart. Chosen: 64 steps of a program that calls 32 modules in each.
constexpr size_t kMarks = 2048;
constexpr size_t kSpans = size_t(1) << 19;  // the latest parts of launches, whose times are kept one by one; chosen
constexpr size_t kPending = 256;            // points that wait for their event before it is queried

struct Tally {
  int64_t launches = 0, bytes_down = 0, bytes_up = 0;
  std::array<double, kParts> seconds{};

  void add(const Tally& other) {
    launches += other.launches, bytes_down += other.bytes_down, bytes_up += other.bytes_up;
    for (size_t i = 0; i < seconds.size(); ++i) seconds[i] += other.seconds[i];
  }
};

using TalliesByKey = std::map<const LedgerKey*, Tally>;

struct StreamPoint {
  bringup_event* event;
  Part part;
  const LedgerKey* key;
  int64_t mark;    // how many marks came before
  int64_t launch;  // its number
  int64_t rows;    // how many rows the recording had when the launch began; -1: there was none
};

// The points of a stream; the first one is reached, and has been counted.
struct StreamPoints {
  std::deque<StreamPoint> waiting;
  double seconds = -1;  // from the ledger's first event to the first point; -1: unknown
};

// A part of a launch, in seconds from the ledger's first event.
struct PartSpan {
  int64_t launch, rows;  // as in StreamPoint
  const LedgerKey* key;
  double begin, seconds;
};

// A module call, or the end of a step of an optimizer or of the program, as in the recording.
struct Mark {
  RowKind kind;
  int64_t object;
  double host_seconds;   // of the host's clock
  bringup_event* event;  // on the stream that was current then; null if there is none
};

// Returns an event that a stream has recorded; null if the driver cannot.
bringup_event* recorded_event(int index, bringup_stream* stream) {
  bringup_event* event = nullptr;
  if (driver().event_create(device(index).handle, &event) != BRINGUP_OK) return nullptr;
  if (driver().event_record(event, stream) != BRINGUP_OK) driver().event_destroy(std::exchange(event, nullptr));
  return event;
}

struct Ledger {
  std::mutex order;  // held before `mutex`, so that events are added as they were recorded; recording waits if a queue is full
  std::mutex mutex;
  std::set<LedgerKey> keys;
  std::map<int64_t, TalliesByKey> since;  // by the number of marks before
  TalliesByKey earlier;                   // before the latest marks
  int64_t marked = 0;
  std::deque<Mark> marks;  // the latest
  std::atomic<bool> measures{false};
  std::unordered_map<Stream*, StreamPoints> points;
  std::map<int, bringup_event*> first;  // the first event of a device
  std::deque<PartSpan> spans;           // the latest

  Tally& tally(const LedgerKey* key, int64_t mark) {
    if (!since.empty() && mark < since.begin()->first && since.size() > kMarks) return earlier[key];
    if (!since.contains(mark) && since.size() > kMarks) {
      for (auto& [oldest, tally] : since.begin()->second) earlier[oldest].add(tally);
      since.erase(since.begin());
    }
    return since[mark][key];
  }
  TalliesByKey total() {
    TalliesByKey sum = earlier;
    for (auto& [mark, tallies] : since)
      for (auto& [key, tally] : tallies) sum[key].add(tally);
    return sum;
  }
  // Counts the points that are reached.
  void reap(Stream& stream, StreamPoints& of_stream) {
    auto& waiting = of_stream.waiting;
    while (waiting.size() > 1 && driver().event_query(waiting[1].event) == 1) {
      if (of_stream.seconds < 0) of_stream.seconds = since_first(stream, waiting[0].event);
      double seconds = 0;
      const StreamPoint& point = waiting[1];
      bool is_timed = driver().event_elapsed(waiting[0].event, point.event, &seconds) == BRINGUP_OK;
      if (is_timed && seconds > 0) count(point, of_stream, seconds);
      driver().event_destroy(waiting[0].event);
      waiting.pop_front();
    }
  }
  void count(const StreamPoint& point, StreamPoints& of_stream, double seconds) {
    tally(point.key, point.mark).seconds[size_t(point.part)] += seconds;
    if (of_stream.seconds < 0) return;
    if (point.part != Part::Between && point.rows >= 0)
      spans.push_back({point.launch, point.rows, point.key, of_stream.seconds, seconds});
    if (spans.size() > kSpans) spans.pop_front();
    of_stream.seconds += seconds;
  }
  // Returns the seconds from the device's first event to this one; -1 if the driver has measured none.
  double since_first(const Stream& stream, bringup_event* event) {
    auto begin = first.find(int(stream.id.device_index()));
    double seconds = 0;
    bool is_timed = begin != first.end() && driver().event_elapsed(begin->second, event, &seconds) == BRINGUP_OK;
    return is_timed ? std::max(seconds, 0.0) : -1;
  }
  void add_first(const Stream& stream) {
    int index = int(stream.id.device_index());
    if (first.contains(index)) return;
    if (bringup_event* event = recorded_event(index, stream.handle)) first[index] = event;
  }
  void forget_points() {
    for (auto& [stream, of_stream] : points)
      for (const StreamPoint& point : of_stream.waiting) driver().event_destroy(point.event);
    points.clear();
    for (auto& [index, event] : first) driver().event_destroy(event);
    first.clear();
    spans.clear();
    while (!marks.empty()) forget_mark();
  }
  void forget_mark() {
    if (marks.front().event) driver().event_destroy(marks.front().event);
    marks.pop_front();
  }
  void add_mark(RowKind kind, int64_t object, bringup_event* event) {
    std::chrono::duration<double> now = std::chrono::steady_clock::now().time_since_epoch();
    marks.push_back({kind, object, now.count(), event});
    if (marks.size() > kMarks) forget_mark();
    ++marked;
  }
};

Ledger& ledger() {
  static auto* all = new Ledger();
  return *all;
}

const LedgerKey* between_launches() {
  static const LedgerKey key{"", true, "", false};
  return &key;
}

void write_row(Text& text, const LedgerKey& key, const Tally& tally) {
  const char* names[kParts] = {"kernel", "down", "host", "up", "between"};
  text << "{\"op\": " << json_text(key.op) << ", \"on_device\": " << (key.on_device ? "true" : "false")
       << ", \"reason\": " << json_text(key.reason) << ", \"kernel_possible\": " << (key.kernel_possible ? "true" : "false")
       << ", \"launches\": " << tally.launches << ", \"bytes_down\": " << tally.bytes_down
       << ", \"bytes_up\": " << tally.bytes_up;
  for (size_t i = 0; i < kParts; ++i) text << ", \"" << names[i] << "_seconds\": " << tally.seconds[i];
  text << "}";
}

std::string rows_json(const TalliesByKey& tallies) {
  std::map<LedgerKey, Tally> sorted;
  for (auto& [key, tally] : tallies) sorted.emplace(*key, tally);
  Text text;
  const char* comma = "[";
  for (auto& [key, tally] : sorted) {
    text << comma;
    write_row(text, key, tally);
    comma = ", ";
  }
  text << (sorted.empty() ? "[]" : "]");
  return text.str();
}

// Returns the device's seconds from one mark to the next; 0 if the driver has measured none.
double seconds_between(const Mark& before, const Mark& after) {
  double seconds = 0;
  bool is_timed = before.event && after.event && driver().event_query(after.event) == 1 &&
                  driver().event_elapsed(before.event, after.event, &seconds) == BRINGUP_OK;
  return is_timed ? seconds : 0;
}

// Returns the rows of the whole run, and of the latest marks what each is and the rows of the time from it to the next one.
std::string marks_json() {
  std::lock_guard<std::mutex> lock(ledger().mutex);
  for (auto& [stream, points] : ledger().points) ledger().reap(*stream, points);
  auto& marks = ledger().marks;
  Text text;
  text << "{\"total\": " << rows_json(ledger().total()) << ", \"marks\": [";
  const char* comma = "";
  for (size_t i = 0; i < marks.size(); ++i) {
    bool is_last = i + 1 == marks.size();
    text << std::exchange(comma, ", ") << "{\"kind\": " << int(marks[i].kind) << ", \"object\": " << marks[i].object
         << ", \"host_seconds\": " << (is_last ? 0 : marks[i + 1].host_seconds - marks[i].host_seconds)
         << ", \"device_seconds\": " << (is_last ? 0 : seconds_between(marks[i], marks[i + 1]))
         << ", \"rows\": " << rows_json(ledger().since[ledger().marked - int64_t(marks.size() - i) + 1]) << "}";
  }
  text << "]}";
  return text.str();
}

// Returns of the latest parts of launches the operators' places in the last result, the launches' numbers and the rows of the
// recording before them, and when they began and how many seconds they took.
std::tuple<at::Tensor, at::Tensor, std::vector<std::string>> measured_spans() {
  std::lock_guard<std::mutex> lock(ledger().mutex);
  for (auto& [stream, points] : ledger().points) ledger().reap(*stream, points);
  const auto& spans = ledger().spans;
  at::Tensor rows = at::empty({int64_t(spans.size()), 3}, at::kLong);
  at::Tensor times = at::empty({int64_t(spans.size()), 2}, at::kDouble);
  std::map<std::string, int64_t> places;
  std::vector<std::string> ops;
  int64_t* row = rows.mutable_data_ptr<int64_t>();
  double* time = times.mutable_data_ptr<double>();
  for (const PartSpan& span : spans) {
    auto [place, is_new] = places.try_emplace(span.key->op, int64_t(ops.size()));
    if (is_new) ops.push_back(span.key->op);
    *row++ = place->second, *row++ = span.launch, *row++ = span.rows;
    *time++ = span.begin, *time++ = span.seconds;
  }
  return {rows, times, ops};
}

std::string ledger_json() {
  std::lock_guard<std::mutex> lock(ledger().mutex);
  for (auto& [stream, points] : ledger().points) ledger().reap(*stream, points);
  std::map<std::string, int64_t> on_device;
  TalliesByKey on_host;
  for (auto& [key, tally] : ledger().total()) {
    if (key == between_launches()) continue;
    if (key->on_device)
      on_device[key->op] += tally.launches;
    else
      on_host[key].add(tally);
  }
  Text text;
  text << "{\"on_device\": {";
  const char* comma = "";
  for (auto& [op, launches] : on_device) {
    text << comma << json_text(op) << ": " << launches;
    comma = ", ";
  }
  text << "}, \"on_host\": " << rows_json(on_host) << "}";
  return text.str();
}

void clear_ledger() {
  std::lock_guard<std::mutex> order(ledger().order);
  std::lock_guard<std::mutex> lock(ledger().mutex);
  ledger().forget_points();
  ledger().since.clear();
  ledger().earlier.clear();
  ledger().marked = 0;
}

// Returns the numbers of the launches that are running, one for each stream, and what they are in words. Only while a run is
// measured.
std::tuple<std::vector<int64_t>, std::vector<std::string>> running_launches() {
  std::vector<int64_t> numbers;
  std::vector<const LedgerKey*> keys;
  {
    std::lock_guard<std::mutex> lock(ledger().mutex);
    for (auto& [stream, points] : ledger().points) {
      ledger().reap(*stream, points);
      const auto& waiting = points.waiting;
      if (waiting.size() < 2 || waiting[1].part == Part::Between) continue;
      numbers.push_back(waiting[1].launch), keys.push_back(waiting[1].key);
    }
  }
  std::vector<std::string> texts;
  for (size_t i = 0; i < numbers.size(); ++i) {
    std::string text = describe_numbered(numbers[i]);  // "" if it is on the host, or long ago
    texts.push_back(text.empty() ? keys[i]->op + (keys[i]->on_device ? "" : " on the host") : text);
  }
  return {numbers, texts};
}

const LedgerKey* key_of(LedgerKey key) { return &*ledger().keys.insert(std::move(key)).first; }

}  // namespace

void mark_in_ledger(RowKind kind, int64_t object) {
  if (C10_LIKELY(!ledger().measures)) return;
  if (!opened()) return;  // a module, or an optimizer, on the host alone opens no device
  std::lock_guard<std::mutex> order(ledger().order);
  bringup_event* event = recorded_event(current_device(), current_stream(current_device()).handle);
  std::lock_guard<std::mutex> lock(ledger().mutex);
  ledger().add_mark(kind, object, event);
}

const LedgerKey* key_on_device(const std::string& op) {
  std::lock_guard<std::mutex> lock(ledger().mutex);
  return key_of({op, true, "", false});
}

void count_on_device(const LedgerKey* key) {
  std::lock_guard<std::mutex> lock(ledger().mutex);
  ++ledger().tally(key, ledger().marked).launches;
}

void count_on_host(const Launch& launch, const std::string& reason, bool kernel_possible, int64_t bytes_down, int64_t bytes_up) {
  std::lock_guard<std::mutex> lock(ledger().mutex);
  Tally& tally = ledger().tally(key_of({launch.signature->op->name, false, reason, kernel_possible}), ledger().marked);
  ++tally.launches;
  tally.bytes_down += bytes_down;
  tally.bytes_up += bytes_up;
}

Parts::Parts(Stream& stream, const Launch& launch, bool on_device) {
  if (C10_LIKELY(!ledger().measures)) return;
  stream_ = &stream;
  rows_ = recording() ? recorded_rows() : -1;
  OnHost on_host = on_device ? OnHost{} : why_on_host(launch);
  {
    std::lock_guard<std::mutex> lock(ledger().mutex);
    mark_ = ledger().marked;
    launch_ = launch.number;
    key_ = key_of({launch.signature->op->name, on_device, on_host.reason, on_host.kernel_possible});
    ledger().add_first(stream);
  }
  end(Part::Between);
}

void Parts::end(Part part) {
  if (C10_LIKELY(!stream_)) return;
  std::lock_guard<std::mutex> order(ledger().order);
  bringup_event* event = recorded_event(stream_->id.device_index(), stream_->handle);
  if (!event) return;
  std::lock_guard<std::mutex> lock(ledger().mutex);
  auto& points = ledger().points[stream_];
  points.waiting.push_back({event, part, part == Part::Between ? between_launches() : key_, mark_, launch_, rows_});
  if (points.waiting.size() % kPending == 0) ledger().reap(*stream_, points);
}

TORCH_LIBRARY_FRAGMENT(bringup, m) {
  m.def("driver_ledger() -> str", &ledger_json);
  m.def("driver_marks() -> str", &marks_json);
  m.def("running_launches() -> (int[], str[])", &running_launches);
  m.def("driver_spans() -> (Tensor rows, Tensor times, str[] ops)", &measured_spans);
  m.def("clear_driver_ledger() -> ()", &clear_ledger);
  m.def("measure_driver(bool measures) -> ()", [](bool measures) { ledger().measures = measures; });
}

}  // namespace bringup
