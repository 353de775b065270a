// Kernels in the common subset of OpenCL C and CUDA C. Each pointer comes with an offset in elements, since OpenCL has no
// addresses within a buffer. Kernels over rows have a group of LANES threads per row.
#pragma once

namespace kit {

inline const char* const kDialect = R"(
#ifdef __CUDACC_RTC__
typedef unsigned long ulong;
typedef unsigned char uchar;
#define KERNEL extern "C" __global__ void
#define GLOBAL
#define LOCAL __shared__
#define BARRIER __syncthreads()
#define LANE ((int)threadIdx.x)
#define LANE_Y ((int)threadIdx.y)
#define GROUP ((long)blockIdx.x)
#define GROUP_Y ((long)blockIdx.y)
#define GROUP_Z ((long)blockIdx.z)
#define INFINITY __int_as_float(0x7f800000)
#else
#define KERNEL __kernel void
#define GLOBAL __global
#define LOCAL __local
#define BARRIER barrier(CLK_LOCAL_MEM_FENCE)
#define LANE ((int)get_local_id(0))
#define LANE_Y ((int)get_local_id(1))
#define GROUP ((long)get_group_id(0))
#define GROUP_Y ((long)get_group_id(1))
#define GROUP_Z ((long)get_group_id(2))
#endif
#define LANES 256
#define ARG(T, x) GLOBAL T* x##_base, ulong x##_offset
#define USE(T, x) GLOBAL T* x = x##_base + x##_offset
#define SUM(v) \
  { red[LANE] = v; BARRIER; \
    for (int w = LANES / 2; w > 0; w /= 2) { if (LANE < w) red[LANE] += red[LANE + w]; BARRIER; } \
    v = red[0]; BARRIER; }
#define MAXIMUM(v) \
  { red[LANE] = v; BARRIER; \
    for (int w = LANES / 2; w > 0; w /= 2) { if (LANE < w) red[LANE] = fmax(red[LANE], red[LANE + w]); BARRIER; } \
    v = red[0]; BARRIER; }
typedef struct { long dims; long size[6]; long o[6], a[6], b[6], c[6]; } Map;
)";

// o = F over x, y, z of other shapes and dtypes. s and t are numbers of the call; q is the value of a tensor on the host.
inline const char* const kPoint = R"(
KERNEL point(ARG(TO, o), ARG(TA, a), ARG(TB, b), ARG(TC, c), Map m, long n, TS s, TS t, TS q, int on_host) {
  USE(TO, o); USE(TA, a); USE(TB, b); USE(TC, c);
  long i = GROUP * LANES + LANE;
  if (i >= n) return;
  long oi = i, ai = i, bi = i, ci = i;
  if (m.dims >= 0) {
    oi = ai = bi = ci = 0;
    long r = i;
    for (int d = (int)m.dims - 1; d >= 0; --d) {
      long k = r % m.size[d];
      r /= m.size[d];
      oi += k * m.o[d]; ai += k * m.a[d]; bi += k * m.b[d]; ci += k * m.c[d];
    }
  }
  TA x = NIN > 0 ? (on_host & 1 ? (TA)q : a[ai]) : (TA)0;
  TB y = NIN > 1 ? (on_host & 2 ? (TB)q : b[bi]) : (TB)0;
  TC z = NIN > 2 ? (on_host & 4 ? (TC)q : c[ci]) : (TC)0;
  o[oi] = (TO)(F);
}
)";

inline const char* const kRows = R"(
// c = alpha * a b + beta * c for each of a batch; strides in elements, c is contiguous
KERNEL gemm(ARG(float, c), ARG(float, a), ARG(float, b), long m, long n, long k, long a0, long a1, long a2, long b0, long b1,
            long b2, float alpha, float beta) {
  LOCAL float x[16][17];
  LOCAL float y[16][17];
  USE(float, a); USE(float, b); USE(float, c);
  long j = GROUP * 16 + LANE, i = GROUP_Y * 16 + LANE_Y, z = GROUP_Z;
  float sum = 0;
  for (long l = 0; l < k; l += 16) {
    x[LANE_Y][LANE] = i < m && l + LANE < k ? a[z * a0 + i * a1 + (l + LANE) * a2] : 0;
    y[LANE_Y][LANE] = j < n && l + LANE_Y < k ? b[z * b0 + (l + LANE_Y) * b1 + j * b2] : 0;
    BARRIER;
    for (int t = 0; t < 16; ++t) sum += x[LANE_Y][t] * y[t][LANE];
    BARRIER;
  }
  if (i < m && j < n) {
    long at = (z * m + i) * n + j;
    c[at] = alpha * sum + (beta != 0 ? beta * c[at] : 0);
  }
}

