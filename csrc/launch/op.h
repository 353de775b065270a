// What the schema says of an operator, computed once.
#pragma once
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>

#include <atomic>
#include <functional>
#include <string>
#include <vector>

namespace bringup {

using Stack = torch::jit::Stack;

enum class ArgKind : uint8_t { Tensor, Tensors, OptionalTensors, Scalar, Generator, Other };

struct ArgInfo {
  ArgKind kind = ArgKind::Other;
  bool written = false;
  bool out = false;  // written, and may get another size for it
};

struct ReturnInfo {
  enum Kind : uint8_t { Fresh, FreshList, Argument, Value } kind = Fresh;
  int argument = -1;  // Argument: which one is returned
};

struct Op {
  c10::OperatorHandle handle;
  std::string name;  // "aten::add.Tensor"
  std::vector<ArgInfo> args;
  std::vector<ReturnInfo> returns;
  int mask_argument = -1;                // output_mask: which gradients are wanted
  bool is_view = false;                  // returns a view: metadata only, runs on the host
  bool writes = false;                   // has in-place or out= arguments
  bool overwrites = false;               // and reads none of those
  bool bumps_versions = false;           // of written lists, which autograd leaves to the kernel
  bool masks_decide = false;             // synchronous only if an index is a mask
  bool synchronous = false;              // its result's shape, or a value it returns, depends on data
  bool host_indices = false;             // CPU tensors beside device tensors are legal
  bool by_value = false;                 // scalars decide output sizes
  std::atomic<uint64_t> host_dtypes{0};  // its row of the table in fallback.h
  std::atomic<bool> trust_meta{true};
  bool tried = true;  // its kernel may run once more, with other content, before a first launch (see probe.cpp)
  int content = 0;    // what it is tried with
  int dtype_argument = -1;
  bool steered = true;   // results may be born in device memory
  bool in_place = true;  // returns nothing but written arguments, which keep their size
  std::atomic<int64_t> synchronous_calls{0}, learning_calls{0};

  explicit Op(const c10::OperatorHandle& handle);
};

Op& find_op(const c10::OperatorHandle& handle);
void for_each_op(const std::function<void(Op&)>& f);

// Outputs that live on the host even for a device's inputs.
bool is_host_output(const std::string& name, size_t index);
// Written by hand in ops.cpp.
bool has_native_kernel(const std::string& name);
// Would decompose into operators for one vendor's library, or into many launches, where the CPU has one kernel.
bool is_kept_whole(const std::string& name);

// Count calls that made the host wait: every time, or to learn what a signature returns.
void count_synchronous(Op& op);
void count_learning(Op& op);
std::string launch_stats_json(int64_t signatures);

}  // namespace bringup
