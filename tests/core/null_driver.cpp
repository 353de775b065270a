// The smallest driver. It allocates addresses, accepts all work and executes nothing. Tests load it to prove that the runtime
// uses only what driver.h describes.
#include <stdlib.h>
#include <string.h>

#include "../../csrc/driver.h"

struct bringup_device {
  size_t capacity, used, next;
};
struct bringup_stream {
  bringup_device* device;
};
struct bringup_event {
  int unused;
};

static int open_device(int index, const bringup_config* config, bringup_device** out) {
  *out = new bringup_device{config->device_bytes, 0, (size_t(index) + 1) << 44};  // addresses that are not mapped
  return BRINGUP_OK;
}
static void close_device(bringup_device* device) { delete device; }
static const char* last_error(bringup_device*, const void** about) {
  *about = nullptr;
  return "the null driver never fails";
}

static int alloc(bringup_device* device, size_t bytes, void** address) {
  if (device->used + bytes > device->capacity) return BRINGUP_OUT_OF_MEMORY;
  device->used += bytes;
  *address = reinterpret_cast<void*>(device->next);
  device->next += (bytes + 511) / 512 * 512;
  return BRINGUP_OK;
}
static int release(bringup_device* device, void*, size_t bytes) {
  device->used -= bytes;
  return BRINGUP_OK;
}

static int stream_create(bringup_device* device, int, bringup_stream** out) {
  *out = new bringup_stream{device};
  return BRINGUP_OK;
}
static void stream_destroy(bringup_stream* stream) { delete stream; }
static int stream_ok(bringup_stream*) { return BRINGUP_OK; }
static int stream_idle(bringup_stream*) { return 1; }

static int copy_h2d(bringup_stream*, void*, const void*, size_t) { return BRINGUP_OK; }
static int copy_d2h(bringup_stream*, void* host, const void*, size_t bytes) {
  memset(host, 0, bytes);
  return BRINGUP_OK;
}
static int copy_d2d(bringup_stream*, void*, const void*, size_t) { return BRINGUP_OK; }
static int launch_host(bringup_stream*, bringup_host_fn fn, void* arg) {
  fn(arg, 0);
  return BRINGUP_OK;
}

static int event_create(bringup_device*, bringup_event** out) {
  *out = new bringup_event{0};
  return BRINGUP_OK;
}
static void event_destroy(bringup_event* event) { delete event; }
static int event_stream(bringup_event*, bringup_stream*) { return BRINGUP_OK; }
static int event_done(bringup_event*) { return 1; }
static int event_ok(bringup_event*) { return BRINGUP_OK; }
static int event_elapsed(bringup_event*, bringup_event*, double* seconds) {
  *seconds = 0;
  return BRINGUP_OK;
}

extern "C" const bringup_driver* bringup_driver_entry() {
  static const bringup_driver driver = {
      .abi = BRINGUP_DRIVER_ABI,
      .size = sizeof(bringup_driver),
      .name = "null",
      .open = open_device,
      .close = close_device,
      .last_error = last_error,
      .alloc = alloc,
      .free = release,
      .range_reserve = nullptr,
      .range_release = nullptr,
      .range_map = nullptr,
      .range_unmap = nullptr,
      .map = nullptr,
      .unmap = nullptr,
      .host_alloc = nullptr,
      .host_free = nullptr,
      .stream_create = stream_create,
      .stream_destroy = stream_destroy,
      .stream_synchronize = stream_ok,
      .stream_query = stream_idle,
      .copy_h2d = copy_h2d,
      .copy_d2h = copy_d2h,
      .copy_d2d = copy_d2d,
      .launch_host = launch_host,
      .event_create = event_create,
      .event_destroy = event_destroy,
      .event_record = event_stream,
      .event_wait = event_stream,
      .event_query = event_done,
      .event_synchronize = event_ok,
      .event_elapsed = event_elapsed,
      .prepare = nullptr,
      .launch = nullptr,
      .release = nullptr,
      .failed_launch = nullptr,
  };
  return &driver;
}
