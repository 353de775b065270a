// The random generator of a device: torch's CPU generator, advanced in the order in which the host launched, and an offset for
// the driver's kernels.
#pragma once
#include <ATen/core/Generator.h>
#include <ATen/CPUGeneratorImpl.h>

#include <mutex>
#include <utility>

#include "runtime/runtime.h"

namespace bringup {

// Note [Random numbers]
// Kernels draw from a CPU generator, so one seed gives the same numbers on the chip and on the CPU. The generator advances when
// a kernel runs. If launches that draw come from several streams, each stream waits for the one before. Seeding and restoring a
// state replace the CPU generator: kernels under way keep the old one, so nothing has to wait. Reading the state waits.
// The driver's own kernels compute random numbers from the seed and an offset, which the host advances, as CUDA's do. So nothing
// waits for them. The state is that of the CPU generator, followed by the offset if it is not zero.
//
// Note [Two mutexes of a generator]
// torch seeds a generator while it holds the GIL. A launch that draws may wait for a full queue, whose worker may need the GIL,
// and a recording may acquire the GIL to find a line. So only threads that draw lock `draws_`, and they release the GIL while
// they wait for it. They hold it while one stream is made to wait for another. `state_` is only held for a few assignments.
class ChipGenerator final : public c10::GeneratorImpl {
 public:
  explicit ChipGenerator(c10::DeviceIndex device, uint64_t seed = c10::default_rng_seed_val);
  ~ChipGenerator() override;

  // Returns the CPU generator for the kernel that the caller enqueues next on `stream`.
  at::Generator draw_on(Stream& stream);
  // Returns the seed, and the offset for a kernel that draws `count` numbers.
  std::pair<uint64_t, uint64_t> take_offsets(uint64_t count);

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
  void replace(at::Generator next, uint64_t seed, uint64_t offset);
  at::Generator settled() const;  // waits for the launches that still draw, then returns the current generator

  std::mutex draws_;          // taken before `state_`
  mutable std::mutex state_;  // guards the members below
  at::Generator current_;
  uint64_t seed_;
  uint64_t offset_ = 0;
  Stream* last_ = nullptr;  // the stream of the latest draw from `current_`
};

const at::Generator& default_generator(c10::DeviceIndex device);

}  // namespace bringup
