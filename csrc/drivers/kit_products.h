// Products of matrices and vectors: the vendor's library, or a plain kernel.
#pragma once
#include "kit_pointwise.h"

namespace kit {

inline const Source kProducts = {"products", R"(
typedef WIDE(T) V;
// c = alpha * a b + beta * c for each of a batch; strides in elements, c is contiguous. A group computes a square of 16 * PER, and
// a thread PER * PER elements of it.
KERNEL gemm(ARG(T, c), ARG(T, a), ARG(T, b), V alpha, V beta, long m, long n, long k, long a0, long a1, long a2, long b0, long b1,
            long b2) {
  LOCAL V x[16][16 * PER + 1];
  LOCAL V y[16][16 * PER + 1];
  USE(T, a); USE(T, b); USE(T, c);
  long i0 = GROUP_Y * 16 * PER, j0 = GROUP * 16 * PER, z = GROUP_Z;
  V sum[PER][PER];
  for (int p = 0; p < PER; ++p)
    for (int q = 0; q < PER; ++q) sum[p][q] = 0;
  for (long l = 0; l < k; l += 16) {
    for (int p = 0; p < PER; ++p) {
      long i = i0 + p * 16 + LANE_Y, j = j0 + p * 16 + LANE;
      x[LANE][p * 16 + LANE_Y] = i < m && l + LANE < k ? LOAD(T, a, z * a0 + i * a1 + (l + LANE) * a2) : 0;
      y[LANE_Y][p * 16 + LANE] = j < n && l + LANE_Y < k ? LOAD(T, b, z * b0 + (l + LANE_Y) * b1 + j * b2) : 0;
    }
    BARRIER;
    for (int t = 0; t < 16; ++t)
      for (int p = 0; p < PER; ++p)
        for (int q = 0; q < PER; ++q) sum[p][q] += x[t][p * 16 + LANE_Y] * y[t][q * 16 + LANE];
    BARRIER;
  }
  for (int p = 0; p < PER; ++p)
    for (int q = 0; q < PER; ++q) {
      long i = i0 + p * 16 + LANE_Y, j = j0 + q * 16 + LANE;
      if (i >= m || j >= n) continue;
      long at = (z * m + i) * n + j;
      V before = beta != 0 ? beta * LOAD(T, c, at) : 0;
      STORE(T, c, at, alpha * sum[p][q] + before);
    }
}
)"};

// out = alpha * a b + beta * out
inline bool product(Call& call, const Tensor& out, const Tensor& a, const Tensor& b, const Product& p, Number alpha = {-1, 1},
                    Number beta = {-1, 0}) {
  if (a.dtype != out.dtype || b.dtype != out.dtype || !type_of(a.dtype)) return call.refuse("dtype");
  if (a.on_host() || b.on_host()) return call.refuse("a number on the host");
  Step library;
  if (is_floating(a.dtype)) library.product = library_product(call.device, p);
  const long per = p.m > 32 && p.n > 32 ? 4 : 1, side = 16 * per;
  const std::string macros = types({{"T", a.dtype}}) + define("PER", std::to_string(per));
  Step& step = library.product ? call.plan.steps.emplace_back(library)
                               : call.step(kProducts, macros, "gemm", (p.n + side - 1) / side, (p.m + side - 1) / side, p.batch);
  step.buffer(out).buffer(a).buffer(b);
  for (const Number& n : {alpha, beta})
    n.index >= 0 ? step.scalar(letter_of(a.dtype), n.index) : step.number(letter_of(a.dtype), n.constant);
  if (step.product) return true;
  step.grid.lanes[0] = step.grid.lanes[1] = 16;
  step.counts(p.m, p.n, p.k, p.a[0], p.a[1], p.a[2], p.b[0], p.b[1], p.b[2]);
  return true;
}

// Of matrices (m, k) and (k, n), of batches of them, and of vectors.
inline Product product_of(const Tensor& a, const Tensor& b) {
  Product p = {a.dtype, 1, 1, 1, a.sizes[a.dims - 1], {0, 0, a.strides[a.dims - 1]}, {0, 0, 0}};
  if (a.dims > 1) p.m = a.sizes[a.dims - 2], p.a[1] = a.strides[a.dims - 2];
  if (a.dims > 2) p.batch = a.sizes[0], p.a[0] = a.strides[0];
  int d = b.dims == 1 ? 0 : b.dims - 2;
  p.b[1] = b.strides[d];
  if (b.dims > 1) p.n = b.sizes[d + 1], p.b[2] = b.strides[d + 1];
  if (b.dims > 2) p.b[0] = b.strides[0];
  return p;
}

inline bool matrices(Call& call) {  // mm, bmm, mv, dot
  Tensor a = call.tensor(0), b = call.tensor(1);
  return product(call, call.result(call.target()), a, b, product_of(a, b));
}

inline bool add_product(Call& call) {  // (input, a, b, beta, alpha)
  Tensor out = call.result(call.target()), a = call.tensor(1), b = call.tensor(2), input = call.tensor(0);
  if (out.index != input.index && !pointwise(call, out, copy_of(input))) return false;
  return product(call, out, a, b, product_of(a, b), {4}, {3});
}

}  // namespace kit
