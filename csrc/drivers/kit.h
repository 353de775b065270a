// The kit: how a call of an operator becomes launches of the kernels in kit_kernels.h. A driver that includes it provides memory,
// copies, streams and events, and the functions declared here. The entries at the end are then its own, and `run` its `launch`.
#pragma once
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "../driver.h"
#include "kit_kernels.h"

namespace kit {

using Code = void*;  // a compiled kernel
struct Grid {
  long groups[3] = {1, 1, 1};
  int lanes[2] = {256, 1};
};
using Arguments = std::vector<std::vector<char>>;

// c = alpha * a b + beta * c, of float32; a is (batch, m, k), b is (batch, k, n), c is contiguous. Strides are in elements.
struct Product {
  long batch, m, n, k, a[3], b[3];
};
using RunProduct = std::function<int(bringup_stream*, float* c, const float* a, const float* b, float alpha, float beta)>;

// What failed last. The mutex also guards what a driver adds to it.
struct Failures {
  std::mutex mutex;
  std::string error, shown;
  int64_t failed = 0;  // the number of the launch that failed, if it is known

  int fail(const std::string& sentence, int64_t launch = 0) {
    std::lock_guard<std::mutex> lock(mutex);
    error = sentence;
    failed = launch;
    return BRINGUP_FAILED;
  }
};

// ---- what the driver provides

Failures& failures(bringup_device* device);
// The operators that the user limits the device to: "all", "none" or "aten::mm,aten::add.Tensor"; null without a limit.
const char* listed_operators();

// Compiles a kernel of `source` with these options ("-DF=x"); null if it does not compile.
Code compile(bringup_device* device, const char* source, const std::string& options, const char* name);
// Appends a pointer and the offset of an address in it, in elements of `item` bytes.
void append_address(bringup_stream* stream, Arguments& arguments, void* address, size_t item);
int enqueue(bringup_stream* stream, Code kernel, Arguments& arguments, const Grid& grid);
// Eight bytes that kernels write their launch's number to if an index is out of range.
void* fault_word(bringup_device* device);
// A product by the vendor's library; empty if it has none for this case.
RunProduct library_product(bringup_device* device, const Product& product);

// ---- calls

struct Tensor : bringup_tensor {
  int index;  // in the launch's addresses
  size_t item() const {
    return dtype == BRINGUP_INT64 || dtype == BRINGUP_FLOAT64 ? 8 : dtype == BRINGUP_BOOL || dtype == BRINGUP_UINT8 ? 1 : 4;
  }
  long numel() const {
    long n = 1;
    for (int d = 0; d < dims; ++d) n *= sizes[d];
    return n;
  }
  bool contiguous() const {
    long next = 1;
    for (int d = dims - 1; d >= 0; --d) {
      if (sizes[d] != 1 && strides[d] != next) return false;
      next *= sizes[d];
    }
    return true;
  }
  bool on_host() const { return storage < 0 && index >= 0; }
  bool plain() const { return dtype == BRINGUP_FLOAT32 && contiguous() && !on_host(); }
};

struct Map {  // as in kit_kernels.h
  int64_t dims, size[6], o[6], a[6], b[6], c[6];
};

// A value of a kernel's argument: a constant, or found at the launch.
struct Value {
  enum Kind { kBuffer, kScalar, kConstant, kFault, kNumber } kind;
  int index = 0;            // kBuffer: in addresses. kScalar: in values
  size_t item = 0;          // kBuffer: bytes of an element
  long offset = 0;          // kBuffer: in elements
  char type = 'f';          // kScalar: f, d or l
  double factor = 1;        // kScalar
  std::vector<char> bytes;  // kConstant
};

template <class T>
std::vector<char> bytes_of(T value) {
  std::vector<char> bytes(sizeof value);
  std::memcpy(bytes.data(), &value, sizeof value);
  return bytes;
}

inline std::vector<char> number_as(char type, double value) {
  return type == 'f' ? bytes_of(float(value)) : type == 'd' ? bytes_of(value) : bytes_of(int64_t(value));
}

// One launch of a kernel.
struct Step {
  Code kernel = nullptr;
  Grid grid;
  std::vector<Value> values;
  RunProduct product;  // instead of the kernel
  int product_of[3] = {0, 0, 0};
  Value alpha, beta;

  Step& buffer(const Tensor& tensor, long offset = 0) {
    values.push_back({Value::kBuffer, tensor.index, tensor.item(), offset, 'f', 1, {}});
    return *this;
  }
  Step& scalar(char type, int argument, double factor = 1) {
    values.push_back({Value::kScalar, argument, 0, 0, type, factor, {}});
    return *this;
  }
  template <class T>
  Step& value(T constant) {
    values.push_back({Value::kConstant, 0, 0, 0, 'f', 1, bytes_of(constant)});
    return *this;
  }
  Step& number(char type, double constant) {
    values.push_back({Value::kConstant, 0, 0, 0, type, 1, number_as(type, constant)});
    return *this;
  }
  Step& fault() {
    values.push_back({Value::kFault, 0, 8, 0, 'f', 1, {}});
    return *this;
  }
  Step& launch_number() {
    values.push_back({Value::kNumber, 0, 0, 0, 'f', 1, {}});
    return *this;
  }
};

using Plan = std::vector<Step>;

struct Call {
  const bringup_call* c;
  bringup_device* device;
  Plan plan{};
  const char* why = nullptr;

