// Random numbers: Philox4x32-10, drawn as by torch's kernels for CUDA. So a seed gives the numbers that it gives there, up to the
// rounding of logarithms and trigonometric functions.
//
// Note [The stream of random numbers]
// Philox maps a key and a counter of 128 bits to four words of 32 bits. The key is the seed. The upper half of the counter is the
// number of a thread, the lower half counts the calls of that thread, from a fourth of the launch's offset. A tensor of n
// elements has 256 * ceil(n / 256) threads, at most as many as the device can hold. Of the numbers that threads draw, element i
// is number `i / threads` of thread `i % threads`. Dropout gives `width` neighbours to a thread: number `i / (threads * width) *
// width + i % width` of thread `i / width % threads`. A call of Philox gives four numbers, or two of 64 bits. A launch advances
// the offset by four for each call of a thread.
#pragma once
#include "kit_pointwise.h"

namespace kit {

constexpr const char* kPhilox = R"(
DEVICE void philox(uint* w, ulong key, ulong low, ulong high) {  // Salmon et al. 2011
  uint a = (uint)key, b = (uint)(key >> 32);
  w[0] = (uint)low; w[1] = (uint)(low >> 32); w[2] = (uint)high; w[3] = (uint)(high >> 32);
  for (int round = 0; round < 10; ++round) {
    ulong p = (ulong)0xD2511F53u * w[0], q = (ulong)0xCD9E8D57u * w[2];
    w[0] = (uint)(q >> 32) ^ w[1] ^ a; w[1] = (uint)q;
    w[2] = (uint)(p >> 32) ^ w[3] ^ b; w[3] = (uint)p;
    a += 0x9E3779B9u; b += 0xBB67AE85u;
  }
}
)";

inline const std::string kRandomText = std::string(kPhilox) + R"(
#define C(number) ((TS)(number))
// The distributions of cuRAND: number k of the words w, uniform in (0, 1] or normal.
DEVICE ulong word(uint* w, int k) { return w[k]; }
DEVICE ulong word_pair(uint* w, int k) { return (ulong)w[2 * k] << 32 | w[2 * k + 1]; }
DEVICE float uniform(uint* w, int k) { return (float)w[k] * 2.3283064e-10f + 2.3283064e-10f / 2; }  // 2^-32
DEVICE float normal(uint* w, int k) {  // Box and Muller 1958
  float radius = sqrt(-2 * log(uniform(w, k & ~1)));
  float angle = (float)w[k | 1] * (2.3283064e-10f * 6.2831855f) + 2.3283064e-10f * 6.2831855f / 2;
  return radius * (k & 1 ? cos(angle) : sin(angle));
}
#ifdef DOUBLES
DEVICE double uniform_double(uint* w, int k) {
  return (double)(w[2 * k] ^ (ulong)w[2 * k + 1] << 21) * 1.1102230246251565e-16 + 1.1102230246251565e-16 / 2;  // 2^-53
}
DEVICE double normal_double(uint* w, int k) {
  double radius = sqrt(-2 * log(uniform_double(w, 0))), angle = 2 * uniform_double(w, 1);
  return radius * (k & 1 ? cospi(angle) : sinpi(angle));
}
#endif
#define ROUNDED(v) (STORE(TO, o, oi, v), LOAD(TO, o, oi))

// STATEMENT stores what it makes of x, s and t in o; a is an input, b a mask.
KERNEL draw(ARG(TO, o), ARG(TA, a), ARG(uchar, b), Map m, long n, long threads, long width, TS s, TS t, ulong seed,
            ulong offset) {
  USE(TO, o); USE(TA, a); USE(uchar, b);
  long item = GROUP * LANES + LANE, thread = item % threads, turn = item / threads;
  if (turn * DRAWS / width * threads * width >= n) return;
  uint w[4];
  philox(w, seed, offset / 4 + turn, thread);
  for (int k = 0; k < DRAWS; ++k) {
    long number = turn * DRAWS + k, i = (number / width * threads + thread) * width + number % width;
    if (i >= n) continue;
    long oi = i, ai = i, bi = i;
    if (m.dims >= 0) {
      oi = ai = bi = 0;
      long r = i;
      for (int d = (int)m.dims - 1; d >= 0; --d) {
        long at = r % m.size[d];
        r /= m.size[d];
        oi += at * m.o[d]; ai += at * m.a[d]; bi += at * m.b[d];
      }
    }
    TX x = DISTRIBUTION(w, k);
    STATEMENT;
  }
}
)";
inline const Source kRandom = {"random", kRandomText.c_str()};

