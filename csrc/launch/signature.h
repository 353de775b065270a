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

struct TensorMeta {
  bool defined = false;
  bool conjugate = false, negative = false;
  c10::ScalarType dtype = c10::ScalarType::Undefined;
  c10::SmallVector<int64_t, 5> sizes, strides;
  size_t nbytes = 0;  // from the first to the last element, for fresh outputs

  bool same_layout(const TensorMeta& other) const {
    return defined == other.defined && dtype == other.dtype && sizes == other.sizes && strides == other.strides;
  }
};

// What a call returns, whatever its content.
struct Results {
  std::vector<TensorMeta> outputs;                  // fresh tensors in order of the returns, lists flattened
  std::vector<int> list_sizes;                      // length of each FreshList return
  std::vector<std::pair<int, TensorMeta>> resized;  // written inputs that get another size
};

// Note [The signature is the hinge]
// Everything that decides an operation's output metadata, its work and its price: operator, dtypes, sizes, strides, which
// arguments share memory, the non-tensor arguments. Interned, so that the second launch of a signature is a table
// look-up: no meta kernel, no wait. Values of `Scalar` arguments (a learning rate) are left out: they change with every
// step and decide no shape, except in factories.
struct Signature : c10::intrusive_ptr_target, Results {
  enum State : int { Unknown, Known, Synchronous };

  int64_t id = -1;
  Op* op = nullptr;
  std::vector<uint64_t> key;
  uint64_t hash = 0;

  std::vector<TensorMeta> inputs;     // one per tensor argument, lists flattened
  std::vector<int32_t> storage_of;    // input -> index of its storage; -1: host tensor or undefined
  std::vector<bool> written;          // input -> is it written?
  std::vector<bool> storage_written;  // storage -> is any of its inputs written?
  std::vector<int32_t> same_as;       // input -> the earlier one that is the same tensor, if one is written; -1: none
  bool has_same = false;
  // The dtype that the operation computes in: that of the first device tensor of the highest kind (complex, floating, integer,
  // bool), those without dimensions only if there are no others. So an embedding is float32, though its indices are int64.
  c10::ScalarType dtype = c10::ScalarType::Undefined;

  mutable std::atomic<int64_t> recorded{0};  // recording << 32 | number in it
  std::atomic<int> state{Unknown};           // the results are there, and do not change, once it is Known
  std::atomic<bool> doubtful{false};         // may the kernel refuse the call? see probe.cpp
};

using SignaturePtr = c10::intrusive_ptr<Signature>;

// A tensor argument of one call; lists are flattened.
struct Slot {
  const at::Tensor* tensor;
  int argument;
};

using Slots = c10::SmallVector<Slot, 8>;

void collect(const Op& op, const c10::IValue* arguments, Slots& slots);
// Is a scalar beyond the range of the dtype that a call is about (1), also of the one that kernels compute it in (2)? Kernels
// refuse one or the other. `first`: the first tensor's dtype.
uint64_t overflow_of(const Op& op, c10::ScalarType first, const c10::IValue* arguments, size_t argument);
// Is it part of the signature which of the call's few tensors overlap?
bool pairs_matter(const Op& op, const Slots& slots, size_t storages);
SignaturePtr intern(Op& op, const Slots& slots, const c10::IValue* arguments);
// Raises as torch's kernels do where an element of a long list overlaps the element of another list that it is computed with.
void refuse_overlaps(const Signature& signature, const Slots& slots);
int64_t interned_signatures();

bool on_chip(const at::Tensor& tensor);
TensorMeta meta_of(const at::Tensor& tensor);
std::string text_of(const TensorMeta& meta);  // "float32[3, 4]"
void mark_conjugate(const at::Tensor& tensor, const TensorMeta& meta);

// The call's stack with every device tensor replaced by `replace(slot index)`, other values by `pass`.
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
