// Kernels of the driver, and the copies around host functions where the host cannot address the device's memory.
#pragma once
#include <memory>
#include <string>

#include "launch/worker.h"

namespace bringup {

// Returns the driver's kernel for a launch; null if it runs on the host. Asks the driver once per signature and device.
bringup_kernel* driver_kernel(const Launch& launch);

// Enqueues a launch: as its kernel, or as a host function, with copies if the device's memory is separate.
void start_launch(std::unique_ptr<Launch> launch);

// Says in words what the kernel with this launch number was; empty if it is not among the latest.
std::string describe_numbered(int64_t number);

// Why a launch runs on the host, and whether a kernel of the driver could change that.
struct OnHost {
  std::string reason;
  bool kernel_possible = false;
};
OnHost why_on_host(const Launch& launch);

// Counts a launch that runs on the host.
void count_on_host(const Launch& launch, int64_t bytes_down, int64_t bytes_up);

// Note [Staging]
// A host function must not call the driver, so it cannot copy. The runtime enqueues a copy of each range that the launch reads or
// writes, then the host function on these copies, then copies of the ranges that it wrote: all in stream order, without waiting.
class Staging {
 public:
  // Enqueues the copies to the host, and redirects the launch to them. Does nothing if the memory is not separate.
  explicit Staging(Launch& launch);
  Staging(const Staging&) = delete;
  ~Staging();  // Gives the host memory back in stream order.
  void write_back();

 private:
  struct Range {
    char *device, *host;
    size_t bytes;
  };
  char* take(size_t bytes, size_t skew);
  void stage_storages(Launch& launch);
  void stage_outputs(Launch& launch);
  void give_back();
  Stream& stream_;
  const char* about_;
  c10::SmallVector<std::pair<char*, size_t>, 6> blocks_;
  c10::SmallVector<Range, 6> written_;
};

// Enqueues a copy of `content` to device memory with this layout.
void put(Stream& stream, void* home, const TensorMeta& meta, const at::Tensor& content);

}  // namespace bringup
