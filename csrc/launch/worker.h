// A launch on the worker's side: the CPU kernel runs on the device's memory.
#pragma once
#include <exception>
#include <vector>

#include "python/lines.h"
#include "runtime/runtime.h"
#include "launch/signature.h"

namespace bringup {

struct StorageRef {
  void* address = nullptr;
  size_t bytes = 0;
  int64_t allocation = 0;  // its number (memory.h)
};
StorageRef storage_of(const at::Tensor& tensor);  // of the device; empty for others

// All that a kernel needs after the host has gone on. Device memory is held by address, not by reference: the host
// frees and reuses it in launch order (see memory.cpp).
struct Launch {
  SignaturePtr signature;
  Stream* stream;
  int64_t number;  // of the launch in this process
  Line line;
  c10::SmallVector<c10::IValue, 8> arguments;  // tensors of the device are None here
  c10::SmallVector<StorageRef, 6> storages;
  c10::SmallVector<int64_t, 8> offsets;          // per input
  c10::SmallVector<at::Tensor, 1> host_tensors;  // per input, where it is a host tensor or stands in for unknown memory
  c10::SmallVector<StorageRef, 2> outputs;       // per fresh output
  at::Generator generator;
  int threads;
  int64_t correlation = 0;
  bool guesses = false;  // a dry run computes on stand-ins: what they make fail is zero
  // A waiting caller takes these:
  bool waited = false;
  bool executed = false;
  std::vector<at::Tensor> inputs;
  Stack results;
  std::exception_ptr error;
  FailurePtr cause;  // it did not run since what it reads was not computed
};

// The host function that runs a Launch. Deletes it, unless a caller waits for it.
void run_launch(void* launch, int should_execute);

// A CPU tensor over memory of the device. Only for code that runs in stream order.
at::Tensor alias(const c10::intrusive_ptr<c10::StorageImpl>& storage, const TensorMeta& meta, int64_t offset);
c10::intrusive_ptr<c10::StorageImpl> borrow(void* address, size_t bytes);

// Inside a catch block on the worker: leaves the exception on the stream, with what was launched and where.
FailurePtr launch_failed(Stream& stream, int64_t launch, const std::string& what);

// Puts results where the host was promised them (see worker.cpp, Note [Steering]). Replaces torch's CPU allocator once.
void install_steering();

}  // namespace bringup
