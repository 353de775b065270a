// Pointwise operators: one kernel, compiled for each formula and dtypes, with broadcasting and strides. Copies, casts and
// concatenations are pointwise too.
#pragma once
#include "kit.h"

namespace kit {

// o = F over x, y, z of other shapes and dtypes, which are converted to TS. s and t are numbers of the call; q is the value of a
// tensor on the host. C() is a constant of type TS.
inline const Source kPoint = {"point", R"(
#define C(number) ((TS)(number))
#if FLOATS
DEVICE TS fold(TS x, TS y) {  // as torch.remainder
  TS rest = fmod(x, y);
  return rest != 0 && (y < 0) != (rest < 0) ? rest + y : rest;
}
DEVICE TS floor_divide(TS x, TS y) {  // as torch.floor_divide, which divides what is left without the remainder
  if (y == 0) return x / y;
  TS rest = fmod(x, y), quotient = (x - rest) / y;
  if (rest != 0 && (y < 0) != (rest < 0)) quotient -= 1;
  if (quotient == 0) return copysign((TS)0, x / y);
  TS whole = floor(quotient);
  return quotient - whole > C(0.5) ? whole + 1 : whole;
}
DEVICE TS sigmoid(TS x) { return 1 / (1 + exp(-x)); }
DEVICE TS softplus(TS x) { return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x)); }
#endif
KERNEL point(ARG(TO, o), ARG(TA, a), ARG(TB, b), ARG(TC, c), Map m, long n, TS s, TS t, TS q, int on_host) {
  USE(TO, o); USE(TA, a); USE(TB, b); USE(TC, c);
  long i = GROUP * LANES + LANE;
  if (i >= n) return;
  long oi = i, ai = i, bi = i, ci = i;
  if (m.dims >= 0) {
    oi = ai = bi = ci = 0;
    long r = i;
    for (int d = (int)m.dims - 1; d >= 0; --d) {
      long rest = d > 0 ? r / m.size[d] : 0, k = r - rest * m.size[d];
      r = rest;
      oi += k * m.o[d]; ai += k * m.a[d]; bi += k * m.b[d]; ci += k * m.c[d];
    }
  }
  TS x = NIN > 0 ? (on_host & 1 ? q : (TS)LOAD(TA, a, ai)) : (TS)0;
  TS y = NIN > 1 ? (on_host & 2 ? q : (TS)LOAD(TB, b, bi)) : (TS)0;
  TS z = NIN > 2 ? (on_host & 4 ? q : (TS)LOAD(TC, c, ci)) : (TS)0;
  STORE(TO, o, oi, F);
}

// o[i] = start + i * step
KERNEL ramp(ARG(TO, o), ARG(TA, a), ARG(TB, b), ARG(TC, c), Map m, long n, TS s, TS t, TS q, int on_host) {
  USE(TO, o);
  long i = GROUP * LANES + LANE;
  if (i < n) STORE(TO, o, i * m.o[0], s + (TS)i * t);
}

// The elements of a matrix above (s = -1) or below (s = 1) a diagonal become zero.
KERNEL triangle(ARG(TO, o), ARG(TA, a), ARG(TB, b), ARG(TC, c), Map m, long n, TS s, TS t, TS q, int on_host) {
  USE(TO, o); USE(TA, a);
  long i = GROUP * LANES + LANE;
  if (i >= n) return;
  long r = i, oi = 0, ai = 0, row = 0, column = 0;
  for (int d = (int)m.dims - 1; d >= 0; --d) {
    long k = r % m.size[d];
    r /= m.size[d];
    if (d == m.dims - 1) column = k;
    if (d == m.dims - 2) row = k;
    oi += k * m.o[d]; ai += k * m.a[d];
  }
  TS x = (TS)LOAD(TA, a, ai);
  int inside = on_host ? column - row >= (long)t : column - row <= (long)t;
  STORE(TO, o, oi, inside ? x : (TS)0);
}
)"};

// A number of the kernel `point`: its index in the values of a launch, or a constant.
struct Number {
  int index = -1;
  double constant = 0;
};

struct Pointwise {
  const char* f;  // in x, y, z, s, t
  std::vector<Tensor> in{};
  Number s{}, t{};
  bool integers = false;   // also right for integers and bool
  bool fractions = false;  // numbers may have fractions beside tensors of integers, as in comparisons
  bool precise = false;    // computed in double
  Number q{};              // in place of a tensor on the host
  const char* kernel = "point";
  bool flagged = false;  // `on_host` is a flag of the kernel
};

