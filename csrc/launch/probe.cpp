#include "launch/probe.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/MemoryOverlap.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/DefaultDtype.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <mutex>
#include <numeric>
#include <unordered_map>

#include "launch/dry.h"
#include "launch/worker.h"
#include "launch/learn.h"

namespace bringup {

using c10::DispatchKey;
using c10::DispatchKeySet;
using c10::IValue;

// Note [Refused at the call]
// A kernel that refused its arguments on the stream would raise long after the call. Other devices raise at the line, and leave
// all tensors unchanged. torch's meta kernels accept more than CPU kernels do. So the first launch of a signature is tried on the
// host: the CPU kernel runs on scratch tensors with the call's dtypes, strides and overlaps, but other content. Small calls keep
// their sizes. Large sizes are cut, and such a trial runs once per operator, dtypes, orders of strides and equal sizes. If a
// trial passes, the call is legal, and the kernel's results correct the meta kernel's promise. If it fails for the dtypes, the
// call is refused. Any other failure may be caused by the content or by the cut. Then the launch itself decides, while the host
// waits.
namespace {

constexpr size_t kWhole = size_t(64) << 10;  // up to this many bytes, sizes are not cut; such a trial takes about 10 us
constexpr int64_t kCut = 4;                  // larger sizes are cut

// The bytes of a storage that a call uses. Its views may be small and far apart.
struct Span {
  size_t first = std::numeric_limits<size_t>::max(), last = 0;

  void add(size_t start, size_t bytes) {
    first = std::min(first, start);
    last = std::max(last, start + bytes);
  }
};

size_t offset_of(const Signature& signature, const Slots& slots, size_t slot) {
  return size_t(slots[slot].tensor->storage_offset()) * c10::elementSize(signature.inputs[slot].dtype);
}

// The bytes that a trial with the full sizes takes.
size_t bytes_of(const Signature& signature, const Results& results, const Slots& slots) {
  size_t bytes = 0;
  std::vector<Span> spans(signature.storage_written.size());
  for (size_t i = 0; i < signature.inputs.size(); ++i) {
    if (signature.storage_of[i] < 0)
      bytes += signature.inputs[i].nbytes;
    else
      spans[size_t(signature.storage_of[i])].add(offset_of(signature, slots, i), signature.inputs[i].nbytes);
  }
  for (const Span& span : spans) bytes += span.last - std::min(span.first, span.last);
  for (const TensorMeta& meta : results.outputs) bytes += meta.nbytes;
  for (const auto& [slot, meta] : results.resized) bytes += meta.nbytes;
  return bytes;
}

// Makes the strides dense, in the order of the strides `like`. Expanded dimensions stay expanded. Of equal strides, those of
// one element come first, as in tensors that are dense: is_channels_last_strides looks at them, too.
void lay_out(TensorMeta& meta, c10::IntArrayRef like) {
  std::vector<size_t> order(meta.sizes.size());
  std::iota(order.rbegin(), order.rend(), 0);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return std::make_pair(like[a], meta.sizes[a] > 1) < std::make_pair(like[b], meta.sizes[b] > 1);
  });
  int64_t next = 1;
  for (size_t dim : order) {
    if (meta.strides[dim] == 0 && meta.sizes[dim] > 1) continue;
    meta.strides[dim] = next;
    next *= std::max<int64_t>(meta.sizes[dim], 1);
  }
  meta.nbytes = at::detail::computeStorageNbytes(meta.sizes, meta.strides, c10::elementSize(meta.dtype));
}

// True if an argument is a list of sizes; lists of dimensions are never cut.
bool has_sizes(const Op& op, size_t argument, const IValue& value) {
  return value.isIntList() && op.handle.schema().arguments()[argument].name().rfind("dim", 0) != 0;
}

// Cuts large sizes to 8, 12, 16, ... Equal sizes stay equal, and unequal ones stay unequal and in their order. If a call has very
// many different sizes, all become one size. Channels in groups stay as they are, since the number of groups divides them, and
// another size may become equal to theirs.
class Cut {
 public:
  Cut(const Signature& signature, const IValue* arguments) {
    keep_channels(*signature.op, arguments);
    for (const TensorMeta& meta : signature.inputs) add(meta.sizes);
    for (size_t i = 0; i < signature.op->args.size(); ++i)
      if (has_sizes(*signature.op, i, arguments[i])) add(arguments[i].toIntVector());
    std::sort(large_.begin(), large_.end());
    large_.erase(std::unique(large_.begin(), large_.end()), large_.end());
  }

