#include "launch/native.h"

#include <torch/library.h>

#include <cstdlib>
#include <deque>
#include <mutex>
#include <set>
#include <tuple>
#include <unordered_map>

#include "launch/launch.h"
#include "launch/ledger.h"
#include "launch/shadow.h"
#include "runtime/generator.h"

namespace bringup {

using c10::IValue;

// The driver's kernels of a signature, one per device.
struct DriverKernels {
  struct Answer {
    bringup_kernel* kernel = nullptr;
    const LedgerKey* key = nullptr;  // of its launches
    OnHost on_host;                  // it has none
    uint64_t draws = 0;              // how many random numbers a launch draws
    ~Answer() {
      if (kernel) driver().release(kernel);
    }
  };
  std::array<std::atomic<Answer*>, kMaxDevices> answers{};
  ~DriverKernels() {
    for (auto& answer : answers) delete answer.load();
  }
};

Signature::~Signature() { delete driver_kernels.load(); }

namespace {

std::mutex preparing;  // a signature is prepared once, even if two threads launch it

// What `prepare` gets of one call.
struct Description {
  std::vector<bringup_tensor> tensors, outputs;
  std::vector<bringup_argument> arguments;
  std::deque<std::vector<int64_t>> integers;
  std::deque<std::vector<double>> doubles;
  std::deque<std::string> strings;
  std::string refused;  // why the driver is not asked
};

bringup_tensor describe(const TensorMeta& meta, int storage, bool written) {
  if (!meta.defined) return {0, -1, -1, 0, nullptr, nullptr};
  return {int32_t(meta.dtype), int32_t(meta.sizes.size()), storage, written, meta.sizes.data(), meta.strides.data()};
}

void describe_tensors(const Signature& signature, Description& description) {
  for (size_t i = 0; i < signature.inputs.size(); ++i) {
    const TensorMeta& meta = signature.inputs[i];
    if (meta.defined && (meta.conjugate || meta.negative)) description.refused = "a tensor has a conjugate or negative bit";
    if (meta.defined && signature.storage_of[i] < 0 && !meta.sizes.empty()) description.refused = "an argument is on the host";
    description.tensors.push_back(describe(meta, signature.storage_of[i], signature.written[i]));
  }
  for (const auto& [slot, meta] : signature.resized)
    description.tensors[size_t(slot)] = describe(meta, signature.storage_of[size_t(slot)], true);
  for (const TensorMeta& meta : signature.outputs) description.outputs.push_back(describe(meta, -1, true));
}

bringup_argument describe_list(const IValue& value, const Signature& signature, int& slot, Description& description) {
  bringup_argument argument{BRINGUP_TENSORS, 0, slot, 0, 0, nullptr, nullptr, nullptr};
  for (const IValue& element : value.toListRef()) {
    if (!element.isTensor()) argument.kind = BRINGUP_OTHER;
    if (!element.isTensor()) continue;
    const TensorMeta& meta = signature.inputs[size_t(slot)];
    if (meta.defined && signature.storage_of[size_t(slot)] < 0) description.refused = "a list holds a number on the host";
    ++argument.count;
    ++slot;
  }
  return argument;
}

bringup_argument describe_value(const IValue& value, Description& description) {
  bringup_argument argument{BRINGUP_OTHER, 0, 0, 0, 0, nullptr, nullptr, nullptr};
  if (value.isNone()) {
    argument.kind = BRINGUP_NONE;
  } else if (value.isBool()) {
    argument.kind = BRINGUP_BOOL_VALUE;
    argument.integer = value.toBool();
  } else if (value.isInt()) {
    argument.kind = BRINGUP_INT;
    argument.integer = value.toInt();
  } else if (value.isDouble()) {
    argument.kind = BRINGUP_DOUBLE;
    argument.number = value.toDouble();
  } else if (value.isString()) {
    argument.kind = BRINGUP_STRING;
    argument.string = description.strings.emplace_back(value.toStringRef()).c_str();
  } else if (value.isIntList() || value.isBoolList()) {
    auto& integers = description.integers.emplace_back();
    for (const IValue& element : value.toListRef())
      integers.push_back(element.isBool() ? int64_t(element.toBool()) : element.toInt());
    argument.kind = BRINGUP_INTS;
    argument.count = int32_t(integers.size());
    argument.integers = integers.data();
  } else if (value.isList()) {
    auto& doubles = description.doubles.emplace_back();
    for (const IValue& element : value.toListRef()) {
      if (!element.isInt() && !element.isDouble()) return argument;
      doubles.push_back(element.isInt() ? double(element.toInt()) : element.toDouble());
    }
    argument.kind = BRINGUP_DOUBLES;
    argument.count = int32_t(doubles.size());
    argument.doubles = doubles.data();
  }
  return argument;
}

Description describe_call(const Launch& launch) {
  const Signature& signature = *launch.signature;
  Description description;
  describe_tensors(signature, description);
  int slot = 0;
  size_t listed = signature.op->args.size();  // where the next list of scalars begins in the values of a launch
  for (size_t i = 0; i < signature.op->args.size(); ++i) {
    const IValue& value = launch.arguments[i];
    ArgKind kind = signature.op->args[i].kind;
    bringup_argument argument{BRINGUP_NONE, 0, 0, 0, 0, nullptr, nullptr, nullptr};
    if (kind == ArgKind::Generator) {
      argument.kind = BRINGUP_GENERATOR;
    } else if (kind == ArgKind::Tensor) {
      if (value.isTensor()) {  // an absent tensor arrives as None, or undefined
        bool defined = signature.inputs[size_t(slot)].defined;
        argument.kind = defined ? BRINGUP_TENSOR : BRINGUP_NONE;
        argument.first = slot++;
      }
    } else if ((kind == ArgKind::Tensors || kind == ArgKind::OptionalTensors) && value.isList()) {
      argument = describe_list(value, signature, slot, description);
    } else if (kind == ArgKind::Scalar && value.isScalar()) {
      argument.kind = BRINGUP_SCALAR;
      if (value.isComplexDouble()) description.refused = "an argument is a complex number";
    } else if (kind == ArgKind::Scalar && value.isList()) {
      argument.kind = BRINGUP_SCALARS;
      argument.first = int32_t(listed);
      argument.count = int32_t(value.toListRef().size());
      listed += value.toListRef().size();
      for (const IValue& element : value.toListRef())
        if (element.isComplexDouble()) description.refused = "an argument is a complex number";
    } else {
      argument = describe_value(value, description);
    }
    description.arguments.push_back(argument);
  }
  return description;
}

// Operators that the driver is not asked for.
std::set<std::string>& left_out() {
  static auto* names = new std::set<std::string>();
  return *names;
}

std::unique_ptr<DriverKernels::Answer> ask_driver(const Launch& launch) {
  auto answer = std::make_unique<DriverKernels::Answer>();
  Description description = describe_call(launch);
  if (description.refused.empty() && left_out().contains(launch.signature->op->name)) description.refused = "it is left out";
  answer->on_host = {description.refused, description.refused.empty()};
  if (!description.refused.empty()) return answer;
  bringup_call call = {sizeof call,
                       launch.signature->op->name.c_str(),
                       int32_t(description.arguments.size()),
                       int32_t(description.tensors.size()),
                       int32_t(description.outputs.size()),
                       description.arguments.data(),
                       description.tensors.data(),
                       description.outputs.data(),
                       launch.draws_from.defined() ? &answer->draws : nullptr};
  Device& on = device(launch.stream->id.device_index());
  const char* why = nullptr;
  bringup_kernel* kernel = nullptr;
  int status;
  {
    Named named("the preparation of", launch);
    status = driver().prepare(on.handle, &call, &kernel, &why);
  }
  if (status == BRINGUP_OK) {
    answer->kernel = kernel;
    answer->key = key_on_device(launch.signature->op->name);
    if (!kernel) answer->on_host.reason = "the driver returned no kernel";
  } else if (status == BRINGUP_UNSUPPORTED) {
    answer->on_host.reason = why ? why : "the driver has no kernel for it";
  } else {
    throw_driver_error(on, "the preparation of " + launch.signature->op->name);
  }
  return answer;
}

const DriverKernels::Answer& answer_of(const Launch& launch) {
  const Signature& signature = *launch.signature;
  auto index = size_t(launch.stream->id.device_index());
  DriverKernels* kernels = signature.driver_kernels.load(std::memory_order_acquire);
  if (C10_LIKELY(kernels != nullptr))
    if (const auto* answer = kernels->answers[index].load(std::memory_order_acquire)) return *answer;
  std::unique_ptr<DriverKernels::Answer> fresh = ask_driver(launch);
  std::lock_guard<std::mutex> lock(preparing);
  if (!signature.driver_kernels.load()) signature.driver_kernels = new DriverKernels();
  auto& slot = signature.driver_kernels.load()->answers[index];
  if (!slot.load()) slot.store(fresh.release(), std::memory_order_release);
  return *slot.load();
}

// ---- the latest launches of kernels, so that a failure that a wait reports finds its line

constexpr size_t kRemembered = 8192;

struct Remembered {
  int64_t number = 0;
  SignaturePtr signature;
  int device = 0;
  Line line;
};

struct LatestLaunches {
  std::mutex mutex;
  std::vector<Remembered> ring{kRemembered};
};

LatestLaunches& latest() {
  static auto* all = new LatestLaunches();
  return *all;
}

void remember(const Launch& launch) {
  static std::once_flag once;
  std::call_once(once, [] { describe_launches_with(&describe_numbered); });
  Remembered entry{launch.number, launch.signature, int(launch.stream->id.device_index()), launch.line};
  std::lock_guard<std::mutex> lock(latest().mutex);
  std::swap(latest().ring[size_t(launch.number) % kRemembered], entry);
}

double value_of(const Launch& launch, size_t argument, int slot) {
  const IValue& value = launch.arguments[argument];
  if (launch.signature->op->args[argument].kind == ArgKind::Scalar && value.isScalar()) return value.toScalar().toDouble();
  if (slot < 0 || launch.host_tensors.empty()) return 0;
  const at::Tensor& number = launch.host_tensors[size_t(slot)];
  return number.defined() ? number.item<double>() : 0;
}

void enqueue_kernel(const Launch& launch) {
  const Signature& signature = *launch.signature;
  c10::SmallVector<void*, 12> addresses;
  for (size_t i = 0; i < signature.inputs.size(); ++i) {
    int storage = signature.storage_of[i];
    void* address = nullptr;
    if (storage >= 0)
      address = static_cast<char*>(launch.storages[size_t(storage)].address) +
                launch.offsets[i] * int64_t(c10::elementSize(signature.inputs[i].dtype));
    addresses.push_back(address);
  }
  for (const StorageRef& output : launch.outputs) addresses.push_back(output.address);
  c10::SmallVector<double, 12> values;
  int slot = 0;
  for (size_t i = 0; i < signature.op->args.size(); ++i) {
    const IValue& value = launch.arguments[i];
    ArgKind kind = signature.op->args[i].kind;
    bool tensor = kind == ArgKind::Tensor && value.isTensor();
    values.push_back(value_of(launch, i, tensor ? slot : -1));
    if (tensor) ++slot;
    if ((kind == ArgKind::Tensors || kind == ArgKind::OptionalTensors) && value.isList())
      for (const IValue& element : value.toListRef()) slot += element.isTensor();
  }
  for (size_t i = 0; i < signature.op->args.size(); ++i)
    if (signature.op->args[i].kind == ArgKind::Scalar && launch.arguments[i].isList())
      for (const IValue& element : launch.arguments[i].toListRef()) values.push_back(element.toScalar().toDouble());
  remember(launch);
  bringup_launch request = {sizeof request, launch.number, addresses.data(), values.data(), 0, 0};
  if (launch.draws_from.defined())
    std::tie(request.seed, request.offset) =
        static_cast<ChipGenerator*>(launch.draws_from.unsafeGetGeneratorImpl())->take_offsets(answer_of(launch).draws);
  Parts parts(*launch.stream, launch, true);
  int status = driver().launch(launch.stream->handle, launch.kernel, &request);
  check_driver(status, device(launch.stream->id.device_index()), signature.op->name.c_str());
  parts.end(Part::Kernel);
  count_on_device(answer_of(launch).key);
}

}  // namespace

std::string describe_numbered(int64_t number) {
  Remembered found;
  {
    std::lock_guard<std::mutex> lock(latest().mutex);
    found = latest().ring[size_t(number) % kRemembered];
  }
  return found.number == number ? describe_call(*found.signature, found.device, found.line) : "";
}

bringup_kernel* driver_kernel(const Launch& launch) { return C10_LIKELY(!native_driver()) ? nullptr : answer_of(launch).kernel; }

OnHost why_on_host(const Launch& launch) {
  if (launch.planned) return {"the plan puts it there", false};
  if (launch.waited) return {"the host waits for its result", false};
  if (!native_driver()) return {"the driver has no kernels", true};
  return answer_of(launch).on_host;
}

void count_on_host(const Launch& launch, int64_t bytes_down, int64_t bytes_up) {
  if (C10_LIKELY(!native_driver() && !separate_memory())) return;
  OnHost on_host = why_on_host(launch);
  count_on_host(launch, on_host.reason, on_host.kernel_possible, bytes_down, bytes_up);
  if (C10_UNLIKELY(shadowing()) && !launch.waited) shadow_refused(launch, on_host.reason);
}

void draw(Launch& launch) {
  if (launch.draws_from.defined())
    launch.generator = static_cast<ChipGenerator*>(launch.draws_from.unsafeGetGeneratorImpl())->draw_on(*launch.stream);
}

void start_launch(std::unique_ptr<Launch> launch) {
  if (launch->kernel) {
    if (skip_if_marked(*launch)) return;
    if (C10_LIKELY(!shadowing())) return enqueue_kernel(*launch);
    return launch_shadowed(*launch, [&] { enqueue_kernel(*launch); });
  }
  draw(*launch);
  if (C10_UNLIKELY(shadowing()) && launch->draws_from.defined()) shadow_drawn();
  Stream& stream = *launch->stream;
  SignaturePtr signature = launch->signature;
  const char* name = signature->op->name.c_str();
  Parts parts(stream, *launch, false);
  if (C10_LIKELY(!separate_memory())) {
    if (C10_UNLIKELY(native_driver())) count_on_host(*launch, 0, 0);
    bringup::launch(stream, run_launch, launch.release(), name);
    return parts.end(Part::Host);
  }
  {
    Staging staging(*launch);
    parts.end(Part::Down);
    bringup::launch(stream, run_launch, launch.release(), name);
    parts.end(Part::Host);
    staging.write_back();
  }
  parts.end(Part::Up);
}

// ---- staging

namespace {

constexpr size_t kLine = 64;        // bytes; kernels run at the alignment that the tensor has on the device
constexpr size_t kSmallest = 4096;  // bytes of a block

// Host memory for copies, kept for later launches: page-locked where the driver has it, else the copies would not be
// asynchronous.
struct StagingMemory {
  std::mutex mutex;
  std::unordered_map<size_t, std::vector<char*>> idle;  // by bytes, a power of two