// True if memory that is written is read at another place: the order of threads would matter.
inline bool overlaps(const Tensor& out, const Tensor& in) {
  if (out.index == in.index || out.storage != in.storage || in.on_host()) return false;
  bool same = out.dims == in.dims && out.item() == in.item();
  for (int d = 0; same && d < out.dims; ++d) same = out.sizes[d] == in.sizes[d] && out.strides[d] == in.strides[d];
  return !same;
}

// Joins dimensions that all tensors go through as through one, since a division per dimension is what a strided element costs.
inline void join_dimensions(Map& map) {
  int64_t joined = 0;
  for (int64_t d = 0; d < map.dims; ++d) {
    if (map.size[d] == 1) continue;
    bool joins = joined > 0;
    for (int64_t* strides : {map.o, map.a, map.b, map.c}) joins = joins && strides[joined - 1] == strides[d] * map.size[d];
    int64_t to = joins ? joined - 1 : joined;
    map.size[to] = joins ? map.size[to] * map.size[d] : map.size[d];
    for (int64_t* strides : {map.o, map.a, map.b, map.c}) strides[to] = strides[d];
    joined = to + 1;
  }
  map.dims = joined;
}

inline bool pointwise(Call& call, const Tensor& out, const Pointwise& p) {
  if (out.dims > 6) return call.refuse("more than 6 dimensions");
  if (!type_of(out.dtype)) return call.refuse("dtype");
  Step step;
  const char* types[3] = {"float", "float", "float"};
  Map map = {};
  map.dims = out.dims;
  bool flat = out.contiguous(), floats = is_floating(out.dtype), wide = out.dtype == BRINGUP_FLOAT64;
  int on_host = 0, host_argument = -1;
  for (size_t i = 0; i < p.in.size(); ++i) {
    const Tensor& in = p.in[i];
    if (!type_of(in.dtype)) return call.refuse("dtype");
    if (overlaps(out, in)) return call.refuse("tensors share memory");
    floats |= is_floating(in.dtype);
    if (in.on_host()) {
      if (host_argument >= 0) return call.refuse("two numbers on the host");
      on_host |= 1 << i;
      for (int a = 0; a < call.c->argument_count; ++a)
        if (call.argument(a).kind == BRINGUP_TENSOR && call.argument(a).first == in.index) host_argument = a;
      continue;
    }
    types[i] = type_of(in.dtype);
    wide |= in.dtype == BRINGUP_FLOAT64;
    flat = flat && in.contiguous() && in.numel() == out.numel();
    int64_t* strides = i == 0 ? map.a : i == 1 ? map.b : map.c;
    for (int d = 0; d < out.dims; ++d) {
      int from = in.dims - out.dims + d;
      strides[d] = from < 0 || (in.sizes[from] == 1 && out.sizes[d] != 1) ? 0 : in.strides[from];
    }
  }
  if (!floats && !p.integers) return call.refuse("integers");
  if (p.precise || (!floats && p.fractions)) wide = true;
  floats |= wide;
  for (int d = 0; d < out.dims; ++d) map.size[d] = out.sizes[d], map.o[d] = out.strides[d];
  if (std::strcmp(p.kernel, "point") == 0) flat ? void(map.dims = -1) : join_dimensions(map);
  const char letter = !floats ? 'l' : wide ? 'd' : 'f';
  std::string f = p.f;
  if (out.dtype == BRINGUP_BOOL) f = "((" + f + ")!=0)";
  std::string macros = define("TO", type_of(out.dtype)) + define("TA", types[0]) + define("TB", types[1]) +
                       define("TC", types[2]) +
                       define("TS", letter == 'l'   ? "long"
                                    : letter == 'd' ? "double"
                                                    : "float") +
                       define("FLOATS", floats ? "1" : "0") + define("NIN", std::to_string(p.in.size())) + define("F", f);
  step.kernel = call.why ? nullptr : compile(call.device, kPoint, macros, p.kernel);
  if (!step.kernel) return call.refuse("its kernel does not compile");
  step.buffer(out);
  for (size_t i = 0; i < 3; ++i) i < p.in.size() && !p.in[i].on_host() ? step.buffer(p.in[i]) : step.buffer(out);
  step.value(map).counts(out.numel());
  for (const Number& n : {p.s, p.t, host_argument >= 0 ? Number{host_argument} : p.q})
    n.index >= 0 ? step.scalar(letter, n.index) : step.number(letter, n.constant);
  step.value(int32_t(p.flagged ? 1 : on_host));
  step.grid.groups[0] = (out.numel() + 255) / 256;
  call.plan.steps.push_back(step);
  return true;
}

