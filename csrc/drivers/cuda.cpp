// The driver of NVIDIA GPUs. libcuda, NVRTC and cuBLAS are opened by name when a device is opened; the kernels are the kit's.
// BRINGUP_CUDA_OPERATORS limits the operators that run on the GPU: all, none, or a list such as aten::mm,aten::add.Tensor.
#include <algorithm>
#include <cstdio>
#include <mutex>
#include <utility>

#include "kit.h"
#include "nvrtc.h"

namespace {

// Declarations as in cuda.h and cublas_api.h, of the functions that are used.
using Handle = void*;
using Address = unsigned long long;
constexpr int kNotReady = 600, kDeviceOutOfMemory = 2, kNonBlocking = 1, kPortableMapped = 3;
constexpr int kMajor = 75, kMinor = 76;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*

struct Cuda {
  int (*cuInit)(unsigned);
  int (*cuDeviceGet)(int*, int);
  int (*cuDeviceGetAttribute)(int*, int, int);
  int (*cuDeviceGetName)(char*, int, int);
  int (*cuDevicePrimaryCtxRetain)(Handle*, int);
  int (*cuCtxSetCurrent)(Handle);
  int (*cuGetErrorString)(int, const char**);
  int (*cuMemAlloc_v2)(Address*, size_t);
  int (*cuMemFree_v2)(Address);
  int (*cuMemHostAlloc)(void**, size_t, unsigned);
  int (*cuMemFreeHost)(void*);
  int (*cuStreamCreateWithPriority)(Handle*, unsigned, int);
  int (*cuStreamDestroy_v2)(Handle);
  int (*cuStreamSynchronize)(Handle);
  int (*cuStreamQuery)(Handle);
  int (*cuMemcpyHtoDAsync_v2)(Address, const void*, size_t, Handle);
  int (*cuMemcpyDtoHAsync_v2)(void*, Address, size_t, Handle);
  int (*cuMemcpyAsync)(Address, Address, size_t, Handle);
  int (*cuLaunchHostFunc)(Handle, void (*)(void*), void*);
  int (*cuEventCreate)(Handle*, unsigned);
  int (*cuEventDestroy_v2)(Handle);
  int (*cuEventRecord)(Handle, Handle);
  int (*cuStreamWaitEvent)(Handle, Handle, unsigned);
  int (*cuEventQuery)(Handle);
  int (*cuEventSynchronize)(Handle);
  int (*cuEventElapsedTime)(float*, Handle, Handle);
  int (*cuModuleLoadData)(Handle*, const void*);
  int (*cuModuleGetFunction)(Handle*, Handle, const char*);
  int (*cuLaunchKernel)(Handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Handle, void**, void**);
  std::string problem;

