#include "launch/dry.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <torch/library.h>

#include <mutex>
#include <set>
#include <unordered_set>

#include "launch/launch.h"
#include "python/python.h"
#include "python/raised.h"

namespace bringup {

using c10::IValue;

std::atomic<int> dry_contexts{0};

// Note [What a dry run computes]
// Integers and booleans (token numbers, masks, positions, lengths) control programs; floating-point numbers rarely do. So a
// launch is computed as usual if all its device inputs are known integers or booleans, and its results are small. Small integer
// results that depend on floating-point numbers are replaced by stand-ins. An index is drawn from its range, with a seed. A
// comparison or conversion is computed as if each unknown number were the chosen value. Other integers are that value. Larger
// results are unknown themselves. A mask that depends on floating-point numbers selects all elements where it decides a size: the
// upper bound for work and memory. A floating-point number that the program reads is the chosen value, or drawn from [0, 1).
namespace {

constexpr size_t kComputed = size_t(16) << 20;  // bytes of a storage: the mask of 4,096 positions is computed
constexpr size_t kStandIn = size_t(64) << 10;   // bytes of a result that is replaced by a stand-in

struct Policy {
  std::mutex mutex;
  double value = 0;
  bool random = false;
  uint64_t draws = 0, seed = 0;
  std::set<std::pair<void*, int64_t>> noticed;
};

Policy& policy() {
  static auto* one = new Policy();
  return *one;
}

at::Generator next_generator() {
  std::lock_guard<std::mutex> lock(policy().mutex);
  return at::detail::createCPUGenerator(policy().seed * 0x9E3779B97F4A7C15ull + policy().draws++);
}

bool is_integer(c10::ScalarType dtype) { return c10::isIntegralType(dtype, /*includeBool=*/true); }

const at::Tensor* first_tensor(const Slots& slots) { return slots.empty() ? nullptr : slots[0].tensor; }

int64_t size_along(const at::Tensor& tensor, int64_t dim) {
  if (tensor.dim() == 0) return 1;
  return tensor.size(dim);
}

// The exclusive upper bound of the indices that an operator returns; 0 if it returns none.
int64_t index_bound(const Op& op, const Slots& slots, const IValue* arguments) {
  const at::Tensor* data = first_tensor(slots);
  if (!data || !data->defined()) return 0;
  std::string name = base_name(op.name);
  if (name == "multinomial") return size_along(*data, -1);
  if (name == "searchsorted" || name == "bucketize") return size_along(*(name[0] == 's' ? data : slots.back().tensor), -1) + 1;
  if (name.find("max_pool") != std::string::npos) {
    int64_t spatial = name.find("3d") != std::string::npos ? 3 : 2, bound = 1;
    for (int64_t i = 0; i < std::min(spatial, data->dim()); ++i) bound *= data->size(-1 - i);
    return bound;
  }
  static const auto* along = new std::unordered_set<std::string>{
      "argmax", "argmin", "argsort", "max",      "min",    "median",         "nanmedian",     "mode",
      "topk",   "sort",   "cummax",  "kthvalue", "cummin", "_cummax_helper", "_cummin_helper"};
  if (!along->count(name)) return 0;
  const auto& schema = op.handle.schema().arguments();
  for (size_t i = 0; i < schema.size(); ++i)
    if (schema[i].name() == "dim") return arguments[i].isInt() ? size_along(*data, arguments[i].toInt()) : data->numel();
  return 0;
}

// True for operators that may be computed on stand-ins.
bool is_comparison(const Op& op) {
  if (op.handle.hasTag(at::Tag::pointwise)) return true;
  std::string name = base_name(op.name);
  return name == "copy_" || name == "_to_copy" || name == "all" || name == "any" || name == "count_nonzero";
}

void fill(const at::Tensor& tensor, int64_t bound) {
  if (bound > 0)
    tensor.random_(0, bound, next_generator());
  else if (tensor.scalar_type() == c10::kBool)
    tensor.fill_(policy().value != 0);
  else
    tensor.fill_(policy().value);
}

// Fills a tensor in device memory, in stream order.
void fill_on_chip(const at::Tensor& tensor, int64_t bound, Stream& stream) {
  if (tensor.numel() == 0) return;
  void* home = tensor.storage().mutable_data();
  enqueue(stream, "a stand-in",
          [=, meta = meta_of(tensor), bytes = tensor.storage().nbytes(), offset = tensor.storage_offset(),
           index = stream.id.device_index()](bool should_execute) {
            if (!should_execute) return;
            Mapped memory(index, home);
            at::AutoDispatchBelowADInplaceOrView below;
            fill(alias(borrow(memory.host(), bytes), meta, offset), bound);
          });
}

at::Tensor everywhere(const at::Tensor& like, double value) {
  return at::full({}, value, like.options().device(c10::kCPU)).expand(like.sizes());
}

}  // namespace

bool is_dry_copy(size_t bytes) { return is_dry() && bytes > kComputed; }

bool dry_computes(const at::Tensor& tensor) {
  return tensor.defined() && is_integer(tensor.scalar_type()) && tensor.storage().nbytes() <= kComputed;
}

Content dry_content(const at::Tensor& tensor) {
  if (!tensor.defined() || !on_chip(tensor) || tensor.numel() == 0) return Content::Known;
  return dry_computes(tensor) ? content_of(tensor.storage().data_ptr()) : Content::Unknown;
}

void set_dry_content(const at::Tensor& tensor, Content content) {
  if (tensor.defined() && on_chip(tensor))
    set_content(tensor.storage().data_ptr(), dry_computes(tensor) ? content : Content::Unknown);
}

void compute_known(const SignaturePtr& interned, Stream& stream, const Slots& slots, const IValue* arguments,
                   at::ArrayRef<at::Tensor> outputs) {
  const Signature& signature = *interned;
  const Op& op = *signature.op;
  c10::SmallVector<at::Tensor, 4> results;  // those that a dry run computes
  size_t bytes = 0, input_bytes = 0;
  bool only = true;  // true if there are no other results
  auto result = [&](const at::Tensor& tensor) {
    if (!tensor.defined() || !on_chip(tensor)) return;
    if (dry_computes(tensor))
      results.push_back(tensor);
    else
      only = false;
    bytes += tensor.nbytes();
  };
  for (const at::Tensor& output : outputs) result(output);
  Content inputs = Content::Known;
  for (size_t i = 0; i < slots.size(); ++i) {
    if (signature.written[i]) result(*slots[i].tensor);
    if (signature.written[i] && op.overwrites) continue;
    inputs = std::min(inputs, dry_content(*slots[i].tensor));
    if (slots[i].tensor->defined()) input_bytes += slots[i].tensor->nbytes();
  }
  if (results.empty()) return;
  bool inputs_known = inputs != Content::Unknown;
  int64_t bound = inputs_known ? 0 : index_bound(op, slots, arguments);
  bool on_stand_ins = !inputs_known && only && bound == 0 && bytes <= kStandIn && input_bytes <= kStandIn && is_comparison(op);
  if ((inputs_known && only) || on_stand_ins) {
    auto launch = new_launch(interned, stream, slots, arguments);
    for (const at::Tensor& output : outputs) launch->outputs.push_back(storage_of(output));
    launch->guesses = inputs != Content::Known;
    if (on_stand_ins) {
      launch->host_tensors.resize(slots.size());
      for (size_t i = 0; i < slots.size(); ++i)
        if (!signature.written[i] && dry_content(*slots[i].tensor) == Content::Unknown)
          launch->host_tensors[i] = everywhere(*slots[i].tensor, policy().value);
    }
    draw(*launch);
    bringup::launch(stream, run_launch, launch.release(), op.name.c_str());
    for (const at::Tensor& tensor : results) set_dry_content(tensor, inputs_known ? inputs : Content::Guessed);
    return;
  }
  for (const at::Tensor& tensor : results) {
    bool filled = tensor.nbytes() <= kStandIn;
    bool index = bound > 0 && (tensor.scalar_type() == c10::kLong || tensor.scalar_type() == c10::kInt);
    if (filled) fill_on_chip(tensor, index ? bound : 0, stream);
    set_dry_content(tensor, !filled ? Content::Unknown : index ? Content::Drawn : Content::Guessed);
  }
}

Content replace_unknown(Launch& launch, const Slots& slots, bool replaced) {
  const Signature& signature = *launch.signature;
  Content worst = Content::Known;
  bool distinct = base_name(signature.op->name).find("unique") != std::string::npos;
  for (size_t i = 0; i < slots.size(); ++i) {
    const at::Tensor& tensor = *slots[i].tensor;
    Content content = signature.written[i] ? Content::Known : dry_content(tensor);
    worst = std::min(worst, content);
    bool mask = content == Content::Guessed && tensor.scalar_type() == c10::kBool;
    if (!replaced || (content != Content::Unknown && !mask)) continue;
    launch.host_tensors.resize(slots.size());
    launch.host_tensors[i] =
        distinct ? at::arange(tensor.numel(), at::kLong).to(tensor.scalar_type()).view(tensor.sizes()) : everywhere(tensor, 1);
  }
  return worst;
}

IValue stand_in_value(const IValue& value) {
  if (value.isBool()) return policy().value != 0;
  if (value.isInt()) return int64_t(policy().value);
  if (value.isDouble()) return policy().value;
  return value;
}

void fill_stand_in(const at::Tensor& tensor) {
  if (policy().random && !is_integer(tensor.scalar_type()))
    tensor.uniform_(0, 1, next_generator());
  else
    fill(tensor, 0);
}

void notice_read(const std::string& what) {
  Line line = current_line();
  {
    std::lock_guard<std::mutex> lock(policy().mutex);
    if (!policy().noticed.emplace(line.code, line.instruction).second) return;
  }
  try {
    std::string where = describe(line);
    raising_in_python([&] {
      Gil gil;
      call_python("bringup.device.dry", "notice", "ss", where.c_str(), what.c_str());
    });
  } catch (...) {  // in a strict run, or if warnings are errors, the next read of this line is refused too
    std::lock_guard<std::mutex> lock(policy().mutex);
    policy().noticed.erase({line.code, line.instruction});
    throw;
  }
}

TORCH_LIBRARY_FRAGMENT(bringup, m) {
  m.def("start_dry(float value, bool random, int seed) -> ()", [](double value, bool random, int64_t seed) {
    std::lock_guard<std::mutex> lock(policy().mutex);
    if (dry_contexts.fetch_add(1) > 0) return;
    policy().value = value;
    policy().random = random;
    policy().seed = uint64_t(seed);
    policy().draws = 0;
    policy().noticed.clear();
  });
  m.def("stop_dry() -> ()", [] { dry_contexts.fetch_sub(1); });
  m.def("is_dry() -> bool", [] { return is_dry(); });
}

}  // namespace bringup
