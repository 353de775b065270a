// The random generator of a device: torch's CPU generator, advanced in the order in which the host launched.
#pragma once
#include <ATen/core/Generator.h>
#include <ATen/CPUGeneratorImpl.h>

#include <mutex>

#include "runtime/runtime.h"

namespace bringup {

// Note [Random numbers]
// Kernels draw from a CPU generator, so that one seed gives the numbers that the CPU would give. It advances when a kernel
// runs; if launches that draw come from several streams, each waits for the one before. Seeding and restoring a state
// replace the CPU generator: kernels under way keep the old one, and nothing has to wait. Reading the state waits.
class ChipGenerator final : public c10::GeneratorImpl {
 public:
  explicit ChipGenerator(c10::DeviceIndex device, uint64_t seed = c10::default_rng_seed_val);
  ~ChipGenerator() override;

  // For a kernel enqueued next on `stream`.
  at::Generator draw_on(Stream& stream);

  void set_current_seed(uint64_t seed) override;
  uint64_t current_seed() const override;
  uint64_t seed() override;
  void set_offset(uint64_t offset) override;
  uint64_t get_offset() const override;
  void set_state(const c10::TensorImpl& state) override;
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override;
  static c10::DeviceType device_type() { return kChip; }

 private:
  ChipGenerator* clone_impl() const override;
  void replace(at::Generator next, uint64_t seed);
  at::Generator settled() const;  // the current one, after the launches that still draw

  mutable std::mutex order_;  // guards what follows
  at::Generator current_;
  uint64_t seed_;
  Stream* last_ = nullptr;
};

const at::Generator& default_generator(c10::DeviceIndex device);

}  // namespace bringup
