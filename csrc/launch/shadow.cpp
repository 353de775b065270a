#include "launch/shadow.h"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <torch/library.h>
#include <unistd.h>

#include <cfloat>
#include <cstring>
#include <map>
#include <mutex>

#include "json.h"
#include "launch/launch.h"
#include "text.h"

namespace bringup {

// Note [Shadow]
// A launch reads its inputs to the host before its kernel runs. The CPU computes on this copy, and the kernel on the device. Then
// the results are read, and a host function compares them. New tensors are filled with kPoison before, so that elements that the
// kernel does not write differ. Where results cancel, the CPU's own rounding may be larger than the tolerance. So the CPU also
// computes in float64 where it can, and the kernel may be off by a few times as much as the CPU. A thorough comparison also
// covers the memory beside the tensors: the rest of each storage, and the bytes between the end of a new tensor and the end of
// its block. Kernels that draw random numbers are launched and not compared.
namespace {

constexpr int kPoison = 0xFF;        // NaN as a number
constexpr size_t kBlockBytes = 512;  // bytes: blocks of the allocator are multiples (kRound in runtime/blocks.h)
constexpr size_t kAligned = 64;      // bytes: CPU kernels run at the alignment that the tensor has on the device
constexpr double kRounding = 4;      // chosen: how much more than the CPU's rounding a kernel may round
constexpr size_t kNamedBytes = 512;  // of the file that names what the driver is doing

struct ShadowRow {
  int64_t compared = 0, wrong = 0;
  double worst_error = 0;
  std::string first;  // what was wrong at first
  std::map<std::string, int64_t> refused;
};

struct Shadows {
  std::mutex mutex;
  std::atomic<bool> on{false};
  std::atomic<int64_t> compared{0}, drawn{0}, excused{0};  // excused: the CPU's own rounding was larger than the tolerance
  std::atomic<char*> named{nullptr};                       // not null: the host waits for each kernel
  bool thorough = false;
  std::map<c10::ScalarType, double> tolerances;
  std::map<std::pair<std::string, std::string>, ShadowRow> rows;  // by operator and dtype
  std::string first;                                              // divergence, with its line
};

Shadows& shadows() {
  static auto* all = new Shadows();
  return *all;
}

std::string dtype_of(const Signature& signature) {
  TensorMeta scalar;
  scalar.dtype = signature.dtype;
  std::string text = text_of(scalar);
  return text.substr(0, text.find('['));
}

// Memory of the device, with the CPU's version of it and the kernel's.
struct ShadowCopy {
  char* device;
  size_t bytes, padding;  // `padding` bytes behind it must keep kPoison
  std::unique_ptr<char[]> cpu, kernel;
  size_t skew;

