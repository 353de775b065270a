#include "launch/signature.h"

#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/MemoryOverlap.h>
#include <c10/core/DefaultDtype.h>
#include <c10/util/TypeCast.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <unordered_map>

#include "runtime/runtime.h"
#include "text.h"

namespace bringup {

using c10::IValue;

void collect(const Op& op, const IValue* arguments, Slots& slots) {
  for (size_t i = 0; i < op.args.size(); ++i) {
    const IValue& value = arguments[i];
    switch (op.args[i].kind) {
      case ArgKind::Tensor:
        if (value.isTensor()) slots.push_back({&value.toTensor(), int(i)});
        break;
      case ArgKind::Tensors:
      case ArgKind::OptionalTensors:
        if (value.isList())
          for (const IValue& element : value.toListRef())
            if (element.isTensor()) slots.push_back({&element.toTensor(), int(i)});
        break;
      default:
        break;
    }
  }
}

bool on_chip(const at::Tensor& tensor) { return tensor.defined() && tensor.device().type() == kChip; }

TensorMeta meta_of(const at::Tensor& tensor) {
  TensorMeta meta;
  if (!tensor.defined()) return meta;
  meta.defined = true;
  meta.conjugate = tensor.is_conj();
  meta.negative = tensor.is_neg();
  meta.dtype = tensor.scalar_type();
  meta.sizes.assign(tensor.sizes().begin(), tensor.sizes().end());
  meta.strides.assign(tensor.strides().begin(), tensor.strides().end());
  meta.nbytes = at::detail::computeStorageNbytes(tensor.sizes(), tensor.strides(), tensor.dtype().itemsize());
  return meta;
}

std::string text_of(const TensorMeta& meta) {
  Text text;
  text << c10::getDtypeNames(meta.dtype).first << "[";
  for (size_t i = 0; i < meta.sizes.size(); ++i) text << (i ? ", " : "") << meta.sizes[i];
  text << "]";
  return text.str();
}

void mark_conjugate(const at::Tensor& tensor, const TensorMeta& meta) {
  if (meta.conjugate) tensor.unsafeGetTensorImpl()->_set_conj(true);
  if (meta.negative) tensor.unsafeGetTensorImpl()->_set_neg(true);
}

namespace {

// Note [Two generations of signatures]
// The table must not grow in a program whose shapes keep changing. When the number of young signatures or of their tensors
// reaches its limit, they become the old generation, and the previous old generation is dropped. A signature that is used again
// becomes young. Pending launches keep theirs alive. A signature takes about 600 bytes, and 150 bytes for each tensor.
constexpr size_t kGeneration = 4096;
constexpr size_t kGenerationTensors = 400'000;
constexpr size_t kRecentTensors = 64;

// The storages of one call, numbered in order of appearance. From 16 storages on, a hash table with open addressing is used.
class CallStorages {
 public:
  void clear() {
    seen_.clear();
    table_.clear();
  }
  size_t size() const { return seen_.size(); }

  int number_of(const c10::StorageImpl* storage) {
    if (C10_UNLIKELY(seen_.size() >= kFew)) return look_up(storage);
    for (size_t i = 0; i < seen_.size(); ++i)
      if (seen_[i] == storage) return int(i);
    return append(storage);
  }

 private:
  static constexpr size_t kFew = 16;
  c10::SmallVector<const c10::StorageImpl*, kFew> seen_;
  std::vector<int32_t> table_;  // its size is a power of two; -1: empty