  const bringup_argument& argument(int i) const { return c->arguments[i]; }
  bool none(int i) const { return c->arguments[i].kind == BRINGUP_NONE; }
  bool is_true(int i) const { return c->arguments[i].integer != 0; }
  Tensor at(int tensor) const { return {c->tensors[tensor], tensor}; }
  Tensor tensor(int i) const { return at(c->arguments[i].first); }
  Tensor element(int i, int k) const { return at(c->arguments[i].first + k); }
  Tensor output(int i) const {
    Tensor tensor = {c->outputs[i], c->tensor_count + i};
    tensor.storage = std::numeric_limits<int32_t>::max();  // on the device
    return tensor;
  }
  // The new tensor, or the written one.
  Tensor target() const {
    if (c->output_count > 0) return output(0);
    for (int i = 0; i < c->tensor_count; ++i)
      if (c->tensors[i].written) return at(i);
    return at(0);
  }
  bool refuse(const char* reason) {
    why = reason;
    return false;
  }
  Step& step(const char* name, long groups, long groups_y = 1, long groups_z = 1) {
    Step step;
    step.kernel = compile(device, kRows, "", name);
    if (!step.kernel) why = "its kernel does not compile";
    step.grid.groups[0] = groups, step.grid.groups[1] = groups_y, step.grid.groups[2] = groups_z;
    plan.push_back(step);
    return plan.back();
  }
};

inline bool is_floating(int dtype) { return dtype == BRINGUP_FLOAT32 || dtype == BRINGUP_FLOAT64; }

inline const char* type_of(int dtype) {
  switch (dtype) {
    case BRINGUP_FLOAT32:
      return "float";
    case BRINGUP_FLOAT64:
      return "double";
    case BRINGUP_INT64:
      return "long";
    case BRINGUP_INT32:
      return "int";
    case BRINGUP_BOOL:
    case BRINGUP_UINT8:
      return "uchar";
    default:
      return nullptr;
  }
}

// A number of the kernel `point`: its index in the values of a launch, -1 for 0.
struct Number {
  int index = -1;
};

struct Pointwise {
  const char* f;  // in x, y, z, s, t
  std::vector<Tensor> in{};
  Number s{}, t{};
  bool integers = false;  // also right for integers and bool
  long out_offset = 0;
};

// True if memory that is written is read at another place: the order of threads would matter.
inline bool overlaps(const Tensor& out, const Tensor& in) {
  if (out.index == in.index || out.storage != in.storage || in.on_host()) return false;
  bool same = out.dims == in.dims && out.item() == in.item();
  for (int d = 0; same && d < out.dims; ++d) same = out.sizes[d] == in.sizes[d] && out.strides[d] == in.strides[d];
  return !same;
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
    types[i] = type_of(in.dtype);
    if (in.on_host()) {
      if (host_argument >= 0) return call.refuse("two numbers on the host");
      on_host |= 1 << i;
      for (int a = 0; a < call.c->argument_count; ++a)
        if (call.argument(a).kind == BRINGUP_TENSOR && call.argument(a).first == in.index) host_argument = a;
      types[i] = is_floating(in.dtype) ? (wide ? "double" : "float") : "long";
      floats |= is_floating(in.dtype);
      continue;
    }
    floats |= is_floating(in.dtype);
    wide |= in.dtype == BRINGUP_FLOAT64;
    flat = flat && in.contiguous() && in.numel() == out.numel();
    int64_t* strides = i == 0 ? map.a : i == 1 ? map.b : map.c;
    for (int d = 0; d < out.dims; ++d) {
      int from = in.dims - out.dims + d;
      strides[d] = from < 0 || (in.sizes[from] == 1 && out.sizes[d] != 1) ? 0 : in.strides[from];
    }
  }
  if (!floats && !p.integers) return call.refuse("integers");
  for (int d = 0; d < out.dims; ++d) map.size[d] = out.sizes[d], map.o[d] = out.strides[d];
  if (flat) map.dims = -1;
  const char scalar = !floats ? 'l' : wide ? 'd' : 'f';
  std::string f = p.f;
  if (out.dtype == BRINGUP_BOOL) f = "((" + f + ")!=0)";
  std::string options = std::string("-DTO=") + type_of(out.dtype) + " -DTA=" + types[0] + " -DTB=" + types[1] +
                        " -DTC=" + types[2] + " -DTS=" +
                        (scalar == 'l'   ? "long"
                         : scalar == 'd' ? "double"
                                         : "float") +
                        " -DNIN=" + std::to_string(p.in.size()) + " -DF=" + f;
  step.kernel = compile(call.device, kPoint, options, "point");
  if (!step.kernel) return call.refuse("its kernel does not compile");
  step.buffer(out, p.out_offset);
  for (size_t i = 0; i < 3; ++i) step.buffer(i < p.in.size() && !p.in[i].on_host() ? p.in[i] : out);
  step.value(map).value(int64_t(out.numel()));
  for (const Number& n : {p.s, p.t}) n.index >= 0 ? step.scalar(scalar, n.index) : step.number(scalar, 0);
  host_argument >= 0 ? step.scalar(scalar, host_argument) : step.number(scalar, 0);
  step.value(int32_t(on_host));
  step.grid.groups[0] = (out.numel() + 255) / 256;
  call.plan.push_back(step);
  return true;
}

