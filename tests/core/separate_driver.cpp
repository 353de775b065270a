// A device whose memory the host cannot address, with kernels for three operators. It wraps the virtual driver in check mode, so
// a host access to device memory is an error. Its kernels run as host functions of the virtual driver.
#include <cmath>
#include <utility>

#include "../../csrc/drivers/virtual.cpp"

namespace separate {

const bringup_driver& real() { return *bringup_virtual_driver(); }

std::atomic<long> kernels{0}, prepared{0}, failed{0}, down{0}, up{0};
std::atomic<bool> no_kernels{false};

int open_device(int index, const bringup_config* config, bringup_device** out) {
  bringup_config checked = *config;
  checked.check = 1;
  return real().open(index, &checked, out);
}

int copy_h2d(bringup_stream* stream, void* to, const void* from, size_t bytes) {
  up += long(bytes);
  return real().copy_h2d(stream, to, from, bytes);
}
int copy_d2h(bringup_stream* stream, void* to, const void* from, size_t bytes) {
  down += long(bytes);
  return real().copy_d2h(stream, to, from, bytes);
}

std::string failure;
const char* last_error(bringup_device* device, const void** about) {
  if (!device) return "there is no such device";
  if (failure.empty()) return real().last_error(device, about);
  *about = nullptr;
  static std::string shown;
  shown = std::exchange(failure, "");
  return shown.c_str();
}
int64_t failed_launch(bringup_device*) { return failed.exchange(0); }

int stream_synchronize(bringup_stream* stream) {
  int status = real().stream_synchronize(stream);
  if (!failed) return status;
  failure = "a kernel met a negative number";
  return BRINGUP_FAILED;
}

}  // namespace separate

struct bringup_kernel {
  std::string op;
  int64_t count;
  size_t tensors;
};

namespace separate {

struct Task {
  bringup_device* device;
  bringup_kernel kernel;
  int64_t number;
  std::vector<void*> addresses;
  std::vector<double> values;
};

void run(void* argument, int) {
  std::unique_ptr<Task> task(static_cast<Task*>(argument));
  auto at = [&](size_t i) { return static_cast<float*>(real().map(task->device, task->addresses[i])); };
  const std::string& op = task->kernel.op;
  float* out = at(task->kernel.tensors);
  for (int64_t i = 0; i < task->kernel.count; ++i) {
    float x = at(0)[i];
    if (op == "aten::sqrt" && x < 0) failed = task->number;
    out[i] = op == "aten::sqrt" ? std::sqrt(x) : op == "aten::mul.Tensor" ? x * at(1)[i] : x + float(task->values[2]) * at(1)[i];
  }
  ++kernels;
}

bool is_contiguous(const bringup_tensor& tensor) {
  int64_t next = 1;
  for (int d = tensor.dims - 1; d >= 0; --d) {
    if (tensor.sizes[d] != 1 && tensor.strides[d] != next) return false;
    next *= tensor.sizes[d];
  }
  return true;
}

int prepare(bringup_device*, const bringup_call* call, bringup_kernel** kernel, const char** why) {
  ++prepared;
  std::string op = call->op;
  if (no_kernels || (op != "aten::add.Tensor" && op != "aten::mul.Tensor" && op != "aten::sqrt")) return BRINGUP_UNSUPPORTED;
  const bringup_tensor& out = call->outputs[0];
  int64_t count = 1;
  for (int d = 0; d < out.dims; ++d) count *= out.sizes[d];
  for (int i = 0; i < call->tensor_count; ++i) {
    const bringup_tensor& tensor = call->tensors[i];
    bool same = tensor.dims == out.dims && std::equal(tensor.sizes, tensor.sizes + tensor.dims, out.sizes);
    *why = "not contiguous float32 of one size";
    if (tensor.storage < 0 || tensor.dtype != BRINGUP_FLOAT32 || !same || !is_contiguous(tensor)) return BRINGUP_UNSUPPORTED;
  }
  *kernel = new bringup_kernel{op, count, size_t(call->tensor_count)};
  return BRINGUP_OK;
}

int launch(bringup_stream* stream, bringup_kernel* kernel, const bringup_launch* launch) {
  auto* task = new Task{stream->device, *kernel, launch->number, {}, {}};
  task->addresses.assign(launch->addresses, launch->addresses + kernel->tensors + 1);
  if (kernel->op == "aten::add.Tensor") task->values.assign(launch->values, launch->values + 3);
  return real().launch_host(stream, run, task);
}

void release(bringup_kernel* kernel) { delete kernel; }

}  // namespace separate

extern "C" {

const bringup_driver* bringup_driver_entry() {
  static const bringup_driver driver = [] {
    bringup_driver own = separate::real();
    own.name = "separate";
    own.open = separate::open_device;
    own.last_error = separate::last_error;
    own.map = nullptr;
    own.unmap = nullptr;
    own.copy_h2d = separate::copy_h2d;
    own.copy_d2h = separate::copy_d2h;
    own.stream_synchronize = separate::stream_synchronize;
    own.prepare = separate::prepare;
    own.launch = separate::launch;
    own.release = separate::release;
    own.failed_launch = separate::failed_launch;
    return own;
  }();
  return &driver;
}

// The kernels that ran, the calls of `prepare`, and the bytes copied to the host and to the device.
void separate_counts(long* counts) {
  for (const auto* count : {&separate::kernels, &separate::prepared, &separate::down, &separate::up}) *counts++ = count->load();
}
void separate_without_kernels() { separate::no_kernels = true; }
}
