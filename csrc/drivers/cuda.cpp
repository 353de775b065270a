// The driver of NVIDIA GPUs. libcuda, NVRTC and cuBLAS are opened by name when a device is opened; the kernels are the kit's.
// BRINGUP_CUDA_OPERATORS limits the operators that run on the GPU: all, none, or a list such as aten::mm,aten::add.Tensor.
#include <cstdio>
#include <mutex>
#include <utility>

#include "kit.h"
#include "nvidia.h"

using nvidia::Address;
using nvidia::blas;
using nvidia::cu;
using nvidia::Handle;

struct bringup_device : kit::DeviceState {
  Handle context = nullptr, products = nullptr;  // the latter is cuBLAS's
  std::string architecture;
  uint64_t* fault = nullptr;  // page-locked memory that kernels can address
  std::mutex products_mutex;

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
struct bringup_stream : kit::StreamState {
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

const char* device_name(int index) {
  thread_local char name[256];
  int device = 0;
  if (!cu().problem.empty() || cu().cuInit(0) != 0 || cu().cuDeviceGet(&device, index) != 0) return nullptr;
  return cu().cuDeviceGetName(name, sizeof name, device) == 0 ? name : "unnamed";
}

int open_device(int index, const bringup_config* config, bringup_device** out) {
  if (!cu().problem.empty()) return kit::refuse_open(cu().problem);
  if (!nvidia::nvrtc().usable) return kit::refuse_open("libnvrtc is missing: pip install nvidia-cuda-nvrtc");
  int id = 0, major = 0, minor = 0, multiprocessors = 1, threads = 1;
  if (int code = cu().cuInit(0)) return kit::refuse_open("cuInit failed with error " + std::to_string(code));
  if (cu().cuDeviceGet(&id, index))
    return kit::refuse_open("this machine has no NVIDIA GPU with the number " + std::to_string(index));
  auto device = std::make_unique<bringup_device>();
  if (cu().cuDevicePrimaryCtxRetain(&device->context, id)) return kit::refuse_open("the GPU gives no context: is it in use?");
  cu().cuDeviceGetAttribute(&major, nvidia::kMajor, id);
  cu().cuDeviceGetAttribute(&minor, nvidia::kMinor, id);
  cu().cuDeviceGetAttribute(&multiprocessors, nvidia::kMultiprocessors, id);
  cu().cuDeviceGetAttribute(&threads, nvidia::kThreads, id);
  device->random_threads = long(multiprocessors) * (threads / 256 * 256);  // as torch's kernels have groups of 256
  device->architecture = "sm_" + std::to_string(major) + std::to_string(minor);
  device->capacity = config->device_bytes;
  device->enter();
  void* fault = nullptr;
  if (cu().cuMemHostAlloc(&fault, sizeof(uint64_t), nvidia::kPortableMapped))
    return kit::refuse_open("there is no page-locked memory");
  device->fault = static_cast<uint64_t*>(fault);
  *device->fault = 0;
  if (blas().usable && blas().cublasCreate_v2(&device->products)) device->products = nullptr;
  *out = device.release();
  return BRINGUP_OK;
}

void close_device(bringup_device* device) { delete device; }

int host_alloc(bringup_device* device, size_t bytes, void** pointer) {
  device->enter();
  return cu().cuMemHostAlloc(pointer, bytes, nvidia::kPortableMapped) == 0 ? BRINGUP_OK : BRINGUP_OUT_OF_MEMORY;
}

void host_free(bringup_device* device, void* pointer, size_t) {
  device->enter();
  cu().cuMemFreeHost(pointer);
}

int stream_create(bringup_device* device, int priority, bringup_stream** out) {
  device->enter();
  Handle stream = nullptr;
  int status =
      device->check(cu().cuStreamCreateWithPriority(&stream, nvidia::kNonBlocking, priority), "the creation of a stream");
  if (status == BRINGUP_OK) *out = new bringup_stream{{}, device, stream};
  return status;
}

void stream_destroy(bringup_stream* stream) {
  stream->device->enter();
  kit::release_workspaces(stream->device, stream);
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
  if (code == nvidia::kNotReady) return 0;
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
  if (code == nvidia::kNotReady) return 0;
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

}  // namespace

// ---- what the kit asks for

kit::DeviceState& kit::state(bringup_device* device) { return *device; }
kit::StreamState& kit::state(bringup_stream* stream) { return *stream; }

const char* kit::listed_operators() { return getenv("BRINGUP_CUDA_OPERATORS"); }

int kit::allocate(bringup_device* device, size_t bytes, void** address) {
  device->enter();
  Address at = 0;
  int code = cu().cuMemAlloc_v2(&at, bytes);
  *address = reinterpret_cast<void*>(uintptr_t(at));
  return code == 0 ? BRINGUP_OK : BRINGUP_OUT_OF_MEMORY;
}

int kit::release(bringup_device* device, void* address) {
  device->enter();
  return device->check(cu().cuMemFree_v2(address_of(address)), "freeing memory");
}

kit::Code kit::build(bringup_device* device, const std::string& source, std::string* log) {
  device->enter();
  Handle module = nullptr;
  std::string code = nvidia::compile(source, device->architecture, log);
  return code.empty() || cu().cuModuleLoadData(&module, code.data()) ? nullptr : module;
}

kit::Kernel kit::kernel_of(Code program, const char* name) {
  Handle function = nullptr;
  if (cu().cuModuleGetFunction(&function, program, name)) return nullptr;
  return Kernel(function, [](Handle) {});  // the module has it
}

void kit::append_address(bringup_stream*, Arguments& arguments, void* address, size_t) {
  arguments.add(address), arguments.add(uint64_t(0));
}

int kit::enqueue(bringup_stream* stream, const Kernel& kernel, Arguments& arguments, const Grid& grid) {
  thread_local std::vector<void*> pointers;
  pointers.clear();
  for (auto [at, bytes] : arguments.places) pointers.push_back(arguments.bytes.data() + at);
  stream->device->enter();
  int code =
      cu().cuLaunchKernel(kernel.get(), unsigned(grid.groups[0]), unsigned(grid.groups[1]), unsigned(grid.groups[2]),
                          unsigned(grid.lanes[0]), unsigned(grid.lanes[1]), 1, 0, stream->stream, pointers.data(), nullptr);
  return stream->device->check(code, "the launch of a kernel");
}

void* kit::fault_word(bringup_device* device) { return device->fault; }

kit::RunProduct kit::library_product(bringup_device* device, const Product& p) {
  nvidia::Gemm gemm(p.dtype, p.batch, p.m, p.n, p.k, p.a, p.b);
  if (!device->products || !gemm.possible) return {};
  return [=](bringup_stream* stream, void* c, const void* a, const void* b, double alpha, double beta) {
    std::lock_guard<std::mutex> lock(device->products_mutex);  // the stream is a state of the handle
    int code = blas().cublasSetStream_v2(device->products, stream->stream);
    if (code == 0) code = gemm.run(device->products, c, a, b, alpha, beta);
    return code == 0 ? int(BRINGUP_OK) : device->fail("cuBLAS failed with error " + std::to_string(code));
  };
}

BRINGUP_KIT_DRIVER("cuda", host_alloc, host_free)