  int64_t operator()(int64_t size) const {
    if (size <= kCut || std::count(kept_.begin(), kept_.end(), size)) return size;
    if (large_.size() > kMany) return kCut;
    return kCut * (2 + std::lower_bound(large_.begin(), large_.end(), size) - large_.begin());
  }

  TensorMeta operator()(const TensorMeta& meta) const {
    TensorMeta small = meta;
    for (int64_t& size : small.sizes) size = (*this)(size);
    lay_out(small, meta.strides);
    return small;
  }

 private:
  static constexpr size_t kMany = 8;
  std::vector<int64_t> large_, kept_;

  void keep_channels(const Op& op, const IValue* arguments) {
    const auto& formal = op.handle.schema().arguments();
    bool grouped = false;
    for (size_t i = 0; i < op.args.size(); ++i)
      grouped |= formal[i].name() == "groups" && arguments[i].isInt() && arguments[i].toInt() > 1;
    for (size_t i = 0; grouped && i < op.args.size(); ++i) {
      if (!arguments[i].isTensor() || !arguments[i].toTensor().defined()) continue;
      c10::IntArrayRef sizes = arguments[i].toTensor().sizes();
      if (sizes.size() == 1 || (sizes.size() > 1 && formal[i].name() == "weight")) kept_.push_back(sizes[0]);
      if (sizes.size() > 1) kept_.push_back(sizes[1]);
    }
  }

  void add(c10::IntArrayRef sizes) {
    for (int64_t size : sizes)
      if (size > kCut) large_.push_back(size);
  }
};

// The settings of a trial.
struct Manner {
  bool whole;                                       // sizes are not cut
  int value;                                        // the value of all elements
  c10::ScalarType as = c10::ScalarType::Undefined;  // if defined, replaces the tensors' dtypes
  bool keeps_integers = false;                      // except int64 and bool, which may be indices and masks
};

// The scratch tensors of a trial.
class Scratch {
 public:
  Scratch(const Signature& signature, const Slots& slots, const Manner& manner, const Cut& cut)
      : metas_(signature.inputs),
        signature_(signature),
        slots_(slots),
        cut_(cut),
        whole_(manner.whole),
        value_(manner.value),
        storages_(signature.storage_written.size()) {
    for (TensorMeta& meta : metas_) {
      bool integer = meta.dtype == c10::kLong || meta.dtype == c10::kBool;
      if (manner.as != c10::ScalarType::Undefined && meta.defined && !(manner.keeps_integers && integer)) meta.dtype = manner.as;
    }
    for (size_t i = 0; whole_ && i < slots.size(); ++i) {
      if (signature.storage_of[i] < 0) continue;
      Storage& storage = storages_[size_t(signature.storage_of[i])];
      size_t first = offset_of(signature, slots, i), start = first / kAligned * kAligned;
      storage.span.add(start, first - start + metas_[i].nbytes);
    }
  }

  at::Tensor tensor(size_t slot) {
    const at::Tensor& original = *slots_[slot].tensor;
    bool on_host = signature_.storage_of[slot] < 0;
    if (on_host && (whole_ || !original.defined() || original.dim() == 0)) return original;
    const TensorMeta& meta = metas_[slot];
    if (!whole_) {
      TensorMeta small = cut_(meta);
      return alias(filled(meta.dtype, small.nbytes), small, 0);
    }
    Storage& storage = storages_[size_t(signature_.storage_of[slot])];
    if (!storage.memory) storage.memory = filled(meta.dtype, storage.span.last - storage.span.first);
    size_t offset = offset_of(signature_, slots_, slot) - storage.span.first;
    return alias(storage.memory, meta, int64_t(offset / c10::elementSize(meta.dtype)));
  }

