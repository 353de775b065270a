// Replays the rows of a trace on host, links and chips. docs/replay.md has the rules with worked examples. This is a library of
// its own without torch, so that recordings are priced where no torch is. src/bringup/timeline/library.py calls it.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <deque>
#include <exception>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "record/rows.h"

namespace bringup {
namespace {

constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
constexpr int64_t kNone = -1;

[[noreturn]] void fail(const std::string& problem) { throw std::runtime_error(problem); }

struct Machine {
  double launch_latency;  // seconds from the host's call to the earliest start on the chip
  size_t queue_depth;     // maximum number of launches that have not ended
  int copy_engines;
  int concurrent;    // maximum number of kernels that run at the same time
  double contended;  // duration of a kernel beside a collective, and of a collective beside kernels, over that alone
};

// An operation on a stream. `phase` counts the parts of a fallback: copy down, compute, copy up.
struct Pending {
  int64_t row;
  RowKind kind;
  bool fallback = false;
  int phase = 0;
  bool counted = true;    // false: a kernel of a graph, which takes no place in the queue
  int source = 0;         // source chip of a copy between chips
  double earliest;        // time of the host's call, plus the latency
  double seconds, share;  // duration of the whole operation; share of the chip's cores
  double parts[3];        // seconds of a fallback's parts
  int64_t after = kNone;  // for a wait: the row that recorded the event
};

struct StreamQueue {
  std::deque<Pending> waiting;
  double done = 0;       // end of the latest operation that has left the queue
  int64_t last = kNone;  // row of the latest operation
};

struct Running {
  double start, end, share;
};

struct DeviceClock {
  std::map<int, StreamQueue> streams;
  std::vector<Running> running;   // kernels
  size_t queued = 0;              // launches whose end is unknown
  std::deque<double> ends;        // sorted ends of the other launches that the queue holds
  double link[2] = {0, 0};        // time from which each direction is free: host to device, device to host
  std::map<int, double> between;  // the same for the link from another chip
  double network = 0;             // the same for collectives
  double owed = 0;                // seconds that collectives took from kernels whose ends were known already
};

struct HostThread {
  double time = 0;
  int64_t row = kNone;           // the row in which it waits
  std::vector<int64_t> awaited;  // the rows whose ends it waits for
  bool computes = false;         // it computes in place of the chip
  double idle = 0;               // seconds of waits that were not for the chip
  int64_t graph = 0;             // the replay of a graph that its latest launch belongs to
  bool ahead = false;            // such a wait has moved it ahead of the other threads
};

// The operation that can start first, if any.
struct Next {
  double moment = std::numeric_limits<double>::infinity(), ready = 0;
  int64_t row = kNone;
  DeviceClock* on = nullptr;
  StreamQueue* stream = nullptr;
  double earliest = 0;  // no operation can start before this time

  void choose(double start, double from, int64_t number, DeviceClock& device, StreamQueue& queue) {
    if (std::tie(start, from, number) >= std::tie(moment, ready, row)) return;
    moment = start;
    ready = from;
    row = number;
    on = &device;
    stream = &queue;
  }
};

// Note [The order of the replay]
// Rows arrive in the host's order, but operations start in the order of time. So a row is only added to its stream's queue. The
// queues advance when an end is needed: by a thread that continues after a wait, by a full queue, or by the caller at the end. By
// then all rows that the host issued before that time have been read, since a waiting thread issues nothing. The operation that
// can start first is started first. An operation that waits for its stream, an event, a copy or cores only blocks its own stream.
struct Replay {
  Machine machine;
  double host = 0;  // the interpreter's clock
  std::unordered_map<int, HostThread> threads;
  std::unordered_map<int64_t, int64_t> events;  // event -> row of its latest record
  std::unordered_map<int64_t, double> signals;  // signal between threads -> time
  std::map<int, DeviceClock> devices;
  std::optional<Next> upcoming;                    // valid until a stream has another operation at its front
  std::vector<double> issued, start, end, waited;  // per row; an end may be unknown

