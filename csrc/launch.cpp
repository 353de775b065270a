#include "launch.h"

#include <ATen/EmptyTensor.h>
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/op_registration/adaption.h>
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/native/Resize.h>
#include <ATen/record_function.h>
#include <ATen/TensorUtils.h>
#include <ATen/ops/clone.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/DefaultDtype.h>
#include <c10/core/GradMode.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <mutex>
#include <sstream>
#include <unordered_map>
#include <unordered_set>

#include "generator.h"
#include "layouts.h"
#include "memory.h"
#include "profiler.h"

namespace bringup {
namespace {

using c10::DispatchKey;
using c10::DispatchKeySet;
using c10::IValue;

// ---- operators

// Take indices or lengths from the host, as torch's CUDA kernels do.
bool takes_host_tensors(const std::string& name) {
  static const auto* names = new std::unordered_set<std::string>{"aten::index.Tensor",
                                                                 "aten::index.Tensor_out",
                                                                 "aten::index_put_",
                                                                 "aten::index_put",
                                                                 "aten::index_put.out",
                                                                 "aten::_index_put_impl_",
                                                                 "aten::_index_put_impl",
                                                                 "aten::_unsafe_index.Tensor",
                                                                 "aten::_unsafe_index_put",
                                                                 "aten::_pack_padded_sequence",
                                                                 "aten::_pack_padded_sequence_backward",
                                                                 "aten::tensor_split.tensor_indices_or_sections",
                                                                 "aten::_ctc_loss.Tensor",
                                                                 "aten::_ctc_loss_backward.Tensor"};
  return names->count(name) != 0;
}

// Their output sizes depend on data although torch does not tag them so, or they hand out host values.
bool is_data_dependent(const std::string& name) {
  static const auto* names = new std::unordered_set<std::string>{"aten::_unique",
                                                                 "aten::_unique2",
                                                                 "aten::unique_dim",
                                                                 "aten::unique_consecutive",
                                                                 "aten::unique_dim_consecutive",
                                                                 "aten::nonzero",
                                                                 "aten::nonzero.out",
                                                                 "aten::masked_select",
                                                                 "aten::masked_select.out",
                                                                 "aten::bincount",
                                                                 "aten::repeat_interleave.Tensor",
                                                                 "aten::_pack_padded_sequence",
                                                                 "aten::_ctc_loss.Tensor",
                                                                 "aten::to_sparse"};
  return names->count(name) != 0;
}

// The meta kernel promises another dtype, size or number of tensors than the CPU kernel returns: learned by running.
bool has_other_meta(const std::string& name) {
  static const auto* names = new std::unordered_set<std::string>{"aten::_embedding_bag",
                                                                 "aten::_embedding_bag_forward_only",
                                                                 "aten::quantize_per_tensor",
                                                                 "aten::quantize_per_tensor.tensor_qparams",
                                                                 "aten::quantize_per_tensor.tensors",
                                                                 "aten::quantize_per_channel",
                                                                 "aten::quantize_per_tensor_dynamic",
                                                                 "aten::native_batch_norm.out",
                                                                 "aten::_native_batch_norm_legit.out",
                                                                 "aten::multilabel_margin_loss_forward",
                                                                 "aten::multilabel_margin_loss_forward.output"};
  return names->count(name) != 0;
}

// Outputs that live on the host even for a device's inputs.
bool is_host_output(const std::string& name, size_t index) { return name == "aten::_pack_padded_sequence" && index == 1; }

ArgKind kind_of(const c10::TypePtr& type) {
  auto inner = type;
  if (auto optional = inner->cast<c10::OptionalType>()) inner = optional->getElementType();
  if (inner->kind() == c10::TypeKind::TensorType) return ArgKind::Tensor;
  if (inner->kind() == c10::TypeKind::NumberType) return ArgKind::Scalar;
  if (inner->kind() == c10::TypeKind::GeneratorType) return ArgKind::Generator;
  if (auto list = inner->cast<c10::ListType>()) {
    auto element = list->getElementType();
    if (element->kind() == c10::TypeKind::TensorType) return ArgKind::Tensors;
    if (auto optional = element->cast<c10::OptionalType>())
      if (optional->getElementType()->kind() == c10::TypeKind::TensorType) return ArgKind::OptionalTensors;
  }
  return ArgKind::Other;
}

}  // namespace

Op::Op(const c10::OperatorHandle& handle) : handle(handle), name(c10::toString(handle.operator_name())) {
  const auto& schema = handle.schema();
  bool has_tensor = false;
  for (const auto& argument : schema.arguments()) {
    ArgInfo info;
    info.kind = kind_of(argument.type());
    info.written = argument.alias_info() && argument.alias_info()->isWrite();
    writes |= info.written;
    in_place &= !(info.written && argument.kwarg_only());  // out= may be resized
    if (argument.name() == "output_mask") mask_argument = int(args.size());
    has_tensor |= info.kind == ArgKind::Tensor || info.kind == ArgKind::Tensors || info.kind == ArgKind::OptionalTensors;
    args.push_back(info);
  }
  for (const auto& result : schema.returns()) {
    ReturnInfo info;
    ArgKind kind = kind_of(result.type());
    if (result.alias_info() && result.alias_info()->isWrite()) {
      info.kind = ReturnInfo::Argument;
      for (size_t i = 0; i < args.size(); ++i) {
        const auto* alias = schema.arguments()[i].alias_info();
        if (alias && alias->isWrite() && alias->afterSets() == result.alias_info()->afterSets()) info.argument = int(i);
      }
      if (info.argument < 0) synchronous = true;
    } else if (kind == ArgKind::Tensor) {
      info.kind = ReturnInfo::Fresh;
      is_view |= result.alias_info() != nullptr;
    } else if (kind == ArgKind::Tensors) {
      info.kind = ReturnInfo::FreshList;
      is_view |= result.alias_info() != nullptr;
    } else {
      info.kind = ReturnInfo::Value;
      synchronous = true;
    }
    in_place &= info.kind == ReturnInfo::Argument;
    returns.push_back(info);
  }
  for (const auto& tag : handle.getTags())
    if (tag == at::Tag::dynamic_output_shape || tag == at::Tag::data_dependent_output) synchronous = true;
  synchronous |= is_data_dependent(name);
  masks_decide = name == "aten::index.Tensor" || name == "aten::index.Tensor_out" || name == "aten::_unsafe_index.Tensor";
  host_indices = takes_host_tensors(name);
  trust_meta = !has_other_meta(name);
  steered = name.compare(0, 6, "aten::") == 0;  // a custom kernel may keep its result
  bool out_only = true;                         // arange.out, range.out: sizes follow from the scalars
  for (const auto& argument : args)
    if (argument.kind == ArgKind::Tensor && !argument.written) out_only = false;
  by_value = !has_tensor || (out_only && (name.find("range") != std::string::npos || name.find("space") != std::string::npos));
}

Op& find_op(const c10::OperatorHandle& handle) {
  static std::mutex mutex;
  static auto* ops = new std::unordered_map<std::string, std::unique_ptr<Op>>();
  std::lock_guard<std::mutex> lock(mutex);
  auto& slot = (*ops)[c10::toString(handle.operator_name())];
  if (!slot) slot = std::make_unique<Op>(handle);
  return *slot;
}

namespace {

std::mutex waiting_mutex;
std::vector<Op*>& waiting_ops() {  // those that made the host wait at least once
  static auto* ops = new std::vector<Op*>();
  return *ops;
}

void list_as_waiting(Op& op, std::atomic<int64_t>& count) {
  count.fetch_add(1);
  std::lock_guard<std::mutex> lock(waiting_mutex);
  if (std::find(waiting_ops().begin(), waiting_ops().end(), &op) == waiting_ops().end()) waiting_ops().push_back(&op);
}

// ---- one call's arguments

struct Slot {
  const at::Tensor* tensor;
  int argument;
};

using Slots = c10::SmallVector<Slot, 8>;

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

// The device of the call: that of its tensors, else of its device argument, else the current one. Refuses mixtures as
// torch does.
c10::DeviceIndex device_of_call(const Op& op, const Slots& slots, const IValue* arguments) {
  std::optional<c10::Device> found;
  for (const Slot& slot : slots)
    if (on_chip(*slot.tensor)) {
      found = slot.tensor->device();
      break;
    }
  if (!found) {
    for (size_t i = 0; i < op.args.size(); ++i)
      if (arguments[i].isDevice() && arguments[i].toDevice().type() == kChip && arguments[i].toDevice().has_index())
        return arguments[i].toDevice().index();
    return current_device();
  }
  for (const Slot& slot : slots) {
    const at::Tensor& tensor = *slot.tensor;
    if (!tensor.defined() || tensor.device() == *found) continue;
    bool written = op.args[size_t(slot.argument)].written;
    bool legal = tensor.device().is_cpu() && !written && (tensor.dim() == 0 || op.host_indices);
    if (!legal) {
      const auto& argument = op.handle.schema().arguments()[size_t(slot.argument)];
      std::string method = "wrapper_chip_" + op.name.substr(op.name.find("::") + 2);
      c10::impl::common_device_check_failure(*found, tensor, method.c_str(), argument.name().c_str());
    }
  }
  return found->index();
}

// ---- signatures

// Note [Two generations of signatures]
// A program with ever new shapes must not grow: when this many are young, they become the old ones, and the old ones that
// nobody asked for since are dropped. Launches under way hold theirs. At most some 10 MB.
constexpr size_t kGeneration = 8192;

struct KeyBuilder {
  c10::SmallVector<uint64_t, 96> words;
  c10::SmallVector<const c10::StorageImpl*, 8> storages;

