#include "launch/switches.h"

#include <ATen/Context.h>

#include <atomic>
#include <unordered_map>

#include "record/rows.h"
#include "torch/redirect.h"

namespace bringup {

using c10::IValue;

namespace {

const IValue* argument(const Call& call, const char* name) { return argument_of(call.op, call.arguments, name); }

bool always(const Call&) { return true; }

bool reduces(const Call& call) {
  const IValue* reduction = argument(call, "reduction");
  return reduction && reduction->toInt() != 0;  // at::Reduction::None
}

bool takes_maximum(const Call& call) {
  const IValue* mode = argument(call, "mode");
  return mode && mode->toInt() == 2;  // EmbeddingBag's mode "max"
}

bool has_weights(const Call& call) {
  const IValue* weights = argument(call, "weights");
  return weights && weights->isTensor() && weights->toTensor().defined();
}

bool multiplies(const Call& call) {
  const IValue* reduce = argument(call, "reduce");
  return reduce && reduce->isString() && reduce->toStringRef() == "prod";
}

struct Nondeterministic {
  const char* kernel;  // as CUDA's kernel calls itself in the error
  bool (*applies)(const Call&);
};

// The operators whose CUDA kernels are not deterministic, without overload. Source: the documentation of
// torch.use_deterministic_algorithms (torch 2.13), the expectations of torch's test/test_torch.py
// (test_nondeterministic_alert_*), and aten/src/ATen/native/cuda. Not here: what torch replaces by a deterministic algorithm
// (cumsum, scatter_add, index_add, scatter_reduce with sum or mean, max_pool3d), and histc, which ops.cpp launches.
const std::unordered_map<std::string, Nondeterministic>& nondeterministic() {
  static const auto* table = new std::unordered_map<std::string, Nondeterministic>{
      {"aten::avg_pool3d_backward", {"avg_pool3d_backward_cuda", always}},
      {"aten::_adaptive_avg_pool2d_backward", {"adaptive_avg_pool2d_backward_cuda", always}},
      {"aten::_adaptive_avg_pool3d_backward", {"adaptive_avg_pool3d_backward_cuda", always}},
      {"aten::adaptive_max_pool2d_backward", {"adaptive_max_pool2d_backward_cuda", always}},
      {"aten::fractional_max_pool2d_backward", {"fractional_max_pool2d_backward_cuda", always}},
      {"aten::fractional_max_pool3d_backward", {"fractional_max_pool3d_backward_cuda", always}},
      {"aten::max_unpool2d", {"max_unpooling2d_forward_out", always}},
      {"aten::max_unpool3d", {"max_unpooling3d_forward_out", always}},
      {"aten::upsample_linear1d_backward", {"upsample_linear1d_backward_out_cuda", always}},
      {"aten::upsample_bilinear2d_backward", {"upsample_bilinear2d_backward_out_cuda", always}},
      {"aten::upsample_bicubic2d_backward", {"upsample_bicubic2d_backward_out_cuda", always}},
      {"aten::upsample_trilinear3d_backward", {"upsample_trilinear3d_backward_out_cuda", always}},
      {"aten::reflection_pad1d_backward", {"reflection_pad1d_backward_out_cuda", always}},
      {"aten::reflection_pad2d_backward", {"reflection_pad2d_backward_out_cuda", always}},
      {"aten::reflection_pad3d_backward", {"reflection_pad3d_backward_out_cuda", always}},
      {"aten::replication_pad1d_backward", {"replication_pad1d_backward_cuda", always}},
      {"aten::replication_pad2d_backward", {"replication_pad2d_backward_cuda", always}},
      {"aten::replication_pad3d_backward", {"replication_pad3d_backward_cuda", always}},
      {"aten::nll_loss2d_forward", {"nll_loss2d_forward_out_cuda_template", reduces}},
      {"aten::_ctc_loss_backward", {"ctc_loss_backward_gpu", always}},
      {"aten::_embedding_bag_dense_backward", {"embedding_bag_backward_cuda_max", takes_maximum}},
      {"aten::put_", {"put_", always}},
      {"aten::bincount", {"_bincount_cuda", has_weights}},
      {"aten::median.dim", {"median CUDA with indices output", always}},
      {"aten::median.dim_values", {"median CUDA with indices output", always}},
      {"aten::nanmedian.dim", {"median CUDA with indices output", always}},
      {"aten::nanmedian.dim_values", {"median CUDA with indices output", always}},
      {"aten::kthvalue", {"kthvalue CUDA", always}},
      {"aten::grid_sampler_2d_backward", {"grid_sampler_2d_backward_cuda", always}},
      {"aten::grid_sampler_3d_backward", {"grid_sampler_3d_backward_cuda", always}},
      {"aten::scatter_reduce", {"scatter_reduce_cuda", multiplies}},
      {"aten::scatter_reduce_", {"scatter_reduce_cuda", multiplies}},
      {"aten::index_reduce", {"index_reduce_cuda", always}},
      {"aten::index_reduce_", {"index_reduce_cuda", always}},
  };
  return *table;
}

std::atomic<int64_t> sync_mode{0};

bool has_mask_on_chip(const Call& call) {
  for (const Slot& slot : call.slots) {
    c10::ScalarType dtype = slot.tensor->defined() ? slot.tensor->scalar_type() : c10::ScalarType::Undefined;
    bool index = call.op.args[size_t(slot.argument)].kind == ArgKind::OptionalTensors;
    if (index && on_chip(*slot.tensor) && (dtype == c10::kBool || dtype == c10::kByte)) return true;
  }
  return false;
}

// Masks on the host are turned into indices there, and these are uploaded without waiting.
bool has_index_on_host(const Call& call) {
  for (const Slot& slot : call.slots) {
    const at::Tensor& tensor = *slot.tensor;
    bool index = call.op.args[size_t(slot.argument)].kind == ArgKind::OptionalTensors;
    if (index && tensor.defined() && tensor.device().is_cpu() && tensor.scalar_type() == c10::kLong) return true;
  }
  return false;
}

// True for x[mask] = number, which torch turns into masked_fill. Under CUDA the number is on the host; here it is on the chip.
bool fills_masked(const Call& call) {
  const IValue* values = argument(call, "values");
  if (!values || !values->isTensor()) return false;
  const at::Tensor& value = values->toTensor();
  const IValue* accumulate = argument(call, "accumulate");
  return value.dim() == 0 && !(accumulate && accumulate->isBool() && accumulate->toBool());
}

// Operators that wait on the virtual chip because their sizes depend on host data or on an argument, which CUDA needs no wait
// for.
bool knows_its_sizes(const Call& call) {
  if (call.op.name == "aten::_pack_padded_sequence" || call.op.name == "aten::_ctc_loss") return true;
  const IValue* size = argument(call, "output_size");
  return call.op.name == "aten::repeat_interleave.Tensor" && size && !size->isNone();
}

}  // namespace

uint8_t index_flags(const Call& call) {
  uint8_t flags = 0;
  for (size_t i = 0; i < call.slots.size() && !flags; ++i)
    if (call.signature->storage_of[i] < 0 && call.slots[i].tensor->defined() && call.slots[i].tensor->dim() > 0)
      flags = kHostIndex;
  bool waits = call.op.host_indices && ((has_mask_on_chip(call) && !fills_masked(call)) || has_index_on_host(call));
  return uint8_t(flags | (waits ? kWaits : 0));
}

bool waits_for_result(const Call& call) {
  return call.op.synchronous && !(call.op.masks_decide && !has_mask_on_chip(call)) && !knows_its_sizes(call);
}

void alert_nondeterministic(const char* kernel) {
  if (named_cuda()) at::globalContext().alertNotDeterministic(kernel);
}

void refuse_nondeterministic(const Call& call) {
  const auto& table = nondeterministic();
  auto entry = table.find(call.op.name);
  if (entry == table.end()) entry = table.find(call.op.name.substr(0, call.op.name.find('.')));
  if (entry != table.end() && entry->second.applies(call)) alert_nondeterministic(entry->second.kernel);
}

void set_sync_debug_mode(int64_t mode) { sync_mode = mode; }
int64_t sync_debug_mode() { return sync_mode; }

void alert_wait() {
  int64_t mode = sync_mode.load(std::memory_order_relaxed);
  if (C10_LIKELY(mode == 0)) return;
  const char* text = named_cuda() ? "called a synchronizing CUDA operation" : "called a synchronizing operation of the chip";
  TORCH_CHECK(mode != 2, text);
  TORCH_WARN(text);
}

void alert_wait(const Call& call, bool fallback) {
  if (C10_LIKELY(sync_mode.load(std::memory_order_relaxed) == 0) || call.op.is_view) return;
  if (waits_for_result(call) || index_flags(call) & kWaits || fallback) alert_wait();
}

}  // namespace bringup