  Cuda() {
    void* library = dlopen("libcuda.so.1", RTLD_NOW);
    if (!library) problem = "libcuda.so.1 is missing: this machine has no NVIDIA driver";
#define BRINGUP_LOAD(name)                                                                  \
  if (problem.empty() && !(name = reinterpret_cast<decltype(name)>(dlsym(library, #name)))) \
  problem = "libcuda.so.1 has no " #name ": the NVIDIA driver is too old"
    BRINGUP_LOAD(cuInit);
    BRINGUP_LOAD(cuDeviceGet);
    BRINGUP_LOAD(cuDeviceGetAttribute);
    BRINGUP_LOAD(cuDeviceGetName);
    BRINGUP_LOAD(cuDevicePrimaryCtxRetain);
    BRINGUP_LOAD(cuCtxSetCurrent);
    BRINGUP_LOAD(cuGetErrorString);
    BRINGUP_LOAD(cuMemAlloc_v2);
    BRINGUP_LOAD(cuMemFree_v2);
    BRINGUP_LOAD(cuMemHostAlloc);
    BRINGUP_LOAD(cuMemFreeHost);
    BRINGUP_LOAD(cuStreamCreateWithPriority);
    BRINGUP_LOAD(cuStreamDestroy_v2);
    BRINGUP_LOAD(cuStreamSynchronize);
    BRINGUP_LOAD(cuStreamQuery);
    BRINGUP_LOAD(cuMemcpyHtoDAsync_v2);
    BRINGUP_LOAD(cuMemcpyDtoHAsync_v2);
    BRINGUP_LOAD(cuMemcpyAsync);
    BRINGUP_LOAD(cuLaunchHostFunc);
    BRINGUP_LOAD(cuEventCreate);
    BRINGUP_LOAD(cuEventDestroy_v2);
    BRINGUP_LOAD(cuEventRecord);
    BRINGUP_LOAD(cuStreamWaitEvent);
    BRINGUP_LOAD(cuEventQuery);
    BRINGUP_LOAD(cuEventSynchronize);
    BRINGUP_LOAD(cuEventElapsedTime);
    BRINGUP_LOAD(cuModuleLoadData);
    BRINGUP_LOAD(cuModuleGetFunction);
    BRINGUP_LOAD(cuLaunchKernel);
#undef BRINGUP_LOAD
  }
};

const Cuda& cu() {
  static const auto* functions = new Cuda();
  return *functions;
}

struct Cublas {
  int (*cublasCreate_v2)(Handle*);
  int (*cublasSetStream_v2)(Handle, Handle);
  int (*cublasSgemmStridedBatched)(Handle, int, int, int, int, int, const float*, const float*, int, long long, const float*, int,
                                   long long, const float*, float*, int, long long, int);
  bool usable = false;

  Cublas() {
    nvidia::open_library("libcublasLt.so.");
    void* library = nvidia::open_library("libcublas.so.");
    usable = library != nullptr;
#define BRINGUP_LOAD(name) usable = usable && (name = reinterpret_cast<decltype(name)>(dlsym(library, #name)))
    BRINGUP_LOAD(cublasCreate_v2);
    BRINGUP_LOAD(cublasSetStream_v2);
    BRINGUP_LOAD(cublasSgemmStridedBatched);
#undef BRINGUP_LOAD
  }
};

const Cublas& blas() {
  static const auto* functions = new Cublas();
  return *functions;
}

}  // namespace

struct bringup_device : kit::Failures {
  Handle context = nullptr, products = nullptr;  // the latter is cuBLAS's
  std::string architecture;
  size_t capacity = 0, used = 0;
  uint64_t* fault = nullptr;  // page-locked memory that kernels can address
  std::mutex products_mutex;
  std::unordered_map<std::string, Handle> modules;

  void enter() { cu().cuCtxSetCurrent(context); }
  int check(int code, const char* what) {
    if (code == 0) return BRINGUP_OK;
    const char* text = "an unknown error";
    cu().cuGetErrorString(code, &text);
    return fail(std::string(what) + " failed: " + text);
  }
  // The number of the launch that met an index out of range.
  int check_fault() {
    uint64_t number = __atomic_exchange_n(fault, 0, __ATOMIC_ACQ_REL);
    return number ? fail("an index is out of range", int64_t(number)) : int(BRINGUP_OK);
  }
};
struct bringup_stream {
  bringup_device* device;
  Handle stream;
};
struct bringup_event {
  bringup_device* device;
  Handle event;
  bool recorded = false;
};

namespace {

Address address_of(const void* pointer) { return Address(reinterpret_cast<uintptr_t>(pointer)); }

int open_device(int index, const bringup_config* config, bringup_device** out) {
  if (!cu().problem.empty()) return kit::refuse_open(cu().problem);
  if (!nvidia::nvrtc().usable) return kit::refuse_open("libnvrtc is missing: pip install nvidia-cuda-nvrtc");
  int id = 0, major = 0, minor = 0;
  if (int code = cu().cuInit(0)) return kit::refuse_open("cuInit failed with error " + std::to_string(code));
  if (cu().cuDeviceGet(&id, index))
    return kit::refuse_open("this machine has no NVIDIA GPU with the number " + std::to_string(index));
  auto device = std::make_unique<bringup_device>();
  if (cu().cuDevicePrimaryCtxRetain(&device->context, id)) return kit::refuse_open("the GPU gives no context: is it in use?");
  cu().cuDeviceGetAttribute(&major, kMajor, id);
  cu().cuDeviceGetAttribute(&minor, kMinor, id);
  device->architecture = "sm_" + std::to_string(major) + std::to_string(minor);
  device->capacity = config->device_bytes;
  device->enter();
  void* fault = nullptr;
  if (cu().cuMemHostAlloc(&fault, sizeof(uint64_t), kPortableMapped)) return kit::refuse_open("there is no page-locked memory");
  device->fault = static_cast<uint64_t*>(fault);
  *device->fault = 0;
  if (blas().usable && blas().cublasCreate_v2(&device->products)) device->products = nullptr;
  *out = device.release();
  return BRINGUP_OK;
}

void close_device(bringup_device* device) { delete device; }

const char* device_name(int index) {
  thread_local char name[256];
  int device = 0;
  if (!cu().problem.empty() || cu().cuInit(0) != 0 || cu().cuDeviceGet(&device, index) != 0) return nullptr;
  return cu().cuDeviceGetName(name, sizeof name, device) == 0 ? name : "unnamed";
}

int alloc(bringup_device* device, size_t bytes, void** address) {
  device->enter();
  {
    std::lock_guard<std::mutex> lock(device->mutex);
    if (device->used + bytes > device->capacity) return BRINGUP_OUT_OF_MEMORY;
    device->used += bytes;
  }
  Address at = 0;
  int code = cu().cuMemAlloc_v2(&at, bytes);
  *address = reinterpret_cast<void*>(uintptr_t(at));
  if (code == 0) return BRINGUP_OK;
  std::lock_guard<std::mutex> lock(device->mutex);
  device->used -= bytes;
  return BRINGUP_OUT_OF_MEMORY;
}

int release_memory(bringup_device* device, void* address, size_t bytes) {
  device->enter();
  int status = device->check(cu().cuMemFree_v2(address_of(address)), "freeing memory");
  std::lock_guard<std::mutex> lock(device->mutex);
  if (status == BRINGUP_OK) device->used -= bytes;
  return status;
}

int host_alloc(bringup_device* device, size_t bytes, void** pointer) {
  device->enter();
  return cu().cuMemHostAlloc(pointer, bytes, kPortableMapped) == 0 ? BRINGUP_OK : BRINGUP_OUT_OF_MEMORY;
}

void host_free(bringup_device* device, void* pointer, size_t) {
  device->enter();
  cu().cuMemFreeHost(pointer);
}

int stream_create(bringup_device* device, int priority, bringup_stream** out) {
  device->enter();
  Handle stream = nullptr;
  int status = device->check(cu().cuStreamCreateWithPriority(&stream, kNonBlocking, priority), "the creation of a stream");
  if (status == BRINGUP_OK) *out = new bringup_stream{device, stream};
  return status;
}

void stream_destroy(bringup_stream* stream) {
  stream->device->enter();
  cu().cuStreamDestroy_v2(stream->stream);
  delete stream;
}

int stream_synchronize(bringup_stream* stream) {
  stream->device->enter();
  int status = stream->device->check(cu().cuStreamSynchronize(stream->stream), "work on a stream");
  return status == BRINGUP_OK ? stream->device->check_fault() : status;
}

int stream_query(bringup_stream* stream) {
  stream->device->enter();
  int code = cu().cuStreamQuery(stream->stream);
  if (code == kNotReady) return 0;
  return stream->device->check(code, "work on a stream") == BRINGUP_OK ? 1 : -1;
}

int copy_h2d(bringup_stream* stream, void* to, const void* host, size_t bytes) {
  stream->device->enter();
  return stream->device->check(cu().cuMemcpyHtoDAsync_v2(address_of(to), host, bytes, stream->stream), "a copy to the device");
}

int copy_d2h(bringup_stream* stream, void* host, const void* from, size_t bytes) {
  stream->device->enter();
  return stream->device->check(cu().cuMemcpyDtoHAsync_v2(host, address_of(from), bytes, stream->stream), "a copy to the host");
}

int copy_d2d(bringup_stream* stream, void* to, const void* from, size_t bytes) {
  stream->device->enter();
  return stream->device->check(cu().cuMemcpyAsync(address_of(to), address_of(from), bytes, stream->stream),
                               "a copy on the device");
}

struct HostCall {
  bringup_host_fn fn;
  void* arg;
};

int launch_host(bringup_stream* stream, bringup_host_fn fn, void* arg) {
  stream->device->enter();
  auto* call = new HostCall{fn, arg};
  auto run = [](void* argument) {
    std::unique_ptr<HostCall> call(static_cast<HostCall*>(argument));
    call->fn(call->arg, 1);
  };
  int status = stream->device->check(cu().cuLaunchHostFunc(stream->stream, run, call), "a host function");
  if (status != BRINGUP_OK) delete call;
  return status;
}

int event_create(bringup_device* device, bringup_event** out) {
  device->enter();
  Handle event = nullptr;
  int status = device->check(cu().cuEventCreate(&event, 0), "the creation of an event");
  if (status == BRINGUP_OK) *out = new bringup_event{device, event};
  return status;
}

void event_destroy(bringup_event* event) {
  event->device->enter();
  cu().cuEventDestroy_v2(event->event);
  delete event;
}

int event_record(bringup_event* event, bringup_stream* stream) {
  stream->device->enter();
  int status = stream->device->check(cu().cuEventRecord(event->event, stream->stream), "the record of an event");
  event->recorded |= status == BRINGUP_OK;
  return status;
}

int event_wait(bringup_event* event, bringup_stream* stream) {
  if (!event->recorded) return BRINGUP_OK;
  stream->device->enter();
  return stream->device->check(cu().cuStreamWaitEvent(stream->stream, event->event, 0), "a wait for an event");
}

int event_query(bringup_event* event) {
  if (!event->recorded) return 1;
  event->device->enter();
  int code = cu().cuEventQuery(event->event);
  if (code == kNotReady) return 0;
  return event->device->check(code, "work before an event") == BRINGUP_OK ? 1 : -1;
}

int event_synchronize(bringup_event* event) {
  if (!event->recorded) return BRINGUP_OK;
  event->device->enter();
  return event->device->check(cu().cuEventSynchronize(event->event), "work before an event");
}

int event_elapsed(bringup_event* start, bringup_event* end, double* seconds) {
  start->device->enter();
  float milliseconds = 0;
  int status = start->device->check(cu().cuEventElapsedTime(&milliseconds, start->event, end->event), "the time of an event");
  *seconds = double(milliseconds) * 1e-3;
  return status;
}

int launch(bringup_stream* stream, bringup_kernel* kernel, const bringup_launch* launch) {
  stream->device->enter();
  return kit::run(kernel->device, stream, kernel->plan, *launch);
}

// The leading dimension of a row-major matrix (rows, columns) with these strides, for cuBLAS; 0 if it has none. `transposed` is
// set if the columns are contiguous instead.
int leading(long rows, long columns, const long* strides, bool* transposed) {
  constexpr long kMost = std::numeric_limits<int>::max();
  *transposed = false;
  if ((strides[2] == 1 || columns == 1) && (rows == 1 || strides[1] >= columns)) {
    long value = rows == 1 ? columns : strides[1];
    if (columns == 1 && rows > 1 && strides[1] < 1) return 0;
    return value <= kMost ? int(std::max(value, 1l)) : 0;
  }
  *transposed = true;
  if ((strides[1] == 1 || rows == 1) && (columns == 1 || strides[2] >= rows)) {
    long value = columns == 1 ? rows : strides[2];
    return value <= kMost ? int(std::max(value, 1l)) : 0;
  }
  return 0;
}

}  // namespace

// ---- what the kit asks for

kit::Failures& kit::failures(bringup_device* device) { return *device; }

const char* kit::listed_operators() { return getenv("BRINGUP_CUDA_OPERATORS"); }

kit::Code kit::compile(bringup_device* device, const char* source, const std::string& options, const char* name) {
  std::string key = options + (source == kPoint ? "point" : "");
  std::unique_lock<std::mutex> lock(device->mutex);
  Handle& module = device->modules[key];
  if (!module) {
    device->enter();
    std::string log;
    std::string code = nvidia::compile(std::string(kDialect) + source, options, device->architecture, &log);
    if (code.empty() || cu().cuModuleLoadData(&module, code.data())) {
      std::fprintf(stderr, "bringup: a kernel of the cuda driver does not compile (%s): %s\n", options.c_str(), log.c_str());
      module = nullptr;
      return nullptr;
    }
  }
  Handle function = nullptr;
  return cu().cuModuleGetFunction(&function, module, name) ? nullptr : function;
}

void kit::append_address(bringup_stream*, Arguments& arguments, void* address, size_t) {
  arguments.push_back(bytes_of(address));
  arguments.push_back(bytes_of(uint64_t(0)));
}

int kit::enqueue(bringup_stream* stream, Code kernel, Arguments& arguments, const Grid& grid) {
  std::vector<void*> pointers;
  for (auto& argument : arguments) pointers.push_back(argument.data());
  int code =
      cu().cuLaunchKernel(kernel, unsigned(grid.groups[0]), unsigned(grid.groups[1]), unsigned(grid.groups[2]),
                          unsigned(grid.lanes[0]), unsigned(grid.lanes[1]), 1, 0, stream->stream, pointers.data(), nullptr);
  return stream->device->check(code, "the launch of a kernel");
}

void* kit::fault_word(bringup_device* device) { return device->fault; }

// cuBLAS takes columns first: the transposed product, with the factors exchanged.
kit::RunProduct kit::library_product(bringup_device* device, const Product& p) {
  bool a_transposed, b_transposed;
  int lda = leading(p.m, p.k, p.a, &a_transposed), ldb = leading(p.k, p.n, p.b, &b_transposed);
  constexpr long kMost = std::numeric_limits<int>::max();
  if (!device->products || !lda || !ldb || std::max({p.m, p.n, p.k, p.batch}) > kMost) return {};
  return [=](bringup_stream* stream, float* c, const float* a, const float* b, float alpha, float beta) {
    std::lock_guard<std::mutex> lock(device->products_mutex);  // the stream is a state of the handle
    int code = blas().cublasSetStream_v2(device->products, stream->stream);
    if (code == 0)
      code = blas().cublasSgemmStridedBatched(device->products, b_transposed, a_transposed, int(p.n), int(p.m), int(p.k), &alpha,
                                              b, ldb, p.b[0], a, lda, p.a[0], &beta, c, int(p.n), p.m * p.n, int(p.batch));
    return code == 0 ? int(BRINGUP_OK) : device->fail("cuBLAS failed with error " + std::to_string(code));
  };
}

extern "C" __attribute__((visibility("default"))) const bringup_driver* bringup_driver_entry() {
  static const bringup_driver driver = {
      .abi = BRINGUP_DRIVER_ABI,
      .size = sizeof(bringup_driver),
      .name = "cuda",
      .open = open_device,
      .close = close_device,
      .last_error = kit::last_error,
      .alloc = alloc,
      .free = release_memory,
      .range_reserve = nullptr,
      .range_release = nullptr,
      .range_map = nullptr,
      .range_unmap = nullptr,
      .map = nullptr,
      .unmap = nullptr,
      .host_alloc = host_alloc,
      .host_free = host_free,
      .stream_create = stream_create,
      .stream_destroy = stream_destroy,
      .stream_synchronize = stream_synchronize,
      .stream_query = stream_query,
      .copy_h2d = copy_h2d,
      .copy_d2h = copy_d2h,
      .copy_d2d = copy_d2d,
      .launch_host = launch_host,
      .event_create = event_create,
      .event_destroy = event_destroy,
      .event_record = event_record,
      .event_wait = event_wait,
      .event_query = event_query,
      .event_synchronize = event_synchronize,
      .event_elapsed = event_elapsed,
      .prepare = kit::prepare,
      .launch = launch,
      .release = kit::release,
      .failed_launch = kit::failed_launch,
      .device_name = device_name,
  };
  return &driver;
}
