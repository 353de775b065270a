#include "launch/workspace.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <tuple>

#include "record/recorder.h"
#include "runtime/memory.h"

namespace bringup {

// Note [Workspaces of products]
// torch's CUDA build gives cuBLAS a workspace for every pair of a handle and a stream. It takes the memory from its caching
// allocator at the pair's first product, and keeps it (aten/src/ATen/cuda/CublasHandlePool.cpp). A thread holds one handle until
// it ends; then the next thread takes it over. So a program that trains holds two workspaces: one of its own thread's handle, and
// one of autograd's. Products with a bias run in cublasLt, which has a second, smaller workspace.

namespace {

enum class Library : uint8_t { Blas, BlasLt };
constexpr const char* kWorkspace = "cuBLAS workspace";

struct Workspaces {
  std::mutex mutex;
  std::set<int> idle;  // handles whose threads have ended
  int handles = 0;
  std::map<std::tuple<int, const Stream*, Library>, c10::DataPtr> held;
};

Workspaces& workspaces() {
  static auto* all = new Workspaces();  // never destroyed: threads may end later
  return *all;
}

std::atomic<int64_t> cleared{0};  // how often all workspaces were freed

// The handle of a thread, and what its latest products used.
struct Handle {
  int number;
  int64_t age = -1;  // `cleared` when the streams were noted
  const Stream* ready[2] = {};

  Handle() {
    std::lock_guard<std::mutex> lock(workspaces().mutex);
    auto& idle = workspaces().idle;
    number = idle.empty() ? workspaces().handles++ : *idle.begin();
    idle.erase(number);
  }
  ~Handle() {
    std::lock_guard<std::mutex> lock(workspaces().mutex);
    workspaces().idle.insert(number);
  }
};

// The name without namespace and overload, of an operator in place without its underscore.
std::string product_name(const std::string& name) {
  std::string base = base_name(name);
  if (base.size() > 1 && base.back() == '_') base.pop_back();
  return base;
}

// The size that CUBLAS_WORKSPACE_CONFIG asks for, as pairs ":KiB:count"; the chip's own size without one.
uint64_t blas_bytes() {
  const char* text = std::getenv("CUBLAS_WORKSPACE_CONFIG");
  if (!text) return config().blas_bytes;
  uint64_t total = 0, pairs = 0;
  for (const char* at = std::strchr(text, ':'); at;) {
    unsigned int kib = 0, count = 0;
    int read = 0;
    bool is_pair = std::sscanf(at, ":%u:%u%n", &kib, &count, &read) == 2;
    total += is_pair ? uint64_t(kib) * 1024 * count : 0;
    pairs += is_pair;
    at = std::strchr(at + (is_pair ? read : 1), ':');
  }
  return pairs ? total : config().blas_bytes;
}

// True if torch's CUDA build computes a product with cublasLt: a bias with one element per column, or narrow elements.
bool uses_blas_lt(const Call& call) {
  std::string base = product_name(call.op.name);
  if (base == "_addmm_activation" || base == "_scaled_mm" || base == "_int_mm") return true;
  if (base != "addmm" || call.slots.size() < 3) return false;
  const at::Tensor &bias = *call.slots[0].tensor, &right = *call.slots[2].tensor;
  return bias.dim() == 1 && right.dim() == 2 && bias.size(0) == right.size(1) && right.size(0) > 1 && right.size(1) > 1;
}

void keep(Handle& handle, const Stream& stream, Library library) {
  const Stream*& ready = handle.ready[size_t(library)];
  if (C10_LIKELY(ready == &stream)) return;
  uint64_t bytes = library == Library::Blas ? blas_bytes() : config().blas_lt_bytes;
  if (bytes == 0) return;
  auto key = std::make_tuple(handle.number, &stream, library);
  std::unique_lock<std::mutex> lock(workspaces().mutex);
  if (!workspaces().held.count(key)) {
    lock.unlock();  // no other thread has this handle; see Note [No waiting under the allocator's mutex]
    set_purpose(kWorkspace, c10::ScalarType::Undefined, {});
    auto device = stream.id.device_index();
    c10::DataPtr memory = allocate_on(device, bytes);
    record_owner(int64_t(reinterpret_cast<uintptr_t>(memory.get())), kOwnedByBlas, -1, 1, device);
    lock.lock();
    workspaces().held.emplace(key, std::move(memory));
  }
  ready = &stream;
}

}  // namespace

bool uses_blas(const std::string& name) {
  static const auto* names =
      new std::set<std::string>{"mm",  "addmm", "_addmm_activation", "bmm",     "baddbmm", "addbmm", "mv", "addmv",
                                "dot", "vdot",  "_scaled_mm",        "_int_mm", "linear"};
  return name.compare(0, 6, "aten::") == 0 && names->count(product_name(name)) != 0;
}

// The handle of this thread, which forgets what it has used when all workspaces are freed.
Handle& current_handle() {
  thread_local Handle handle;
  int64_t age = cleared.load(std::memory_order_acquire);
  if (C10_UNLIKELY(handle.age != age)) handle.ready[0] = handle.ready[1] = nullptr;
  handle.age = age;
  return handle;
}

void keep_workspaces(const Call& call) {
  if (C10_LIKELY(!config().blas_bytes && !config().blas_lt_bytes)) return;
  Handle& handle = current_handle();
  keep(handle, *call.stream, Library::Blas);
  if (handle.ready[1] != call.stream && uses_blas_lt(call)) keep(handle, *call.stream, Library::BlasLt);
}

void keep_workspaces_of(const std::string& op, bool has_bias, c10::DeviceIndex device) {
  if (!uses_blas(op) || (!config().blas_bytes && !config().blas_lt_bytes)) return;
  const Stream& stream = current_stream(device);
  Handle& handle = current_handle();
  keep(handle, stream, Library::Blas);
  if (has_bias) keep(handle, stream, Library::BlasLt);
}

void clear_workspaces() {
  decltype(Workspaces::held) past;  // freed without the mutex
  {
    std::lock_guard<std::mutex> lock(workspaces().mutex);
    past.swap(workspaces().held);
    cleared.fetch_add(1, std::memory_order_acq_rel);
  }
}

}  // namespace bringup
