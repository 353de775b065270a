#include "launch/worker.h"

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/clone.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/GradMode.h>

#include <cstring>
#include <mutex>

#include "launch/unwritten.h"
#include "runtime/memory.h"
#include "torch/profiler.h"
#include "record/waits.h"
#include "text.h"

namespace bringup {

using c10::DispatchKey;
using c10::DispatchKeySet;
using c10::IValue;

thread_local bool launches_in_this_thread = false;

namespace {

struct Promise {
  char* address = nullptr;
  size_t bytes = 0;
  bool in_use = false;
};

// Note [Steering]
// A CPU kernel allocates its own results. While a launch runs, the first allocation on its thread with exactly the size of a
// promised output gets the promised memory. So nearly all results are written directly to their place. Other results are copied:
// oneDNN's convolutions reorder theirs, and two outputs of the same size may be swapped.
thread_local c10::SmallVector<Promise, 4>* promises = nullptr;

struct SteeringAllocator final : c10::Allocator {
  c10::Allocator* inner;
  explicit SteeringAllocator(c10::Allocator* inner) : inner(inner) {}

  static SteeringAllocator*& instance() {
    static SteeringAllocator* the = nullptr;
    return the;
  }
  static void free(void* pointer) {
    if (!pointer) return;
    if (promises)
      for (Promise& promise : *promises)
        if (promise.address == pointer) {
          promise.in_use = false;
          return;
        }
    instance()->inner->raw_deallocate(pointer);
  }
  c10::DataPtr allocate(size_t bytes) override {
    if (promises)
      for (Promise& promise : *promises)
        if (!promise.in_use && promise.bytes == bytes && bytes > 0) {
          promise.in_use = true;
          return {promise.address, promise.address, free, c10::Device(c10::kCPU)};
        }
    void* pointer = inner->raw_allocate(bytes);
    return {pointer, pointer, free, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return free; }
  void copy_data(void* to, const void* from, size_t bytes) const override { inner->copy_data(to, from, bytes); }
};

}  // namespace

void install_steering() {
  static std::once_flag once;
  std::call_once(once, [] {
    auto* inner = c10::GetAllocator(c10::kCPU);
    if (!inner->raw_deleter()) return;  // another library's allocator: results are copied instead
    SteeringAllocator::instance() = new SteeringAllocator(inner);
    c10::SetAllocator(c10::kCPU, SteeringAllocator::instance(), 255);
  });
}

at::Tensor alias(const c10::intrusive_ptr<c10::StorageImpl>& storage, const TensorMeta& meta, int64_t offset) {
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(storage), DispatchKeySet(DispatchKey::CPU),
                                                         c10::scalarTypeToTypeMeta(meta.dtype));
  auto* impl = tensor.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(meta.sizes, meta.strides, offset);
  mark_conjugate(tensor, meta);
  return tensor;
}

c10::intrusive_ptr<c10::StorageImpl> borrow(void* address, size_t bytes) {
  return c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), c10::SymInt(int64_t(bytes)),
                                               c10::DataPtr(address, c10::Device(c10::kCPU)), c10::GetAllocator(c10::kCPU),
                                               /*resizable=*/true);
}

StorageRef storage_of(const at::Tensor& tensor) {
  auto* storage = tensor.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl();
  if (!storage || storage->device_type() != kChip) return {};
  return {storage->mutable_data(), storage->nbytes(), allocation_number(storage->data_ptr())};
}

FailurePtr launch_failed(Stream& stream, int64_t launch, const std::string& what) {
  try {
    throw;
  } catch (c10::Error& error) {
    error.add_context(what);
    return stream.fail(std::current_exception(), launch);
  } catch (const std::exception& error) {
    c10::Error translated(c10::SourceLocation{"", "", 0}, std::string(error.what()) + "\n" + what);
    return stream.fail(std::make_exception_ptr(translated), launch);
  } catch (...) {
    c10::Error translated(c10::SourceLocation{"", "", 0}, "an unknown exception\n" + what);
    return stream.fail(std::make_exception_ptr(translated), launch);
  }
}

std::string describe_call(const Signature& signature, int device, const Line& line) {
  Text text;
  text << signature.op->name << "(";
  constexpr size_t kNamed = 8;
  const auto& inputs = signature.inputs;
  for (size_t i = 0; i < std::min(inputs.size(), kNamed); ++i)
    text << (i ? ", " : "") << (inputs[i].defined ? text_of(inputs[i]) : "none");
  if (inputs.size() > kNamed) text << " and " << inputs.size() - kNamed << " more";
  text << ") on chip:" << device;
  if (std::string where = describe(line); !where.empty()) text << ", launched at " << where;
  return text.str();
}

