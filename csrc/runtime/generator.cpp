#include "runtime/generator.h"

#include <ATen/Utils.h>
#include <ATen/ops/empty.h>

#include <array>
#include <cstring>
#include <mutex>

#include "python/python.h"
#include "record/parts.h"

namespace bringup {

ChipGenerator::ChipGenerator(c10::DeviceIndex device, uint64_t seed)
    : c10::GeneratorImpl(c10::Device(kChip, device), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)),
      current_(at::detail::createCPUGenerator(seed)),
      seed_(seed) {}

ChipGenerator::~ChipGenerator() = default;

at::Generator ChipGenerator::draw_on(Stream& stream) {
  std::unique_lock<std::mutex> draw = lock_without_gil(draws_);  // see Note [Two mutexes of a generator]
  Stream* last;
  {
    std::lock_guard<std::mutex> lock(state_);
    if (!last_) last_ = &stream;
    if (last_ == &stream) return current_;
    last = last_;
  }
  follow(stream, *last);
  std::lock_guard<std::mutex> lock(state_);
  last_ = &stream;
  return current_;
}

std::pair<uint64_t, uint64_t> ChipGenerator::take_offsets(uint64_t count) {
  std::lock_guard<std::mutex> lock(state_);
  return {seed_, std::exchange(offset_, offset_ + count)};
}

void ChipGenerator::replace(at::Generator next, uint64_t seed, uint64_t offset) {
  std::lock_guard<std::mutex> lock(state_);
  current_ = std::move(next);
  seed_ = seed;
  offset_ = offset;
  last_ = nullptr;
}

at::Generator ChipGenerator::settled() const {
  at::Generator current;
  Stream* last;
  {
    std::lock_guard<std::mutex> lock(state_);
    current = current_;
    last = last_;
  }
  // Accelerators count what was drawn on the host, so only the virtual chip waits.
  Unrecorded unrecorded;
  if (last) synchronize(*last);
  return current;
}

void ChipGenerator::set_current_seed(uint64_t seed) { replace(at::detail::createCPUGenerator(seed), seed, 0); }

uint64_t ChipGenerator::current_seed() const {
  std::lock_guard<std::mutex> lock(state_);
  return seed_;
}

uint64_t ChipGenerator::seed() {
  uint64_t seed = c10::detail::getNonDeterministicRandom();
  set_current_seed(seed);
  return seed;
}

void ChipGenerator::set_offset(uint64_t) {
  TORCH_CHECK_NOT_IMPLEMENTED(false, "a chip generator has no offset: its state is that of torch's CPU generator");
}

uint64_t ChipGenerator::get_offset() const {
  TORCH_CHECK_NOT_IMPLEMENTED(false, "a chip generator has no offset: its state is that of torch's CPU generator");
}

void ChipGenerator::set_state(const c10::TensorImpl& state) {
  at::Generator next = at::detail::createCPUGenerator();
  int64_t length = next.get_state().numel();
  uint64_t offset = 0;
  if (state.numel() == length + int64_t(sizeof offset)) {
    at::detail::check_rng_state(state);
    const auto* bytes = static_cast<const uint8_t*>(state.data());
    std::memcpy(&offset, bytes + length, sizeof offset);
    at::Tensor of_cpu = at::empty({length}, at::kByte);
    std::memcpy(of_cpu.data_ptr(), bytes, size_t(length));
    next.set_state(of_cpu);
  } else {
    next.unsafeGetGeneratorImpl()->set_state(state);
  }
  uint64_t seed = next.current_seed();
  replace(std::move(next), seed, offset);
}

c10::intrusive_ptr<c10::TensorImpl> ChipGenerator::get_state() const {
  at::Generator current = settled();
  std::lock_guard<std::mutex> draws(current.mutex());  // a kernel of another thread may be drawing
  at::Tensor state = current.get_state();
  std::lock_guard<std::mutex> lock(state_);
  if (offset_ == 0) return state.getIntrusivePtr();
  at::Tensor whole = at::empty({state.numel() + int64_t(sizeof offset_)}, at::kByte);
  std::memcpy(whole.data_ptr(), state.data_ptr(), size_t(state.numel()));
  std::memcpy(static_cast<uint8_t*>(whole.data_ptr()) + state.numel(), &offset_, sizeof offset_);
  return whole.getIntrusivePtr();
}

ChipGenerator* ChipGenerator::clone_impl() const {
  at::Generator current = settled();
  std::lock_guard<std::mutex> lock(current.mutex());
  auto* copy = new ChipGenerator(device().index());
  auto [seed, offset] = const_cast<ChipGenerator*>(this)->take_offsets(0);
  copy->replace(current.clone(), seed, offset);
  return copy;
}

const at::Generator& default_generator(c10::DeviceIndex device) {
  static std::mutex mutex;
  static auto* generators = new std::array<at::Generator, kMaxDevices>();
  if (device < 0) device = current_device();
  check_index(device);
  std::lock_guard<std::mutex> lock(mutex);
  at::Generator& generator = (*generators)[size_t(device)];
  if (!generator.defined()) generator = at::make_generator<ChipGenerator>(device, c10::default_rng_seed_val);
  return generator;
}

}  // namespace bringup