  void add(uint64_t word) { words.push_back(word); }
  void add_double(double value) {
    uint64_t bits;
    std::memcpy(&bits, &value, 8);
    add(bits);
  }

  int storage_index(const at::Tensor& tensor) {
    const auto* storage = tensor.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl();
    for (size_t i = 0; i < storages.size(); ++i)
      if (storages[i] == storage) return int(i);
    storages.push_back(storage);
    return int(storages.size()) - 1;
  }

  void add_tensor(const at::Tensor& tensor) {
    if (!tensor.defined()) return add(1);
    const auto* impl = tensor.unsafeGetTensorImpl();
    bool chip = on_chip(tensor);
    int storage = chip ? storage_index(tensor) : 255;
    auto sizes = impl->sizes(), strides = impl->strides();
    add(2 | uint64_t(chip) << 8 | uint64_t(impl->is_wrapped_number()) << 9 | uint64_t(tensor.is_conj()) << 10 |
        uint64_t(tensor.is_neg()) << 11 | uint64_t(tensor.scalar_type()) << 16 | uint64_t(sizes.size()) << 24 |
        uint64_t(uint16_t(storage)) << 32);
    for (int64_t size : sizes) add(uint64_t(size));
    for (int64_t stride : strides) add(uint64_t(stride));
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

TensorMeta meta_of(const at::Tensor& tensor) {
  TensorMeta meta;
  if (!tensor.defined()) return meta;
  meta.defined = true;
  meta.on_host = tensor.device().is_cpu();
  meta.conjugate = tensor.is_conj();
  meta.negative = tensor.is_neg();
  meta.dtype = tensor.scalar_type();
  meta.sizes.assign(tensor.sizes().begin(), tensor.sizes().end());
  meta.strides.assign(tensor.strides().begin(), tensor.strides().end());
  meta.nbytes = at::detail::computeStorageNbytes(tensor.sizes(), tensor.strides(), tensor.dtype().itemsize());
  return meta;
}

struct SignatureTable {
  using ByHash = std::unordered_multimap<uint64_t, SignaturePtr>;
  std::mutex mutex;
  ByHash young, old;
  int64_t next_id = 0;

  template <class Matches>
  SignaturePtr find(uint64_t hash, Matches matches) {
    for (ByHash* generation : {&young, &old}) {
      auto [first, last] = generation->equal_range(hash);
      for (auto it = first; it != last; ++it) {
        if (!matches(it->second)) continue;
        SignaturePtr found = it->second;
        if (generation == &old) {
          old.erase(it);
          add(found);
        }
        return found;
      }
    }
    return {};
  }

  void add(const SignaturePtr& signature) {
    if (young.size() >= kGeneration) {
      old = std::move(young);
      young.clear();
    }
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

// Indexing has a data-dependent result only if an index is a mask.
bool has_mask(const Signature& signature) {
  for (size_t i = 1; i < signature.inputs.size(); ++i)
    if (signature.inputs[i].dtype == c10::kBool || signature.inputs[i].dtype == c10::kByte) return true;
  return false;
}

SignaturePtr new_signature(Op& op, const Slots& slots, uint64_t hash, KeyBuilder& key) {
  auto signature = c10::make_intrusive<Signature>();
  signature->op = &op;
  signature->hash = hash;
  signature->key.assign(key.words.begin(), key.words.end());
  for (const Slot& slot : slots) {
    signature->inputs.push_back(meta_of(*slot.tensor));
    signature->written.push_back(op.args[size_t(slot.argument)].written);
    signature->storage_of.push_back(on_chip(*slot.tensor) ? int16_t(key.storage_index(*slot.tensor)) : int16_t(-1));
  }
  signature->storages = int(key.storages.size());
  if (op.synchronous && !(op.masks_decide && !has_mask(*signature))) signature->state = Signature::Synchronous;
  return signature;
}

const SignaturePtr& intern(Op& op, const Slots& slots, const IValue* arguments) {
  static thread_local KeyBuilder key;
  static thread_local std::array<SignaturePtr, 2048> recent;
  key.words.clear();
  key.storages.clear();
  key.add(reinterpret_cast<uintptr_t>(&op));
  key.add(uint64_t(c10::get_default_dtype_as_scalartype()) | uint64_t(at::globalContext().deterministicAlgorithms()) << 8);
  for (size_t i = 0; i < op.args.size(); ++i) {
    if (op.args[i].kind == ArgKind::Tensor && arguments[i].isTensor())
      key.add_tensor(arguments[i].toTensor());
    else
      key.add_value(arguments[i], op.by_value || op.args[i].kind != ArgKind::Scalar);
  }
  uint64_t hash = hash_of(key.words.data(), key.words.size());
  SignaturePtr& slot = recent[hash % recent.size()];
  if (matches(slot, hash, key)) return slot;
  std::lock_guard<std::mutex> lock(table().mutex);
  slot = table().find(hash, [&](const SignaturePtr& signature) { return matches(signature, hash, key); });
  if (!slot) {
    slot = new_signature(op, slots, hash, key);
    slot->id = table().next_id++;
    table().add(slot);
  }
  return slot;
}

// ---- learning what an operation returns

// Modes of the caller must not see the meta kernels' own calls.
struct NoPython {
  c10::impl::ExcludeDispatchKeyGuard keys{
      DispatchKeySet({DispatchKey::Python, DispatchKey::PythonTLSSnapshot, DispatchKey::FuncTorchDynamicLayerFrontMode,
                      DispatchKey::FuncTorchDynamicLayerBackMode}) |
      c10::autocast_dispatch_keyset};
  at::AutoDispatchBelowADInplaceOrView below;
  at::DisableRecordFunctionGuard unprofiled;
  at::impl::TorchFunctionDisabledState previous = at::impl::PythonTorchFunctionTLS::get_disabled_state();
  NoPython() { at::impl::PythonTorchFunctionTLS::set_disabled_state(at::impl::TorchFunctionDisabledState::ALL_DISABLED); }
  ~NoPython() { at::impl::PythonTorchFunctionTLS::set_disabled_state(previous); }
};

void mark_conjugate(const at::Tensor& tensor, const TensorMeta& meta) {
  if (meta.conjugate) tensor.unsafeGetTensorImpl()->_set_conj(true);
  if (meta.negative) tensor.unsafeGetTensorImpl()->_set_neg(true);
}

// The call's stack with every device tensor replaced by `replace(slot index)`, other values by `pass`.
template <class Replace>
Stack rebuild(const Op& op, const IValue* arguments, c10::DeviceType device, const at::Generator* generator, Replace replace) {
  Stack stack;
  stack.reserve(op.args.size());
  int slot = 0;
  for (size_t i = 0; i < op.args.size(); ++i) {
    const IValue& value = arguments[i];
    switch (op.args[i].kind) {
      case ArgKind::Tensor:
        if (value.isTensor())
          stack.emplace_back(replace(slot++));
        else
          stack.emplace_back(value);
        break;
      case ArgKind::Tensors:
        if (value.isList()) {
          c10::List<at::Tensor> list;
          for (const IValue& element : value.toListRef())
            if (element.isTensor()) list.push_back(replace(slot++));
          stack.emplace_back(std::move(list));
        } else {
          stack.emplace_back(value);
        }
        break;
      case ArgKind::OptionalTensors:
        if (value.isList()) {
          c10::List<std::optional<at::Tensor>> list;
          for (const IValue& element : value.toListRef()) {
            if (element.isTensor())
              list.push_back(replace(slot++));
            else
              list.push_back(std::nullopt);
          }
          stack.emplace_back(std::move(list));
        } else {
          stack.emplace_back(value);
        }
        break;
      case ArgKind::Generator:
        if (generator && generator->defined())
          stack.emplace_back(*generator);
        else
          stack.emplace_back();
        break;
      default:
        if (value.isDevice())
          stack.emplace_back(c10::Device(device));
        else
          stack.emplace_back(value);
    }
  }
  return stack;
}

// Gradients that autograd did not ask for: CPU kernels leave them undefined, some meta kernels do not.
void drop_masked(Signature& signature, const IValue* arguments) {
  int mask_argument = signature.op->mask_argument;
  if (mask_argument < 0 || !arguments[mask_argument].isList()) return;
  auto mask = arguments[mask_argument].toListRef();
  for (size_t i = 0; i < std::min(mask.size(), signature.outputs.size()); ++i)
    if (!mask[i].toBool()) signature.outputs[i] = TensorMeta();
}

// Where torch's meta kernels of normalisations differ from its CPU kernels: in evaluation mode the CPU's batch
// normalisation returns empty statistics, and statistics have the input's dtype unless a parameter is wider.
void correct_promise(Signature& signature, const IValue* arguments) {
  static const auto* batch_norms = new std::unordered_set<std::string>{"aten::native_batch_norm",
                                                                       "aten::_native_batch_norm_legit",
                                                                       "aten::_native_batch_norm_legit.no_stats",
                                                                       "aten::_native_batch_norm_legit_no_training",
                                                                       "aten::_batch_norm_with_update",
                                                                       "aten::_batch_norm_no_update"};
  const std::string& name = signature.op->name;
  bool batch_norm = batch_norms->count(name) != 0;
  if ((!batch_norm && name != "aten::native_layer_norm") || signature.inputs.empty()) return;
  constexpr size_t kTraining = 5;  // argument of the first two
  bool decides = name == "aten::native_batch_norm" || name == "aten::_native_batch_norm_legit";
  bool empty =
      batch_norm && (decides ? !arguments[kTraining].toBool()
                             : name.find("_no_training") != std::string::npos || name.find("_no_update") != std::string::npos);
  c10::ScalarType dtype = signature.inputs[0].dtype;
  for (const TensorMeta& input : signature.inputs)
    if (input.defined && input.dtype == c10::kFloat && c10::isReducedFloatingType(dtype)) dtype = c10::kFloat;
  for (size_t i = 1; i < std::min<size_t>(signature.outputs.size(), 3); ++i) {
    TensorMeta& statistics = signature.outputs[i];
    if (empty) {
      statistics.sizes.assign(1, 0);
      statistics.strides.assign(1, 1);
    }
    statistics.dtype = dtype;
    statistics.nbytes = at::detail::computeStorageNbytes(statistics.sizes, statistics.strides, c10::elementSize(dtype));
  }
}

// Stores the metadata of what a kernel returned. False where a result is not a fresh plain tensor.
bool store_results(Signature& signature, const Stack& results, const std::vector<at::Tensor>& inputs,
                   const IValue* promised_for = nullptr) {
  const Op& op = *signature.op;
  std::vector<TensorMeta> outputs;
  std::vector<int> list_sizes;
  auto store = [&](const at::Tensor& tensor) {
    if (tensor.defined()) {
      if (tensor.layout() != c10::kStrided || tensor.is_quantized() || !tensor.has_storage()) return false;
      for (const auto& input : inputs)
        if (input.defined() && input.has_storage() && input.is_alias_of(tensor)) return false;
    }
    outputs.push_back(meta_of(tensor));
    return true;
  };
  for (size_t i = 0; i < op.returns.size(); ++i) {
    const IValue& value = results[i];
    if (op.returns[i].kind == ReturnInfo::Fresh) {
      if (!store(value.isTensor() ? value.toTensor() : at::Tensor())) return false;
    } else if (op.returns[i].kind == ReturnInfo::FreshList) {
      auto elements = value.toListRef();
      list_sizes.push_back(int(elements.size()));
      for (const IValue& element : elements)
        if (!store(element.toTensor())) return false;
    }
  }
  std::vector<std::pair<int, TensorMeta>> resized;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!inputs[i].defined() || signature.storage_of[i] < 0) continue;
    TensorMeta after = meta_of(inputs[i]);
    if (!after.same_layout(signature.inputs[i])) resized.emplace_back(int(i), std::move(after));
  }
  static std::mutex mutex;  // two threads may learn the same signature
  std::lock_guard<std::mutex> lock(mutex);
  if (signature.state != Signature::Unknown) return true;
  signature.outputs = std::move(outputs);
  signature.list_sizes = std::move(list_sizes);
  signature.resized = std::move(resized);
  if (promised_for) {
    drop_masked(signature, promised_for);
    correct_promise(signature, promised_for);
  }
  signature.state.store(Signature::Known, std::memory_order_release);
  return true;
}

bool learn_by_meta(Signature& signature, const Slots& slots, const IValue* arguments) {
  Op& op = *signature.op;
  if (!op.trust_meta) return false;
  try {
    NoPython guard;
    std::vector<at::Tensor> inputs;
    for (size_t i = 0; i < slots.size(); ++i) {
      const TensorMeta& meta = signature.inputs[i];
      if (signature.storage_of[i] < 0) {
        inputs.push_back(*slots[i].tensor);
        continue;
      }
      at::Tensor tensor = at::detail::empty_strided_meta(meta.sizes, meta.strides, meta.dtype);
      mark_conjugate(tensor, meta);
      inputs.push_back(std::move(tensor));
    }
    Stack stack = rebuild(op, arguments, c10::DeviceType::Meta, nullptr, [&](int slot) { return inputs[size_t(slot)]; });
    op.handle.redispatchBoxed(DispatchKeySet(DispatchKey::Meta), &stack);
    if (!store_results(signature, stack, inputs, arguments)) return false;
    ++counters().learned_by_meta;
    return true;
  } catch (const c10::NotImplementedError&) {
    if (!op.in_place) return false;
    signature.state.store(Signature::Known, std::memory_order_release);  // returns nothing new: there is nothing to learn
    return true;
  } catch (const std::exception&) {
    return false;  // no meta kernel for this case, or a mistake of the user: the CPU kernel tells which, in its words
  }
}

// ---- the kernel's side

struct Promise {
  char* address = nullptr;
  size_t bytes = 0;
  bool taken = false;
};

// Note [Steering]
// A CPU kernel allocates its own results. While a launch runs, the first allocation on its thread that has exactly the
// size of a promised output gets the promised memory; so nearly every result is born where it belongs. What is born
// elsewhere (oneDNN's convolutions reorder, two outputs of one size may cross) is copied.
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
          promise.taken = false;
          return;
        }
    instance()->inner->raw_deallocate(pointer);
  }
  c10::DataPtr allocate(size_t bytes) override {
    if (promises)
      for (Promise& promise : *promises)
        if (!promise.taken && promise.bytes == bytes && bytes > 0) {
          promise.taken = true;
          return {promise.address, promise.address, free, c10::Device(c10::kCPU)};
        }
    void* pointer = inner->raw_allocate(bytes);
    return {pointer, pointer, free, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return free; }
  void copy_data(void* to, const void* from, size_t bytes) const override { inner->copy_data(to, from, bytes); }
};

void install_steering() {
  static std::once_flag once;
  std::call_once(once, [] {
    auto* inner = c10::GetAllocator(c10::kCPU);
    if (!inner->raw_deleter()) return;  // a foreign allocator: results are copied instead
    SteeringAllocator::instance() = new SteeringAllocator(inner);
    c10::SetAllocator(c10::kCPU, SteeringAllocator::instance(), 255);
  });
}

struct StorageRef {
  void* address;
  size_t bytes;
};

// All that a kernel needs after the host has gone on. Device memory is held by address, not by reference: the host
// frees and reuses it in launch order (see memory.cpp).
struct Launch {
  SignaturePtr signature;
  Stream* stream;
  Line line;
  c10::SmallVector<IValue, 8> arguments;  // tensors of the device are None here
  c10::SmallVector<StorageRef, 6> storages;
  c10::SmallVector<int64_t, 8> offsets;          // per input
  c10::SmallVector<at::Tensor, 1> host_tensors;  // per input, where it is a host tensor
  c10::SmallVector<void*, 2> outputs;            // per fresh output
  at::Generator generator;
  int threads;
  int64_t correlation = 0;
  // A waiting caller takes these:
  bool waited = false;
  bool executed = false;
  std::vector<at::Tensor> inputs;
  Stack results;
  std::exception_ptr error;
};

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

std::string text_of(const TensorMeta& meta) {
  std::ostringstream text;
  text << c10::getDtypeNames(meta.dtype).first << "[";
  for (size_t i = 0; i < meta.sizes.size(); ++i) text << (i ? ", " : "") << meta.sizes[i];
  text << "]";
  return text.str();
}

std::string describe_launch(const Launch& launch) {
  std::ostringstream text;
  text << launch.signature->op->name << "(";
  for (size_t i = 0; i < launch.signature->inputs.size(); ++i)
    text << (i ? ", " : "") << (launch.signature->inputs[i].defined ? text_of(launch.signature->inputs[i]) : "none");
  text << ") on chip:" << int(launch.stream->id.device_index());
  if (std::string where = describe(launch.line); !where.empty()) text << ", launched at " << where;
  return text.str();
}

// torch's meta kernel was wrong. The host has gone on with tensors of the wrong size, so this launch fails; from now on
// the operator is learned by running it.
[[noreturn]] void broken_promise(Signature& signature, size_t index, const std::string& found) {
  signature.op->trust_meta = false;
  signature.state = Signature::Synchronous;
  TORCH_CHECK(false, "output ", index, " was promised to be ", text_of(signature.outputs[index]),
              " by torch's meta kernel and is ", found,
              "; later calls of this operator wait for the kernel instead: run it again");
}

// Notes a result that is not where the host was promised it would be.
void deliver(Launch& launch, const at::Tensor& result, size_t index, Signature& signature, at::Tensor* stray) {
  const TensorMeta& promised = signature.outputs[index];
  if (!promised.defined) return;  // masked out
  if (!result.defined()) broken_promise(signature, index, "undefined");
  if (result.scalar_type() != promised.dtype || result.sizes() != c10::IntArrayRef(promised.sizes))
    broken_promise(signature, index, text_of(meta_of(result)));
  if (promised.nbytes == 0) return;
  void* home = launch.outputs[index];
  bool at_home = result.const_data_ptr() == home && result.strides() == c10::IntArrayRef(promised.strides) &&
                 result.is_conj() == promised.conjugate && result.is_neg() == promised.negative;
  if (at_home) return;
  *stray = result;  // copied after all results have been looked at
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
  auto in_promised_memory = [&](const at::Tensor& tensor) {
    auto* start = static_cast<const char*>(tensor.storage().data());
    for (const Promise& promise : *promises)
      if (start == promise.address) return true;
    return false;
  };
  if (!strays.empty()) {
    auto* steering = std::exchange(promises, nullptr);  // the copies' own temporaries are not results
    promises = steering;
    for (auto& [at, tensor] : strays)
      if (in_promised_memory(tensor)) {
        promises = nullptr;
        tensor = tensor.clone();
        promises = steering;
      }
    promises = nullptr;
    for (auto& [at, tensor] : strays) {
      const TensorMeta& meta = signature.outputs[at];
      alias(borrow(launch.outputs[at], meta.nbytes), meta, 0).copy_(tensor);
    }
    promises = steering;
  }
}

// A kernel may leave a written argument with other memory or another conjugate bit than the program's tensor has.
void settle(const at::Tensor& written, const at::Tensor& home) {
  if (written.unsafeGetTensorImpl() == home.unsafeGetTensorImpl()) return;
  bool same = written.const_data_ptr() == home.const_data_ptr() && written.sizes() == home.sizes() &&
              written.strides() == home.strides() && written.is_conj() == home.is_conj() && written.is_neg() == home.is_neg();
  if (same || home.numel() == 0) return;
  TORCH_CHECK(written.sizes() == home.sizes(), "a written argument was expected to have sizes ", home.sizes(), " and has ",
              written.sizes());
  home.copy_(written.const_data_ptr() == home.const_data_ptr() ? written.clone() : written);
}

void execute(Launch& launch) {
  const Signature& signature = *launch.signature;
  c10::DeviceIndex device = launch.stream->id.device_index();
  c10::SmallVector<c10::intrusive_ptr<c10::StorageImpl>, 6> storages;
  for (const StorageRef& ref : launch.storages) storages.push_back(borrow(map(device, ref.address), ref.bytes));
  for (void*& output : launch.outputs) output = map(device, output);
  c10::SmallVector<Promise, 4> steering;  // outlives every tensor of the call
  if (!launch.waited && signature.op->steered)
    for (size_t i = 0; i < launch.outputs.size(); ++i)
      steering.push_back({static_cast<char*>(launch.outputs[i]), signature.outputs[i].nbytes, false});
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
  auto input = [&](int slot) {
    int storage = signature.storage_of[size_t(slot)];
    at::Tensor tensor = storage < 0 ? launch.host_tensors[size_t(slot)]
                                    : alias(storages[size_t(storage)], meta_of_input(slot), launch.offsets[size_t(slot)]);
    if (launch.waited)
      launch.inputs.push_back(tensor);
    else if (storage >= 0 && signature.op->writes && signature.written[size_t(slot)])
      written.emplace_back(slot, tensor);
    return tensor;
  };
  Stack stack = rebuild(*signature.op, launch.arguments.data(), c10::kCPU, &launch.generator, input);
  signature.op->handle.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), &stack);
  if (launch.waited) {
    launch.results = std::move(stack);
    return;
  }
  deliver_all(launch, stack);
  stack.clear();  // while the promises are still known: results must not be freed as ordinary memory
  promises = nullptr;
  for (const auto& [slot, tensor] : written)
    settle(tensor,
           alias(storages[size_t(signature.storage_of[size_t(slot)])], meta_of_input(slot), launch.offsets[size_t(slot)]));
}