 private:
  static constexpr size_t kAligned = 16;
  struct Storage {
    Span span;  // used by the call's tensors
    c10::intrusive_ptr<c10::StorageImpl> memory;
  };
  std::vector<TensorMeta> metas_;  // before the call: the kernel itself resizes tensors and chooses strides
  const Signature& signature_;
  const Slots& slots_;
  const Cut& cut_;
  bool whole_;
  int value_;
  std::vector<Storage> storages_;

  c10::intrusive_ptr<c10::StorageImpl> filled(c10::ScalarType dtype, size_t bytes) const {
    auto* allocator = c10::GetAllocator(c10::kCPU);
    auto memory = c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), c10::SymInt(int64_t(bytes)),
                                                        allocator->allocate(bytes), allocator, /*resizable=*/true);
    if (bytes > 0) std::memset(memory->mutable_data(), 0, bytes);
    if (value_ == 0) return memory;
    TensorMeta flat;
    flat.defined = true;
    flat.dtype = dtype;
    flat.sizes.assign(1, int64_t(bytes / c10::elementSize(dtype)));
    flat.strides.assign(1, 1);
    alias(memory, flat, 0).fill_(value_);
    return memory;
  }
};

struct Try {
  std::exception_ptr refusal;  // the CPU kernel's error; null if it accepts the call
  Stack results;
  std::vector<at::Tensor> inputs;
  std::vector<TensorMeta> before;  // the inputs' metadata before the call
};

// Drops warnings about resized outputs: the meta kernel has given them, and cut sizes cause others.
struct NoResize final : c10::WarningHandler {
  c10::WarningHandler* next = c10::WarningUtils::get_warning_handler();

  void process(const c10::Warning& warning) override {
    if (warning.msg().find("was resized since it had shape") == std::string::npos) next->process(warning);
  }
};

Try attempt(const Signature& signature, const Slots& slots, const IValue* arguments, const Manner& manner) {
  Try outcome;
  NoResize handler;
  c10::WarningUtils::WarningHandlerGuard guard(&handler);
  try {
    WithoutPython quietly;
    Cut cut(signature, arguments);
    Scratch scratch(signature, slots, manner, cut);
    at::Generator generator;
    for (const ArgInfo& argument : signature.op->args)
      if (argument.kind == ArgKind::Generator) generator = at::detail::createCPUGenerator(0);
    for (size_t i = 0; i < slots.size(); ++i) {
      int32_t same = signature.same_as[i];
      outcome.inputs.push_back(same >= 0 ? outcome.inputs[size_t(same)] : scratch.tensor(i));
      outcome.before.push_back(signature.storage_of[i] < 0 ? TensorMeta() : meta_of(outcome.inputs.back()));
    }
    Stack stack =
        rebuild(*signature.op, arguments, c10::kCPU, &generator, [&](int slot) { return outcome.inputs[size_t(slot)]; });
    if (!manner.whole)
      for (size_t i = 0; i < stack.size(); ++i) {
        if (!has_sizes(*signature.op, i, stack[i])) continue;
        std::vector<int64_t> sizes = stack[i].toIntVector();
        for (int64_t& size : sizes) size = cut(size);
        stack[i] = std::move(sizes);
      }
    signature.op->handle.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), &stack);
    outcome.results = std::move(stack);
  } catch (...) {
    outcome.refusal = std::current_exception();
  }
  return outcome;
}

bool same_kind(const TensorMeta& promised, const TensorMeta& returned) {
  if (!promised.defined) return true;  // masked out
  return returned.defined && returned.dtype == promised.dtype && returned.sizes.size() == promised.sizes.size();
}

// True if the strides have the same order. Dimensions of one element are not compared.
bool same_order(const TensorMeta& promised, const TensorMeta& returned) {
  for (size_t a = 0; a < promised.sizes.size(); ++a)
    for (size_t b = 0; b < a; ++b) {
      bool tell = promised.sizes[a] > 1 && promised.sizes[b] > 1 && returned.sizes[a] > 1 && returned.sizes[b] > 1;
      if (tell && (promised.strides[a] < promised.strides[b]) != (returned.strides[a] < returned.strides[b])) return false;
    }
  return true;
}

