// Fused optimizers, as torch's fused kernels compute them: one launch of a kernel per parameter.
#pragma once
#include "kit_pointwise.h"

namespace kit {

inline const Source kOptimizers = {"optimizers", R"(
typedef WIDE(T) V;
// Scaled gradients: with an overflow in `found`, nothing is updated; else gradients are divided by `scale`.
#define SCALED \
  if (scaled & 2 && found[0] != 0) return; \
  V x = LOAD(T, w, i), d = LOAD(T, g, i); \
  if (scaled & 1) { d /= scale[0]; STORE(T, g, i, d); } \
  if (maximize) d = -d;

// Loshchilov and Hutter 2019 (decoupled), Kingma and Ba 2015 (not decoupled), Reddi et al. 2018 (amsgrad).
KERNEL adam(long n, ARG(T, w), ARG(T, g), ARG(T, m), ARG(T, v), ARG(T, top), ARG(float, step), ARG(float, scale), ARG(float, found),
            V lr, V beta1, V beta2, V decay, V eps, int decoupled, int amsgrad, int maximize, int scaled) {
  USE(T, w); USE(T, g); USE(T, m); USE(T, v); USE(T, top); USE(float, step); USE(float, scale); USE(float, found);
  long i = GROUP * LANES + LANE;
  if (i >= n) return;
  SCALED
  if (decoupled) x -= lr * decay * x;
  else d += decay * x;
  V before = LOAD(T, m, i), first = before + (1 - beta1) * (d - before), second = beta2 * LOAD(T, v, i) + (1 - beta2) * d * d;
  V c1 = 1 - pow(beta1, (V)step[0]), c2 = 1 - pow(beta2, (V)step[0]), most = second;
  if (amsgrad) {
    most = fmax(LOAD(T, top, i), second);
    STORE(T, top, i, most);
  }
  STORE(T, m, i, first);
  STORE(T, v, i, second);
  STORE(T, w, i, x - lr / c1 * first / (sqrt(most) / sqrt(c2) + eps));
}

// Sutskever et al. 2013, with torch's dampening.
KERNEL sgd(long n, ARG(T, w), ARG(T, g), ARG(T, m), ARG(float, scale), ARG(float, found), V lr, V momentum, V decay, V dampening,
           int nesterov, int maximize, int first, int scaled) {
  USE(T, w); USE(T, g); USE(T, m); USE(float, scale); USE(float, found);
  long i = GROUP * LANES + LANE;
  if (i >= n) return;
  SCALED
  d += decay * x;
  if (momentum != 0) {
    V moved = first ? d : momentum * LOAD(T, m, i) + (1 - dampening) * d;
    STORE(T, m, i, moved);
    d = nesterov ? d + momentum * moved : moved;
  }
  STORE(T, w, i, x - lr * d);
}
)"};

struct Scaling {  // grad_scale, found_inf
  int flags = 0;
  int arguments[2] = {-1, -1};
};

inline Scaling scaling_of(Call& call, int first) {
  Scaling s;
  for (int i : {0, 1})
    if (!call.none(first + i)) s.flags |= 1 << i, s.arguments[i] = first + i;
  return s;
}

inline void add_scaling(Call& call, Step& step, const Scaling& s, const Tensor& otherwise) {
  for (int argument : s.arguments) step.buffer(argument < 0 ? otherwise : call.tensor(argument));
}

inline bool same_plain(Call& call, int i, std::initializer_list<int> lists) {
  int dtype = call.element(0, i).dtype;
  for (int list : lists)
    if (!call.element(list, i).plain(dtype) || !is_floating(dtype)) return call.refuse("not contiguous, or not of one dtype");
  return true;
}

// (self, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, state_steps, lr, beta1, beta2, weight_decay, eps, amsgrad, maximize,
// grad_scale, found_inf)
inline Make adam(bool decoupled) {
  return [=](Call& call) {
    bool amsgrad = call.is_true(11);
    if (call.argument(6).kind != BRINGUP_DOUBLE) return call.refuse("the learning rate is a tensor");
    Scaling scaling = scaling_of(call, 13);
    for (int i = 0; i < call.argument(0).count; ++i) {
      Tensor w = call.element(0, i), steps = call.element(5, i);
      if (!same_plain(call, i, {0, 1, 2, 3}) || (amsgrad && !same_plain(call, i, {4}))) return false;
      if (!steps.plain(BRINGUP_FLOAT32)) return call.refuse("the steps are not float32");
      if (w.numel() == 0) continue;
      Step& step = call.each(kOptimizers, types({{"T", w.dtype}}), "adam", w.numel());
      for (int list : {0, 1, 2, 3}) step.buffer(call.element(list, i));
      step.buffer(amsgrad ? call.element(4, i) : w).buffer(steps);
      add_scaling(call, step, scaling, steps);
      for (int number : {6, 7, 8, 9, 10}) step.number(letter_of(w.dtype), call.argument(number).number);
      for (int flag : {int(decoupled), int(amsgrad), int(call.is_true(12)), scaling.flags}) step.value(int32_t(flag));
    }
    return true;
  };
}

// (self, grads, momentum_buffers, weight_decay, momentum, lr, dampening, nesterov, maximize, is_first_step, grad_scale,
// found_inf)
inline bool sgd(Call& call) {
  if (call.argument(5).kind != BRINGUP_DOUBLE) return call.refuse("the learning rate is a tensor");
  bool moves = call.argument(2).count > 0;
  Scaling scaling = scaling_of(call, 10);
  for (int i = 0; i < call.argument(0).count; ++i) {
    Tensor w = call.element(0, i);
    if (!same_plain(call, i, {0, 1}) || (moves && !same_plain(call, i, {2}))) return false;
    if (w.numel() == 0) continue;
    Step& step = call.each(kOptimizers, types({{"T", w.dtype}}), "sgd", w.numel());
    step.buffer(w).buffer(call.element(1, i)).buffer(moves ? call.element(2, i) : w);
    add_scaling(call, step, scaling, w);
    for (int number : {5, 4, 3, 6}) step.number(letter_of(w.dtype), call.argument(number).number);
    for (int flag : {7, 8, 9}) step.value(int32_t(call.is_true(flag)));
    step.value(int32_t(scaling.flags));
  }
  return true;
}

}  // namespace kit
