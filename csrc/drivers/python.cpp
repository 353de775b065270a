// The driver of devices that are written in Python (src/bringup/driver/python.py, which calls `bringup_python_device`). Memory,
// streams, copies and events are the virtual driver's, in memory that the host cannot address. Kernels run in stream order, on
// the thread of their stream; the functions in Python take the interpreter's lock themselves.
#include "virtual.cpp"

struct bringup_kernel {
  std::shared_ptr<const int64_t> number;  // by which Python knows it; pending launches share it
  size_t addresses, values;               // of a launch
};

namespace python {

// Returns BRINGUP_OK, BRINGUP_UNSUPPORTED or BRINGUP_FAILED; `why` is the reason of the latter two.
using Prepare = int (*)(const bringup_call* call, int64_t number, const char** why);
// Runs a kernel on host pointers. Returns null, or a sentence that says why it failed.
using Run = const char* (*)(int64_t number, void* const* pointers, const double* values);

const bringup_driver& base() { return *bringup_virtual_driver(); }

std::string device_name = "python";
Prepare prepare_in_python = nullptr;
Run run_in_python = nullptr;
std::atomic<int64_t> failed[BRINGUP_MAX_DEVICES];  // the number of the latest launch that failed

// The numbers of released kernels are given again, since releasing must not wait for the interpreter's lock.
struct Numbers {
  std::mutex mutex;
  std::vector<int64_t> free;
  int64_t next = 0;

  int64_t take() {
    std::lock_guard<std::mutex> lock(mutex);
    if (free.empty()) return next++;
    int64_t number = free.back();
    return free.pop_back(), number;
  }
  void give(int64_t number) {
    std::lock_guard<std::mutex> lock(mutex);
    free.push_back(number);
  }
};

Numbers& numbers() {
  static auto* all = new Numbers();
  return *all;
}

struct Launch {
  bringup_device* device;
  bringup_kernel kernel;
  int64_t number;
  std::vector<void*> addresses;
  std::vector<double> values;
};

void run(void* argument, int) {
  std::unique_ptr<Launch> launch(static_cast<Launch*>(argument));
  for (void*& address : launch->addresses)
    if (address) address = base().map(launch->device, address);
  const char* why = run_in_python(*launch->kernel.number, launch->addresses.data(), launch->values.data());
  if (!why) return;
  launch->device->fail(why);
  failed[launch->device->index] = launch->number;
}

int prepare(bringup_device* device, const bringup_call* call, bringup_kernel** kernel, const char** why) {
  auto release = [](const int64_t* number) {
    numbers().give(*number);
    delete number;
  };
  std::shared_ptr<const int64_t> number(new int64_t(numbers().take()), release);
  int status = prepare_in_python(call, *number, why);
  if (status == BRINGUP_FAILED) return device->fail(*why);
  if (status != BRINGUP_OK) return status;
  auto values = size_t(call->argument_count);
  for (int i = 0; i < call->argument_count; ++i)
    if (call->arguments[i].kind == BRINGUP_SCALARS) values += size_t(call->arguments[i].count);
  return *kernel = new bringup_kernel{number, size_t(call->tensor_count + call->output_count), values}, BRINGUP_OK;
}

int launch(bringup_stream* stream, bringup_kernel* kernel, const bringup_launch* launch) {
  auto* pending = new Launch{stream->device, *kernel, launch->number, {}, {}};
  pending->addresses.assign(launch->addresses, launch->addresses + kernel->addresses);
  pending->values.assign(launch->values, launch->values + kernel->values);
  stream->push(run, pending, true);
  return BRINGUP_OK;
}

int open(int index, const bringup_config* config, bringup_device** device) {
  bringup_config separate = {config->device_bytes, 1};  // 1: the host cannot address the memory
  return base().open(index, &separate, device);
}

int stream_synchronize(bringup_stream* stream) {
  int status = base().stream_synchronize(stream);
  return failed[stream->device->index] ? int(BRINGUP_FAILED) : status;
}

}  // namespace python

extern "C" {

// Says whose kernels the driver has. It is called before the library is opened as a driver.
__attribute__((visibility("default"))) void bringup_python_device(const char* name, python::Prepare prepare, python::Run run) {
  python::device_name = name;
  python::prepare_in_python = prepare;
  python::run_in_python = run;
}

__attribute__((visibility("default"))) const bringup_driver* bringup_driver_entry() {
  static const bringup_driver driver = [] {
    bringup_driver own = python::base();
    own.name = python::device_name.c_str();
    own.open = python::open, own.map = nullptr;
    own.stream_synchronize = python::stream_synchronize;
    own.prepare = python::prepare, own.launch = python::launch;
    own.release = [](bringup_kernel* kernel) { delete kernel; };
    own.device_name = [](int index) { return index == 0 ? python::device_name.c_str() : nullptr; };
    own.failed_launch = [](bringup_device* device) { return python::failed[device->index].exchange(0); };
    return own;
  }();
  return python::prepare_in_python ? &driver : nullptr;
}
}