// State that torch keeps per thread.
void prepare_worker(int threads) {
  static thread_local int current = 0;
  if (current == 0) c10::GradMode::set_enabled(false);
  if (current != threads) {
    at::set_num_threads(threads);
    current = threads;
  }
}

void run(void* argument, int should_execute) {
  auto* launch = static_cast<Launch*>(argument);
  bool waited = launch->waited;  // then the caller owns it
  if (should_execute) {
    int64_t start = profiling() ? profiler_now() : 0;
    try {
      prepare_worker(launch->threads);
      at::AutoDispatchBelowADInplaceOrView below;
      execute(*launch);
      launch->executed = true;
    } catch (...) {
      if (waited)
        launch->error = std::current_exception();
      else
        launch_failed(*launch->stream, describe_launch(*launch));
    }
    if (start) profiler_record(launch->signature->op->name, *launch->stream, start, profiler_now(), launch->correlation);
  }
  if (!waited) delete launch;
}

}  // namespace

// ---- the host's side

at::Tensor new_tensor(const TensorMeta& meta, c10::DeviceIndex device, const char* op) {
  if (!meta.defined) return {};
  set_purpose(op, meta.dtype, meta.sizes);
  auto storage = c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), c10::SymInt(int64_t(meta.nbytes)),
                                                       allocate_on(device, meta.nbytes), &chip_allocator(), true);
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(
      c10::Storage(std::move(storage)), DispatchKeySet(DispatchKey::PrivateUse1), c10::scalarTypeToTypeMeta(meta.dtype));
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(meta.sizes, meta.strides);
  mark_conjugate(tensor, meta);
  return tensor;
}

