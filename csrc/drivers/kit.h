// The kit: how a call of an operator becomes launches of kernels. A driver that includes it provides memory, copies, streams and
// events, and the functions declared here. The entries at the end are then its own. Kernels and plans are in one file per topic;
// kit_operators.h has the table of operators.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "../driver.h"
#include "kit_dialect.h"

namespace kit {

using Code = void*;                    // a compiled program
using Kernel = std::shared_ptr<void>;  // one of its kernels, of one step of a plan
struct Grid {
  long groups[3] = {1, 1, 1};
  int lanes[2] = {256, 1};
};

// The arguments of a kernel's launch.
struct Arguments {
  std::vector<char> bytes;
  std::vector<std::pair<size_t, size_t>> places;  // where each begins, and how many bytes it has

  void add(const void* value, size_t count) {
    size_t at = (bytes.size() + 7) / 8 * 8;  // as large numbers are aligned
    bytes.resize(at + count);
    std::memcpy(bytes.data() + at, value, count);
    places.emplace_back(at, count);
  }
  template <class T>
  void add(const T& value) {
    add(&value, sizeof value);
  }
  void clear() { bytes.clear(), places.clear(); }
};

struct Source {
  const char *name, *text;
};

// c = alpha * a b + beta * c, in one dtype; a is (batch, m, k), b is (batch, k, n), c is contiguous. Strides are in elements.
struct Product {
  int dtype;
  long batch, m, n, k, a[3], b[3];
};
using RunProduct = std::function<int(bringup_stream*, void* c, const void* a, const void* b, double alpha, double beta)>;

// What the kit keeps of a device: what failed last, and the programs. The mutex also guards what a driver adds to it.
struct DeviceState {
  std::mutex mutex;
  std::string error, shown;
  int64_t failed = 0;  // the number of the launch that failed, if it is known
  size_t capacity = 0, used = 0;
  long random_threads =
      132 * 2048;  // that draw random numbers: multiprocessors and their threads, of an H100 (NVIDIA's data sheet)
  std::unordered_map<std::string, Code> programs;

