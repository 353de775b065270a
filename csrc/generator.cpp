#include "generator.h"

#include <ATen/Utils.h>

#include <array>

namespace bringup {

ChipGenerator::ChipGenerator(c10::DeviceIndex device, uint64_t seed)
    : c10::GeneratorImpl(c10::Device(kChip, device), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)),
      current_(at::detail::createCPUGenerator(seed)),
      seed_(seed) {}

ChipGenerator::~ChipGenerator() = default;

at::Generator ChipGenerator::draw_on(Stream& stream) {
  std::lock_guard<std::mutex> lock(order_);
  if (last_) follow(stream, *last_);
  last_ = &stream;
  return current_;
}

void ChipGenerator::replace(at::Generator next) {
  std::lock_guard<std::mutex> lock(order_);
  current_ = std::move(next);
  last_ = nullptr;
}

void ChipGenerator::settle() const {
  Stream* last;
  {
    std::lock_guard<std::mutex> lock(order_);
    last = last_;
  }
  if (last) synchronize(*last);
}

void ChipGenerator::set_current_seed(uint64_t seed) {
  replace(at::detail::createCPUGenerator(seed));
  seed_ = seed;
}

uint64_t ChipGenerator::current_seed() const { return seed_; }

uint64_t ChipGenerator::seed() {
  set_current_seed(c10::detail::getNonDeterministicRandom());
  return seed_;
}

void ChipGenerator::set_offset(uint64_t offset) {
  TORCH_CHECK_NOT_IMPLEMENTED(false, "a chip generator has no offset: its state is that of torch's CPU generator");
}

uint64_t ChipGenerator::get_offset() const {
  TORCH_CHECK_NOT_IMPLEMENTED(false, "a chip generator has no offset: its state is that of torch's CPU generator");
}

void ChipGenerator::set_state(const c10::TensorImpl& state) {
  at::Generator next = at::detail::createCPUGenerator();
  next.unsafeGetGeneratorImpl()->set_state(state);
  seed_ = next.current_seed();
  replace(std::move(next));
}

c10::intrusive_ptr<c10::TensorImpl> ChipGenerator::get_state() const {
  settle();
  return current_.unsafeGetGeneratorImpl()->get_state();
}

ChipGenerator* ChipGenerator::clone_impl() const {
  settle();
  auto* copy = new ChipGenerator(device().index(), seed_);
  copy->replace(current_.clone());
  return copy;
}

const at::Generator& default_generator(c10::DeviceIndex device) {
  static std::mutex mutex;
  static auto* generators = new std::array<at::Generator, kMaxDevices>();
  if (device < 0) device = current_device();
  check_index(device);
  std::lock_guard<std::mutex> lock(mutex);
  at::Generator& found = (*generators)[size_t(device)];
  if (!found.defined()) found = at::make_generator<ChipGenerator>(device, c10::default_rng_seed_val);
  return found;
}

}  // namespace bringup