// ---- products

// out = alpha * a b + beta * out. `alpha` and `beta` are arguments of the call, or -1 for 1 and 0.
inline bool product(Call& call, const Tensor& out, const Tensor& a, const Tensor& b, int alpha = -1, int beta = -1) {
  if (a.dtype != BRINGUP_FLOAT32 || b.dtype != BRINGUP_FLOAT32 || out.dtype != BRINGUP_FLOAT32) return call.refuse("dtype");
  if (!out.contiguous()) return call.refuse("the result is not contiguous");
  int d = a.dims - 2;
  Product p = {d ? a.sizes[0] : 1,
               a.sizes[d],
               b.sizes[d + 1],
               a.sizes[d + 1],
               {d ? a.strides[0] : 0, a.strides[d], a.strides[d + 1]},
               {d ? b.strides[0] : 0, b.strides[d], b.strides[d + 1]}};
  Value one = {Value::kConstant, 0, 0, 0, 'f', 1, bytes_of(1.0f)}, zero = {Value::kConstant, 0, 0, 0, 'f', 1, bytes_of(0.0f)};
  auto number = [](int argument, const Value& otherwise) {
    return argument < 0 ? otherwise : Value{Value::kScalar, argument, 0, 0, 'f', 1, {}};
  };
  Value by = number(alpha, one), plus = number(beta, zero);
  if (RunProduct run = library_product(call.device, p)) {
    Step step;
    step.product = run;
    step.product_of[0] = out.index, step.product_of[1] = a.index, step.product_of[2] = b.index;
    step.alpha = by, step.beta = plus;
    call.plan.push_back(step);
    return true;
  }
  Step& step = call.step("gemm", (p.n + 15) / 16, (p.m + 15) / 16, p.batch);
  step.grid.lanes[0] = step.grid.lanes[1] = 16;
  step.buffer(out).buffer(a).buffer(b).value(int64_t(p.m)).value(int64_t(p.n)).value(int64_t(p.k));
  for (long stride : p.a) step.value(int64_t(stride));
  for (long stride : p.b) step.value(int64_t(stride));
  step.values.push_back(by);
  step.values.push_back(plus);
  return true;
}

inline bool add_product(Call& call) {  // (input, a, b, beta, alpha)
  Tensor out = call.output(0);
  return pointwise(call, out, {"x", {call.tensor(0)}}) && product(call, out, call.tensor(1), call.tensor(2), 4, 3);
}

// ---- rows

inline bool rows_of(Call& call, const Tensor& tensor, long* rows, long* n, int64_t dim = -1) {
  if (!tensor.plain()) return call.refuse("not contiguous float32");
  if (tensor.dims == 0 || (dim < 0 ? dim + tensor.dims : dim) != tensor.dims - 1)
    return call.refuse("not over the last dimension");
  *n = tensor.sizes[tensor.dims - 1];
  *rows = tensor.numel() / *n;
  return true;
}

inline bool softmax(Call& call, int logs) {
  long rows, n;
  Tensor in = call.tensor(0), out = call.output(0);
  if (!rows_of(call, in, &rows, &n, call.argument(1).integer) || !rows_of(call, out, &rows, &n)) return false;
  call.step("softmax", rows).buffer(out).buffer(in).value(int64_t(n)).value(int32_t(logs));
  return true;
}

inline bool softmax_backward(Call& call, int logs) {
  long rows, n;
  Tensor grad = call.tensor(0), result = call.tensor(1), out = call.output(0);
  if (!rows_of(call, grad, &rows, &n, call.argument(2).integer) || !rows_of(call, result, &rows, &n)) return false;
  if (!rows_of(call, out, &rows, &n)) return false;
  call.step("softmax_backward", rows).buffer(out).buffer(grad).buffer(result).value(int64_t(n)).value(int32_t(logs));
  return true;
}

inline bool layer_norm(Call& call) {  // (input, normalized_shape, weight, bias, eps)
  Tensor in = call.tensor(0), out = call.output(0);
  long rows, n;
  if (call.argument(1).count != 1) return call.refuse("over more than one dimension");
  if (!rows_of(call, in, &rows, &n) || !rows_of(call, out, &rows, &n)) return false;
  int with = 0;
  for (int i : {2, 3})
    if (!call.none(i)) {
      if (!call.tensor(i).plain()) return call.refuse("weight or bias is not contiguous float32");
      with |= 1 << (i - 2);
    }
  call.step("layer_norm", rows)
      .buffer(out)
      .buffer(call.output(1))
      .buffer(call.output(2))
      .buffer(in)
      .buffer(with & 1 ? call.tensor(2) : in)
      .buffer(with & 2 ? call.tensor(3) : in)
      .value(int64_t(n))
      .value(float(call.argument(4).number))
      .value(int32_t(with));
  return true;
}

