// Attention forward and backward, as torch's CPU kernels return it: the result, and the logarithm of each row's sum. With
// dropout, also the state from which the backward pass draws again: see the note on dropout in csrc/torch/fused.cpp.
#pragma once
#include "kit_random.h"

namespace kit {

// The logarithm of the sum is of the type V. The mask is added to the scores, or is absent. `share` heads of queries have the
// same keys and values. With DROPS, a weight is kept if its random number is below `below`, and then multiplied by `kept`.
inline const std::string kAttentionText = std::string(kPhilox) + R"(
typedef WIDE(T) V;
typedef struct { long b, h, t, d; } At;
#define PLACE(x, B, H, I, D) ((B) * x##_s.b + (H) * x##_s.h + (I) * x##_s.t + (D) * x##_s.d)
#define AT(x, B, H, I, D) LOAD(T, x, PLACE(x, B, H, I, D))
#define MASK(i, j) (masked ? LOAD(TM, mask, PLACE(mask, b, h, i, j)) : 0)
#define KEYS 2048
#if DROPS
// Of the weight of query i and key j: element `at` of all weights is word at % 4 of the thread at / 4.
DEVICE V factor(long at, ulong seed, ulong offset, ulong below, V kept) {
  uint w[4];
  philox(w, seed, offset / 4, at / 4);
  return w[at % 4] < below ? kept : 0;
}
#define FACTOR(h, i, j) factor(((b * heads + (h)) * queries + (i)) * keys + (j), seed, offset, below, kept)
#define DRAWN GLOBAL ulong* words = (GLOBAL ulong*)state; ulong seed = words[0], offset = words[2]
#else
#define FACTOR(h, i, j) 1
#define DRAWN
#endif

// A group per query.
KERNEL attention(ARG(T, o), ARG(V, lse), ARG(T, q), ARG(T, k), ARG(T, v), ARG(TM, mask), ARG(uchar, state), At o_s, At lse_s, At q_s,
                 At k_s, At v_s, At mask_s, long queries, long keys, long width, long heads, long share, V scale, int causal,
                 int masked, ulong below, V kept, long value_width, ulong seed, ulong offset) {
  LOCAL V red[LANES];
  LOCAL V p[KEYS];
  USE(T, o); USE(V, lse); USE(T, q); USE(T, k); USE(T, v); USE(TM, mask); USE(uchar, state);
  long i = GROUP, h = GROUP_Y, b = GROUP_Z, of = h / share, last = causal && i + 1 < keys ? i + 1 : keys;
  V top = -INFINITY, sum = 0;
  for (long j = LANE; j < last; j += LANES) {
    V s = 0;
    for (long d = 0; d < width; ++d) s += AT(q, b, h, i, d) * AT(k, b, of, j, d);
    p[j] = s * scale + MASK(i, j);
    top = fmax(top, p[j]);
  }
  MAXIMUM(top);
  if (top == -INFINITY) top = 0;  // all is masked
  for (long j = LANE; j < last; j += LANES) {
    p[j] = exp(p[j] - top);
    sum += p[j];
    p[j] *= FACTOR(h, i, j);
  }
  SUM(sum);
  for (long d = LANE; d < value_width; d += LANES) {
    V s = 0;
    for (long j = 0; j < last; ++j) s += p[j] * AT(v, b, of, j, d);
    STORE(T, o, PLACE(o, b, h, i, d), sum == 0 ? (V)0 : s / sum);
  }
  if (LANE == 0) lse[PLACE(lse, b, h, i, 0)] = top + log(sum);
#if DROPS
  if (LANE == 0 && i == 0 && h == 0 && b == 0) {
    GLOBAL ulong* words = (GLOBAL ulong*)state;
    words[0] = seed; words[1] = (ulong)-1; words[2] = offset;
  }
#endif
}

// The gradient of the query, a group per query. `total` is the sum over the keys of weights and their gradients.
KERNEL attention_query(ARG(T, dq), ARG(V, total), ARG(T, g), ARG(T, q), ARG(T, k), ARG(T, v), ARG(V, lse), ARG(TM, mask),
                       ARG(uchar, state), At dq_s, At total_s, At g_s, At q_s, At k_s, At v_s, At lse_s, At mask_s, long queries,
                       long keys, long width, long heads, long share, V scale, int causal, int masked, ulong below, V kept) {
  LOCAL V red[LANES];
  LOCAL V p[KEYS];
  LOCAL V e[KEYS];
  USE(T, dq); USE(V, total); USE(T, g); USE(T, q); USE(T, k); USE(T, v); USE(V, lse); USE(TM, mask); USE(uchar, state);
  DRAWN;
  long i = GROUP, h = GROUP_Y, b = GROUP_Z, of = h / share, last = causal && i + 1 < keys ? i + 1 : keys;
  V sum = 0, whole = lse[PLACE(lse, b, h, i, 0)];
  for (long j = LANE; j < last; j += LANES) {
    V s = 0, t = 0;
    for (long d = 0; d < width; ++d) {
      s += AT(q, b, h, i, d) * AT(k, b, of, j, d);
      t += AT(g, b, h, i, d) * AT(v, b, of, j, d);
    }
    p[j] = whole == -INFINITY ? 0 : exp(s * scale + MASK(i, j) - whole);
    e[j] = p[j] * t * FACTOR(h, i, j);
    sum += e[j];
  }
  SUM(sum);
  if (LANE == 0) total[PLACE(total, b, h, i, 0)] = sum;
  for (long d = LANE; d < width; d += LANES) {
    V s = 0;
    for (long j = 0; j < last; ++j) s += (e[j] - p[j] * sum) * AT(k, b, of, j, d);
    STORE(T, dq, PLACE(dq, b, h, i, d), s * scale);
  }
}

// The gradients of key and value, a group per key and head of keys.
KERNEL attention_key(ARG(T, dk), ARG(T, dv), ARG(V, total), ARG(T, g), ARG(T, q), ARG(T, k), ARG(T, v), ARG(V, lse), ARG(TM, mask),
                     ARG(uchar, state), At dk_s, At dv_s, At total_s, At g_s, At q_s, At k_s, At v_s, At lse_s, At mask_s,
                     long queries, long keys, long width, long heads, long share, V scale, int causal, int masked, ulong below,
                     V kept) {
  LOCAL V p[KEYS];
  LOCAL V e[KEYS];
  USE(T, dk); USE(T, dv); USE(V, total); USE(T, g); USE(T, q); USE(T, k); USE(T, v); USE(V, lse); USE(TM, mask); USE(uchar, state);
  DRAWN;
  long j = GROUP, of = GROUP_Y, b = GROUP_Z, first = causal ? j : 0;
  for (long start = 0; start < width; start += LANES) {
    long own = start + LANE;
    V to_key = 0, to_value = 0;
    for (long h = of * share; h < (of + 1) * share; ++h) {
      for (long i = first + LANE; i < queries; i += LANES) {
        V s = 0, t = 0, whole = lse[PLACE(lse, b, h, i, 0)], by = FACTOR(h, i, j);
        for (long d = 0; d < width; ++d) {
          s += AT(q, b, h, i, d) * AT(k, b, of, j, d);
          t += AT(g, b, h, i, d) * AT(v, b, of, j, d);
        }
        V weight = whole == -INFINITY ? 0 : exp(s * scale + MASK(i, j) - whole);
        p[i] = weight * by;
        e[i] = weight * (t * by - total[PLACE(total, b, h, i, 0)]) * scale;
      }
      BARRIER;
      for (long i = first; own < width && i < queries; ++i) {
        to_key += e[i] * AT(q, b, h, i, own);
        to_value += p[i] * AT(g, b, h, i, own);
      }
      BARRIER;
    }
    if (own < width) {
      STORE(T, dk, PLACE(dk, b, of, j, own), to_key);
      STORE(T, dv, PLACE(dv, b, of, j, own), to_value);
    }
  }
}
)";
inline const Source kAttention = {"attention", kAttentionText.c_str()};

