// Replays rows of a trace on host, link and chip. See src/bringup/timeline.py for the model.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <deque>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "recorder.h"

namespace bringup {
namespace {

struct Machine {
  double launch_latency;  // from the host's call to the earliest start on the chip, seconds
  int queue_depth;        // launches that may be outstanding
  int copy_engines;
  int concurrent;  // kernels at once
};

struct Running {
  double end, share;
};

struct DeviceClock {
  std::unordered_map<int, double> streams;  // when each is done
  std::vector<Running> running;
  std::vector<double> queue;  // ring of the ends of the latest launches
  size_t launched = 0;
  double link[2] = {0, 0};  // host to device, device to host
  double done = 0;
};

struct Replay {
  Machine machine;
  double host = 0;                          // the interpreter's clock
  std::unordered_map<int, double> blocked;  // thread -> until when it waits
  std::unordered_map<int64_t, double> events;
  std::unordered_map<int, DeviceClock> devices;

  DeviceClock& device(int index) {
    auto& clock = devices[index];
    if (clock.queue.empty()) clock.queue.resize(size_t(machine.queue_depth), 0.0);
    return clock;
  }

  // The earliest moment from `ready` on at which the chip has a share of its cores free.
  double start_kernel(DeviceClock& on, double ready, double seconds, double share) {
    auto& running = on.running;
    running.erase(std::remove_if(running.begin(), running.end(), [&](const Running& r) { return r.end <= ready; }),
                  running.end());
    double start = ready;
    while (true) {
      double used = 0, next = 0;
      int count = 0;
      for (const Running& r : running) {
        if (r.end <= start) continue;
        used += r.share;
        ++count;
        next = next == 0 ? r.end : std::min(next, r.end);
      }
      if (count == 0 || (used + share <= 1.0 && count < machine.concurrent)) break;
      start = next;
    }
    running.push_back({start + seconds, share});
    return start;
  }

