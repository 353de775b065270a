#include "torch/profiler.h"

#include <c10/util/ApproximateClock.h>
#include <libkineto.h>
#include <unistd.h>

#include <torch/library.h>

#include <algorithm>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

#include "python/python.h"
#include "record/recorder.h"

namespace bringup {

std::atomic<bool> profiling_now{false};

namespace {

struct Row {
  std::string name;
  int device, stream;
  int64_t start, end, correlation;
  bool is_copy = false;
};

std::mutex rows_mutex;
std::vector<Row> rows;
std::unordered_map<int64_t, int64_t> correlation_of;  // row of the recording -> correlation
std::optional<std::vector<Row>> predicted;            // times in nanoseconds from the start of the profile
int64_t first_row = 0, recording_of_profile = -1;
thread_local std::vector<int64_t> correlations;

class Session final : public libkineto::IActivityProfilerSession {
 public:
  void start() override {
    int64_t recorded = recording() ? recorded_rows() : 0;  // locks the recorder, which locks `rows_mutex`
    std::lock_guard<std::mutex> lock(rows_mutex);
    rows.clear();
    correlation_of.clear();
    predicted.reset();
    recording_of_profile = recording() ? recording_number() : -1;
    first_row = recorded;
    profiling_now = true;
  }
  void stop() override {
    if (opened())
      for (int i = 0; i < device_count(); ++i) drain(i);
    profiling_now = false;
    if (!recording() || recording_number() != recording_of_profile) return;
    Gil gil;
    try {  // a profiler that throws ends the process
      call_python("bringup.timeline.profile", "place", "L", static_cast<long long>(first_row));
    } catch (const std::exception& error) {
      TORCH_WARN("torch.profiler shows the emulation's times: ", error.what());
    }
  }
  std::vector<std::string> errors() override { return {}; }
  void processTrace(libkineto::ActivityLogger&) override {}
  void processTrace(libkineto::ActivityLogger& logger, libkineto::getLinkedActivityCallback linked, int64_t start,
                    int64_t end) override {
    buffer_ = std::make_unique<libkineto::CpuTraceBuffer>();
    buffer_->span = libkineto::TraceSpan(start, end, "chip");
    std::lock_guard<std::mutex> lock(rows_mutex);
    for (const Row& row : predicted ? *predicted : rows) {
      using libkineto::ActivityType;
      buffer_->emplace_activity(buffer_->span, row.is_copy ? ActivityType::GPU_MEMCPY : ActivityType::CONCURRENT_KERNEL,
                                row.name);
      auto& activity = *buffer_->activities.back();
      // Kineto drops rows outside its window, and the two clocks differ by some microseconds.
      activity.startTime = predicted ? start + row.start : std::clamp(row.start, start, end);
      activity.endTime = predicted ? start + row.end : std::clamp(row.end, activity.startTime, end);
      activity.id = int32_t(row.correlation);
      activity.device = row.device;
      activity.resource = row.stream;
      activity.linked = linked(int32_t(row.correlation));
      activity.flow.id = uint32_t(row.correlation);
      activity.flow.type = libkineto::kLinkAsyncCpuGpu;
      activity.flow.start = 0;
      activity.addMetadata("stream", row.stream);
      activity.addMetadataQuoted("time", predicted ? "predicted" : "emulation");
      activity.log(logger);
    }
  }
  std::unique_ptr<libkineto::DeviceInfo> getDeviceInfo() override { return nullptr; }
  std::vector<libkineto::ResourceInfo> getResourceInfos() override { return {}; }
  std::unique_ptr<libkineto::CpuTraceBuffer> getTraceBuffer() override { return std::move(buffer_); }
  void pushCorrelationId(uint64_t id) override { correlations.push_back(int64_t(id)); }
  void popCorrelationId() override {
    if (!correlations.empty()) correlations.pop_back();
  }

 private:
  std::unique_ptr<libkineto::CpuTraceBuffer> buffer_;
};

class Profiler final : public libkineto::IActivityProfiler {
 public:
  const std::string& name() const override {
    static const std::string name = "bringup";
    return name;
  }
  const std::set<libkineto::ActivityType>& availableActivities() const override {
    static const std::set<libkineto::ActivityType> types{libkineto::ActivityType::CONCURRENT_KERNEL,
                                                         libkineto::ActivityType::GPU_MEMCPY};
    return types;
  }
  std::unique_ptr<libkineto::IActivityProfilerSession> configure(const std::set<libkineto::ActivityType>& types,
                                                                 const libkineto::Config&) override {
    if (types.count(libkineto::ActivityType::CONCURRENT_KERNEL) == 0) return nullptr;
    return std::make_unique<Session>();
  }
  std::unique_ptr<libkineto::IActivityProfilerSession> configure(int64_t, int64_t, const std::set<libkineto::ActivityType>& types,
                                                                 const libkineto::Config& config) override {
    return configure(types, config);
  }
};

}  // namespace

int64_t profiler_now() { return c10::getTime(); }
int64_t profiler_correlation() { return correlations.empty() ? 0 : correlations.back(); }

void profiler_record(const std::string& name, const Stream& stream, int64_t start, int64_t end, int64_t correlation) {
  std::lock_guard<std::mutex> lock(rows_mutex);
  rows.push_back({name, stream.id.device_index(), int(stream.id.id()), start, end, correlation});
}

void profiler_note_row(size_t row) {
  std::lock_guard<std::mutex> lock(rows_mutex);
  correlation_of[int64_t(row)] = profiler_correlation();
}

// Python's side of `place`: the rows that the profile shows, with times in nanoseconds from its start.
void place_profile(const std::vector<int64_t>& numbers, const std::vector<std::string>& names,
                   const std::vector<int64_t>& devices, const std::vector<int64_t>& streams, const std::vector<int64_t>& starts,
                   const std::vector<int64_t>& ends, const std::vector<bool>& copies) {
  std::lock_guard<std::mutex> lock(rows_mutex);
  predicted.emplace();
  for (size_t i = 0; i < numbers.size(); ++i) {
    auto entry = correlation_of.find(numbers[i]);
    predicted->push_back({names[i], int(devices[i]), int(streams[i]), starts[i], ends[i],
                          entry == correlation_of.end() ? 0 : entry->second, copies[i]});
  }
}

TORCH_LIBRARY_FRAGMENT(bringup, m) {
  m.def("place_profile(int[] rows, str[] names, int[] devices, int[] streams, int[] starts, int[] ends, bool[] copies) -> ()",
        [](std::vector<int64_t> numbers, std::vector<std::string> names, std::vector<int64_t> devices,
           std::vector<int64_t> streams, std::vector<int64_t> starts, std::vector<int64_t> ends, c10::List<bool> copies) {
          place_profile(numbers, names, devices, streams, starts, ends, {copies.begin(), copies.end()});
        });
}

void register_profiler() {
  libkineto::api().registerProfilerFactory([] { return std::make_unique<Profiler>(); });
}

}  // namespace bringup
