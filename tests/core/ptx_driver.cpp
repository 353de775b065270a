// A driver whose device memory is the host's and which computes nothing: it compiles the kit's kernels for an H100. PTX_LOG names
// a file for what does not compile.
#include <cstdio>
#include <cstdlib>
#include <fstream>

#include "drivers/kit.h"
#include "drivers/nvidia.h"

struct bringup_device : kit::DeviceState {
  uint64_t fault = 0;
};
struct bringup_stream : kit::StreamState {};
struct bringup_event {};

namespace {

const char* device_name(int index) { return index == 0 ? "a compiler" : nullptr; }
int open_device(int, const bringup_config* config, bringup_device** out) {
  if (!nvidia::nvrtc().usable) return kit::refuse_open("libnvrtc is missing");
  *out = new bringup_device();
  (*out)->capacity = config->device_bytes;
  return BRINGUP_OK;
}
void close_device(bringup_device* device) { delete device; }
int stream_create(bringup_device*, int, bringup_stream** out) { return *out = new bringup_stream(), BRINGUP_OK; }
void stream_destroy(bringup_stream* stream) { delete stream; }
int stream_synchronize(bringup_stream*) { return BRINGUP_OK; }
int stream_query(bringup_stream*) { return 1; }
int copy(void* to, const void* from, size_t bytes) { return std::memmove(to, from, bytes), BRINGUP_OK; }
int copy_h2d(bringup_stream*, void* to, const void* from, size_t bytes) { return copy(to, from, bytes); }
int copy_d2h(bringup_stream*, void* to, const void* from, size_t bytes) { return copy(to, from, bytes); }
int copy_d2d(bringup_stream*, void* to, const void* from, size_t bytes) { return copy(to, from, bytes); }
int launch_host(bringup_stream*, bringup_host_fn fn, void* arg) { return fn(arg, 1), BRINGUP_OK; }
int event_create(bringup_device*, bringup_event** out) { return *out = new bringup_event(), BRINGUP_OK; }
void event_destroy(bringup_event* event) { delete event; }
int event_record(bringup_event*, bringup_stream*) { return BRINGUP_OK; }
int event_wait(bringup_event*, bringup_stream*) { return BRINGUP_OK; }
int event_query(bringup_event*) { return 1; }
int event_synchronize(bringup_event*) { return BRINGUP_OK; }
int event_elapsed(bringup_event*, bringup_event*, double* seconds) { return *seconds = 0, BRINGUP_OK; }

}  // namespace

kit::DeviceState& kit::state(bringup_device* device) { return *device; }
kit::StreamState& kit::state(bringup_stream* stream) { return *stream; }
const char* kit::listed_operators() { return "all"; }

kit::Code kit::build(bringup_device*, const std::string& source, std::string* log) {
  static int compiled = 0;
  bool good = !nvidia::compile(source, "sm_90", log).empty();
  std::ofstream file(getenv("PTX_LOG"), std::ios::app);
  file << (good ? "compiled " : "FAILED ") << ++compiled << "\n" << (good ? "" : *log + source);
  if (good) log->clear();
  return &compiled;
}

kit::Kernel kit::kernel_of(Code program, const char*) {
  return Kernel(program, [](void*) {});
}
int kit::allocate(bringup_device*, size_t bytes, void** address) {
  *address = std::aligned_alloc(512, (bytes + 511) / 512 * 512);
  std::memset(*address, 0, bytes);
  return BRINGUP_OK;
}
int kit::release(bringup_device*, void* address) { return std::free(address), BRINGUP_OK; }
void kit::append_address(bringup_stream*, Arguments& arguments, void* address, size_t) { arguments.add(address); }
int kit::enqueue(bringup_stream*, const Kernel&, Arguments&, const Grid&) { return BRINGUP_OK; }
void* kit::fault_word(bringup_device* device) { return &device->fault; }
kit::RunProduct kit::library_product(bringup_device*, const Product&) { return {}; }

BRINGUP_KIT_DRIVER("ptx", nullptr, nullptr)