KERNEL softmax(ARG(float, o), ARG(float, a), long n, int logs) {
  LOCAL float red[LANES];
  USE(float, o); USE(float, a);
  long row = GROUP * n;
  float top = -INFINITY, sum = 0;
  for (long i = LANE; i < n; i += LANES) top = fmax(top, a[row + i]);
  MAXIMUM(top);
  for (long i = LANE; i < n; i += LANES) sum += exp(a[row + i] - top);
  SUM(sum);
  for (long i = LANE; i < n; i += LANES) o[row + i] = logs ? a[row + i] - top - log(sum) : exp(a[row + i] - top) / sum;
}

KERNEL softmax_backward(ARG(float, o), ARG(float, g), ARG(float, a), long n, int logs) {
  LOCAL float red[LANES];
  USE(float, o); USE(float, g); USE(float, a);
  long row = GROUP * n;
  float sum = 0;
  for (long i = LANE; i < n; i += LANES) sum += g[row + i] * (logs ? 1 : a[row + i]);
  SUM(sum);
  for (long i = LANE; i < n; i += LANES) {
    float y = a[row + i], d = g[row + i];
    o[row + i] = logs ? d - exp(y) * sum : y * (d - sum);
  }
}

KERNEL layer_norm(ARG(float, o), ARG(float, mean), ARG(float, rstd), ARG(float, a), ARG(float, w), ARG(float, b), long n, float eps,
                  int with) {
  LOCAL float red[LANES];
  USE(float, o); USE(float, mean); USE(float, rstd); USE(float, a); USE(float, w); USE(float, b);
  long row = GROUP * n;
  float sum = 0, var = 0;
  for (long i = LANE; i < n; i += LANES) sum += a[row + i];
  SUM(sum);
  float centre = sum / n;
  for (long i = LANE; i < n; i += LANES) var += (a[row + i] - centre) * (a[row + i] - centre);
  SUM(var);
  float scale = 1 / sqrt(var / n + eps);
  if (LANE == 0) { mean[GROUP] = centre; rstd[GROUP] = scale; }
  for (long i = LANE; i < n; i += LANES)
    o[row + i] = (a[row + i] - centre) * scale * (with & 1 ? w[i] : 1) + (with & 2 ? b[i] : 0);
}

KERNEL layer_norm_input(ARG(float, o), ARG(float, g), ARG(float, a), ARG(float, mean), ARG(float, rstd), ARG(float, w), long n,
                        int with) {
  LOCAL float red[LANES];
  USE(float, o); USE(float, g); USE(float, a); USE(float, mean); USE(float, rstd); USE(float, w);
  long row = GROUP * n;
  float m = mean[GROUP], r = rstd[GROUP], s = 0, t = 0;
  for (long i = LANE; i < n; i += LANES) {
    float d = g[row + i] * (with & 1 ? w[i] : 1);
    s += d;
    t += d * (a[row + i] - m) * r;
  }
  SUM(s);
  SUM(t);
  for (long i = LANE; i < n; i += LANES) {
    float d = g[row + i] * (with & 1 ? w[i] : 1);
    o[row + i] = r * (d - s / n - (a[row + i] - m) * r * t / n);
  }
}

KERNEL layer_norm_weight(ARG(float, o), ARG(float, g), ARG(float, a), ARG(float, mean), ARG(float, rstd), long rows, long n,
                         int bias) {
  LOCAL float red[LANES];
  USE(float, o); USE(float, g); USE(float, a); USE(float, mean); USE(float, rstd);
  long i = GROUP;
  float s = 0;
  for (long r = LANE; r < rows; r += LANES) {
    float d = g[r * n + i];
    s += bias ? d : d * (a[r * n + i] - mean[r]) * rstd[r];
  }
  SUM(s);
  if (LANE == 0) o[i] = s;
}

// Sums over the dimensions of m whose stride m.o is -1.
KERNEL sum(ARG(float, o), ARG(float, a), Map m, long inner, float scale) {
  LOCAL float red[LANES];
  USE(float, o); USE(float, a);
  long r = GROUP, base = 0;
  for (int d = (int)m.dims - 1; d >= 0; --d)
    if (m.o[d] >= 0) { base += r % m.size[d] * m.a[d]; r /= m.size[d]; }
  float total = 0;
  for (long j = LANE; j < inner; j += LANES) {
    long at = base, q = j;
    for (int d = (int)m.dims - 1; d >= 0; --d)
      if (m.o[d] < 0) { at += q % m.size[d] * m.a[d]; q /= m.size[d]; }
    total += a[at];
  }
  SUM(total);
  if (LANE == 0) o[GROUP] = total * scale;
}

