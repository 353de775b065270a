// The driver of NAME. It has memory of its own, which the host does not address. It has no kernels yet, so every operator runs on
// the host, on copies. Here the device is ordinary memory, and a stream does its work at the call. Replace the body of each
// function by calls of your device's runtime. driver.h says what each function has to do.
#include <chrono>
#include <cstdlib>
#include <cstring>

#include "driver.h"

struct bringup_device {
  size_t capacity, used;
};
struct bringup_stream {
  bringup_device* device;
};
struct bringup_event {
  std::chrono::steady_clock::time_point time;
};
struct bringup_kernel {
  int64_t count;  // and what else your kernel needs to know
};

namespace {

int open_device(int index, const bringup_config* config, bringup_device** device) {
  if (index > 0) return BRINGUP_FAILED;  // one device
  *device = new bringup_device{config->device_bytes, 0};
  return BRINGUP_OK;
}
void close_device(bringup_device* device) { delete device; }
const char* last_error(bringup_device* device, const void** about) {
  *about = nullptr;
  return device ? "NAME failed" : "there is one device of NAME";
}
const char* device_name(int index) { return index == 0 ? "NAME" : nullptr; }

int alloc(bringup_device* device, size_t bytes, void** address) {
  if (device->used + bytes > device->capacity) return BRINGUP_OUT_OF_MEMORY;
  *address = std::aligned_alloc(512, (bytes + 511) / 512 * 512);
  if (!*address) return BRINGUP_OUT_OF_MEMORY;
  device->used += bytes;
  return BRINGUP_OK;
}
int free_memory(bringup_device* device, void* address, size_t bytes) {
  std::free(address);
  device->used -= bytes;
  return BRINGUP_OK;
}

int stream_create(bringup_device* device, int /*priority*/, bringup_stream** stream) {
  *stream = new bringup_stream{device};
  return BRINGUP_OK;
}
void stream_destroy(bringup_stream* stream) { delete stream; }
int stream_synchronize(bringup_stream*) { return BRINGUP_OK; }
int stream_query(bringup_stream*) { return 1; }

int copy_h2d(bringup_stream*, void* to, const void* from, size_t bytes) { return std::memcpy(to, from, bytes), BRINGUP_OK; }
int copy_d2h(bringup_stream*, void* to, const void* from, size_t bytes) { return std::memcpy(to, from, bytes), BRINGUP_OK; }
int copy_d2d(bringup_stream*, void* to, const void* from, size_t bytes) { return std::memmove(to, from, bytes), BRINGUP_OK; }
int launch_host(bringup_stream*, bringup_host_fn function, void* argument) { return function(argument, 1), BRINGUP_OK; }

int event_create(bringup_device*, bringup_event** event) { return *event = new bringup_event{}, BRINGUP_OK; }
void event_destroy(bringup_event* event) { delete event; }
int event_record(bringup_event* event, bringup_stream*) { return event->time = std::chrono::steady_clock::now(), BRINGUP_OK; }
int event_wait(bringup_event*, bringup_stream*) { return BRINGUP_OK; }
int event_query(bringup_event*) { return 1; }
int event_synchronize(bringup_event*) { return BRINGUP_OK; }
int event_elapsed(bringup_event* start, bringup_event* end, double* seconds) {
  return *seconds = std::chrono::duration<double>(end->time - start->time).count(), BRINGUP_OK;
}

int prepare(bringup_device* device, const bringup_call* call, bringup_kernel** kernel, const char** why) {
  // Your first kernel goes here. This takes aten::relu of contiguous float32 tensors, and leaves all else to the host:
  //   if (std::strcmp(call->op, "aten::relu") != 0) return BRINGUP_UNSUPPORTED;
  //   const bringup_tensor& in = call->tensors[0];
  //   int64_t count = 1;
  //   for (int d = in.dims - 1; d >= 0; --d) {
  //     if (in.sizes[d] != 1 && in.strides[d] != count) return *why = "not contiguous", BRINGUP_UNSUPPORTED;
  //     count *= in.sizes[d];
  //   }
  //   if (in.dtype != BRINGUP_FLOAT32) return *why = "not float32", BRINGUP_UNSUPPORTED;
  //   return *kernel = new bringup_kernel{count}, BRINGUP_OK;
  return BRINGUP_UNSUPPORTED;
}
int launch(bringup_stream* stream, bringup_kernel* kernel, const bringup_launch* launch) {
  // It runs in stream order. The addresses are those of the call's tensors, then of its new tensors:
  //   auto* in = static_cast<const float*>(launch->addresses[0]);
  //   auto* out = static_cast<float*>(launch->addresses[1]);
  //   for (int64_t i = 0; i < kernel->count; ++i) out[i] = in[i] < 0 ? 0 : in[i];
  return BRINGUP_OK;
}
void release(bringup_kernel* kernel) { delete kernel; }

}  // namespace

extern "C" const bringup_driver* bringup_driver_entry() {
  static const bringup_driver driver = [] {
    bringup_driver d = {};
    d.abi = BRINGUP_DRIVER_ABI, d.size = sizeof d, d.name = "NAME";
    d.open = open_device, d.close = close_device, d.last_error = last_error, d.device_name = device_name;
    d.alloc = alloc, d.free = free_memory;
    d.stream_create = stream_create, d.stream_destroy = stream_destroy;
    d.stream_synchronize = stream_synchronize, d.stream_query = stream_query;
    d.copy_h2d = copy_h2d, d.copy_d2h = copy_d2h, d.copy_d2d = copy_d2d, d.launch_host = launch_host;
    d.event_create = event_create, d.event_destroy = event_destroy, d.event_record = event_record;
    d.event_wait = event_wait, d.event_query = event_query, d.event_synchronize = event_synchronize;
    d.event_elapsed = event_elapsed;
    d.prepare = prepare, d.launch = launch, d.release = release;
    return d;
  }();
  return &driver;
}