inline Pointwise copy_of(const Tensor& tensor) {
  Pointwise p{"x", {tensor}};
  p.integers = true;
  return p;
}

inline bool fill_with(Call& call, const Tensor& out, double number) {
  Pointwise p{"s"};
  p.s.constant = number, p.integers = true;
  return pointwise(call, out, p);
}

inline Tensor Call::dense(const Tensor& tensor, int dtype) {
  if (tensor.plain(dtype)) return tensor;
  Tensor copy = scratch(dtype, sizes_of(tensor));
  pointwise(*this, copy, copy_of(tensor));
  return copy;
}

inline Tensor Call::updated(const Tensor& tensor, int dtype) {
  Tensor to = result(tensor, dtype);
  if (to.index != tensor.index) pointwise(*this, to, copy_of(tensor));
  return to;
}

inline bool Call::finish() {
  for (auto& [to, from] : unfinished)
    if (!pointwise(*this, to, copy_of(from))) return false;
  return true;
}

// ---- plans

using Make = std::function<bool(Call&)>;

enum : bool { kFloats = false, kIntegers = true };

// The number in an argument: it comes with each launch, or is part of the kind of call.
inline Number number_of(Call& call, int argument) {
  if (argument < 0) return {};
  const bringup_argument& a = call.argument(argument);
  if (a.kind == BRINGUP_DOUBLE) return {-1, a.number};
  if (a.kind == BRINGUP_INT || a.kind == BRINGUP_BOOL_VALUE) return {-1, double(a.integer)};
  return {argument};
}

// F over these arguments, or over the first ones; s, t and q are the arguments of numbers, if there are some.
inline Make formula_of(const char* f, std::vector<int> inputs, bool integers = kFloats, int s = -1, int t = -1, int q = -1) {
  return [=](Call& call) {
    Pointwise p{f};
    for (int i : inputs) p.in.push_back(call.tensor(i));
    p.s = number_of(call, s), p.t = number_of(call, t), p.q = number_of(call, q), p.integers = integers;
    return pointwise(call, call.target(), p);
  };
}
inline Make formula(const char* f, int inputs, bool integers = kFloats, int s = -1, int t = -1, int q = -1) {
  std::vector<int> list;
  for (int i = 0; i < inputs; ++i) list.push_back(i);
  return formula_of(f, list, integers, s, t, q);
}
inline Make unary(const char* f, bool integers = kFloats) { return formula(f, 1, integers); }
inline Make binary(const char* f, bool integers = kFloats, int s = -1) { return formula(f, 2, integers, s); }
inline Make with_number(const char* f, bool integers = kFloats, int s = 1) { return formula(f, 1, integers, s); }

inline Make compare_number(const char* f) {
  return [=](Call& call) {
    Pointwise p{f, {call.tensor(0)}};
    p.s.index = 1, p.integers = true, p.fractions = true;
    return pointwise(call, call.target(), p);
  };
}

// A formula of integers alone; `flags` is that of bool.
inline Make bitwise(const char* f, int inputs, const char* flags = nullptr, int s = -1) {
  return [=](Call& call) {
    if (is_floating(call.target().dtype)) return call.refuse("dtype");
    return formula(flags && call.tensor(0).dtype == BRINGUP_BOOL ? flags : f, inputs, kIntegers, s)(call);
  };
}

// A list operator: x, y and z are elements of its first lists, s is a number for all, or the i-th of a list.
inline Make lists(const char* f, int inputs, int scalar = -1) {
  return [=](Call& call) {
    for (int i = 0; i < call.argument(0).count; ++i) {
      Pointwise p{f};
      for (int list = 0; list < inputs; ++list) p.in.push_back(call.element(list, i));
      bool listed = scalar >= 0 && call.argument(scalar).kind == BRINGUP_SCALARS;
      p.s.index = listed ? call.argument(scalar).first + i : scalar;
      Tensor out = call.c->output_count > 0 ? call.output(i) : call.element(0, i);
      if (out.numel() > 0 && !pointwise(call, out, p)) return false;
    }
    return true;
  };
}
inline Make lists_by_tensor(const char* f) {  // _foreach_mul_.Tensor
  return [=](Call& call) {
    for (int i = 0; i < call.argument(0).count; ++i) {
      Tensor out = call.c->output_count > 0 ? call.output(i) : call.element(0, i);
      if (out.numel() > 0 && !pointwise(call, out, {f, {call.element(0, i), call.tensor(1)}})) return false;
    }
    return true;
  };
}