at::Tensor alias_on_host(const at::Tensor& tensor) {
  const auto& storage = tensor.storage();
  return alias(borrow(map(tensor.device().index(), storage.mutable_data()), storage.nbytes()), meta_of(tensor),
               tensor.storage_offset());
}

void enqueue(Stream& stream, std::function<void(bool)> f) {
  launch(
      stream,
      [](void* argument, int should_execute) {
        std::unique_ptr<std::function<void(bool)>> f(static_cast<std::function<void(bool)>*>(argument));
        (*f)(should_execute != 0);
      },
      new std::function<void(bool)>(std::move(f)));
}

void launch_failed(Stream& stream, const std::string& what) {
  try {
    throw;
  } catch (c10::Error& error) {
    error.add_context(what);
    stream.fail(std::current_exception());
  } catch (const std::exception& error) {
    stream.fail(std::make_exception_ptr(c10::Error(c10::SourceLocation{"", "", 0}, std::string(error.what()) + "\n" + what)));
  }
}

namespace {

void resize_written(const at::Tensor& tensor, const TensorMeta& meta) {
  const auto& storage = tensor.storage();
  size_t bytes = meta.nbytes + size_t(tensor.storage_offset()) * tensor.dtype().itemsize();
  if (storage.nbytes() < bytes) {
    auto* impl = storage.unsafeGetStorageImpl();
    TORCH_CHECK(impl->resizable(), "Trying to resize storage that is not resizable");
    impl->set_data_ptr_noswap(allocate_on(tensor.device().index(), bytes));
    impl->set_nbytes(bytes);
  }
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(meta.sizes, meta.strides, tensor.storage_offset());
}

Launch* new_launch(const SignaturePtr& of, Stream& stream, const Slots& slots, const IValue* arguments) {
  const Signature& signature = *of;
  const Op& op = *signature.op;
  auto* launch = new Launch();
  launch->signature = of;
  launch->stream = &stream;
  launch->line = current_line();
  launch->threads = at::get_num_threads();
  bool any_host = false;  // or undefined
  launch->storages.resize(size_t(signature.storages));
  for (size_t i = 0; i < slots.size(); ++i) {
    const at::Tensor& tensor = *slots[i].tensor;
    int storage = signature.storage_of[i];
    if (storage < 0) {
      any_host = true;
      launch->offsets.push_back(0);
    } else {
      const auto& memory = tensor.unsafeGetTensorImpl()->unsafe_storage();
      launch->storages[size_t(storage)] = {memory.mutable_data(), memory.nbytes()};
      launch->offsets.push_back(tensor.unsafeGetTensorImpl()->storage_offset());
    }
  }
  if (any_host) {
    launch->host_tensors.resize(slots.size());
    for (size_t i = 0; i < slots.size(); ++i) {
      const at::Tensor& tensor = *slots[i].tensor;
      if (signature.storage_of[i] >= 0 || !tensor.defined()) continue;
      // The host may change a tensor after the launch; a wrapped Python number it cannot reach.
      bool constant = tensor.unsafeGetTensorImpl()->is_wrapped_number();
      launch->host_tensors[i] = constant ? tensor : tensor.clone();
    }
  }
  for (size_t i = 0; i < op.args.size(); ++i) {
    const IValue& value = arguments[i];
    if (op.args[i].kind == ArgKind::Tensor && value.isTensor()) {
      launch->arguments.emplace_back(at::Tensor());
    } else if ((op.args[i].kind == ArgKind::Tensors || op.args[i].kind == ArgKind::OptionalTensors) && value.isList()) {
      c10::List<std::optional<at::Tensor>> shape;  // which elements are tensors; not the tensors themselves
      for (const IValue& element : value.toListRef())
        shape.push_back(element.isTensor() ? std::optional<at::Tensor>(at::Tensor()) : std::nullopt);
      launch->arguments.emplace_back(std::move(shape));
    } else if (op.args[i].kind == ArgKind::Generator) {
      at::Generator generator = value.isGenerator() ? value.toGenerator() : at::Generator();
      if (!generator.defined()) generator = default_generator(stream.id.device_index());
      TORCH_CHECK(generator.device().type() == kChip, "Expected a 'chip' device type for generator but found '",
                  generator.device().type(), "'");
      launch->generator = static_cast<ChipGenerator*>(generator.unsafeGetGeneratorImpl())->draw_on(stream);
      launch->arguments.emplace_back();
    } else {
      launch->arguments.emplace_back(value);
    }
  }
  if (profiling()) launch->correlation = profiler_correlation();
  return launch;
}

void return_results(const Op& op, Stack* stack, Stack results) {
  stack->resize(stack->size() - op.args.size());
  for (IValue& value : results) stack->push_back(std::move(value));
}

// A view of `base` with the metadata that the CPU kernel gave to `result`.
at::Tensor view_like(const at::Tensor& base, const at::Tensor& result) {
  auto view = at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(base.storage()), base.key_set(),
                                                       result.dtype());
  auto* impl = view.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(result.sizes(), result.strides(), result.storage_offset());
  impl->_set_conj(result.is_conj());
  impl->_set_neg(result.is_neg());
  return view;
}

