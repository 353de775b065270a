// The worker's side of a launch: the CPU kernel runs on the device's memory.
#pragma once
#include <exception>
#include <vector>

#include "python/lines.h"
#include "runtime/runtime.h"
#include "launch/signature.h"

namespace bringup {

struct Marked;  // see unwritten.cpp

struct StorageRef {
  void* address = nullptr;
  size_t bytes = 0;
  int64_t allocation = 0;  // its number (memory.h)
};
StorageRef storage_of(const at::Tensor& tensor);  // empty if the tensor is not on the device

// The data that a kernel needs when the host has gone on. Device memory is held by address, not by reference: the host frees and
// reuses it in launch order (see memory.cpp).
struct Launch {
  SignaturePtr signature;
  Stream* stream;
  int64_t number;  // launch number in this process
  Line line;
  c10::SmallVector<c10::IValue, 8> arguments;  // with None in place of tensors
  c10::SmallVector<StorageRef, 6> storages;
  c10::SmallVector<int64_t, 8> offsets;          // per input
  c10::SmallVector<at::Tensor, 1> host_tensors;  // per input: a host tensor, or a stand-in for unknown memory
  c10::SmallVector<StorageRef, 2> outputs;       // per new output
  at::Generator draws_from;                      // the chip's generator
  at::Generator generator;                       // what it gives to a launch that runs on the host (see `draw`)
  bringup_kernel* kernel = nullptr;              // the driver's; null: it runs on the host
  bool planned = false;                          // a plan puts it on the host
  bool staged = false;                           // its addresses are the host's (see native.h)
  int threads;
  int64_t correlation = 0;
  bool guesses = false;  // a dry run computes on stand-ins: if the kernel fails, its outputs become zero
  // Only for a caller that waits:
  bool waited = false;
  bool executed = false;
  std::vector<at::Tensor> inputs;
  Stack results;
  std::exception_ptr error;
  FailurePtr cause;                                                             // the failure due to which it did not run
  std::vector<std::pair<const void*, std::shared_ptr<Marked>>> marked_results;  // by address
};

// Says in words what was launched: "aten::mm(float32[3, 4], float32[4, 5]) on chip:0, launched at train.py:12".
std::string describe_call(const Signature& signature, int device, const Line& line);

// True in a thread of the program, once it has launched.
extern thread_local bool launches_in_this_thread;

// Gives a launch that is about to be enqueued as a host function the generator that it draws from.
void draw(Launch& launch);

// True if a failed launch did not compute what this one reads. Its results are then marked, and it must not run.
bool skip_if_marked(Launch& launch);

// The host function that runs a Launch. Deletes the launch unless a caller waits for it.
void run_launch(void* launch, int should_execute);

// Computes a staged launch on this thread, for a comparison. Throws what the CPU kernel throws.
void run_reference(Launch& launch);

// Returns a CPU tensor over device memory. Only for code that runs in stream order.
at::Tensor alias(const c10::intrusive_ptr<c10::StorageImpl>& storage, const TensorMeta& meta, int64_t offset);
c10::intrusive_ptr<c10::StorageImpl> borrow(void* address, size_t bytes);

// Called in a catch block on the worker: stores the exception on the stream, with a description of the launch.
FailurePtr launch_failed(Stream& stream, int64_t launch, const std::string& what);

// Replaces torch's CPU allocator, so that kernels allocate results in the promised memory (see worker.cpp, Note [Steering]).
void install_steering();

}  // namespace bringup
