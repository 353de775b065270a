#include "python/lines.h"

#include <ATen/SequenceNumber.h>
#include <ATen/record_function.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/graph_task.h>

#include <c10/util/SmallVector.h>
#include <c10/util/hash.h>

#include <array>
#include <atomic>
#include <filesystem>
#include <limits>
#include <mutex>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "python/frames.h"
#include "python/modules.h"
#include "python/python.h"
#include "python/whose.h"

namespace bringup {
namespace {

bool is_user(PyObject* code) { return whose(code) == Whose::User; }

Ref innermost_by_api() { return Ref::share(PyEval_GetFrame()); }
Ref code_of(const Ref& frame) { return Ref(PyFrame_GetCode(frame.get())); }
int32_t instruction_of(const Ref& frame) {
  if (PyFrame_GetLasti) return PyFrame_GetLasti(frame.get());
  return int32_t(PyLong_AsLong(Ref(PyObject_GetAttrString(frame.get(), "f_lasti")).get()));
}

Line line_by_api() {
  Gil gil;
  Line line;
  const ModuleTargets* targets = PyFrame_GetVarString ? module_targets() : nullptr;
  std::vector<void*> modules;
  for (Ref frame = innermost_by_api(); frame; frame = Ref(line.code && !targets ? nullptr : PyFrame_GetBack(frame.get()))) {
    Ref code = code_of(frame);
    if (!line.code && is_user(code.get())) line = {code.get(), instruction_of(frame)};
    if (targets && code.get() == targets->call) {
      Ref self(PyFrame_GetVarString(frame.get(), "self"));
      if (self) modules.push_back(self.get());  // the frame keeps it alive
      PyErr_Clear();
    }
    if (targets && modules.empty() && targets->is_optimizer(code.get())) line.phase = Phase::Optimizer;
  }
  if (!modules.empty() && line.phase == Phase::Forward) line.module = number_of_module(modules[0], [&] { return modules; });
  return line;
}

bool machinery_by_api() {
  Gil gil;
  for (Ref frame = innermost_by_api(); frame; frame = Ref(PyFrame_GetBack(frame.get())))
    if (whose(code_of(frame).get()) == Whose::Machinery) return true;
  return false;
}

bool machinery_by_layout(const void* thread) {
  for (Frame frame = Frame::innermost(*frame_layout(), thread); frame; frame = frame.back())
    if (whose(frame.code()) == Whose::Machinery) return true;
  return false;
}

Line line_by_layout(const void* thread) {
  Frame frame = Frame::innermost(*frame_layout(), thread);
  Line line;
  const ModuleTargets* targets = module_targets();
  for (; frame; frame = frame.back()) {
    PyObject* code = frame.code();
    if (!line.code && is_user(code)) line = {code, frame.instruction()};
    if (!targets && line.code) return line;
    if (!targets) continue;
    if (code == targets->call) {
      line.module = number_of_module(frame.first_local(), [&] {
        std::vector<void*> chain;
        for (Frame outer = frame; outer; outer = outer.back())
          if (outer.code() == targets->call) chain.push_back(outer.first_local());
        return chain;
      });
      break;
    }
    if (targets->is_optimizer(code)) {
      line.phase = Phase::Optimizer;
      break;
    }
  }
  // The user's line may be outside the module or the optimizer.
  for (; frame && !line.code; frame = frame.back()) {
    if (!is_user(frame.code())) continue;
    line.code = frame.code();
    line.instruction = frame.instruction();
  }
  return line;
}

// Note [Stacks]
// The chains of the program's frames form a tree, whose nodes are numbered as they appear. They stay for the life of the process,
// since lines of forward passes refer to them. A walk through all frames takes longer than the rest of `current_line`, so it is
// made on request only.
using ProgramFrames = c10::SmallVector<std::pair<void*, int32_t>, 32>;  // code objects and instructions, innermost first

class StackTree {
 public:
  int32_t number_of(const ProgramFrames& frames) {
    std::lock_guard<std::mutex> lock(mutex_);
    int32_t number = -1;
    for (size_t i = frames.size(); i-- > 0;) {
      auto [code, instruction] = frames[i];
      if (frames_.size() == kMost && !numbers_.count({number, code, instruction})) break;  // the chain ends at an outer frame
      auto [entry, added] = numbers_.try_emplace({number, code, instruction}, int32_t(frames_.size()));
      if (added) frames_.push_back({number, {code, instruction}});
      number = entry->second;
    }
    return number;
  }

  std::vector<StackFrame> frames() {
    std::lock_guard<std::mutex> lock(mutex_);
    return frames_;
  }

