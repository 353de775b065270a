#include "python/python.h"

#include <c10/util/Exception.h>

#include <cstdio>

namespace bringup {
namespace {

// PyGILState_Check says yes to everything as soon as there is a second interpreter. Other interpreters cannot load torch, so
// their threads come here only while they wait without the GIL.
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

Gil::Gil() : taken_(!holds_gil()), state_(taken_ ? PyGILState_Ensure() : 0) {}
Gil::~Gil() {
  if (taken_) PyGILState_Release(state_);
}

ReleaseGil::ReleaseGil() : state_(Py_IsInitialized() && holds_gil() ? PyEval_SaveThread() : nullptr) {}
ReleaseGil::~ReleaseGil() {
  if (state_) PyEval_RestoreThread(state_);
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
  PyErr_Clear();
  TORCH_CHECK(false, problem);
}

}  // namespace bringup