  int fail(const std::string& sentence, int64_t launch = 0) {
    std::lock_guard<std::mutex> lock(mutex);
    error = sentence;
    failed = launch;
    return BRINGUP_FAILED;
  }
};

// What the kit keeps of a stream: memory for what is computed between the kernels of a call. Blocks that became too small stay
// until the stream ends, since its kernels may be using them.
struct StreamState {
  std::mutex mutex;  // held from the first to the last kernel of a call that uses the memory
  std::vector<std::pair<void*, size_t>> blocks;
};

// ---- what the driver provides

DeviceState& state(bringup_device* device);
StreamState& state(bringup_stream* stream);
// The operators that the user limits the device to: "all", "none" or "aten::mm,aten::add.Tensor"; null without a limit.
const char* listed_operators();

// Compiles a program; null, with the compiler's messages in `log`, if it does not compile.
Code build(bringup_device* device, const std::string& source, std::string* log);
Kernel kernel_of(Code program, const char* name);
// Memory that does not count towards the device's capacity.
int allocate(bringup_device* device, size_t bytes, void** address);
int release(bringup_device* device, void* address);
// Appends a pointer and the offset of an address in it, in elements of `item` bytes.
void append_address(bringup_stream* stream, Arguments& arguments, void* address, size_t item);
int enqueue(bringup_stream* stream, const Kernel& kernel, Arguments& arguments, const Grid& grid);
// Eight bytes that kernels write their launch's number to if an index is out of range.
void* fault_word(bringup_device* device);
// A product by the vendor's library; empty if it has none for this case.
RunProduct library_product(bringup_device* device, const Product& product);

// ---- dtypes

inline bool is_half(int dtype) { return dtype == BRINGUP_FLOAT16 || dtype == BRINGUP_BFLOAT16; }
inline bool is_floating(int dtype) { return is_half(dtype) || dtype == BRINGUP_FLOAT32 || dtype == BRINGUP_FLOAT64; }

// The storage type of kit_dialect.h; null if the kernels have none.
inline const char* type_of(int dtype) {
  switch (dtype) {
    case BRINGUP_FLOAT16:
      return "f16";
    case BRINGUP_BFLOAT16:
      return "bf16";
    case BRINGUP_FLOAT32:
      return "float";
    case BRINGUP_FLOAT64:
      return "double";
    case BRINGUP_INT64:
      return "long";
    case BRINGUP_INT32:
      return "int";
    case BRINGUP_INT16:
      return "short";
    case BRINGUP_INT8:
      return "schar";
    case BRINGUP_BOOL:
    case BRINGUP_UINT8:
      return "uchar";
    default:
      return nullptr;
  }
}

inline size_t item_of(int dtype) {
  switch (dtype) {
    case BRINGUP_INT64:
    case BRINGUP_FLOAT64:
      return 8;
    case BRINGUP_FLOAT32:
    case BRINGUP_INT32:
      return 4;
    case BRINGUP_BOOL:
    case BRINGUP_UINT8:
    case BRINGUP_INT8:
      return 1;
    default:
      return 2;
  }
}

// The dtype that kernels compute a storage dtype in, as WIDE in kit_dialect.h.
inline int wide_of(int dtype) {
  return dtype == BRINGUP_FLOAT64 ? BRINGUP_FLOAT64 : is_floating(dtype) ? BRINGUP_FLOAT32 : BRINGUP_INT64;
}

// ---- calls

struct Tensor : bringup_tensor {
  int index;        // in the launch's addresses
  long place = -1;  // in bytes, if it is in the workspace
  long offset = 0;  // in elements, of a part
  size_t item() const { return item_of(dtype); }
  long numel() const {
    long n = 1;
    for (int d = 0; d < dims; ++d) n *= sizes[d];
    return n;
  }
  bool contiguous() const {
    long next = 1;
    for (int d = dims - 1; d >= 0; --d) {
      if (sizes[d] != 1 && strides[d] != next) return false;
      next *= sizes[d];
    }
    return true;
  }
  bool on_host() const { return storage < 0; }
  bool plain(int as) const { return dtype == as && contiguous() && !on_host(); }
};

struct Map {  // as in kit_dialect.h
  int64_t dims, size[6], o[6], a[6], b[6], c[6];
};

// A value of a kernel's argument: a constant, or found at the launch.
struct Value {
  enum Kind { kBuffer, kWorkspace, kScalar, kConstant, kFault, kNumber, kSeed, kOffset } kind;
  int index = 0;            // kBuffer: in addresses. kScalar: in values
  size_t item = 0;          // kBuffer, kWorkspace: bytes of an element
  long offset = 0;          // kBuffer, kWorkspace: in bytes
  char type = 'f';          // kScalar: f, d or l
  double factor = 1;        // kScalar
  std::vector<char> bytes;  // kConstant
};

template <class T>
std::vector<char> bytes_of(T value) {
  std::vector<char> bytes(sizeof value);
  std::memcpy(bytes.data(), &value, sizeof value);
  return bytes;
}

inline std::vector<char> number_as(char type, double value) {
  return type == 'f' ? bytes_of(float(value)) : type == 'd' ? bytes_of(value) : bytes_of(int64_t(value));
}

inline char letter_of(int dtype) {  // the type of numbers beside tensors of a dtype
  return dtype == BRINGUP_FLOAT64 ? 'd' : is_floating(dtype) ? 'f' : 'l';
}

// One launch of a kernel.
struct Step {
  Kernel kernel;
  Grid grid;
  std::vector<Value> values;  // of a product: c, a, b, alpha, beta
  RunProduct product;         // instead of the kernel

