// The driver interface: one struct of function pointers is all that the runtime knows of a device.
//
// A driver library fills in `bringup_driver` and exports `bringup_driver_entry`. The layers above it (allocator, streams,
// launches, autograd, profiler) need no change. drivers/virtual.cpp is the driver of the virtual chip, and
// tests/core/null_driver.cpp is the smallest driver.
//
// Conventions
//   - Unless its comment says otherwise, a function that returns int returns BRINGUP_OK or BRINGUP_FAILED. `alloc` and
//     `host_alloc` may also return BRINGUP_OUT_OF_MEMORY. After BRINGUP_FAILED, `last_error` describes the failure in one
//     sentence.
//   - Functions may be called from any thread. They must not throw and must not end the process.
//   - A call that returns BRINGUP_FAILED has had no effect: it has enqueued, created and released nothing. A wait that failed may
//     not have waited. The runtime raises the sentence in the program's thread, and the program can go on.
//   - "In stream order" means: after all work enqueued earlier on that stream, and before all work enqueued later.
//   - An entry marked optional may be null. Its comment describes the runtime's behaviour in that case.
//   - bringup_call and bringup_launch begin with their size in bytes, and only grow at the end. The elements of arrays do not
//     grow. bringup_driver has its size behind the version, where version 2 had padding.
//   - A driver of version 2 still loads. It has no entries after `event_elapsed`, and without `map` its device addresses are host
//     pointers.
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define BRINGUP_DRIVER_ABI 3

#define BRINGUP_MAX_DEVICES 64  // per process

enum { BRINGUP_OK = 0, BRINGUP_OUT_OF_MEMORY = 1, BRINGUP_FAILED = 2, BRINGUP_UNSUPPORTED = 3 };

typedef struct bringup_device bringup_device;  // The driver defines these.
typedef struct bringup_stream bringup_stream;
typedef struct bringup_event bringup_event;
typedef struct bringup_kernel bringup_kernel;  // also the driver's: an operator made ready for one kind of call

// A host function that the runtime enqueues on a stream. The driver calls it exactly once, on any thread. It passes execute != 0
// to run the work. A driver that computes nothing passes 0, and the function then only releases `arg`.
typedef void (*bringup_host_fn)(void* arg, int execute);

typedef struct bringup_config {
  uint64_t device_bytes;  // capacity of one device; `alloc` beyond it returns BRINGUP_OUT_OF_MEMORY
  int check;              // not 0: detect host code that dereferences device memory, if the driver can
} bringup_config;

// ---- A call of an operator, as `prepare` sees it. The contract of an operator is its schema in PyTorch.

enum {  // the dtypes, numbered as in c10/core/ScalarType.h; others may occur
  BRINGUP_UINT8 = 0,
  BRINGUP_INT8 = 1,
  BRINGUP_INT16 = 2,
  BRINGUP_INT32 = 3,
  BRINGUP_INT64 = 4,
  BRINGUP_FLOAT16 = 5,
  BRINGUP_FLOAT32 = 6,
  BRINGUP_FLOAT64 = 7,
  BRINGUP_BOOL = 11,
  BRINGUP_BFLOAT16 = 15
};

typedef struct bringup_tensor {
  int32_t dtype;
  int32_t dims;     // -1: undefined, for example a gradient that is not wanted
  int32_t storage;  // tensors of the same number share memory; -1: a number on the host, whose value comes with each launch
  int32_t written;
  const int64_t* sizes;
  const int64_t* strides;  // in elements
} bringup_tensor;

enum {
  BRINGUP_NONE,     // an absent optional argument
  BRINGUP_TENSOR,   // `first` is its index in the call's tensors
  BRINGUP_TENSORS,  // `count` tensors from `first`
  BRINGUP_SCALAR,   // a number that may change with each launch, such as a learning rate
  BRINGUP_SCALARS,  // `count` such numbers, in the values of each launch from index `first`
  BRINGUP_INT,
  BRINGUP_DOUBLE,
  BRINGUP_BOOL_VALUE,
  BRINGUP_INTS,     // `count` numbers
  BRINGUP_DOUBLES,  // `count` numbers
  BRINGUP_STRING,
  BRINGUP_OTHER,
  BRINGUP_GENERATOR  // the call draws random numbers; see `draws` and `seed`
};

typedef struct bringup_argument {
  int32_t kind, count, first;
  int64_t integer;  // INT, BOOL_VALUE
  double number;    // DOUBLE
  const int64_t* integers;
  const double* doubles;
  const char* string;
} bringup_argument;

typedef struct bringup_call {
  uint32_t size;
  const char* op;  // "aten::add.Tensor"
  int32_t argument_count, tensor_count, output_count;
  const bringup_argument* arguments;  // in the order of the schema
  const bringup_tensor* tensors;      // of the arguments, lists flattened
  const bringup_tensor* outputs;      // new tensors, which the runtime has allocated
  // Of a call with a generator; null without one. `prepare` writes by how much each launch advances the generator's offset.
  uint64_t* draws;
} bringup_call;

typedef struct bringup_launch {
  uint32_t size;
  int64_t number;  // of the launch, from 1; see `failed_launch`
  void* const*
      addresses;         // of the first element of each of the call's tensors, then of its outputs; null for numbers on the host
  const double* values;  // one per argument: of SCALAR, and of a TENSOR on the host
  // Of a call with a generator: its seed, and the offset from which this launch draws. A seed and an offset give the same numbers
  // at any time; no other launch with this seed draws from the offsets up to `offset` + `draws`.
  uint64_t seed, offset;
} bringup_launch;

