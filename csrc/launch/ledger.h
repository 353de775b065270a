// The ledger of a driver: what ran on the device and on the host, and for how long.
#pragma once
#include <cstdint>
#include <string>

#include "launch/worker.h"
#include "record/rows.h"

namespace bringup {

// What a stream did between two points: a kernel of the driver, a copy to the host, a host function, a copy to the device, or
// anything else.
enum class Part : int { Kernel, Down, Host, Up, Between };
constexpr int kParts = 5;

struct LedgerKey;

// Launches of an operator with the driver's kernels.
const LedgerKey* key_on_device(const std::string& op);
void count_on_device(const LedgerKey* key);
// `reason`: why it runs on the host. `kernel_possible`: false if no kernel of the driver could change that.
void count_on_host(const Launch& launch, const std::string& reason, bool kernel_possible, int64_t bytes_down, int64_t bytes_up);

// Marks a module call or the end of a step. Does nothing unless the run is measured and a device is open.
void mark_in_ledger(RowKind kind, int64_t object);

// Note [Measured parts]
// While a run is measured, an event is recorded at each point between two parts of a launch. The time between two events of a
// stream belongs to the part that ends there, so the parts of a stream add up to its whole time.
class Parts {
 public:
  // Begins a launch on a stream: what came before is between launches. Does nothing unless the run is measured.
  Parts(Stream& stream, const Launch& launch, bool on_device);
  void end(Part part);

 private:
  Stream* stream_ = nullptr;  // null: the run is not measured
  const LedgerKey* key_ = nullptr;
  int64_t mark_ = 0, launch_ = 0;
  int64_t rows_ = -1;  // of the recording, when the launch began
};

}  // namespace bringup