// A result of a synchronous run becomes a device tensor: a view if it shares an input's memory, else a copy.
at::Tensor take_over(const at::Tensor& result, const Launch& launch, const Slots& slots, Stream& stream) {
  if (!result.defined() || !result.device().is_cpu()) return result;
  for (size_t i = 0; i < launch.inputs.size(); ++i) {
    if (launch.signature->storage_of[i] < 0 || !result.has_storage() || !launch.inputs[i].is_alias_of(result)) continue;
    if (result.is_same(launch.inputs[i])) return *slots[i].tensor;
    const at::Tensor& base = *slots[i].tensor;
    return view_like(base, result);
  }
  if (result.layout() != c10::kStrided || result.is_quantized()) return place_on_chip(result, stream.id.device_index());
  TensorMeta meta = meta_of(result);
  at::Tensor placed = new_tensor(meta, stream.id.device_index(), launch.signature->op->name.c_str());
  if (meta.nbytes == 0) return placed;
  void* home = placed.mutable_data_ptr();
  enqueue(stream, [result, home, meta, index = stream.id.device_index()](bool should_execute) {
    if (should_execute) alias(borrow(map(index, home), meta.nbytes), meta, 0).copy_(result);
  });
  return placed;
}

void write_back(const Launch& launch, const Slots& slots, Stream& stream) {
  for (size_t i = 0; i < launch.inputs.size(); ++i) {
    if (launch.signature->storage_of[i] < 0 || !launch.signature->op->args[size_t(slots[i].argument)].written) continue;
    const at::Tensor& after = launch.inputs[i];
    const at::Tensor& tensor = *slots[i].tensor;
    TensorMeta meta = meta_of(after);
    if (meta.same_layout(launch.signature->inputs[i])) continue;
    resize_written(tensor, meta);
    void* home = tensor.storage().mutable_data();
    int64_t offset = tensor.storage_offset();
    size_t bytes = tensor.storage().nbytes();
    if (meta.nbytes == 0) continue;
    enqueue(stream, [after, home, offset, bytes, meta, index = stream.id.device_index()](bool should_execute) {
      void* at = map(index, home);
      if (should_execute && after.storage().data() != at) alias(borrow(at, bytes), meta, offset).copy_(after);
    });
  }
}

