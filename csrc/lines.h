// Which Python line is running: where a launch or an allocation came from.
#pragma once
#include <cstdint>
#include <string>

namespace bringup {

// The innermost frame of the user's program, not of torch or bringup. Held by address; code objects seen here are kept
// alive, so a Line is valid for the life of the process.
struct Line {
  void* code = nullptr;      // PyCodeObject*
  int32_t instruction = -1;  // byte offset
  bool backward = false;     // launched by autograd; the line is that of the forward op, where known
};

// Costs some 20 ns; needs no GIL. Empty on threads without Python frames.
Line current_line();
std::string describe(const Line& line);  // "train.py:12"; "" for none. Takes the GIL.

// Lets other Python threads run while this one waits in C++. Does nothing on threads that do not hold the GIL.
class ReleaseGil {
 public:
  ReleaseGil();
  ~ReleaseGil();

 private:
  void* state_;
};

// Runs bringup's Python side of first use: choose the chip from the environment. Raises its error as c10::Error.
void configure_from_python();

}  // namespace bringup
