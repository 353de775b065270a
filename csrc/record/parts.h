// Rows for operators on sparse and quantized tensors, whose parts are dense tensors.
#pragma once
#include <vector>

#include "record/recorder.h"

namespace bringup {

// While it lives, this thread's copies, waits and launches are the emulation's own and get no rows; allocations do.
class Unrecorded {
 public:
  Unrecorded() { enter(); }
  ~Unrecorded() { leave(); }
  Unrecorded(const Unrecorded&) = delete;
  static void enter() { ++depth; }
  static void leave() { --depth; }
  static bool on() { return depth > 0; }

 private:
  static thread_local int depth;
};

// The dense tensors that a tensor consists of: values first, then indices. A strided tensor has itself.
std::vector<at::Tensor> parts_of(const at::Tensor& tensor);

// Describes a call before it runs, and records one row for it afterwards. The row's operator is `sparse::mm` for `aten::mm` if
// a tensor is sparse; such a tensor is described by its values, its indices follow, and `self.sizes` has the sizes of `self`.
class PartsRow {
 public:
  PartsRow(const Op& op, const c10::IValue* arguments, const Stream& stream);
  void record(const Stack& results, uint8_t flags);

 private:
  void describe(const at::Tensor& tensor, bool written);
  void describe(const c10::IValue& value, bool written, Text& text);

  const Op& op_;
  const Stream& stream_;
  Line line_;
  bool sparse_ = false;
  int slots_ = 0;
  Text inputs_, arguments_;
  std::vector<std::pair<const void*, bool>> uses_;  // storage -> true if it is written
};

}  // namespace bringup
