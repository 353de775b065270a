// Which Python line is running: where a launch or an allocation came from.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace bringup {

enum class Phase : uint8_t { Forward, Backward, Optimizer };

// The innermost frame of the user's program, not of torch or bringup. Held by address; code objects seen here are kept
// alive, so a Line is valid for the life of the process.
struct Line {
  void* code = nullptr;      // PyCodeObject*
  int32_t instruction = -1;  // byte offset
  bool backward = false;     // launched by autograd; the line is that of the forward op, where known
  // Only while a program is recorded:
  Phase phase = Phase::Forward;
  int32_t module = -1;  // number of the innermost torch.nn.Module that is being called (bringup.recording.modules)
};

// Costs some 20 ns; needs no GIL. Empty on threads without Python frames.
Line current_line();
std::string describe(const Line& line);  // "train.py:12"; "" for none. Takes the GIL.

// What a signal handler can take down of the frames that it interrupts, to be understood later: code objects, which
// outlive their functions' calls, and instructions. Innermost first; none before `prepare_raw_frames`, or where the
// layout of frames is not known.
constexpr size_t kRawFrames = 24;
struct RawFrames {
  void* code[kRawFrames];
  int32_t instruction[kRawFrames];
  int count;
};
void prepare_raw_frames();
RawFrames raw_frames();
Line user_line(const RawFrames& frames);  // the innermost of the user's. Takes the GIL

bool within_machinery();  // is the thread compiling or importing something?

}  // namespace bringup
