// The Python line that is running, to which launches and allocations are attributed.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace bringup {

enum class Phase : uint8_t { Forward, Backward, Optimizer };

// The innermost frame of the user's program; frames of torch and bringup are skipped. It refers to the code object by address.
// These code objects are kept alive, so a Line is valid for the life of the process.
struct Line {
  void* code = nullptr;      // PyCodeObject*
  int32_t instruction = -1;  // byte offset
  bool backward = false;     // launched by autograd: the line is the forward operator's
  // Set only while a program is recorded:
  Phase phase = Phase::Forward;
  int32_t module = -1;  // number of the innermost torch.nn.Module that is being called (bringup.recording.modules)
  int64_t runs = 0;     // in a backward pass: the number of the node that runs; the phase of Python code in it is Forward
  int32_t stack = -1;   // number of the chain of the program's frames; -1: `keep_stacks` is off
};

// Takes about 20 ns. The caller need not hold the GIL. Empty on threads without Python frames.
Line current_line();

// A frame of the program, and the number of its caller's chain; -1: it has no caller. A chain has the number of its innermost
// frame.
struct StackFrame {
  int32_t caller;
  Line line;
};
// Keeps the chain of frames for each line from now on, or no longer. Returns the number of the calling thread's chain.
int32_t keep_stacks(bool keep);
std::vector<StackFrame> kept_stacks();             // By number; a caller's number is smaller than its own.
std::string function_of(const StackFrame& frame);  // Its name. Acquires the GIL.
int64_t latest_node();                   // The number of the node that autograd made most recently on this thread; 0: none yet.
std::string describe(const Line& line);  // "train.py:12", or "" for an empty line. Acquires the GIL.

// The frames that a signal handler interrupts, innermost first, as code objects and instructions. A handler can store these
// safely; `user_line` interprets them later. Empty before `prepare_raw_frames`, and if the layout of frames is unknown.
constexpr size_t kRawFrames = 24;
struct RawFrames {
  void* code[kRawFrames];
  int32_t instruction[kRawFrames];
  int count;
};
void prepare_raw_frames();
RawFrames raw_frames();
Line user_line(const RawFrames& frames);  // The user's innermost frame. Acquires the GIL.

bool within_machinery();  // True if the calling thread is compiling or importing.

}  // namespace bringup
