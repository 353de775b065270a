// A driver of version 2 of driver.h, which runs everything on the caller's thread. Its memory is the host's, and it has no `map`.
#define bringup_driver_entry null_driver_entry
#include "null_driver.cpp"
#undef bringup_driver_entry

#include <stddef.h>

static int alloc_host(bringup_device* device, size_t bytes, void** address) {
  if (device->used + bytes > device->capacity) return BRINGUP_OUT_OF_MEMORY;
  device->used += bytes;
  *address = aligned_alloc(512, (bytes + 511) / 512 * 512);
  return BRINGUP_OK;
}
static int copy_up(bringup_stream*, void* to, const void* from, size_t bytes) { return memcpy(to, from, bytes), BRINGUP_OK; }
static int copy_down(bringup_stream*, void* to, const void* from, size_t bytes) { return memcpy(to, from, bytes), BRINGUP_OK; }
static int run_host(bringup_stream*, bringup_host_fn fn, void* arg) {
  fn(arg, 1);
  return BRINGUP_OK;
}

extern "C" const bringup_driver* bringup_driver_entry() {
  static unsigned char version2[offsetof(bringup_driver, prepare)];  // the struct ended here
  bringup_driver driver = *null_driver_entry();
  driver.abi = 2;
  driver.size = 0;  // padding in version 2
  driver.name = "caller";
  driver.alloc = alloc_host;
  driver.copy_h2d = copy_up;
  driver.copy_d2h = copy_down;
  driver.copy_d2d = copy_up;
  driver.launch_host = run_host;
  memcpy(version2, &driver, sizeof version2);
  return reinterpret_cast<const bringup_driver*>(version2);
}