namespace {

std::string describe_launch(const Launch& launch) {
  return describe_call(*launch.signature, int(launch.stream->id.device_index()), launch.line);
}

// torch's meta kernel was wrong. The host already uses tensors of the wrong size, so this launch fails. From now on, what the
// operator returns is learned by running it.
[[noreturn]] void broken_promise(Signature& signature, size_t index, const std::string& actual) {
  signature.op->trust_meta = false;
  signature.state = Signature::Synchronous;
  TORCH_CHECK(false, "output ", index, " was promised to be ", text_of(signature.outputs[index]),
              " by torch's meta kernel and is ", actual,
              "; later calls of this operator wait for the kernel instead, so run it again");
}

// Checks a result against its promise. Returns it in `stray` if it is not in the promised memory.
void deliver(Launch& launch, const at::Tensor& result, size_t index, Signature& signature, at::Tensor* stray) {
  const TensorMeta& promised = signature.outputs[index];
  if (!promised.defined) return;  // masked out
  if (!result.defined()) broken_promise(signature, index, "undefined");
  if (result.scalar_type() != promised.dtype || result.sizes() != c10::IntArrayRef(promised.sizes))
    broken_promise(signature, index, text_of(meta_of(result)));
  if (promised.nbytes == 0) return;
  void* home = launch.outputs[index].address;
  bool at_home = result.const_data_ptr() == home && result.strides() == c10::IntArrayRef(promised.strides) &&
                 result.is_conj() == promised.conjugate && result.is_neg() == promised.negative;
  if (at_home) return;
  *stray = result;  // copied after all results have been checked
  ++counters().promises_copied;
}

void deliver_all(Launch& launch, const Stack& results) {
  Signature& signature = *launch.signature;
  if (signature.outputs.empty()) return;
  c10::SmallVector<std::pair<size_t, at::Tensor>, 2> strays;
  size_t index = 0;
  auto one = [&](const at::Tensor& result) {
    TORCH_CHECK(index < signature.outputs.size(), "the kernel returned more tensors than expected");
    at::Tensor stray;
    deliver(launch, result, index, signature, &stray);
    if (stray.defined()) strays.emplace_back(index, std::move(stray));
    ++index;
  };
  for (size_t i = 0; i < signature.op->returns.size(); ++i) {
    auto kind = signature.op->returns[i].kind;
    if (kind == ReturnInfo::Fresh) one(results[i].isTensor() ? results[i].toTensor() : at::Tensor());
    if (kind == ReturnInfo::FreshList)
      for (const IValue& element : results[i].toListRef()) one(element.toTensor());
  }
  if (strays.empty()) return;
  for (Promise& promise : *promises) promise.in_use = true;  // temporaries of the copies below must not get promised memory
  auto in_promised_memory = [&](const at::Tensor& tensor) {
    auto* start = static_cast<const char*>(tensor.storage().data());
    for (const Promise& promise : *promises)
      if (start == promise.address) return true;
    return false;
  };
  for (auto& [at, tensor] : strays)
    if (in_promised_memory(tensor)) tensor = tensor.clone();  // the results themselves are held by the stack
  for (auto& [at, tensor] : strays) {
    const TensorMeta& meta = signature.outputs[at];
    alias(borrow(launch.outputs[at].address, meta.nbytes), meta, 0).copy_(tensor);
  }
}

// A kernel may leave a written argument with other memory or another conjugate bit than the program's tensor. Copies it back.
void settle(const at::Tensor& written, const at::Tensor& home) {
  if (written.unsafeGetTensorImpl() == home.unsafeGetTensorImpl()) return;
  bool same = written.const_data_ptr() == home.const_data_ptr() && written.sizes() == home.sizes() &&
              written.strides() == home.strides() && written.is_conj() == home.is_conj() && written.is_neg() == home.is_neg();
  if (same || home.numel() == 0) return;
  TORCH_CHECK(written.sizes() == home.sizes(), "a written argument was expected to have sizes ", home.sizes(), " and has ",
              written.sizes());
  home.copy_(written.const_data_ptr() == home.const_data_ptr() ? written.clone() : written);
}

void clear_outputs(const Launch& launch) {
  for (size_t i = 0; i < launch.outputs.size(); ++i)
    if (size_t bytes = launch.signature->outputs[i].nbytes) std::memset(launch.outputs[i].address, 0, bytes);
}

// The first index outside of a dimension, in words: "index 500 at [3, 5] is outside of 0 to 499"; empty if all are inside.
std::string outside(const at::Tensor& index, int64_t size) {
  at::Tensor flat = index.to(c10::kLong).contiguous().view(-1);
  const auto* values = flat.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < flat.numel(); ++i) {
    if (values[i] >= 0 && values[i] < size) continue;
    std::vector<int64_t> place(index.sizes().size());
    int64_t rest = i;
    for (size_t d = place.size(); d-- > 0; rest /= index.size(int64_t(d))) place[d] = rest % index.size(int64_t(d));
    return c10::str("index ", values[i], " at ", c10::IntArrayRef(place), " is outside of 0 to ", size - 1);
  }
  return "";
}