  Step& buffer(const Tensor& tensor) {
    long offset = tensor.offset * long(tensor.item());
    if (tensor.place >= 0)
      values.push_back({Value::kWorkspace, 0, tensor.item(), tensor.place + offset, 'f', 1, {}});
    else
      values.push_back({Value::kBuffer, tensor.index, tensor.item(), offset, 'f', 1, {}});
    return *this;
  }
  Step& scalar(char type, int argument, double factor = 1) {
    values.push_back({Value::kScalar, argument, 0, 0, type, factor, {}});
    return *this;
  }
  template <class T>
  Step& value(T constant) {
    values.push_back({Value::kConstant, 0, 0, 0, 'f', 1, bytes_of(constant)});
    return *this;
  }
  template <class... T>
  Step& counts(T... numbers) {
    (value(int64_t(numbers)), ...);
    return *this;
  }
  Step& number(char type, double constant) {
    values.push_back({Value::kConstant, 0, 0, 0, type, 1, number_as(type, constant)});
    return *this;
  }
  Step& stream() {  // of random numbers: two arguments
    values.push_back({Value::kSeed, 0, 0, 0, 'l', 1, {}});
    values.push_back({Value::kOffset, 0, 0, 0, 'l', 1, {}});
    return *this;
  }
  Step& fault() {
    values.push_back({Value::kFault, 0, 8, 0, 'f', 1, {}});
    values.push_back({Value::kNumber, 0, 0, 0, 'f', 1, {}});
    return *this;
  }
};

struct Plan {
  std::vector<Step> steps;
  size_t workspace = 0;  // bytes
};

inline std::string define(const char* name, const std::string& text) {
  return "#define " + std::string(name) + " " + text + "\n";
}

// Definitions of the names of storage types.
inline std::string types(const std::vector<std::pair<const char*, int>>& dtypes) {
  std::string macros;
  for (auto [name, dtype] : dtypes) macros += define(name, type_of(dtype) ? type_of(dtype) : "");
  return macros;
}

// Returns a kernel of a source that is compiled with these definitions; null if it does not compile.
inline Kernel compile(bringup_device* device, const Source& source, const std::string& macros, const char* name) {
  std::lock_guard<std::mutex> lock(state(device).mutex);
  auto [entry, is_new] = state(device).programs.try_emplace(source.name + macros, nullptr);
  std::string log;
  if (is_new) entry->second = build(device, kDialect + macros + source.text, &log);
  if (!log.empty()) std::fprintf(stderr, "bringup: %s does not compile: %s\n%s", source.name, log.c_str(), macros.c_str());
  return entry->second ? kernel_of(entry->second, name) : nullptr;
}

struct Call {
  const bringup_call* c;
  bringup_device* device;
  Plan plan{};
  const char* why = nullptr;
  std::deque<std::vector<int64_t>> shapes{};            // of tensors in the workspace
  std::vector<std::pair<Tensor, Tensor>> unfinished{};  // outputs, and what they are copied from

  const bringup_argument& argument(int i) const { return c->arguments[i]; }
  bool none(int i) const { return c->arguments[i].kind == BRINGUP_NONE; }
  bool is_true(int i) const { return c->arguments[i].integer != 0; }
  // The k-th of a list of integers; a list of one stands for all.
  int64_t entry(int i, int k) const {
    const bringup_argument& list = c->arguments[i];
    return list.count == 0 ? 0 : list.integers[list.count == 1 ? 0 : k];
  }
  Tensor at(int tensor) const { return {c->tensors[tensor], tensor}; }
  Tensor tensor(int i) const { return at(c->arguments[i].first); }
  Tensor element(int i, int k) const { return at(c->arguments[i].first + k); }
  Tensor output(int i) {
    if (i >= c->output_count) return refuse("it writes its results into arguments"), written(i);
    Tensor tensor = {c->outputs[i], c->tensor_count + i};
    tensor.storage = std::numeric_limits<int32_t>::max() - i;  // on the device, of its own
    return tensor;
  }
  // The k-th argument that is written.
  Tensor written(int k) const {
    for (int i = 0; i < c->tensor_count; ++i)
      if (c->tensors[i].written && k-- == 0) return at(i);
    return at(0);
  }
  // The k-th result: a new tensor, or an argument.
  Tensor target(int k = 0) { return c->output_count > 0 ? output(k) : written(k); }
  bool refuse(const char* reason) {
    if (!why) why = reason;
    return false;
  }