  ShadowCopy(void* address, size_t bytes, size_t padding)
      : device(static_cast<char*>(address)),
        bytes(bytes),
        padding(padding),
        cpu(new char[bytes + padding + 2 * kAligned]),
        kernel(new char[bytes + padding + 2 * kAligned]),
        skew((size_t(device) % kAligned + 2 * kAligned - size_t(cpu.get()) % kAligned) % kAligned) {}
  char* on_cpu() { return cpu.get() + skew; }
  char* on_kernel() { return kernel.get() + skew; }
  bool is_padding_intact() {
    for (size_t i = 0; i < padding; ++i)
      if (static_cast<unsigned char>(on_kernel()[bytes + i]) != kPoison) return false;
    return true;
  }
};

struct Comparison {
  Launch reference;
  std::vector<ShadowCopy> storages, outputs;
  std::vector<int> copy_of;                             // storage -> its index in `storages`; -1: none
  std::vector<size_t> starts;                           // of each copy, in its storage
  std::string refused;                                  // why the CPU does not compute it
  std::vector<at::Tensor> exact_outputs, exact_inputs;  // computed in float64; empty or undefined where the CPU cannot
  std::vector<TensorMeta> promised;                     // metadata of the outputs
  explicit Comparison(const Launch& launch) : reference(launch) {}
};

const TensorMeta& meta_when_run(const Signature& signature, size_t input) {
  for (const auto& [slot, resized] : signature.resized)
    if (size_t(slot) == input) return resized;
  return signature.inputs[input];
}

void read_device(Stream& stream, const char* about, char* host, const char* address, size_t bytes) {
  check_driver(driver().copy_d2h(stream.handle, host, address, bytes), device(stream.id.device_index()), about);
}

void copy_storages(Comparison& comparison, bool thorough) {
  Launch& launch = comparison.reference;
  const Signature& signature = *launch.signature;
  for (size_t s = 0; s < launch.storages.size(); ++s) {
    comparison.copy_of.push_back(-1);
    StorageRef& storage = launch.storages[s];
    size_t from = storage.bytes, to = 0;
    for (size_t i = 0; i < signature.inputs.size(); ++i) {
      const TensorMeta& meta = meta_when_run(signature, i);
      if (signature.storage_of[i] != int32_t(s) || meta.nbytes == 0) continue;
      size_t start = size_t(launch.offsets[i]) * c10::elementSize(meta.dtype);
      from = std::min(from, start), to = std::max(to, start + meta.nbytes);
    }
    if (!storage.address || from >= to) continue;
    if (thorough) from = 0, to = storage.bytes;
    comparison.copy_of.back() = int(comparison.storages.size());
    comparison.starts.push_back(from);
    ShadowCopy& copy = comparison.storages.emplace_back(static_cast<char*>(storage.address) + from, to - from, 0);
    read_device(*launch.stream, "a copy for a comparison", copy.on_cpu(), copy.device, copy.bytes);
    storage.address = copy.on_cpu() - from;
  }
}

void copy_outputs(Comparison& comparison, bool thorough) {
  Launch& launch = comparison.reference;
  Stream& stream = *launch.stream;
  for (size_t i = 0; i < launch.outputs.size(); ++i) {
    StorageRef& output = launch.outputs[i];
    size_t bytes = output.address ? launch.signature->outputs[i].nbytes : 0;
    size_t padding = thorough && bytes ? (bytes + kBlockBytes - 1) / kBlockBytes * kBlockBytes - bytes : 0;
    ShadowCopy& copy = comparison.outputs.emplace_back(output.address, bytes, padding);
    if (bytes == 0) continue;
    std::memset(copy.on_kernel(), kPoison, bytes + padding);
    check_driver(driver().copy_h2d(stream.handle, copy.device, copy.on_kernel(), bytes + padding),
                 device(stream.id.device_index()), "a copy for a comparison");
    output.address = copy.on_cpu();
  }
}

// Computes a launch in float64 from the copied inputs, which it leaves unchanged.
void compute_exact(Comparison& comparison) {
  at::NoGradGuard no_grad;
  at::AutoDispatchBelowADInplaceOrView below;
  const Launch& launch = comparison.reference;
  const Signature& signature = *launch.signature;
  std::vector<at::Tensor> inputs(signature.inputs.size());
  auto input = [&](int slot) {
    int storage = signature.storage_of[size_t(slot)], same = signature.same_as[size_t(slot)];
    at::Tensor& built = inputs[size_t(slot)];
    if (same >= 0) return built = inputs[size_t(same)];
    if (storage < 0) {
      built = launch.host_tensors.empty() ? at::Tensor() : launch.host_tensors[size_t(slot)];
    } else {
      const StorageRef& ref = launch.storages[size_t(storage)];
      built = alias(borrow(ref.address, ref.bytes), meta_when_run(signature, size_t(slot)), launch.offsets[size_t(slot)]);
      built = built.is_floating_point() ? built.to(at::kDouble, /*non_blocking=*/false, /*copy=*/true) : built.clone();
    }
    return built;
  };
  Stack stack = rebuild(*signature.op, launch.arguments.data(), c10::kCPU, nullptr, input);
  signature.op->handle.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &stack);
  for (size_t i = 0; i < signature.op->returns.size(); ++i) {
    auto kind = signature.op->returns[i].kind;
    if (kind == ReturnInfo::Fresh) comparison.exact_outputs.push_back(stack[i].isTensor() ? stack[i].toTensor() : at::Tensor());
    if (kind == ReturnInfo::FreshList)
      for (const c10::IValue& element : stack[i].toListRef()) comparison.exact_outputs.push_back(element.toTensor());
  }
  comparison.exact_inputs = std::move(inputs);
}

at::Tensor comparable(at::Tensor tensor) {
  if (tensor.is_complex()) tensor = at::view_as_real(tensor.resolve_conj());
  if (tensor.scalar_type() == at::kBool) tensor = tensor.view(at::kByte);  // other bytes than 0 and 1 differ, too
  return tensor;
}

// Equal, or not finite where the CPU's result is not: for infinite inputs, the CPU's vector and scalar code differ in NaN and
// infinity. Two infinities have to be equal.
at::Tensor are_same(const at::Tensor& a, const at::Tensor& b) {
  at::Tensor is_finite = a.isfinite().logical_or(b.isfinite());
  return (a == b).logical_or(is_finite.logical_or(a.isinf().logical_and(b.isinf())).logical_not());
}

// Returns the largest difference of two tensors beyond `rounding`: |a - b| / (1 + |a|), DBL_MAX where one alone is not finite.
double error_of(const at::Tensor& right, const at::Tensor& tested, double rounding) {
  at::Tensor a = comparable(right), b = comparable(tested);
  if (a.numel() == 0) return 0;
  at::Tensor same = are_same(a, b);
  if (same.all().item<bool>()) return 0;
  bool exact = !a.is_floating_point();
  a = a.to(at::kDouble), b = b.to(at::kDouble);
  at::Tensor error = ((a - b).abs() - rounding).clamp_min(0) / (1 + a.abs());
  error = error.masked_fill(same, 0).nan_to_num(DBL_MAX, DBL_MAX);
  return std::max(error.max().item<double>(), exact ? DBL_MIN : 0);
}

// The elements of a tensor without those that an expanded dimension repeats.
at::Tensor once_each(at::Tensor tensor) {
  for (int64_t dim = 0; dim < tensor.dim(); ++dim)
    if (tensor.stride(dim) == 0 && tensor.size(dim) > 1) tensor = tensor.narrow(dim, 0, 1);
  return tensor;
}

// Returns the largest difference between the CPU's result and the one in float64.
double rounding_of(const at::Tensor& right, const at::Tensor& exact) {
  if (!exact.defined() || !right.is_floating_point() || exact.sizes() != right.sizes() || right.numel() == 0) return 0;
  at::Tensor rounding = (right.to(at::kDouble) - exact.to(at::kDouble)).abs();
  return rounding.nan_to_num(0, 0, 0).max().item<double>();
}

std::string numbers_of(const at::Tensor& right, const at::Tensor& tested) {
  at::Tensor a = comparable(right).to(at::kDouble).reshape(-1), b = comparable(tested).to(at::kDouble).reshape(-1);
  at::Tensor differs = are_same(a, b).logical_not();
  at::Tensor error = ((a - b).abs() / (1 + a.abs())).nan_to_num(DBL_MAX, DBL_MAX).masked_fill(differs.logical_not(), -1);
  int64_t worst = error.argmax().item<int64_t>();
  Text text;
  text << "element " << worst << " of " << a.numel() << " is " << b[worst].item<double>() << ", on the CPU "
       << a[worst].item<double>() << " (" << differs.sum().item<int64_t>() << " elements differ)";
  return text.str();
}

struct ShadowVerdict {
  double worst_error = 0;
  std::string wrong;  // empty if it is right
};

void compare_tensor(const at::Tensor& right, const at::Tensor& tested, const at::Tensor& exact, const std::string& name,
                    ShadowVerdict& verdict) {
  auto listed = shadows().tolerances.find(right.scalar_type());
  double tolerance = listed == shadows().tolerances.end() ? 0 : listed->second;
  double error = error_of(right, tested, 0);
  if (error > tolerance) {
    error = error_of(right, tested, kRounding * rounding_of(right, exact));
    if (error <= tolerance) ++shadows().excused;
  }
  verdict.worst_error = std::max(verdict.worst_error, error);
  if (error > tolerance && verdict.wrong.empty()) verdict.wrong = name + ": " + numbers_of(right, tested);
}

ShadowVerdict compare_results(Comparison& comparison) {
  Launch& launch = comparison.reference;
  const Signature& signature = *launch.signature;
  const bool is_batch_norm =
      signature.op->name.find("batch_norm") != std::string::npos;  // it writes statistics that its schema hides
  ShadowVerdict verdict;
  for (size_t i = 0; i < comparison.outputs.size(); ++i) {
    ShadowCopy& copy = comparison.outputs[i];
    if (copy.bytes == 0) continue;
    const TensorMeta& meta = comparison.promised[i];
    at::Tensor right = alias(borrow(copy.on_cpu(), copy.bytes), meta, 0);
    at::Tensor tested = alias(borrow(copy.on_kernel(), copy.bytes), meta, 0);
    at::Tensor exact = i < comparison.exact_outputs.size() ? comparison.exact_outputs[i] : at::Tensor();
    compare_tensor(right, tested, exact, "result " + std::to_string(i), verdict);
    if (!copy.is_padding_intact() && verdict.wrong.empty()) verdict.wrong = "it writes beyond the end of a result";
  }
  for (size_t i = 0; i < signature.inputs.size(); ++i) {
    int storage = signature.storage_of[i];
    if (storage < 0 || !(signature.written[i] || is_batch_norm) || comparison.copy_of[size_t(storage)] < 0) continue;
    auto index = size_t(comparison.copy_of[size_t(storage)]);
    ShadowCopy& copy = comparison.storages[index];
    const TensorMeta& meta = meta_when_run(signature, i);
    char *cpu = copy.on_cpu() - comparison.starts[index], *kernel = copy.on_kernel() - comparison.starts[index];
    size_t end = comparison.starts[index] + copy.bytes;
    at::Tensor right = alias(borrow(cpu, end), meta, launch.offsets[i]),
               tested = alias(borrow(kernel, end), meta, launch.offsets[i]);
    at::Tensor exact = i < comparison.exact_inputs.size() ? comparison.exact_inputs[i] : at::Tensor();
    bool repeats = once_each(right).numel() != right.numel();  // which value such an element has last is not defined
    if (!repeats) compare_tensor(right, tested, exact, "argument " + std::to_string(i), verdict);
    if (shadows().thorough) once_each(tested).copy_(once_each(right));  // what is left to compare is beside the tensors
  }
  for (ShadowCopy& copy : comparison.storages)
    if (shadows().thorough && verdict.wrong.empty() && std::memcmp(copy.on_cpu(), copy.on_kernel(), copy.bytes) != 0)
      verdict.wrong = "it writes to memory that it should not write to";
  return verdict;
}

void wait_for_kernel(Stream& stream, const char* about) {
  int status;
  {
    ReleaseGil no_gil;
    status = driver().stream_synchronize(stream.handle);
  }
  check_driver(status, device(stream.id.device_index()), about);
}

void note_verdict(const Launch& launch, const ShadowVerdict& verdict) {
  std::string call = describe_call(*launch.signature, int(launch.stream->id.device_index()), launch.line);
  std::lock_guard<std::mutex> lock(shadows().mutex);
  ShadowRow& row = shadows().rows[{launch.signature->op->name, dtype_of(*launch.signature)}];
  ++row.compared;
  row.worst_error = std::max(row.worst_error, verdict.worst_error);
  if (verdict.wrong.empty()) return;
  if (row.wrong++ == 0) row.first = verdict.wrong + ", in " + call;
  if (shadows().first.empty()) shadows().first = row.first;
}

void note_wrong(const Launch& launch, const std::string& sentence) { note_verdict(launch, {0, sentence}); }

void note_comparison(Comparison& comparison) {
  at::NoGradGuard no_grad;
  try {
    note_verdict(comparison.reference, compare_results(comparison));
  } catch (const std::exception& error) {
    note_wrong(comparison.reference, std::string("the comparison failed: ") + error.what());
  }
}

// Returns what was compared since the last report.
std::string shadow_report() {
  std::lock_guard<std::mutex> lock(shadows().mutex);
  Text text;
  text << "{\"first\": " << json_text(shadows().first) << ", \"rows\": [";
  const char* comma = "";
  for (auto& [key, row] : shadows().rows) {
    text << comma << "{\"op\": " << json_text(key.first) << ", \"dtype\": " << json_text(key.second)
         << ", \"compared\": " << row.compared << ", \"wrong\": " << row.wrong << ", \"worst_error\": " << row.worst_error
         << ", \"first\": " << json_text(row.first) << ", \"refused\": {";
    const char* inner = "";
    for (auto& [reason, launches] : row.refused) {
      text << inner << json_text(reason) << ": " << launches;
      inner = ", ";
    }
    text << "}}";
    comma = ", ";
  }
  text << "]}";
  shadows().rows.clear();
  return text.str();
}

void begin_shadow(const std::vector<int64_t>& dtypes, const std::vector<double>& tolerances, bool thorough,
                  const std::string& file) {
  std::lock_guard<std::mutex> lock(shadows().mutex);
  for (size_t i = 0; i < dtypes.size(); ++i) shadows().tolerances[c10::ScalarType(dtypes[i])] = tolerances[i];
  shadows().thorough = thorough;
  if (!file.empty()) {
    int descriptor = open(file.c_str(), O_RDWR | O_CREAT, 0600);
    bool has_room = descriptor >= 0 && ftruncate(descriptor, off_t(kNamedBytes)) == 0;
    void* memory = has_room ? mmap(nullptr, kNamedBytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0) : MAP_FAILED;
    if (descriptor >= 0) close(descriptor);
    TORCH_CHECK(memory != MAP_FAILED, file, " cannot be written");
    shadows().named = static_cast<char*>(memory);
  }
  shadows().on = true;
}

}  // namespace