inline bool layer_norm_backward(Call& call) {  // (grad, input, normalized_shape, mean, rstd, weight, bias, output_mask)
  Tensor grad = call.tensor(0), in = call.tensor(1), mean = call.tensor(3), rstd = call.tensor(4);
  long rows, n;
  if (call.argument(2).count != 1) return call.refuse("over more than one dimension");
  if (!rows_of(call, grad, &rows, &n) || !rows_of(call, in, &rows, &n)) return false;
  if (!mean.plain() || !rstd.plain()) return call.refuse("statistics are not contiguous float32");
  int with = call.none(5) ? 0 : 1;
  if (with && !call.tensor(5).plain()) return call.refuse("the weight is not contiguous float32");
  if (call.output(0).dims >= 0) {
    if (!call.output(0).plain()) return call.refuse("the result is not contiguous");
    call.step("layer_norm_input", rows)
        .buffer(call.output(0))
        .buffer(grad)
        .buffer(in)
        .buffer(mean)
        .buffer(rstd)
        .buffer(with ? call.tensor(5) : in)
        .value(int64_t(n))
        .value(int32_t(with));
  }
  for (int i : {1, 2})
    if (call.output(i).dims >= 0)
      call.step("layer_norm_weight", n)
          .buffer(call.output(i))
          .buffer(grad)
          .buffer(in)
          .buffer(mean)
          .buffer(rstd)
          .value(int64_t(rows))
          .value(int64_t(n))
          .value(int32_t(i == 2));
  return true;
}

// Sums or means over the dimensions of an argument; over all with -1.
inline bool sum(Call& call, int over, bool mean) {
  Tensor in = call.tensor(0), out = call.output(0);
  if (in.dtype != BRINGUP_FLOAT32 || !out.plain()) return call.refuse("not contiguous float32");
  if (in.dims > 6) return call.refuse("more than 6 dimensions");
  Map map = {};
  map.dims = in.dims;
  long inner = 1;
  bool listed = over >= 0 && call.argument(over).kind == BRINGUP_INTS && call.argument(over).count > 0;
  for (int d = 0; d < in.dims; ++d) {
    map.size[d] = in.sizes[d], map.a[d] = in.strides[d];
    bool reduced = !listed;
    for (int i = 0; listed && i < call.argument(over).count; ++i)
      reduced |= (call.argument(over).integers[i] + in.dims) % in.dims == d;
    if (reduced) map.o[d] = -1, inner *= in.sizes[d];
  }
  call.step("sum", out.numel()).buffer(out).buffer(in).value(map).value(int64_t(inner)).value(mean ? 1.0f / float(inner) : 1.0f);
  return true;
}

inline bool norm(Call& call, const Tensor& out, const Tensor& in, int order) {
  if (!in.plain() || !out.plain() || out.numel() != 1) return call.refuse("not of all elements of a contiguous float32 tensor");
  call.step("vector_norm", 1).buffer(out).buffer(in).value(int64_t(in.numel())).scalar('f', order);
  return true;
}

// ---- indices

inline void add_index(Step& step, const Tensor& at) {  // INDEX in kit_kernels.h
  step.value(int64_t(at.dims > 0 ? at.sizes[at.dims - 1] : 1)).value(int64_t(at.dims > 1 ? at.strides[0] : 0));
  step.value(int64_t(at.dims > 0 ? at.strides[at.dims - 1] : 0));
}

inline bool embedding(Call& call) {
  Tensor weight = call.tensor(0), at = call.tensor(1), out = call.output(0);
  if (!weight.plain() || !out.plain() || at.dtype != BRINGUP_INT64 || at.dims > 2) return call.refuse("form or dtype");
  long n = weight.sizes[1];
  call.step("embedding", at.numel())
      .buffer(out)
      .buffer(weight)
      .buffer(at)
      .fault()
      .value(int64_t(n))
      .value(int64_t(weight.sizes[0]));
  add_index(call.plan.back().launch_number(), at);
  return true;
}

inline bool embedding_backward(Call& call) {  // (grad, indices, num_weights, padding_idx, scale_grad_by_freq)
  Tensor grad = call.tensor(0), at = call.tensor(1);
  if (!grad.plain() || at.dtype != BRINGUP_INT64 || at.dims > 2) return call.refuse("form or dtype");
  if (call.is_true(4)) return call.refuse("scaled by frequency");
  Step& step = call.step("embedding_backward", long(call.argument(2).integer));
  step.buffer(call.output(0)).buffer(grad).buffer(at).value(int64_t(grad.sizes[grad.dims - 1])).value(int64_t(at.numel()));
  add_index(step.value(int64_t(call.argument(3).integer)), at);
  return true;
}

inline bool nll(Call& call) {  // (input, target, weight, reduction, ignore_index)
  Tensor in = call.tensor(0), at = call.tensor(1);
  if (!call.none(2) || call.argument(3).integer == 0) return call.refuse("weights, or not reduced");
  if (in.dims != 2 || !in.plain() || at.dtype != BRINGUP_INT64 || !at.contiguous()) return call.refuse("form or dtype");
  call.step("nll", 1)
      .buffer(call.output(0))
      .buffer(call.output(1))
      .buffer(in)
      .buffer(at)
      .fault()
      .value(int64_t(in.sizes[0]))
      .value(int64_t(in.sizes[1]))
      .value(int32_t(call.argument(3).integer == 1))
      .value(int64_t(call.argument(4).integer))
      .launch_number();
  return true;
}