  // A contiguous tensor in the workspace.
  Tensor scratch(int dtype, std::vector<int64_t> sizes) {
    auto& shape = shapes.emplace_back(std::move(sizes));
    auto& strides = shapes.emplace_back(shape.size());
    int64_t count = 1;
    for (size_t d = shape.size(); d-- > 0; count *= shape[d]) strides[d] = count;
    int number = int(shapes.size());
    Tensor tensor = {
        {dtype, int32_t(shape.size()), std::numeric_limits<int32_t>::max() - 1000 - number, 1, shape.data(), strides.data()},
        -1 - number,
        long(plan.workspace)};
    plan.workspace += (size_t(count) * item_of(dtype) + 511) / 512 * 512;  // as driver.h aligns memory
    return tensor;
  }
  std::vector<int64_t> sizes_of(const Tensor& tensor) const { return {tensor.sizes, tensor.sizes + tensor.dims}; }
  Tensor dense(const Tensor& tensor, int dtype);
  Tensor dense(const Tensor& tensor) { return dense(tensor, tensor.dtype); }
  // Where a contiguous result is computed: the tensor, or the workspace, from which `finish` copies it.
  Tensor result(const Tensor& tensor, int dtype) {
    bool shared = false;
    for (int i = 0; i < c->tensor_count; ++i)
      shared |= i != tensor.index && c->tensors[i].dims >= 0 && c->tensors[i].storage == tensor.storage;
    if (tensor.plain(dtype) && !shared) return tensor;
    unfinished.emplace_back(tensor, scratch(dtype, sizes_of(tensor)));
    return unfinished.back().second;
  }
  Tensor result(const Tensor& tensor) { return result(tensor, tensor.dtype); }
  // Like `result`, of a tensor that the kernel also reads.
  Tensor updated(const Tensor& tensor, int dtype);
  bool finish();

  Step& step(const Source& source, const std::string& macros, const char* name, long groups, long groups_y = 1,
             long groups_z = 1) {
    Step step;
    if (!why) step.kernel = compile(device, source, macros, name);
    if (!step.kernel) refuse("its kernel does not compile");
    if (groups_y > 65535 || groups_z > 65535) refuse("a grid of more than 65535 groups");  // the limit of CUDA
    step.grid.groups[0] = groups, step.grid.groups[1] = groups_y, step.grid.groups[2] = groups_z;
    plan.steps.push_back(step);
    return plan.steps.back();
  }
  // For kernels with a thread per element.
  Step& each(const Source& source, const std::string& macros, const char* name, long elements) {
    return step(source, macros, name, (elements + 255) / 256).counts(elements);
  }
};

}  // namespace kit

#include "kit_operators.h"

