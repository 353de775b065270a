// The simulation of the array in array.sv, a program that Verilator compiles. It reads products from descriptor 0 and writes
// their results there; rtl.cpp is the other end. The memories beside the array are modelled here: each gives or takes one row per
// cycle.
//
// A request is {m, k, n} in int64, then b (k x n) and a (m x k) in int8. The answer is a series of {cycles, bytes} in int64.
// Bytes is 0 to say that the simulation goes on, -1 if the array has stopped giving results, else c (m x n) in int32 follows.
#include <unistd.h>
#include <verilated.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "Varray.h"

namespace {

constexpr int64_t kRowsPerMessage = 1 << 16;

struct Shape {
  int64_t m, k, n;
};

bool read_all(void* to, size_t bytes) {
  for (auto* at = static_cast<char*>(to); bytes > 0;) {
    ssize_t count = read(0, at, bytes);
    if (count <= 0) return false;
    at += count, bytes -= size_t(count);
  }
  return true;
}

bool write_all(const void* from, size_t bytes) {
  for (auto* at = static_cast<const char*>(from); bytes > 0;) {
    ssize_t count = write(0, at, bytes);
    if (count <= 0) return false;
    at += count, bytes -= size_t(count);
  }
  return true;
}

bool tell(int64_t cycles, int64_t bytes) {
  int64_t message[] = {cycles, bytes};
  return write_all(message, sizeof message);
}

void tick(Varray& array) {
  array.clk = 0, array.eval();
  array.clk = 1, array.eval();
}

// Note [Schedule]
// A block of N x N weights is a fold; all m rows pass through each of the F = ceil(k / N) * ceil(n / N) folds. A fold begins
// every P = max(m, 3N) cycles: the spare weights are free when `swap` has reached the last cell, after 2N cycles, and loading
// takes N. A product takes (F - 1) * P + m + 3N cycles: N to load the first fold, and 2N until the last row has left.
bool multiply(Varray& array, Shape shape, const int8_t* a, const int8_t* b, std::vector<int32_t>& c, int64_t& cycles) {
  constexpr int64_t N = sizeof array.a / sizeof array.a[0];
  auto [m, k, n] = shape;
  int64_t blocks = (k + N - 1) / N, folds = blocks * ((n + N - 1) / N), period = std::max(m, 3 * N);
  std::vector<int32_t> sums(size_t(m * N));  // of the present columns
  int64_t silent = 0;                        // cycles since a row has left
  for (int64_t left = 0; left < folds * m; ++cycles) {
    int64_t fold = cycles / period, phase = cycles % period;
    array.load = fold < folds && phase < N;
    for (int64_t j = 0; array.load && j < N; ++j) {
      int64_t row = fold % blocks * N + N - 1 - phase, column = fold / blocks * N + j;
      array.weights[j] = row < k && column < n ? b[row * n + column] : 0;
    }
    fold = (cycles - N) / period, phase = cycles < N ? m : (cycles - N) % period;
    array.valid = fold < folds && phase < m;
    array.swap = array.valid && phase == 0;
    for (int64_t i = 0; array.valid && i < N; ++i) {
      int64_t row = fold % blocks * N + i;
      array.a[i] = row < k ? a[phase * k + row] : 0;
      array.sums[i] = fold % blocks ? sums[phase * N + i] : 0;
    }
    tick(array);
    if (++silent > 4 * N) return false;  // rows follow each other in less than 3N cycles
    if (!array.done) continue;
    int64_t row = left % m, first = left / m / blocks * N;
    bool last = left / m % blocks == blocks - 1;
    for (int64_t j = 0; j < N; ++j) sums[row * N + j] = int32_t(array.results[j]);
    for (int64_t j = 0; last && j < N && first + j < n; ++j) c[row * n + first + j] = int32_t(array.results[j]);
    if (++left % kRowsPerMessage == 0 && !tell(cycles, 0)) return false;
    silent = 0;
  }
  return true;
}

}  // namespace

int main() {
  Varray array;
  array.reset = 1;
  tick(array);
  array.reset = 0;
  for (Shape shape; read_all(&shape, sizeof shape);) {
    std::vector<int8_t> b(size_t(shape.k * shape.n)), a(size_t(shape.m * shape.k));
    if (!read_all(b.data(), b.size()) || !read_all(a.data(), a.size())) return 1;
    std::vector<int32_t> c(size_t(shape.m * shape.n));
    int64_t cycles = 0, bytes = int64_t(c.size() * sizeof c[0]);
    bool whole = multiply(array, shape, a.data(), b.data(), c, cycles);
    if (!tell(cycles, whole ? bytes : -1) || !whole || !write_all(c.data(), size_t(bytes))) return 1;
  }
  return 0;
}