// Corrects a promise by what the kernel returned: the whole metadata, or only the order of the strides if sizes were cut. False
// if the kernel returned another dtype or number of dimensions.
bool correct(Results& promised, const Results& returned, bool whole) {
  bool same = promised.outputs.size() == returned.outputs.size();
  for (size_t i = 0; same && i < promised.outputs.size(); ++i) {
    TensorMeta& output = promised.outputs[i];
    same = same_kind(output, returned.outputs[i]) && (!whole || !output.defined || output.sizes == returned.outputs[i].sizes);
    if (same && !whole && output.defined && !same_order(output, returned.outputs[i]))
      lay_out(output, returned.outputs[i].strides);
  }
  if (!whole)
    for (auto& [slot, meta] : promised.resized)
      for (const auto& [same_slot, actual] : returned.resized)
        if (slot == same_slot && same_kind(meta, actual) && !same_order(meta, actual)) lay_out(meta, actual.strides);
  if (whole) promised = returned;
  return same;
}

// True if the refusal is of this kind and contains these words.
template <class Kind>
bool is_a(const std::exception_ptr& refusal, const char* words = "") {
  try {
    std::rethrow_exception(refusal);
  } catch (const Kind& error) {
    return error.msg().find(words) != std::string::npos;
  } catch (...) {
    return false;
  }
}

// "gt" not implemented for 'ComplexFloat': independent of content and sizes.
bool is_about_dtypes(const std::exception_ptr& refusal) { return is_a<c10::NotImplementedError>(refusal); }

// A dimension that a tensor does not have, independent of sizes. The words are those of c10::maybe_wrap_dim.
bool is_about_dimensions(const std::exception_ptr& refusal) { return is_a<c10::IndexError>(refusal, "Dimension out of range"); }

// For example, a matrix that cannot be inverted.
bool is_about_content(const std::exception_ptr& refusal) { return is_a<c10::LinAlgError>(refusal); }

// True if a written argument overlaps itself, independent of sizes.
bool is_about_overlap(const Signature& signature, const Slots& slots) {
  for (size_t i = 0; i < slots.size(); ++i)
    if (signature.written[i] && at::has_internal_overlap(*slots[i].tensor) == at::MemOverlap::Yes) return true;
  return false;
}

// The kinds of calls that a kernel has accepted, with what it returned. A kind is an operator with its dtypes, cut sizes, orders
// of strides, expanded dimensions, integers and kinds of arguments, as a hash.
struct Accepted {
  std::mutex mutex;
  std::unordered_map<uint64_t, Results> kinds;

  // Null if no kernel has accepted such a call. Results are never replaced.
  const Results* find(uint64_t kind) {
    std::lock_guard<std::mutex> lock(mutex);
    auto found = kinds.find(kind);
    return found == kinds.end() ? nullptr : &found->second;
  }
  void add(uint64_t kind, Results returned) {
    std::lock_guard<std::mutex> lock(mutex);
    kinds.emplace(kind, std::move(returned));
  }
};

Accepted& accepted() {
  static auto* all = new Accepted();
  return *all;
}

uint64_t kind_of(const Signature& signature, const IValue* arguments) {
  Cut cut(signature, arguments);
  uint64_t hash = 0;
  auto add = [&](uint64_t word) {
    hash = (hash ^ word) * 0x9E3779B97F4A7C15ull;
    hash ^= hash >> 29;
  };
  add(reinterpret_cast<uintptr_t>(signature.op));
  add(uint64_t(c10::get_default_dtype_as_scalartype()));
  for (size_t i = 0; i < signature.inputs.size(); ++i) {
    const TensorMeta& meta = signature.inputs[i];
    add(uint64_t(meta.defined) | uint64_t(signature.storage_of[i] >= 0) << 1 | uint64_t(meta.conjugate) << 2 |
        uint64_t(meta.dtype) << 8 | uint64_t(meta.sizes.size()) << 16);
    if (!meta.defined) continue;
    TensorMeta small = cut(meta);
    for (int64_t size : small.sizes) add(uint64_t(size));
    for (int64_t stride : small.strides) add(uint64_t(stride));
  }
  c10::ScalarType first = signature.inputs.empty() ? c10::ScalarType::Undefined : signature.inputs[0].dtype;
  for (size_t i = 0; i < signature.op->args.size(); ++i) {
    const IValue& value = arguments[i];
    add(overflow_of(*signature.op, first, arguments, i));
    if (value.isString())
      add(std::hash<std::string>()(value.toStringRef()));
    else if (value.isBool())
      add(uint64_t(value.toBool()) + 2);
    else if (value.isInt())  // may be a dimension, or the k of topk
      add(uint64_t(value.toInt()) << 8 | 7);
    else if (value.isIntList())
      for (int64_t item : value.toIntVector()) add(uint64_t(has_sizes(*signature.op, i, value) ? cut(item) : item));
    else if (value.isList())
      add(value.toListRef().size() << 8 | 5);
    else
      add(uint64_t(value.isNone()) << 8 | uint64_t(value.isDouble()) << 9 | uint64_t(value.isComplexDouble()) << 10 | 6);
  }
  return hash;
}

