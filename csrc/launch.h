// One operation on its way: signature, outputs, queue, kernel.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>
#include <c10/util/SmallVector.h>
#include <c10/util/intrusive_ptr.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "lines.h"
#include "runtime.h"

namespace bringup {

using Stack = torch::jit::Stack;

enum class ArgKind : uint8_t { Tensor, Tensors, OptionalTensors, Scalar, Generator, Other };

struct ArgInfo {
  ArgKind kind = ArgKind::Other;
  bool written = false;
};

struct ReturnInfo {
  enum Kind : uint8_t { Fresh, FreshList, Argument, Value } kind = Fresh;
  int argument = -1;  // Argument: which one is returned
};

// What the schema says of an operator, computed once.
struct Op {
  c10::OperatorHandle handle;
  std::string name;  // "aten::add.Tensor"
  std::vector<ArgInfo> args;
  std::vector<ReturnInfo> returns;
  int mask_argument = -1;     // output_mask: which gradients are wanted
  bool is_view = false;       // returns a view: metadata only, runs on the host
  bool writes = false;        // has in-place or out= arguments
  bool masks_decide = false;  // synchronous only if an index is a mask
  bool synchronous = false;   // its result's shape, or a value it returns, depends on data
  bool host_indices = false;  // CPU tensors beside device tensors are legal
  bool by_value = false;      // scalars decide output sizes
  std::atomic<bool> trust_meta{true};
  bool steered = true;   // results may be born in device memory
  bool in_place = true;  // returns nothing but written arguments, which keep their size
  std::atomic<int64_t> synchronous_calls{0}, learning_calls{0};

  explicit Op(const c10::OperatorHandle& handle);
};

struct TensorMeta {
  bool defined = false;
  bool on_host = false;
  bool conjugate = false, negative = false;
  c10::ScalarType dtype = c10::ScalarType::Undefined;
  c10::SmallVector<int64_t, 5> sizes, strides;
  size_t nbytes = 0;  // from the first to the last element, for fresh outputs

  bool same_layout(const TensorMeta& other) const {
    return defined == other.defined && dtype == other.dtype && sizes == other.sizes && strides == other.strides;
  }
};

// Note [The signature is the hinge]
// Everything that decides an operation's output metadata, its work and its price: operator, dtypes, sizes, strides, which
// arguments share memory, the non-tensor arguments. Interned, so that the second launch of a signature is a table
// look-up: no meta kernel, no wait. Values of `Scalar` arguments (a learning rate) are left out: they change with every
// step and decide no shape, except in factories.
struct Signature : c10::intrusive_ptr_target {
  enum State : int { Unknown, Known, Synchronous };

  int64_t id = -1;
  Op* op = nullptr;
  std::vector<uint64_t> key;
  uint64_t hash = 0;

  std::vector<TensorMeta> inputs;   // one per tensor argument, lists flattened
  std::vector<int16_t> storage_of;  // input -> index of its storage; -1: host tensor or undefined
  std::vector<bool> written;        // input -> is it written?
  int storages = 0;

  std::atomic<int> state{Unknown};
  std::vector<TensorMeta> outputs;                  // fresh tensors in order of the returns, lists flattened
  std::vector<int> list_sizes;                      // length of each FreshList return
  std::vector<std::pair<int, TensorMeta>> resized;  // written inputs that get another size
};

using SignaturePtr = c10::intrusive_ptr<Signature>;

// The boxed kernel: every operator on device "chip" arrives here.
void launch_boxed(Op& op, Stack* stack);
Op& find_op(const c10::OperatorHandle& handle);

at::Tensor new_tensor(const TensorMeta& meta, c10::DeviceIndex device, const char* op);

// A CPU tensor over memory of the device. Only for code that runs in stream order.
at::Tensor alias_on_host(const at::Tensor& device_tensor);

// Runs `f` in stream order (with a flag whether to execute), without waiting.
void enqueue(Stream& stream, std::function<void(bool)> f);
void launch_failed(Stream& stream, const std::string& what);  // inside a catch block, on the worker

// Counts a call that made the host wait.
void count_synchronous(Op& op);

std::string launch_stats_json();
void register_kernels();

}  // namespace bringup