  double take_link(DeviceClock& on, int direction, double ready, double seconds) {
    double& free = on.link[machine.copy_engines > 1 ? direction : 0];
    double start = std::max(ready, free);
    free = start + seconds;
    return start;
  }
};

std::mutex replays_mutex;
std::unordered_map<int64_t, std::unique_ptr<Replay>> replays;

int64_t timeline_open(double launch_latency, int64_t queue_depth, int64_t copy_engines, int64_t concurrent) {
  static int64_t next = 0;
  std::lock_guard<std::mutex> lock(replays_mutex);
  auto replay = std::make_unique<Replay>();
  replay->machine = {launch_latency, int(queue_depth), int(copy_engines), int(concurrent)};
  replays[++next] = std::move(replay);
  return next;
}

void timeline_close(int64_t handle) {
  std::lock_guard<std::mutex> lock(replays_mutex);
  replays.erase(handle);
}

template <class T>
const T* read(const at::Tensor& tensor) {
  TORCH_CHECK(tensor.is_contiguous(), "columns must be contiguous");
  return tensor.const_data_ptr<T>();
}

// Per row: when the host issued it, when it started and ended on its engine, and how long the host waited in it.
std::vector<at::Tensor> timeline_feed(int64_t handle, const at::Tensor& kinds, const at::Tensor& flags,
                                      const at::Tensor& device_ids, const at::Tensor& stream_ids, const at::Tensor& threads,
                                      const at::Tensor& objects, const at::Tensor& host_seconds, const at::Tensor& seconds,
                                      const at::Tensor& shares, const at::Tensor& fallbacks, const at::Tensor& fallback_seconds) {
  Replay* found;
  {
    std::lock_guard<std::mutex> lock(replays_mutex);
    found = replays.at(handle).get();
  }
  Replay& replay = *found;
  const auto* kind = read<uint8_t>(kinds);
  const auto* flag = read<uint8_t>(flags);
  const auto* device_id = read<int8_t>(device_ids);
  const auto* stream_id = read<int16_t>(stream_ids);
  const auto* thread = read<int16_t>(threads);
  const auto* object = read<int64_t>(objects);
  const auto* host = read<double>(host_seconds);
  const auto* work = read<double>(seconds);
  const auto* share = read<double>(shares);
  const auto* fallback = read<int32_t>(fallbacks);  // row of `fallback_seconds` [d2h, host, h2d], or -1
  const auto* fallback_cost = read<double>(fallback_seconds);
  int64_t rows = kinds.numel();
  auto issued = at::empty({rows}, at::kDouble), starts = at::empty({rows}, at::kDouble), ends = at::empty({rows}, at::kDouble),
       waits = at::zeros({rows}, at::kDouble);
  auto *issue = issued.mutable_data_ptr<double>(), *start = starts.mutable_data_ptr<double>(),
       *end = ends.mutable_data_ptr<double>(), *wait = waits.mutable_data_ptr<double>();
  double latency = replay.machine.launch_latency;
  int last_thread = -1, last_device = -2, last_stream = -2;
  double *blocked = nullptr, *stream = nullptr;
  DeviceClock* on = nullptr;
  for (int64_t i = 0; i < rows; ++i) {
    if (thread[i] != last_thread) blocked = &replay.blocked[last_thread = thread[i]];
    if (device_id[i] != last_device) {
      on = &replay.device(last_device = device_id[i]);
      last_stream = -2;
    }
    if (stream_id[i] != last_stream) stream = &on->streams[last_stream = stream_id[i]];
    double now = std::max(replay.host, *blocked) + host[i];
    issue[i] = start[i] = end[i] = now;
    auto wait_until = [&](double moment) {
      if (moment <= now) return;
      wait[i] = moment - now;
      now = moment;
      *blocked = moment;
    };
    switch (RowKind(kind[i])) {
      case RowKind::Launch:
        if (fallback[i] >= 0) {
          const double* cost = fallback_cost + 3 * fallback[i];
          wait_until(*stream);  // the stall: what was launched before must be done
          double there = replay.take_link(*on, 1, now, cost[0]) + cost[0];
          double computed = there + cost[1];
          double back = replay.take_link(*on, 0, computed, cost[2]) + cost[2];
          start[i] = now;
          end[i] = *stream = back;
          now = *blocked = back;
          on->done = std::max(on->done, back);
        } else {
          double& slot = on->queue[on->launched++ % on->queue.size()];
          if (slot > now) wait_until(slot);  // the queue is full
          start[i] = replay.start_kernel(*on, std::max(now + latency, *stream), work[i], share[i]);
          end[i] = *stream = slot = start[i] + work[i];
          on->done = std::max(on->done, end[i]);
          if (flag[i] & kWaits) wait_until(end[i]);
        }
        break;
      case RowKind::H2D:
      case RowKind::D2H:
      case RowKind::D2D: {
        int direction = RowKind(kind[i]) == RowKind::D2H;
        start[i] = replay.take_link(*on, direction, std::max(now + latency, *stream), work[i]);
        end[i] = *stream = start[i] + work[i];
        on->done = std::max(on->done, end[i]);
        break;
      }
      case RowKind::Host:
        end[i] = now + work[i];
        *blocked = end[i];
        break;
      case RowKind::EventRecord:
        replay.events[object[i]] = start[i] = end[i] = std::max(now, *stream);
        break;
      case RowKind::EventWait: {
        double reached = replay.events[object[i]];
        *stream = std::max(*stream, reached);
        break;
      }
      case RowKind::EventSync:
        wait_until(replay.events[object[i]]);
        end[i] = now;
        break;
      case RowKind::StreamSync:
        wait_until(*stream);
        end[i] = now;
        break;
      case RowKind::DeviceSync:
        wait_until(on->done);
        end[i] = now;
        break;
      default:
        break;
    }
    // Another thread may go on while this one waits without the interpreter's lock.
    replay.host = std::max(replay.host, issue[i]);
    *blocked = std::max(*blocked, now);
  }
  return {issued, starts, ends, waits};
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

// `a` without `b`, both disjoint and sorted.
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

// Seconds of [from, to) in which the chip computes; else the host works for it; else the link is busy.
std::vector<double> timeline_shares(const at::Tensor& kinds, const at::Tensor& fallbacks, const at::Tensor& starts,
                                    const at::Tensor& ends, double from, double to) {
  const auto* kind = read<uint8_t>(kinds);
  const auto* fallback = read<int32_t>(fallbacks);
  const auto *start = read<double>(starts), *end = read<double>(ends);
  Intervals chip, host, link;
  for (int64_t i = 0; i < kinds.numel(); ++i) {
    if (end[i] <= from || start[i] >= to) continue;
    std::pair<double, double> span{std::max(start[i], from), std::min(end[i], to)};
    RowKind of = RowKind(kind[i]);
    if (of == RowKind::Launch)
      (fallback[i] >= 0 ? host : chip).push_back(span);
    else if (of == RowKind::H2D || of == RowKind::D2H || of == RowKind::D2D)
      link.push_back(span);
  }
  chip = united(std::move(chip));
  host = without(united(std::move(host)), chip);
  link = without(without(united(std::move(link)), chip), host);
  std::vector<double> totals;
  for (const Intervals& intervals : {chip, host, link}) {
    double total = 0;
    for (const auto& [first, last] : intervals) total += last - first;
    totals.push_back(total);
  }
  return totals;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(bringup, m) {
  m.def("timeline_open(float launch_latency, int queue_depth, int copy_engines, int concurrent) -> int", &timeline_open);
  m.def(
      "timeline_feed(int timeline, Tensor kind, Tensor flags, Tensor device, Tensor stream, Tensor thread, Tensor object, "
      "Tensor host_seconds, Tensor seconds, Tensor share, Tensor fallback, Tensor fallback_seconds) -> Tensor[]",
      &timeline_feed);
  m.def("timeline_now(int timeline) -> float", [](int64_t handle) {  // of the calling thread
    std::lock_guard<std::mutex> lock(replays_mutex);
    Replay& replay = *replays.at(handle);
    auto found = replay.blocked.find(recording_thread());
    return found == replay.blocked.end() ? replay.host : std::max(replay.host, found->second);
  });
  m.def("timeline_close(int timeline) -> ()", &timeline_close);
  m.def("timeline_shares(Tensor kind, Tensor fallback, Tensor start, Tensor end, float since, float until) -> float[]",
        &timeline_shares);
}

}  // namespace bringup