void run_synchronously(const SignaturePtr& of, Stream& stream, const Slots& slots, Stack* stack, const IValue* arguments) {
  Signature& signature = *of;
  Op& op = *signature.op;
  std::unique_ptr<Launch> launch(new_launch(of, stream, slots, arguments));
  launch->waited = true;
  bool learning = signature.state == Signature::Unknown;
  if (learning) {
    ++counters().learned_by_running;
    list_as_waiting(op, op.learning_calls);
  } else {
    count_synchronous(op);
  }
  bringup::launch(stream, run, launch.get());
  {
    ReleaseGil no_gil;
    check_driver(driver().stream_synchronize(stream.handle), device(stream.id.device_index()));
  }
  if (op.synchronous) stream.raise();
  if (launch->error) std::rethrow_exception(launch->error);
  TORCH_CHECK(launch->executed, op.name, " needs a value from the device, and the ", driver().name, " driver executes nothing");
  if (learning && !store_results(signature, launch->results, launch->inputs)) signature.state = Signature::Synchronous;
  write_back(*launch, slots, stream);
  Stack results;
  for (size_t i = 0; i < op.returns.size(); ++i) {
    IValue& value = launch->results[i];
    switch (op.returns[i].kind) {
      case ReturnInfo::Argument:
        results.emplace_back(arguments[op.returns[i].argument]);
        break;
      case ReturnInfo::Fresh:
        if (!value.isTensor() || is_host_output(op.name, i))
          results.emplace_back(value);
        else
          results.emplace_back(take_over(value.toTensor(), *launch, slots, stream));
        break;
      case ReturnInfo::FreshList: {
        c10::List<at::Tensor> list;
        for (const IValue& element : value.toListRef()) list.push_back(take_over(element.toTensor(), *launch, slots, stream));
        results.emplace_back(std::move(list));
        break;
      }
      case ReturnInfo::Value:
        results.emplace_back(value);
    }
  }
  return_results(op, stack, std::move(results));
}

