// The driver of OpenCL 1.2 devices, with the kit's kernels. A buffer of OpenCL has no address, so addresses come from a range
// that the host cannot access, and are looked up. Building it needs the headers of OpenCL. BRINGUP_OPENCL_OPERATORS limits the
// operators that run on the device: all, none, or a list such as aten::mm,aten::add.Tensor.
#define CL_TARGET_OPENCL_VERSION 120
#include <CL/cl.h>
#include <sys/mman.h>

#include <condition_variable>
#include <cstdio>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "kit.h"

namespace {

struct Buffer {
  cl_mem memory;
  size_t bytes;
};

constexpr size_t kPage = 4096;

size_t pages(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

}  // namespace

struct bringup_device : kit::Failures {
  cl_device_id id = nullptr;
  cl_context context = nullptr;
  size_t capacity = 0, used = 0, reserved = 0;
  char *base = nullptr, *next = nullptr;
  void* fault = nullptr;  // the address of a buffer that kernels write a launch's number to
  std::map<char*, Buffer> buffers;
  std::unordered_map<std::string, cl_program> programs;

  int check(cl_int code, const char* what) {
    return code == CL_SUCCESS ? int(BRINGUP_OK) : fail(std::string(what) + " failed with OpenCL error " + std::to_string(code));
  }
  // Returns the buffer that contains an address, and the address's offset in it.
  std::pair<cl_mem, size_t> find(const void* address) {
    std::lock_guard<std::mutex> lock(mutex);
    auto* at = static_cast<char*>(const_cast<void*>(address));
    auto after = buffers.upper_bound(at);
    if (after == buffers.begin()) return {nullptr, 0};
    auto& [start, buffer] = *std::prev(after);
    return {buffer.memory, size_t(at - start)};
  }
};

// OpenCL has no host functions in stream order: a thread waits until the queue reaches a marker, runs the function, and lets the
// queue go on.
struct bringup_stream {
  struct Call {
    cl_event reached, done;
    bringup_host_fn fn;
    void* arg;
  };
  bringup_device* device;
  cl_command_queue queue = nullptr;
  std::mutex mutex;
  cl_event last = nullptr;
  std::deque<Call> calls;
  std::condition_variable ready;
  bool stop = false;
  std::thread thread;

  int enqueued(cl_int code, cl_event event, const char* what) {
    if (int status = device->check(code, what)) return status;
    std::lock_guard<std::mutex> lock(mutex);
    if (last) clReleaseEvent(last);
    last = event;
    clFlush(queue);  // another thread may wait for the event
    return BRINGUP_OK;
  }
  void run() {
    for (;;) {
      std::unique_lock<std::mutex> lock(mutex);
      ready.wait(lock, [&] { return stop || !calls.empty(); });
      if (calls.empty()) return;
      Call call = calls.front();
      calls.pop_front();
      lock.unlock();
      clWaitForEvents(1, &call.reached);
      call.fn(call.arg, 1);
      clSetUserEventStatus(call.done, CL_COMPLETE);
      clReleaseEvent(call.reached);
      clReleaseEvent(call.done);
    }
  }
};

struct bringup_event {
  bringup_device* device;
  std::mutex mutex;
  cl_event event = nullptr;

