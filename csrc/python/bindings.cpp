// The operators that Python calls: torch.ops.bringup.*. They do not use pybind, so the core does not link torch's Python library.
#include <torch/library.h>

#include "runtime/generator.h"
#include "launch/launch.h"
#include "launch/switches.h"
#include "launch/workspace.h"
#include "runtime/memory.h"
#include "runtime/memory_history.h"
#include "torch/autograd_threads.h"
#include "torch/layouts.h"
#include "torch/profiler.h"
#include "runtime/runtime.h"
#include "torch/views.h"

namespace bringup {

void register_device();    // torch.cpp
void register_autocast();  // autocast.cpp

namespace {

void start() {
  register_device();
  register_kernels();
  register_layouts();
  register_autocast();
  register_collectives();
  register_profiler();
}

void configure_chip(std::string chip, std::string description, int64_t devices, int64_t device_bytes, int64_t context_bytes,
                    int64_t blas_bytes, int64_t blas_lt_bytes, bool check, std::string driver, bool past_capacity) {
  configure({std::move(chip), std::move(description), int(devices), uint64_t(device_bytes), uint64_t(context_bytes),
             uint64_t(blas_bytes), uint64_t(blas_lt_bytes), check, std::move(driver), past_capacity});
}

const at::Generator& generator(int64_t device) { return default_generator(c10::DeviceIndex(device)); }

at::Tensor rng_state(int64_t device) { return at::Tensor(generator(device).unsafeGetGeneratorImpl()->get_state()); }

}  // namespace
}  // namespace bringup

TORCH_LIBRARY(bringup, m) {
  using namespace bringup;
  m.def("start() -> ()", &start);
  m.def(
      "configure(str chip, str description, int devices, int device_bytes, int context_bytes, int blas_bytes, "
      "int blas_lt_bytes, bool check, str driver, bool past_capacity) -> ()",
      &configure_chip);
  m.def("keep_workspaces(str op, bool has_bias, int device) -> ()",
        [](const std::string& op, bool has_bias, int64_t device) { keep_workspaces_of(op, has_bias, c10::DeviceIndex(device)); });
  m.def("clear_workspaces() -> ()", &clear_workspaces);
  m.def("set_device_count(int count) -> ()", [](int64_t count) { set_device_count(int(count)); });
  m.def("max_devices() -> int", [] { return int64_t(kMaxDevices); });
  m.def("device_count() -> int", [] { return int64_t(device_count()); });
  m.def("is_configured() -> bool", [] { return configured(); });
  m.def("is_open_device(int device) -> bool", [](int64_t device) { return opened(int(device)); });
  m.def("is_open() -> bool", [] { return opened(); });
  m.def("is_forked() -> bool", [] { return forked(); });
  m.def("open(int device) -> ()", [](int64_t index) { device(int(index)); });
  m.def("chip() -> str", [] { return config().chip; });
  m.def("description() -> str", [] { return config().description; });
  m.def("device_bytes() -> int", [] { return int64_t(config().device_bytes); });
  m.def("driver_name() -> str", [] {
    device(0);  // loads the driver
    return std::string(driver().name);
  });
  m.def("shutdown() -> ()", [] {
    wait_for_autograd();
    shutdown();
  });
  m.def("stream_priority(int device, int stream) -> int", [](int64_t device, int64_t id) {
    return int64_t(stream(c10::Stream(c10::Stream::UNSAFE, c10::Device(kChip, c10::DeviceIndex(device)), id)).priority);
  });
  m.def("live_blocks(int device, int most) -> str",
        [](int64_t device, int64_t most) { return live_blocks_json(int(device), most); });
  m.def("held_bytes(int device) -> int[]", [](int64_t device) {  // [allocated now, peak, reserved]
    auto stats = chip_allocator().getDeviceStats(c10::DeviceIndex(device));
    return std::vector<int64_t>{stats.allocated_bytes[0].current, stats.allocated_bytes[0].peak, stats.reserved_bytes[0].current};
  });
  m.def("memory_snapshot() -> str", &memory_snapshot_json);
  m.def("clear_memory_history() -> ()", &clear_memory_history);
  m.def("record_memory_history(str enabled, str context, str stacks, int most, str[] skipped) -> ()",
        [](std::string enabled, std::string context, std::string stacks, int64_t most, std::vector<std::string> skipped) {
          record_memory_history(enabled, context, stacks, most, skipped);
        });
  m.def("is_history_recorded() -> bool", [] { return recording_history(); });
  m.def("set_memory_metadata(str text) -> ()", [](std::string text) { set_memory_metadata(text); });
  m.def("memory_metadata() -> str", &memory_metadata);
  m.def("set_memory_limit(int device, float fraction) -> ()",
        [](int64_t device, double fraction) { set_memory_limit(int(device), fraction); });
  m.def("set_expandable_segments(bool on) -> ()", [](bool on) { set_expandable_segments(on); });
  m.def("expandable_segments() -> bool", [] { return expandable_segments(); });
  m.def("reserved_if_expandable() -> int[]", &reserved_if_expandable);
  m.def("set_sync_debug_mode(int mode) -> ()", [](int64_t mode) { set_sync_debug_mode(mode); });
  m.def("sync_debug_mode() -> int", [] { return sync_debug_mode(); });
  m.def("launch_stats() -> str", [] { return launch_stats_json(interned_signatures()); });
  m.def("manual_seed(int device, int seed) -> ()",
        [](int64_t device, int64_t seed) { generator(device).unsafeGetGeneratorImpl()->set_current_seed(uint64_t(seed)); });
  m.def("seed(int device) -> int", [](int64_t device) { return int64_t(generator(device).unsafeGetGeneratorImpl()->seed()); });
  m.def("initial_seed(int device) -> int", [](int64_t device) { return int64_t(generator(device).current_seed()); });
  m.def("rng_state(int device) -> Tensor", &rng_state);
  m.def("set_rng_state(int device, Tensor state) -> ()", [](int64_t device, const at::Tensor& state) {
    generator(device).unsafeGetGeneratorImpl()->set_state(*state.unsafeGetTensorImpl());
  });
}
