// Pooling and interpolation, forward and backward, over one to three dimensions. A thread computes an element, also of a
// gradient, so that sums have an order.
#pragma once
#include "kit_reductions.h"

namespace kit {

inline const Source kPooling = {"pooling", R"(
typedef WIDE(T) V;
// Dense tensors of `planes` images. Windows begin at stride * i - pad and have k elements, or are those of adaptive pooling.
typedef struct {
  long planes, in[3], out[3], k[3], stride[3], pad[3], dilation[3];
  long adaptive, padded, divisor;     // padded: padding counts for the mean; divisor: instead of the count, if not 0
} Windows;
#define PLANE_IN (s.in[0] * s.in[1] * s.in[2])
#define PLANE_OUT (s.out[0] * s.out[1] * s.out[2])
DEVICE long first_of(const Windows s, int d, long i) { return s.adaptive ? i * s.in[d] / s.out[d] : i * s.stride[d] - s.pad[d]; }
DEVICE long end_of(const Windows s, int d, long i) {  // before it is cut at the border
  return s.adaptive ? ((i + 1) * s.in[d] + s.out[d] - 1) / s.out[d] : first_of(s, d, i) + (s.k[d] - 1) * s.dilation[d] + 1;
}
DEVICE long cut(const Windows s, int d, long i) { return i < 0 ? 0 : i > s.in[d] ? s.in[d] : i; }
// The windows that contain an element: from the first, to the last.
DEVICE long first_window(const Windows s, int d, long i) {
  if (s.adaptive) return i * s.out[d] / s.in[d];
  long reach = i + s.pad[d] - (s.k[d] - 1) * s.dilation[d];
  return reach <= 0 ? 0 : (reach + s.stride[d] - 1) / s.stride[d];
}
DEVICE long last_window(const Windows s, int d, long i) {
  long last = s.adaptive ? ((i + 1) * s.out[d] - 1) / s.in[d] : (i + s.pad[d]) / s.stride[d];
  return last < s.out[d] ? last : s.out[d] - 1;
}
DEVICE long counted(const Windows s, long x, long y, long z) {
  if (s.divisor) return s.divisor;
  long at[3], count = 1;
  at[0] = x; at[1] = y; at[2] = z;
  for (int d = 0; d < 3; ++d) {
    long from = first_of(s, d, at[d]), to = end_of(s, d, at[d]);
    if (s.padded) count *= (to < s.in[d] + s.pad[d] ? to : s.in[d] + s.pad[d]) - from;
    else count *= cut(s, d, to) - cut(s, d, from);
  }
  return count;
}

KERNEL maximum(long n, ARG(T, o), ARG(long, at), ARG(T, a), Windows s) {
  USE(T, o); USE(long, at); USE(T, a);
  long i = GROUP * LANES + LANE;
  if (i >= n) return;
  long z = i % s.out[2], y = i / s.out[2] % s.out[1], x = i / s.out[2] / s.out[1] % s.out[0], base = i / PLANE_OUT * PLANE_IN;
  V best = -INFINITY;
  long place = -1;
  for (long p = first_of(s, 0, x); p < end_of(s, 0, x); p += s.dilation[0])
    for (long q = first_of(s, 1, y); q < end_of(s, 1, y); q += s.dilation[1])
      for (long r = first_of(s, 2, z); r < end_of(s, 2, z); r += s.dilation[2]) {
        if (p < 0 || p >= s.in[0] || q < 0 || q >= s.in[1] || r < 0 || r >= s.in[2]) continue;
        long from = (p * s.in[1] + q) * s.in[2] + r;
        V value = LOAD(T, a, base + from);
        if (place < 0 || value > best || value != value) { best = value; place = from; }
      }
  STORE(T, o, i, best);
  at[i] = place;
}

KERNEL maximum_backward(long n, ARG(T, o), ARG(T, g), ARG(long, at), Windows s) {
  USE(T, o); USE(T, g); USE(long, at);
  long i = GROUP * LANES + LANE;
  if (i >= n) return;
  long z = i % s.in[2], y = i / s.in[2] % s.in[1], x = i / s.in[2] / s.in[1] % s.in[0], base = i / PLANE_IN * PLANE_OUT;
  V sum = 0;
  for (long p = first_window(s, 0, x); p <= last_window(s, 0, x); ++p)
    for (long q = first_window(s, 1, y); q <= last_window(s, 1, y); ++q)
      for (long r = first_window(s, 2, z); r <= last_window(s, 2, z); ++r) {
        long from = base + (p * s.out[1] + q) * s.out[2] + r;
        if (at[from] == i % PLANE_IN) sum += LOAD(T, g, from);
      }
  STORE(T, o, i, sum);
}

KERNEL average(long n, ARG(T, o), ARG(T, a), Windows s) {
  USE(T, o); USE(T, a);
  long i = GROUP * LANES + LANE;
  if (i >= n) return;
  long z = i % s.out[2], y = i / s.out[2] % s.out[1], x = i / s.out[2] / s.out[1] % s.out[0], base = i / PLANE_OUT * PLANE_IN;
  V sum = 0;
  for (long p = cut(s, 0, first_of(s, 0, x)); p < cut(s, 0, end_of(s, 0, x)); ++p)
    for (long q = cut(s, 1, first_of(s, 1, y)); q < cut(s, 1, end_of(s, 1, y)); ++q)
      for (long r = cut(s, 2, first_of(s, 2, z)); r < cut(s, 2, end_of(s, 2, z)); ++r)
        sum += LOAD(T, a, base + (p * s.in[1] + q) * s.in[2] + r);
  STORE(T, o, i, sum / counted(s, x, y, z));
}

KERNEL average_backward(long n, ARG(T, o), ARG(T, g), Windows s) {
  USE(T, o); USE(T, g);
  long i = GROUP * LANES + LANE;
  if (i >= n) return;
  long z = i % s.in[2], y = i / s.in[2] % s.in[1], x = i / s.in[2] / s.in[1] % s.in[0], base = i / PLANE_IN * PLANE_OUT;
  V sum = 0;
  for (long p = first_window(s, 0, x); p <= last_window(s, 0, x); ++p)
    for (long q = first_window(s, 1, y); q <= last_window(s, 1, y); ++q)
      for (long r = first_window(s, 2, z); r <= last_window(s, 2, z); ++r)
        sum += LOAD(T, g, base + (p * s.out[1] + q) * s.out[2] + r) / counted(s, p, q, r);
  STORE(T, o, i, sum);
}
)"};

// Interpolation: in is the smaller or larger image that is read, out the one that is computed.
inline const Source kInterpolation = {"interpolation", R"(
typedef WIDE(T) V;
typedef struct { long in[3], out[3]; double scale[3]; long linear, corners; } Grid;
// Where an element of the result lies among those that are read: `at`, and the next one with the weight `next`.
DEVICE void source_of(const Grid s, int d, long i, long* at, V* next) {
  V scale = (V)s.scale[d];
  *next = 0;
  if (!s.linear) {
    *at = (long)(i * scale);
    if (*at > s.in[d] - 1) *at = s.in[d] - 1;
    return;
  }
  V place = s.corners ? i * scale : (i + (V)0.5) * scale - (V)0.5;
  if (place < 0) place = 0;
  *at = (long)place;
  if (*at > s.in[d] - 1) *at = s.in[d] - 1;
  *next = place - *at;
  if (*at == s.in[d] - 1) *next = 0;
}

KERNEL interpolate(long n, ARG(T, o), ARG(T, a), Grid s) {
  USE(T, o); USE(T, a);
  long i = GROUP * LANES + LANE;
  if (i >= n) return;
  long at[3];
  V next[3], sum = 0;
  source_of(s, 2, i % s.out[2], &at[2], &next[2]);
  source_of(s, 1, i / s.out[2] % s.out[1], &at[1], &next[1]);
  source_of(s, 0, i / s.out[2] / s.out[1] % s.out[0], &at[0], &next[0]);
  long base = i / (s.out[0] * s.out[1] * s.out[2]) * s.in[0] * s.in[1] * s.in[2];
  for (int corner = 0; corner < 8; ++corner) {
    V weight = 1;
    long from[3];
    for (int d = 0; d < 3; ++d) {
      int far = corner >> (2 - d) & 1;
      weight *= far ? next[d] : 1 - next[d];
      from[d] = at[d] + far;
    }
    if (weight != 0) sum += weight * LOAD(T, a, base + (from[0] * s.in[1] + from[1]) * s.in[2] + from[2]);
  }
  STORE(T, o, i, sum);
}

// The gradient of an element is the sum over those that were computed from it: a range around its place.
DEVICE void range_of(const Grid s, int d, long i, long* from, long* to) {
  if (s.scale[d] == 0) { *from = 0; *to = s.out[d]; return; }
  *from = (long)((i - 1) / s.scale[d]) - 2;
  *to = (long)((i + 2) / s.scale[d]) + 3;
  if (*from < 0) *from = 0;
  if (*to > s.out[d] || i == s.in[d] - 1) *to = s.out[d];
}
DEVICE V share_of(const Grid s, int d, long o, long i) {
  long at;
  V next;
  source_of(s, d, o, &at, &next);
  return at == i ? 1 - next : at + 1 == i ? next : 0;
}
KERNEL interpolate_backward(long n, ARG(T, o), ARG(T, g), Grid s) {
  USE(T, o); USE(T, g);
  long i = GROUP * LANES + LANE;
  if (i >= n) return;
  long z = i % s.in[2], y = i / s.in[2] % s.in[1], x = i / s.in[2] / s.in[1] % s.in[0];
  long base = i / (s.in[0] * s.in[1] * s.in[2]) * s.out[0] * s.out[1] * s.out[2];
  long from[3], to[3];
  range_of(s, 0, x, &from[0], &to[0]);
  range_of(s, 1, y, &from[1], &to[1]);
  range_of(s, 2, z, &from[2], &to[2]);
  V sum = 0;
  for (long p = from[0]; p < to[0]; ++p) {
    V by = share_of(s, 0, p, x);
    if (by == 0) continue;
    for (long q = from[1]; q < to[1]; ++q) {
      V next = by * share_of(s, 1, q, y);
      if (next == 0) continue;
      for (long r = from[2]; r < to[2]; ++r) {
        V weight = next * share_of(s, 2, r, z);
        if (weight != 0) sum += weight * LOAD(T, g, base + (p * s.out[1] + q) * s.out[2] + r);
      }
    }
  }
  STORE(T, o, i, sum);
}
)"};

struct Windows {  // as in the kernels
  int64_t planes, in[3], out[3], k[3], stride[3], pad[3], dilation[3], adaptive, padded, divisor;
};

// The last `over` sizes of an image, as three.
inline void three_sizes(const Tensor& tensor, int over, int64_t* sizes) {
  for (int d = 0; d < 3; ++d) sizes[d] = d < 3 - over ? 1 : tensor.sizes[tensor.dims - 3 + d];
}

// `list` is a list of `over` numbers; `otherwise` for one without entries.
inline void three_numbers(Call& call, int list, int over, int64_t* numbers, int64_t otherwise) {
  for (int d = 0; d < 3; ++d) {
    bool has = d >= 3 - over && list >= 0 && call.argument(list).count > 0;
    numbers[d] = has ? call.entry(list, d - (3 - over)) : otherwise;
  }
}

// Arguments from `first`: kernel, stride, padding, and dilation if `dilated`.
inline Windows windows_of_pool(Call& call, const Tensor& in, const Tensor& out, int over, int first, bool dilated) {
  Windows s = {1, {}, {}, {}, {}, {}, {}, 0, 0, 0};
  three_sizes(in, over, s.in);
  three_sizes(out, over, s.out);
  three_numbers(call, first, over, s.k, 1);
  bool own = call.argument(first + 1).count > 0;  // without strides, windows do not overlap
  three_numbers(call, own ? first + 1 : first, over, s.stride, 1);
  three_numbers(call, first + 2, over, s.pad, 0);
  three_numbers(call, dilated ? first + 3 : -1, over, s.dilation, 1);
  return s;
}

inline Windows adaptive_windows(const Tensor& in, const Tensor& out, int over) {
  Windows s = {1, {}, {}, {1, 1, 1}, {1, 1, 1}, {}, {1, 1, 1}, 1, 0, 0};
  three_sizes(in, over, s.in);
  three_sizes(out, over, s.out);
  return s;
}

inline bool pools(Call& call, const Tensor& in) { return is_floating(in.dtype) && !in.on_host() ? true : call.refuse("dtype"); }

inline bool pool_maximum(Call& call, const Windows& s) {
  Tensor in = call.dense(call.tensor(0)), out = call.result(call.target(0)), at = call.result(call.target(1));
  call.each(kPooling, types({{"T", in.dtype}}), "maximum", out.numel()).buffer(out).buffer(at).buffer(in).value(s);
  return true;
}
inline bool pool_maximum_backward(Call& call, const Windows& s, int indices) {
  Tensor grad = call.dense(call.tensor(0)), at = call.dense(call.tensor(indices)), out = call.result(call.target());
  call.each(kPooling, types({{"T", out.dtype}}), "maximum_backward", out.numel()).buffer(out).buffer(grad).buffer(at).value(s);
  return true;
}
inline bool pool_average(Call& call, const Windows& s) {
  Tensor in = call.dense(call.tensor(0)), out = call.result(call.target());
  call.each(kPooling, types({{"T", in.dtype}}), "average", out.numel()).buffer(out).buffer(in).value(s);
  return true;
}
inline bool pool_average_backward(Call& call, const Windows& s) {
  Tensor grad = call.dense(call.tensor(0)), out = call.result(call.target());
  call.each(kPooling, types({{"T", out.dtype}}), "average_backward", out.numel()).buffer(out).buffer(grad).value(s);
  return true;
}

// max_poolNd_with_indices(self, kernel, stride, padding, dilation, ceil_mode)
inline Make max_pool(int over) {
  return [=](Call& call) {
    Tensor in = call.tensor(0);
    return pools(call, in) && pool_maximum(call, windows_of_pool(call, in, call.target(0), over, 1, true));
  };
}
// (grad, self, kernel, stride, padding, dilation, ceil_mode, indices)
inline Make max_pool_backward(int over) {
  return [=](Call& call) {
    Tensor in = call.tensor(1);
    return pools(call, in) && pool_maximum_backward(call, windows_of_pool(call, in, call.tensor(0), over, 2, true), 7);
  };
}
// avg_poolNd(self, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override), and with a gradient before them
inline Make average_pool(int over, bool backward) {
  return [=](Call& call) {
    int first = backward ? 1 : 0;
    Tensor in = call.tensor(first), out = backward ? call.tensor(0) : call.target();
    if (!pools(call, in)) return false;
    Windows s = windows_of_pool(call, in, out, over, first + 1, false);
    s.padded = call.is_true(first + 5);
    if (!call.none(first + 6)) s.divisor = call.argument(first + 6).integer;
    return backward ? pool_average_backward(call, s) : pool_average(call, s);
  };
}
inline Make adaptive_average_pool(int over, bool backward) {  // (self, output_size), (grad, self)
  return [=](Call& call) {
    Tensor in = call.tensor(backward ? 1 : 0);
    if (!pools(call, in)) return false;
    Windows s = adaptive_windows(in, backward ? call.tensor(0) : call.target(), over);
    return backward ? pool_average_backward(call, s) : pool_average(call, s);
  };
}
inline Make adaptive_max_pool(int over, bool backward) {  // (self, output_size), (grad, self, indices)
  return [=](Call& call) {
    Tensor in = call.tensor(backward ? 1 : 0);
    if (!pools(call, in)) return false;
    Windows s = adaptive_windows(in, backward ? call.tensor(0) : call.target(0), over);
    return backward ? pool_maximum_backward(call, s, 2) : pool_maximum(call, s);
  };
}

struct Interpolation {  // Grid of the kernels
  int64_t in[3], out[3];
  double scale[3];
  int64_t linear, corners;
};

// upsample_nearestNd(self, output_size, scales...), upsample_(bi|tri)linearNd(self, output_size, align_corners, scales...), and
// their gradients (grad, output_size, input_size, ...)
inline Make interpolation(int over, bool linear, bool backward) {
  return [=](Call& call) {
    Tensor from = call.tensor(0), to = call.target();
    if (!pools(call, from)) return false;
    const Tensor &small = backward ? to : from, &large = backward ? from : to;
    Interpolation s = {{}, {}, {1, 1, 1}, linear, 0};
    three_sizes(small, over, s.in);
    three_sizes(large, over, s.out);
    int next = backward ? 3 : 2;
    if (linear) s.corners = call.is_true(next++);
    for (int d = 3 - over; d < 3; ++d) {
      int scale = next + d - (3 - over);
      bool has = scale < call.c->argument_count && call.argument(scale).kind == BRINGUP_DOUBLE && call.argument(scale).number > 0;
      if (s.corners)
        s.scale[d] = s.out[d] > 1 ? double(s.in[d] - 1) / double(s.out[d] - 1) : 0;
      else
        s.scale[d] = has ? 1 / call.argument(scale).number : double(s.in[d]) / double(s.out[d]);
      // As torch's CPU kernels, whatever scale is stated.
      if ((linear || over == 2) && s.in[d] == s.out[d]) s.scale[d] = 1;
      if (!linear && over == 2 && 2 * s.in[d] == s.out[d]) s.scale[d] = 0.5;
    }
    Tensor in = call.dense(from), out = call.result(to);
    call.each(kInterpolation, types({{"T", in.dtype}}), backward ? "interpolate_backward" : "interpolate", out.numel())
        .buffer(out)
        .buffer(in)
        .value(s);
    return true;
  };
}

}  // namespace kit
