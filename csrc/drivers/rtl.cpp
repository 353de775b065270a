// The driver of a chip in development: the systolic array of array.sv, which the program BRINGUP_RTL_SIMULATION simulates
// (array.cpp). Memory, streams and copies are the virtual driver's, in memory that the host cannot address. The array computes
// aten::_int_mm. Events count its cycles; copies and host functions take none.
#include "simulation.h"
#include "virtual.cpp"

struct bringup_kernel {
  int64_t m, k, n, strides[3][2];  // of a, b and c
};

namespace rtl {

constexpr double kClock = 1e9;  // cycles per second: chosen, since no layout of the array tells it yet

const bringup_driver& base() { return *bringup_virtual_driver(); }

struct Array {
  std::mutex mutex;
  Simulation simulation;
  std::atomic<uint64_t> cycles{0};
  std::atomic<int64_t> failed{0};  // the number of the latest launch that failed
};
Array arrays[BRINGUP_MAX_DEVICES];

void enqueue(bringup_stream* stream, bool kernel, auto work) {
  auto run = [](void* argument, int) { (*std::unique_ptr<decltype(work)>(static_cast<decltype(work)*>(argument)))(); };
  stream->push(run, new auto(std::move(work)), kernel);
}

struct Product {
  bringup_device* device;
  bringup_kernel kernel;
  int64_t number;
  void* addresses[3];

  template <class T, class Visit>
  void for_each(int operand, int64_t rows, int64_t columns, Visit visit) const {
    auto* at = static_cast<T*>(base().map(device, addresses[operand]));
    auto [down, right] = kernel.strides[operand];
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) visit(at[i * down + j * right]);
  }
};

// Sends a request as array.cpp describes it, and waits for the whole answer. Returns why there is none.
std::string multiply(Array& array, const std::vector<char>& request, std::vector<int32_t>& c) {
  std::lock_guard<std::mutex> lock(array.mutex);
  std::string why = array.simulation ? "" : array.simulation.start("BRINGUP_RTL_SIMULATION", "BRINGUP_RTL_SECONDS");
  if (why.empty()) why = array.simulation.send(request.data(), request.size());
  for (int64_t answer[2] = {}; why.empty();) {
    why = array.simulation.receive(answer, sizeof answer);
    auto [cycles, bytes] = answer;
    if (!why.empty() || bytes == 0) continue;
    array.cycles += uint64_t(cycles);
    if (bytes > 0) return array.simulation.receive(c.data(), c.size() * sizeof c[0]);
    array.simulation.stop();
    why = "the array gave no results until cycle " + std::to_string(cycles);
  }
  return why;
}

void run(const Product& product) {
  auto& [m, k, n, strides] = product.kernel;
  std::vector<int32_t> c(size_t(m * n));
  std::vector<char> request(3 * sizeof m);
  memcpy(request.data(), &product.kernel, request.size());
  product.for_each<int8_t>(1, k, n, [&](int8_t b) { request.push_back(b); });
  product.for_each<int8_t>(0, m, k, [&](int8_t a) { request.push_back(a); });
  Array& array = arrays[product.device->index];
  std::string why = m && k && n ? multiply(array, request, c) : "";
  if (why.empty()) return product.for_each<int32_t>(2, m, n, [next = c.data()](int32_t& to) mutable { to = *next++; });
  product.device->fail(why);
  array.failed = product.number;
}

int prepare(bringup_device*, const bringup_call* call, bringup_kernel** kernel, const char** why) {
  if (strcmp(call->op, "aten::_int_mm") != 0 && strcmp(call->op, "aten::_int_mm.out") != 0) return BRINGUP_UNSUPPORTED;
  const bringup_tensor* operands[] = {call->tensors, call->tensors + 1, call->output_count ? call->outputs : call->tensors + 2};
  auto fresh = std::make_unique<bringup_kernel>();
  for (int i = 0; i < 3; ++i) {
    *why = "not matrices of int8 whose product is int32";
    if (operands[i]->dtype != (i < 2 ? BRINGUP_INT8 : BRINGUP_INT32) || operands[i]->dims != 2) return BRINGUP_UNSUPPORTED;
    std::copy_n(operands[i]->strides, 2, fresh->strides[i]);
  }
  fresh->m = operands[0]->sizes[0], fresh->k = operands[0]->sizes[1], fresh->n = operands[1]->sizes[1];
  return *kernel = fresh.release(), BRINGUP_OK;
}

int launch(bringup_stream* stream, bringup_kernel* kernel, const bringup_launch* launch) {
  auto* at = launch->addresses;
  Product product{stream->device, *kernel, launch->number, {at[0], at[1], at[2]}};
  enqueue(stream, true, [product] { run(product); });
  return BRINGUP_OK;
}

// A program gets a simulation for each device that it opens; a list has as many as it asks for.
int listed() { return getenv("BRINGUP_DEVICES") ? atoi(getenv("BRINGUP_DEVICES")) : 1; }
std::string refused;  // why a device was not opened
int open(int index, const bringup_config* config, bringup_device** device) {
  bringup_config separate = {config->device_bytes, 1};  // 1: the host cannot address the memory
  refused = arrays[index].simulation.start("BRINGUP_RTL_SIMULATION", "BRINGUP_RTL_SECONDS");
  int status = refused.empty() ? base().open(index, &separate, device) : int(BRINGUP_FAILED);
  if (status != BRINGUP_OK) arrays[index].simulation.stop();
  return status;
}

void close(bringup_device* device) {
  arrays[device->index].simulation.stop();
  base().close(device);
}

const char* last_error(bringup_device* device, const void** about) {
  *about = nullptr;
  return device || refused.empty() ? base().last_error(device, about) : refused.c_str();
}

int stream_synchronize(bringup_stream* stream) {
  int status = base().stream_synchronize(stream);
  return arrays[stream->device->index].failed ? int(BRINGUP_FAILED) : status;
}

int event_record(bringup_event* event, bringup_stream* stream) {
  std::unique_lock<std::mutex> lock(event->state->mutex);
  auto record = [state = event->state, version = ++event->state->recorded, &array = arrays[stream->device->index]] {
    std::lock_guard<std::mutex> lock(state->mutex);
    if (version > state->done) state->seconds = double(array.cycles) / kClock;
    state->done = std::max(state->done, version);
    state->changed.notify_all();
  };
  lock.unlock();
  enqueue(stream, false, record);
  return BRINGUP_OK;
}

}  // namespace rtl

extern "C" __attribute__((visibility("default"))) const bringup_driver* bringup_driver_entry() {
  static const bringup_driver driver = [] {
    bringup_driver own = rtl::base();
    own.name = "rtl";
    own.open = rtl::open, own.close = rtl::close, own.last_error = rtl::last_error, own.map = nullptr;
    own.stream_synchronize = rtl::stream_synchronize, own.event_record = rtl::event_record;
    own.prepare = rtl::prepare, own.launch = rtl::launch;
    own.release = [](bringup_kernel* kernel) { delete kernel; };
    own.device_name = [](int index) { return index < rtl::listed() ? "systolic array (Verilator)" : nullptr; };
    own.failed_launch = [](bringup_device* device) { return rtl::arrays[device->index].failed.exchange(0); };
    return own;
  }();
  return &driver;
}