  C10_NOINLINE int look_up(const c10::StorageImpl* storage) {
    if (table_.size() < 2 * seen_.size() + 2) rehash();
    size_t slot = place(storage);
    if (table_[slot] >= 0) return table_[slot];
    return table_[slot] = append(storage);
  }
  int append(const c10::StorageImpl* storage) {
    seen_.push_back(storage);
    return int(seen_.size()) - 1;
  }
  size_t place(const c10::StorageImpl* storage) const {
    size_t slot = (reinterpret_cast<uintptr_t>(storage) >> 4) * 0x9E3779B97F4A7C15ull >> 20 & (table_.size() - 1);
    while (table_[slot] >= 0 && seen_[size_t(table_[slot])] != storage) slot = (slot + 1) & (table_.size() - 1);
    return slot;
  }
  void rehash() {
    table_.assign(std::max<size_t>(64, 2 * table_.size()), -1);
    for (size_t i = 0; i < seen_.size(); ++i) table_[place(seen_[i])] = int32_t(i);
  }
};

template <class From>
bool overflows(c10::ScalarType dtype, From value) {
  switch (dtype) {
#define BRINGUP_CASE(type, name) \
  case c10::ScalarType::name:    \
    return c10::overflows<type, From>(value);
    AT_FORALL_SCALAR_TYPES_AND7(Half, BFloat16, Bool, UInt16, UInt32, UInt64, Float8_e4m3fn, BRINGUP_CASE)
    BRINGUP_CASE(c10::complex<c10::Half>, ComplexHalf)
    BRINGUP_CASE(c10::complex<float>, ComplexFloat)
    BRINGUP_CASE(c10::complex<double>, ComplexDouble)
#undef BRINGUP_CASE
    default:
      return false;
  }
}

bool overflows(c10::ScalarType dtype, const IValue& scalar) {
  if (scalar.isComplexDouble()) return overflows(dtype, scalar.toComplexDouble());
  return scalar.isInt() ? overflows(dtype, scalar.toInt()) : overflows(dtype, scalar.toDouble());
}

// The dtype that CPU kernels compute in. at::toOpMathType does not accept unsigned dtypes.
c10::ScalarType computed_in(c10::ScalarType dtype) {
  if (dtype == c10::kComplexHalf) return c10::kComplexFloat;
  return c10::isReducedFloatingType(dtype) ? c10::kFloat : dtype;
}

// How two tensors of one storage overlap, as torch's checks of overlapping arguments distinguish it.
enum Overlap : uint64_t { kApart, kSameBytes, kPartly, kSameTensor };

Overlap overlap_of(const c10::TensorImpl* a, const c10::TensorImpl* b) {
  if (a == b) return kSameTensor;
  auto range = [](const c10::TensorImpl* tensor) {
    size_t item = tensor->itemsize();
    size_t first = size_t(tensor->storage_offset()) * item;
    return std::pair(first, first + at::detail::computeStorageNbytes(tensor->sizes(), tensor->strides(), item));
  };
  auto [first_a, last_a] = range(a);
  auto [first_b, last_b] = range(b);
  if (last_a <= first_b || last_b <= first_a) return kApart;
  return first_a == first_b && last_a == last_b ? kSameBytes : kPartly;
}

constexpr size_t kPaired = 16;

}  // namespace

uint64_t overflow_of(const Op& op, c10::ScalarType first, const IValue* arguments, size_t argument) {
  const IValue& scalar = arguments[argument];
  if (op.args[argument].kind != ArgKind::Scalar || op.by_value) return 0;
  if (scalar.isInt() && (scalar.toInt() == 0 || scalar.toInt() == 1)) return 0;  // in range of all dtypes
  if (!scalar.isInt() && !scalar.isDouble() && !scalar.isComplexDouble()) return 0;
  c10::ScalarType dtype = first;
  if (op.dtype_argument >= 0 && arguments[op.dtype_argument].isInt())
    dtype = c10::ScalarType(arguments[op.dtype_argument].toInt());
  if (!overflows(dtype, scalar)) return 0;
  return overflows(computed_in(dtype), scalar) ? 2 : 1;
}

bool pairs_matter(const Op& op, const Slots& slots, size_t storages) {
  return op.writes && storages < slots.size() && slots.size() <= kPaired;
}

void refuse_overlaps(const Signature& signature, const Slots& slots) {
  const Op& op = *signature.op;
  if (!op.writes || slots.size() <= kPaired || signature.storage_written.size() >= slots.size()) return;
  std::vector<std::pair<size_t, size_t>> lists;  // first slot and length
  for (size_t i = 0; i < slots.size(); ++i)
    if (i == 0 || slots[i].argument != slots[i - 1].argument)
      lists.emplace_back(i, 1);
    else
      ++lists.back().second;
  for (auto [written, length] : lists)
    for (auto [other, other_length] : lists)
      for (size_t i = 0; signature.written[written] && other != written && other_length == length && i < length; ++i)
        if (signature.storage_of[written + i] >= 0 && signature.storage_of[written + i] == signature.storage_of[other + i])
          at::assert_no_partial_overlap(*slots[written + i].tensor, *slots[other + i].tensor);
}

namespace {

struct KeyBuilder {
  c10::SmallVector<uint64_t, 96> words;
  CallStorages storages;

