// Convolution forward and backward, with stride, padding, dilation, groups and transposition, over one to three dimensions and
// any strides. Each kernel has a thread, or a group of threads, per element of its result, so that sums have an order.
#pragma once
#include "kit_products.h"
#include "kit_reductions.h"

namespace kit {

// `a` is the larger side, from which the kernel's windows are taken, and `o` the other: input and output of a convolution, output
// and input of a transposed one. The weight is (channels of o, channels of a / groups, kernel).
inline const Source kConvolution = {"convolution", R"(
typedef WIDE(T) V;
typedef struct {
  long n, a, o, groups;               // batch, channels of the two sides
  long size[3], to[3], k[3];          // of a, o and the kernel
  long stride[3], pad[3], dilation[3];
  long sa[5], so[5], sw[5];           // strides in elements
} Shape;
#define A_AT(n, c, x, y, z) ((n) * s.sa[0] + (c) * s.sa[1] + (x) * s.sa[2] + (y) * s.sa[3] + (z) * s.sa[4])
#define O_AT(n, c, x, y, z) ((n) * s.so[0] + (c) * s.so[1] + (x) * s.so[2] + (y) * s.so[3] + (z) * s.so[4])
#define W_AT(o, c, x, y, z) ((o) * s.sw[0] + (c) * s.sw[1] + (x) * s.sw[2] + (y) * s.sw[3] + (z) * s.sw[4])
#define INPUT(d, p, k) ((p) * s.stride[d] - s.pad[d] + (k) * s.dilation[d])
#define KERNEL_SIZE (s.k[0] * s.k[1] * s.k[2])

// The place of o whose window has an element of a at this place of the kernel; -1: none.
DEVICE long window(const Shape s, int d, long at, long k) {
  long from = at + s.pad[d] - k * s.dilation[d];
  return from < 0 || from % s.stride[d] || from / s.stride[d] >= s.to[d] ? -1 : from / s.stride[d];
}

// o from a and w
KERNEL gather_windows(long count, ARG(T, o), ARG(T, a), ARG(T, w), ARG(T, b), Shape s, int biased) {
  USE(T, o); USE(T, a); USE(T, w); USE(T, b);
  long i = GROUP * LANES + LANE;
  if (i >= count) return;
  long z = i % s.to[2], y = i / s.to[2] % s.to[1], x = i / s.to[2] / s.to[1] % s.to[0];
  long c = i / (s.to[0] * s.to[1] * s.to[2]) % s.o, n = i / (s.to[0] * s.to[1] * s.to[2]) / s.o;
  long per = s.a / s.groups, first = c / (s.o / s.groups) * per;
  V sum = 0;
  for (long f = 0; f < per; ++f)
    for (long p = 0; p < s.k[0]; ++p) {
      long ax = INPUT(0, x, p);
      if (ax < 0 || ax >= s.size[0]) continue;
      for (long q = 0; q < s.k[1]; ++q) {
        long ay = INPUT(1, y, q);
        if (ay < 0 || ay >= s.size[1]) continue;
        for (long r = 0; r < s.k[2]; ++r) {
          long az = INPUT(2, z, r);
          if (az >= 0 && az < s.size[2]) sum += LOAD(T, a, A_AT(n, first + f, ax, ay, az)) * LOAD(T, w, W_AT(c, f, p, q, r));
        }
      }
    }
  if (biased) sum += LOAD(T, b, c);
  STORE(T, o, O_AT(n, c, x, y, z), sum);
}

// a from o and w: the gradient of a convolution's input, and a transposed convolution
KERNEL scatter_windows(long count, ARG(T, a), ARG(T, o), ARG(T, w), ARG(T, b), Shape s, int biased) {
  USE(T, a); USE(T, o); USE(T, w); USE(T, b);
  long i = GROUP * LANES + LANE;
  if (i >= count) return;
  long z = i % s.size[2], y = i / s.size[2] % s.size[1], x = i / s.size[2] / s.size[1] % s.size[0];
  long c = i / (s.size[0] * s.size[1] * s.size[2]) % s.a, n = i / (s.size[0] * s.size[1] * s.size[2]) / s.a;
  long per = s.a / s.groups, others = s.o / s.groups, first = c / per * others;
  V sum = 0;
  for (long f = 0; f < others; ++f)
    for (long p = 0; p < s.k[0]; ++p) {
      long ox = window(s, 0, x, p);
      if (ox < 0) continue;
      for (long q = 0; q < s.k[1]; ++q) {
        long oy = window(s, 1, y, q);
        if (oy < 0) continue;
        for (long r = 0; r < s.k[2]; ++r) {
          long oz = window(s, 2, z, r);
          if (oz < 0) continue;
          sum += LOAD(T, o, O_AT(n, first + f, ox, oy, oz)) *
                 LOAD(T, w, W_AT(first + f, c % per, p, q, r));
        }
      }
    }
  if (biased) sum += LOAD(T, b, c);
  STORE(T, a, A_AT(n, c, x, y, z), sum);
}

// The gradient of the weight, a group per element.
KERNEL weight_windows(ARG(T, w), ARG(T, a), ARG(T, o), Shape s) {
  LOCAL V red[LANES];
  USE(T, w); USE(T, a); USE(T, o);
  long r = GROUP % s.k[2], q = GROUP / s.k[2] % s.k[1], p = GROUP / s.k[2] / s.k[1] % s.k[0];
  long per = s.a / s.groups, f = GROUP / KERNEL_SIZE % per, c = GROUP / KERNEL_SIZE / per;
  long first = c / (s.o / s.groups) * per, places = s.to[0] * s.to[1] * s.to[2];
  V sum = 0;
  for (long i = LANE; i < s.n * places; i += LANES) {
    long n = i / places, z = i % s.to[2], y = i / s.to[2] % s.to[1], x = i / s.to[2] / s.to[1] % s.to[0];
    long ax = INPUT(0, x, p), ay = INPUT(1, y, q), az = INPUT(2, z, r);
    if (ax < 0 || ax >= s.size[0] || ay < 0 || ay >= s.size[1] || az < 0 || az >= s.size[2]) continue;
    sum += LOAD(T, a, A_AT(n, first + f, ax, ay, az)) * LOAD(T, o, O_AT(n, c, x, y, z));
  }
  SUM(sum);
  if (LANE == 0) STORE(T, w, W_AT(c, f, p, q, r), sum);
}

// The windows as a matrix m: rows are channels times kernel, columns are places. `next_image` and `next_row` are its strides.
#define ROWS (s.a * KERNEL_SIZE)
#define PLACES (s.to[0] * s.to[1] * s.to[2])
KERNEL unfold(long count, ARG(T, m), ARG(T, a), Shape s, long next_image, long next_row) {
  USE(T, m); USE(T, a);
  long i = GROUP * LANES + LANE;
  if (i >= count) return;
  long z = i % s.to[2], y = i / s.to[2] % s.to[1], x = i / s.to[2] / s.to[1] % s.to[0], row = i / PLACES % ROWS, n = i / PLACES / ROWS;
  long r = row % s.k[2], q = row / s.k[2] % s.k[1], p = row / s.k[2] / s.k[1] % s.k[0];
  long ax = INPUT(0, x, p), ay = INPUT(1, y, q), az = INPUT(2, z, r);
  int inside = ax >= 0 && ax < s.size[0] && ay >= 0 && ay < s.size[1] && az >= 0 && az < s.size[2];
  STORE(T, m, n * next_image + row * next_row + i % PLACES, inside ? LOAD(T, a, A_AT(n, row / KERNEL_SIZE, ax, ay, az)) : (V)0);
}

// a is the sum over the windows, of a matrix for each image, that contain an element.
KERNEL fold(long count, ARG(T, a), ARG(T, m), ARG(T, b), Shape s, int biased) {
  USE(T, a); USE(T, m); USE(T, b);
  long i = GROUP * LANES + LANE;
  if (i >= count) return;
  long z = i % s.size[2], y = i / s.size[2] % s.size[1], x = i / s.size[2] / s.size[1] % s.size[0];
  long c = i / (s.size[0] * s.size[1] * s.size[2]) % s.a, n = i / (s.size[0] * s.size[1] * s.size[2]) / s.a;
  V sum = biased ? LOAD(T, b, c) : (V)0;
  for (long p = 0; p < s.k[0]; ++p) {
    long ox = window(s, 0, x, p);
    if (ox < 0) continue;
    for (long q = 0; q < s.k[1]; ++q) {
      long oy = window(s, 1, y, q);
      if (oy < 0) continue;
      for (long r = 0; r < s.k[2]; ++r) {
        long oz = window(s, 2, z, r);
        if (oz < 0) continue;
        long row = ((c * s.k[0] + p) * s.k[1] + q) * s.k[2] + r;
        sum += LOAD(T, m, (n * ROWS + row) * PLACES + (ox * s.to[1] + oy) * s.to[2] + oz);
      }
    }
  }
  STORE(T, a, A_AT(n, c, x, y, z), sum);
}
)"};

struct ConvolutionShape {  // Shape of the kernels
  int64_t n, a, o, groups, size[3], to[3], k[3], stride[3], pad[3], dilation[3], sa[5], so[5], sw[5];
};

// Fewer dimensions than three are the last ones.
inline void three_dimensional(const Tensor& tensor, int64_t* sizes, int64_t* strides) {
  int missing = 5 - tensor.dims;
  for (int d = 0; d < 5; ++d) {
    int from = d < 2 ? d : d - missing;
    bool has = d < 2 || from >= 2;
    strides[d] = has ? tensor.strides[from] : 0;
    if (d >= 2) sizes[d - 2] = has ? tensor.sizes[from] : 1;
  }
}

// `first` is the argument stride; padding and dilation follow it.
inline ConvolutionShape convolution_shape(Call& call, const Tensor& a, const Tensor& o, const Tensor& w, int first, int groups) {
  ConvolutionShape s = {a.sizes[0], a.sizes[1], o.sizes[1], call.argument(groups).integer, {}, {}, {}, {}, {}, {}, {}, {}, {}};
  three_dimensional(a, s.size, s.sa);
  three_dimensional(o, s.to, s.so);
  three_dimensional(w, s.k, s.sw);
  for (int d = 0; d < 3; ++d) {
    int from = d - (5 - a.dims);
    s.stride[d] = from < 0 ? 1 : call.entry(first, from);
    s.pad[d] = from < 0 ? 0 : call.entry(first + 1, from);
    s.dilation[d] = from < 0 ? 1 : call.entry(first + 2, from);
  }
  return s;
}

inline bool convolves(Call& call, const Tensor& a, const Tensor& w) {
  if (!is_floating(a.dtype) || a.dtype != w.dtype || a.on_host() || w.on_host()) return call.refuse("dtype");
  return a.dims >= 3 && a.dims <= 5 ? true : call.refuse("form");
}

// The sizes of the matrices of one group.
struct Matrices {
  long rows, places;
  bool possible;
  explicit Matrices(const ConvolutionShape& s)
      : rows(s.a * s.k[0] * s.k[1] * s.k[2]),
        places(s.to[0] * s.to[1] * s.to[2]),
        possible(s.groups == 1 && s.n * rows * places < (1l << 29)) {}  // chosen: at most 2 GiB of float32 in the workspace
};

// A tensor whose first two dimensions are exchanged, dense.
inline Tensor channels_first(Call& call, Tensor tensor) {
  auto& sizes = call.shapes.emplace_back(call.sizes_of(tensor));
  auto& strides = call.shapes.emplace_back(tensor.strides, tensor.strides + tensor.dims);
  std::swap(sizes[0], sizes[1]), std::swap(strides[0], strides[1]);
  tensor.sizes = sizes.data(), tensor.strides = strides.data();
  return call.dense(tensor);
}

// A bias as a tensor that is broadcast to the images of another.
inline Tensor spread(Call& call, Tensor bias, const Tensor& images) {
  auto& sizes = call.shapes.emplace_back(size_t(images.dims), 1);
  auto& strides = call.shapes.emplace_back(size_t(images.dims), 0);
  sizes[1] = bias.sizes[0], strides[1] = bias.strides[0];
  bias.dims = images.dims, bias.sizes = sizes.data(), bias.strides = strides.data();
  return bias;
}

// `o` of a convolution from `a`, or with `scatter` the reverse; `b` is the bias, or null.
inline bool convolve(Call& call, const ConvolutionShape& s, bool scatter, const Tensor& out, const Tensor& in, const Tensor& w,
                     const Tensor* b) {
  Matrices matrices(s);
  std::string macros = types({{"T", w.dtype}});
  if (!matrices.possible) {
    Tensor bias = b ? call.dense(*b, w.dtype) : w;
    Step& step = call.each(kConvolution, macros, scatter ? "scatter_windows" : "gather_windows", out.numel());
    step.buffer(out).buffer(in).buffer(w).buffer(bias).value(s).value(int32_t(b != nullptr));
    return true;
  }
  Tensor matrix = call.scratch(w.dtype, {s.n, matrices.rows, matrices.places}), weight = call.dense(w);
  long rows = matrices.rows, places = matrices.places;
  if (scatter) {
    Tensor from = call.dense(in), bias = b ? call.dense(*b, w.dtype) : w;
    Product p = {w.dtype, s.n, rows, places, s.o, {0, 1, rows}, {s.o * places, places, 1}};
    if (!product(call, matrix, weight, from, p)) return false;
    Step& step = call.each(kConvolution, macros, "fold", out.numel()).buffer(out).buffer(matrix).buffer(bias);
    step.value(s).value(int32_t(b != nullptr));
    return true;
  }
  Tensor to = call.result(out);
  if (b && !pointwise(call, to, copy_of(spread(call, *b, to)))) return false;
  call.each(kConvolution, macros, "unfold", matrix.numel()).buffer(matrix).buffer(in).value(s).counts(rows * places, places);
  Product p = {w.dtype, s.n, s.o, places, rows, {0, rows, 1}, {rows * places, places, 1}};
  return product(call, to, weight, matrix, p, {-1, 1}, {-1, b ? 1.0 : 0.0});
}

inline bool weight_gradient(Call& call, const ConvolutionShape& s, const Tensor& to, const Tensor& a, const Tensor& o) {
  Matrices matrices(s);
  std::string macros = types({{"T", to.dtype}});
  if (!matrices.possible) {
    call.step(kConvolution, macros, "weight_windows", to.numel()).buffer(to).buffer(a).buffer(o).value(s);
    return true;
  }
  long all = s.n * matrices.places;  // of all images, so that one product adds them
  Tensor matrix = call.scratch(to.dtype, {matrices.rows, all}), from = channels_first(call, o), out = call.result(to);
  Step& step = call.each(kConvolution, macros, "unfold", matrix.numel()).buffer(matrix).buffer(a).value(s);
  step.counts(matrices.places, all);
  return product(call, out, from, matrix, {to.dtype, 1, s.o, matrices.rows, all, {0, all, 1}, {0, 1, all}});
}

// (input, weight, bias, stride, padding, dilation, transposed, output_padding, groups)
inline bool convolution(Call& call) {
  Tensor in = call.tensor(0), w = call.tensor(1), out = call.output(0), b = w;
  if (!convolves(call, in, w)) return false;
  bool transposed = call.is_true(6), biased = !call.none(2);
  if (biased) b = call.tensor(2);
  ConvolutionShape s = transposed ? convolution_shape(call, out, in, w, 3, 8) : convolution_shape(call, in, out, w, 3, 8);
  return convolve(call, s, transposed, out, in, w, biased ? &b : nullptr);
}

// (grad, input, weight, bias_sizes, stride, padding, dilation, transposed, output_padding, groups, output_mask)
inline bool convolution_backward(Call& call) {
  Tensor grad = call.tensor(0), in = call.tensor(1), w = call.tensor(2);
  if (!convolves(call, in, w) || grad.dtype != in.dtype) return call.refuse("dtype");
  bool transposed = call.is_true(7);
  const Tensor &a = transposed ? grad : in, &o = transposed ? in : grad;
  if (call.output(0).dims >= 0) {
    Tensor to = call.output(0);
    ConvolutionShape shape = transposed ? convolution_shape(call, a, to, w, 4, 9) : convolution_shape(call, to, o, w, 4, 9);
    if (!convolve(call, shape, !transposed, to, grad, w, nullptr)) return false;
  }
  if (call.output(1).dims >= 0) {
    Tensor to = call.output(1);
    ConvolutionShape shape = convolution_shape(call, a, o, to, 4, 9);
    if (!weight_gradient(call, shape, to, a, o)) return false;
  }
  if (call.output(2).dims < 0) return true;
  Map map = {};
  map.dims = grad.dims;
  long inner = 1;
  for (int d = 0; d < grad.dims; ++d) {
    map.size[d] = grad.sizes[d], map.a[d] = grad.strides[d], map.o[d] = d == 1 ? 0 : -1;
    if (d != 1) inner *= grad.sizes[d];
  }
  return reduce_map(call, call.output(2), grad, kSum, map, inner);
}

}  // namespace kit
