#include "launch/op.h"

#include <algorithm>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <unordered_set>

#include "launch/fallback.h"
#include "launch/workspace.h"
#include "runtime/runtime.h"
#include "text.h"

namespace bringup {

std::string base_name(const std::string& name) {
  size_t start = name.find("::") + 2;
  return name.substr(start, name.find('.', start) - start);
}

namespace {

// These take indices or lengths from the host, as torch's CUDA kernels do.
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

// The output sizes of these depend on data although torch does not tag them so, or they return host values.
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

// The meta kernels of these promise another dtype, size or number of tensors than the CPU kernels return. So what they return is
// learned by running them.
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

// True for in-place operators whose result does not depend on the previous content.
bool fills(const std::string& name) {
  static const auto* names =
      new std::unordered_set<std::string>{"copy_",    "fill_",        "zero_",      "random_",     "bernoulli_", "normal_",
                                          "uniform_", "exponential_", "geometric_", "log_normal_", "cauchy_",    "eye"};
  size_t start = name.find("::") + 2;
  return names->count(name.substr(start, name.find('.', start) - start)) != 0;
}

// LAPACK does not check pivots, and writes to the rows that they name. They count from 1.
bool takes_pivots(const std::string& name) {
  return name.find("linalg_lu_solve") != std::string::npos || name.find("linalg_ldl_solve") != std::string::npos;
}

// True for operators that CUDA's libraries compute in TF32 where torch allows it.
bool has_products(const std::string& name) {
  static const auto* names = new std::unordered_set<std::string>{
      "mm",   "addmm", "_addmm_activation", "bmm",      "baddbmm", "addbmm", "mv",       "addmv", "linear",  "matmul",
      "lstm", "gru",   "rnn_tanh",          "rnn_relu", "addmm_",  "addmv_", "baddbmm_", "dot",   "addbmm_", "bilinear"};
  std::string base = base_name(name);
  return names->count(base) != 0 || base.find("conv") != std::string::npos || base.find("_rnn") != std::string::npos;
}

const std::string kFused = "bringup_fused::";  // see torch/fused.cpp

ArgKind kind_of(const c10::TypePtr& type) {
  auto inner = type;
  if (auto optional = inner->cast<c10::OptionalType>()) inner = optional->getElementType();
  if (inner->kind() == c10::TypeKind::TensorType) return ArgKind::Tensor;
  if (inner->kind() == c10::TypeKind::NumberType) return ArgKind::Scalar;
  if (inner->kind() == c10::TypeKind::GeneratorType) return ArgKind::Generator;
  if (auto list = inner->cast<c10::ListType>()) {
    auto element = list->getElementType();
    if (element->kind() == c10::TypeKind::NumberType) return ArgKind::Scalar;
    if (element->kind() == c10::TypeKind::TensorType) return ArgKind::Tensors;
    if (auto optional = element->cast<c10::OptionalType>())
      if (optional->getElementType()->kind() == c10::TypeKind::TensorType) return ArgKind::OptionalTensors;
  }
  return ArgKind::Other;
}

}  // namespace

Op::Op(const c10::OperatorHandle& handle) : handle(handle), name(c10::toString(handle.operator_name())) {
  bool is_fused = name.compare(0, kFused.size(), kFused) == 0;
  if (is_fused) name = "aten::" + name.substr(kFused.size());
  const auto& schema = handle.schema();
  bool has_tensor = false, only_out = true;
  for (const auto& argument : schema.arguments()) {
    ArgInfo info;
    info.kind = kind_of(argument.type());
    info.written = argument.alias_info() && argument.alias_info()->isWrite();
    info.out = info.written && argument.kwarg_only();
    writes |= info.written;
    in_place &= !info.out;
    only_out &= !info.written || info.out;
    if (argument.name() == "output_mask") mask_argument = int(args.size());
    if (argument.name() == "dtype") dtype_argument = int(args.size());
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
  bool own_generator = false;
  for (const auto& argument : args) own_generator |= argument.kind == ArgKind::Generator;
  bool draws = handle.hasTag(at::Tag::nondeterministic_seeded);  // without a generator argument: from the CPU's generator
  tried = name.compare(0, 6, "aten::") == 0 && (own_generator || !draws) && !is_fused;
  content = takes_pivots(name) ? 1 : 0;
  synchronous |= is_data_dependent(name);
  overwrites = writes && (only_out || fills(name));
  bumps_versions = in_place && writes && name.compare(0, 15, "aten::_foreach_") == 0;
  masks_decide = name == "aten::index.Tensor" || name == "aten::index.Tensor_out" || name == "aten::_unsafe_index.Tensor";
  host_indices = takes_host_tensors(name);
  multiplies = name.compare(0, 6, "aten::") == 0 && has_products(name);
  attends = name.find("::_scaled_dot_product_") != std::string::npos;
  uses_blas = bringup::uses_blas(name);
  takes_indices = host_indices && name.find("index") != std::string::npos && name.find("tensor_indices") == std::string::npos;
  trust_meta = !has_other_meta(name);
  steered = name.compare(0, 6, "aten::") == 0;  // a custom kernel may keep a reference to its result
  bool out_only = true;                         // arange.out, range.out: the scalars decide the sizes
  for (const auto& argument : args)
    if (argument.kind == ArgKind::Tensor && !argument.written) out_only = false;
  by_value = !has_tensor || (out_only && (name.find("range") != std::string::npos || name.find("space") != std::string::npos));
}

namespace {

struct AllOps {
  std::mutex mutex;
  std::unordered_map<std::string, std::unique_ptr<Op>> ops;
};

AllOps& all_ops() {
  static auto* all = new AllOps();
  return *all;
}

}  // namespace

Op& find_op(const c10::OperatorHandle& handle) {
  std::lock_guard<std::mutex> lock(all_ops().mutex);
  auto& slot = all_ops().ops[c10::toString(handle.operator_name())];
  if (!slot) {
    slot = std::make_unique<Op>(handle);
    slot->host_dtypes = dtypes_on_host(slot->name);
  }
  return *slot;
}

const c10::IValue* argument_of(const Op& op, const c10::IValue* arguments, const char* name) {
  auto index = op.handle.schema().argumentIndexWithName(name);
  return index ? &arguments[*index] : nullptr;
}

Op& find_op(const char* name) { return find_op(c10::Dispatcher::singleton().findSchemaOrThrow(name, "")); }

void for_each_op(const std::function<void(Op&)>& f) {
  std::lock_guard<std::mutex> lock(all_ops().mutex);
  for (auto& [name, op] : all_ops().ops) f(*op);
}

bool is_host_output(const std::string& name, size_t index) { return name == "aten::_pack_padded_sequence" && index == 1; }

bool is_kept_whole(const std::string& name) {
  static const auto* names = new std::unordered_set<std::string>{
      "aten::convolution", "aten::convolution_backward", "aten::embedding",  "aten::conj_physical_",
      "aten::mode",        "aten::mode.values",          "aten::_grouped_mm"};
  // Accelerators have one kernel for a whole list of tensors.
  return names->count(name) != 0 || name.compare(0, 15, "aten::_foreach_") == 0;
}

namespace {

std::mutex waiting_mutex;
std::vector<Op*>& waiting_ops() {  // the operators that have made the host wait
  static auto* ops = new std::vector<Op*>();
  return *ops;
}

void list_as_waiting(Op& op, std::atomic<int64_t>& count) {
  count.fetch_add(1);
  std::lock_guard<std::mutex> lock(waiting_mutex);
  if (std::find(waiting_ops().begin(), waiting_ops().end(), &op) == waiting_ops().end()) waiting_ops().push_back(&op);
}

}  // namespace

void count_synchronous(Op& op) {
  ++counters().synchronous;
  list_as_waiting(op, op.synchronous_calls);
}

void count_learning(Op& op) {
  ++counters().learned_by_running;
  list_as_waiting(op, op.learning_calls);
}

std::string launch_stats_json(int64_t signatures) {
  Counters& all = counters();
  Text text;
  text << "{\"launches\": " << all.launches.load() << ", \"synchronous\": " << all.synchronous.load()
       << ", \"learned_by_meta\": " << all.learned_by_meta.load() << ", \"learned_by_running\": " << all.learned_by_running.load()
       << ", \"outputs_copied\": " << all.promises_copied.load() << ", \"synchronizations\": " << all.synchronizations.load()
       << ", \"signatures\": " << signatures;
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

}  // namespace bringup
