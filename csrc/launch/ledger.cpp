#include "launch/ledger.h"

#include <torch/library.h>

#include <array>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <unordered_map>
#include <utility>

#include "json.h"
#include "launch/native.h"
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

constexpr size_t kSteps = 64;     // the latest steps, which are kept apart
constexpr size_t kPending = 256;  // points that wait for their event before it is queried

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
  int64_t step;
};

struct Ledger {
  std::mutex mutex;
  std::set<LedgerKey> keys;
  std::map<int64_t, TalliesByKey> steps;
  TalliesByKey earlier;  // of steps before them
  int64_t step = 0;
  std::deque<bringup_event*> step_ends;  // of the latest steps, on the stream that was current then
  std::atomic<bool> measures{false};
  std::unordered_map<Stream*, std::deque<StreamPoint>> points;  // the first of each is reached, and has been counted

  Tally& tally(const LedgerKey* key, int64_t of_step) {
    if (!steps.empty() && of_step < steps.begin()->first && steps.size() >= kSteps) return earlier[key];
    if (!steps.contains(of_step) && steps.size() >= kSteps) {
      for (auto& [oldest, tally] : steps.begin()->second) earlier[oldest].add(tally);
      steps.erase(steps.begin());
    }
    return steps[of_step][key];
  }
  TalliesByKey total() {
    TalliesByKey sum = earlier;
    for (auto& [step, tallies] : steps)
      for (auto& [key, tally] : tallies) sum[key].add(tally);
    return sum;
  }
  // Counts the points that are reached.
  void reap(std::deque<StreamPoint>& of_stream) {
    while (of_stream.size() > 1 && driver().event_query(of_stream[1].event) == 1) {
      double seconds = 0;
      const StreamPoint& point = of_stream[1];
      bool is_timed = driver().event_elapsed(of_stream[0].event, point.event, &seconds) == BRINGUP_OK;
      if (is_timed && seconds > 0) tally(point.key, point.step).seconds[size_t(point.part)] += seconds;
      driver().event_destroy(of_stream[0].event);
      of_stream.pop_front();
    }
  }
  void forget_points() {
    for (auto& [stream, of_stream] : points)
      for (const StreamPoint& point : of_stream) driver().event_destroy(point.event);
    points.clear();
    for (bringup_event* event : step_ends) driver().event_destroy(event);
    step_ends.clear();
  }
  void end_step() {
    ++step;
    bringup_event* event = nullptr;
    Stream& stream = current_stream(current_device());
    if (!measures || driver().event_create(device(current_device()).handle, &event) != BRINGUP_OK) return;
    if (driver().event_record(event, stream.handle) != BRINGUP_OK) return driver().event_destroy(event);
    step_ends.push_back(event);
    if (step_ends.size() <= kSteps) return;
    driver().event_destroy(step_ends.front());
    step_ends.pop_front();
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

std::string steps_json() {
  std::lock_guard<std::mutex> lock(ledger().mutex);
  for (auto& [stream, points] : ledger().points) ledger().reap(points);
  Text text;
  text << "{\"total\": " << rows_json(ledger().total()) << ", \"step_seconds\": [";
  const char* comma = "";
  for (size_t i = 1; i < ledger().step_ends.size(); ++i) {
    double seconds = 0;
    bool is_timed = driver().event_query(ledger().step_ends[i]) == 1 &&
                    driver().event_elapsed(ledger().step_ends[i - 1], ledger().step_ends[i], &seconds) == BRINGUP_OK;
    if (is_timed) text << std::exchange(comma, ", ") << seconds;
  }
  text << "]";
  for (auto& [step, tallies] : ledger().steps) text << ", \"" << step << "\": " << rows_json(tallies);
  text << "}";
  return text.str();
}

std::string ledger_json() {
  std::lock_guard<std::mutex> lock(ledger().mutex);
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
  std::lock_guard<std::mutex> lock(ledger().mutex);
  ledger().forget_points();
  ledger().steps.clear();
  ledger().earlier.clear();
  ledger().step = 0;
}

const LedgerKey* key_of(LedgerKey key) { return &*ledger().keys.insert(std::move(key)).first; }

}  // namespace

void count_on_device(const Launch& launch) {
  std::lock_guard<std::mutex> lock(ledger().mutex);
  ++ledger().tally(key_of({launch.signature->op->name, true, "", false}), ledger().step).launches;
}

void count_on_host(const Launch& launch, const std::string& reason, bool kernel_possible, int64_t bytes_down, int64_t bytes_up) {
  std::lock_guard<std::mutex> lock(ledger().mutex);
  Tally& tally = ledger().tally(key_of({launch.signature->op->name, false, reason, kernel_possible}), ledger().step);
  ++tally.launches;
  tally.bytes_down += bytes_down;
  tally.bytes_up += bytes_up;
}

Parts::Parts(Stream& stream, const Launch& launch, bool on_device) {
  if (C10_LIKELY(!ledger().measures)) return;
  stream_ = &stream;
  OnHost on_host = on_device ? OnHost{} : why_on_host(launch);
  {
    std::lock_guard<std::mutex> lock(ledger().mutex);
    step_ = ledger().step;
    key_ = key_of({launch.signature->op->name, on_device, on_host.reason, on_host.kernel_possible});
  }
  end(Part::Between);
}

void Parts::end(Part part) {
  if (C10_LIKELY(!stream_)) return;
  std::lock_guard<std::mutex> lock(ledger().mutex);
  bringup_event* event = nullptr;
  if (driver().event_create(device(stream_->id.device_index()).handle, &event) != BRINGUP_OK) return;
  if (driver().event_record(event, stream_->handle) != BRINGUP_OK) return driver().event_destroy(event);
  auto& points = ledger().points[stream_];
  points.push_back({event, part, part == Part::Between ? between_launches() : key_, step_});
  if (points.size() % kPending == 0) ledger().reap(points);
}

TORCH_LIBRARY_FRAGMENT(bringup, m) {
  m.def("driver_ledger() -> str", &ledger_json);
  m.def("driver_steps() -> str", &steps_json);  // by step, and their total
  m.def("clear_driver_ledger() -> ()", &clear_ledger);
  m.def("measure_driver(bool measures) -> ()", [](bool measures) { ledger().measures = measures; });
  m.def("next_driver_step() -> ()", [] {
    std::lock_guard<std::mutex> lock(ledger().mutex);
    ledger().end_step();
  });
}

}  // namespace bringup