inline bool list_copy(Call& call) {  // _foreach_copy_(self, src, non_blocking)
  for (int i = 0; i < call.argument(0).count; ++i)
    if (call.element(0, i).numel() > 0 && !pointwise(call, call.element(0, i), copy_of(call.element(1, i)))) return false;
  return true;
}
inline bool list_zero(Call& call) {
  for (int i = 0; i < call.argument(0).count; ++i)
    if (call.element(0, i).numel() > 0 && !fill_with(call, call.element(0, i), 0)) return false;
  return true;
}

inline bool is_string(Call& call, int argument, const char* text) {
  return call.argument(argument).kind == BRINGUP_STRING && std::strcmp(call.argument(argument).string, text) == 0;
}

inline bool clamp(Call& call) {
  bool low = !call.none(1), high = !call.none(2);
  const char* f = low && high ? "x!=x?x:x>t?t:x<s?s>t?t:s:x" : low ? "x<s?s:x" : "x>t?t:x";
  return formula(f, 1, kIntegers, low ? 1 : -1, high ? 2 : -1)(call);
}

inline Make clamp_tensor(const char* both, const char* low, const char* high) {
  return [=](Call& call) {
    Pointwise p{call.none(1) ? high : call.none(2) ? low : both, {call.tensor(0)}};
    for (int i : {1, 2})
      if (!call.none(i)) p.in.push_back(call.tensor(i));
    p.integers = true;
    return pointwise(call, call.target(), p);
  };
}

inline bool gelu(Call& call) {  // Hendrycks and Gimpel 2016
  return formula(is_string(call, 1, "tanh") ? "C(0.5)*x*(1+tanh(C(0.79788456080286536)*(x+C(0.044715)*x*x*x)))"
                                            : "C(0.5)*x*(1+erf(x*C(0.70710678118654752)))",
                 1)(call);
}
inline bool gelu_backward(Call& call) {  // the derivatives of the two formulas above
  const char* exact = "x*(C(0.5)*(1+erf(y*C(0.70710678118654752)))+y*C(0.39894228040143268)*exp(C(-0.5)*y*y))";
  const char* by_tanh =
      "x*C(0.5)*(1+tanh(C(0.79788456080286536)*(y+C(0.044715)*y*y*y))+y*(1-tanh(C(0.79788456080286536)*(y+C(0.044715)*y*y*y))*"
      "tanh(C(0.79788456080286536)*(y+C(0.044715)*y*y*y)))*C(0.79788456080286536)*(1+C(0.134145)*y*y))";
  return formula(is_string(call, 2, "tanh") ? by_tanh : exact, 2)(call);
}

// (self, other, rounding_mode)
inline bool divide_by_mode(Call& call) {
  if (call.none(2)) return binary("x/y")(call);
  if (!is_floating(call.target().dtype)) return call.refuse("integers");  // division by zero is an error
  return binary(is_string(call, 2, "floor") ? "floor_divide(x,y)" : "trunc(x/y)")(call);
}

inline Make for_floats(Make make) {
  return [=](Call& call) { return is_floating(call.target().dtype) ? make(call) : call.refuse("integers"); };
}

inline bool copy(Call& call) { return pointwise(call, call.tensor(0), copy_of(call.tensor(1))); }
inline bool copy_new(Call& call) { return pointwise(call, call.target(), copy_of(call.tensor(0))); }  // _to_copy, clone
inline bool fill(Call& call) { return formula("s", 0, kIntegers, 1)(call); }
inline bool fill_by_tensor(Call& call) { return pointwise(call, call.target(), copy_of(call.tensor(1))); }
inline bool zero(Call& call) { return fill_with(call, call.target(), 0); }

inline bool concatenate(Call& call) {
  Tensor out = call.target();
  const bringup_argument& list = call.argument(0);
  if (out.dims > 6 || out.dims == 0) return call.refuse("form");
  int dim = int((call.argument(1).integer + out.dims) % out.dims);
  long offset = 0;
  for (int i = 0; i < list.count; ++i) {
    Tensor in = call.element(0, i), part = out;
    if (in.numel() == 0) continue;
    part.sizes = in.sizes, part.offset = offset * out.strides[dim];
    if (!pointwise(call, part, copy_of(in))) return false;
    offset += in.sizes[dim];
  }
  return true;
}