// Views touch no data: the CPU kernel computes the metadata, on an alias.
void run_view(Op& op, const Slots& slots, Stack* stack, const IValue* arguments) {
  std::vector<at::Tensor> inputs;
  for (const Slot& slot : slots) inputs.push_back(on_chip(*slot.tensor) ? alias_on_host(*slot.tensor) : *slot.tensor);
  Stack results = rebuild(op, arguments, c10::kCPU, nullptr, [&](int slot) { return inputs[size_t(slot)]; });
  {
    at::AutoDispatchBelowADInplaceOrView below;
    op.handle.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), &results);
  }
  auto as_view = [&](const at::Tensor& result) {
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (!inputs[i].is_alias_of(result)) continue;
      return view_like(*slots[i].tensor, result);
    }
    TORCH_CHECK(false, op.name, " was expected to return a view");
  };
  for (IValue& value : results) {
    if (value.isTensor()) {
      value = as_view(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& element : value.toTensorVector()) list.push_back(as_view(element));
      value = std::move(list);
    }
  }
  return_results(op, stack, std::move(results));
}

}  // namespace

void launch_boxed(Op& op, Stack* stack) {
  const IValue* arguments = stack->data() + (stack->size() - op.args.size());
  Slots slots;
  collect(op, arguments, slots);
  c10::DeviceIndex index = device_of_call(op, slots, arguments);
  Stream& stream = current_stream(index);
  if (op.is_view) return run_view(op, slots, stack, arguments);
  install_steering();
  ++counters().launches;
  SignaturePtr of = intern(op, slots, arguments);
  Signature& signature = *of;
  int state = signature.state.load(std::memory_order_acquire);
  bool first = state == Signature::Unknown;
  if (first && learn_by_meta(signature, slots, arguments)) state = Signature::Known;
  if (state != Signature::Known) return run_synchronously(of, stream, slots, stack, arguments);

  for (const auto& [slot, meta] : signature.resized) {
    if (!first) at::native::resize_output_check(*slots[size_t(slot)].tensor, meta.sizes);  // the meta kernel warned
    resize_written(*slots[size_t(slot)].tensor, meta);
  }
  Launch* launch = new_launch(of, stream, slots, arguments);
  Stack results;
  results.reserve(op.returns.size());
  size_t output = 0, list = 0;
  auto fresh = [&] {
    const TensorMeta& meta = signature.outputs[output++];
    at::Tensor tensor = new_tensor(meta, index, op.name.c_str());
    launch->outputs.push_back(meta.defined ? tensor.unsafeGetTensorImpl()->unsafe_storage().mutable_data() : nullptr);
    return tensor;
  };
  try {
    for (const ReturnInfo& info : op.returns) {
      if (info.kind == ReturnInfo::Argument) {
        results.emplace_back(arguments[info.argument]);
      } else if (info.kind == ReturnInfo::Fresh) {
        results.emplace_back(fresh());
      } else {
        c10::List<at::Tensor> tensors;
        for (int i = 0; i < signature.list_sizes[list]; ++i) tensors.push_back(fresh());
        ++list;
        results.emplace_back(std::move(tensors));
      }
    }
  } catch (...) {
    delete launch;
    throw;
  }
  bringup::launch(stream, run, launch);
  return_results(op, stack, std::move(results));
  if (C10_UNLIKELY(launch_blocking())) synchronize(stream);
}

