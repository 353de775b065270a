// The properties of an operator, computed once from its schema.
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
  bool out = false;  // an out= argument: written, and may be resized
};

struct ReturnInfo {
  enum Kind : uint8_t { Fresh, FreshList, Argument, Value } kind = Fresh;
  int argument = -1;  // of kind Argument: the index of the argument that is returned
};

struct Op {
  c10::OperatorHandle handle;
  std::string name;  // "aten::add.Tensor"
  std::vector<ArgInfo> args;
  std::vector<ReturnInfo> returns;
  int mask_argument = -1;                // index of output_mask, which selects the gradients to compute
  bool is_view = false;                  // returns a view: metadata only, computed on the host
  bool writes = false;                   // has in-place or out= arguments
  bool overwrites = false;               // does not read the arguments that it writes
  bool bumps_versions = false;           // increments the versions of written lists, which autograd leaves to the kernel
  bool masks_decide = false;             // synchronous only if an index is a mask
  bool synchronous = false;              // the shape of a result, or a returned value, depends on data
  bool host_indices = false;             // accepts CPU tensors beside device tensors
  bool multiplies = false;               // has products that TF32 may compute, so its signature has torch's switches
  bool attends = false;                  // attention, which cuDNN computes unless torch's switches say otherwise
  bool uses_blas = false;                // a product of cuBLAS on CUDA, which keeps workspaces
  bool takes_indices = false;            // indexes its first argument: only the indices may be CPU tensors
  bool by_value = false;                 // the values of scalars decide output sizes
  std::atomic<uint64_t> host_dtypes{0};  // its row of the table in fallback.h
  std::atomic<bool> trust_meta{true};
  bool tried = true;  // before the first launch, its kernel may run once on scratch tensors (see probe.cpp)
  int content = 0;    // the value of the scratch tensors' elements
  int dtype_argument = -1;
  bool steered = true;   // the kernel may allocate its results directly in device memory
  bool in_place = true;  // returns only written arguments, whose sizes do not change
  std::atomic<int64_t> synchronous_calls{0}, learning_calls{0};

  explicit Op(const c10::OperatorHandle& handle);
};

// The argument of a call with this name; null if the operator has none.
const c10::IValue* argument_of(const Op& op, const c10::IValue* arguments, const char* name);

Op& find_op(const c10::OperatorHandle& handle);
Op& find_op(const char* name);  // of an operator without overloads
void for_each_op(const std::function<void(Op&)>& f);

// The name without namespace and overload: "add" of "aten::add.Tensor".
std::string base_name(const std::string& name);
// True for an output that is on the host even if the inputs are on the device.
bool is_host_output(const std::string& name, size_t index);
// True for operators that would otherwise decompose into a vendor library's operators or into many launches, although the CPU has
// one kernel for them.
bool is_kept_whole(const std::string& name);

// These count calls that made the host wait: at each call, or once to learn what a signature returns.
void count_synchronous(Op& op);
void count_learning(Op& op);
std::string launch_stats_json(int64_t signatures);

}  // namespace bringup