  char* take(size_t bytes, Stream& stream) {
    {
      std::lock_guard<std::mutex> lock(mutex);
      auto& blocks = idle[bytes];
      if (!blocks.empty()) {
        char* block = blocks.back();
        blocks.pop_back();
        return block;
      }
    }
    void* pointer = nullptr;
    Device& on = device(stream.id.device_index());
    bool locked = driver().host_alloc && driver().host_alloc(on.handle, bytes, &pointer) == BRINGUP_OK;
    if (!locked) pointer = std::aligned_alloc(kSmallest, bytes);
    TORCH_CHECK(pointer, "no host memory left for a copy of ", bytes, " bytes");
    return static_cast<char*>(pointer);
  }
  void give(char* block, size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex);
    idle[bytes].push_back(block);
  }
};

StagingMemory& staging_memory() {
  static auto* memory = new StagingMemory();
  return *memory;
}

size_t staging_bytes(size_t bytes) {
  size_t rounded = kSmallest;
  while (rounded < bytes) rounded *= 2;
  return rounded;
}

using Extent = std::pair<size_t, size_t>;  // from, to: bytes of a storage

// The bytes of an input, in its storage.
Extent extent_of(const Launch& launch, size_t input) {
  const TensorMeta* meta = &launch.signature->inputs[input];
  for (const auto& [slot, resized] : launch.signature->resized)
    if (size_t(slot) == input && !launch.waited) meta = &resized;
  size_t from = size_t(launch.offsets[input]) * c10::elementSize(meta->dtype);
  return {from, from + meta->nbytes};
}

void merge(c10::SmallVector<Extent, 4>& extents, Extent added) {
  for (Extent& extent : extents) {
    if (added.second < extent.first || extent.second < added.first) continue;
    extent = {std::min(extent.first, added.first), std::max(extent.second, added.second)};
    return;
  }
  extents.push_back(added);
}

}  // namespace