typedef struct bringup_driver {
  uint32_t abi;   // BRINGUP_DRIVER_ABI
  uint32_t size;  // sizeof(bringup_driver)
  const char* name;

  // Device. `open` is called at most once per index below BRINGUP_MAX_DEVICES. If `open` or the creation of the first stream
  // fails, it may be called again for that index. After a failed `open`, `last_error` is called with a null device.
  int (*open)(int index, const bringup_config* config, bringup_device** device);
  void (*close)(bringup_device* device);  // All its streams are idle and destroyed.
  // Returns the last failure on this device as a sentence for users, and clears it. Never null. Sets `about` to the device
  // address that the sentence is about, or to null.
  const char* (*last_error)(bringup_device* device, const void** about);

  // Device memory. Addresses are unique among all devices of the process, and aligned to at least 512 bytes.
  int (*alloc)(bringup_device* device, size_t bytes, void** address);
  int (*free)(bringup_device* device, void* address, size_t bytes);
  // Optional (all or none): expandable segments (PYTORCH_ALLOC_CONF=expandable_segments:True). If absent, the allocator warns and
  // takes every segment from `alloc`. A range of addresses is reserved without memory; pages in it get memory, which counts
  // towards the capacity, and give it back. All sizes and offsets are multiples of 2 MiB. `range_map` may also return
  // BRINGUP_OUT_OF_MEMORY, and `range_reserve` if there are no addresses. A range that is released has no memory.
  int (*range_reserve)(bringup_device* device, size_t bytes, void** address);
  int (*range_release)(bringup_device* device, void* address, size_t bytes);
  int (*range_map)(bringup_device* device, void* address, size_t bytes);
  int (*range_unmap)(bringup_device* device, void* address, size_t bytes);
  // Optional: called before a host function accesses the allocation that contains `address`. Returns a host pointer for that
  // address, or null on failure; the host accesses device memory through it, and nothing is copied. If absent, the host cannot
  // address device memory: the runtime copies what a host function reads and writes (see `launch_host`).
  void* (*map)(bringup_device* device, void* address);
  // Optional: called with the same `address` when that host function has finished. If absent, no call is made.
  void (*unmap)(bringup_device* device, void* address);

  // Optional (both or none): page-locked host memory. If absent, ordinary host memory is used, and copies stay correct.
  int (*host_alloc)(bringup_device* device, size_t bytes, void** pointer);
  void (*host_free)(bringup_device* device, void* pointer, size_t bytes);

  // Streams. A lower priority value is more urgent, as in CUDA; the default is 0.
  int (*stream_create)(bringup_device* device, int priority, bringup_stream** stream);
  void (*stream_destroy)(bringup_stream* stream);
  int (*stream_synchronize)(bringup_stream* stream);  // Waits for all work enqueued so far.
  int (*stream_query)(bringup_stream* stream);        // Returns 1 if idle, 0 if busy, -1 on failure.

  // Work. It runs in stream order, and the call returns before the work has run.
  int (*copy_h2d)(bringup_stream* stream, void* device_address, const void* host, size_t bytes);
  int (*copy_d2h)(bringup_stream* stream, void* host, const void* device_address, size_t bytes);
  // Copies within a device, or between any two devices of this driver.
  int (*copy_d2d)(bringup_stream* stream, void* to, const void* from, size_t bytes);
  // Runs a host function. It calls no entry of the driver except `map` and `unmap`. Without `map`, it accesses host memory only:
  // the runtime enqueues `copy_d2h` of what it reads before it, and `copy_h2d` of what it writes after it.
  int (*launch_host)(bringup_stream* stream, bringup_host_fn fn, void* arg);

  // Events. Each `event_record` starts a new version of the event. The other functions concern the latest recorded version.
  int (*event_create)(bringup_device* device, bringup_event** event);
  void (*event_destroy)(bringup_event* event);  // The event may still be pending.
  int (*event_record)(bringup_event* event, bringup_stream* stream);
  int (*event_wait)(bringup_event* event, bringup_stream* stream);  // Later work of the stream waits; the host does not.
  int (*event_query)(bringup_event* event);  // Returns 1 if reached or never recorded, 0 if pending, -1 on failure.
  int (*event_synchronize)(bringup_event* event);
  int (*event_elapsed)(bringup_event* start, bringup_event* end, double* seconds);

  // Kernels of the device (all three or none). If absent, every operator is a host function.
  // `prepare` is called once per device and kind of call, which is what bringup_call describes. It returns BRINGUP_UNSUPPORTED if
  // the operator shall run on the host for this kind; `why`, which is never freed, is then shown to users. The call and all that
  // it points to end with the function.
  int (*prepare)(bringup_device* device, const bringup_call* call, bringup_kernel** kernel, const char** why);
  // Enqueues the kernel in stream order. What `launch` points to ends with the function.
  int (*launch)(bringup_stream* stream, bringup_kernel* kernel, const bringup_launch* launch);
  void (*release)(bringup_kernel* kernel);  // Its launches may still be pending.
  // Optional: called before `last_error`. Returns the number of the launch that the last failure is about, 0 if it is about none.
  // If absent, a failure that a wait reports names no launch.
  int64_t (*failed_launch)(bringup_device* device);

  // Optional: returns the name of a device for lists, or null if there is no device with that index. It is called before `open`,
  // and opens nothing. If absent, devices have no names.
  const char* (*device_name)(int index);
} bringup_driver;

// The type of the function `bringup_driver_entry` that a driver library exports.
typedef const bringup_driver* (*bringup_driver_entry_fn)(void);

#ifdef __cplusplus
}
#endif