 private:
  static constexpr size_t kMost = 1 << 20;  // a program that recurses with other callers each time
  struct Hash {
    size_t operator()(const std::tuple<int32_t, void*, int32_t>& key) const {
      auto [caller, code, instruction] = key;
      return c10::get_hash(caller, code, instruction);
    }
  };
  std::mutex mutex_;
  std::vector<StackFrame> frames_;
  std::unordered_map<std::tuple<int32_t, void*, int32_t>, int32_t, Hash> numbers_;
};

StackTree& stack_tree() {
  static auto* tree = new StackTree();
  return *tree;
}

std::atomic<bool> stacks_kept{false};

enum class Reads { Unknown, ByApi, ByLayout };

// Compares the innermost frames, read in both ways.
Reads compare_layout() {
  if (!frame_layout()) return Reads::ByApi;
  void* thread = PyGILState_GetThisThreadState();
  if (!thread) return Reads::Unknown;
  Gil gil;
  Ref by_api = innermost_by_api();
  if (!by_api) return Reads::Unknown;  // no Python code is running
  Frame by_layout = Frame::innermost(*frame_layout(), thread);
  if (!by_layout || by_layout.instruction() != instruction_of(by_api)) return Reads::ByApi;
  for (int i = 0; i < 8 && by_api && by_layout; ++i, by_layout = by_layout.back()) {
    if (code_of(by_api).get() != by_layout.code()) return Reads::ByApi;
    by_api = Ref(PyFrame_GetBack(by_api.get()));
  }
  return Reads::ByLayout;
}

// Two threads may both make the comparison. It may need the GIL, so no thread may hold a lock for it.
bool reads_layout() {
  static std::atomic<Reads> answer{Reads::Unknown};
  if (answer.load(std::memory_order_relaxed) == Reads::Unknown) answer = compare_layout();
  return answer.load(std::memory_order_relaxed) == Reads::ByLayout;
}

ProgramFrames program_frames(const void* thread) {
  ProgramFrames frames;
  if (reads_layout()) {
    for (Frame frame = Frame::innermost(*frame_layout(), thread); frame; frame = frame.back())
      if (is_user(frame.code())) frames.emplace_back(frame.code(), frame.instruction());
    return frames;
  }
  Gil gil;
  for (Ref frame = innermost_by_api(); frame; frame = Ref(PyFrame_GetBack(frame.get())))
    if (Ref code = code_of(frame); is_user(code.get())) frames.emplace_back(code.get(), instruction_of(frame));
  return frames;
}

Line python_line() {
  void* thread = PyGILState_GetThisThreadState();
  if (!thread) return {};
  Line line = reads_layout() ? line_by_layout(thread) : line_by_api();
  if (C10_UNLIKELY(stacks_kept.load(std::memory_order_relaxed)) && line.code)
    line.stack = stack_tree().number_of(program_frames(thread));
  return line;
}

std::atomic<bool> raw_frames_known{false};

}  // namespace

int32_t keep_stacks(bool keep) {
  stacks_kept = keep;
  return python_line().stack;
}

std::vector<StackFrame> kept_stacks() { return stack_tree().frames(); }

std::string function_of(const StackFrame& frame) {
  Gil gil;
  auto* code = static_cast<PyObject*>(frame.line.code);
  return text_of(code, python_version() >= 311 ? "co_qualname" : "co_name");
}

void prepare_raw_frames() { raw_frames_known = reads_layout(); }

RawFrames raw_frames() {
  RawFrames frames;
  frames.count = 0;
  void* thread = raw_frames_known ? PyGILState_GetThisThreadState() : nullptr;
  if (!thread) return frames;
  Frame frame = Frame::innermost(*frame_layout(), thread);
  for (; frame && frames.count < int(kRawFrames); frame = frame.back()) {
    frames.code[frames.count] = frame.code();
    frames.instruction[frames.count++] = frame.instruction();
  }
  return frames;
}

Line user_line(const RawFrames& frames) {
  Gil gil;
  for (int i = 0; i < frames.count; ++i)
    if (is_user(static_cast<PyObject*>(frames.code[i]))) return {frames.code[i], frames.instruction[i]};
  return {};
}

bool within_machinery() {
  void* thread = PyGILState_GetThisThreadState();
  return thread && (reads_layout() ? machinery_by_layout(thread) : machinery_by_api());
}

namespace {

// Note [Lines of the backward pass]
// Autograd launches from its own threads, which run no Python. A node of the graph carries a sequence number, which the forward
// operator received just before its launch, and the number of that thread. Forward launches store their line under this pair.
// Entries are overwritten without a lock. Each entry has a check word, computed from the pair and the line, so that a reader
// rejects an entry that two threads have written in part.
struct ForwardLine {
  std::atomic<uint64_t> check{0}, code{0}, place{0};
  std::atomic<int32_t> stack{-1};
};
constexpr size_t kForwardLines = 1 << 14;
std::array<ForwardLine, kForwardLines> forward_lines;

uint64_t check_of(uint64_t sequence, uint64_t thread, uint64_t code, uint64_t place, int32_t stack) {
  uint64_t origin = sequence ^ thread << 48 ^ uint64_t(uint32_t(stack)) << 24;
  return (origin * 0x9E3779B97F4A7C15ull ^ code) * 0xD6E8FEB86659FD93ull ^ place;
}

// The sequence numbers of threads run in parallel, so the thread's number is part of the index.
ForwardLine& forward_line(uint64_t sequence, uint64_t thread) {
  return forward_lines[(sequence + thread * 5003) % kForwardLines];
}

void keep_forward_line(uint64_t sequence, uint64_t thread, const Line& line) {
  auto code = uint64_t(reinterpret_cast<uintptr_t>(line.code));
  uint64_t place = uint64_t(uint32_t(line.module)) << 32 | uint32_t(line.instruction);
  ForwardLine& entry = forward_line(sequence, thread);
  entry.code.store(code, std::memory_order_relaxed);
  entry.place.store(place, std::memory_order_relaxed);
  entry.stack.store(line.stack, std::memory_order_relaxed);
  entry.check.store(check_of(sequence, thread, code, place, line.stack), std::memory_order_relaxed);
}

// The stored line, or an empty line.
Line kept_forward_line(uint64_t sequence, uint64_t thread) {
  const ForwardLine& entry = forward_line(sequence, thread);
  uint64_t code = entry.code.load(std::memory_order_relaxed), place = entry.place.load(std::memory_order_relaxed);
  int32_t stack = entry.stack.load(std::memory_order_relaxed);
  if (!code || entry.check.load(std::memory_order_relaxed) != check_of(sequence, thread, code, place, stack)) return {};
  Line line;
  line.code = reinterpret_cast<void*>(code);
  line.instruction = int32_t(place & 0xffffffff);
  line.module = int32_t(place >> 32);
  line.stack = stack;
  return line;
}

// One number for a node: its sequence number is unique in the thread that made it.
int64_t number_of_node(uint64_t sequence, uint64_t thread) { return int64_t((sequence + 1) << 16 | (thread & 0xffff)); }

int64_t number_of_node(const torch::autograd::Node& node) {
  constexpr uint64_t kAccumulates = std::numeric_limits<uint64_t>::max();  // into a gradient: no operator made the node
  constexpr int64_t kNoOperator = 1;                                       // no operator's node has this number
  return node.sequence_nr() == kAccumulates ? kNoOperator : number_of_node(node.sequence_nr(), node.thread_id());
}

Line backward_line() {
  auto node = torch::autograd::get_current_node();
  if (!node) return {};
  Line line = kept_forward_line(node->sequence_nr(), node->thread_id());
  line.backward = line.code != nullptr;
  line.phase = Phase::Backward;
  line.runs = number_of_node(*node);
  return line;
}

}  // namespace

Line current_line() {
  Line line = python_line();
  if (!line.code) return backward_line();
  if (C10_UNLIKELY(torch::autograd::get_current_graph_task_id() >= 0)) {  // Python code that a backward pass calls
    auto node = torch::autograd::get_current_node();
    if (node) line.runs = number_of_node(*node);
  }
  if (c10::GradMode::is_enabled()) {
    uint64_t next = at::sequence_number::peek();
    if (next > 0) {
      uint64_t thread = at::RecordFunction::currentThreadId();
      // The first launch after a node was created belongs to the node. Later launches have created no node.
      if (!kept_forward_line(next - 1, thread).code) keep_forward_line(next - 1, thread, line);
    }
  }
  return line;
}

int64_t latest_node() {
  uint64_t next = at::sequence_number::peek();
  return next > 0 ? number_of_node(next - 1, at::RecordFunction::currentThreadId()) : 0;
}

std::string describe(const Line& line) {
  if (!line.code || !Py_IsInitialized()) return "";
  Gil gil;
  auto* code = static_cast<PyObject*>(line.code);
  std::string file = text_of(code, "co_filename");
  std::error_code error;
  std::string here = std::filesystem::current_path(error).string() + "/";
  if (!error && file.compare(0, here.size(), here) == 0) file = file.substr(here.size());
  return file + ":" + std::to_string(PyCode_Addr2Line(code, line.instruction)) + (line.backward ? " (backward)" : "");
}

}  // namespace bringup