// The words of look-ups in a table, which do not say where the index is: ATen/native/cpu and index_select by rows and columns.
bool is_about_an_index(const std::string& message) {
  return message.find("index out of range in self") != std::string::npos ||
         message.find("INDICES element is out of DATA bounds") != std::string::npos;
}

void execute(Launch& launch) {
  const Signature& signature = *launch.signature;
  c10::DeviceIndex device = launch.stream->id.device_index();
  c10::SmallVector<Mapped, 8> mapped;  // outlives every tensor of the call
  auto on_host = [&](void* address) { return launch.staged ? address : mapped.emplace_back(device, address).host(); };
  c10::SmallVector<c10::intrusive_ptr<c10::StorageImpl>, 6> storages;
  for (const StorageRef& ref : launch.storages) storages.push_back(borrow(on_host(ref.address), ref.bytes));
  for (StorageRef& output : launch.outputs) output.address = on_host(output.address);
  c10::SmallVector<Promise, 4> steering;  // outlives every tensor of the call
  if (!launch.waited && signature.op->steered)
    for (size_t i = 0; i < launch.outputs.size(); ++i)
      steering.push_back({static_cast<char*>(launch.outputs[i].address), signature.outputs[i].nbytes, false});
  struct Scope {
    explicit Scope(c10::SmallVector<Promise, 4>* now) { promises = now; }
    ~Scope() { promises = nullptr; }
  } scope(&steering);
  auto meta_of_input = [&](int slot) -> const TensorMeta& {
    for (const auto& [resized, meta] : signature.resized)
      if (resized == slot && !launch.waited) return meta;
    return signature.inputs[size_t(slot)];
  };
  c10::SmallVector<std::pair<int, at::Tensor>, 2> written;
  std::vector<at::Tensor> built(signature.has_same ? signature.inputs.size() : 0);  // a tensor may be two arguments
  auto input = [&](int slot) {
    int storage = signature.storage_of[size_t(slot)];
    int same = signature.same_as[size_t(slot)];
    bool host_tensor = storage < 0 || (!launch.host_tensors.empty() && launch.host_tensors[size_t(slot)].defined());
    bool again = !host_tensor && same >= 0 && built[size_t(same)].defined();
    at::Tensor tensor = host_tensor ? launch.host_tensors[size_t(slot)]
                        : again     ? built[size_t(same)]
                                    : alias(storages[size_t(storage)], meta_of_input(slot), launch.offsets[size_t(slot)]);
    if (!host_tensor && !built.empty()) built[size_t(slot)] = tensor;
    if (launch.waited)
      launch.inputs.push_back(tensor);
    else if (storage >= 0 && signature.op->writes && signature.written[size_t(slot)])
      written.emplace_back(slot, tensor);
    return tensor;
  };
  Stack stack = rebuild(*signature.op, launch.arguments.data(), c10::kCPU, &launch.generator, input);
  try {
    signature.op->handle.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), &stack);
  } catch (c10::Error& error) {
    promises = nullptr;
    if (launch.guesses) clear_outputs(launch);
    if (is_about_an_index(error.msg()) && signature.inputs.size() > 1) {
      bool of_dimension = base_name(signature.op->name) == "index_select";
      int64_t dimension = of_dimension ? launch.arguments[1].toInt() : 0;
      const auto& sizes = signature.inputs[0].sizes;
      size_t place = size_t(dimension < 0 ? dimension + int64_t(sizes.size()) : dimension);
      if (place < sizes.size())
        if (std::string text = outside(input(1), sizes[place]); !text.empty()) error.add_context(text);
    }
    throw;
  } catch (...) {
    if (launch.guesses) clear_outputs(launch);
    throw;
  }
  if (launch.waited) {
    launch.results = std::move(stack);
    return;
  }
  deliver_all(launch, stack);
  stack.clear();  // before the promises end, so that results are not freed as ordinary memory
  promises = nullptr;
  for (const auto& [slot, tensor] : written)
    settle(tensor,
           alias(storages[size_t(signature.storage_of[size_t(slot)])], meta_of_input(slot), launch.offsets[size_t(slot)]));
}

