// Layer, group, batch and RMS norm, forward and backward.
#pragma once
#include "kit_reductions.h"

namespace kit {

// Weights, biases and statistics are of the type V.
inline const Source kNorms = {"norms", R"(
typedef WIDE(T) V;
// Rows of n elements. Element i of a row has the weight (row % groups) * per + i / inner.
#define WEIGHT(i) (GROUP % groups * per + (i) / inner)

KERNEL norm_rows(ARG(T, o), ARG(V, mean), ARG(V, rstd), ARG(T, a), ARG(V, w), ARG(V, b), long n, long groups, long per, long inner,
                 V eps, int weighted, int biased, int rms) {
  LOCAL V red[LANES];
  USE(T, o); USE(V, mean); USE(V, rstd); USE(T, a); USE(V, w); USE(V, b);
  long row = GROUP * n;
  V sum = 0, var = 0;
  for (long i = LANE; i < n; i += LANES) sum += LOAD(T, a, row + i);
  SUM(sum);
  V centre = rms ? 0 : sum / n;
  for (long i = LANE; i < n; i += LANES) { V x = LOAD(T, a, row + i) - centre; var += x * x; }
  SUM(var);
  V scale = 1 / sqrt(var / n + eps);
  if (LANE == 0 && !rms) mean[GROUP] = centre;
  if (LANE == 0) rstd[GROUP] = scale;
  for (long i = LANE; i < n; i += LANES)
    STORE(T, o, row + i, (LOAD(T, a, row + i) - centre) * scale * (weighted ? w[WEIGHT(i)] : 1) + (biased ? b[WEIGHT(i)] : 0));
}

KERNEL norm_rows_input(ARG(T, o), ARG(T, g), ARG(T, a), ARG(V, mean), ARG(V, rstd), ARG(V, w), long n, long groups, long per,
                       long inner, int weighted, int rms) {
  LOCAL V red[LANES];
  USE(T, o); USE(T, g); USE(T, a); USE(V, mean); USE(V, rstd); USE(V, w);
  long row = GROUP * n;
  V m = rms ? 0 : mean[GROUP], r = rstd[GROUP], s = 0, t = 0;
  for (long i = LANE; i < n; i += LANES) {
    V d = LOAD(T, g, row + i) * (weighted ? w[WEIGHT(i)] : 1);
    s += d;
    t += d * (LOAD(T, a, row + i) - m) * r;
  }
  SUM(s);
  SUM(t);
  if (rms) s = 0;
  for (long i = LANE; i < n; i += LANES) {
    V d = LOAD(T, g, row + i) * (weighted ? w[WEIGHT(i)] : 1);
    STORE(T, o, row + i, r * (d - s / n - (LOAD(T, a, row + i) - m) * r * t / n));
  }
}

// The gradient of weight (or bias) GROUP of `weights`: over `outer` times `inner` elements.
KERNEL norm_weight(ARG(V, o), ARG(T, g), ARG(T, a), ARG(V, mean), ARG(V, rstd), long n, long weights, long outer, long inner,
                   int bias, int rms) {
  LOCAL V red[LANES];
  USE(V, o); USE(T, g); USE(T, a); USE(V, mean); USE(V, rstd);
  V s = 0;
  for (long q = LANE; q < outer * inner; q += LANES) {
    long at = (q / inner * weights + GROUP) * inner + q % inner;
    V d = LOAD(T, g, at);
    s += bias ? d : d * (LOAD(T, a, at) - (rms ? 0 : mean[at / n])) * rstd[at / n];
  }
  SUM(s);
  if (LANE == 0) o[GROUP] = s;
}

// Tensors (outer, channels, inner), a group per channel. `running` holds the running mean and variance.
#define AT(q) ((q) / inner * channels * inner + GROUP * inner + (q) % inner)
KERNEL batch_norm(ARG(T, o), ARG(V, mean), ARG(V, rstd), ARG(T, a), ARG(V, w), ARG(V, b), ARG(V, running_mean), ARG(V, running_var),
                  long channels, long count, long inner, V eps, V momentum, int weighted, int biased, int training, int tracked) {
  LOCAL V red[LANES];
  USE(T, o); USE(V, mean); USE(V, rstd); USE(T, a); USE(V, w); USE(V, b); USE(V, running_mean); USE(V, running_var);
  V centre, var;
  if (training) {
    centre = 0;
    var = 0;
    for (long q = LANE; q < count; q += LANES) centre += LOAD(T, a, AT(q));
    SUM(centre);
    centre /= count;
    for (long q = LANE; q < count; q += LANES) { V x = LOAD(T, a, AT(q)) - centre; var += x * x; }
    SUM(var);
    if (LANE == 0 && tracked) {
      running_mean[GROUP] = momentum * centre + (1 - momentum) * running_mean[GROUP];
      running_var[GROUP] = momentum * var / (count - 1) + (1 - momentum) * running_var[GROUP];
    }
    var /= count;
  } else {
    centre = running_mean[GROUP];
    var = running_var[GROUP];
  }
  V scale = 1 / sqrt(var + eps);
  if (LANE == 0 && training) { mean[GROUP] = centre; rstd[GROUP] = scale; }
  V by = scale * (weighted ? w[GROUP] : 1), plus = biased ? b[GROUP] : 0;
  for (long q = LANE; q < count; q += LANES) STORE(T, o, AT(q), (LOAD(T, a, AT(q)) - centre) * by + plus);
}

// `wanted` has a bit for each of the gradients of input, weight and bias.
KERNEL batch_norm_backward(ARG(T, o), ARG(V, dw), ARG(V, db), ARG(T, g), ARG(T, a), ARG(V, w), ARG(V, mean), ARG(V, rstd),
                           long channels, long count, long inner, V eps, int weighted, int training, int wanted) {
  LOCAL V red[LANES];
  USE(T, o); USE(V, dw); USE(V, db); USE(T, g); USE(T, a); USE(V, w); USE(V, mean); USE(V, rstd);
  V m = mean[GROUP], r = training ? rstd[GROUP] : 1 / sqrt(rstd[GROUP] + eps), s = 0, t = 0;
  for (long q = LANE; q < count; q += LANES) {
    V d = LOAD(T, g, AT(q));
    s += d;
    t += d * (LOAD(T, a, AT(q)) - m) * r;
  }
  SUM(s);
  SUM(t);
  if (LANE == 0 && wanted & 2) dw[GROUP] = t;
  if (LANE == 0 && wanted & 4) db[GROUP] = s;
  V by = r * (weighted ? w[GROUP] : 1);
  if (wanted & 1)
    for (long q = LANE; q < count; q += LANES) {
      V d = LOAD(T, g, AT(q));
      STORE(T, o, AT(q), by * (training ? d - s / count - (LOAD(T, a, AT(q)) - m) * r * t / count : d));
    }
}
)"};

inline bool has_kernels(Call& call, const Tensor& in) {
  if (in.numel() == 0) return call.refuse("a tensor is empty");
  return is_floating(in.dtype) && !in.on_host() ? true : call.refuse("dtype");
}

// How rows have weights: see norm_rows.
struct RowWeights {
  long n, groups, per, inner;
};

struct Parameters {
  Tensor weight, bias;
  bool weighted, biased;
};

// Weight and bias in the type that kernels compute in; `otherwise` stands for those that are absent.
inline Parameters parameters(Call& call, int weight, int bias, const Tensor& otherwise) {
  Parameters p = {otherwise, otherwise, weight >= 0 && !call.none(weight), bias >= 0 && !call.none(bias)};
  int wide = wide_of(otherwise.dtype);
  if (p.weighted) p.weight = call.dense(call.tensor(weight), wide);
  if (p.biased) p.bias = call.dense(call.tensor(bias), wide);
  return p;
}

inline bool norm_rows(Call& call, const RowWeights& by, int weight, int bias, double eps, bool rms) {
  if (!has_kernels(call, call.tensor(0))) return false;
  Tensor in = call.dense(call.tensor(0));
  int wide = wide_of(in.dtype);
  Tensor out = call.result(call.output(0)), rstd = call.result(call.output(rms ? 1 : 2), wide);
  Tensor mean = rms ? rstd : call.result(call.output(1), wide);
  Parameters p = parameters(call, weight, bias, in);
  Step& step = call.step(kNorms, types({{"T", in.dtype}}), "norm_rows", in.numel() / by.n);
  for (const Tensor& tensor : {out, mean, rstd, in, p.weight, p.bias}) step.buffer(tensor);
  step.counts(by.n, by.groups, by.per, by.inner).number(letter_of(wide), eps);
  step.value(int32_t(p.weighted)).value(int32_t(p.biased)).value(int32_t(rms));
  return true;
}

// The gradients of input, weight and bias are the outputs in their order; that of the bias is absent for RMS norm.
inline bool norm_rows_backward(Call& call, const RowWeights& by, int in_argument, int mean_argument, int rstd_argument,
                               int weight, long weights, bool rms) {
  Tensor in = call.tensor(in_argument);
  if (!has_kernels(call, in)) return false;
  int wide = wide_of(in.dtype);
  in = call.dense(in);
  Tensor grad = call.dense(call.tensor(0), in.dtype), rstd = call.dense(call.tensor(rstd_argument), wide);
  Tensor mean = rms ? rstd : call.dense(call.tensor(mean_argument), wide);
  if (call.output(0).dims >= 0) {
    Parameters p = parameters(call, weight, -1, in);
    Tensor out = call.result(call.output(0), in.dtype);
    Step& step = call.step(kNorms, types({{"T", in.dtype}}), "norm_rows_input", in.numel() / by.n);
    for (const Tensor& tensor : {out, grad, in, mean, rstd, p.weight}) step.buffer(tensor);
    step.counts(by.n, by.groups, by.per, by.inner).value(int32_t(p.weighted)).value(int32_t(rms));
  }
  for (int i = 1; i < call.c->output_count; ++i) {
    if (call.output(i).dims < 0) continue;
    Tensor out = call.result(call.output(i), wide);
    Step& step = call.step(kNorms, types({{"T", in.dtype}}), "norm_weight", weights);
    for (const Tensor& tensor : {out, grad, in, mean, rstd}) step.buffer(tensor);
    step.counts(by.n, weights, in.numel() / weights / by.inner, by.inner).value(int32_t(i == 2)).value(int32_t(rms));
  }
  return true;
}

// The number of elements of the shape in argument `shape`.
inline long elements_of_shape(Call& call, int shape) {
  long n = 1;
  for (int i = 0; i < call.argument(shape).count; ++i) n *= call.argument(shape).integers[i];
  return n;
}

inline bool layer_norm(Call& call) {  // (input, normalized_shape, weight, bias, eps)
  return norm_rows(call, {elements_of_shape(call, 1), 1, 0, 1}, 2, 3, call.argument(4).number, false);
}
inline bool layer_norm_backward(Call& call) {  // (grad, input, normalized_shape, mean, rstd, weight, bias, output_mask)
  long n = elements_of_shape(call, 2);
  return norm_rows_backward(call, {n, 1, 0, 1}, 1, 3, 4, 5, n, false);
}
inline bool rms_norm(Call& call) {  // (input, normalized_shape, weight, eps); without eps, that of the dtype it computes in
  double least = call.tensor(0).dtype == BRINGUP_FLOAT64 ? std::numeric_limits<double>::epsilon()
                                                         : double(std::numeric_limits<float>::epsilon());
  return norm_rows(call, {elements_of_shape(call, 1), 1, 0, 1}, 2, -1, call.none(3) ? least : call.argument(3).number, true);
}
inline bool rms_norm_backward(Call& call) {  // (grad, input, normalized_shape, rstd, weight, output_mask)
  long n = elements_of_shape(call, 2);
  return norm_rows_backward(call, {n, 1, 0, 1}, 1, -1, 3, 4, n, true);
}
inline RowWeights groups_of(Call& call, int n) {  // the arguments N, C, HxW, group from the n-th
  long channels = long(call.argument(n + 1).integer), inner = long(call.argument(n + 2).integer);
  long groups = long(call.argument(n + 3).integer);
  return {channels / groups * inner, groups, channels / groups, inner};
}
inline bool group_norm(Call& call) {  // (input, weight, bias, N, C, HxW, group, eps)
  return norm_rows(call, groups_of(call, 3), 1, 2, call.argument(7).number, false);
}
inline bool group_norm_backward(Call& call) {  // (grad, input, mean, rstd, weight, N, C, HxW, group, output_mask)
  return norm_rows_backward(call, groups_of(call, 5), 1, 2, 3, 4, long(call.argument(6).integer), false);
}

// (input, weight, bias, running_mean, running_var, training, momentum, eps)
inline bool batch_norm(Call& call) {
  if (!has_kernels(call, call.tensor(0))) return false;
  bool tracked = !call.none(3), training = call.is_true(5);
  Tensor in = call.dense(call.tensor(0)), out = call.result(call.output(0));
  int wide = wide_of(in.dtype);
  Rows rows(in, 1);
  Parameters p = parameters(call, 1, 2, in);
  Tensor mean = in, rstd = in, running_mean = in, running_var = in;
  if (training) mean = call.result(call.output(1), wide), rstd = call.result(call.output(2), wide);
  if (tracked) {
    running_mean = training ? call.updated(call.tensor(3), wide) : call.dense(call.tensor(3), wide);
    running_var = training ? call.updated(call.tensor(4), wide) : call.dense(call.tensor(4), wide);
  }
  Step& step = call.step(kNorms, types({{"T", in.dtype}}), "batch_norm", rows.n);
  for (const Tensor& tensor : {out, mean, rstd, in, p.weight, p.bias, running_mean, running_var}) step.buffer(tensor);
  step.counts(rows.n, rows.count(), rows.inner).number(letter_of(wide), call.argument(7).number);
  step.number(letter_of(wide), call.argument(6).number);
  for (bool flag : {p.weighted, p.biased, training, tracked}) step.value(int32_t(flag));
  return true;
}

// (grad, input, weight, running_mean, running_var, save_mean, save_invstd, train, eps, output_mask)
inline bool batch_norm_backward(Call& call) {
  if (!has_kernels(call, call.tensor(1))) return false;
  bool training = call.is_true(7);
  Tensor in = call.dense(call.tensor(1)), grad = call.dense(call.tensor(0), in.dtype);
  int wide = wide_of(in.dtype), wanted = 0;
  Rows rows(in, 1);
  Parameters p = parameters(call, 2, -1, in);
  int statistics = training ? 5 : 3;
  if (call.none(statistics)) return call.refuse("no statistics");
  Tensor mean = call.dense(call.tensor(statistics), wide), rstd = call.dense(call.tensor(statistics + 1), wide);
  Tensor results[3] = {in, in, in};
  for (int i = 0; i < 3; ++i)
    if (call.output(i).dims >= 0) results[i] = call.result(call.output(i), i == 0 ? in.dtype : wide), wanted |= 1 << i;
  Step& step = call.step(kNorms, types({{"T", in.dtype}}), "batch_norm_backward", rows.n);
  for (const Tensor& tensor : {results[0], results[1], results[2], grad, in, p.weight, mean, rstd}) step.buffer(tensor);
  step.counts(rows.n, rows.count(), rows.inner).number(letter_of(wide), call.argument(8).number);
  for (int flag : {int(p.weighted), int(training), wanted}) step.value(int32_t(flag));
  return true;
}

}  // namespace kit