void shadow_drawn() { ++shadows().drawn; }

bool shadowing() { return shadows().on.load(std::memory_order_relaxed); }

Named::Named(const char* activity, const Launch& launch) {
  char* file = shadows().named.load(std::memory_order_relaxed);
  if (C10_LIKELY(!file)) return;
  Text text;
  text << launch.signature->op->name << '\n'
       << dtype_of(*launch.signature) << '\n'
       << launch.number << '\n'
       << activity << ' ' << describe_call(*launch.signature, int(launch.stream->id.device_index()), {});
  std::strncpy(file, text.str().c_str(), kNamedBytes - 1);
}

Named::~Named() {
  if (char* file = shadows().named.load(std::memory_order_relaxed)) *file = 0;
}

void shadow_refused(const Launch& launch, const std::string& reason) {
  std::lock_guard<std::mutex> lock(shadows().mutex);
  ++shadows().rows[{launch.signature->op->name, dtype_of(*launch.signature)}].refused[reason];
}

void launch_shadowed(const Launch& launch, const std::function<void()>& launch_kernel) {
  Stream& stream = *launch.stream;
  const char* about = "a comparison with the CPU";
  Named named("the launch of", launch);
  if (launch.draws_from.defined()) {
    shadow_drawn();
    shadow_refused(launch, "its random numbers are not the CPU's");
    launch_kernel();
    if (shadows().named.load()) wait_for_kernel(stream, launch.signature->op->name.c_str());
    return;
  }
  ++shadows().compared;
  auto comparison = std::make_shared<Comparison>(launch);
  comparison->promised = launch.signature->outputs;
  comparison->reference.kernel = nullptr;
  comparison->reference.staged = true;
  copy_storages(*comparison, shadows().thorough);
  copy_outputs(*comparison, shadows().thorough);
  enqueue(stream, about, [comparison](bool) {
    try {
      compute_exact(*comparison);
    } catch (const std::exception&) {  // an operator without a kernel for float64, or for tensors that do not overlap
    }
    try {
      run_reference(comparison->reference);
    } catch (const std::exception& error) {
      comparison->refused = error.what();
    }
  });
  try {
    launch_kernel();
    if (shadows().named.load()) wait_for_kernel(stream, launch.signature->op->name.c_str());
  } catch (const std::exception& error) {
    std::string sentence = error.what();
    if (comparison->refused.empty()) note_wrong(launch, sentence.substr(0, sentence.find('\n')));
    throw;
  }
  for (auto* copies : {&comparison->storages, &comparison->outputs})
    for (ShadowCopy& copy : *copies)
      if (copy.bytes) read_device(stream, about, copy.on_kernel(), copy.device, copy.bytes + copy.padding);
  enqueue(stream, about, [comparison](bool) {
    if (comparison->refused.empty()) note_comparison(*comparison);
  });
}

TORCH_LIBRARY_FRAGMENT(bringup, m) {
  m.def("shadow(int[] dtypes, float[] tolerances, bool thorough, str file) -> ()", &begin_shadow);
  m.def("shadow_report() -> str", &shadow_report);
  m.def("shadow_compared() -> int", [] { return shadows().compared.load(); });
  m.def("shadow_drawn() -> int", [] { return shadows().drawn.load(); });  // launches that drew random numbers
  m.def("shadow_excused() -> int", [] { return shadows().excused.load(); });
}

}  // namespace bringup