KERNEL vector_norm(ARG(float, o), ARG(float, a), long n, float order) {
  LOCAL float red[LANES];
  USE(float, o); USE(float, a);
  float total = 0;
  for (long i = LANE; i < n; i += LANES) {
    float x = fabs(a[i]);
    if (order == INFINITY) total = fmax(total, x);
    else total += order == 2 ? x * x : order == 1 ? x : order == 0 ? (x != 0 ? 1.0f : 0.0f) : pow(x, order);
  }
  if (order == INFINITY) { MAXIMUM(total); }
  else { SUM(total); }
  if (LANE == 0) o[0] = order == 2 ? sqrt(total) : order == INFINITY || order == 1 || order == 0 ? total : pow(total, 1 / order);
}

// Indices have at most two dimensions, of which the last has `inner` elements.
#define INDEX(r) at[(r) / inner * outer_stride + (r) % inner * inner_stride]

KERNEL embedding(ARG(float, o), ARG(float, w), ARG(long, at), ARG(ulong, fault), long n, long entries, ulong number, long inner,
                 long outer_stride, long inner_stride) {
  USE(float, o); USE(float, w); USE(long, at); USE(ulong, fault);
  long row = INDEX(GROUP);
  if (row < 0 || row >= entries) {
    if (LANE == 0) *fault = number;
    return;
  }
  for (long i = LANE; i < n; i += LANES) o[GROUP * n + i] = w[row * n + i];
}

// A group per entry of the table, so that sums have an order.
KERNEL embedding_backward(ARG(float, o), ARG(float, g), ARG(long, at), long n, long rows, long skip, long inner, long outer_stride,
                          long inner_stride) {
  USE(float, o); USE(float, g); USE(long, at);
  for (long i = LANE; i < n; i += LANES) {
    float sum = 0;
    for (long r = 0; r < rows; ++r)
      if (INDEX(r) == GROUP && GROUP != skip) sum += g[r * n + i];
    o[GROUP * n + i] = sum;
  }
}

KERNEL nll(ARG(float, o), ARG(float, total), ARG(float, a), ARG(long, at), ARG(ulong, fault), long rows, long n, int mean, long skip,
           ulong number) {
  LOCAL float red[LANES];
  USE(float, o); USE(float, total); USE(float, a); USE(long, at); USE(ulong, fault);
  float sum = 0, used = 0;
  for (long r = LANE; r < rows; r += LANES) {
    long t = at[r];
    if (t == skip) continue;
    if (t < 0 || t >= n) { *fault = number; continue; }
    sum -= a[r * n + t];
    used += 1;
  }
  SUM(sum);
  SUM(used);
  if (LANE == 0) { o[0] = mean ? sum / used : sum; total[0] = used; }
}

KERNEL nll_backward(ARG(float, o), ARG(float, g), ARG(long, at), ARG(float, total), long n, int mean, long skip) {
  USE(float, o); USE(float, g); USE(long, at); USE(float, total);
  long t = at[GROUP];
  for (long i = LANE; i < n; i += LANES) o[GROUP * n + i] = i == t && t != skip ? -g[0] / (mean ? total[0] : 1) : 0;
}

typedef struct { long b, h, t, d; } At;
#define AT(x, B, H, T, D) x[(B) * x##_s.b + (H) * x##_s.h + (T) * x##_s.t + (D) * x##_s.d]
#define KEYS 2048

// A group per query; the logarithm of the sum has the sizes (batch, heads, queries).
KERNEL attention(ARG(float, o), ARG(float, lse), ARG(float, q), ARG(float, k), ARG(float, v), At o_s, At lse_s, At q_s, At k_s, At v_s,
                 long queries, long keys, long width, long value_width, float scale, int causal) {
  LOCAL float red[LANES];
  LOCAL float p[KEYS];
  USE(float, o); USE(float, lse); USE(float, q); USE(float, k); USE(float, v);
  long i = GROUP, h = GROUP_Y, b = GROUP_Z, last = causal && i + 1 < keys ? i + 1 : keys;
  float top = -INFINITY, sum = 0;
  for (long j = LANE; j < last; j += LANES) {
    float s = 0;
    for (long d = 0; d < width; ++d) s += AT(q, b, h, i, d) * AT(k, b, h, j, d);
    p[j] = s * scale;
    top = fmax(top, p[j]);
  }
  MAXIMUM(top);
  for (long j = LANE; j < last; j += LANES) {
    p[j] = exp(p[j] - top);
    sum += p[j];
  }
  SUM(sum);
  for (long d = LANE; d < value_width; d += LANES) {
    float s = 0;
    for (long j = 0; j < last; ++j) s += p[j] * AT(v, b, h, j, d);
    AT(o, b, h, i, d) = s / sum;
  }
  if (LANE == 0) AT(lse, b, h, i, 0) = top + log(sum);
}

