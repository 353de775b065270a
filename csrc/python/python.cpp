#include "python/python.h"

#include <c10/util/Exception.h>

#include <cstdio>

#include "python/raised.h"

namespace bringup {
namespace {

// PyGILState_Check always returns 1 once a second interpreter exists, so it cannot be used. Other interpreters cannot load torch,
// so their threads run the core only while they do not hold the GIL.
bool holds_gil() {
  void* current = PyThreadState_GetUnchecked ? PyThreadState_GetUnchecked() : _PyThreadState_UncheckedGet();
  return current && (python_version() >= 312 || current == PyGILState_GetThisThreadState());
}

}  // namespace

int python_version() {
  static const int version = [] {
    int major = 0, minor = 0;
    std::sscanf(Py_GetVersion(), "%d.%d", &major, &minor);
    return major * 100 + minor;
  }();
  return version;
}

bool is_python_thread() { return Py_IsInitialized() && PyGILState_GetThisThreadState(); }

Gil::Gil() : acquired_(!holds_gil()), state_(acquired_ ? PyGILState_Ensure() : 0) { PyErr_Fetch(&type_, &value_, &trace_); }
Gil::~Gil() {
  if (type_) PyErr_Restore(type_, value_, trace_);
  if (acquired_) PyGILState_Release(state_);
}

ReleaseGil::ReleaseGil() : state_(Py_IsInitialized() && holds_gil() ? PyEval_SaveThread() : nullptr) {}
ReleaseGil::~ReleaseGil() {
  if (state_) PyEval_RestoreThread(state_);
}

std::unique_lock<std::mutex> lock_without_gil(std::mutex& mutex) {
  std::unique_lock<std::mutex> lock(mutex, std::try_to_lock);
  if (!lock) {
    ReleaseGil no_gil;
    lock.lock();
  }
  return lock;
}

std::string text_of(PyObject* string) {
  Ref bytes(string ? PyUnicode_AsEncodedString(string, "utf-8", "backslashreplace") : nullptr);
  const char* text = bytes ? PyBytes_AsString(bytes.get()) : nullptr;
  std::string copy = text ? text : "";
  PyErr_Clear();
  return copy;
}

std::string text_of(PyObject* object, const char* attribute) {
  return text_of(Ref(PyObject_GetAttrString(object, attribute)).get());
}

void throw_python_error() {
  PyObject *type, *value, *trace;
  PyErr_Fetch(&type, &value, &trace);
  PyErr_NormalizeException(&type, &value, &trace);
  Ref owned_type(type), owned_value(value), owned_trace(trace);
  Ref text(value ? PyObject_Str(value) : nullptr);
  std::string problem = text ? text_of(text.get()) : "unknown error";
  Ref module(value ? PyImport_ImportModule("bringup.device.raised") : nullptr);
  Ref number(module ? PyObject_CallMethod(module.get(), "keep", "(O)", value) : nullptr);
  PyErr_Clear();
  TORCH_CHECK(number, problem);
  throw PythonError(PyLong_AsLong(number.get()), problem);
}

}  // namespace bringup