constexpr long kKeys = 2048;  // KEYS of the kernels

struct At {
  int64_t b, h, t, d;
};

// The strides of (batch, heads, length, width); the logarithm of the sum has no width. Sizes of 1 are repeated, as in a mask.
inline At at_of(const Tensor& tensor) {
  int64_t strides[4] = {0, 0, 0, 0};
  int first = tensor.dims == 3 ? 0 : 4 - tensor.dims;  // a mask may have no batch and heads
  for (int d = 0; d < tensor.dims; ++d) strides[first + d] = tensor.sizes[d] == 1 ? 0 : tensor.strides[d];
  return {strides[0], strides[1], strides[2], strides[3]};
}

// Where the arguments are: an operator for the CPU has no dropout, the other has.
struct AttentionArguments {
  int dropout, causal, mask, scale, state = -1;
};

// All tensors of the dtype but the mask, which may be of the type that kernels compute in.
inline bool attention_form(Call& call, const std::vector<Tensor>& tensors, const Tensor& q, const Tensor& k, const Tensor& lse,
                           const AttentionArguments& at, bool drops) {
  for (const Tensor& tensor : tensors)
    if (tensor.dtype != tensors[0].dtype || !is_floating(tensor.dtype) || tensor.dims != 4) return call.refuse("form or dtype");
  if (lse.dtype != wide_of(tensors[0].dtype) || lse.dims != 3) return call.refuse("form or dtype of the logarithms");
  double p = call.argument(at.dropout).number;
  if (drops ? p < 0 || p >= 1 : p != 0) return call.refuse("dropout");
  if (!call.none(at.mask)) {
    Tensor added = call.tensor(at.mask);
    if (!is_floating(added.dtype) || added.on_host() || (added.dims != 4 && added.dims != 2))
      return call.refuse("form of the mask");
  }
  for (const Tensor& tensor : tensors) {
    if (tensor.sizes[2] > kKeys) return call.refuse("longer than 2048");
    bool heads = tensor.sizes[1] == q.sizes[1] || tensor.sizes[1] == k.sizes[1];
    if (!heads || q.sizes[1] % k.sizes[1]) return call.refuse("form of the heads");
  }
  return tensors[0].dtype == BRINGUP_FLOAT64 ? call.refuse("float64") : true;
}