namespace kit {

// True if `list` ("all", "none", "aten::mm,aten::add.Tensor") names the operator.
inline bool is_listed(const char* list, const std::string& op) {
  if (!list || !*list || std::strcmp(list, "all") == 0) return true;
  return ("," + std::string(list) + ",").find("," + op + ",") != std::string::npos;
}

// True if a call has nothing to compute: all that it writes is empty.
inline bool writes_nothing(Call& call) {
  for (int i = 0; i < call.c->output_count; ++i)
    if (call.c->outputs[i].dims >= 0 && call.output(i).numel() > 0) return false;
  for (int i = 0; i < call.c->tensor_count; ++i)
    if (call.c->tensors[i].dims >= 0 && call.c->tensors[i].written && call.at(i).numel() > 0) return false;
  return true;
}

inline bool reads_empty(Call& call) {
  for (int i = 0; i < call.c->tensor_count; ++i)
    if (call.c->tensors[i].dims >= 0 && call.at(i).numel() == 0) return true;
  for (int i = 0; i < call.c->output_count; ++i)
    if (call.c->outputs[i].dims >= 0 && call.output(i).numel() == 0) return true;
  return false;
}

// Returns BRINGUP_OK with the plan of a call, or BRINGUP_UNSUPPORTED with the reason. `only` limits the operators.
inline int plan_of(bringup_device* device, const bringup_call* c, const char* only, Plan* plan, const char** why) {
  const Make* make = make_of(c->op);
  if (!make || !is_listed(only, c->op)) return BRINGUP_UNSUPPORTED;
  Call call{c, device};
  if (writes_nothing(call)) return BRINGUP_OK;
  if (reads_empty(call) && !takes_empty(c->op)) return *why = "a tensor is empty", BRINGUP_UNSUPPORTED;
  bool planned = (*make)(call) && call.finish();
  if (!planned || call.why) {
    *why = call.why ? call.why : "the kernels do not cover this form";
    return BRINGUP_UNSUPPORTED;
  }
  *plan = std::move(call.plan);
  return BRINGUP_OK;
}

// ---- launches

inline void add_number(Arguments& arguments, char type, double value) {
  if (type == 'f') return arguments.add(float(value));
  if (type == 'd') return arguments.add(value);
  arguments.add(int64_t(value));
}

inline double number_at_launch(const Value& value, const bringup_launch& launch) {
  if (value.kind == Value::kScalar) return launch.values[value.index] * value.factor;
  float small = 0;
  double large = 0;
  int64_t integer = 0;
  if (value.type == 'f') return std::memcpy(&small, value.bytes.data(), sizeof small), small;
  if (value.type == 'd') return std::memcpy(&large, value.bytes.data(), sizeof large), large;
  return std::memcpy(&integer, value.bytes.data(), sizeof integer), double(integer);
}

inline int run(bringup_device* device, bringup_stream* stream, const Step& step, const bringup_launch& launch, char* workspace) {
  auto address = [&](const Value& value) {
    if (value.kind == Value::kFault) return static_cast<char*>(fault_word(device));
    if (value.kind == Value::kWorkspace) return workspace + value.offset;
    return static_cast<char*>(launch.addresses[value.index]) + value.offset;
  };
  const std::vector<Value>& values = step.values;
  if (step.product)
    return step.product(stream, address(values[0]), address(values[1]), address(values[2]), number_at_launch(values[3], launch),
                        number_at_launch(values[4], launch));
  thread_local Arguments arguments;  // keeps its memory
  arguments.clear();
  for (const Value& value : values) {
    if (value.kind == Value::kNumber)
      arguments.add(uint64_t(launch.number));
    else if (value.kind == Value::kSeed || value.kind == Value::kOffset)
      arguments.add(value.kind == Value::kSeed ? launch.seed : launch.offset);
    else if (value.kind == Value::kScalar)
      add_number(arguments, value.type, number_at_launch(value, launch));
    else if (value.kind == Value::kConstant)
      arguments.add(value.bytes.data(), value.bytes.size());
    else
      append_address(stream, arguments, address(value), value.item);
  }
  return enqueue(stream, step.kernel, arguments, step.grid);
}

inline int run(bringup_device* device, bringup_stream* stream, const Plan& plan, const bringup_launch& launch) {
  StreamState& own = state(stream);
  std::unique_lock<std::mutex> lock(own.mutex, std::defer_lock);
  void* workspace = nullptr;
  if (plan.workspace > 0) {
    lock.lock();
    if (own.blocks.empty() || own.blocks.back().second < plan.workspace) {
      size_t bytes = std::max(plan.workspace, own.blocks.empty() ? size_t(0) : 2 * own.blocks.back().second);
      if (int status = allocate(device, bytes, &workspace)) {
        if (status == BRINGUP_OUT_OF_MEMORY) return state(device).fail("no memory is left for a workspace");
        return status;
      }
      own.blocks.emplace_back(workspace, bytes);
    }
    workspace = own.blocks.back().first;
  }
  for (const Step& step : plan.steps)
    if (int status = run(device, stream, step, launch, static_cast<char*>(workspace))) return status;
  return BRINGUP_OK;
}

// Releases what the kit keeps of a stream, which is idle.
inline void release_workspaces(bringup_device* device, bringup_stream* stream) {
  for (auto [address, bytes] : state(stream).blocks) release(device, address);
}

}  // namespace kit

