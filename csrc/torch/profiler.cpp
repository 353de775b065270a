#include "torch/profiler.h"

#include <c10/util/ApproximateClock.h>
#include <libkineto.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>
#include <vector>

namespace bringup {

std::atomic<bool> profiling_now{false};

namespace {

struct Row {
  std::string name;
  int device, stream;
  int64_t start, end, correlation;
};

std::mutex rows_mutex;
std::vector<Row> rows;
thread_local std::vector<int64_t> correlations;

class Session final : public libkineto::IActivityProfilerSession {
 public:
  void start() override {
    std::lock_guard<std::mutex> lock(rows_mutex);
    rows.clear();
    profiling_now = true;
  }
  void stop() override {
    if (opened())
      for (int i = 0; i < device_count(); ++i) drain(i);
    profiling_now = false;
  }
  std::vector<std::string> errors() override { return {}; }
  void processTrace(libkineto::ActivityLogger&) override {}
  void processTrace(libkineto::ActivityLogger& logger, libkineto::getLinkedActivityCallback linked, int64_t start,
                    int64_t end) override {
    buffer_ = std::make_unique<libkineto::CpuTraceBuffer>();
    buffer_->span = libkineto::TraceSpan(start, end, "chip");
    std::lock_guard<std::mutex> lock(rows_mutex);
    for (const Row& row : rows) {
      buffer_->emplace_activity(buffer_->span, libkineto::ActivityType::CONCURRENT_KERNEL, row.name);
      auto& activity = *buffer_->activities.back();
      // Kineto drops rows outside its window, and the two clocks differ by some microseconds.
      activity.startTime = std::clamp(row.start, start, end);
      activity.endTime = std::clamp(row.end, activity.startTime, end);
      activity.id = int32_t(row.correlation);
      activity.device = row.device;
      activity.resource = row.stream;
      activity.linked = linked(int32_t(row.correlation));
      activity.flow.id = uint32_t(row.correlation);
      activity.flow.type = libkineto::kLinkAsyncCpuGpu;
      activity.flow.start = 0;
      activity.addMetadata("stream", row.stream);
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
    static const std::set<libkineto::ActivityType> types{libkineto::ActivityType::CONCURRENT_KERNEL};
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

void register_profiler() {
  libkineto::api().registerProfilerFactory([] { return std::make_unique<Profiler>(); });
}

}  // namespace bringup