// The gradient of the query, a group per query.
KERNEL attention_query(ARG(float, dq), ARG(float, g), ARG(float, q), ARG(float, k), ARG(float, v), ARG(float, o), ARG(float, lse),
                       At dq_s, At g_s, At q_s, At k_s, At v_s, At o_s, At lse_s, long queries, long keys, long width, float scale,
                       int causal) {
  LOCAL float red[LANES];
  LOCAL float e[KEYS];
  USE(float, dq); USE(float, g); USE(float, q); USE(float, k); USE(float, v); USE(float, o); USE(float, lse);
  long i = GROUP, h = GROUP_Y, b = GROUP_Z, last = causal && i + 1 < keys ? i + 1 : keys;
  float delta = 0, whole = AT(lse, b, h, i, 0);
  for (long d = LANE; d < width; d += LANES) delta += AT(g, b, h, i, d) * AT(o, b, h, i, d);
  SUM(delta);
  for (long j = LANE; j < last; j += LANES) {
    float s = 0, t = 0;
    for (long d = 0; d < width; ++d) {
      s += AT(q, b, h, i, d) * AT(k, b, h, j, d);
      t += AT(g, b, h, i, d) * AT(v, b, h, j, d);
    }
    e[j] = exp(s * scale - whole) * (t - delta) * scale;
  }
  BARRIER;
  for (long d = LANE; d < width; d += LANES) {
    float s = 0;
    for (long j = 0; j < last; ++j) s += e[j] * AT(k, b, h, j, d);
    AT(dq, b, h, i, d) = s;
  }
}

// The gradients of key and value, a group per key.
KERNEL attention_key(ARG(float, dk), ARG(float, dv), ARG(float, g), ARG(float, q), ARG(float, k), ARG(float, v), ARG(float, o),
                     ARG(float, lse), At dk_s, At dv_s, At g_s, At q_s, At k_s, At v_s, At o_s, At lse_s, long queries, long keys,
                     long width, float scale, int causal) {
  LOCAL float p[KEYS];
  LOCAL float e[KEYS];
  USE(float, dk); USE(float, dv); USE(float, g); USE(float, q); USE(float, k); USE(float, v); USE(float, o); USE(float, lse);
  long j = GROUP, h = GROUP_Y, b = GROUP_Z, first = causal ? j : 0;
  for (long i = first + LANE; i < queries; i += LANES) {
    float s = 0, t = 0, delta = 0;
    for (long d = 0; d < width; ++d) {
      s += AT(q, b, h, i, d) * AT(k, b, h, j, d);
      t += AT(g, b, h, i, d) * AT(v, b, h, j, d);
      delta += AT(g, b, h, i, d) * AT(o, b, h, i, d);
    }
    p[i] = exp(s * scale - AT(lse, b, h, i, 0));
    e[i] = p[i] * (t - delta) * scale;
  }
  BARRIER;
  for (long d = LANE; d < width; d += LANES) {
    float s = 0, t = 0;
    for (long i = first; i < queries; ++i) {
      s += e[i] * AT(q, b, h, i, d);
      t += p[i] * AT(g, b, h, i, d);
    }
    AT(dk, b, h, j, d) = s;
    AT(dv, b, h, j, d) = t;
  }
}

// Loshchilov and Hutter 2019 (decoupled), Kingma and Ba 2015 (not decoupled), as torch's fused optimizers compute it.
KERNEL adam(ARG(float, w), ARG(float, g), ARG(float, m), ARG(float, v), ARG(float, step), long n, float lr, float beta1, float beta2,
            float decay, float eps, int decoupled, int maximize) {
  USE(float, w); USE(float, g); USE(float, m); USE(float, v); USE(float, step);
  long i = GROUP * LANES + LANE;
  if (i >= n) return;
  float x = w[i], d = maximize ? -g[i] : g[i];
  if (decoupled) x -= lr * decay * x;
  else d += decay * x;
  float first = m[i] + (1 - beta1) * (d - m[i]), second = beta2 * v[i] + (1 - beta2) * d * d;
  float c1 = 1 - pow(beta1, step[0]), c2 = 1 - pow(beta2, step[0]);
  m[i] = first;
  v[i] = second;
  w[i] = x - lr / c1 * first / (sqrt(second) / sqrt(c2) + eps);
}
)";

}  // namespace kit
