// The frames of a Python thread, read directly in memory.
#pragma once
#include <cstddef>
#include <cstdint>

#include "python/python.h"

namespace bringup {

// Note [Reading frames without the GIL]
// torch launches with the GIL released, and acquiring it for each launch would take longer than the rest of the launch. The
// frames of a thread do not change while the thread runs this code, so they can be read directly in memory. The layouts of these
// releases of CPython are final (Include/cpython/pystate.h and code.h, Include/internal/pycore_frame.h; for 3.10
// Include/cpython/frameobject.h). The first call compares the result with the API's. If they differ, the API is used, as in other
// versions.
struct FrameLayout {
  int python;  // 311 is Python 3.11
  // Offsets. PyThreadState: of the innermost frame, or of a _PyCFrame that has it.
  size_t current, current_in_cframe;
  // The frame: its code, its caller, the address of its instruction (its number in 3.10), its owner, its locals.
  size_t code, previous, instruction, owner, locals;
  size_t bytecode;  // PyCodeObject: of the instructions
};
constexpr size_t kNone = size_t(-1);
constexpr FrameLayout kFrameLayouts[] = {
    {310, 24, kNone, 32, 24, 96, kNone, 352, kNone},
    {311, 56, 8, 32, 48, 56, 69, 72, 184},
    {312, 56, 0, 0, 8, 56, 70, 72, 192},
    {313, 72, kNone, 0, 8, 56, 70, 72, 200},
};

// The layout of this process's Python; null if it is unknown.
inline const FrameLayout* frame_layout() {
  static const FrameLayout* const layout = []() -> const FrameLayout* {
    for (const FrameLayout& each : kFrameLayouts)
      if (each.python == python_version()) return &each;
    return nullptr;
  }();
  return layout;
}

// A frame of a thread, or none.
class Frame {
 public:
  static Frame innermost(const FrameLayout& layout, const void* thread) {
    auto* current = at<const void*>(thread, layout.current);
    if (layout.current_in_cframe != kNone) current = at<const void*>(current, layout.current_in_cframe);
    return Frame(layout, current);
  }

  explicit operator bool() const { return frame_ != nullptr; }
  PyObject* code() const { return at<PyObject*>(frame_, layout_->code); }
  Frame back() const { return Frame(*layout_, at<const void*>(frame_, layout_->previous)); }
  void* first_local() const { return at<void*>(frame_, layout_->locals); }
  int32_t instruction() const {  // in bytes, as PyFrame_GetLasti
    if (layout_->bytecode == kNone) return 2 * at<int32_t>(frame_, layout_->instruction);
    return int32_t(at<const char*>(frame_, layout_->instruction) - reinterpret_cast<const char*>(code()) - layout_->bytecode);
  }

 private:
  // Since 3.12, a call of the interpreter from C has a frame in between, without code of Python's.
  Frame(const FrameLayout& layout, const void* frame) : layout_(&layout), frame_(frame) {
    constexpr char kOwnedByC = 3;
    if (layout.owner == kNone) return;
    while (frame_ && at<char>(frame_, layout.owner) == kOwnedByC) frame_ = at<const void*>(frame_, layout.previous);
  }

  template <class T>
  static T at(const void* base, size_t offset) {
    return *reinterpret_cast<const T*>(static_cast<const char*>(base) + offset);
  }

  const FrameLayout* layout_;
  const void* frame_;
};

}  // namespace bringup