  void add(uint64_t word) { words.push_back(word); }
  void add_double(double value) {
    uint64_t bits;
    std::memcpy(&bits, &value, 8);
    add(bits);
  }

  int storage_index(const at::Tensor& tensor) {
    return storages.number_of(tensor.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl());
  }

  void add_tensor(const at::Tensor& tensor) {
    if (!tensor.defined()) return add(1);
    const auto* impl = tensor.unsafeGetTensorImpl();
    bool chip = on_chip(tensor);
    int storage = chip ? storage_index(tensor) : 0;
    auto sizes = impl->sizes(), strides = impl->strides();
    TORCH_CHECK(sizes.size() < 256, "a tensor on chip has at most 255 dimensions, got ", sizes.size());
    add(2 | uint64_t(chip) << 8 | uint64_t(impl->is_wrapped_number()) << 9 | uint64_t(tensor.is_conj()) << 10 |
        uint64_t(tensor.is_neg()) << 11 | uint64_t(tensor.scalar_type()) << 16 | uint64_t(sizes.size()) << 24 |
        uint64_t(storage) << 32);
    for (int64_t size : sizes) add(uint64_t(size));
    for (int64_t stride : strides) add(uint64_t(stride));
  }

  // Compares all pairs of a few tensors. For lists, torch's kernels check one tensor after the other.
  void add_overlaps(const Slots& slots) {
    for (size_t j = 1; j < slots.size(); ++j)
      for (size_t i = 0; i < j; ++i) {
        const at::Tensor &a = *slots[i].tensor, &b = *slots[j].tensor;
        bool shared = on_chip(a) && on_chip(b) && storage_index(a) == storage_index(b);
        add(shared ? overlap_of(a.unsafeGetTensorImpl(), b.unsafeGetTensorImpl()) : kApart);
      }
  }

  void add_text(const std::string& text) {
    add(3 | uint64_t(text.size()) << 8);
    for (size_t i = 0; i < text.size(); i += 8) {
      uint64_t word = 0;
      std::memcpy(&word, text.data() + i, std::min<size_t>(8, text.size() - i));
      add(word);
    }
  }