struct Draw {
  const char *distribution, *statement;
  double s = 0, t = 0;
  long width = 1, threads = 0;  // 0: as many as the device holds
  uint64_t advance = 0;         // 0: by the calls of a thread
  int64_t range = 0, base = 0;  // instead of `s` and `t`, of integers
};

inline bool is_constant(Call& call, int i) { return call.argument(i).kind == BRINGUP_DOUBLE; }

// Draws for each element of `out`; `in` and `mask` have its sizes.
inline bool draw(Call& call, const Tensor& out, const Draw& d, const Tensor* in = nullptr, const Tensor* mask = nullptr) {
  long n = out.numel();
  if (out.dims > 6) return call.refuse("more than 6 dimensions");
  if (!type_of(out.dtype) || (in && !type_of(in->dtype))) return call.refuse("dtype");
  if (n > std::numeric_limits<int32_t>::max()) return call.refuse("more than 2^31 elements");  // which torch draws in parts
  const std::string distribution = d.distribution;
  const bool words = distribution.find("word") == 0, pairs = distribution == "word_pair" || distribution.ends_with("_double");
  const bool wide = out.dtype == BRINGUP_FLOAT64;
  const long of_call = pairs ? 2 : 4, groups = (n + 255) / 256;
  long threads = d.threads ? d.threads : 256 * std::min(state(call.device).random_threads / 256, groups);
  long calls = (n - 1) / (threads * of_call) + 1;
  *call.c->draws = d.advance ? d.advance : uint64_t(4 * calls);
  Map map = {};
  map.dims = out.dims;
  bool flat = out.contiguous() && (!in || in->contiguous()) && (!mask || mask->contiguous());
  if (flat) map.dims = -1;
  for (int k = 0; k < out.dims; ++k) {
    map.size[k] = out.sizes[k], map.o[k] = out.strides[k];
    if (in) map.a[k] = in->strides[k];
    if (mask) map.b[k] = mask->strides[k];
  }
  const char* type = words ? "long" : wide ? "double" : "float";
  std::string macros = types({{"TO", out.dtype}, {"TA", in ? in->dtype : out.dtype}}) + define("TS", type) +
                       define("TX", words ? "ulong" : type) + define("DRAWS", std::to_string(of_call)) +
                       define("DISTRIBUTION", distribution) + define("STATEMENT", d.statement);
  long turns = ((n - 1) / (threads * d.width) + 1) * d.width;  // numbers of a thread
  turns = (turns + of_call - 1) / of_call;
  Step& step = call.step(kRandom, macros, "draw", (turns * threads + 255) / 256);
  step.buffer(out).buffer(in ? *in : out).buffer(mask ? *mask : out).value(map).counts(n, threads, d.width);
  if (words)
    step.counts(d.base, d.range);
  else
    step.number(wide ? 'd' : 'f', d.s).number(wide ? 'd' : 'f', d.t);
  step.stream();
  return true;
}

// torch draws in the order of memory, if a tensor's elements have other strides than contiguous ones.
inline Tensor in_memory_order(Call& call, Tensor tensor) {
  std::vector<int> order(size_t(std::max(tensor.dims, 0)));
  for (size_t d = 0; d < order.size(); ++d) order[d] = int(d);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return tensor.strides[a] > tensor.strides[b]; });
  auto& sizes = call.shapes.emplace_back();
  auto& strides = call.shapes.emplace_back();
  for (int d : order) sizes.push_back(tensor.sizes[d]), strides.push_back(tensor.strides[d]);
  tensor.sizes = sizes.data(), tensor.strides = strides.data();
  return tensor;
}

// A distribution with the numbers `s` and `t`, which are arguments.
inline Make drawn(const char* distribution, const char* f, bool integers = kFloats, bool two = false) {
  return [=](Call& call) {
    Tensor out = in_memory_order(call, call.target());
    if (!is_floating(out.dtype) && !integers) return call.refuse("dtype");
    if (!is_constant(call, 1) || (two && !is_constant(call, 2))) return call.refuse("form");
    std::string name = distribution, statement = f;
    if (out.dtype == BRINGUP_FLOAT64) name += "_double";
    if (statement.find("STORE") == std::string::npos) statement = "STORE(TO, o, oi, " + statement + ")";
    return draw(call, out, {name.c_str(), statement.c_str(), call.argument(1).number, two ? call.argument(2).number : 0});
  };
}

