// The arguments of a call, and the signature that they are interned under.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>
#include <c10/util/intrusive_ptr.h>

#include <atomic>
#include <string>
#include <vector>

#include "launch/op.h"
#include "runtime/runtime.h"

namespace bringup {

// torch's switches for CUDA's libraries: the products allowed in TF32 (torch.backends.cuda.matmul, torch.backends.cudnn.conv and
// .rnn), and attention without cuDNN (torch.nn.attention.sdpa_kernel).
enum Switch : uint8_t { kTf32Matmul = 1, kTf32Convolution = 2, kTf32Rnn = 4, kNoCudnnAttention = 8 };
constexpr uint8_t kTf32Default = kTf32Convolution | kTf32Rnn;
uint8_t tf32_switches();

struct TensorMeta {
  bool defined = false;
  bool conjugate = false, negative = false;
  c10::ScalarType dtype = c10::ScalarType::Undefined;
  c10::SmallVector<int64_t, 5> sizes, strides;
  size_t nbytes = 0;  // from the first to the last element

  bool same_layout(const TensorMeta& other) const {
    return defined == other.defined && dtype == other.dtype && sizes == other.sizes && strides == other.strides;
  }
};

// The metadata of what a call returns, independent of content.
struct Results {
  std::vector<TensorMeta> outputs;                  // the new tensors in the order of the returns, lists flattened
  std::vector<int> list_sizes;                      // the length of each FreshList return
  std::vector<std::pair<int, TensorMeta>> resized;  // the written inputs whose size changes
};

struct DriverKernels;  // see native.cpp

// Note [The signature is the hinge]
// A signature holds everything that decides an operation's output metadata, its work and its price: operator, dtypes, sizes,
// strides, shared memory between arguments, and the non-tensor arguments. It is interned, so the second launch of a signature
// only looks it up, without a meta kernel and without waiting. Values of `Scalar` arguments, such as a learning rate, are not
// part of it: they may change with each step, and decide no shape except in factories.
struct Signature : c10::intrusive_ptr_target, Results {
  enum State : int { Unknown, Known, Synchronous };

  int64_t id = -1;
  Op* op = nullptr;
  std::vector<uint64_t> key;
  uint64_t hash = 0;

  std::vector<TensorMeta> inputs;     // one per tensor argument, lists flattened
  std::vector<int32_t> storage_of;    // input -> index of its storage; -1: host tensor or undefined
  std::vector<bool> written;          // input -> true if it is written
  std::vector<bool> storage_written;  // storage -> true if one of its inputs is written
  std::vector<int32_t> same_as;       // input -> an earlier input that is the same tensor, in operators that write; -1: none
  bool has_same = false;
  // The dtype that the operation computes in: the dtype of the first device tensor of the highest kind (complex, floating,
  // integer, bool). Tensors without dimensions count only if there are no others. So an embedding is float32, though its indices
  // are int64.
  c10::ScalarType dtype = c10::ScalarType::Undefined;

  uint8_t switches = 0;  // torch's at the launch, as bits of `Switch`; 0 for operators that have none

  mutable std::atomic<int64_t> recorded{0};  // recording << 32 | number in the recording
  std::atomic<int> state{Unknown};           // when it is Known, the results are set and do not change any more
  std::atomic<bool> doubtful{false};         // true if the kernel may refuse the call (see probe.cpp)
  mutable std::atomic<DriverKernels*> driver_kernels{nullptr};  // null until the driver has been asked (see native.cpp)

  ~Signature() override;
};

using SignaturePtr = c10::intrusive_ptr<Signature>;

// A tensor argument of one call; lists are flattened.
struct Slot {
  const at::Tensor* tensor;
  int argument;
};

using Slots = c10::SmallVector<Slot, 8>;

void collect(const Op& op, const c10::IValue* arguments, Slots& slots);
// Returns 1 if a scalar is out of the range of the call's dtype, 2 if it is also out of the range of the dtype that kernels
// compute in, else 0. Kernels refuse one or the other. `first` is the first tensor's dtype.
uint64_t overflow_of(const Op& op, c10::ScalarType first, const c10::IValue* arguments, size_t argument);
// True if overlaps between the tensors of a call are part of its signature. They are in calls of few tensors that write.
bool pairs_matter(const Op& op, const Slots& slots, size_t storages);
SignaturePtr intern(Op& op, const Slots& slots, const c10::IValue* arguments);
// Raises torch's error if an element of a long list overlaps the element of another list that it is computed with.
void refuse_overlaps(const Signature& signature, const Slots& slots);
int64_t interned_signatures();

bool on_chip(const at::Tensor& tensor);
TensorMeta meta_of(const at::Tensor& tensor);
std::string text_of(const TensorMeta& meta);  // "float32[3, 4]"
void mark_conjugate(const at::Tensor& tensor, const TensorMeta& meta);

// Returns the call's stack, with each tensor replaced by `replace(slot index)`, devices by `device`, and generators by
// `generator`.
template <class Replace>
Stack rebuild(const Op& op, const c10::IValue* arguments, c10::DeviceType device, const at::Generator* generator,
              Replace replace) {
  Stack stack;
  stack.reserve(op.args.size());
  int slot = 0;
  for (size_t i = 0; i < op.args.size(); ++i) {
    const c10::IValue& value = arguments[i];
    switch (op.args[i].kind) {
      case ArgKind::Tensor:
        if (value.isTensor())
          stack.emplace_back(replace(slot++));
        else
          stack.emplace_back(value);
        break;
      case ArgKind::Tensors:
        if (value.isList()) {
          c10::List<at::Tensor> list;
          for (const c10::IValue& element : value.toListRef())
            if (element.isTensor()) list.push_back(replace(slot++));
          stack.emplace_back(std::move(list));
        } else {
          stack.emplace_back(value);
        }
        break;
      case ArgKind::OptionalTensors:
        if (value.isList()) {
          c10::List<std::optional<at::Tensor>> list;
          for (const c10::IValue& element : value.toListRef()) {
            if (element.isTensor())
              list.push_back(replace(slot++));
            else
              list.push_back(std::nullopt);
          }
          stack.emplace_back(std::move(list));
        } else {
          stack.emplace_back(value);
        }
        break;
      case ArgKind::Generator:
        if (generator && generator->defined())
          stack.emplace_back(*generator);
        else
          stack.emplace_back();
        break;
      default:
        if (value.isDevice())
          stack.emplace_back(c10::Device(device));
        else
          stack.emplace_back(value);
    }
  }
  return stack;
}

}  // namespace bringup