  bool has_end(int64_t row) const { return row == kNone || !std::isnan(end[size_t(row)]); }

  // ---- engines

  // The earliest time, from `ready` on, at which a share of the chip's cores is free for `seconds`.
  double free_cores(const DeviceClock& on, double ready, double seconds, double share) const {
    double moment = ready;
    while (true) {
      double used = 0, next = 0;
      int count = 0;
      for (const Running& kernel : on.running) {
        if (kernel.end <= moment || kernel.start >= moment + seconds) continue;
        used += kernel.share;
        next = count++ == 0 ? kernel.end : std::min(next, kernel.end);
      }
      if (count == 0 || (used + share <= 1.0 && count < machine.concurrent)) return moment;
      moment = next;
    }
  }

  double& link(DeviceClock& on, bool to_host) const { return on.link[machine.copy_engines > 1 && to_host]; }

  // The time from which an operation's link is free; null if it uses no link.
  double* lane_of(DeviceClock& on, const Pending& item) const {
    if (item.fallback) return item.phase == 1 ? nullptr : &link(on, item.phase == 0);
    if (item.kind == RowKind::D2D) return &on.between[item.source];
    if (item.kind == RowKind::Launch && item.share == 0) return &on.network;  // a collective
    if (item.kind == RowKind::H2D || item.kind == RowKind::D2H) return &link(on, item.kind == RowKind::D2H);
    return nullptr;
  }

  double start_of(DeviceClock& on, const Pending& item, double ready) const {
    if (const double* lane = lane_of(on, item)) return std::max(ready, *lane);
    if (item.share < 0) return ready;  // an exchange of two ranks, which waits for the other one and holds nothing
    return item.fallback ? ready : free_cores(on, ready, item.seconds, item.share);
  }

  // ---- advancing the time

  void finish(DeviceClock& on, StreamQueue& stream, double moment) {
    const Pending& item = stream.waiting.front();
    if (item.kind == RowKind::Launch && !item.fallback && item.counted) {
      --on.queued;
      on.ends.push_back(moment);
      for (size_t i = on.ends.size() - 1; i > 0 && on.ends[i - 1] > on.ends[i]; --i)  // only kernels that still run
        std::swap(on.ends[i - 1], on.ends[i]);
    }
    end[size_t(item.row)] = stream.done = moment;
    stream.waiting.pop_front();
  }

  // Removes events from the front of a queue, which take no time. True if there were any.
  bool pass_events(DeviceClock& on, StreamQueue& stream) {
    bool any = false;
    while (!stream.waiting.empty()) {
      const Pending& item = stream.waiting.front();
      if (item.kind != RowKind::EventRecord && (item.kind != RowKind::EventWait || !has_end(item.after))) break;
      double moment = std::max(item.earliest, stream.done);
      if (item.after != kNone) moment = std::max(moment, end[size_t(item.after)]);
      start[size_t(item.row)] = moment;
      finish(on, stream, moment);
      any = true;
    }
    return any;
  }

  const Next& next() {
    if (upcoming) return *upcoming;
    Next& first = upcoming.emplace();
    bool passed = true;
    while (passed) {  // an event may release a stream that has already been examined
      passed = false;
      first = {};
      first.earliest = host;
      for (auto& [index, on] : devices)
        for (auto& [id, stream] : on.streams) {
          if (stream.waiting.empty()) continue;
          passed |= pass_events(on, stream);
          if (stream.waiting.empty()) continue;
          const Pending& item = stream.waiting.front();
          double ready = std::max(item.earliest, stream.done);
          first.earliest = std::min(first.earliest, ready);
          if (item.kind != RowKind::EventWait) first.choose(start_of(on, item, ready), ready, item.row, on, stream);
        }
    }
    return first;
  }

  // Starts the next operation. False if there is none.
  bool step() {
    const Next& first = next();
    if (!first.stream) return false;
    run(*first.on, *first.stream, first.moment, first.ready);
    std::erase_if(first.on->running, [&](const Running& kernel) { return kernel.end <= first.earliest; });
    upcoming.reset();
    return true;
  }