  cl_event take() {  // released by the caller
    std::lock_guard<std::mutex> lock(mutex);
    if (event) clRetainEvent(event);
    return event;
  }
};

namespace {

std::vector<cl_device_id> all_devices() {
  cl_uint count = 0;
  std::vector<cl_device_id> found;
  if (clGetPlatformIDs(0, nullptr, &count) != CL_SUCCESS) return found;
  std::vector<cl_platform_id> platforms(count);
  clGetPlatformIDs(count, platforms.data(), nullptr);
  for (cl_platform_id platform : platforms) {
    if (clGetDeviceIDs(platform, CL_DEVICE_TYPE_ALL, 0, nullptr, &count) != CL_SUCCESS) continue;
    size_t before = found.size();
    found.resize(before + count);
    clGetDeviceIDs(platform, CL_DEVICE_TYPE_ALL, count, found.data() + before, nullptr);
  }
  return found;
}

const char* device_name(int index) {
  thread_local char name[256];
  std::vector<cl_device_id> found = all_devices();
  if (index >= int(found.size())) return nullptr;
  return clGetDeviceInfo(found[size_t(index)], CL_DEVICE_NAME, sizeof name, name, nullptr) == CL_SUCCESS ? name : "unnamed";
}

int alloc(bringup_device* device, size_t bytes, void** address) {
  std::lock_guard<std::mutex> lock(device->mutex);
  if (device->used + bytes > device->capacity) return BRINGUP_OUT_OF_MEMORY;
  if (device->next + pages(bytes) > device->base + device->reserved) return BRINGUP_OUT_OF_MEMORY;
  cl_int code = CL_SUCCESS;
  cl_mem memory = clCreateBuffer(device->context, CL_MEM_READ_WRITE, bytes, nullptr, &code);
  if (code != CL_SUCCESS) return BRINGUP_OUT_OF_MEMORY;
  *address = device->next;
  device->buffers[device->next] = {memory, bytes};
  device->next += pages(bytes);
  device->used += bytes;
  return BRINGUP_OK;
}

int free_memory(bringup_device* device, void* address, size_t bytes) {
  std::lock_guard<std::mutex> lock(device->mutex);
  auto entry = device->buffers.find(static_cast<char*>(address));
  clReleaseMemObject(entry->second.memory);
  device->buffers.erase(entry);
  device->used -= bytes;
  return BRINGUP_OK;
}

int open_device(int index, const bringup_config* config, bringup_device** out) {
  std::vector<cl_device_id> found = all_devices();
  if (index >= int(found.size())) return kit::refuse_open("there are " + std::to_string(found.size()) + " OpenCL devices");
  auto device = std::make_unique<bringup_device>();
  cl_int code = CL_SUCCESS;
  device->id = found[size_t(index)];
  device->context = clCreateContext(nullptr, 1, &device->id, nullptr, nullptr, &code);
  if (code != CL_SUCCESS) return kit::refuse_open("clCreateContext failed with OpenCL error " + std::to_string(code));
  device->capacity = config->device_bytes + sizeof(uint64_t);
  device->reserved = config->device_bytes * 64;  // addresses are not used again
  void* range = mmap(nullptr, device->reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (range == MAP_FAILED) return kit::refuse_open("there is no range of addresses for its memory");
  device->base = device->next = static_cast<char*>(range);
  if (alloc(device.get(), sizeof(uint64_t), &device->fault) != BRINGUP_OK) return kit::refuse_open("it has no memory");
  *out = device.release();
  return BRINGUP_OK;
}

void close_device(bringup_device* device) {
  munmap(device->base, device->reserved);
  clReleaseContext(device->context);
  delete device;
}

int stream_create(bringup_device* device, int, bringup_stream** out) {
  cl_int code = CL_SUCCESS;
  auto stream = std::make_unique<bringup_stream>();
  stream->device = device;
  stream->queue = clCreateCommandQueue(device->context, device->id, CL_QUEUE_PROFILING_ENABLE, &code);
  if (int status = device->check(code, "the creation of a stream")) return status;
  const uint64_t none = 0;
  clEnqueueWriteBuffer(stream->queue, device->find(device->fault).first, CL_TRUE, 0, sizeof none, &none, 0, nullptr, nullptr);
  stream->thread = std::thread([stream = stream.get()] { stream->run(); });
  *out = stream.release();
  return BRINGUP_OK;
}

void stream_destroy(bringup_stream* stream) {
  {
    std::lock_guard<std::mutex> lock(stream->mutex);
    stream->stop = true;
  }
  stream->ready.notify_one();
  stream->thread.join();
  clReleaseCommandQueue(stream->queue);
  delete stream;
}

int stream_synchronize(bringup_stream* stream) {
  bringup_device* device = stream->device;
  cl_mem fault = device->find(device->fault).first;
  uint64_t number = 0, none = 0;
  cl_int code = clEnqueueReadBuffer(stream->queue, fault, CL_TRUE, 0, sizeof number, &number, 0, nullptr, nullptr);
  if (int status = device->check(code, "work on a stream")) return status;
  if (!number) return BRINGUP_OK;
  clEnqueueWriteBuffer(stream->queue, fault, CL_TRUE, 0, sizeof none, &none, 0, nullptr, nullptr);
  return device->fail("an index is out of range", int64_t(number));
}

bool is_done(cl_event event) {
  cl_int status = CL_COMPLETE;
  clGetEventInfo(event, CL_EVENT_COMMAND_EXECUTION_STATUS, sizeof status, &status, nullptr);
  return status <= CL_COMPLETE;
}

int stream_query(bringup_stream* stream) {
  std::lock_guard<std::mutex> lock(stream->mutex);
  return !stream->last || is_done(stream->last);
}

int copy_h2d(bringup_stream* stream, void* to, const void* host, size_t bytes) {
  auto [memory, offset] = stream->device->find(to);
  cl_event event = nullptr;
  cl_int code = clEnqueueWriteBuffer(stream->queue, memory, CL_FALSE, offset, bytes, host, 0, nullptr, &event);
  return stream->enqueued(code, event, "a copy to the device");
}

int copy_d2h(bringup_stream* stream, void* host, const void* from, size_t bytes) {
  auto [memory, offset] = stream->device->find(from);
  cl_event event = nullptr;
  cl_int code = clEnqueueReadBuffer(stream->queue, memory, CL_FALSE, offset, bytes, host, 0, nullptr, &event);
  return stream->enqueued(code, event, "a copy to the host");
}

int copy_d2d(bringup_stream* stream, void* to, const void* from, size_t bytes) {
  auto [target, at] = stream->device->find(to);
  auto [source, offset] = stream->device->find(from);
  cl_event event = nullptr;
  cl_int code = clEnqueueCopyBuffer(stream->queue, source, target, offset, at, bytes, 0, nullptr, &event);
  return stream->enqueued(code, event, "a copy on the device");
}

int launch_host(bringup_stream* stream, bringup_host_fn fn, void* arg) {
  cl_int code = CL_SUCCESS;
  cl_event reached = nullptr, last = nullptr, done = clCreateUserEvent(stream->device->context, &code);
  if (int status = stream->device->check(code, "a host function")) return status;
  code = clEnqueueMarkerWithWaitList(stream->queue, 0, nullptr, &reached);
  if (code == CL_SUCCESS) code = clEnqueueBarrierWithWaitList(stream->queue, 1, &done, &last);
  if (int status = stream->enqueued(code, last, "a host function")) return status;
  {
    std::lock_guard<std::mutex> lock(stream->mutex);
    stream->calls.push_back({reached, done, fn, arg});
  }
  stream->ready.notify_one();
  return BRINGUP_OK;
}

int event_create(bringup_device* device, bringup_event** event) {
  *event = new bringup_event{device, {}, nullptr};
  return BRINGUP_OK;
}

void event_destroy(bringup_event* event) {
  if (event->event) clReleaseEvent(event->event);
  delete event;
}

int event_record(bringup_event* event, bringup_stream* stream) {
  cl_event marker = nullptr;
  cl_int code = clEnqueueMarkerWithWaitList(stream->queue, 0, nullptr, &marker);
  if (int status = stream->device->check(code, "the record of an event")) return status;
  clRetainEvent(marker);
  {
    std::lock_guard<std::mutex> lock(event->mutex);
    if (event->event) clReleaseEvent(event->event);
    event->event = marker;
  }
  return stream->enqueued(code, marker, "the record of an event");
}

int event_wait(bringup_event* event, bringup_stream* stream) {
  cl_event reached = event->take(), last = nullptr;
  if (!reached) return BRINGUP_OK;
  cl_int code = clEnqueueBarrierWithWaitList(stream->queue, 1, &reached, &last);
  clReleaseEvent(reached);
  return stream->enqueued(code, last, "a wait for an event");
}

int event_query(bringup_event* event) {
  cl_event reached = event->take();
  if (!reached) return 1;
  bool done = is_done(reached);
  clReleaseEvent(reached);
  return done;
}

int event_synchronize(bringup_event* event) {
  cl_event reached = event->take();
  if (!reached) return BRINGUP_OK;
  cl_int code = clWaitForEvents(1, &reached);
  clReleaseEvent(reached);
  return event->device->check(code, "work before an event");
}

int event_elapsed(bringup_event* start, bringup_event* end, double* seconds) {
  cl_event events[] = {start->take(), end->take()};
  cl_ulong times[2] = {};
  cl_int code = CL_SUCCESS;
  for (int i = 0; i < 2; ++i) {
    if (code == CL_SUCCESS)
      code = clGetEventProfilingInfo(events[i], CL_PROFILING_COMMAND_END, sizeof times[i], &times[i], nullptr);
    clReleaseEvent(events[i]);
  }
  *seconds = (double(times[1]) - double(times[0])) * 1e-9;
  return start->device->check(code, "the time of an event");
}

int launch(bringup_stream* stream, bringup_kernel* kernel, const bringup_launch* launch) {
  return kit::run(kernel->device, stream, kernel->plan, *launch);
}

}  // namespace

// ---- what the kit asks for

kit::Failures& kit::failures(bringup_device* device) { return *device; }

const char* kit::listed_operators() { return getenv("BRINGUP_OPENCL_OPERATORS"); }

kit::Code kit::compile(bringup_device* device, const char* source, const std::string& options, const char* name) {
  std::lock_guard<std::mutex> lock(device->mutex);
  cl_program& program = device->programs[options + (source == kPoint ? "point" : "")];
  cl_int code = CL_SUCCESS;
  if (!program) {
    const char* sources[] = {kDialect, source};
    program = clCreateProgramWithSource(device->context, 2, sources, nullptr, &code);
    code = clBuildProgram(program, 1, &device->id, options.c_str(), nullptr, nullptr);
    if (code != CL_SUCCESS) {
      char log[4096] = "";
      clGetProgramBuildInfo(program, device->id, CL_PROGRAM_BUILD_LOG, sizeof log - 1, log, nullptr);
      std::fprintf(stderr, "bringup: a kernel of the opencl driver does not compile (%s): %s\n", options.c_str(), log);
      clReleaseProgram(std::exchange(program, nullptr));
      return nullptr;
    }
  }
  cl_kernel kernel = clCreateKernel(program, name, &code);
  return code == CL_SUCCESS ? kernel : nullptr;
}

void kit::append_address(bringup_stream* stream, Arguments& arguments, void* address, size_t item) {
  auto [memory, offset] = stream->device->find(address);
  arguments.push_back(bytes_of(memory));
  arguments.push_back(bytes_of(uint64_t(offset / item)));
}

int kit::enqueue(bringup_stream* stream, Code code, Arguments& arguments, const Grid& grid) {
  static std::mutex one_at_a_time;  // the arguments are a state of the kernel
  std::lock_guard<std::mutex> lock(one_at_a_time);
  auto kernel = static_cast<cl_kernel>(code);
  for (size_t i = 0; i < arguments.size(); ++i)
    if (int status = stream->device->check(clSetKernelArg(kernel, cl_uint(i), arguments[i].size(), arguments[i].data()),
                                           ("argument " + std::to_string(i) + " of a kernel").c_str()))
      return status;
  size_t local[] = {size_t(grid.lanes[0]), size_t(grid.lanes[1]), 1};
  size_t global[] = {size_t(grid.groups[0]) * local[0], size_t(grid.groups[1]) * local[1], size_t(grid.groups[2])};
  cl_event event = nullptr;
  cl_int status = clEnqueueNDRangeKernel(stream->queue, kernel, 3, nullptr, global, local, 0, nullptr, &event);
  return stream->enqueued(status, event, "the launch of a kernel");
}

void* kit::fault_word(bringup_device* device) { return device->fault; }

kit::RunProduct kit::library_product(bringup_device*, const Product&) { return {}; }

extern "C" __attribute__((visibility("default"))) const bringup_driver* bringup_driver_entry() {
  static const bringup_driver driver = {
      .abi = BRINGUP_DRIVER_ABI,
      .size = sizeof(bringup_driver),
      .name = "opencl",
      .open = open_device,
      .close = close_device,
      .last_error = kit::last_error,
      .alloc = alloc,
      .free = free_memory,
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
