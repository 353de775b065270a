// Operators that read or write where a tensor of indices says: embeddings, gather and scatter, and losses of classes. An index
// out of range fails the launch. Sums into one place have an order: a thread goes through all that may meet there.
#pragma once
#include "kit_reductions.h"

namespace kit {

// TI is the type of indices.
inline const Source kIndices = {"indices", R"(
typedef WIDE(T) V;
#define FAULT GLOBAL ulong* fault_base, ulong fault_offset, ulong number
#define CHECK(index, size, otherwise) \
  if ((index) < 0 || (index) >= (size)) { fault_base[fault_offset] = number; otherwise; }
#define MOVE(o, to, a, from) STORE(T, o, to, LOAD(T, a, from))

KERNEL embedding(ARG(T, o), ARG(T, w), ARG(TI, at), FAULT, long n, long entries) {
  USE(T, o); USE(T, w); USE(TI, at);
  long row = at[GROUP];
  if (row < 0 || row >= entries) {
    if (LANE == 0) fault_base[fault_offset] = number;
    return;
  }
  for (long i = LANE; i < n; i += LANES) MOVE(o, GROUP * n + i, w, row * n + i);
}

// A group per entry of the table.
KERNEL embedding_backward(ARG(T, o), ARG(T, g), ARG(TI, at), long n, long rows, long skip, int by_count) {
  USE(T, o); USE(T, g); USE(TI, at);
  long count = 1;
  if (by_count) {
    count = 0;
    for (long r = 0; r < rows; ++r) count += at[r] == GROUP;
  }
  for (long i = LANE; i < n; i += LANES) {
    V sum = 0;
    for (long r = 0; r < rows; ++r)
      if (at[r] == GROUP && GROUP != skip) sum += LOAD(T, g, r * n + i);
    STORE(T, o, GROUP * n + i, sum / (count ? count : 1));
  }
}

// Rows of (outer, n, inner): o is (outer, m, inner), indices are `at`.
KERNEL select_rows(long count, ARG(T, o), ARG(T, a), ARG(TI, at), FAULT, long n, long m, long inner) {
  USE(T, o); USE(T, a); USE(TI, at);
  long i = GROUP * LANES + LANE;
  if (i >= count) return;
  long row = at[i / inner % m];
  CHECK(row, n, return)
  MOVE(o, i, a, (i / inner / m * n + row) * inner + i % inner);
}
// mode 0: sets rows to those of a, 1: adds s times those of a, 2: fills them with s; a thread per place outside of the dimension.
KERNEL write_rows(long count, ARG(T, o), ARG(T, a), ARG(TI, at), FAULT, long n, long m, long inner, V s,
                int mode) {
  USE(T, o); USE(T, a); USE(TI, at);
  long i = GROUP * LANES + LANE;
  if (i >= count) return;
  for (long j = 0; j < m; ++j) {
    long row = at[j];
    CHECK(row, n, continue)
    long to = (i / inner * n + row) * inner + i % inner;
    V x = mode == 2 ? s : LOAD(T, a, (i / inner * m + j) * inner + i % inner);
    STORE(T, o, to, mode == 1 ? LOAD(T, o, to) + s * x : x);
  }
}

// The sizes of indices; strides of the tensor that is indexed and of the other one; `dim` is the dimension that is indexed.
typedef struct { long dims, dim, n, size[6], sa[6], sb[6]; } Along;
KERNEL gather(long count, ARG(T, o), ARG(T, a), ARG(TI, at), FAULT, Along s) {
  USE(T, o); USE(T, a); USE(TI, at);
  long i = GROUP * LANES + LANE;
  if (i >= count) return;
  long row = at[i], r = i, from = 0;
  CHECK(row, s.n, return)
  for (int d = (int)s.dims - 1; d >= 0; --d) {
    long k = r % s.size[d];
    r /= s.size[d];
    from += (d == s.dim ? row : k) * s.sa[d];
  }
  MOVE(o, i, a, from);
}
// mode 0: set, 1: add, 2: multiply; a thread per line along the dimension. The value is s if there is no source.
KERNEL scatter(long lines, ARG(T, o), ARG(T, b), ARG(TI, at), FAULT, Along s, V value, int source, int mode) {
  USE(T, o); USE(T, b); USE(TI, at);
  long i = GROUP * LANES + LANE;
  if (i >= lines) return;
  for (long j = 0; j < s.size[s.dim]; ++j) {
    long r = i, to = 0, from = 0, index = 0, step = 1;
    for (int d = (int)s.dims - 1; d >= 0; --d) {
      long k = j;
      if (d != s.dim) { k = r % s.size[d]; r /= s.size[d]; to += k * s.sa[d]; }
      from += k * s.sb[d];
      index += k * step;
      step *= s.size[d];
    }
    long row = at[index];
    CHECK(row, s.n, continue)
    to += row * s.sa[s.dim];
    V x = source ? LOAD(T, b, from) : value;
    if (mode == 1) x += LOAD(T, o, to);
    if (mode == 2) x *= LOAD(T, o, to);
    STORE(T, o, to, x);
  }
}

// a[i, j, ...]: up to three tensors of indices (count each) for the first dimensions of a dense tensor, which has `inner` elements
// behind them.
#define ONE(k, at, size, otherwise) \
  { long one = at[k]; if (one < 0) one += size; CHECK(one, size, otherwise) row = row * size + one; }
#define PLACE(k, otherwise) \
  long row = 0; \
  ONE(k, i0, n0, otherwise) \
  if (indexed > 1) ONE(k, i1, n1, otherwise) \
  if (indexed > 2) ONE(k, i2, n2, otherwise)
KERNEL read_places(long count, ARG(T, o), ARG(T, a), ARG(TI, i0), ARG(TI, i1), ARG(TI, i2), FAULT, long indexed, long n0, long n1,
                   long n2, long inner) {
  USE(T, o); USE(T, a); USE(TI, i0); USE(TI, i1); USE(TI, i2);
  long i = GROUP * LANES + LANE;
  if (i >= count) return;
  PLACE(i / inner, return)
  MOVE(o, i, a, row * inner + i % inner);
}
KERNEL write_places(long inner_count, ARG(T, o), ARG(T, b), ARG(TI, i0), ARG(TI, i1), ARG(TI, i2), FAULT, long indexed, long n0,
                    long n1, long n2, long inner, long places, int add) {
  USE(T, o); USE(T, b); USE(TI, i0); USE(TI, i1); USE(TI, i2);
  long i = GROUP * LANES + LANE;
  if (i >= inner_count) return;
  for (long k = 0; k < places; ++k) {
    PLACE(k, continue)
    long to = row * inner + i;
    V x = LOAD(T, b, k * inner + i);
    STORE(T, o, to, add ? x + LOAD(T, o, to) : x);
  }
}
)"};

// Inputs are (outer, classes, inner) with a target for each outer and inner.
inline const Source kNll = {"nll", R"(
typedef WIDE(T) V;
#define FAULT GLOBAL ulong* fault_base, ulong fault_offset, ulong number
KERNEL nll(ARG(T, o), ARG(T, total), ARG(T, a), ARG(TI, at), ARG(T, w), FAULT, long rows, long n, long inner, int mean, long skip,
           int weighted) {
  LOCAL V red[LANES];
  USE(T, o); USE(T, total); USE(T, a); USE(TI, at); USE(T, w);
  V sum = 0, used = 0;
  for (long r = LANE; r < rows; r += LANES) {
    long t = at[r];
    if (t == skip) continue;
    if (t < 0 || t >= n) { fault_base[fault_offset] = number; continue; }
    V by = weighted ? LOAD(T, w, t) : (V)1;
    sum -= by * LOAD(T, a, (r / inner * n + t) * inner + r % inner);
    used += by;
  }
  SUM(sum);
  SUM(used);
  if (LANE == 0) { STORE(T, o, 0, mean ? sum / used : sum); STORE(T, total, 0, used); }
}
KERNEL nll_each(long rows, ARG(T, o), ARG(T, a), ARG(TI, at), ARG(T, w), FAULT, long n, long inner, long skip, int weighted) {
  USE(T, o); USE(T, a); USE(TI, at); USE(T, w);
  long r = GROUP * LANES + LANE;
  if (r >= rows) return;
  long t = at[r];
  if (t != skip && (t < 0 || t >= n)) { fault_base[fault_offset] = number; return; }
  STORE(T, o, r, t == skip ? (V)0 : -(weighted ? LOAD(T, w, t) : (V)1) * LOAD(T, a, (r / inner * n + t) * inner + r % inner));
}
// reduction 0: none, 1: mean, 2: sum
KERNEL nll_backward(long count, ARG(T, o), ARG(T, g), ARG(TI, at), ARG(T, w), ARG(T, total), long n, long inner, long skip,
                    int weighted, int reduction) {
  USE(T, o); USE(T, g); USE(TI, at); USE(T, w); USE(T, total);
  long i = GROUP * LANES + LANE;
  if (i >= count) return;
  long r = i / inner / n * inner + i % inner, t = at[r];
  V x = 0;
  if (i / inner % n == t && t != skip) {
    x = -LOAD(T, g, reduction ? 0 : r) * (weighted ? LOAD(T, w, t) : (V)1);
    if (reduction == 1) x /= LOAD(T, total, 0);
  }
  STORE(T, o, i, x);
}
)"};

inline bool is_index(const Tensor& at) { return (at.dtype == BRINGUP_INT64 || at.dtype == BRINGUP_INT32) && !at.on_host(); }

inline std::string index_types(const Tensor& values, const Tensor& at) { return types({{"T", values.dtype}, {"TI", at.dtype}}); }

// True and true are true, but the kernels add numbers.
inline constexpr const char* kBoolSums = "sums of bool";

inline bool embedding(Call& call) {  // (weight, indices, ...)
  if (!is_index(call.tensor(1)) || !type_of(call.tensor(0).dtype)) return call.refuse("dtype");
  Tensor weight = call.dense(call.tensor(0)), at = call.dense(call.tensor(1)), out = call.result(call.output(0));
  call.step(kIndices, index_types(weight, at), "embedding", at.numel())
      .buffer(out)
      .buffer(weight)
      .buffer(at)
      .fault()
      .counts(weight.sizes[1], weight.sizes[0]);
  return true;
}

inline bool embedding_backward(Call& call) {  // (grad, indices, num_weights, padding_idx, scale_grad_by_freq)
  if (!is_index(call.tensor(1))) return call.refuse("dtype");
  Tensor grad = call.dense(call.tensor(0)), at = call.dense(call.tensor(1)), out = call.result(call.output(0), grad.dtype);
  call.step(kIndices, index_types(grad, at), "embedding_backward", long(call.argument(2).integer))
      .buffer(out)
      .buffer(grad)
      .buffer(at)
      .counts(grad.sizes[grad.dims - 1], at.numel(), call.argument(3).integer)
      .value(int32_t(call.is_true(4)));
  return true;
}

inline bool index_select(Call& call) {  // (self, dim, index)
  if (!is_index(call.tensor(2)) || !type_of(call.tensor(0).dtype) || call.tensor(0).dims == 0)
    return call.refuse("form or dtype");
  Tensor in = call.dense(call.tensor(0)), at = call.dense(call.tensor(2)), out = call.result(call.target());
  Rows rows(in, call.argument(1).integer);
  call.each(kIndices, index_types(in, at), "select_rows", out.numel())
      .buffer(out)
      .buffer(in)
      .buffer(at)
      .fault()
      .counts(rows.n, at.numel(), rows.inner);
  return true;
}

// index_copy(self, dim, index, source), index_add(self, dim, index, source, alpha), index_fill(self, dim, index, value): the mode
// is that of the kernel.
inline Make index_rows(int mode) {
  return [=](Call& call) {
    Tensor self = call.tensor(0), at = call.tensor(2);
    if (!is_index(at) || !type_of(self.dtype) || self.dims == 0) return call.refuse("form or dtype");
    if (mode != 2 && self.dtype != call.tensor(3).dtype) return call.refuse("dtype");
    if (mode == 1 && self.dtype == BRINGUP_BOOL) return call.refuse(kBoolSums);
    Tensor out = call.result(call.target()), source = mode == 2 ? out : call.dense(call.tensor(3));
    if (out.index != self.index && !pointwise(call, out, copy_of(self))) return false;
    Rows rows(self, call.argument(1).integer);
    at = call.dense(at);
    Step& step = call.each(kIndices, index_types(self, at), "write_rows", rows.count()).buffer(out).buffer(source).buffer(at);
    step.fault().counts(rows.n, at.numel(), rows.inner);
    mode == 0 ? step.number(letter_of(self.dtype), 1) : step.scalar(letter_of(self.dtype), mode == 1 ? 4 : 3);
    step.value(int32_t(mode));
    return true;
  };
}

struct Along {  // as in the kernels
  int64_t dims, dim, n, size[6], sa[6], sb[6];
};

inline bool along_of(Call& call, const Tensor& indexed, const Tensor& other, const Tensor& at, Along* s) {
  if (!is_index(at) || !type_of(indexed.dtype) || indexed.on_host()) return call.refuse("dtype");
  if (at.dims > 6 || at.dims == 0 || indexed.dims != at.dims) return call.refuse("form");
  *s = {at.dims, dim_of(call.argument(1).integer, at.dims), 0, {}, {}, {}};
  s->n = indexed.sizes[s->dim];
  for (int d = 0; d < at.dims; ++d) {
    s->size[d] = at.sizes[d], s->sa[d] = indexed.strides[d];
    s->sb[d] = other.dims == at.dims ? other.strides[d] : 0;
  }
  return true;
}

inline bool gather(Call& call) {  // (self, dim, index, sparse_grad)
  Tensor in = call.tensor(0), at = call.tensor(2), out = call.result(call.target());
  Along s;
  if (!along_of(call, in, out, at, &s)) return false;
  at = call.dense(at);
  call.each(kIndices, index_types(in, at), "gather", out.numel()).buffer(out).buffer(in).buffer(at).fault().value(s);
  return true;
}

// (self, dim, index, src or value): mode 0 sets, 1 adds, 2 multiplies
inline bool scatter_by(Call& call, int mode) {
  Tensor self = call.tensor(0), at = call.tensor(2), out = call.result(call.target());
  bool source = call.argument(3).kind == BRINGUP_TENSOR;
  Tensor from = source ? call.tensor(3) : out;
  if (source && (from.dtype != self.dtype || from.on_host())) return call.refuse("dtype");
  if (mode == 1 && self.dtype == BRINGUP_BOOL) return call.refuse(kBoolSums);
  Along s;
  if (!along_of(call, out, from, at, &s)) return false;
  if (out.index != self.index && !pointwise(call, out, copy_of(self))) return false;
  at = call.dense(at);
  Step& step = call.each(kIndices, index_types(self, at), "scatter", at.numel() / s.size[s.dim]);
  step.buffer(out).buffer(from).buffer(at).fault().value(s);
  source ? step.number(letter_of(self.dtype), 0) : step.scalar(letter_of(self.dtype), 3);
  step.value(int32_t(source)).value(int32_t(mode));
  return true;
}
inline Make scatter(int mode) {
  return [=](Call& call) { return scatter_by(call, mode); };
}
inline bool scatter_reduce(Call& call) {  // (self, dim, index, src, reduce, include_self)
  if (!is_string(call, 4, "sum") && !is_string(call, 4, "prod")) return call.refuse("mean, or an extreme");
  if (call.c->argument_count > 5 && !call.is_true(5)) return call.refuse("without the values before");
  return scatter_by(call, is_string(call, 4, "sum") ? 1 : 2);
}

// Tensors of indices for the first dimensions, in the workspace with a common shape; at[0] gets what the others have not.
struct Places {
  std::vector<Tensor> at;
  long n[3] = {1, 1, 1}, count = 1, inner = 1;
};

inline bool places_of(Call& call, const Tensor& indexed, int argument, Places* places) {
  const bringup_argument& list = call.argument(argument);
  if (list.kind != BRINGUP_TENSORS || list.count < 1 || list.count > 3) return call.refuse("not of the first dimensions");
  std::vector<int64_t> shape;
  for (int i = 0; i < list.count; ++i) {
    Tensor at = call.element(argument, i);
    if (!is_index(at) || at.dtype != call.element(argument, 0).dtype) return call.refuse("dtype of indices");
    while (int(shape.size()) < at.dims) shape.insert(shape.begin(), 1);
    for (int d = 0; d < at.dims; ++d) {
      int64_t& size = shape[shape.size() - size_t(at.dims) + size_t(d)];
      if (at.sizes[d] != 1) size = at.sizes[d];
    }
  }
  for (int64_t size : shape) places->count *= size;
  for (int i = 0; i < list.count; ++i) {
    Tensor at = call.element(argument, i);
    places->n[i] = indexed.sizes[i];
    if (call.sizes_of(at) == shape) {
      places->at.push_back(call.dense(at));
      continue;
    }
    places->at.push_back(call.scratch(at.dtype, shape));
    if (!pointwise(call, places->at.back(), copy_of(at))) return false;
  }
  for (int d = list.count; d < indexed.dims; ++d) places->inner *= indexed.sizes[d];
  while (places->at.size() < 3) places->at.push_back(places->at[0]);
  return true;
}

inline bool read_places(Call& call) {  // index.Tensor(self, indices)
  Tensor in = call.tensor(0), out = call.result(call.target());
  Places p;
  if (!type_of(in.dtype) || in.on_host()) return call.refuse("dtype");
  if (!places_of(call, in, 1, &p)) return false;
  in = call.dense(in);
  call.each(kIndices, index_types(in, p.at[0]), "read_places", out.numel())
      .buffer(out)
      .buffer(in)
      .buffer(p.at[0])
      .buffer(p.at[1])
      .buffer(p.at[2])
      .fault()
      .counts(call.argument(1).count, p.n[0], p.n[1], p.n[2], p.inner);
  return true;
}

// index_put with one mask and one value for all places: the mask covers the first dimensions.
inline bool fill_masked(Call& call) {
  Tensor self = call.tensor(0), mask = call.element(1, 0), value = call.tensor(2);
  if (value.numel() != 1 || value.dims > self.dims || call.is_true(3)) return call.refuse("a mask with several values");
  auto& sizes = call.shapes.emplace_back(call.sizes_of(mask));
  auto& strides = call.shapes.emplace_back(mask.strides, mask.strides + mask.dims);
  sizes.resize(size_t(self.dims), 1), strides.resize(size_t(self.dims), 0);
  mask.dims = self.dims, mask.sizes = sizes.data(), mask.strides = strides.data();
  Pointwise p{"y!=0?z:x", {self, mask, value}};
  p.integers = true;
  return pointwise(call, call.target(), p);
}

inline bool write_places(Call& call) {  // index_put(self, indices, values, accumulate)
  const bringup_argument& indices = call.argument(1);
  if (indices.kind == BRINGUP_TENSORS && indices.count == 1 && call.element(1, 0).dtype == BRINGUP_BOOL) return fill_masked(call);
  Tensor self = call.tensor(0), values = call.tensor(2), out = call.result(call.target());
  Places p;
  if (!type_of(self.dtype) || values.dtype != self.dtype) return call.refuse("dtype");
  if (call.is_true(3) && self.dtype == BRINGUP_BOOL) return call.refuse(kBoolSums);
  if (!places_of(call, self, 1, &p)) return false;
  if (out.index != self.index && !pointwise(call, out, copy_of(self))) return false;
  std::vector<int64_t> shape = call.sizes_of(p.at[0]);
  for (int d = call.argument(1).count; d < self.dims; ++d) shape.push_back(self.sizes[d]);
  if (call.sizes_of(values) == shape) {
    values = call.dense(values);
  } else {
    Tensor spread = call.scratch(values.dtype, shape);
    if (!pointwise(call, spread, copy_of(values))) return false;
    values = spread;
  }
  call.each(kIndices, index_types(self, p.at[0]), "write_places", p.inner)
      .buffer(out)
      .buffer(values)
      .buffer(p.at[0])
      .buffer(p.at[1])
      .buffer(p.at[2])
      .fault()
      .counts(call.argument(1).count, p.n[0], p.n[1], p.n[2], p.inner, p.count)
      .value(int32_t(call.is_true(3)));
  return true;
}

// ---- losses of classes

struct Classes {
  long n = 1, inner = 1, rows = 1;
};

inline Classes classes_of(const Tensor& in) {  // (n), (batch, n) or (batch, n, ...)
  int along = in.dims == 1 ? 0 : 1;
  Classes c;
  for (int d = 0; d < in.dims; ++d)
    if (d == along)
      c.n = in.sizes[d];
    else
      c.rows *= in.sizes[d], c.inner *= d > along ? in.sizes[d] : 1;
  return c;
}

inline bool nll(Call& call) {  // (input, target, weight, reduction, ignore_index)
  if (!is_index(call.tensor(1)) || !is_floating(call.tensor(0).dtype)) return call.refuse("dtype");
  Tensor in = call.dense(call.tensor(0)), at = call.dense(call.tensor(1)), weight = in;
  bool weighted = !call.none(2);
  if (weighted) weight = call.dense(call.tensor(2), in.dtype);
  Classes c = classes_of(in);
  Tensor out = call.result(call.target(0)), total = call.result(call.target(1));
  if (call.argument(3).integer == 0 && in.dims > 1) {
    if (!fill_with(call, total, 0)) return false;
    call.each(kNll, index_types(in, at), "nll_each", c.rows)
        .buffer(out)
        .buffer(in)
        .buffer(at)
        .buffer(weight)
        .fault()
        .counts(c.n, c.inner, call.argument(4).integer)
        .value(int32_t(weighted));
    return true;
  }
  call.step(kNll, index_types(in, at), "nll", 1)
      .buffer(out)
      .buffer(total)
      .buffer(in)
      .buffer(at)
      .buffer(weight)
      .fault()
      .counts(c.rows, c.n, c.inner)
      .value(int32_t(call.argument(3).integer == 1))
      .counts(call.argument(4).integer)
      .value(int32_t(weighted));
  return true;
}

inline bool nll_backward(Call& call) {  // (grad, input, target, weight, reduction, ignore_index, total_weight)
  Tensor in = call.tensor(1);
  if (!is_index(call.tensor(2)) || !is_floating(in.dtype)) return call.refuse("dtype");
  Tensor grad = call.dense(call.tensor(0)), at = call.dense(call.tensor(2)), total = call.dense(call.tensor(6), in.dtype);
  Tensor out = call.result(call.target()), weight = grad;
  bool weighted = !call.none(3);
  if (weighted) weight = call.dense(call.tensor(3), in.dtype);
  Classes c = classes_of(in);
  call.each(kNll, index_types(in, at), "nll_backward", out.numel())
      .buffer(out)
      .buffer(grad)
      .buffer(at)
      .buffer(weight)
      .buffer(total)
      .counts(c.n, c.inner, call.argument(5).integer)
      .value(int32_t(weighted))
      .value(int32_t(call.argument(4).integer));
  return true;
}

}  // namespace kit