Staging::Staging(Launch& launch) : stream_(*launch.stream), about_(launch.signature->op->name.c_str()) {
  if (!separate_memory()) return;
  try {
    stage_storages(launch);
    stage_outputs(launch);
  } catch (...) {
    give_back();
    throw;
  }
  launch.staged = true;
}

char* Staging::take(size_t bytes, size_t skew) {
  size_t whole = staging_bytes(bytes + skew);
  char* block = staging_memory().take(whole, stream_);
  blocks_.emplace_back(block, whole);
  return block + skew;
}

void Staging::stage_storages(Launch& launch) {
  const Signature& signature = *launch.signature;
  Device& on = device(stream_.id.device_index());
  int64_t down = 0, up = 0;
  for (size_t s = 0; s < launch.storages.size(); ++s) {
    StorageRef& storage = launch.storages[s];
    c10::SmallVector<Extent, 4> written;
    Extent used{storage.bytes, 0};
    for (size_t i = 0; i < signature.inputs.size(); ++i) {
      if (signature.storage_of[i] != int32_t(s)) continue;
      Extent extent = extent_of(launch, i);
      if (launch.waited && signature.written[i]) extent = {0, storage.bytes};  // the kernel may use all of it
      if (extent.first >= extent.second) continue;
      used = {std::min(used.first, extent.first), std::max(used.second, extent.second)};
      if (signature.written[i]) merge(written, extent);
    }
    if (!storage.address || used.first >= used.second) continue;
    char* device_start = static_cast<char*>(storage.address);
    size_t bytes = used.second - used.first;
    char* host = take(bytes, used.first % kLine);
    check_driver(driver().copy_d2h(stream_.handle, host, device_start + used.first, bytes), on, about_);
    storage.address = host - used.first;
    down += int64_t(bytes);
    for (auto [from, to] : written) {
      written_.push_back({device_start + from, host + (from - used.first), to - from});
      up += int64_t(to - from);
    }
  }
  for (const StorageRef& output : launch.outputs) up += output.address ? int64_t(output.bytes) : 0;
  count_on_host(launch, down, up);
}