inline bool nll_backward(Call& call) {  // (grad, input, target, weight, reduction, ignore_index, total_weight)
  Tensor in = call.tensor(1), at = call.tensor(2);
  if (!call.none(3) || call.argument(4).integer == 0) return call.refuse("weights, or not reduced");
  if (in.dims != 2 || in.dtype != BRINGUP_FLOAT32 || at.dtype != BRINGUP_INT64 || !at.contiguous())
    return call.refuse("form or dtype");
  if (!call.output(0).plain()) return call.refuse("the result is not contiguous");
  call.step("nll_backward", in.sizes[0])
      .buffer(call.output(0))
      .buffer(call.tensor(0))
      .buffer(at)
      .buffer(call.tensor(6))
      .value(int64_t(in.sizes[1]))
      .value(int32_t(call.argument(4).integer == 1))
      .value(int64_t(call.argument(5).integer));
  return true;
}

inline bool concatenate(Call& call) {
  Tensor out = call.output(0);
  const bringup_argument& list = call.argument(0);
  if (out.dims > 6 || out.dims == 0) return call.refuse("form");
  int dim = int((call.argument(1).integer + out.dims) % out.dims);
  long offset = 0;
  for (int i = 0; i < list.count; ++i) {
    Tensor in = call.element(0, i), part = out;
    if (in.dims != out.dims) return call.refuse("an empty tensor of another shape");
    part.sizes = in.sizes;
    if (!pointwise(call, part, {"x", {in}, {}, {}, true, offset * out.strides[dim]})) return false;
    offset += in.sizes[dim];
  }
  return true;
}

// ---- attention, as torch's CPU kernels return it: result and logarithm of the sum

constexpr long kKeys = 2048;  // KEYS in kit_kernels.h

struct At {
  int64_t b, h, t, d;
};

// The strides of (batch, heads, length, width); the logarithm of the sum has no width.
inline At at_of(const Tensor& tensor) {
  return {tensor.strides[0], tensor.strides[1], tensor.strides[2], tensor.dims == 4 ? tensor.strides[3] : 0};
}

inline bool attention_form(Call& call, const std::vector<Tensor>& tensors, int dropout, int mask) {
  for (const Tensor& tensor : tensors)
    if (tensor.dtype != BRINGUP_FLOAT32 || (tensor.dims != 4 && tensor.dims != 3)) return call.refuse("form or dtype");
  if (call.argument(dropout).number != 0) return call.refuse("dropout");
  if (!call.none(mask)) return call.refuse("a mask");
  for (const Tensor& tensor : tensors)
    if (tensor.sizes[2] > kKeys) return call.refuse("longer than 2048");
  return true;
}

inline float scale_of(Call& call, int argument, const Tensor& query) {
  return float(call.none(argument) ? 1 / std::sqrt(double(query.sizes[3])) : call.argument(argument).number);
}

inline bool attention(Call& call) {  // (query, key, value, dropout_p, is_causal, attn_mask, scale)
  Tensor q = call.tensor(0), k = call.tensor(1), v = call.tensor(2), out = call.output(0), lse = call.output(1);
  if (!attention_form(call, {q, k, v, out, lse}, 3, 5)) return false;
  if (q.sizes[1] != k.sizes[1]) return call.refuse("grouped queries");
  Step& step = call.step("attention", q.sizes[2], q.sizes[1], q.sizes[0]);
  for (const Tensor& tensor : {out, lse, q, k, v}) step.buffer(tensor);
  for (const Tensor& tensor : {out, lse, q, k, v}) step.value(at_of(tensor));
  step.value(int64_t(q.sizes[2])).value(int64_t(k.sizes[2])).value(int64_t(q.sizes[3])).value(int64_t(v.sizes[3]));
  step.value(scale_of(call, 6, q)).value(int32_t(call.is_true(4)));
  return true;
}

// (grad_out, query, key, value, out, logsumexp, dropout_p, is_causal, attn_mask, scale)
inline bool attention_backward(Call& call) {
  Tensor g = call.tensor(0), q = call.tensor(1), k = call.tensor(2), v = call.tensor(3), o = call.tensor(4), lse = call.tensor(5);
  Tensor dq = call.output(0), dk = call.output(1), dv = call.output(2);
  if (!attention_form(call, {g, q, k, v, o, lse, dq, dk, dv}, 6, 8)) return false;
  if (q.sizes[1] != k.sizes[1] || q.sizes[3] != v.sizes[3]) return call.refuse("grouped queries, or values of another width");
  auto add = [&](const char* name, long groups, std::vector<Tensor> tensors) {
    Step& step = call.step(name, groups, q.sizes[1], q.sizes[0]);
    for (const Tensor& tensor : tensors) step.buffer(tensor);
    for (const Tensor& tensor : tensors) step.value(at_of(tensor));
    step.value(int64_t(q.sizes[2])).value(int64_t(k.sizes[2])).value(int64_t(q.sizes[3]));
    step.value(scale_of(call, 9, q)).value(int32_t(call.is_true(7)));
  };
  add("attention_query", q.sizes[2], {dq, g, q, k, v, o, lse});
  add("attention_key", k.sizes[2], {dk, dv, g, q, k, v, o, lse});
  return true;
}

