#include "python/lines.h"

#include <ATen/SequenceNumber.h>
#include <c10/core/GradMode.h>
#include <ATen/record_function.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/function.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <deque>
#include <filesystem>
#include <mutex>
#include <unordered_map>

// The few functions of Python's C API that are used here, so that a build needs no Python headers and one core serves
// every Python: all are in the stable ABI or unchanged since 3.11.
extern "C" {
int PyGILState_Ensure();
void PyGILState_Release(int);
// The current thread state, which holds the GIL: of the process in 3.11, of this thread since 3.12.
void* _PyThreadState_UncheckedGet() __attribute__((weak));
void* PyThreadState_GetUnchecked() __attribute__((weak));
void* PyGILState_GetThisThreadState();
void* PyEval_SaveThread();
void PyEval_RestoreThread(void*);
int Py_IsInitialized();
void Py_IncRef(PyObject*);
void Py_DecRef(PyObject*);
PyObject* PyImport_ImportModule(const char*);
PyObject* PyObject_GetAttrString(PyObject*, const char*);
PyObject* PyObject_CallMethod(PyObject*, const char*, const char*, ...);
PyObject* PyObject_Str(PyObject*);
PyObject* PyUnicode_AsEncodedString(PyObject*, const char*, const char*);
char* PyBytes_AsString(PyObject*);
void PyErr_Fetch(PyObject**, PyObject**, PyObject**);
void PyErr_NormalizeException(PyObject**, PyObject**, PyObject**);
void PyErr_Clear();
PyObject* PyEval_GetFrame();
PyObject* PyFrame_GetCode(PyObject*);
PyObject* PyFrame_GetBack(PyObject*);
int PyFrame_GetLasti(PyObject*);
int PyCode_Addr2Line(PyObject*, int);
PyObject* PyTuple_New(ssize_t);
int PyTuple_SetItem(PyObject*, ssize_t, PyObject*);
long PyLong_AsLong(PyObject*);
double PyFloat_AsDouble(PyObject*);
// Since 3.12; older versions but 3.11 do not run bringup, and 3.11 reads the frame itself.
PyObject* PyFrame_GetVarString(PyObject*, const char*) __attribute__((weak));
extern const unsigned long Py_Version;
}