struct bringup_kernel {
  bringup_device* device;
  kit::Plan plan;
};

// ---- entries of the driver

namespace kit {

// `last_error` of no device: why the last `open` failed.
inline DeviceState& state_of_open() {
  static auto* failures = new DeviceState();
  return *failures;
}

inline int refuse_open(const std::string& why) { return state_of_open().fail(why); }

inline const char* last_error(bringup_device* device, const void** about) {
  *about = nullptr;
  DeviceState& from = device ? state(device) : state_of_open();
  std::lock_guard<std::mutex> lock(from.mutex);
  from.shown = std::exchange(from.error, "");
  return from.shown.c_str();
}

inline int64_t failed_launch(bringup_device* device) {
  std::lock_guard<std::mutex> lock(state(device).mutex);
  return std::exchange(state(device).failed, 0);
}

inline int prepare(bringup_device* device, const bringup_call* call, bringup_kernel** kernel, const char** why) {
  auto planned = std::make_unique<bringup_kernel>(bringup_kernel{device, {}});
  int status = plan_of(device, call, listed_operators(), &planned->plan, why);
  if (status == BRINGUP_OK) *kernel = planned.release();
  return status;
}

inline int launch(bringup_stream* stream, bringup_kernel* kernel, const bringup_launch* launch) {
  return run(kernel->device, stream, kernel->plan, *launch);
}

inline void release_kernel(bringup_kernel* kernel) { delete kernel; }

inline int alloc(bringup_device* device, size_t bytes, void** address) {
  DeviceState& own = state(device);
  {
    std::lock_guard<std::mutex> lock(own.mutex);
    if (own.used + bytes > own.capacity) return BRINGUP_OUT_OF_MEMORY;
    own.used += bytes;
  }
  int status = allocate(device, bytes, address);
  if (status == BRINGUP_OK) return BRINGUP_OK;
  std::lock_guard<std::mutex> lock(own.mutex);
  own.used -= bytes;
  return status;
}

inline int free(bringup_device* device, void* address, size_t bytes) {
  int status = release(device, address);
  std::lock_guard<std::mutex> lock(state(device).mutex);
  if (status == BRINGUP_OK) state(device).used -= bytes;
  return status;
}

}  // namespace kit

// The entry of a driver that has these functions by their names in driver.h, and all others from the kit. Page-locked memory is
// optional. The host cannot address the device's memory.
#define BRINGUP_KIT_DRIVER(NAME, HOST_ALLOC, HOST_FREE)                                                 \
  extern "C" __attribute__((visibility("default"))) const bringup_driver* bringup_driver_entry() {      \
    static const bringup_driver driver = [] {                                                           \
      bringup_driver d = {};                                                                            \
      d.abi = BRINGUP_DRIVER_ABI, d.size = sizeof d, d.name = NAME;                                     \
      d.open = open_device, d.close = close_device, d.last_error = kit::last_error;                     \
      d.alloc = kit::alloc, d.free = kit::free, d.host_alloc = HOST_ALLOC, d.host_free = HOST_FREE;     \
      d.stream_create = stream_create, d.stream_destroy = stream_destroy;                               \
      d.stream_synchronize = stream_synchronize, d.stream_query = stream_query;                         \
      d.copy_h2d = copy_h2d, d.copy_d2h = copy_d2h, d.copy_d2d = copy_d2d, d.launch_host = launch_host; \
      d.event_create = event_create, d.event_destroy = event_destroy, d.event_record = event_record;    \
      d.event_wait = event_wait, d.event_query = event_query;                                           \
      d.event_synchronize = event_synchronize, d.event_elapsed = event_elapsed;                         \
      d.prepare = kit::prepare, d.launch = kit::launch, d.release = kit::release_kernel;                \
      d.failed_launch = kit::failed_launch, d.device_name = device_name;                                \
      return d;                                                                                         \
    }();                                                                                                \
    return &driver;                                                                                     \
  }