  // Note [Contention]
  // A collective and kernels take cores and memory bandwidth from each other. The end of an operation is known when it starts. So
  // a kernel is longer for the part in which a collective runs that has started; a collective is longer if a kernel runs at its
  // start. What it takes from that kernel, the next kernel pays.

  // The end of a kernel that starts at this moment.
  double kernel_end(DeviceClock& on, double moment, double seconds) const {
    seconds += std::exchange(on.owed, 0.0);
    double beside = std::max(on.network - moment, 0.0);  // seconds in which a collective runs
    double done = std::min(seconds, beside / machine.contended);
    return moment + done * machine.contended + (seconds - done);
  }

  double collective_end(DeviceClock& on, double moment, double seconds) const {
    double last = moment;
    for (const Running& kernel : on.running)
      if (kernel.start <= moment) last = std::max(last, kernel.end);
    double over = moment + seconds * (last > moment ? machine.contended : 1.0);
    on.owed += (std::min(last, over) - moment) * (1 - 1 / machine.contended);
    return over;
  }

  double end_from(DeviceClock& on, const Pending& item, double moment) const {
    if (item.fallback) return moment + item.parts[item.phase];
    if (item.kind != RowKind::Launch || item.seconds == 0 || item.share < 0) return moment + item.seconds;
    return item.share == 0 ? collective_end(on, moment, item.seconds) : kernel_end(on, moment, item.seconds);
  }

  // Runs the next operation of a stream, or the next part of a fallback.
  void run(DeviceClock& on, StreamQueue& stream, double moment, double ready) {
    Pending& item = stream.waiting.front();
    double over = end_from(on, item, moment);
    if (item.phase == 0) start[size_t(item.row)] = item.fallback ? ready : moment;
    if (double* lane = lane_of(on, item))
      *lane = over;
    else if (!item.fallback && item.share >= 0)
      on.running.push_back({moment, over, item.share});
    if (item.fallback && item.phase < 2) {
      item.earliest = over;
      ++item.phase;
    } else {
      finish(on, stream, over);
    }
  }

  double end_of(int64_t row) {
    while (!has_end(row))
      if (!step() && !has_end(row)) fail("row " + std::to_string(row) + " of the trace waits for something that never happens");
    return row == kNone ? 0.0 : end[size_t(row)];
  }

  // ---- the host

  // Ends a thread's wait. During a fallback the thread computes, so it has only waited until the fallback began.
  void settle(HostThread& thread) {
    if (thread.row == kNone) return;
    size_t row = size_t(thread.row);
    double moment = thread.time;
    for (int64_t awaited : thread.awaited) moment = std::max(moment, end_of(awaited));
    waited[row] += std::max((thread.computes ? start[row] : moment) - thread.time, 0.0);
    if (std::isnan(end[row])) end[row] = moment;  // the row is not an operation
    thread.time = moment;
    thread.row = kNone;
  }

  void wait_for(HostThread& thread, int64_t row, std::vector<int64_t> awaited, bool computes = false) {
    thread.row = row;
    thread.awaited = std::move(awaited);
    thread.computes = computes;
    end[size_t(row)] = kUnknown;
  }

  // Python's threads share one interpreter, so they issue in the order of the rows. A thread that waited, but not for the chip,
  // may continue later than following rows of other threads. It does not delay those.
  double issue(HostThread& thread, double seconds) {
    thread.ahead = thread.ahead && thread.time > host;
    thread.time = std::max(host, thread.time) + seconds;
    if (!thread.ahead) host = thread.time;
    return thread.time;
  }

  // The thread waits until this time, but not for the chip.
  void idle(HostThread& thread, int64_t row, double until) {
    if (until <= thread.time) return;
    thread.idle += until - thread.time;
    thread.ahead = true;
    thread.time = end[size_t(row)] = until;
  }