// A step over these tensors, with the last arguments of all kernels; the state is not among tensors with strides.
inline Step& attention_step(Call& call, const char* name, long groups, long heads, std::vector<Tensor> tensors, const Tensor& q,
                            const Tensor& k, const AttentionArguments& at, const Tensor* state) {
  bool masked = !call.none(at.mask);
  tensors.push_back(masked ? call.tensor(at.mask) : q);
  std::string macros = types({{"T", q.dtype}, {"TM", tensors.back().dtype}}) + define("DROPS", state ? "1" : "0");
  Step& step = call.step(kAttention, macros, name, groups, heads, q.sizes[0]);
  for (const Tensor& tensor : tensors) step.buffer(tensor);
  step.buffer(state ? *state : q);
  for (const Tensor& tensor : tensors) step.value(at_of(tensor));
  double p = call.argument(at.dropout).number;
  double scale = call.none(at.scale) ? 1 / std::sqrt(double(q.sizes[3])) : call.argument(at.scale).number;
  step.counts(q.sizes[2], k.sizes[2], q.sizes[3], q.sizes[1], q.sizes[1] / k.sizes[1]).number('f', scale);
  step.value(int32_t(call.is_true(at.causal))).value(int32_t(masked));
  return step.value(uint64_t(std::ldexp(1 - p, 32))).number('f', 1 / (1 - p));
}

// (query, key, value, dropout_p, is_causal, attn_mask, scale), or
// (query, key, value, attn_bias, dropout_p, is_causal, scale, generator)
inline Make attention(bool drops) {
  return [=](Call& call) {
    const AttentionArguments at = drops ? AttentionArguments{4, 5, 3, 6} : AttentionArguments{3, 4, 5, 6};
    Tensor q = call.tensor(0), k = call.tensor(1), v = call.tensor(2), out = call.output(0), lse = call.output(1);
    if (!attention_form(call, {q, k, v, out}, q, k, lse, at, drops)) return false;
    if (v.sizes[1] != k.sizes[1]) return call.refuse("form of the heads");
    Tensor state = drops ? call.output(2) : q;
    if (drops) *call.c->draws = 4;
    Step& step =
        attention_step(call, "attention", q.sizes[2], q.sizes[1], {out, lse, q, k, v}, q, k, at, drops ? &state : nullptr);
    step.counts(v.sizes[3]).stream();
    return true;
  };
}

// (grad_out, query, key, value, out, logsumexp, dropout_p, is_causal, attn_mask, scale), or
// (grad_out, query, key, value, attn_bias, logsumexp, dropout_p, is_causal, philox_seed, scale)
inline Make attention_backward(bool drops) {
  return [=](Call& call) {
    const AttentionArguments at = drops ? AttentionArguments{6, 7, 4, 9, 8} : AttentionArguments{6, 7, 8, 9};
    Tensor g = call.tensor(0), q = call.tensor(1), k = call.tensor(2), v = call.tensor(3), lse = call.tensor(5);
    Tensor dq = call.output(0), dk = call.output(1), dv = call.output(2);
    if (!attention_form(call, {g, q, k, v, dq, dk, dv}, q, k, lse, at, drops)) return false;
    if (v.sizes[1] != k.sizes[1]) return call.refuse("form of the heads");
    if (q.sizes[3] != v.sizes[3]) return call.refuse("values of another width");
    Tensor state = drops ? call.tensor(at.state) : q;
    const Tensor* drawn = drops ? &state : nullptr;
    Tensor total = call.scratch(lse.dtype, {q.sizes[0], q.sizes[1], q.sizes[2]});
    attention_step(call, "attention_query", q.sizes[2], q.sizes[1], {dq, total, g, q, k, v, lse}, q, k, at, drawn);
    attention_step(call, "attention_key", k.sizes[2], k.sizes[1], {dk, dv, total, g, q, k, v, lse}, q, k, at, drawn);
    return true;
  };
}

}  // namespace kit
