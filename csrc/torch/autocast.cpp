// torch.autocast("chip"): torch's lists of operators, with one boxed kernel per policy.
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "runtime/runtime.h"

namespace bringup {
namespace {

using c10::IValue;
using torch::jit::Stack;

const c10::DispatchKeySet kAutocast{c10::DispatchKey::AutocastPrivateUse1};

template <class F>
void for_each_tensor(const c10::OperatorHandle& op, Stack* stack, F f) {
  size_t count = op.schema().arguments().size();
  for (size_t i = stack->size() - count; i < stack->size(); ++i) {
    IValue& value = (*stack)[i];
    if (value.isTensor()) {
      value = f(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(f(tensor));
      value = std::move(list);
    }
  }
}

void cast_all(const c10::OperatorHandle& op, Stack* stack, c10::ScalarType dtype) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(kAutocast);
  for_each_tensor(op, stack, [&](const at::Tensor& tensor) {
    return tensor.defined() ? at::autocast::cached_cast(dtype, tensor, kChip) : tensor;
  });
  op.callBoxed(stack);
}

void lower_precision(const c10::OperatorHandle& op, Stack* stack) {
  cast_all(op, stack, at::autocast::get_autocast_dtype(kChip));
}
void fp32(const c10::OperatorHandle& op, Stack* stack) { cast_all(op, stack, c10::kFloat); }

void promote(const c10::OperatorHandle& op, Stack* stack) {
  c10::ScalarType widest = at::autocast::get_autocast_dtype(kChip);
  for_each_tensor(op, stack, [&](const at::Tensor& tensor) {
    if (tensor.defined()) widest = at::autocast::prioritize(widest, tensor, kChip);
    return tensor;
  });
  cast_all(op, stack, widest);
}

// Sets the output dtype of reductions to float32, unless the caller has chosen one.
void fp32_output(const c10::OperatorHandle& op, Stack* stack) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(kAutocast);
  const auto& arguments = op.schema().arguments();
  size_t first = stack->size() - arguments.size();
  const at::Tensor& input = (*stack)[first].toTensor();
  for (size_t i = 0; i < arguments.size(); ++i)
    if (arguments[i].name() == "dtype" && (*stack)[first + i].isNone() && at::autocast::is_eligible(input, kChip))
      (*stack)[first + i] = IValue(c10::kFloat);
  op.callBoxed(stack);
}

void banned(const c10::OperatorHandle&, Stack*) {
  TORCH_CHECK(false,
              "binary_cross_entropy is unsafe under autocast: its input must be float32. Use "
              "binary_cross_entropy_with_logits, or leave autocast for this call");
}

std::string full_name(const char* op, const char* overload) { return std::string(op) + (*overload ? "." : "") + overload; }

}  // namespace

void register_autocast() {
  static auto* aten = new torch::Library(torch::Library::IMPL, "aten", c10::DispatchKey::AutocastPrivateUse1, __FILE__, __LINE__);
  static auto* others = new torch::Library(torch::Library::IMPL, "_", c10::DispatchKey::AutocastPrivateUse1, __FILE__, __LINE__);
  others->fallback(torch::CppFunction::makeFallthrough());
#define BRINGUP_LOWER(OP, ...) \
  aten->impl(full_name(#OP, #__VA_ARGS__).c_str(), torch::CppFunction::makeFromBoxedFunction<&lower_precision>());
#define BRINGUP_FP32(OP, ...) \
  aten->impl(full_name(#OP, #__VA_ARGS__).c_str(), torch::CppFunction::makeFromBoxedFunction<&fp32>());
#define BRINGUP_OUTPUT(OP, ...) \
  aten->impl(full_name(#OP, #__VA_ARGS__).c_str(), torch::CppFunction::makeFromBoxedFunction<&fp32_output>());
#define BRINGUP_PROMOTE(OP, ...) \
  aten->impl(full_name(#OP, #__VA_ARGS__).c_str(), torch::CppFunction::makeFromBoxedFunction<&promote>());
  AT_FORALL_LOWER_PRECISION_FP(BRINGUP_LOWER)
  AT_FORALL_FP32(BRINGUP_FP32)
  AT_FORALL_FP32_SET_OPT_DTYPE(BRINGUP_OUTPUT)
  AT_FORALL_PROMOTE(BRINGUP_PROMOTE)
  for (const char* name : {"norm.Scalar", "norm.ScalarOpt_dim"})
    aten->impl(name, torch::CppFunction::makeFromBoxedFunction<&fp32>());
  for (const char* name : {"stack", "cat"}) aten->impl(name, torch::CppFunction::makeFromBoxedFunction<&promote>());
  aten->impl("binary_cross_entropy", torch::CppFunction::makeFromBoxedFunction<&banned>());
}

}  // namespace bringup