// ---- optimizers

// (self, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, state_steps, lr, beta1, beta2, weight_decay, eps, amsgrad, maximize,
// grad_scale, found_inf)
inline bool adam(Call& call, bool decoupled) {
  if (call.is_true(11)) return call.refuse("amsgrad");
  if (!call.none(13) || !call.none(14)) return call.refuse("scaled gradients");
  if (call.argument(6).kind != BRINGUP_DOUBLE) return call.refuse("the learning rate is a tensor");
  for (int i = 0; i < call.argument(0).count; ++i) {
    for (int list : {0, 1, 2, 3, 5})
      if (!call.element(list, i).plain()) return call.refuse("not contiguous float32");
    Step& step = call.step("adam", (call.element(0, i).numel() + 255) / 256);
    for (int list : {0, 1, 2, 3, 5}) step.buffer(call.element(list, i));
    step.value(int64_t(call.element(0, i).numel()));
    for (int number : {6, 7, 8, 9, 10}) step.value(float(call.argument(number).number));
    step.value(int32_t(decoupled)).value(int32_t(call.is_true(12)));
  }
  return true;
}

// ---- the table of operators

using Make = std::function<bool(Call&)>;

inline Make unary(const char* f, bool integers = false) {
  return [=](Call& call) { return pointwise(call, call.target(), {f, {call.tensor(0)}, {}, {}, integers}); };
}
// s is argument `scalar`, if there is one.
inline Make binary(const char* f, int scalar = -1, bool integers = false) {
  return
      [=](Call& call) { return pointwise(call, call.target(), {f, {call.tensor(0), call.tensor(1)}, {scalar}, {}, integers}); };
}
inline Make with_number(const char* f, int scalar = 1, bool integers = false, int second = -1) {
  return [=](Call& call) { return pointwise(call, call.target(), {f, {call.tensor(0)}, {scalar}, {second}, integers}); };
}
// A list operator: x, y and z are elements of its first lists, s is a number for all, or the i-th of a list.
inline Make lists(const char* f, int inputs, int scalar = -1) {
  return [=](Call& call) {
    for (int i = 0; i < call.argument(0).count; ++i) {
      Pointwise p{f, {}, {}, {}, false};
      for (int list = 0; list < inputs; ++list) p.in.push_back(call.element(list, i));
      bool listed = scalar >= 0 && call.argument(scalar).kind == BRINGUP_SCALARS;
      p.s.index = listed ? call.argument(scalar).first + i : scalar;
      if (!pointwise(call, call.c->output_count > 0 ? call.output(i) : call.element(0, i), p)) return false;
    }
    return true;
  };
}
inline bool list_by_tensor(Call& call) {  // _foreach_mul_.Tensor
  for (int i = 0; i < call.argument(0).count; ++i)
    if (!pointwise(call, call.element(0, i), {"x*y", {call.element(0, i), call.tensor(1)}})) return false;
  return true;
}
inline bool list_norms(Call& call) {
  for (int i = 0; i < call.argument(0).count; ++i)
    if (!norm(call, call.output(i), call.element(0, i), 1)) return false;
  return true;
}
inline bool clamp(Call& call) {
  bool low = !call.none(1), high = !call.none(2);
  const char* f = low && high ? "x<s?s:x>t?t:x" : low ? "x<s?s:x" : "x>t?t:x";
  return pointwise(call, call.target(), {f, {call.tensor(0)}, {low ? 1 : -1}, {high ? 2 : -1}, true});
}
inline bool is_tanh(Call& call, int argument) {
  return call.argument(argument).kind == BRINGUP_STRING && std::strcmp(call.argument(argument).string, "tanh") == 0;
}
inline bool gelu(Call& call) {  // Hendrycks and Gimpel 2016
  const char* exact = "0.5f*x*(1+erf(x*0.70710678118654752f))";
  const char* by_tanh = "0.5f*x*(1+tanh(0.79788456080286536f*(x+0.044715f*x*x*x)))";
  return pointwise(call, call.target(), {is_tanh(call, 1) ? by_tanh : exact, {call.tensor(0)}});
}
inline bool gelu_backward(Call& call) {
  if (is_tanh(call, 2)) return call.refuse("approximate='tanh'");
  const char* f = "x*(0.5f*(1+erf(y*0.70710678118654752f))+y*0.39894228040143268f*exp(-0.5f*y*y))";
  return pointwise(call, call.target(), {f, {call.tensor(0), call.tensor(1)}});
}
inline bool norm_of_all(Call& call) {  // linalg_vector_norm(self, ord, dim, keepdim, dtype)
  return norm(call, call.output(0), call.tensor(0), 1);
}
inline bool matrices(Call& call) { return product(call, call.output(0), call.tensor(0), call.tensor(1)); }
inline bool copy(Call& call) { return pointwise(call, call.tensor(0), {"x", {call.tensor(1)}, {}, {}, true}); }
inline bool fill(Call& call) { return pointwise(call, call.target(), {"s", {}, {1}, {}, true}); }
inline bool zero(Call& call) { return pointwise(call, call.target(), {"0", {}, {}, {}, true}); }
inline bool select(Call& call) {
  return pointwise(call, call.target(), {"x?y:z", {call.tensor(0), call.tensor(1), call.tensor(2)}, {}, {}, true});
}