  // The time, from `now` on, at which the chip accepts a launch. The queue holds launches until they end, in any order.
  double room(DeviceClock& on, double now) {
    while (true) {
      while (!on.ends.empty() && on.ends.front() <= now) on.ends.pop_front();
      if (on.queued + on.ends.size() < machine.queue_depth) return now;
      if (!on.ends.empty() && next().moment >= on.ends.front()) {  // operations that start later end later
        now = on.ends.front();
      } else {
        if (!step()) fail("a launch of the trace waits for a place in the queue that never becomes free");
      }
    }
  }

  // The thread computes what a plan puts on the host. Rows of other threads may depend on it: those of a backward pass do.
  void compute(HostThread& thread, int64_t row, double until) {
    thread.time = end[size_t(row)] = until;
    if (!thread.ahead) host = until;
  }

  void enqueue(StreamQueue& stream, const Pending& item) {
    end[size_t(item.row)] = kUnknown;
    stream.last = item.row;
    if (stream.waiting.empty()) upcoming.reset();
    stream.waiting.push_back(item);
  }

  void finish_all() {
    double now = std::exchange(host, std::numeric_limits<double>::infinity());  // no further row arrives
    upcoming.reset();
    while (step()) {
    }
    host = now;
    upcoming.reset();
    for (auto& [number, thread] : threads) settle(thread);
  }
};

std::mutex replays_mutex;
std::unordered_map<int64_t, std::shared_ptr<Replay>> replays;

std::shared_ptr<Replay> replay_of(int64_t handle) {
  std::lock_guard<std::mutex> lock(replays_mutex);
  auto entry = replays.find(handle);
  if (entry == replays.end()) fail("there is no replay " + std::to_string(handle));
  return entry->second;
}

// Rows of a trace, and what the replay needs of each beside the trace's own columns. `library.py` has the same fields.
struct Rows {
  int64_t rows;
  const uint8_t *kind, *flags;
  const int8_t* device;
  const int16_t* stream;
  const int32_t* thread;
  const int64_t* object;
  const double *host_seconds, *seconds, *share;
  const int32_t* fallback;  // row of `fallback_seconds` [d2h, host, h2d], or -1
  const double* fallback_seconds;
  int64_t fallbacks;
};

void feed(Replay& replay, const Rows& in) {
  for (int64_t i = 0; i < in.rows; ++i) {
    int64_t row = int64_t(replay.issued.size());
    HostThread& thread = replay.threads[in.thread[i]];
    replay.settle(thread);
    double now = replay.issue(thread, in.host_seconds[i]);
    for (auto* column : {&replay.issued, &replay.start, &replay.end}) column->push_back(now);
    replay.waited.push_back(0.0);
    RowKind what = RowKind(in.kind[i]);
    bool copies = what == RowKind::H2D || what == RowKind::D2H;
    if ((what == RowKind::Launch || copies) && in.object[i] == kPlacedOnHost) {
      replay.compute(thread, row, now + in.seconds[i]);
      continue;
    }
    Pending item{.row = row, .kind = what, .earliest = now, .seconds = in.seconds[i], .share = in.share[i], .parts = {}};
    switch (what) {
      case RowKind::Launch: {
        DeviceClock& on = replay.devices[in.device[i]];
        StreamQueue& stream = on.streams[in.stream[i]];
        if (in.fallback[i] >= 0) {
          if (in.fallback[i] >= in.fallbacks) fail("there is no fallback " + std::to_string(in.fallback[i]));
          std::copy_n(in.fallback_seconds + 3 * int64_t(in.fallback[i]), 3, item.parts);
          item.fallback = true;
          replay.enqueue(stream, item);
          replay.wait_for(thread, row, {row}, true);
          break;
        }
        // The launches of one replay of a graph are one launch for the host and for the queue.
        item.counted = in.object[i] == 0 || in.object[i] != thread.graph;
        thread.graph = in.object[i];
        if (item.counted) {
          thread.time = replay.room(on, now);
          replay.waited.back() = thread.time - now;
          ++on.queued;
        }
        item.earliest = thread.time + replay.machine.launch_latency;
        replay.enqueue(stream, item);
        if (in.flags[i] & kWaits) replay.wait_for(thread, row, {row});
        break;
      }
      case RowKind::H2D:
      case RowKind::D2H:
      case RowKind::D2D:
        item.earliest = now + replay.machine.launch_latency;
        item.source = int(in.object[i]);
        replay.enqueue(replay.devices[in.device[i]].streams[in.stream[i]], item);
        break;
      case RowKind::EventRecord:
        replay.events[in.object[i]] = row;
        replay.enqueue(replay.devices[in.device[i]].streams[in.stream[i]], item);
        break;
      case RowKind::EventWait:
        if (auto event = replay.events.find(in.object[i]); event != replay.events.end()) item.after = event->second;
        replay.enqueue(replay.devices[in.device[i]].streams[in.stream[i]], item);
        break;
      case RowKind::EventSync:
        if (auto event = replay.events.find(in.object[i]); event != replay.events.end())
          replay.wait_for(thread, row, {event->second});
        break;
      case RowKind::StreamSync:
        replay.wait_for(thread, row, {replay.devices[in.device[i]].streams[in.stream[i]].last});
        break;
      case RowKind::DeviceSync: {
        std::vector<int64_t> all;
        for (auto& [id, stream] : replay.devices[in.device[i]].streams) all.push_back(stream.last);
        replay.wait_for(thread, row, std::move(all));
        break;
      }
      case RowKind::Host:
        replay.idle(thread, row, now + in.seconds[i]);
        break;
      case RowKind::Signal:
        replay.signals[in.object[i]] = now;
        break;
      case RowKind::Resume:
        if (auto signal = replay.signals.find(in.object[i]); signal != replay.signals.end())
          replay.idle(thread, row, signal->second);
        break;
      default:
        break;
    }
  }
}

using Intervals = std::vector<std::pair<double, double>>;

Intervals united(Intervals intervals) {
  if (!std::is_sorted(intervals.begin(), intervals.end())) std::sort(intervals.begin(), intervals.end());
  Intervals result;
  for (const auto& [start, end] : intervals) {
    if (end <= start) continue;
    if (!result.empty() && start <= result.back().second)
      result.back().second = std::max(result.back().second, end);
    else
      result.emplace_back(start, end);
  }
  return result;
}

// The parts of `a` outside `b`. Both are disjoint and sorted.
Intervals without(const Intervals& a, const Intervals& b) {
  Intervals result;
  size_t k = 0;
  for (auto [start, end] : a) {
    while (k < b.size() && b[k].second <= start) ++k;
    size_t j = k;
    while (j < b.size() && b[j].first < end) {
      if (b[j].first > start) result.emplace_back(start, b[j].first);
      start = std::max(start, b[j].second);
      ++j;
    }
    if (start < end) result.emplace_back(start, end);
  }
  return result;
}

// Splits the seconds of [from, to): the chip computes; else the host computes in its place; else the link is busy; else a link
// between chips is busy.
std::vector<double> shares(int64_t rows, const uint8_t* kind, const int32_t* fallback, const double* start, const double* end,
                           double from, double to) {
  enum { kCores, kHost, kLink, kBetween, kParts };
  std::array<Intervals, kParts> busy;
  for (int64_t i = 0; i < rows; ++i) {
    if (end[i] <= from || start[i] >= to) continue;
    std::pair<double, double> span{std::max(start[i], from), std::min(end[i], to)};
    RowKind what = RowKind(kind[i]);
    if (fallback[i] >= 0)
      busy[kHost].push_back(span);
    else if (what == RowKind::Launch)
      busy[kCores].push_back(span);
    else if (what == RowKind::H2D || what == RowKind::D2H)
      busy[kLink].push_back(span);
    else if (what == RowKind::D2D)
      busy[kBetween].push_back(span);
  }
  std::vector<double> totals;
  Intervals before;
  for (Intervals& part : busy) {
    Intervals own = without(united(std::move(part)), before);
    double total = 0;
    for (const auto& [first, last] : own) total += last - first;
    totals.push_back(total);
    before.insert(before.end(), own.begin(), own.end());
    before = united(std::move(before));
  }
  return totals;
}

// What a function of the library returns: null, or what went wrong, until the thread's next call.
template <class Function>
const char* told(Function function) {
  thread_local std::string problem;
  try {
    function();
    return nullptr;
  } catch (const std::exception& error) {
    problem = error.what();
    return problem.c_str();
  }
}

}  // namespace
}  // namespace bringup