constexpr const char* kUniform =
    "TS from = ROUNDED(s), to = ROUNDED(t), v = ROUNDED(fma(x, ROUNDED(to - from), from)); STORE(TO, o, oi, v == to ? from : v)";
constexpr const char* kEpsilon = "(sizeof(TS) == 8 ? C(2.220446049250313e-16) : C(1.1920929e-7))";

// (self, p tensor): probabilities of the elements. torch draws four neighbours in a thread, and advances by 12.
inline bool bernoulli_of(Call& call, int probabilities) {
  Tensor out = call.result(call.target()), p = call.tensor(probabilities);
  if (!is_floating(p.dtype) || p.on_host()) return call.refuse("dtype");
  auto& strides = call.shapes.emplace_back();
  for (int d = 0; d < out.dims; ++d) {
    int from = p.dims - out.dims + d;
    strides.push_back(from < 0 || (p.sizes[from] == 1 && out.sizes[d] != 1) ? 0 : p.strides[from]);
  }
  p.dims = out.dims, p.sizes = out.sizes, p.strides = strides.data();
  Draw d = {"uniform", "STORE(TO, o, oi, x <= LOAD(TA, a, ai))"};
  d.width = 4, d.threads = (out.numel() + 3) / 4, d.advance = 12;
  return draw(call, out, d, &p);
}

// (input, p, generator) -> result, mask
inline bool dropout(Call& call) {
  Tensor in = call.tensor(0), out = call.output(0), mask = call.output(1);
  if (!is_floating(in.dtype) || !is_constant(call, 1)) return call.refuse("dtype");
  double p = call.argument(1).number;
  if (p == 1) return fill_with(call, out, 0) && fill_with(call, mask, 0);
  double keep = in.dtype == BRINGUP_FLOAT64 ? 1 - p : float(1 - p);
  Draw d = {"uniform", "int kept = x < s; STORE(TO, o, oi, LOAD(TA, a, ai) * kept * t); b[bi] = kept", keep, 1 / keep};
  Tensor ordered[] = {in_memory_order(call, in), in_memory_order(call, out), in_memory_order(call, mask)};
  bool dense = ordered[0].contiguous() && ordered[1].contiguous() && ordered[2].contiguous();
  for (int k = 0; dense && k < in.dims; ++k) dense = in.strides[k] == out.strides[k] && in.strides[k] == mask.strides[k];
  if (!dense) return draw(call, out, d, &in, &mask);
  d.width = 16 / long(in.item());  // torch's kernel loads 16 bytes
  while (in.numel() % d.width) d.width /= 2;
  return draw(call, ordered[1], d, &ordered[0], &ordered[2]);
}

// random_(self), .to(self, to) and .from(self, from, to). Large ranges take 64 bits.
inline Make random_integers(int from, int to) {
  return [=](Call& call) {
    Tensor out = in_memory_order(call, call.target());
    const int digits = out.dtype == BRINGUP_FLOAT64    ? 53
                       : out.dtype == BRINGUP_FLOAT32  ? 24
                       : out.dtype == BRINGUP_FLOAT16  ? 11
                       : out.dtype == BRINGUP_BFLOAT16 ? 8
                                                       : 8 * int(out.item()) - (out.dtype == BRINGUP_UINT8 ? 0 : 1);
    Draw d = {"word", "STORE(TO, o, oi, (long)(x % (ulong)t) + s)"};
    if (to >= 0) {
      if (call.none(to)) return call.refuse("without an upper bound");
      d.base = from >= 0 ? call.argument(from).integer : 0;
      int64_t end = call.argument(to).integer, most = digits < 63 ? int64_t(1) << digits : std::numeric_limits<int64_t>::max();
      if (is_floating(out.dtype) && (end > most || d.base < -most)) return call.refuse("numbers that the dtype rounds");
      d.range = int64_t(uint64_t(end) - uint64_t(d.base));
      if (uint64_t(d.range) >= uint64_t(1) << 28) d.distribution = "word_pair";
    } else {
      d.range = out.dtype == BRINGUP_BOOL    ? 2
                : is_floating(out.dtype)     ? (int64_t(1) << digits) + 1
                : out.dtype == BRINGUP_INT64 ? std::numeric_limits<int64_t>::min()  // 2^63 without a sign
                                             : int64_t(1) << digits;
      if (out.item() == 8) d.distribution = "word_pair";
    }
    return draw(call, out, d);
  };
}

}  // namespace kit