// True if a written argument partly overlaps another one. A trial with cut sizes would not show this.
bool overlaps_partly(const Op& op, const Slots& slots) {
  for (size_t i = 0; i < slots.size(); ++i)
    for (size_t j = 0; j < i; ++j) {
      bool written = op.args[size_t(slots[i].argument)].written || op.args[size_t(slots[j].argument)].written;
      const at::Tensor &a = *slots[i].tensor, &b = *slots[j].tensor;
      if (written && a.defined() && b.defined() && at::get_overlap_status(a, b) == at::MemOverlapStatus::Partial) return true;
    }
  return false;
}

}  // namespace

Verdict judge(const Signature& signature, const Slots& slots, const IValue* arguments, Results& results) {
  Op& op = *signature.op;
  bool whole = bytes_of(signature, results, slots) <= kWhole;
  if (op.tried && !whole && pairs_matter(op, slots, signature.storage_written.size()) && overlaps_partly(op, slots))
    return Verdict::Doubtful;
  uint64_t kind = whole ? 0 : kind_of(signature, arguments);
  // Large results that only follow from scalars (arange) cannot be cut.
  if (!op.tried || (!whole && op.by_value)) return Verdict::Legal;
  if (const Results* returned = whole ? nullptr : accepted().find(kind)) {
    correct(results, *returned, whole);
    return Verdict::Legal;
  }
  auto in = [&](const Manner& manner) { return attempt(signature, slots, arguments, manner); };
  Try outcome = in({whole, op.content});
  if (outcome.refusal && op.content == 0) {
    Try again = in({whole, 1});
    if (!again.refusal) outcome = std::move(again);
  }
  if (outcome.refusal) {
    // In a dry run no launch follows. If a cut call fails but passes with other dtypes, its dtypes are refused. Complex dtypes
    // accept any scalar.
    auto passes_with_others = [&] {
      for (c10::ScalarType dtype : {c10::kFloat, c10::kComplexDouble})
        for (bool keeps_integers : {false, true})
          if (!in({whole, 0, dtype, keeps_integers}).refusal) return true;
      return false;
    };
    bool certain = is_about_dtypes(outcome.refusal) || is_about_dimensions(outcome.refusal) ||
                   is_about_overlap(signature, slots) ||
                   (is_dry() && !is_about_content(outcome.refusal) && (whole || passes_with_others()));
    if (certain) std::rethrow_exception(outcome.refusal);
    return is_dry() ? Verdict::Legal : Verdict::Doubtful;
  }
  std::optional<Results> returned = results_of(signature, outcome.results, outcome.inputs, outcome.before);
  bool alike = returned && correct(results, *returned, whole);
  if (!alike) op.trust_meta = false;
  if (!whole && alike) accepted().add(kind, std::move(*returned));
  return alike || (whole && returned) ? Verdict::Legal : Verdict::Unlike;
}

void accept(Signature& signature, const IValue* arguments, const Results& returned) {
  static std::mutex mutex;  // two threads may make the same call
  std::lock_guard<std::mutex> lock(mutex);
  if (!signature.doubtful) return;
  correct(signature, returned, false);
  accepted().add(kind_of(signature, arguments), returned);
  signature.doubtful = false;
}

}  // namespace bringup