// ---- the library: plain C, so that Python's ctypes can call it

#define EXPORTED extern "C" __attribute__((visibility("default")))
using namespace bringup;

EXPORTED const char* replay_open(double launch_latency, int64_t queue_depth, int64_t copy_engines, int64_t concurrent,
                                 double contended, int64_t* handle) {
  return told([&] {
    if (queue_depth < 1 || queue_depth > 1 << 24) fail("a queue holds 1 to 2**24 launches, got " + std::to_string(queue_depth));
    if (concurrent < 1) fail("a chip runs at least one kernel at once, got " + std::to_string(concurrent));
    if (!(contended >= 1)) fail("contention makes an operation longer, got a factor of " + std::to_string(contended));
    static int64_t next = 0;
    std::lock_guard<std::mutex> lock(replays_mutex);
    auto replay = std::make_shared<Replay>();
    replay->machine = {launch_latency, size_t(queue_depth), int(copy_engines), int(std::min<int64_t>(concurrent, 1 << 24)),
                       contended};
    replays[++next] = std::move(replay);
    *handle = next;
  });
}

EXPORTED void replay_close(int64_t handle) {
  std::lock_guard<std::mutex> lock(replays_mutex);
  replays.erase(handle);
}

EXPORTED const char* replay_feed(int64_t handle, const Rows* rows) {
  return told([&] { feed(*replay_of(handle), *rows); });
}