void count_synchronous(Op& op) {
  ++counters().synchronous;
  list_as_waiting(op, op.synchronous_calls);
}

std::string launch_stats_json() {
  Counters& all = counters();
  std::ostringstream text;
  text << "{\"launches\": " << all.launches << ", \"synchronous\": " << all.synchronous
       << ", \"learned_by_meta\": " << all.learned_by_meta << ", \"learned_by_running\": " << all.learned_by_running
       << ", \"outputs_copied\": " << all.promises_copied << ", \"synchronizations\": " << all.synchronizations
       << ", \"signatures\": ";
  {
    std::lock_guard<std::mutex> lock(table().mutex);
    text << table().next_id;
  }
  std::lock_guard<std::mutex> lock(waiting_mutex);
  auto list = [&](const char* title, auto count) {
    text << ", \"" << title << "\": {";
    bool first = true;
    for (const Op* op : waiting_ops()) {
      if (count(*op) == 0) continue;
      text << (first ? "" : ", ") << "\"" << op->name << "\": " << count(*op);
      first = false;
    }
    text << "}";
  };
  list("synchronous_ops", [](const Op& op) { return op.synchronous_calls.load(); });
  list("learned_by_running_ops", [](const Op& op) { return op.learning_calls.load(); });
  text << "}";
  return text.str();
}

namespace {

struct BoxedOp final : c10::OperatorKernel {
  c10::OperatorHandle handle;
  std::atomic<Op*> op{nullptr};
  explicit BoxedOp(const c10::OperatorHandle& handle) : handle(handle) {}
  void operator()(const c10::OperatorHandle&, DispatchKeySet, Stack* stack) {
    Op* found = op.load(std::memory_order_acquire);
    if (C10_UNLIKELY(!found)) op.store(found = &find_op(handle), std::memory_order_release);
    launch_boxed(*found, stack);
  }
};

// Operators that other libraries registered for the CPU.
void launch_unregistered(const c10::OperatorHandle& handle, Stack* stack) {
  TORCH_CHECK_NOT_IMPLEMENTED(handle.hasComputedKernelForDispatchKey(DispatchKey::CPU), c10::toString(handle.operator_name()),
                              " does not run on 'chip': it has neither a kernel for chip nor one for the CPU. Register one with "
                              "torch.library (device_types=\"cpu\" is enough)");
  launch_boxed(find_op(handle), stack);
}

// Written by hand in ops.cpp.
bool has_native_kernel(const std::string& name) {
  static const auto* names = new std::unordered_set<std::string>{"aten::empty.memory_format",
                                                                 "aten::empty_strided",
                                                                 "aten::as_strided",
                                                                 "aten::view",
                                                                 "aten::_reshape_alias",
                                                                 "aten::resize_",
                                                                 "aten::set_.source_Storage_storage_offset",
                                                                 "aten::set_.source_Storage",
                                                                 "aten::set_.source_Tensor",
                                                                 "aten::set_",
                                                                 "aten::copy_",
                                                                 "aten::_copy_from",
                                                                 "aten::_copy_from_and_resize",
                                                                 "aten::_local_scalar_dense",
                                                                 "aten::record_stream",
                                                                 "aten::_efficientzerotensor",
                                                                 "aten::native_dropout",
                                                                 "aten::_fused_sdp_choice"};
  return names->count(name) != 0;
}

// Would decompose into operators for one vendor's library, or into many launches, where the CPU has one kernel.
bool is_kept_whole(const std::string& name) {
  static const auto* names = new std::unordered_set<std::string>{"aten::convolution", "aten::convolution_backward",
                                                                 "aten::conj_physical_", "aten::mode", "aten::mode.values"};
  return names->count(name) != 0;
}

}  // namespace

void register_kernels() {
  static auto* aten = new torch::Library(torch::Library::IMPL, "aten", DispatchKey::PrivateUse1, __FILE__, __LINE__);
  static auto* others = new torch::Library(torch::Library::IMPL, "_", DispatchKey::PrivateUse1, __FILE__, __LINE__);
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const auto& op_name : dispatcher.getAllOpNames()) {
    if (op_name.name.compare(0, 6, "aten::") != 0) continue;
    auto handle = dispatcher.findSchema(op_name);
    if (!handle) continue;
    std::string name = c10::toString(op_name);
    bool has_cpu_kernel = handle->hasKernelForDispatchKey(DispatchKey::CPU) &&
                          !handle->hasKernelForDispatchKey(DispatchKey::CompositeImplicitAutograd);
    if (has_native_kernel(name) || handle->hasKernelForDispatchKey(DispatchKey::PrivateUse1)) continue;
    if (!has_cpu_kernel && !is_kept_whole(name)) continue;
    aten->impl(name.c_str(), torch::CppFunction::makeFromBoxedFunctor(std::make_unique<BoxedOp>(*handle)));
  }
  others->fallback(torch::CppFunction::makeFromBoxedFunction<&launch_unregistered>());
}

}  // namespace bringup