inline const std::unordered_map<std::string, Make>& operators() {
  static const std::unordered_map<std::string, Make> all = {
      {"aten::add.Tensor", binary("x+s*y", 2, true)},
      {"aten::add_.Tensor", binary("x+s*y", 2, true)},
      {"aten::sub.Tensor", binary("x-s*y", 2, true)},
      {"aten::sub_.Tensor", binary("x-s*y", 2, true)},
      {"aten::mul.Tensor", binary("x*y", -1, true)},
      {"aten::mul_.Tensor", binary("x*y", -1, true)},
      {"aten::div.Tensor", binary("x/y")},
      {"aten::div_.Tensor", binary("x/y")},
      {"aten::maximum", binary("x!=x?x:y!=y?y:x>y?x:y", -1, true)},
      {"aten::minimum", binary("x!=x?x:y!=y?y:x<y?x:y", -1, true)},
      {"aten::eq.Tensor", binary("x==y", -1, true)},
      {"aten::ne.Tensor", binary("x!=y", -1, true)},
      {"aten::lt.Tensor", binary("x<y", -1, true)},
      {"aten::le.Tensor", binary("x<=y", -1, true)},
      {"aten::gt.Tensor", binary("x>y", -1, true)},
      {"aten::ge.Tensor", binary("x>=y", -1, true)},
      {"aten::eq.Scalar", with_number("x==s", 1, true)},
      {"aten::ne.Scalar", with_number("x!=s", 1, true)},
      {"aten::lt.Scalar", with_number("x<s", 1, true)},
      {"aten::le.Scalar", with_number("x<=s", 1, true)},
      {"aten::gt.Scalar", with_number("x>s", 1, true)},
      {"aten::ge.Scalar", with_number("x>=s", 1, true)},
      {"aten::where.self", select},
      {"aten::relu", unary("x<0?0:x", true)},
      {"aten::relu_", unary("x<0?0:x", true)},
      {"aten::tanh", unary("tanh(x)")},
      {"aten::exp", unary("exp(x)")},
      {"aten::log", unary("log(x)")},
      {"aten::sqrt", unary("sqrt(x)")},
      {"aten::rsqrt", unary("1/sqrt(x)")},
      {"aten::reciprocal", unary("1/x")},
      {"aten::neg", unary("-x", true)},
      {"aten::abs", unary("x<0?-x:x==0?0:x", true)},
      {"aten::sigmoid", unary("1/(1+exp(-x))")},
      {"aten::silu", unary("x/(1+exp(-x))")},
      {"aten::gelu", gelu},
      {"aten::gelu_backward", gelu_backward},
      {"aten::tanh_backward", binary("x*(1-y*y)")},
      {"aten::sigmoid_backward", binary("x*y*(1-y)")},
      {"aten::threshold_backward", binary("y<=s?0:x", 2)},
      {"aten::masked_fill.Scalar", binary("y?s:x", 2, true)},
      {"aten::masked_fill_.Scalar", binary("y?s:x", 2, true)},
      {"aten::pow.Tensor_Scalar", with_number("s==2?x*x:pow(x,s)")},
      {"aten::clamp", clamp},
      {"aten::copy_", copy},
      {"aten::fill_.Scalar", fill},
      {"aten::zero_", zero},
      {"aten::cat", concatenate},
      {"aten::mm", matrices},
      {"aten::bmm", matrices},
      {"aten::addmm", add_product},
      {"aten::baddbmm", add_product},
      {"aten::_softmax", [](Call& call) { return softmax(call, 0); }},
      {"aten::_log_softmax", [](Call& call) { return softmax(call, 1); }},
      {"aten::_softmax_backward_data", [](Call& call) { return softmax_backward(call, 0); }},
      {"aten::_log_softmax_backward_data", [](Call& call) { return softmax_backward(call, 1); }},
      {"aten::native_layer_norm", layer_norm},
      {"aten::native_layer_norm_backward", layer_norm_backward},
      {"aten::sum", [](Call& call) { return sum(call, -1, false); }},
      {"aten::mean", [](Call& call) { return sum(call, -1, true); }},
      {"aten::sum.dim_IntList", [](Call& call) { return sum(call, 1, false); }},
      {"aten::mean.dim", [](Call& call) { return sum(call, 1, true); }},
      {"aten::linalg_vector_norm", norm_of_all},
      {"aten::embedding", embedding},
      {"aten::embedding_dense_backward", embedding_backward},
      {"aten::nll_loss_forward", nll},
      {"aten::nll_loss_backward", nll_backward},
      {"aten::_scaled_dot_product_flash_attention_for_cpu", attention},
      {"aten::_scaled_dot_product_flash_attention_for_cpu_backward", attention_backward},
      {"aten::_foreach_add_.List", lists("x+s*y", 2, 2)},
      {"aten::_foreach_add_.Scalar", lists("x+s", 1, 1)},
      {"aten::_foreach_mul_.Scalar", lists("x*s", 1, 1)},
      {"aten::_foreach_mul_.Tensor", list_by_tensor},
      {"aten::_foreach_div_.ScalarList", lists("x/s", 1, 1)},
      {"aten::_foreach_sqrt", lists("sqrt(x)", 1)},
      {"aten::_foreach_lerp_.Scalar", lists("s<0.5f?x+s*(y-x):y-(y-x)*(1-s)", 2, 2)},
      {"aten::_foreach_addcmul_.Scalar", lists("x+s*y*z", 3, 3)},
      {"aten::_foreach_addcdiv_.ScalarList", lists("x+s*y/z", 3, 3)},
      {"aten::_foreach_norm.Scalar", list_norms},
      {"aten::_fused_adamw_", [](Call& call) { return adam(call, true); }},
      {"aten::_fused_adam_", [](Call& call) { return adam(call, false); }},
  };
  return all;
}