EXPORTED const char* replay_rows(int64_t handle, int64_t* rows) {
  return told([&] { *rows = int64_t(replay_of(handle)->issued.size()); });
}

// Per row: when the host issued it, when it started and ended on its engine, and how long the host waited in it.
EXPORTED const char* replay_results(int64_t handle, int64_t rows, double* issued, double* start, double* end, double* waited) {
  return told([&] {
    auto replay = replay_of(handle);
    if (rows != int64_t(replay->issued.size())) fail("the replay has other rows by now");
    replay->finish_all();
    std::copy(replay->issued.begin(), replay->issued.end(), issued);
    std::copy(replay->start.begin(), replay->start.end(), start);
    std::copy(replay->end.begin(), replay->end.end(), end);
    std::copy(replay->waited.begin(), replay->waited.end(), waited);
  });
}

// A thread's time, and how much of it was idle.
EXPORTED const char* replay_now(int64_t handle, int32_t number, double* seconds, double* idle) {
  return told([&] {
    auto replay = replay_of(handle);
    auto thread = replay->threads.find(number);
    bool known = thread != replay->threads.end();
    if (known) replay->settle(thread->second);
    *seconds = known ? std::max(replay->host, thread->second.time) : replay->host;
    *idle = known ? thread->second.idle : 0.0;
  });
}

// When the latest record of an event was reached; nan: it was not recorded.
EXPORTED const char* replay_event(int64_t handle, int64_t event, double* seconds) {
  return told([&] {
    auto replay = replay_of(handle);
    auto row = replay->events.find(event);
    *seconds = row == replay->events.end() ? kUnknown : replay->end_of(row->second);
  });
}

// `totals`: the seconds of the chip, the host, the link, and links between chips.
EXPORTED const char* replay_shares(int64_t rows, const uint8_t* kind, const int32_t* fallback, const double* start,
                                   const double* end, double from, double to, double* totals) {
  return told([&] {
    std::vector<double> parts = shares(rows, kind, fallback, start, end, from, to);
    std::copy(parts.begin(), parts.end(), totals);
  });
}