// `length` of a tensor's elements along a dimension.
inline Tensor narrow(Call& call, Tensor tensor, int dim, long start, long length) {
  auto& sizes = call.shapes.emplace_back(call.sizes_of(tensor));
  sizes[size_t(dim)] = length;
  tensor.sizes = sizes.data(), tensor.offset += start * tensor.strides[dim];
  return tensor;
}

inline bool roll(Call& call) {  // (self, shifts, dims): two copies for each dimension
  Tensor in = call.tensor(0), out = call.target();
  if (in.on_host() || call.argument(2).count == 0) return call.refuse("over all elements");
  std::vector<std::pair<Tensor, Tensor>> parts = {{out, in}};
  for (int i = 0; i < call.argument(2).count; ++i) {
    int dim = int((call.argument(2).integers[i] + in.dims) % in.dims);
    long n = in.sizes[dim], shift = ((call.argument(1).integers[i] % n) + n) % n;
    std::vector<std::pair<Tensor, Tensor>> halves;
    for (auto& [to, from] : parts) {
      halves.emplace_back(narrow(call, to, dim, shift, n - shift), narrow(call, from, dim, 0, n - shift));
      if (shift > 0) halves.emplace_back(narrow(call, to, dim, 0, shift), narrow(call, from, dim, n - shift, shift));
    }
    parts = halves;
  }
  for (auto& [to, from] : parts)
    if (!pointwise(call, to, copy_of(from))) return false;
  return true;
}

inline bool glu(Call& call) {  // (self, dim): Dauphin et al. 2016
  Tensor in = call.tensor(0), out = call.target();
  int dim = int((call.argument(1).integer + in.dims) % std::max(in.dims, 1));
  if (in.on_host() || in.dims == 0) return call.refuse("form");
  long half = in.sizes[dim] / 2;
  return pointwise(call, out, {"x*sigmoid(y)", {narrow(call, in, dim, 0, half), narrow(call, in, dim, half, half)}});
}

inline bool glu_backward(Call& call) {  // (grad, self, dim)
  Tensor grad = call.tensor(0), in = call.tensor(1), out = call.target();
  int dim = int((call.argument(2).integer + in.dims) % std::max(in.dims, 1));
  if (in.on_host() || in.dims == 0) return call.refuse("form");
  long half = in.sizes[dim] / 2;
  Tensor a = narrow(call, in, dim, 0, half), b = narrow(call, in, dim, half, half);
  return pointwise(call, narrow(call, out, dim, 0, half), {"x*sigmoid(z)", {grad, a, b}}) &&
         pointwise(call, narrow(call, out, dim, half, half), {"x*y*sigmoid(z)*(1-sigmoid(z))", {grad, a, b}});
}

inline bool flip(Call& call) {  // (self, dims)
  Tensor in = call.tensor(0), out = call.target();
  if (in.on_host()) return call.refuse("a number on the host");
  auto& strides = call.shapes.emplace_back(in.strides, in.strides + in.dims);
  Pointwise p = copy_of(in);
  for (int i = 0; i < call.argument(1).count; ++i) {
    int d = int((call.argument(1).integers[i] + in.dims) % std::max(in.dims, 1));
    if (in.dims == 0) break;
    p.in[0].offset += (in.sizes[d] - 1) * in.strides[d];
    strides[size_t(d)] = -in.strides[d];
  }
  p.in[0].strides = strides.data();
  return pointwise(call, out, p);
}

// Numbers from `start` in steps. Arguments that are absent are -1.
inline Make ramp(int start, int step) {
  return [=](Call& call) {
    Tensor out = call.target();
    if (out.dims != 1) return call.refuse("form");
    Pointwise p{"x"};
    p.s.index = start, p.t = {step, 1}, p.integers = true, p.precise = is_floating(out.dtype), p.kernel = "ramp";
    return pointwise(call, out, p);
  };
}

inline Make triangle(bool upper) {  // tril, triu (self, diagonal)
  return [=](Call& call) {
    Tensor out = call.target();
    if (out.dims < 2) return call.refuse("form");
    Pointwise p = copy_of(call.tensor(0));
    p.t.constant = double(call.argument(1).integer), p.kernel = "triangle", p.flagged = upper;
    return pointwise(call, out, p);
  };
}

}  // namespace kit
