// JAX's random bits, which its compiler makes in one kernel: an operator of bringup, whose CPU kernel the stream's thread runs.
#include <ATen/ExpandUtils.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <bit>
#include <tuple>
#include <vector>

namespace bringup {
namespace {

using at::Tensor;

// Threefry-2x32 with 20 rounds. Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (2011): rotations and constant.
void threefry(uint32_t key1, uint32_t key2, uint32_t& x, uint32_t& y) {
  static constexpr int rotations[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  const uint32_t keys[3] = {key1, key2, key1 ^ key2 ^ 0x1BD11BDA};
  x += key1;
  y += key2;
  for (int group = 0; group < 5; ++group) {
    for (int rotation : rotations[group % 2]) {
      x += y;
      y = std::rotl(y, rotation) ^ x;
    }
    x += keys[(group + 1) % 3];
    y += keys[(group + 2) % 3] + uint32_t(group + 1);
  }
}

std::vector<Tensor> expanded(const Tensor& key1, const Tensor& key2, const Tensor& x, const Tensor& y) {
  return at::expand_outplace({key1, key2, x, y});
}

std::tuple<Tensor, Tensor> threefry_values(const Tensor& key1, const Tensor& key2, const Tensor& x, const Tensor& y) {
  std::vector<Tensor> inputs = expanded(key1, key2, x, y);
  for (Tensor& input : inputs) input = input.contiguous();
  Tensor first = at::empty_like(inputs[2]), second = at::empty_like(inputs[3]);
  const int32_t* in[4];
  for (int i = 0; i < 4; ++i) in[i] = inputs[i].const_data_ptr<int32_t>();
  auto *to_x = first.data_ptr<int32_t>(), *to_y = second.data_ptr<int32_t>();
  at::parallel_for(0, first.numel(), 1 << 14, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      uint32_t a = uint32_t(in[2][i]), b = uint32_t(in[3][i]);
      threefry(uint32_t(in[0][i]), uint32_t(in[1][i]), a, b);
      to_x[i] = int32_t(a);
      to_y[i] = int32_t(b);
    }
  });
  return {first, second};
}

std::tuple<Tensor, Tensor> threefry_meta(const Tensor& key1, const Tensor& key2, const Tensor& x, const Tensor& y) {
  Tensor whole = expanded(key1, key2, x, y)[2].contiguous();
  return {at::empty_like(whole), at::empty_like(whole)};
}

// Unsigned numbers are held as signed ones with the same bits.
TORCH_LIBRARY_FRAGMENT(bringup, m) { m.def("threefry2x32(Tensor key1, Tensor key2, Tensor x, Tensor y) -> (Tensor, Tensor)"); }
TORCH_LIBRARY_IMPL(bringup, CPU, m) { m.impl("threefry2x32", &threefry_values); }
TORCH_LIBRARY_IMPL(bringup, Meta, m) { m.impl("threefry2x32", &threefry_meta); }

}  // namespace
}  // namespace bringup
