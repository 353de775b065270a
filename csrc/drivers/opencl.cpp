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

constexpr size_t kPage = 4096;

size_t pages(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

using Event = std::shared_ptr<std::remove_pointer_t<cl_event>>;

Event own(cl_event event) {
  return Event(event, [](cl_event released) {
    if (released) clReleaseEvent(released);
  });
}

cl_int wait_for(const Event& event) {
  cl_event one = event.get();
  return one ? clWaitForEvents(1, &one) : CL_SUCCESS;
}

bool is_done(const Event& event) {
  cl_int status = CL_COMPLETE;
  if (event) clGetEventInfo(event.get(), CL_EVENT_COMMAND_EXECUTION_STATUS, sizeof status, &status, nullptr);
  return status <= CL_COMPLETE;
}

}  // namespace

struct bringup_device : kit::DeviceState {
  cl_device_id id = nullptr;
  cl_context context = nullptr;
  size_t reserved = 0;
  char *base = nullptr, *next = nullptr;
  void* fault = nullptr;  // the address of a buffer that kernels write a launch's number to
  std::map<char*, cl_mem> buffers;

  int check(cl_int code, const char* what) {
    return code == CL_SUCCESS ? int(BRINGUP_OK) : fail(std::string(what) + " failed with OpenCL error " + std::to_string(code));
  }
  // Returns the buffer that contains an address, and the address's offset in it.
  std::pair<cl_mem, size_t> find(const void* address) {
    std::lock_guard<std::mutex> lock(mutex);
    auto* at = static_cast<char*>(const_cast<void*>(address));
    auto after = buffers.upper_bound(at);
    if (after == buffers.begin()) return {nullptr, 0};
    auto& [start, memory] = *std::prev(after);
    return {memory, size_t(at - start)};
  }
};

// OpenCL has no host functions in stream order: a thread waits until the queue reaches a marker, runs the function, and lets the
// queue go on.
struct bringup_stream : kit::StreamState {
  struct Call {
    Event reached, done;
    bringup_host_fn fn;
    void* arg;
  };
  bringup_device* device;
  cl_command_queue queue = nullptr;
  std::mutex calls_mutex;  // also of `last`
  Event last;
  std::deque<Call> calls;
  std::condition_variable ready;
  bool stop = false;
  std::thread thread;

  // Enqueues a command, and keeps its event as that of the last one.
  template <class Enqueue>
  int add(const char* what, Enqueue enqueue, Event* added = nullptr) {
    cl_event event = nullptr;
    if (int status = device->check(enqueue(&event), what)) return status;
    std::lock_guard<std::mutex> lock(calls_mutex);
    last = own(event);
    if (added) *added = last;
    clFlush(queue);  // another thread may wait for the event
    return BRINGUP_OK;
  }
  void run() {
    for (;;) {
      std::unique_lock<std::mutex> lock(calls_mutex);
      ready.wait(lock, [&] { return stop || !calls.empty(); });
      if (calls.empty()) return;
      Call call = calls.front();
      calls.pop_front();
      lock.unlock();
      wait_for(call.reached);
      call.fn(call.arg, 1);
      clSetUserEventStatus(call.done.get(), CL_COMPLETE);
    }
  }
};

struct bringup_event {
  bringup_device* device;
  std::mutex mutex;
  Event event;

  Event latest() {
    std::lock_guard<std::mutex> lock(mutex);
    return event;
  }
};