void Staging::stage_outputs(Launch& launch) {
  for (size_t i = 0; i < launch.outputs.size(); ++i) {
    size_t bytes = launch.signature->outputs[i].nbytes;
    if (bytes == 0) continue;
    char* host = take(bytes, 0);
    written_.push_back({static_cast<char*>(launch.outputs[i].address), host, bytes});
    launch.outputs[i].address = host;
  }
}

void Staging::write_back() {
  Device& on = device(stream_.id.device_index());
  for (const Range& range : written_)
    check_driver(driver().copy_h2d(stream_.handle, range.device, range.host, range.bytes), on, about_);
}

Staging::~Staging() { give_back(); }

void Staging::give_back() {
  if (blocks_.empty()) return;
  auto give = [](void* argument, int) {
    std::unique_ptr<decltype(blocks_)> blocks(static_cast<decltype(blocks_)*>(argument));
    for (auto [block, bytes] : *blocks) staging_memory().give(block, bytes);
  };
  auto* blocks = new decltype(blocks_)(std::exchange(blocks_, {}));
  // If this cannot be enqueued, the memory is kept for ever: copies may be using it.
  (void)driver().launch_host(stream_.handle, give, blocks);
}

void put(Stream& stream, void* home, const TensorMeta& meta, const at::Tensor& content) {
  size_t bytes = staging_bytes(meta.nbytes);
  char* block = staging_memory().take(bytes, stream);
  alias(borrow(block, meta.nbytes), meta, 0).copy_(content);
  int status = driver().copy_h2d(stream.handle, home, block, meta.nbytes);
  enqueue(stream, "the end of a copy", [block, bytes](bool) { staging_memory().give(block, bytes); });
  check_driver(status, device(stream.id.device_index()), "a copy of a result");
}

TORCH_LIBRARY_FRAGMENT(bringup, m) {
  m.def("leave_out_kernels(str[] ops) -> ()",
        [](const std::vector<std::string>& ops) { left_out() = std::set<std::string>(ops.begin(), ops.end()); });
}

}  // namespace bringup
