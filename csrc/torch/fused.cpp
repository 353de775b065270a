// Operators that accelerators have one kernel for, and torch's CPU kernels have not. Each is defined here a second time, in the
// namespace bringup_fused, as a composition that the stream's thread runs on the CPU, and on meta tensors to learn its results.
// The chip launches it as one kernel, under torch's name.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/OpMathType.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/PhiloxRNGEngine.h>
#include <ATen/native/DispatchStub.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/ops/_fused_rms_norm.h>
#include <ATen/ops/_fused_sdp_choice_native.h>
#include <ATen/ops/_safe_softmax.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "launch/launch.h"
#include "runtime/runtime.h"

namespace bringup {
namespace {

using at::Tensor;
using std::optional;
using std::tuple;

// The values, as they are computed by the stream's thread.

// torch's CPU kernel would draw from the CPU's default generator.
tuple<Tensor, Tensor> dropout_values(const Tensor& input, double p, optional<at::Generator> generator) {
  double keep = 1 - p;
  Tensor noise = at::empty_like(input).bernoulli_(keep, std::move(generator));
  Tensor mask = noise.to(c10::kBool);
  return {keep == 0 ? input.mul(noise) : input.mul(noise.div_(keep)), mask};
}

// Only the two functions for backward passes read the workspaces of recurrent cells, so their layout may differ from CUDA's.
tuple<Tensor, Tensor, Tensor> lstm_values(const Tensor& input_gates, const Tensor& hidden_gates, const Tensor& cx,
                                          const optional<Tensor>& input_bias, const optional<Tensor>& hidden_bias) {
  Tensor gates = input_gates + hidden_gates;
  if (input_bias && input_bias->defined()) gates = gates + *input_bias;
  if (hidden_bias && hidden_bias->defined()) gates = gates + *hidden_bias;
  auto parts = gates.chunk(4, 1);
  Tensor in = parts[0].sigmoid(), forget = parts[1].sigmoid(), cell = parts[2].tanh(), out = parts[3].sigmoid();
  Tensor cy = forget * cx + in * cell;
  return {out * cy.tanh(), cy, at::cat({in, forget, cell, out}, 1)};
}

tuple<Tensor, Tensor> lstm_backward_values(const optional<Tensor>& grad_hy, const optional<Tensor>& grad_cy, const Tensor& cx,
                                           const Tensor& cy, const Tensor& workspace) {
  auto parts = workspace.chunk(4, 1);
  const Tensor &in = parts[0], &forget = parts[1], &cell = parts[2], &out = parts[3];
  Tensor tanh_cy = cy.tanh();
  Tensor hy = grad_hy && grad_hy->defined() ? *grad_hy : at::zeros_like(cy);
  Tensor total = hy * out * (1 - tanh_cy * tanh_cy);
  if (grad_cy && grad_cy->defined()) total = total + *grad_cy;
  Tensor gates = at::cat({total * cell * in * (1 - in), total * cx * forget * (1 - forget), total * in * (1 - cell * cell),
                          hy * tanh_cy * out * (1 - out)},
                         1);
  return {gates, total * forget};
}

tuple<Tensor, Tensor> gru_values(const Tensor& input_gates, const Tensor& hidden_gates, const Tensor& hx,
                                 const optional<Tensor>& input_bias, const optional<Tensor>& hidden_bias) {
  auto input = (input_bias && input_bias->defined() ? input_gates + *input_bias : input_gates).chunk(3, 1);
  auto hidden = (hidden_bias && hidden_bias->defined() ? hidden_gates + *hidden_bias : hidden_gates).chunk(3, 1);
  Tensor reset = (input[0] + hidden[0]).sigmoid(), update = (input[1] + hidden[1]).sigmoid();
  Tensor fresh = (input[2] + reset * hidden[2]).tanh();
  return {fresh + update * (hx - fresh), at::cat({reset, update, fresh, hx, hidden[2]}, 1)};
}

tuple<Tensor, Tensor, Tensor> gru_backward_values(const Tensor& grad_hy, const Tensor& workspace) {
  auto parts = workspace.chunk(5, 1);
  const Tensor &reset = parts[0], &update = parts[1], &fresh = parts[2], &hx = parts[3], &hidden = parts[4];
  Tensor grad_update = grad_hy * (hx - fresh) * update * (1 - update);
  Tensor grad_fresh = grad_hy * (1 - update) * (1 - fresh * fresh);
  Tensor grad_reset = grad_fresh * hidden * reset * (1 - reset);
  Tensor input = at::cat({grad_reset, grad_update, grad_fresh}, 1);
  return {input, at::cat({grad_reset, grad_update, grad_fresh * reset}, 1), grad_hy * update};
}

tuple<Tensor, Tensor> rms_norm_values(const Tensor& input, at::IntArrayRef shape, const optional<Tensor>& weight,
                                      optional<double> eps) {
  return at::_fused_rms_norm(input, shape, weight, eps);
}

// With n = x * rstd and g = dy * w: dx = rstd * (g - n * mean(g * n)), dw = sum(dy * n). Half precision computes in float32.
tuple<Tensor, Tensor> rms_norm_backward_values(const Tensor& grad, const Tensor& input, at::IntArrayRef shape, const Tensor& rstd,
                                               const optional<Tensor>& weight, std::array<bool, 2> output_mask) {
  bool has_weight = weight && weight->defined();
  auto wide = at::toOpMathType(input.scalar_type());
  std::vector<int64_t> inner, outer;
  for (int64_t dim = 0; dim < input.dim(); ++dim) (dim < input.dim() - int64_t(shape.size()) ? outer : inner).push_back(dim);
  Tensor scale = rstd.to(wide), normal = input.to(wide) * scale, wide_grad = grad.to(wide);
  Tensor scaled = has_weight ? wide_grad * weight->to(wide) : wide_grad;
  Tensor to_input, to_weight;
  if (output_mask[0]) to_input = (scale * (scaled - normal * (scaled * normal).mean(inner, true))).to(input.scalar_type());
  if (output_mask[1] && has_weight) {
    Tensor product = wide_grad * normal;
    to_weight = (outer.empty() ? product : product.sum(outer)).to(weight->scalar_type());
  }
  return {to_input, to_weight};
}

// Keys or values whose heads are shared by groups of queries, once for each query's head.
Tensor per_head(const Tensor& shared, int64_t heads) {
  return shared.size(-3) == heads ? shared : shared.repeat_interleave(heads / shared.size(-3), -3);
}

Tensor sum_of_groups(const Tensor& grad, const Tensor& shared) {
  int64_t heads = shared.size(-3);
  return grad.size(-3) == heads ? grad : grad.unflatten(-3, {heads, grad.size(-3) / heads}).sum(-3);
}

// The scaled and masked products of queries and keys, in at least float32. Rows that are masked as a whole have weights of zero.
Tensor attention_scores(const Tensor& query, const Tensor& key, const optional<Tensor>& bias, bool is_causal, double scale) {
  double root = std::sqrt(std::abs(scale));  // of both, as torch has it, against overflow
  Tensor scores = at::matmul(query * root, key.transpose(-2, -1) * std::copysign(root, scale));
  if (is_causal) {
    Tensor seen = at::ones({scores.size(-2), scores.size(-1)}, scores.options().dtype(c10::kBool)).tril();
    scores = scores.masked_fill(seen.logical_not(), -INFINITY);
  }
  return bias && bias->defined() ? scores + *bias : scores;
}

// Note [Dropout in attention]
// The backward pass draws the numbers of the forward pass again, from a state that the forward pass returns: that of the CPU's
// generator before it drew. A driver with kernels may compute one of the two passes, and the host the other. So both then draw by
// Philox, and the state begins with a seed, kPhilox, and an offset. Element i of the weights is kept by number i % 4 of thread
// i / 4. csrc/drivers/kit_attention.h draws the same.
constexpr uint64_t kPhilox = ~uint64_t(0);  // where a state of the CPU's generator has two small numbers

// Which elements of the weights are kept.
Tensor attention_keeps(const Tensor& query, const Tensor& key, double p, optional<at::Generator> generator, const Tensor& state) {
  auto sizes = query.sizes().vec();
  sizes.back() = key.size(-2);
  Tensor keeps = at::empty(sizes, query.options().dtype(c10::kBool));
  const auto* words = query.is_meta() ? nullptr : static_cast<const uint64_t*>(state.const_data_ptr());
  if (!words || words[1] != kPhilox) return keeps.bernoulli_(1 - p, std::move(generator));
  auto* keep = keeps.mutable_data_ptr<bool>();
  auto below = uint64_t(std::ldexp(1 - p, 32));
  for (int64_t i = 0; i < keeps.numel(); i += 4) {
    at::Philox4_32 engine(words[0], uint64_t(i / 4), words[2] / 4);
    for (int64_t k = i; k < std::min(i + 4, keeps.numel()); ++k) keep[k] = engine() < below;
  }
  return keeps;
}

// Compiled code draws from the CPU's default generator.
at::Generator or_default(optional<at::Generator> generator) {
  return generator && generator->defined() ? *generator : at::detail::getDefaultCPUGenerator();
}

Tensor state_of(at::Generator generator) {
  std::lock_guard<std::mutex> lock(generator.mutex());
  Tensor state = generator.get_state();
  if (!native_driver()) return state;
  uint64_t words[] = {at::check_generator<at::CPUGeneratorImpl>(generator)->random64(), kPhilox, 0};
  std::memcpy(state.mutable_data_ptr(), words, sizeof words);
  return state;
}

double attention_scale(const Tensor& query, optional<double> scale) {
  return scale.value_or(1 / std::sqrt(double(query.size(-1))));
}

// The layout of the results of CUDA's kernels: the usual transposition that follows costs no copy.
Tensor heads_side_by_side(const Tensor& tensor) { return tensor.transpose(1, 2).contiguous().transpose(1, 2); }

// Returns the result and the logarithms of the sums. `keeps` is undefined without dropout.
tuple<Tensor, Tensor> attention_result(const Tensor& query, const Tensor& key, const Tensor& value,
                                       const optional<Tensor>& attn_bias, const Tensor& keeps, double dropout_p, bool is_causal,
                                       optional<double> scale) {
  auto wide = at::toOpMathType(query.scalar_type());
  Tensor q = query.to(wide), k = per_head(key, query.size(-3)).to(wide), v = per_head(value, query.size(-3)).to(wide);
  Tensor scores = attention_scores(q, k, attn_bias, is_causal, attention_scale(query, scale));
  Tensor weights = at::_safe_softmax(scores, -1);
  if (keeps.defined()) weights = weights.mul_(keeps).div_(1 - dropout_p);
  Tensor result = at::matmul(weights, v).to(query.scalar_type());
  return {heads_side_by_side(result), at::logsumexp(scores, {-1})};
}

// Returns the result, the logarithms of the sums, and the state of the generator, from which a backward pass draws again.
tuple<Tensor, Tensor, Tensor> attention_values(const Tensor& query, const Tensor& key, const Tensor& value,
                                               const optional<Tensor>& attn_bias, double dropout_p, bool is_causal,
                                               optional<double> scale, optional<at::Generator> generator) {
  static const int64_t bytes = at::detail::createCPUGenerator().get_state().numel();
  at::Generator draws = or_default(std::move(generator));
  Tensor state = query.is_meta() ? at::empty({bytes}, query.options().dtype(c10::kByte)) : state_of(draws);
  Tensor keeps = attention_keeps(query, key, dropout_p, draws, state);
  auto [result, sums] = attention_result(query, key, value, attn_bias, keeps, dropout_p, is_causal, scale);
  return {result, sums, state};
}

// The gradients of queries, keys and values. The last argument is the sum over each row of the weights' gradients times the
// weights, which equals the sum of the result's gradients times the result.
tuple<Tensor, Tensor, Tensor> attention_gradients(const Tensor& grad_out, const Tensor& query, const Tensor& key,
                                                  const Tensor& value, const Tensor& weights, const Tensor& keeps, double scale,
                                                  const optional<Tensor>& row_sums) {
  auto wide = weights.scalar_type(), dtype = query.scalar_type();
  Tensor q = query.to(wide), k = per_head(key, query.size(-3)).to(wide), v = per_head(value, query.size(-3)).to(wide);
  Tensor grad = grad_out.to(wide);
  Tensor to_value = at::matmul((weights * keeps).transpose(-2, -1), grad);
  Tensor to_weights = at::matmul(grad, v.transpose(-2, -1)) * keeps;
  Tensor sums = row_sums ? *row_sums : (to_weights * weights).sum(-1, true);
  Tensor to_scores = weights * (to_weights - sums) * scale;
  Tensor to_query = at::matmul(to_scores, k), to_key = at::matmul(to_scores.transpose(-2, -1), q);
  auto laid_out = [&](const Tensor& gradient) { return heads_side_by_side(gradient.to(dtype)); };
  return {laid_out(to_query), laid_out(sum_of_groups(to_key, key)), laid_out(sum_of_groups(to_value, value))};
}

tuple<Tensor, Tensor, Tensor> attention_backward_values(const Tensor& grad_out, const Tensor& query, const Tensor& key,
                                                        const Tensor& value, const optional<Tensor>& attn_bias,
                                                        const Tensor& /*logsumexp*/, double dropout_p, bool is_causal,
                                                        const Tensor& state, optional<double> scale) {
  auto wide = at::toOpMathType(query.scalar_type());
  double factor = attention_scale(query, scale);
  Tensor q = query.to(wide), k = per_head(key, query.size(-3)).to(wide);
  Tensor weights = at::_safe_softmax(attention_scores(q, k, attn_bias, is_causal, factor), -1);
  optional<at::Generator> generator;
  if (!query.is_meta() && static_cast<const uint64_t*>(state.const_data_ptr())[1] != kPhilox) {
    generator = at::detail::createCPUGenerator();
    generator->set_state(state);
  }
  Tensor keeps = attention_keeps(query, key, dropout_p, std::move(generator), state).to(wide).div_(1 - dropout_p);
  return attention_gradients(grad_out, query, key, value, weights, keeps, factor, std::nullopt);
}

// A state for attention_keeps with a seed of Philox.
Tensor philox_state(const Tensor& seed) {
  Tensor state = at::empty({3}, seed.options().dtype(c10::kLong));
  if (seed.is_meta()) return state;
  uint64_t words[] = {*static_cast<const uint64_t*>(seed.const_data_ptr()), kPhilox, 0};
  std::memcpy(state.mutable_data_ptr(), words, sizeof words);
  return state;
}

// Rings over several ranks add up the results of parts of the keys, and give the backward pass of each part the result and the
// logarithms of the whole. So the state of dropout is two numbers, as on CUDA, and the backward pass uses what it is given.
tuple<Tensor, Tensor, Tensor, Tensor> efficient_attention_values(const Tensor& query, const Tensor& key, const Tensor& value,
                                                                 const optional<Tensor>& attn_bias, double dropout_p,
                                                                 bool is_causal, optional<double> scale,
                                                                 optional<at::Generator> generator) {
  Tensor keeps, seed = at::zeros({}, query.options().dtype(c10::kLong));
  if (dropout_p > 0) {
    if (!query.is_meta()) {
      at::Generator draws = or_default(std::move(generator));
      std::lock_guard<std::mutex> lock(draws.mutex());
      seed.fill_(int64_t(at::check_generator<at::CPUGeneratorImpl>(draws)->random64() >> 1));
    }
    keeps = attention_keeps(query, key, dropout_p, std::nullopt, philox_state(seed));
  }
  auto [result, sums] = attention_result(query, key, value, attn_bias, keeps, dropout_p, is_causal, scale);
  return {result, sums, seed, at::zeros_like(seed)};
}

tuple<Tensor, Tensor, Tensor> efficient_attention_backward_values(const Tensor& grad_out, const Tensor& query, const Tensor& key,
                                                                  const Tensor& value, const optional<Tensor>& attn_bias,
                                                                  const Tensor& out, const Tensor& logsumexp, const Tensor& seed,
                                                                  double dropout_p, bool is_causal, optional<double> scale) {
  auto wide = at::toOpMathType(query.scalar_type());
  double factor = attention_scale(query, scale);
  Tensor q = query.to(wide), k = per_head(key, query.size(-3)).to(wide), sums = logsumexp.unsqueeze(-1).to(wide);
  Tensor weights = (attention_scores(q, k, attn_bias, is_causal, factor) - sums).exp().masked_fill(sums == -INFINITY, 0);
  Tensor keeps = dropout_p > 0
                     ? attention_keeps(query, key, dropout_p, std::nullopt, philox_state(seed)).to(wide) / (1 - dropout_p)
                     : at::ones({}, weights.options());
  Tensor row_sums = (grad_out.to(wide) * out.to(wide)).sum(-1, true);
  return attention_gradients(grad_out, query, key, value, weights, keeps, factor, row_sums);
}

// True for a tensor of Python that has others inside, such as DTensor. Fake tensors have a storage on `meta`, and none inside.
// While a graph is traced, every tensor is in one of the tracer's own.
bool has_tensors_inside(const Tensor& tensor) {
  if (!tensor.key_set().has(c10::DispatchKey::Python) || !tensor.has_storage()) return false;
  if (c10::impl::TorchDispatchModeTLS::get_mode(c10::impl::TorchDispatchModeKey::FUNCTIONAL)) return false;
  return tensor.device().type() == c10::kPrivateUse1 && !tensor.storage().device().is_meta() && !tensor.storage().data();
}

// True if the program has turned on a fused kernel that accelerators have.
bool may_fuse() {
  const at::Context& context = at::globalContext();
  return context.userEnabledFlashSDP() || context.userEnabledMemEfficientSDP() || context.userEnabledCuDNNSDP();
}

bool takes_fused_kernel(const Tensor& query, const optional<Tensor>& mask) {
  bool takes = query.dim() == 4 && query.layout() == c10::kStrided && c10::isFloatingType(query.scalar_type());
  return takes && !(mask && mask->defined() && mask->requires_grad());
}

// True if the program has turned off the one fused kernel that the CPU has, but not all that accelerators have.
bool wants_another_fused_kernel(const Tensor& query, const optional<Tensor>& mask) {
  return !at::globalContext().userEnabledFlashSDP() && may_fuse() && takes_fused_kernel(query, mask);
}

// True if no fused kernel of an accelerator takes the mask: neighbours in a row must be neighbours in memory. The CPU's takes all
// masks (check_last_dim_stride_equals_1_dense of ATen/native/transformers/sdp_utils_cpp.h).
bool is_strided_mask(const optional<Tensor>& mask) {
  return mask && mask->defined() && mask->dim() > 0 && mask->sym_stride(-1) != 1;
}

// Chooses between the kernels for attention without reading data. With dropout, the CPU has no fused kernel, and accelerators
// have. Classes of tensors such as DTensor know the kernels of accelerators, and not the CPU's.
int64_t attention_choice(const Tensor& query, const Tensor& key, const Tensor& value, const optional<Tensor>& attn_mask,
                         double dropout_p, bool is_causal, optional<double> scale, bool enable_gqa) {
  constexpr int64_t kMath = 0, kFlash = 1, kEfficient = 2,
                    kOverrideable = 4;  // of SDPBackend, whose namespace depends on the release
  if (is_strided_mask(attn_mask)) return kMath;
  if (has_tensors_inside(query)) return takes_fused_kernel(query, attn_mask) && may_fuse() ? kEfficient : kMath;
  if (dropout_p < 1 && wants_another_fused_kernel(query, attn_mask)) return kOverrideable;
  int64_t choice = at::native::_fused_sdp_choice_cpp(query, key, value, attn_mask, 0, is_causal, scale, enable_gqa);
  if (dropout_p == 0 || choice != kFlash) return choice;
  return dropout_p < 1 ? kOverrideable : kMath;
}

TORCH_LIBRARY(bringup_fused, m) {
  m.def(
      "_fused_sdp_choice(Tensor query, Tensor key, Tensor value, Tensor? attn_mask, float dropout_p, bool is_causal,"
      " float? scale, bool enable_gqa) -> int",
      {at::Tag::pt2_compliant_tag});
  m.def("native_dropout(Tensor input, float p, Generator? generator) -> (Tensor, Tensor)");
  m.def(
      "_thnn_fused_lstm_cell(Tensor input_gates, Tensor hidden_gates, Tensor cx, Tensor? input_bias, Tensor? hidden_bias)"
      " -> (Tensor, Tensor, Tensor)");
  m.def(
      "_thnn_fused_lstm_cell_backward(Tensor? grad_hy, Tensor? grad_cy, Tensor cx, Tensor cy, Tensor workspace)"
      " -> (Tensor, Tensor)");
  m.def(
      "_thnn_fused_gru_cell(Tensor input_gates, Tensor hidden_gates, Tensor hx, Tensor? input_bias, Tensor? hidden_bias)"
      " -> (Tensor, Tensor)");
  m.def("_thnn_fused_gru_cell_backward(Tensor grad_hy, Tensor workspace) -> (Tensor, Tensor, Tensor)");
  m.def("_fused_rms_norm(Tensor input, int[] normalized_shape, Tensor? weight, float? eps) -> (Tensor, Tensor)");
  m.def(
      "_fused_rms_norm_backward(Tensor grad_out, Tensor input, int[] normalized_shape, Tensor rstd, Tensor? weight,"
      " bool[2] output_mask) -> (Tensor, Tensor)");
  m.def(
      "_scaled_dot_product_flash_attention(Tensor query, Tensor key, Tensor value, Tensor? attn_bias, float dropout_p,"
      " bool is_causal, float? scale, Generator? generator) -> (Tensor, Tensor, Tensor)");
  m.def(
      "_scaled_dot_product_flash_attention_backward(Tensor grad_out, Tensor query, Tensor key, Tensor value,"
      " Tensor? attn_bias, Tensor logsumexp, float dropout_p, bool is_causal, Tensor philox_seed, float? scale)"
      " -> (Tensor, Tensor, Tensor)");
  m.def(
      "_scaled_dot_product_efficient_attention(Tensor query, Tensor key, Tensor value, Tensor? attn_bias, float dropout_p,"
      " bool is_causal, float? scale, Generator? generator) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "_scaled_dot_product_efficient_attention_backward(Tensor grad_out, Tensor query, Tensor key, Tensor value,"
      " Tensor? attn_bias, Tensor out, Tensor logsumexp, Tensor philox_seed, float dropout_p, bool is_causal, float? scale)"
      " -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(bringup_fused, CompositeImplicitAutograd, m) { m.impl("_fused_sdp_choice", &attention_choice); }

TORCH_LIBRARY_IMPL(bringup_fused, CompositeExplicitAutograd, m) {
  m.impl("native_dropout", &dropout_values);
  m.impl("_thnn_fused_lstm_cell", &lstm_values);
  m.impl("_thnn_fused_lstm_cell_backward", &lstm_backward_values);
  m.impl("_thnn_fused_gru_cell", &gru_values);
  m.impl("_thnn_fused_gru_cell_backward", &gru_backward_values);
  m.impl("_fused_rms_norm", &rms_norm_values);
  m.impl("_fused_rms_norm_backward", &rms_norm_backward_values);
  m.impl("_scaled_dot_product_flash_attention", &attention_values);
  m.impl("_scaled_dot_product_flash_attention_backward", &attention_backward_values);
  m.impl("_scaled_dot_product_efficient_attention", &efficient_attention_values);
  m.impl("_scaled_dot_product_efficient_attention_backward", &efficient_attention_backward_values);
}

// The launches.

// Launches an operator of bringup_fused, and returns its results.
template <typename... Arguments>
Stack launch_fused(Op& op, Arguments&&... arguments) {
  Stack stack{c10::IValue(std::forward<Arguments>(arguments))...};
  launch_boxed(op, &stack);
  return stack;
}

const c10::IValue kDefaultGenerator;

tuple<Tensor, Tensor> native_dropout(const Tensor& input, double p, optional<bool> train) {
  static Op& op = find_op("bringup_fused::native_dropout");
  if (input.numel() == 0 || !train.value_or(true))
    return {input.clone(), at::ones_like(input, input.options().dtype(c10::kBool))};
  TORCH_CHECK(input.is_floating_point(), "native_dropout(): not implemented for '", input.scalar_type(), "'");
  Stack results = launch_fused(op, input, p, kDefaultGenerator);
  return {results[0].toTensor(), results[1].toTensor()};
}

tuple<Tensor, Tensor, Tensor> lstm_cell(const Tensor& input_gates, const Tensor& hidden_gates, const Tensor& cx,
                                        const optional<Tensor>& input_bias, const optional<Tensor>& hidden_bias) {
  static Op& op = find_op("bringup_fused::_thnn_fused_lstm_cell");
  Stack results = launch_fused(op, input_gates, hidden_gates, cx, input_bias, hidden_bias);
  return {results[0].toTensor(), results[1].toTensor(), results[2].toTensor()};
}

tuple<Tensor, Tensor, Tensor> lstm_cell_backward(const optional<Tensor>& grad_hy, const optional<Tensor>& grad_cy,
                                                 const Tensor& cx, const Tensor& cy, const Tensor& workspace, bool has_bias) {
  static Op& op = find_op("bringup_fused::_thnn_fused_lstm_cell_backward");
  if (!(grad_hy && grad_hy->defined()) && !(grad_cy && grad_cy->defined())) return {};
  Stack results = launch_fused(op, grad_hy, grad_cy, cx, cy, workspace);
  Tensor gates = results[0].toTensor();
  return {gates, results[1].toTensor(), has_bias ? gates.sum(0) : Tensor()};
}

tuple<Tensor, Tensor> gru_cell(const Tensor& input_gates, const Tensor& hidden_gates, const Tensor& hx,
                               const optional<Tensor>& input_bias, const optional<Tensor>& hidden_bias) {
  static Op& op = find_op("bringup_fused::_thnn_fused_gru_cell");
  Stack results = launch_fused(op, input_gates, hidden_gates, hx, input_bias, hidden_bias);
  return {results[0].toTensor(), results[1].toTensor()};
}

tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gru_cell_backward(const Tensor& grad_hy, const Tensor& workspace, bool has_bias) {
  static Op& op = find_op("bringup_fused::_thnn_fused_gru_cell_backward");
  Stack results = launch_fused(op, grad_hy, workspace);
  Tensor input = results[0].toTensor(), hidden = results[1].toTensor();
  return {input, hidden, results[2].toTensor(), has_bias ? input.sum(0) : Tensor(), has_bias ? hidden.sum(0) : Tensor()};
}

tuple<Tensor, Tensor> rms_norm(const Tensor& input, at::IntArrayRef shape, const optional<Tensor>& weight, optional<double> eps) {
  static Op& op = find_op("bringup_fused::_fused_rms_norm");
  Stack results = launch_fused(op, input, shape, weight, eps);
  return {results[0].toTensor(), results[1].toTensor()};
}

tuple<Tensor, Tensor> rms_norm_backward(const Tensor& grad, const Tensor& input, at::IntArrayRef shape, const Tensor& rstd,
                                        const optional<Tensor>& weight, std::array<bool, 2> output_mask) {
  static Op& op = find_op("bringup_fused::_fused_rms_norm_backward");
  Stack results = launch_fused(op, grad, input, shape, rstd, weight, output_mask);
  return {results[0].toTensor(), results[1].toTensor()};
}

using AttentionResults = tuple<Tensor, Tensor, Tensor, Tensor, c10::SymInt, c10::SymInt, Tensor, Tensor, Tensor>;

AttentionResults attention(const Tensor& query, const Tensor& key, const Tensor& value, const optional<Tensor>& attn_bias,
                           double dropout_p, bool is_causal, bool return_debug_mask, optional<double> scale) {
  static Op& op = find_op("bringup_fused::_scaled_dot_product_flash_attention");
  Stack results = launch_fused(op, query, key, value, attn_bias, dropout_p, is_causal, scale, kDefaultGenerator);
  return {results[0].toTensor(), results[1].toTensor(), {}, {}, query.sym_size(-2),
          key.sym_size(-2),      results[2].toTensor(), {}, {}};
}

tuple<Tensor, Tensor, Tensor, Tensor> attention_backward(const Tensor& grad_out, const Tensor& query, const Tensor& key,
                                                         const Tensor& value, const Tensor& attn_bias, std::array<bool, 4>,
                                                         const Tensor&, const Tensor& logsumexp, const Tensor&, const Tensor&,
                                                         c10::SymInt, c10::SymInt, double dropout_p, bool is_causal,
                                                         const Tensor& state, const Tensor&, optional<double> scale) {
  static Op& op = find_op("bringup_fused::_scaled_dot_product_flash_attention_backward");
  optional<Tensor> bias = attn_bias.defined() ? optional<Tensor>(attn_bias) : std::nullopt;
  Stack results = launch_fused(op, grad_out, query, key, value, bias, logsumexp, dropout_p, is_causal, state, scale);
  return {results[0].toTensor(), results[1].toTensor(), results[2].toTensor(), Tensor()};
}

tuple<Tensor, Tensor, Tensor, Tensor> efficient_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                                                          const optional<Tensor>& attn_bias, bool /*compute_log_sumexp*/,
                                                          double dropout_p, bool is_causal, optional<double> scale) {
  static Op& op = find_op("bringup_fused::_scaled_dot_product_efficient_attention");
  Stack results = launch_fused(op, query, key, value, attn_bias, dropout_p, is_causal, scale, kDefaultGenerator);
  return {results[0].toTensor(), results[1].toTensor(), results[2].toTensor(), results[3].toTensor()};
}

tuple<Tensor, Tensor, Tensor, Tensor> efficient_attention_backward(const Tensor& grad_out, const Tensor& query, const Tensor& key,
                                                                   const Tensor& value, const Tensor& attn_bias,
                                                                   const Tensor& out, const Tensor& logsumexp,
                                                                   const Tensor& philox_seed, const Tensor& /*philox_offset*/,
                                                                   double dropout_p, std::array<bool, 4> mask, bool is_causal,
                                                                   optional<double> scale) {
  static Op& op = find_op("bringup_fused::_scaled_dot_product_efficient_attention_backward");
  TORCH_CHECK(!mask[3], "_scaled_dot_product_efficient_attention_backward: a gradient of attn_bias is not computed");
  if (!grad_out.defined()) return {};
  optional<Tensor> bias = attn_bias.defined() ? optional<Tensor>(attn_bias) : std::nullopt;
  Stack results = launch_fused(op, grad_out, query, key, value, bias, out, logsumexp, philox_seed, dropout_p, is_causal, scale);
  return {results[0].toTensor(), results[1].toTensor(), results[2].toTensor(), Tensor()};
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("native_dropout", &native_dropout);
  m.impl("_thnn_fused_lstm_cell", &lstm_cell);
  m.impl("_thnn_fused_lstm_cell_backward_impl", &lstm_cell_backward);
  m.impl("_thnn_fused_gru_cell", &gru_cell);
  m.impl("_thnn_fused_gru_cell_backward", &gru_cell_backward);
  m.impl("_fused_rms_norm", &rms_norm);
  m.impl("_fused_rms_norm_backward", &rms_norm_backward);
  m.impl("_fused_sdp_choice", &attention_choice);
  m.impl("_scaled_dot_product_fused_attention_overrideable", &attention);
  m.impl("_scaled_dot_product_fused_attention_overrideable_backward", &attention_backward);
  m.impl("_scaled_dot_product_efficient_attention", &efficient_attention);
  m.impl("_scaled_dot_product_efficient_attention_backward", &efficient_attention_backward);
}

}  // namespace
}  // namespace bringup

namespace at::native {
REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &bringup::attention_choice)
}