  void add_value(const IValue& value, bool by_value) {
    if (value.isNone()) return add(4);
    if (value.isInt()) {
      add(5);
      if (by_value) add(uint64_t(value.toInt()));
    } else if (value.isBool()) {
      add(by_value ? 6 | uint64_t(value.toBool()) << 8 : 6);
    } else if (value.isDouble()) {
      add(7);
      if (by_value) add_double(value.toDouble());
    } else if (value.isComplexDouble()) {
      add(8);
      if (by_value) {
        add_double(value.toComplexDouble().real());
        add_double(value.toComplexDouble().imag());
      }
    } else if (value.isString()) {
      add_text(value.toStringRef());
    } else if (value.isTensor()) {
      add_tensor(value.toTensor());
    } else if (value.isList()) {
      auto elements = value.toListRef();
      add(9 | uint64_t(elements.size()) << 8);
      for (const IValue& element : elements) add_value(element, by_value);
    } else if (value.isDevice()) {
      add(10);
    } else if (value.isGenerator()) {
      add(11);
    } else {
      add(12);
    }
  }
};

uint64_t hash_of(const uint64_t* words, size_t count) {
  uint64_t hash = 0x9E3779B97F4A7C15ull ^ count;
  for (size_t i = 0; i < count; ++i) {
    __uint128_t product = __uint128_t(hash ^ words[i]) * 0xD6E8FEB86659FD93ull;
    hash = uint64_t(product) ^ uint64_t(product >> 64);
  }
  return hash;
}

struct SignatureTable {
  using ByHash = std::unordered_multimap<uint64_t, SignaturePtr>;
  std::mutex mutex;
  ByHash young, old;
  size_t young_tensors = 0;
  int64_t next_id = 0;

  template <class Matches>
  SignaturePtr find(uint64_t hash, Matches matches) {
    for (ByHash* generation : {&young, &old}) {
      auto [first, last] = generation->equal_range(hash);
      for (auto it = first; it != last; ++it) {
        if (!matches(it->second)) continue;
        SignaturePtr signature = it->second;
        if (generation == &old) {
          old.erase(it);
          add(signature);
        }
        return signature;
      }
    }
    return {};
  }

