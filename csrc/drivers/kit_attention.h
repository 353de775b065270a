// Attention forward and backward, as torch's CPU kernels return it: the result, and the logarithm of each row's sum.
#pragma once
#include "kit_pointwise.h"

namespace kit {

// The logarithm of the sum is of the type V. The mask is added to the scores, or is absent. `share` heads of queries have the
// same keys and values.
inline const Source kAttention = {"attention", R"(
typedef WIDE(T) V;
typedef struct { long b, h, t, d; } At;
#define PLACE(x, B, H, I, D) ((B) * x##_s.b + (H) * x##_s.h + (I) * x##_s.t + (D) * x##_s.d)
#define AT(x, B, H, I, D) LOAD(T, x, PLACE(x, B, H, I, D))
#define MASK(i, j) (masked ? LOAD(TM, mask, PLACE(mask, b, h, i, j)) : 0)
#define KEYS 2048

// A group per query.
KERNEL attention(ARG(T, o), ARG(V, lse), ARG(T, q), ARG(T, k), ARG(T, v), ARG(TM, mask), At o_s, At lse_s, At q_s, At k_s, At v_s,
                 At mask_s, long queries, long keys, long width, long share, long value_width, V scale, int causal, int masked) {
  LOCAL V red[LANES];
  LOCAL V p[KEYS];
  USE(T, o); USE(V, lse); USE(T, q); USE(T, k); USE(T, v); USE(TM, mask);
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
  }
  SUM(sum);
  for (long d = LANE; d < value_width; d += LANES) {
    V s = 0;
    for (long j = 0; j < last; ++j) s += p[j] * AT(v, b, of, j, d);
    STORE(T, o, PLACE(o, b, h, i, d), sum == 0 ? (V)0 : s / sum);
  }
  if (LANE == 0) lse[PLACE(lse, b, h, i, 0)] = top + log(sum);
}

// The gradient of the query, a group per query.
KERNEL attention_query(ARG(T, dq), ARG(T, g), ARG(T, q), ARG(T, k), ARG(T, v), ARG(T, o), ARG(V, lse), ARG(TM, mask), At dq_s, At g_s,
                       At q_s, At k_s, At v_s, At o_s, At lse_s, At mask_s, long queries, long keys, long width, long share, V scale,
                       int causal, int masked) {
  LOCAL V red[LANES];
  LOCAL V e[KEYS];
  USE(T, dq); USE(T, g); USE(T, q); USE(T, k); USE(T, v); USE(T, o); USE(V, lse); USE(TM, mask);
  long i = GROUP, h = GROUP_Y, b = GROUP_Z, of = h / share, last = causal && i + 1 < keys ? i + 1 : keys;
  V delta = 0, whole = lse[PLACE(lse, b, h, i, 0)];
  for (long d = LANE; d < width; d += LANES) delta += AT(g, b, h, i, d) * AT(o, b, h, i, d);
  SUM(delta);
  for (long j = LANE; j < last; j += LANES) {
    V s = 0, t = 0;
    for (long d = 0; d < width; ++d) {
      s += AT(q, b, h, i, d) * AT(k, b, of, j, d);
      t += AT(g, b, h, i, d) * AT(v, b, of, j, d);
    }
    e[j] = whole == -INFINITY ? 0 : exp(s * scale + MASK(i, j) - whole) * (t - delta) * scale;
  }
  BARRIER;
  for (long d = LANE; d < width; d += LANES) {
    V s = 0;
    for (long j = 0; j < last; ++j) s += e[j] * AT(k, b, of, j, d);
    STORE(T, dq, PLACE(dq, b, h, i, d), s);
  }
}

// The gradients of key and value, a group per key and head of keys.
KERNEL attention_key(ARG(T, dk), ARG(T, dv), ARG(T, g), ARG(T, q), ARG(T, k), ARG(T, v), ARG(T, o), ARG(V, lse), ARG(TM, mask), At dk_s,
                     At dv_s, At g_s, At q_s, At k_s, At v_s, At o_s, At lse_s, At mask_s, long queries, long keys, long width, long share,
                     V scale, int causal, int masked) {
  LOCAL V p[KEYS];
  LOCAL V e[KEYS];
  USE(T, dk); USE(T, dv); USE(T, g); USE(T, q); USE(T, k); USE(T, v); USE(T, o); USE(V, lse); USE(TM, mask);
  long j = GROUP, of = GROUP_Y, b = GROUP_Z, first = causal ? j : 0;
  for (long start = 0; start < width; start += LANES) {
    long own = start + LANE;
    V to_key = 0, to_value = 0;
    for (long h = of * share; h < (of + 1) * share; ++h) {
      for (long i = first + LANE; i < queries; i += LANES) {
        V s = 0, t = 0, delta = 0, whole = lse[PLACE(lse, b, h, i, 0)];
        for (long d = 0; d < width; ++d) {
          s += AT(q, b, h, i, d) * AT(k, b, of, j, d);
          t += AT(g, b, h, i, d) * AT(v, b, of, j, d);
          delta += AT(g, b, h, i, d) * AT(o, b, h, i, d);
        }
        p[i] = whole == -INFINITY ? 0 : exp(s * scale + MASK(i, j) - whole);
        e[i] = p[i] * (t - delta) * scale;
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
)"};

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

// All tensors of the dtype but the mask, which may be of the type that kernels compute in.
inline bool attention_form(Call& call, const std::vector<Tensor>& tensors, const Tensor& lse, int dropout, int mask) {
  for (const Tensor& tensor : tensors)
    if (tensor.dtype != tensors[0].dtype || !is_floating(tensor.dtype) || tensor.dims != 4) return call.refuse("form or dtype");
  if (lse.dtype != wide_of(tensors[0].dtype) || lse.dims != 3) return call.refuse("form or dtype of the logarithms");
  if (call.argument(dropout).number != 0) return call.refuse("dropout");
  if (!call.none(mask)) {
    Tensor added = call.tensor(mask);
    if (!is_floating(added.dtype) || added.on_host() || (added.dims != 4 && added.dims != 2))
      return call.refuse("form of the mask");
  }
  for (const Tensor& tensor : tensors)
    if (tensor.sizes[2] > kKeys) return call.refuse("longer than 2048");
  return tensors[0].dtype == BRINGUP_FLOAT64 ? call.refuse("float64") : true;
}

inline double scale_of(Call& call, int argument, const Tensor& query) {
  return call.none(argument) ? 1 / std::sqrt(double(query.sizes[3])) : call.argument(argument).number;
}

// A step over these tensors, with the last arguments of all kernels.
inline Step& attention_step(Call& call, const char* name, long groups, long heads, std::vector<Tensor> tensors, const Tensor& q,
                            const Tensor& k, int mask) {
  bool masked = !call.none(mask);
  Tensor added = masked ? call.tensor(mask) : q;
  tensors.push_back(added);
  Step& step = call.step(kAttention, types({{"T", q.dtype}, {"TM", added.dtype}}), name, groups, heads, q.sizes[0]);
  for (const Tensor& tensor : tensors) step.buffer(tensor);
  for (const Tensor& tensor : tensors) step.value(at_of(tensor));
  return step.counts(q.sizes[2], k.sizes[2], q.sizes[3], q.sizes[1] / k.sizes[1]);
}

inline bool attention(Call& call) {  // (query, key, value, dropout_p, is_causal, attn_mask, scale)
  Tensor q = call.tensor(0), k = call.tensor(1), v = call.tensor(2), out = call.output(0), lse = call.output(1);
  if (!attention_form(call, {q, k, v, out}, lse, 3, 5)) return false;
  if (q.sizes[1] % k.sizes[1] || v.sizes[1] != k.sizes[1]) return call.refuse("form of the heads");
  Step& step = attention_step(call, "attention", q.sizes[2], q.sizes[1], {out, lse, q, k, v}, q, k, 5);
  step.counts(v.sizes[3]).number('f', scale_of(call, 6, q)).value(int32_t(call.is_true(4))).value(int32_t(!call.none(5)));
  return true;
}

// (grad_out, query, key, value, out, logsumexp, dropout_p, is_causal, attn_mask, scale)
inline bool attention_backward(Call& call) {
  Tensor g = call.tensor(0), q = call.tensor(1), k = call.tensor(2), v = call.tensor(3), o = call.tensor(4), lse = call.tensor(5);
  Tensor dq = call.output(0), dk = call.output(1), dv = call.output(2);
  if (!attention_form(call, {g, q, k, v, o, dq, dk, dv}, lse, 6, 8)) return false;
  if (q.sizes[1] % k.sizes[1] || v.sizes[1] != k.sizes[1]) return call.refuse("form of the heads");
  if (q.sizes[3] != v.sizes[3]) return call.refuse("values of another width");
  auto add = [&](const char* name, long groups, long heads, const std::vector<Tensor>& tensors) {
    Step& step = attention_step(call, name, groups, heads, tensors, q, k, 8);
    step.number('f', scale_of(call, 9, q)).value(int32_t(call.is_true(7))).value(int32_t(!call.none(8)));
  };
  add("attention_query", q.sizes[2], q.sizes[1], {dq, g, q, k, v, o, lse});
  add("attention_key", k.sizes[2], k.sizes[1], {dk, dv, g, q, k, v, o, lse});
  return true;
}

}  // namespace kit
