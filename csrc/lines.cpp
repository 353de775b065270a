#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <frameobject.h>
#if PY_VERSION_HEX < 0x030C0000
#define Py_BUILD_CORE 1
#include <internal/pycore_frame.h>
#undef Py_BUILD_CORE
#endif

#include "lines.h"

#include <ATen/SequenceNumber.h>
#include <c10/core/GradMode.h>
#include <ATen/record_function.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/function.h>

#include <array>
#include <atomic>
#include <filesystem>
#include <mutex>
#include <unordered_map>

namespace bringup {
namespace {

struct Gil {
  PyGILState_STATE state = PyGILState_Ensure();
  ~Gil() { PyGILState_Release(state); }
};

bool starts_with_any(const std::string& text, const std::vector<std::string>& prefixes) {
  for (const auto& prefix : prefixes)
    if (text.compare(0, prefix.size(), prefix) == 0) return true;
  return false;
}

// Folders whose frames are not the user's: torch's and our own. Called with the GIL.
const std::vector<std::string>& library_folders() {
  static std::vector<std::string>* folders = [] {
    auto* found = new std::vector<std::string>{"<frozen", "<__array_function__", "<@beartype"};
    for (const char* name : {"torch", "bringup"}) {
      PyObject* modules = PyImport_GetModuleDict();
      PyObject* module = PyDict_GetItemString(modules, name);
      PyObject* file = module ? PyObject_GetAttrString(module, "__file__") : nullptr;
      const char* path = file ? PyUnicode_AsUTF8(file) : nullptr;
      if (path) found->push_back(std::string(path).substr(0, std::string(path).rfind('/') + 1));
      Py_XDECREF(file);
      PyErr_Clear();
    }
    return found;
  }();
  return *folders;
}

// Is it a user's code object? Decided once per object; the object is kept, so that its address stays its own.
bool classify(PyCodeObject* code) {
  static std::mutex mutex;
  static auto* known = new std::unordered_map<PyCodeObject*, bool>();
  {
    std::lock_guard<std::mutex> lock(mutex);
    auto found = known->find(code);
    if (found != known->end()) return found->second;
  }
  Gil gil;
  const char* file = PyUnicode_AsUTF8(code->co_filename);
  PyErr_Clear();
  bool user = file && !starts_with_any(file, library_folders());
  Py_INCREF(code);
  std::lock_guard<std::mutex> lock(mutex);
  (*known)[code] = user;
  return user;
}

bool is_user(PyCodeObject* code) {
  struct Entry {
    PyCodeObject* code = nullptr;
    bool user = false;
  };
  static thread_local std::array<Entry, 256> recent;
  Entry& entry = recent[(reinterpret_cast<uintptr_t>(code) >> 5) & 255];
  if (entry.code != code) entry = {code, classify(code)};
  return entry.user;
}

#if PY_VERSION_HEX < 0x030C0000
// The frames of a thread do not change while the thread itself is in here: they can be read without the GIL.
Line python_line() {
  PyThreadState* thread = PyGILState_GetThisThreadState();
  if (!thread || !thread->cframe) return {};
  for (_PyInterpreterFrame* frame = thread->cframe->current_frame; frame; frame = frame->previous)
    if (is_user(frame->f_code))
      return {frame->f_code, int32_t(_PyInterpreterFrame_LASTI(frame) * sizeof(_Py_CODEUNIT))};
  return {};
}
#else
Line python_line() {
  if (!PyGILState_GetThisThreadState()) return {};
  Gil gil;
  Line line;
  PyFrameObject* frame = PyEval_GetFrame();
  Py_XINCREF(frame);
  while (frame) {
    PyCodeObject* code = PyFrame_GetCode(frame);
    bool user = is_user(code);
    if (user) line = {code, PyFrame_GetLasti(frame)};
    Py_DECREF(code);
    PyFrameObject* back = user ? nullptr : PyFrame_GetBack(frame);
    Py_DECREF(frame);
    frame = back;
  }
  return line;
}
#endif

}  // namespace

namespace {

// Note [Lines of the backward pass]
// Autograd launches from its own threads, which run no Python. A node of the graph carries the sequence number that the
// forward operator got on its thread just before it launched: forward launches leave their line under that number.
// Entries are overwritten without a lock; a reader that loses the race names a neighbouring line, nothing worse.
struct ForwardLine {
  uint64_t sequence = ~0ull, thread = 0;
  Line line;
};
constexpr size_t kForwardLines = 1 << 14;
std::array<ForwardLine, kForwardLines> forward_lines;

Line backward_line() {
  auto node = torch::autograd::get_current_node();
  if (!node) return {};
  const ForwardLine& entry = forward_lines[node->sequence_nr() % kForwardLines];
  if (entry.sequence != node->sequence_nr() || entry.thread != node->thread_id()) return {};
  Line line = entry.line;
  line.backward = true;
  return line;
}

}  // namespace

Line current_line() {
  Line line = python_line();
  if (!line.code) return backward_line();
  if (c10::GradMode::is_enabled()) {
    uint64_t next = at::sequence_number::peek();
    if (next > 0) {
      ForwardLine& entry = forward_lines[(next - 1) % kForwardLines];
      entry = {next - 1, at::RecordFunction::currentThreadId(), line};
    }
  }
  return line;
}

std::string describe(const Line& line) {
  if (!line.code || !Py_IsInitialized()) return "";
  Gil gil;
  auto* code = static_cast<PyCodeObject*>(line.code);
  const char* name = PyUnicode_AsUTF8(code->co_filename);
  PyErr_Clear();
  std::string file = name ? name : "?";
  std::error_code error;
  std::string here = std::filesystem::current_path(error).string() + "/";
  if (!error && file.compare(0, here.size(), here) == 0) file = file.substr(here.size());
  return file + ":" + std::to_string(PyCode_Addr2Line(code, line.instruction)) + (line.backward ? " (backward)" : "");
}

ReleaseGil::ReleaseGil() : state_(Py_IsInitialized() && PyGILState_Check() ? PyEval_SaveThread() : nullptr) {}
ReleaseGil::~ReleaseGil() {
  if (state_) PyEval_RestoreThread(static_cast<PyThreadState*>(state_));
}

void configure_from_python() {
  Gil gil;
  PyObject* module = PyImport_ImportModule("bringup.device");
  PyObject* result = module ? PyObject_CallMethod(module, "choose_from_environment", nullptr) : nullptr;
  std::string problem;
  if (!result) {
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    PyObject* text = value ? PyObject_Str(value) : nullptr;
    const char* utf8 = text ? PyUnicode_AsUTF8(text) : nullptr;
    problem = utf8 ? utf8 : "unknown error";
    Py_XDECREF(text);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
    PyErr_Clear();
  }
  Py_XDECREF(result);
  Py_XDECREF(module);
  TORCH_CHECK(problem.empty(), problem);
}

}  // namespace bringup