  void add(const SignaturePtr& signature) {
    if (young.size() >= kGeneration || young_tensors > kGenerationTensors) {
      old = std::move(young);
      young.clear();
      young_tensors = 0;
    }
    young_tensors += signature->inputs.size();
    young.emplace(signature->hash, signature);
  }
};

SignatureTable& table() {
  static auto* all = new SignatureTable();
  return *all;
}

bool matches(const SignaturePtr& signature, uint64_t hash, const KeyBuilder& key) {
  return signature && signature->hash == hash && signature->key.size() == key.words.size() &&
         std::memcmp(signature->key.data(), key.words.data(), key.words.size() * 8) == 0;
}

// True if an index is a mask. Only then does the shape of an indexing operator's result depend on data.
bool has_mask(const Signature& signature) {
  for (size_t i = 1; i < signature.inputs.size(); ++i)
    if (signature.inputs[i].dtype == c10::kBool || signature.inputs[i].dtype == c10::kByte) return true;
  return false;
}

int rank(c10::ScalarType dtype) {
  if (c10::isComplexType(dtype)) return 3;
  if (c10::isFloatingType(dtype)) return 2;
  return dtype == c10::kBool ? 0 : 1;
}

// The same rule as bringup.cost.signature.Signature.dtype.
c10::ScalarType deciding_dtype(const Slots& slots) {
  c10::ScalarType deciding = c10::ScalarType::Undefined;
  for (bool scalars : {false, true}) {
    for (const Slot& slot : slots) {
      if (!on_chip(*slot.tensor) || (slot.tensor->dim() == 0) != scalars) continue;
      c10::ScalarType dtype = slot.tensor->scalar_type();
      if (deciding == c10::ScalarType::Undefined || rank(dtype) > rank(deciding)) deciding = dtype;
    }
    if (deciding != c10::ScalarType::Undefined) break;
  }
  return deciding;
}

}  // namespace

uint8_t tf32_switches() {
  using Backend = at::Float32Backend;
  using Kind = at::Float32Op;
  if (at::NoTF32Guard::should_disable_tf32()) return 0;
  const at::Context& context = at::globalContext();
  auto bit = [&](Kind kind, uint8_t value) {
    return context.float32Precision(Backend::CUDA, kind) == at::Float32Precision::TF32 ? value : uint8_t(0);
  };
  return bit(Kind::MATMUL, kTf32Matmul) | bit(Kind::CONV, kTf32Convolution) | bit(Kind::RNN, kTf32Rnn);
}

namespace {

uint8_t attention_switches() {
  static const char* last = std::getenv("TORCH_CUDNN_SDPA_DEPRIORITIZED");  // torch also reads it once
  bool deprioritized = last && last == std::string("1");
  return deprioritized || !at::globalContext().userEnabledCuDNNSDP() ? kNoCudnnAttention : uint8_t(0);
}

SignaturePtr new_signature(Op& op, const Slots& slots, uint64_t hash, KeyBuilder& key) {
  auto signature = c10::make_intrusive<Signature>();
  signature->op = &op;
  signature->hash = hash;
  signature->key.assign(key.words.begin(), key.words.end());
  signature->storage_written.resize(key.storages.size());
  for (const Slot& slot : slots) {
    bool written = op.args[size_t(slot.argument)].written;
    int32_t storage = on_chip(*slot.tensor) ? int32_t(key.storage_index(*slot.tensor)) : -1;
    signature->inputs.push_back(meta_of(*slot.tensor));
    signature->written.push_back(written);
    signature->storage_of.push_back(storage);
    if (written && storage >= 0) signature->storage_written[size_t(storage)] = true;
    int32_t same = -1;
    if (pairs_matter(op, slots, key.storages.size()))
      for (const Slot* other = slots.begin(); other != &slot && same < 0; ++other)
        if (on_chip(*slot.tensor) && slot.tensor->is_same(*other->tensor)) same = int32_t(other - slots.begin());
    signature->same_as.push_back(same);
    signature->has_same |= same >= 0;
  }
  signature->dtype = deciding_dtype(slots);
  if (op.synchronous && !(op.masks_decide && !has_mask(*signature))) signature->state = Signature::Synchronous;
  return signature;
}

}  // namespace

SignaturePtr intern(Op& op, const Slots& slots, const IValue* arguments) {
  struct Mine {
    KeyBuilder key;
    std::array<SignaturePtr, 2048> recent;  // signatures of few tensors, so that this cache stays small
  };
  static thread_local Mine mine;
  auto& [key, recent] = mine;
  key.words.clear();
  key.storages.clear();
  key.add(reinterpret_cast<uintptr_t>(&op));
  uint8_t switches = op.multiplies ? tf32_switches() : op.attends ? attention_switches() : uint8_t(0);
  key.add(uint64_t(c10::get_default_dtype_as_scalartype()) | uint64_t(at::globalContext().deterministicAlgorithms()) << 8 |
          uint64_t(switches) << 16);
  c10::ScalarType first = slots.empty() ? c10::ScalarType::Undefined : slots[0].tensor->scalar_type();
  for (size_t i = 0; i < op.args.size(); ++i) {
    if (op.args[i].kind == ArgKind::Tensor && arguments[i].isTensor())
      key.add_tensor(arguments[i].toTensor());
    else
      key.add_value(arguments[i], op.by_value || op.args[i].kind != ArgKind::Scalar);
    if (uint64_t overflow = overflow_of(op, first, arguments, i)) key.add(12 + overflow);
  }
  if (pairs_matter(op, slots, key.storages.size())) key.add_overlaps(slots);
  uint64_t hash = hash_of(key.words.data(), key.words.size());
  SignaturePtr of_many;
  SignaturePtr& slot = slots.size() <= kRecentTensors ? recent[hash % recent.size()] : of_many;
  if (matches(slot, hash, key)) return slot;
  std::lock_guard<std::mutex> lock(table().mutex);
  slot = table().find(hash, [hash, &key = key](const SignaturePtr& signature) { return matches(signature, hash, key); });
  if (!slot) {
    slot = new_signature(op, slots, hash, key);
    slot->switches = switches;
    slot->id = table().next_id++;
    table().add(slot);
  }
  return slot;
}

int64_t interned_signatures() {
  std::lock_guard<std::mutex> lock(table().mutex);
  return table().next_id;
}

}  // namespace bringup
