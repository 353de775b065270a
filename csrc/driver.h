// What the runtime knows of a device: one struct of function pointers.
//
// A vendor fills in `bringup_driver` and exports `bringup_driver_entry`. Everything above this file (allocator,
// streams, launches, autograd, profiler) stays as it is. drivers/virtual.cpp is the first driver,
// tests/core/null_driver.cpp the smallest.
//
// Conventions
//   - Every function that returns int returns BRINGUP_OK, BRINGUP_OUT_OF_MEMORY (alloc, host_alloc), or BRINGUP_FAILED;
//     after BRINGUP_FAILED, last_error says in one sentence what happened.
//   - Functions may be called from any thread. Nothing here may throw or end the process.
//   - After BRINGUP_FAILED a call has had no effect: nothing was enqueued, created or given away. A wait that failed may not
//     have waited. The runtime raises the sentence in the program's thread and goes on.
//   - "In stream order" means: after everything enqueued earlier on that stream, before everything enqueued later.
//   - An entry marked optional may be null; the comment says what happens then.
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define BRINGUP_DRIVER_ABI 1

#define BRINGUP_MAX_DEVICES 64  // of one process

enum { BRINGUP_OK = 0, BRINGUP_OUT_OF_MEMORY = 1, BRINGUP_FAILED = 2 };

typedef struct bringup_device bringup_device;  // defined by the driver
typedef struct bringup_stream bringup_stream;
typedef struct bringup_event bringup_event;

// A host function enqueued on a stream. Called exactly once, on any thread. With execute == 0 it must only release
// `arg`: a driver that does not execute (null, dry) passes 0.
typedef void (*bringup_host_fn)(void* arg, int execute);

typedef struct bringup_config {
  uint64_t device_bytes;  // capacity of one device; alloc beyond it returns BRINGUP_OUT_OF_MEMORY
  int check;              // not 0: catch host dereferences of device memory, if the driver can
} bringup_config;

typedef struct bringup_driver {
  uint32_t abi;  // BRINGUP_DRIVER_ABI
  const char* name;

  // Device. `open` is called once per index below BRINGUP_MAX_DEVICES, and once more where it or the first stream failed.
  int (*open)(int index, const bringup_config* config, bringup_device** device);
  void (*close)(bringup_device* device);  // every stream is idle and destroyed
  // The last failure on this device, for people. Cleared by the call. Never null. `about`: the device address that it
  // speaks of, or null.
  const char* (*last_error)(bringup_device* device, const void** about);

  // Device memory. Addresses are unique over all devices of the process and at least 512-byte aligned.
  int (*alloc)(bringup_device* device, size_t bytes, void** address);
  int (*free)(bringup_device* device, void* address, size_t bytes);
  // Optional: called before a host function touches the allocation that contains `address`; returns where it finds it, or
  // null if it failed. Absent: device addresses are host pointers.
  void* (*map)(bringup_device* device, void* address);
  // Optional: called when that host function is done with it. Absent: nothing is to be done.
  void (*unmap)(bringup_device* device, void* address);

  // Optional (both or none): page-locked host memory. Absent: ordinary host memory, copies stay correct.
  int (*host_alloc)(bringup_device* device, size_t bytes, void** pointer);
  void (*host_free)(bringup_device* device, void* pointer, size_t bytes);

  // Streams. Lower priority value = more urgent (CUDA's convention); 0 is the default.
  int (*stream_create)(bringup_device* device, int priority, bringup_stream** stream);
  void (*stream_destroy)(bringup_stream* stream);
  int (*stream_synchronize)(bringup_stream* stream);  // waits for everything enqueued so far
  int (*stream_query)(bringup_stream* stream);        // 1: idle, 0: busy, -1: failed

  // Work, in stream order, returns before it has run.
  int (*copy_h2d)(bringup_stream* stream, void* device_address, const void* host, size_t bytes);
  int (*copy_d2h)(bringup_stream* stream, void* host, const void* device_address, size_t bytes);
  // Between any two devices of this driver.
  int (*copy_d2d)(bringup_stream* stream, void* to, const void* from, size_t bytes);
  int (*launch_host)(bringup_stream* stream, bringup_host_fn fn, void* arg);

  // Events. record starts a new version; wait, query, synchronize and elapsed speak of the latest version recorded.
  int (*event_create)(bringup_device* device, bringup_event** event);
  void (*event_destroy)(bringup_event* event);  // may be pending
  int (*event_record)(bringup_event* event, bringup_stream* stream);
  int (*event_wait)(bringup_event* event, bringup_stream* stream);  // the stream waits, the host does not
  int (*event_query)(bringup_event* event);                         // 1: done or never recorded, 0: pending, -1: failed
  int (*event_synchronize)(bringup_event* event);
  int (*event_elapsed)(bringup_event* start, bringup_event* end, double* seconds);
} bringup_driver;

// The symbol a driver library exports.
typedef const bringup_driver* (*bringup_driver_entry_fn)(void);

#ifdef __cplusplus
}
#endif