namespace bringup {
namespace {

template <class T>
T at_offset(const void* base, size_t offset) {
  return *reinterpret_cast<const T*>(static_cast<const char*>(base) + offset);
}

bool is_3_11() { return (Py_Version >> 16) == 0x030B; }

// PyGILState_Check says yes to everything as soon as there is a second interpreter. Other interpreters cannot load torch, so
// their threads come here only while they wait without the GIL.
bool holds_gil() {
  void* current = PyThreadState_GetUnchecked ? PyThreadState_GetUnchecked() : _PyThreadState_UncheckedGet();
  return current && (!is_3_11() || current == PyGILState_GetThisThreadState());
}

struct Gil {
  bool taken = !holds_gil();
  int state = taken ? PyGILState_Ensure() : 0;
  ~Gil() {
    if (taken) PyGILState_Release(state);
  }
};

bool starts_with_any(const std::string& text, const std::vector<std::string>& prefixes) {
  for (const auto& prefix : prefixes)
    if (text.compare(0, prefix.size(), prefix) == 0) return true;
  return false;
}

// Names of files need not be UTF-8: what is not is written as Python's tracebacks write it, \udcff.
std::string text_of(PyObject* string) {
  PyObject* bytes = string ? PyUnicode_AsEncodedString(string, "utf-8", "backslashreplace") : nullptr;
  const char* text = bytes ? PyBytes_AsString(bytes) : nullptr;
  std::string copy = text ? text : "";
  if (bytes) Py_DecRef(bytes);
  PyErr_Clear();
  return copy;
}

std::string text_of(PyObject* object, const char* attribute) {
  PyObject* found = PyObject_GetAttrString(object, attribute);
  std::string text = text_of(found);
  if (found) Py_DecRef(found);
  return text;
}

// Where an importable package lies, with the slash; empty if it is not there.
std::string folder_of(const char* package) {
  PyObject* module = PyImport_ImportModule(package);
  std::string file = module ? text_of(module, "__file__") : "";
  if (module) Py_DecRef(module);
  PyErr_Clear();
  return file.substr(0, file.rfind('/') + 1);
}

struct Folders {
  std::vector<std::string> libraries;  // whose frames are not the user's
  std::vector<std::string> machinery;  // compilers and the import system, whose waits are not the program's
};

Folders find_folders() {
  Folders found{{"<frozen", "<__array_function__", "<@beartype"}, {"<frozen importlib"}};
  for (const char* package : {"torch", "bringup", "numpy", "triton"})
    if (std::string folder = folder_of(package); !folder.empty()) found.libraries.push_back(folder);
  if (std::string torch = folder_of("torch"); !torch.empty())
    for (const char* part : {"_inductor/", "_dynamo/", "_functorch/"}) found.machinery.push_back(torch + part);
  if (std::string triton = folder_of("triton"); !triton.empty()) found.machinery.push_back(triton);
  return found;
}

// Called with the GIL, which imports let go: no other lock may be held meanwhile, so two threads may both look.
const Folders& folders() {
  static std::atomic<const Folders*> known{nullptr};
  if (const Folders* found = known.load()) return *found;
  auto* mine = new Folders(find_folders());
  const Folders* nobodys = nullptr;
  if (known.compare_exchange_strong(nobodys, mine)) return *mine;
  delete mine;
  return *nobodys;
}

// Code that Inductor wrote is not the user's: a module in its cache, or the function that launches a kernel.
bool is_inductors(const std::string& file, PyObject* code) {
  const char* cache = std::getenv("TORCHINDUCTOR_CACHE_DIR");
  if (file.find("/torchinductor_") != std::string::npos || (cache && *cache && file.rfind(cache, 0) == 0)) return true;
  return file == "<string>" && text_of(code, "co_name") == "launcher";
}

// Whose code is it?
enum class Whose : uint8_t { Library, Machinery, User };

// Decided once per code object, which is kept, so that its address stays its own.
Whose classify(PyObject* code) {
  static std::mutex mutex;
  static auto* known = new std::unordered_map<PyObject*, Whose>();
  {
    std::lock_guard<std::mutex> lock(mutex);
    auto found = known->find(code);
    if (found != known->end()) return found->second;
  }
  Gil gil;
  std::string file = text_of(code, "co_filename");
  // The items of the scorecard are programs, although they lie in our folder.
  bool is_item = file.find("/bringup/scorecard/") != std::string::npos;
  bool user = !file.empty() && (is_item || !starts_with_any(file, folders().libraries)) && !is_inductors(file, code);
  Whose whose = starts_with_any(file, folders().machinery) ? Whose::Machinery : user ? Whose::User : Whose::Library;
  Py_IncRef(code);
  std::lock_guard<std::mutex> lock(mutex);
  (*known)[code] = whose;
  return whose;
}

Whose whose(PyObject* code) {
  struct Entry {
    PyObject* code = nullptr;
    Whose whose = Whose::Library;
  };
  static thread_local std::array<Entry, 256> recent;
  Entry& entry = recent[(reinterpret_cast<uintptr_t>(code) >> 5) & 255];
  if (entry.code != code) entry = {code, classify(code)};
  return entry.whose;
}

bool is_user(PyObject* code) { return whose(code) == Whose::User; }

// Note [Modules and phases]
// While a program is recorded, the walk to the user's line goes on to the innermost call of a torch.nn.Module, whose
// `self` is the module, or to a step of an optimizer. A module is named by Python the first time it is met.
struct Targets {  // code objects
  void* call;
  std::vector<void*> optimizer;
  bool operator==(const Targets&) const = default;
};

struct Watch {
  std::atomic<const Targets*> targets{nullptr};
  std::mutex mutex;
  std::deque<Targets> kept;  // for ever: a thread may look at those of a recording that is over
  std::unordered_map<void*, int32_t> names;
  std::atomic<uint64_t> forgotten{0};
};

Watch& watch() {
  static auto* the = new Watch();
  return *the;
}

int32_t name_module(const std::vector<void*>& chain) {  // innermost first
  Gil gil;
  PyObject* tuple = PyTuple_New(ssize_t(chain.size()));
  for (size_t i = 0; i < chain.size(); ++i) {
    Py_IncRef(static_cast<PyObject*>(chain[i]));
    PyTuple_SetItem(tuple, ssize_t(i), static_cast<PyObject*>(chain[i]));
  }
  PyObject* module = PyImport_ImportModule("bringup.recording.modules");
  PyObject* number = module ? PyObject_CallMethod(module, "number_of", "(O)", tuple) : nullptr;
  int32_t found = number ? int32_t(PyLong_AsLong(number)) : -1;
  PyErr_Clear();
  if (number) Py_DecRef(number);
  if (module) Py_DecRef(module);
  Py_DecRef(tuple);
  return found;
}

// `chain()` lists the modules under way, innermost first.
template <class Chain>
int32_t number_of_module(void* innermost, Chain chain) {
  struct Last {
    void* module = nullptr;
    int32_t number = -1;
    uint64_t forgotten = 0;
  };
  static thread_local Last last;
  uint64_t forgotten = watch().forgotten.load(std::memory_order_relaxed);
  if (last.module == innermost && last.forgotten == forgotten) return last.number;
  {
    std::lock_guard<std::mutex> lock(watch().mutex);
    auto found = watch().names.find(innermost);
    if (found != watch().names.end()) {
      last = {innermost, found->second, forgotten};
      return last.number;
    }
  }
  int32_t number = name_module(chain());
  std::lock_guard<std::mutex> lock(watch().mutex);
  if (watch().forgotten == forgotten) watch().names[innermost] = number;  // else it may be of a recording that is over
  last = {innermost, number, forgotten};
  return number;
}

bool is_optimizer(const Targets& targets, void* code) {
  for (void* known : targets.optimizer)
    if (known == code) return true;
  return false;
}

Line line_by_api() {
  Gil gil;
  Line line;
  const Targets* targets = PyFrame_GetVarString ? watch().targets.load(std::memory_order_acquire) : nullptr;
  std::vector<void*> modules;
  PyObject* frame = PyEval_GetFrame();
  if (frame) Py_IncRef(frame);
  while (frame) {
    PyObject* code = PyFrame_GetCode(frame);
    if (!line.code && is_user(code)) line = {code, PyFrame_GetLasti(frame)};
    if (targets && code == targets->call) {
      PyObject* self = PyFrame_GetVarString(frame, "self");
      if (self) modules.push_back(self);
      PyErr_Clear();
      if (self) Py_DecRef(self);  // the frame holds it
    }
    if (targets && modules.empty() && is_optimizer(*targets, code)) line.phase = Phase::Optimizer;
    Py_DecRef(code);
    PyObject* back = line.code && !targets ? nullptr : PyFrame_GetBack(frame);
    Py_DecRef(frame);
    frame = back;
  }
  if (!modules.empty() && line.phase == Phase::Forward) line.module = number_of_module(modules[0], [&] { return modules; });
  return line;
}

bool machinery_by_api() {
  Gil gil;
  bool found = false;
  PyObject* frame = PyEval_GetFrame();
  if (frame) Py_IncRef(frame);
  while (frame) {
    PyObject* code = PyFrame_GetCode(frame);
    found = found || whose(code) == Whose::Machinery;
    Py_DecRef(code);
    PyObject* back = found ? nullptr : PyFrame_GetBack(frame);
    Py_DecRef(frame);
    frame = back;
  }
  return found;
}

// Note [Reading frames without the GIL]
// torch launches with the GIL released; taking it for every launch would cost more than the rest of the launch. The
// frames of a thread do not change while the thread itself is in here, so they can be read as they lie in memory.
// Offsets of CPython 3.11, whose layout is final (Include/cpython/pystate.h, Include/internal/pycore_frame.h,
// Include/cpython/code.h). Other versions, and a Python built otherwise, take the API: the first call compares the two.
constexpr size_t kCFrame = 56, kCurrentFrame = 8;                              // PyThreadState, _PyCFrame
constexpr size_t kCode = 32, kPrevious = 48, kInstruction = 56, kLocals = 72;  // _PyInterpreterFrame
constexpr size_t kBytecode = 184;                                              // PyCodeObject

const void* innermost_frame(const void* thread) {
  return at_offset<const void*>(at_offset<const void*>(thread, kCFrame), kCurrentFrame);
}

bool machinery_by_layout(const void* thread) {
  for (const void* frame = innermost_frame(thread); frame; frame = at_offset<const void*>(frame, kPrevious))
    if (whose(at_offset<PyObject*>(frame, kCode)) == Whose::Machinery) return true;
  return false;
}

Line line_by_layout(const void* thread) {
  const void* frame = innermost_frame(thread);
  Line line;
  const Targets* targets = watch().targets.load(std::memory_order_acquire);
  for (; frame; frame = at_offset<const void*>(frame, kPrevious)) {
    auto* code = at_offset<PyObject*>(frame, kCode);
    if (!line.code && is_user(code)) {
      auto* bytecode = reinterpret_cast<const char*>(code) + kBytecode;
      line = {code, int32_t(at_offset<const char*>(frame, kInstruction) - bytecode)};
    }
    if (!targets && line.code) return line;
    if (!targets) continue;
    if (code == targets->call) {
      line.module = number_of_module(at_offset<void*>(frame, kLocals), [&] {
        std::vector<void*> chain;
        for (const void* outer = frame; outer; outer = at_offset<const void*>(outer, kPrevious))
          if (at_offset<void*>(outer, kCode) == targets->call) chain.push_back(at_offset<void*>(outer, kLocals));
        return chain;
      });
      break;
    }
    if (is_optimizer(*targets, code)) {
      line.phase = Phase::Optimizer;
      break;
    }
  }
  // The line may lie outside of the module or the optimizer.
  for (; frame && !line.code; frame = at_offset<const void*>(frame, kPrevious)) {
    auto* code = at_offset<PyObject*>(frame, kCode);
    if (!is_user(code)) continue;
    auto* bytecode = reinterpret_cast<const char*>(code) + kBytecode;
    line.code = code;
    line.instruction = int32_t(at_offset<const char*>(frame, kInstruction) - bytecode);
  }
  return line;
}

bool layout_is_known() {
  if (!is_3_11()) return false;
  Line by_api = line_by_api(), by_layout = line_by_layout(PyGILState_GetThisThreadState());
  return by_api.code == by_layout.code && by_api.instruction == by_layout.instruction;
}

// Two threads may both look: the one that looks may need the GIL, so nobody may wait for it.
bool reads_layout() {
  enum { kUnknown, kNo, kYes };
  static std::atomic<int> answer{kUnknown};
  if (answer.load(std::memory_order_relaxed) == kUnknown) answer = layout_is_known() ? kYes : kNo;
  return answer.load(std::memory_order_relaxed) == kYes;
}

Line python_line() {
  void* thread = PyGILState_GetThisThreadState();
  if (!thread) return {};
  return reads_layout() ? line_by_layout(thread) : line_by_api();
}

std::atomic<bool> raw_frames_known{false};

}  // namespace

void prepare_raw_frames() { raw_frames_known = reads_layout(); }

RawFrames raw_frames() {
  RawFrames frames;
  frames.count = 0;
  void* thread = raw_frames_known ? PyGILState_GetThisThreadState() : nullptr;
  if (!thread) return frames;
  const void* frame = innermost_frame(thread);
  for (; frame && frames.count < int(kRawFrames); frame = at_offset<const void*>(frame, kPrevious)) {
    auto* code = at_offset<char*>(frame, kCode);
    frames.code[frames.count] = code;
    frames.instruction[frames.count++] = int32_t(at_offset<const char*>(frame, kInstruction) - (code + kBytecode));
  }
  return frames;
}

Line user_line(const RawFrames& frames) {
  Gil gil;
  for (int i = 0; i < frames.count; ++i)
    if (is_user(static_cast<PyObject*>(frames.code[i]))) return {frames.code[i], frames.instruction[i]};
  return {};
}

bool is_python_thread() { return Py_IsInitialized() && PyGILState_GetThisThreadState(); }

bool within_machinery() {
  void* thread = PyGILState_GetThisThreadState();
  return thread && (reads_layout() ? machinery_by_layout(thread) : machinery_by_api());
}

namespace {

// Note [Lines of the backward pass]
// Autograd launches from its own threads, which run no Python. A node of the graph carries the sequence number that the
// forward operator got on its thread just before it launched, and that thread's number: forward launches leave their line
// under the two. Entries are overwritten without a lock. Each carries a word that fits only the pair and the line together,
// so that a reader takes an entry that is half one line and half another for none.
struct ForwardLine {
  std::atomic<uint64_t> check{0}, code{0}, place{0};
};
constexpr size_t kForwardLines = 1 << 14;
std::array<ForwardLine, kForwardLines> forward_lines;

uint64_t check_of(uint64_t sequence, uint64_t thread, uint64_t code, uint64_t place) {
  return ((sequence ^ thread << 48) * 0x9E3779B97F4A7C15ull ^ code) * 0xD6E8FEB86659FD93ull ^ place;
}

// Threads count alike: those that do the same at a time have entries of their own.
ForwardLine& forward_line(uint64_t sequence, uint64_t thread) {
  return forward_lines[(sequence + thread * 5003) % kForwardLines];
}

void keep_forward_line(uint64_t sequence, uint64_t thread, const Line& line) {
  auto code = uint64_t(reinterpret_cast<uintptr_t>(line.code));
  uint64_t place = uint64_t(uint32_t(line.module)) << 32 | uint32_t(line.instruction);
  ForwardLine& entry = forward_line(sequence, thread);
  entry.code.store(code, std::memory_order_relaxed);
  entry.place.store(place, std::memory_order_relaxed);
  entry.check.store(check_of(sequence, thread, code, place), std::memory_order_relaxed);
}

// The line that was kept; without code if there is none.
Line kept_forward_line(uint64_t sequence, uint64_t thread) {
  const ForwardLine& entry = forward_line(sequence, thread);
  uint64_t code = entry.code.load(std::memory_order_relaxed), place = entry.place.load(std::memory_order_relaxed);
  if (!code || entry.check.load(std::memory_order_relaxed) != check_of(sequence, thread, code, place)) return {};
  Line line;
  line.code = reinterpret_cast<void*>(code);
  line.instruction = int32_t(place & 0xffffffff);
  line.module = int32_t(place >> 32);
  return line;
}

Line backward_line() {
  auto node = torch::autograd::get_current_node();
  if (!node) return {};
  Line line = kept_forward_line(node->sequence_nr(), node->thread_id());
  line.backward = line.code != nullptr;
  line.phase = Phase::Backward;
  return line;
}

}  // namespace

Line current_line() {
  Line line = python_line();
  if (!line.code) return backward_line();
  if (c10::GradMode::is_enabled()) {
    uint64_t next = at::sequence_number::peek();
    if (next > 0) {
      uint64_t thread = at::RecordFunction::currentThreadId();
      // The first launch after a node was made is the node's; later ones made no node.
      if (!kept_forward_line(next - 1, thread).code) keep_forward_line(next - 1, thread, line);
    }
  }
  return line;
}

void watch_modules(int64_t call, const std::vector<int64_t>& optimizer) {
  std::lock_guard<std::mutex> lock(watch().mutex);
  watch().targets = nullptr;
  watch().names.clear();
  ++watch().forgotten;
  if (!call) return;
  Targets targets{reinterpret_cast<void*>(call), {}};
  for (int64_t code : optimizer) targets.optimizer.push_back(reinterpret_cast<void*>(code));
  auto& kept = watch().kept;
  auto known = std::find(kept.begin(), kept.end(), targets);
  watch().targets.store(known == kept.end() ? &kept.emplace_back(std::move(targets)) : &*known, std::memory_order_release);
}

void forget_module(int64_t address) {
  std::lock_guard<std::mutex> lock(watch().mutex);
  watch().names.erase(reinterpret_cast<void*>(address));
  ++watch().forgotten;
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

ReleaseGil::ReleaseGil() : state_(Py_IsInitialized() && holds_gil() ? PyEval_SaveThread() : nullptr) {}
ReleaseGil::~ReleaseGil() {
  if (state_) PyEval_RestoreThread(state_);
}

namespace {

// The Python error under way as a c10::Error. Holds the GIL.
void throw_python_error() {
  PyObject *type, *value, *trace;
  PyErr_Fetch(&type, &value, &trace);
  PyErr_NormalizeException(&type, &value, &trace);
  PyObject* text = value ? PyObject_Str(value) : nullptr;
  std::string problem = text ? text_of(text) : "unknown error";
  for (PyObject* object : {text, type, value, trace})
    if (object) Py_DecRef(object);
  PyErr_Clear();
  TORCH_CHECK(false, problem);
}

}  // namespace

double chip_time_between(int64_t start, int64_t end) {
  Gil gil;
  PyObject* module = PyImport_ImportModule("bringup.timeline.clock");
  PyObject* result =
      module ? PyObject_CallMethod(module, "elapsed_ms", "LL", static_cast<long long>(start), static_cast<long long>(end))
             : nullptr;
  if (module) Py_DecRef(module);
  if (!result) throw_python_error();
  double milliseconds = PyFloat_AsDouble(result);
  Py_DecRef(result);
  return milliseconds;
}

void notice_dry_read(const std::string& where, const std::string& what) {
  Gil gil;
  PyObject* module = PyImport_ImportModule("bringup.device.dry");
  PyObject* result = module ? PyObject_CallMethod(module, "notice", "ss", where.c_str(), what.c_str()) : nullptr;
  if (module) Py_DecRef(module);
  if (!result) throw_python_error();
  Py_DecRef(result);
}

void configure_from_python() {
  Gil gil;
  PyObject* module = PyImport_ImportModule("bringup.device.torch_chip");
  PyObject* result = module ? PyObject_CallMethod(module, "choose_from_environment", nullptr) : nullptr;
  if (module) Py_DecRef(module);
  if (!result) throw_python_error();
  Py_DecRef(result);
}

}  // namespace bringup
