// The program's own kernels. They are launched as operators are, and Python runs them in stream order (bringup/triton).
#include <torch/library.h>

#include <condition_variable>
#include <mutex>

#include "launch/dry.h"
#include "launch/launch.h"
#include "python/python.h"
#include "python/raised.h"
#include "runtime/capture.h"
#include "runtime/memory.h"
#include "record/recorder.h"
#include "runtime/runtime.h"
#include "record/waits.h"

namespace bringup {
namespace {

// The counters of a launch are known after it has run, so a reader of the recording waits for the pending launches.
struct UnderWay {
  std::mutex mutex;
  std::condition_variable none;
  int count = 0;
};

UnderWay& under_way() {
  static auto* state = new UnderWay();
  return *state;
}

void one_is_over() {
  std::lock_guard<std::mutex> lock(under_way().mutex);
  if (--under_way().count == 0) under_way().none.notify_all();
}

struct KernelLaunch {
  int64_t id;
  std::string name;
  Stream* stream;
  int64_t number;  // launch number
  Line line;
  RecordedRow row;
  std::string signature;  // without the counters
  c10::SmallVector<StorageRef, 6> storages;
  std::vector<int64_t> written;  // storage -> not 0 if the kernel may write it
  // The allocations at the launch, if the kernel reads addresses from memory. The program may free one before the kernel runs;
  // the work of its next owner is then enqueued after the kernel.
  std::vector<std::pair<char*, size_t>> alive;
};

thread_local const KernelLaunch* running = nullptr;

at::Tensor bytes_of(const c10::intrusive_ptr<c10::StorageImpl>& storage, size_t bytes) {
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(storage), c10::DispatchKeySet(c10::DispatchKey::CPU),
                                                         c10::scalarTypeToTypeMeta(at::kByte));
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous({int64_t(bytes)});
  return tensor;
}

// Runs the kernel in Python, on the bytes of the storages and their addresses. Returns the signature, or "!", the number of an
// error that Python keeps, and its text.
std::string run_in_python(int64_t id, const std::vector<at::Tensor>& memory, const std::vector<int64_t>& addresses) {
  static auto run = c10::Dispatcher::singleton()
                        .findSchemaOrThrow("bringup::run_kernel", "")
                        .typed<std::string(int64_t, at::TensorList, at::IntArrayRef)>();
  return run.call(id, memory, addresses);
}

[[noreturn]] void throw_error_of_kernel(const std::string& result) {
  size_t end = result.find(' ');
  throw PythonError(std::stoll(result.substr(1, end - 1)), result.substr(end + 1));
}

void run_kernel(KernelLaunch& launch, bool should_execute) {
  WaitsAside aside;
  c10::SmallVector<int64_t, 6> used, written;
  for (size_t i = 0; i < launch.storages.size(); ++i) {
    used.push_back(launch.storages[i].allocation);
    if (launch.written[i]) written.push_back(launch.storages[i].allocation);
  }
  FailurePtr cause = should_execute ? mark_of(used, launch.number) : nullptr;
  if (cause) {
    ++cause->skipped;
    mark(written, cause);
    should_execute = false;
  }
  running = &launch;
  bool has_run = cause == nullptr;
  try {
    std::vector<at::Tensor> memory;
    std::vector<int64_t> addresses;
    c10::SmallVector<Mapped, 6> mapped;
    try {
      for (const StorageRef& storage : launch.storages) {
        if (!should_execute) break;
        void* host = mapped.emplace_back(launch.stream->id.device_index(), storage.address).host();
        memory.push_back(bytes_of(borrow(host, storage.bytes), storage.bytes));
        addresses.push_back(int64_t(reinterpret_cast<uintptr_t>(storage.address)));
      }
    } catch (...) {
      run_in_python(launch.id, {}, {});  // with no memory, Python only drops the launch
      throw;
    }
    std::string signature = run_in_python(launch.id, memory, addresses);
    if (signature.starts_with('!')) throw_error_of_kernel(signature);
    if (!signature.empty()) launch.signature = std::move(signature);
  } catch (...) {
    std::string where = describe(launch.line);
    std::string what = "kernel " + launch.name + (where.empty() ? "" : ", launched at " + where);
    mark(written, launch_failed(*launch.stream, launch.number, what));
    has_run = false;
  }
  running = nullptr;
  if (launch.row.recording < 0) return;
  has_run ? amend_recorded(launch.row, std::move(launch.signature)) : drop_recorded(launch.row);
}

void launch_kernel(int64_t id, const std::string& name, const std::vector<at::Tensor>& tensors,
                   const std::vector<int64_t>& written, int64_t index, const std::string& signature, bool tiny, bool follows) {
  Stream& stream = current_stream(c10::DeviceIndex(index));
  refuse_capture(stream, "the kernel " + name + " of the program", "launch it outside of the capture");
  int64_t number = ++counters().launches;
  auto launch =
      std::make_unique<KernelLaunch>(KernelLaunch{id, name, &stream, number, current_line(), {}, signature, {}, written, {}});
  for (const at::Tensor& tensor : tensors) launch->storages.push_back(storage_of(tensor));
  if (follows) launch->alive = allocations(int(index));
  if (recording()) launch->row = record_kernel(launch->line, stream, launch->storages, written);
  if (is_dry()) return run_kernel(*launch, true);
  // A small kernel runs in less time than it takes to pass the GIL to the worker and back. On an idle stream it runs at once,
  // with the same results. Its error is stored on the stream, as usual.
  if (tiny && config().driver.empty() && !stream.pending() && driver().stream_query(stream.handle) == 1)
    return run_kernel(*launch, true);
  {
    std::lock_guard<std::mutex> lock(under_way().mutex);
    ++under_way().count;
  }
  bringup::launch(
      stream,
      [](void* argument, int should_execute) {
        std::unique_ptr<KernelLaunch> launch(static_cast<KernelLaunch*>(argument));
        run_kernel(*launch, should_execute != 0);
        one_is_over();
      },
      launch.release(), name.c_str());
  if (C10_UNLIKELY(launch_blocking())) synchronize(stream);
}

// The number of an allocation of the running kernel's arguments; 0 for another address.
int64_t running_allocation(int64_t address) {
  if (running)
    for (const StorageRef& storage : running->storages)
      if (int64_t(reinterpret_cast<uintptr_t>(storage.address)) == address) return storage.allocation;
  return 0;
}

void unmap(void* mapped) { delete static_cast<Mapped*>(mapped); }

// Finds the allocation that contains an address, among those that were live when the running kernel was launched. Returns its
// bytes and its start; -1 if there is none.
std::tuple<at::Tensor, int64_t> allocation_at(int64_t address) {
  TORCH_CHECK(running, "no kernel is running in this thread");
  auto* pointer = reinterpret_cast<char*>(uintptr_t(address));
  const auto& alive = running->alive;
  auto after = std::upper_bound(alive.begin(), alive.end(), pointer, [](char* p, const auto& item) { return p < item.first; });
  if (after == alive.begin() || pointer >= std::prev(after)->first + std::prev(after)->second)
    return {bytes_of(borrow(nullptr, 0), 0), -1};
  auto [start, bytes] = *std::prev(after);
  auto* mapped = new Mapped(running->stream->id.device_index(), start);
  auto storage = c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), c10::SymInt(int64_t(bytes)),
                                                       c10::DataPtr(mapped->host(), mapped, &unmap, c10::Device(c10::kCPU)),
                                                       nullptr, /*resizable=*/false);
  return {bytes_of(storage, bytes), int64_t(reinterpret_cast<uintptr_t>(start))};
}

}  // namespace

void wait_for_kernels() {
  ReleaseGil no_gil;
  std::unique_lock<std::mutex> lock(under_way().mutex);
  under_way().none.wait(lock, [] { return under_way().count == 0; });
}

TORCH_LIBRARY_FRAGMENT(bringup, m) {
  m.def("run_kernel(int id, Tensor[] memory, int[] addresses) -> str");
  m.def(
      "launch_kernel(int id, str name, Tensor[] tensors, int[] written, int device, str signature, bool tiny, "
      "bool follows) -> ()",
      [](int64_t id, const std::string& name, const std::vector<at::Tensor>& tensors, const std::vector<int64_t>& written,
         int64_t device, const std::string& signature, bool tiny,
         bool follows) { launch_kernel(id, name, tensors, written, device, signature, tiny, follows); });
  m.def("allocation_at(int address) -> (Tensor, int)", &allocation_at);
  m.def("running_allocation(int address) -> int", &running_allocation);
}

}  // namespace bringup
