// Reductions over any dimensions, positions of extremes, running sums, and softmax.
#pragma once
#include "kit_pointwise.h"

namespace kit {

// G over the combination (BOTH of x and y) of F of all x, in the type V. `scale` is a number of the call.
inline const Source kReduce = {"reduce", R"(
#define C(number) ((V)(number))
DEVICE V both(V x, V y, V scale) { return BOTH; }
DEVICE V of_one(V x, V scale) { return F; }
DEVICE V of_all(V x, V scale) { return G; }
// Over the dimensions of m whose stride m.o is -1, a group per result.
KERNEL reduce(ARG(TO, o), ARG(T, a), Map m, long inner, V scale) {
  LOCAL V red[LANES];
  USE(TO, o); USE(T, a);
  long r = GROUP, base = 0;
  for (int d = (int)m.dims - 1; d >= 0; --d)
    if (m.o[d] >= 0) { base += r % m.size[d] * m.a[d]; r /= m.size[d]; }
  V total = INIT;
  for (long j = LANE; j < inner; j += LANES) {
    long at = base, q = j;
    for (int d = (int)m.dims - 1; d >= 0; --d)
      if (m.o[d] < 0) { at += q % m.size[d] * m.a[d]; q /= m.size[d]; }
    total = both(total, of_one((V)LOAD(T, a, at), scale), scale);
  }
#define BOTH_SCALED(x, y) both(x, y, scale)
  COMBINE(total, BOTH_SCALED);
  if (LANE == 0) STORE(TO, o, GROUP, of_all(total, scale));
}

// Over elements that are `step` apart, a thread per result: neighbours read neighbours. GROUP_Y is the number of a part of them.
KERNEL reduce_columns(ARG(TO, o), ARG(T, a), Map m, long inner, long step, long results, long part, V scale) {
  USE(TO, o); USE(T, a);
  long result = GROUP * LANES + LANE, r = result, base = 0, j = GROUP_Y * part, last = j + part < inner ? j + part : inner;
  if (result >= results) return;
  for (int d = (int)m.dims - 1; d >= 0; --d)
    if (m.o[d] >= 0) { base += r % m.size[d] * m.a[d]; r /= m.size[d]; }
  V total = INIT;
  for (; j < last; ++j) total = both(total, of_one((V)LOAD(T, a, base + j * step), scale), scale);
  STORE(TO, o, GROUP_Y * results + result, of_all(total, scale));
}
)"};

// Rows are (outer, n, inner): the elements of a row are `inner` apart.
inline const Source kRows = {"rows", R"(
typedef WIDE(T) V;
#define ROW (GROUP / inner * n * inner + GROUP % inner)
// Mean and variance of rows; `less` is subtracted from the number of elements.
KERNEL variance(ARG(TO, o), ARG(TO, mean), ARG(T, a), long n, long inner, V less, int root, int with_mean) {
  LOCAL V red[LANES];
  USE(TO, o); USE(TO, mean); USE(T, a);
  V sum = 0, squares = 0;
  for (long i = LANE; i < n; i += LANES) sum += LOAD(T, a, ROW + i * inner);
  SUM(sum);
  V centre = sum / n;
  for (long i = LANE; i < n; i += LANES) { V x = LOAD(T, a, ROW + i * inner) - centre; squares += x * x; }
  SUM(squares);
  squares = n > less ? squares / (n - less) : squares / (V)0;
  if (LANE == 0) {
    STORE(TO, o, GROUP, root ? sqrt(squares) : squares);
    if (with_mean) STORE(TO, mean, GROUP, centre);
  }
}

KERNEL softmax(ARG(TO, o), ARG(T, a), long n, long inner, int logs) {
  LOCAL V red[LANES];
  USE(TO, o); USE(T, a);
  V top = -INFINITY, sum = 0;
  for (long i = LANE; i < n; i += LANES) { V x = LOAD(T, a, ROW + i * inner); top = LARGER(top, x); }
  MAXIMUM(top);
  for (long i = LANE; i < n; i += LANES) sum += exp(LOAD(T, a, ROW + i * inner) - top);
  SUM(sum);
  for (long i = LANE; i < n; i += LANES) {
    V x = LOAD(T, a, ROW + i * inner) - top;
    STORE(TO, o, ROW + i * inner, logs ? x - log(sum) : exp(x) / sum);
  }
}

KERNEL softmax_backward(ARG(TO, o), ARG(T, g), ARG(T, a), long n, long inner, int logs) {
  LOCAL V red[LANES];
  USE(TO, o); USE(T, g); USE(T, a);
  V sum = 0;
  for (long i = LANE; i < n; i += LANES) sum += LOAD(T, g, ROW + i * inner) * (logs ? 1 : LOAD(T, a, ROW + i * inner));
  SUM(sum);
  for (long i = LANE; i < n; i += LANES) {
    V y = LOAD(T, a, ROW + i * inner), d = LOAD(T, g, ROW + i * inner);
    STORE(TO, o, ROW + i * inner, logs ? d - exp(y) * sum : y * (d - sum));
  }
}
)"};

// Rows of any ordered dtype.
inline const Source kOrder = {"order", R"(
typedef WIDE(T) V;
#define ROW (GROUP / inner * n * inner + GROUP % inner)
DEVICE int before(V x, long i, V y, long j, int most) {  // not a number comes first, then the extreme, then the place
  if (j < 0) return 1;
  if (i < 0) return 0;
  if (x != x || y != y) return y == y || (x != x && i < j);
  return x == y ? i < j : most ? x > y : x < y;
}
// The extreme of each row, and its first position.
KERNEL extreme(ARG(T, o), ARG(long, at), ARG(T, a), long n, long inner, int most, int values, int places) {
  LOCAL V red[LANES];
  LOCAL long where[LANES];
  USE(T, o); USE(long, at); USE(T, a);
  V best = 0;
  long place = -1;
  for (long i = LANE; i < n; i += LANES) {
    V x = LOAD(T, a, ROW + i * inner);
    if (before(x, i, best, place, most)) { best = x; place = i; }
  }
  red[LANE] = best;
  where[LANE] = place;
  BARRIER;
  for (int w = LANES / 2; w > 0; w /= 2) {
    if (LANE < w && before(red[LANE + w], where[LANE + w], red[LANE], where[LANE], most)) {
      red[LANE] = red[LANE + w];
      where[LANE] = where[LANE + w];
    }
    BARRIER;
  }
  if (LANE == 0 && values) STORE(T, o, GROUP, red[0]);
  if (LANE == 0 && places) at[GROUP] = where[0];
}

// Running sums, a thread per row.
KERNEL running(long rows, ARG(TO, o), ARG(T, a), long n, long inner) {
  USE(TO, o); USE(T, a);
  long row = GROUP * LANES + LANE;
  if (row >= rows) return;
  long start = row / inner * n * inner + row % inner;
  WIDE(TO) sum = 0;
  for (long i = 0; i < n; ++i) {
    sum += LOAD(T, a, start + i * inner);
    STORE(TO, o, start + i * inner, sum);
  }
}
)"};

struct Reduction {
  const char *init, *f, *both, *g = "x";
  bool integers = false;
};

inline int dim_of(int64_t dim, int dims) { return dims == 0 ? 0 : int((dim + dims) % dims); }

// The same map with neighbouring dimensions as one, where their strides allow it.
inline Map collapsed(const Map& map) {
  Map whole = {};
  for (int d = 0; d < map.dims; ++d) {
    if (map.size[d] == 1) continue;
    int64_t last = whole.dims - 1;
    if (last >= 0 && (whole.o[last] < 0) == (map.o[d] < 0) && whole.a[last] == map.a[d] * map.size[d])
      whole.size[last] *= map.size[d], whole.a[last] = map.a[d];
    else
      whole.size[whole.dims] = map.size[d], whole.a[whole.dims] = map.a[d], whole.o[whole.dims++] = map.o[d];
  }
  return whole;
}

// The stride of the one reduced dimension if a thread per result is faster than a group: neighbouring results are neighbours in
// memory, or there are few elements for each. Else -1.
inline long column_step(const Map& map, long inner) {
  long step = inner == 1 ? 0 : -1, dense = 0;
  for (int d = 0; d < map.dims; ++d) {
    if (map.o[d] < 0 && step >= 0) return -1;
    if (map.o[d] < 0) step = long(map.a[d]);
    if (map.o[d] >= 0 && map.a[d] == 1) dense = long(map.size[d]);
  }
  constexpr long kFew = 16;  // chosen: fewer elements, or neighbours, leave a group of 256 threads without work
  return inner > 0 && (dense >= kFew || inner < kFew) ? step : -1;
}

// Over the dimensions of `map` whose stride map.o is -1: `inner` elements for each result.
inline bool reduce_map(Call& call, const Tensor& to, const Tensor& in, const Reduction& r, const Map& map, long inner,
                       Number scale = {}) {
  if (!type_of(in.dtype) || !type_of(to.dtype) || in.on_host()) return call.refuse("dtype");
  if (!r.integers && !is_floating(to.dtype)) return call.refuse("integers");
  Tensor out = call.result(to);
  int wide = is_floating(in.dtype) || !is_floating(out.dtype) ? wide_of(in.dtype) : wide_of(out.dtype);
  if (is_floating(in.dtype) && out.dtype == BRINGUP_FLOAT64) wide = BRINGUP_FLOAT64;
  const std::string g = out.dtype == BRINGUP_BOOL ? "(" + std::string(r.g) + ")!=0" : r.g;
  const Map whole = collapsed(map);
  const long step_between = column_step(whole, inner), results = out.numel();
  auto macros = [&](const Tensor& result, const Tensor& source, const char* f, const std::string& last) {
    return types({{"TO", result.dtype}, {"T", source.dtype}, {"V", wide}}) + define("INIT", r.init) + define("F", f) +
           define("BOTH", r.both) + define("G", last);
  };
  auto scaled = [&](Step& step) {
    scale.index >= 0 ? step.scalar(letter_of(wide), scale.index) : step.number(letter_of(wide), scale.constant);
  };
  if (step_between < 0) {
    Step& step = call.step(kReduce, macros(out, in, r.f, g), "reduce", results).buffer(out).buffer(in).value(whole).counts(inner);
    return scaled(step), true;
  }
  auto columns = [&](const Tensor& result, const Tensor& source, const std::string& with, const Map& over, long n, long step,
                     long part) {
    Step& launch = call.step(kReduce, with, "reduce_columns", (results + 255) / 256, (n + part - 1) / part);
    launch.buffer(result).buffer(source).value(over).counts(n, step, results, part);
    scaled(launch);
  };
  const long part = std::max(32L, long(std::ceil(std::sqrt(double(inner)))));  // both passes add as many, so rounding stays small
  if (inner <= part) return columns(out, in, macros(out, in, r.f, g), whole, inner, step_between, inner), true;
  const long parts = (inner + part - 1) / part;
  Tensor partial = call.scratch(wide, {parts, results});
  Map second = {};
  second.dims = 2, second.size[0] = parts, second.size[1] = results, second.a[0] = results, second.a[1] = 1, second.o[0] = -1;
  columns(partial, in, macros(partial, in, r.f, "x"), whole, inner, step_between, part);
  columns(out, partial, macros(out, partial, "x", g), second, parts, results, parts);
  return true;
}

// Over the dimensions that argument `over` lists; over all with -1, or with an empty list. `number` gives `scale`, from the
// elements of a row.
inline bool reduce(Call& call, const Tensor& to, const Tensor& in, const Reduction& r, int over,
                   const std::function<Number(long)>& number = {}) {
  if (in.dims > 6) return call.refuse("more than 6 dimensions");
  Map map = {};
  map.dims = in.dims;
  long inner = 1;
  bool one = over >= 0 && call.argument(over).kind == BRINGUP_INT;
  bool listed = over >= 0 && call.argument(over).kind == BRINGUP_INTS && call.argument(over).count > 0;
  for (int d = 0; d < in.dims; ++d) {
    map.size[d] = in.sizes[d], map.a[d] = in.strides[d];
    bool reduced = one ? dim_of(call.argument(over).integer, in.dims) == d : !listed;
    for (int i = 0; listed && i < call.argument(over).count; ++i)
      reduced |= dim_of(call.argument(over).integers[i], in.dims) == d;
    if (reduced) map.o[d] = -1, inner *= in.sizes[d];
  }
  return reduce_map(call, to, in, r, map, inner, number ? number(inner) : Number{});
}

inline const Reduction kSum = {"0", "x", "x+y", "x", true}, kMean = {"0", "x", "x+y", "x/scale"};

inline Make reduction(const Reduction& r, int over = 1) {
  return [=](Call& call) {
    return reduce(call, call.target(), call.tensor(0), r, over, [](long count) { return Number{-1, double(count)}; });
  };
}

inline Make extreme_value(bool most, int over = 1) {  // amax, amin, max, min
  return [=](Call& call) {
    bool floats = is_floating(call.tensor(0).dtype);
    const char* least = floats ? (most ? "-INFINITY" : "INFINITY") : most ? "(-9223372036854775807L-1)" : "9223372036854775807L";
    return reduce(call, call.target(), call.tensor(0),
                  {least, "x", most ? "x!=x?x:y!=y?y:x>y?x:y" : "x!=x?x:y!=y?y:x<y?x:y", "x", true}, over);
  };
}

// linalg_vector_norm(self, ord, dim, keepdim, dtype): the order comes with the launch, so all are one kernel.
inline bool norm(Call& call, const Tensor& out, const Tensor& in, Number order, int over) {
  if (!is_floating(in.dtype)) return call.refuse("dtype");
  const char* f = "scale==2?x*x:scale==0?(x!=0?C(1):C(0)):isinf(scale)||scale==1?fabs(x):pow(fabs(x),scale)";
  const char* g = "scale==2?sqrt(x):scale==0||scale==1||isinf(scale)?x:pow(x,1/scale)";
  return reduce(call, out, in,
                {"scale==-INFINITY?C(INFINITY):C(0)", f, "isinf(scale)?(scale>0?LARGER(x,y):-LARGER(-x,-y)):x+y", g}, over,
                [=](long) { return order; });
}

// A view of a dense tensor as rows along a dimension.
struct Rows {
  long outer = 1, n = 1, inner = 1;
  Rows(const Tensor& tensor, int64_t dim) {
    int along = dim_of(dim, tensor.dims);
    for (int d = 0; d < tensor.dims; ++d) (d < along ? outer : d > along ? inner : n) *= tensor.sizes[d];
  }
  long count() const { return outer * inner; }
};

inline Make softmax(int logs) {  // (self, dim, half_to_float)
  return [=](Call& call) {
    Tensor in = call.tensor(0), out = call.result(call.target());
    if (!is_floating(in.dtype) || in.on_host()) return call.refuse("dtype");
    Rows rows(in, call.argument(1).integer);
    in = call.dense(in);
    call.step(kRows, types({{"TO", out.dtype}, {"T", in.dtype}}), "softmax", rows.count())
        .buffer(out)
        .buffer(in)
        .counts(rows.n, rows.inner)
        .value(int32_t(logs));
    return true;
  };
}

inline Make softmax_backward(int logs) {  // (grad, output, dim, input_dtype)
  return [=](Call& call) {
    Tensor result = call.tensor(1), out = call.result(call.target());
    Rows rows(result, call.argument(2).integer);
    Tensor grad = call.dense(call.tensor(0), result.dtype);
    result = call.dense(result);
    call.step(kRows, types({{"TO", out.dtype}, {"T", result.dtype}}), "softmax_backward", rows.count())
        .buffer(out)
        .buffer(grad)
        .buffer(result)
        .counts(rows.n, rows.inner)
        .value(int32_t(logs));
    return true;
  };
}

// A view of a tensor whose dimensions `over` (an argument that lists some) come last, in their order.
inline Tensor reduced_last(Call& call, const Tensor& in, int over, long* n) {
  auto &sizes = call.shapes.emplace_back(), &strides = call.shapes.emplace_back();
  const bringup_argument& list = call.argument(over);
  for (bool reduced : {false, true})
    for (int d = 0; d < in.dims; ++d) {
      bool is = list.count == 0;
      for (int i = 0; i < list.count; ++i) is |= dim_of(list.integers[i], in.dims) == d;
      if (is != reduced) continue;
      sizes.push_back(in.sizes[d]), strides.push_back(in.strides[d]);
      if (reduced) *n *= in.sizes[d];
    }
  Tensor view = in;
  view.sizes = sizes.data(), view.strides = strides.data();
  return view;
}

// var, std, var_mean (self, dim, correction, keepdim): the correction comes with the launch if it is given.
inline Make variance(bool root, bool with_mean) {
  return [=](Call& call) {
    Tensor in = call.tensor(0), out = call.result(call.target(0)), mean = with_mean ? call.result(call.target(1)) : out;
    long n = 1;
    if (!is_floating(in.dtype) || in.on_host()) return call.refuse("dtype");
    Tensor rows = call.dense(reduced_last(call, in, 1, &n));
    Step& step = call.step(kRows, types({{"TO", out.dtype}, {"T", in.dtype}}), "variance", out.numel());
    step.buffer(out).buffer(mean).buffer(rows).counts(n, 1);
    call.none(2) ? step.number(letter_of(in.dtype), 1) : step.scalar(letter_of(in.dtype), 2);
    step.value(int32_t(root)).value(int32_t(with_mean));
    return true;
  };
}

// max.dim, min.dim, argmax, argmin: (self, dim, keepdim)
inline Make extreme(bool most, bool values) {
  return [=](Call& call) {
    Tensor in = call.tensor(0), at = call.result(call.target(values ? 1 : 0)), out = values ? call.result(call.target(0)) : at;
    if (!type_of(in.dtype) || in.on_host()) return call.refuse("dtype");
    bool all = call.none(1);
    Rows rows(in, all ? 0 : call.argument(1).integer);
    if (all) rows.outer = rows.inner = 1, rows.n = in.numel();
    in = call.dense(in);
    call.step(kOrder, types({{"T", in.dtype}, {"TO", in.dtype}}), "extreme", rows.count())
        .buffer(out)
        .buffer(at)
        .buffer(in)
        .counts(rows.n, rows.inner)
        .value(int32_t(most))
        .value(int32_t(values))
        .value(int32_t(1));
    return true;
  };
}

inline bool running_sum(Call& call) {  // cumsum(self, dim, dtype)
  Tensor in = call.tensor(0), out = call.result(call.target());
  if (!type_of(in.dtype) || !type_of(out.dtype) || in.on_host()) return call.refuse("dtype");
  Rows rows(in, call.argument(1).integer);
  in = call.dense(in, out.dtype);
  call.each(kOrder, types({{"T", in.dtype}, {"TO", out.dtype}}), "running", rows.count())
      .buffer(out)
      .buffer(in)
      .counts(rows.n, rows.inner);
  return true;
}

inline bool list_norms(Call& call) {  // _foreach_norm.Scalar(self, ord, dtype)
  for (int i = 0; i < call.argument(0).count; ++i)
    if (!norm(call, call.output(i), call.element(0, i), {1}, -1)) return false;
  return true;
}

// A loss of each element by a formula, with the reduction of an argument (0: none, 1: mean, 2: sum).
inline Make loss(const char* f, int reduction, int s = -1) {
  return [=](Call& call) {
    Tensor out = call.target(), first = call.tensor(0);
    Pointwise p{f};
    for (int i : {0, 1}) p.in.push_back(call.tensor(i));
    if (s >= 0) p.s.constant = call.argument(s).number;
    int64_t how = call.argument(reduction).integer;
    if (how == 0) return pointwise(call, out, p);
    for (const Tensor& in : p.in)
      if (call.sizes_of(in) != call.sizes_of(first)) return call.refuse("broadcast");
    Tensor values = call.scratch(wide_of(out.dtype), call.sizes_of(first));
    return pointwise(call, values, p) &&
           reduce(call, out, values, how == 1 ? kMean : kSum, -1, [](long count) { return Number{-1, double(count)}; });
  };
}

// Its gradient: F over (grad, input, target), divided by the number of elements for a mean. t is that factor.
inline Make loss_backward(const char* f, int reduction, int s = -1) {
  return [=](Call& call) {
    Pointwise p{f, {call.tensor(0), call.tensor(1), call.tensor(2)}};
    if (s >= 0) p.s.constant = call.argument(s).number;
    p.t.constant = call.argument(reduction).integer == 1 ? 1 / double(call.tensor(1).numel()) : 1;
    return pointwise(call, call.target(), p);
  };
}

inline Make unweighted(int weight, Make make) {
  return [=](Call& call) { return call.none(weight) ? make(call) : call.refuse("weights"); };
}

}  // namespace kit