// True if `list` ("all", "none", "aten::mm,aten::add.Tensor") names the operator.
inline bool is_listed(const char* list, const std::string& op) {
  if (!list || !*list || std::strcmp(list, "all") == 0) return true;
  return ("," + std::string(list) + ",").find("," + op + ",") != std::string::npos;
}

// Returns BRINGUP_OK with the plan of a call, or BRINGUP_UNSUPPORTED with the reason. `only` limits the operators.
inline int plan_of(bringup_device* device, const bringup_call* c, const char* only, Plan* plan, const char** why) {
  auto entry = operators().find(c->op);
  if (entry == operators().end() || !is_listed(only, c->op)) return BRINGUP_UNSUPPORTED;
  Call call{c, device};
  bool empty = false;
  for (int i = 0; i < c->tensor_count; ++i) empty |= c->tensors[i].dims >= 0 && call.at(i).numel() == 0;
  for (int i = 0; i < c->output_count; ++i) empty |= c->outputs[i].dims >= 0 && call.output(i).numel() == 0;
  *why = "a tensor is empty";
  if (empty) return BRINGUP_UNSUPPORTED;
  bool taken = entry->second(call);
  if (!taken || call.why) {
    *why = call.why ? call.why : "the kernels do not cover this form";
    return BRINGUP_UNSUPPORTED;
  }
  *plan = std::move(call.plan);
  return BRINGUP_OK;
}

inline std::vector<char> found_at_launch(const Value& value, const bringup_launch& launch) {
  return value.kind == Value::kScalar ? number_as(value.type, launch.values[value.index] * value.factor) : value.bytes;
}

inline float float_of(const Value& value, const bringup_launch& launch) {
  float number;
  std::memcpy(&number, found_at_launch(value, launch).data(), sizeof number);
  return number;
}

inline int run(bringup_device* device, bringup_stream* stream, const Step& step, const bringup_launch& launch) {
  auto address = [&](int index) { return static_cast<char*>(launch.addresses[index]); };
  if (step.product) {
    auto* c = reinterpret_cast<float*>(address(step.product_of[0]));
    auto* a = reinterpret_cast<const float*>(address(step.product_of[1]));
    auto* b = reinterpret_cast<const float*>(address(step.product_of[2]));
    return step.product(stream, c, a, b, float_of(step.alpha, launch), float_of(step.beta, launch));
  }
  Arguments arguments;
  for (const Value& value : step.values) {
    if (value.kind == Value::kBuffer)
      append_address(stream, arguments, address(value.index) + value.offset * long(value.item), value.item);
    else if (value.kind == Value::kFault)
      append_address(stream, arguments, fault_word(device), value.item);
    else
      arguments.push_back(value.kind == Value::kNumber ? bytes_of(uint64_t(launch.number)) : found_at_launch(value, launch));
  }
  return enqueue(stream, step.kernel, arguments, step.grid);
}

inline int run(bringup_device* device, bringup_stream* stream, const Plan& plan, const bringup_launch& launch) {
  for (const Step& step : plan)
    if (int status = run(device, stream, step, launch)) return status;
  return BRINGUP_OK;
}

}  // namespace kit

struct bringup_kernel {
  bringup_device* device;
  kit::Plan plan;
};

// ---- entries of the driver

namespace kit {

// `last_error` of no device: why the last `open` failed.
inline Failures& failures_of_open() {
  static auto* failures = new Failures();
  return *failures;
}

inline int refuse_open(const std::string& why) { return failures_of_open().fail(why); }

inline const char* last_error(bringup_device* device, const void** about) {
  *about = nullptr;
  Failures& from = device ? failures(device) : failures_of_open();
  std::lock_guard<std::mutex> lock(from.mutex);
  from.shown = std::exchange(from.error, "");
  return from.shown.c_str();
}

inline int64_t failed_launch(bringup_device* device) {
  std::lock_guard<std::mutex> lock(failures(device).mutex);
  return std::exchange(failures(device).failed, 0);
}

inline int prepare(bringup_device* device, const bringup_call* call, bringup_kernel** kernel, const char** why) {
  auto made = std::make_unique<bringup_kernel>(bringup_kernel{device, {}});
  int status = plan_of(device, call, listed_operators(), &made->plan, why);
  if (status == BRINGUP_OK) *kernel = made.release();
  return status;
}

inline void release(bringup_kernel* kernel) { delete kernel; }

}  // namespace kit