// ---- failures, see failures.h

using Numbers = c10::SmallVector<int64_t, 8>;

Numbers read_by(const Launch& launch) {
  const Signature& signature = *launch.signature;
  Numbers numbers;
  for (size_t i = 0; i < signature.inputs.size(); ++i) {
    bool only_written = signature.written[i] && signature.op->overwrites;
    if (signature.storage_of[i] >= 0 && !only_written)
      numbers.push_back(launch.storages[size_t(signature.storage_of[i])].allocation);
  }
  return numbers;
}

Numbers written_by(const Launch& launch) {
  Numbers numbers;
  for (size_t i = 0; i < launch.storages.size(); ++i)
    if (launch.signature->storage_written[i]) numbers.push_back(launch.storages[i].allocation);
  for (const StorageRef& output : launch.outputs) numbers.push_back(output.allocation);
  return numbers;
}

// Removes the marks of memory that a launch has overwritten as a whole.
void unmark_overwritten(const Launch& launch) {
  const Signature& signature = *launch.signature;
  if (!signature.op->overwrites) return;
  for (size_t i = 0; i < signature.inputs.size(); ++i) {
    if (!signature.written[i] || signature.storage_of[i] < 0) continue;
    const StorageRef& storage = launch.storages[size_t(signature.storage_of[i])];
    const TensorMeta& meta = signature.inputs[i];
    if (size_t(c10::multiply_integers(meta.sizes)) * c10::elementSize(meta.dtype) >= storage.bytes) unmark(storage.allocation);
  }
}

// Sets the state that torch keeps per thread. A driver may run host functions on a thread of the program, which gets its state
// back. A thread of the driver keeps it, since setting it takes time.
class WorkerState {
 public:
  explicit WorkerState(int threads) : restores_(launches_in_this_thread), grad_(restores_ && c10::GradMode::is_enabled()) {
    static thread_local int current = 0;
    if (restores_) threads_ = at::get_num_threads();
    if (restores_ || current == 0) c10::GradMode::set_enabled(false);
    if ((restores_ ? threads_ : current) != threads) at::set_num_threads(threads);
    changed_ = restores_ && threads_ != threads;
    current = threads;
  }
  WorkerState(const WorkerState&) = delete;
  ~WorkerState() {
    if (!restores_) return;
    c10::GradMode::set_enabled(grad_);
    if (changed_) at::set_num_threads(threads_);
  }

 private:
  bool restores_, grad_, changed_ = false;
  int threads_ = 0;
};

}  // namespace

bool skip_if_marked(Launch& launch) {
  if (C10_LIKELY(!any_marked())) return false;
  launch.cause = mark_of(read_by(launch), launch.number);
  if (!launch.cause) return false;
  ++launch.cause->skipped;
  mark(written_by(launch), launch.cause);
  return true;
}

void run_launch(void* argument, int should_execute) {
  WaitsAside aside;
  auto* launch = static_cast<Launch*>(argument);
  bool waited = launch->waited;  // if true, the caller owns the launch
  if (should_execute && !skip_if_marked(*launch)) {
    int64_t start = profiling() ? profiler_now() : 0;
    try {
      WorkerState state(launch->threads);
      at::AutoDispatchBelowADInplaceOrView below;
      if (C10_UNLIKELY(watching_unwritten() && !launch->staged))
        run_watched(*launch, [launch] { execute(*launch); });
      else
        execute(*launch);
      launch->executed = true;
      if (any_marked()) unmark_overwritten(*launch);
    } catch (...) {
      if (waited)
        launch->error = std::current_exception();
      else if (!launch->guesses)
        mark(written_by(*launch), launch_failed(*launch->stream, launch->number, describe_launch(*launch)));
    }
    if (start) profiler_record(launch->signature->op->name, *launch->stream, start, profiler_now(), launch->correlation);
  }
  if (!waited) delete launch;
}

void run_reference(Launch& launch) {
  WaitsAside aside;
  WorkerState state(launch.threads);
  at::AutoDispatchBelowADInplaceOrView below;
  execute(launch);
}

}  // namespace bringup