namespace {

std::vector<cl_device_id> all_devices() {
  cl_platform_id platforms[BRINGUP_MAX_DEVICES];
  cl_device_id ids[BRINGUP_MAX_DEVICES];
  cl_uint platform_count = 0, count = 0;
  std::vector<cl_device_id> found;
  if (clGetPlatformIDs(BRINGUP_MAX_DEVICES, platforms, &platform_count) != CL_SUCCESS) return found;
  for (cl_uint p = 0; p < std::min<cl_uint>(platform_count, BRINGUP_MAX_DEVICES); ++p)
    if (clGetDeviceIDs(platforms[p], CL_DEVICE_TYPE_ALL, BRINGUP_MAX_DEVICES, ids, &count) == CL_SUCCESS)
      found.insert(found.end(), ids, ids + std::min<cl_uint>(count, BRINGUP_MAX_DEVICES));
  return found;
}

const char* device_name(int index) {
  thread_local char name[256];
  std::vector<cl_device_id> found = all_devices();
  if (index >= int(found.size())) return nullptr;
  return clGetDeviceInfo(found[size_t(index)], CL_DEVICE_NAME, sizeof name, name, nullptr) == CL_SUCCESS ? name : "unnamed";
}

int open_device(int index, const bringup_config* config, bringup_device** out) {
  std::vector<cl_device_id> found = all_devices();
  if (index >= int(found.size())) return kit::refuse_open("there are " + std::to_string(found.size()) + " OpenCL devices");
  auto device = std::make_unique<bringup_device>();
  cl_int code = CL_SUCCESS;
  device->id = found[size_t(index)];
  device->context = clCreateContext(nullptr, 1, &device->id, nullptr, nullptr, &code);
  if (code != CL_SUCCESS) return kit::refuse_open("clCreateContext failed with OpenCL error " + std::to_string(code));
  device->capacity = config->device_bytes;
  device->reserved = config->device_bytes * 64;  // addresses are not used again
  void* range = mmap(nullptr, device->reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (range == MAP_FAILED) return kit::refuse_open("there is no range of addresses for its memory");
  device->base = device->next = static_cast<char*>(range);
  uint64_t none = 0;
  cl_mem fault = clCreateBuffer(device->context, CL_MEM_READ_WRITE | CL_MEM_COPY_HOST_PTR, sizeof none, &none, &code);
  if (code != CL_SUCCESS) return kit::refuse_open("it has no memory");
  device->fault = device->next, device->buffers[device->next] = fault, device->next += kPage;
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
  stream->thread = std::thread([stream = stream.get()] { stream->run(); });
  *out = stream.release();
  return BRINGUP_OK;
}

void stream_destroy(bringup_stream* stream) {
  {
    std::lock_guard<std::mutex> lock(stream->calls_mutex);
    stream->stop = true;
  }
  stream->ready.notify_one();
  stream->thread.join();
  kit::release_workspaces(stream->device, stream);
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

int stream_query(bringup_stream* stream) {
  std::lock_guard<std::mutex> lock(stream->calls_mutex);
  return is_done(stream->last);
}

int copy_h2d(bringup_stream* stream, void* to, const void* host, size_t bytes) {
  auto [memory, offset] = stream->device->find(to);
  return stream->add("a copy to the device", [&, memory = memory, offset = offset](cl_event* event) {
    return clEnqueueWriteBuffer(stream->queue, memory, CL_FALSE, offset, bytes, host, 0, nullptr, event);
  });
}

int copy_d2h(bringup_stream* stream, void* host, const void* from, size_t bytes) {
  auto [memory, offset] = stream->device->find(from);
  return stream->add("a copy to the host", [&, memory = memory, offset = offset](cl_event* event) {
    return clEnqueueReadBuffer(stream->queue, memory, CL_FALSE, offset, bytes, host, 0, nullptr, event);
  });
}

int copy_d2d(bringup_stream* stream, void* to, const void* from, size_t bytes) {
  std::pair<cl_mem, size_t> target = stream->device->find(to), source = stream->device->find(from);
  return stream->add("a copy on the device", [&](cl_event* event) {
    return clEnqueueCopyBuffer(stream->queue, source.first, target.first, source.second, target.second, bytes, 0, nullptr, event);
  });
}

int launch_host(bringup_stream* stream, bringup_host_fn fn, void* arg) {
  cl_int code = CL_SUCCESS;
  cl_event reached = nullptr, wait = clCreateUserEvent(stream->device->context, &code);
  Event done = own(wait);
  auto enqueue = [&](cl_event* last) {
    if (code == CL_SUCCESS) code = clEnqueueMarkerWithWaitList(stream->queue, 0, nullptr, &reached);
    return code == CL_SUCCESS ? clEnqueueBarrierWithWaitList(stream->queue, 1, &wait, last) : code;
  };
  if (int status = stream->add("a host function", enqueue)) return status;
  {
    std::lock_guard<std::mutex> lock(stream->calls_mutex);
    stream->calls.push_back({own(reached), done, fn, arg});
  }
  stream->ready.notify_one();
  return BRINGUP_OK;
}

int event_create(bringup_device* device, bringup_event** event) { return *event = new bringup_event{device, {}, {}}, BRINGUP_OK; }

void event_destroy(bringup_event* event) { delete event; }

int event_record(bringup_event* event, bringup_stream* stream) {
  Event marker;
  auto enqueue = [&](cl_event* last) { return clEnqueueMarkerWithWaitList(stream->queue, 0, nullptr, last); };
  if (int status = stream->add("the record of an event", enqueue, &marker)) return status;
  std::lock_guard<std::mutex> lock(event->mutex);
  event->event = marker;
  return BRINGUP_OK;
}

int event_wait(bringup_event* event, bringup_stream* stream) {
  Event latest = event->latest();
  cl_event reached = latest.get();
  auto enqueue = [&](cl_event* last) { return clEnqueueBarrierWithWaitList(stream->queue, 1, &reached, last); };
  return reached ? stream->add("a wait for an event", enqueue) : int(BRINGUP_OK);
}

int event_query(bringup_event* event) { return is_done(event->latest()); }

int event_synchronize(bringup_event* event) { return event->device->check(wait_for(event->latest()), "work before an event"); }

int event_elapsed(bringup_event* start, bringup_event* end, double* seconds) {
  cl_ulong times[2] = {};
  cl_int code = CL_SUCCESS;
  for (int i = 0; i < 2 && code == CL_SUCCESS; ++i) {
    Event event = (i == 0 ? start : end)->latest();
    code = clGetEventProfilingInfo(event.get(), CL_PROFILING_COMMAND_END, sizeof times[i], &times[i], nullptr);
  }
  *seconds = (double(times[1]) - double(times[0])) * 1e-9;
  return start->device->check(code, "the time of an event");
}

}  // namespace

// ---- what the kit asks for

kit::DeviceState& kit::state(bringup_device* device) { return *device; }
kit::StreamState& kit::state(bringup_stream* stream) { return *stream; }

const char* kit::listed_operators() { return getenv("BRINGUP_OPENCL_OPERATORS"); }

int kit::allocate(bringup_device* device, size_t bytes, void** address) {
  std::lock_guard<std::mutex> lock(device->mutex);
  if (device->next + pages(bytes) > device->base + device->reserved) return BRINGUP_OUT_OF_MEMORY;
  cl_int code = CL_SUCCESS;
  cl_mem memory = clCreateBuffer(device->context, CL_MEM_READ_WRITE, bytes, nullptr, &code);
  if (code != CL_SUCCESS) return BRINGUP_OUT_OF_MEMORY;
  *address = device->next;
  device->buffers[device->next] = memory;
  device->next += pages(bytes);
  return BRINGUP_OK;
}

int kit::release(bringup_device* device, void* address) {
  std::lock_guard<std::mutex> lock(device->mutex);
  auto entry = device->buffers.find(static_cast<char*>(address));
  clReleaseMemObject(entry->second);
  device->buffers.erase(entry);
  return BRINGUP_OK;
}

kit::Code kit::build(bringup_device* device, const std::string& source, std::string* log) {
  const char* text = source.c_str();
  cl_program program = clCreateProgramWithSource(device->context, 1, &text, nullptr, nullptr);
  if (clBuildProgram(program, 1, &device->id, "-w", nullptr, nullptr) == CL_SUCCESS) return program;
  log->resize(4096);  // of what the compiler says, the beginning
  clGetProgramBuildInfo(program, device->id, CL_PROGRAM_BUILD_LOG, log->size(), log->data(), nullptr);
  clReleaseProgram(program);
  return nullptr;
}

kit::Kernel kit::kernel_of(Code program, const char* name) {
  cl_kernel kernel = clCreateKernel(static_cast<cl_program>(program), name, nullptr);
  return kernel ? Kernel(kernel, clReleaseKernel) : nullptr;
}

void kit::append_address(bringup_stream* stream, Arguments& arguments, void* address, size_t item) {
  auto [memory, offset] = stream->device->find(address);
  arguments.add(memory), arguments.add(uint64_t(offset / item));
}

int kit::enqueue(bringup_stream* stream, const kit::Kernel& code, Arguments& arguments, const Grid& grid) {
  static std::mutex one_at_a_time;  // the arguments are a state of the kernel
  std::lock_guard<std::mutex> lock(one_at_a_time);
  auto kernel = static_cast<cl_kernel>(code.get());
  cl_int set = CL_SUCCESS;
  for (size_t i = 0; i < arguments.places.size() && set == CL_SUCCESS; ++i)
    set = clSetKernelArg(kernel, cl_uint(i), arguments.places[i].second, arguments.bytes.data() + arguments.places[i].first);
  if (int status = stream->device->check(set, "the setting of a kernel's arguments")) return status;
  size_t local[] = {size_t(grid.lanes[0]), size_t(grid.lanes[1]), 1};
  size_t global[] = {size_t(grid.groups[0]) * local[0], size_t(grid.groups[1]) * local[1], size_t(grid.groups[2])};
  return stream->add("the launch of a kernel", [&](cl_event* event) {
    return clEnqueueNDRangeKernel(stream->queue, kernel, 3, nullptr, global, local, 0, nullptr, event);
  });
}

void* kit::fault_word(bringup_device* device) { return device->fault; }

kit::RunProduct kit::library_product(bringup_device*, const Product&) { return {}; }

BRINGUP_KIT_DRIVER("opencl", nullptr, nullptr)
