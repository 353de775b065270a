// The way into Python: its C API, the GIL, references that are owned, and calls of bringup's Python side.
#pragma once
#include <torch/csrc/utils/python_stub.h>

#include <cstdint>
#include <string>
#include <utility>

// The few functions of Python's C API that are used here, so that a build needs no Python headers and one core serves
// every Python from 3.10 on. A weak one is not in all of them.
extern "C" {
int PyGILState_Ensure();
void PyGILState_Release(int);
// The current thread state, which holds the GIL: of the process until 3.11, of this thread since 3.12.
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
int PyFrame_GetLasti(PyObject*) __attribute__((weak));  // 3.11
int PyCode_Addr2Line(PyObject*, int);
PyObject* PyTuple_New(ssize_t);
int PyTuple_SetItem(PyObject*, ssize_t, PyObject*);
long PyLong_AsLong(PyObject*);
double PyFloat_AsDouble(PyObject*);
PyObject* PyFrame_GetVarString(PyObject*, const char*) __attribute__((weak));  // 3.12
const char* Py_GetVersion();
}

namespace bringup {

int python_version();  // 311 is Python 3.11
bool is_python_thread();

// Holds the GIL, which this thread may have already.
class Gil {
 public:
  Gil();
  ~Gil();
  Gil(const Gil&) = delete;

 private:
  bool taken_;
  int state_;
};

// Lets other Python threads run while this one waits in C++. Does nothing on threads that do not hold the GIL.
class ReleaseGil {
 public:
  ReleaseGil();
  ~ReleaseGil();
  ReleaseGil(const ReleaseGil&) = delete;

 private:
  void* state_;
};

// An owned reference, or none. The GIL is held wherever one is made, moved onto or dropped.
class Ref {
 public:
  explicit Ref(PyObject* owned = nullptr) : object_(owned) {}
  Ref(Ref&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Ref& operator=(Ref&& other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  ~Ref() {
    if (object_) Py_DecRef(object_);
  }
  static Ref share(PyObject* borrowed) {
    if (borrowed) Py_IncRef(borrowed);
    return Ref(borrowed);
  }
  PyObject* get() const { return object_; }
  PyObject* release() { return std::exchange(object_, nullptr); }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  PyObject* object_;
};

// Text as UTF-8. What cannot be encoded, as in the names of files, is written as Python's tracebacks write it: \udcff.
std::string text_of(PyObject* string);
std::string text_of(PyObject* object, const char* attribute);

// Raises the Python error under way as a c10::Error.
[[noreturn]] void throw_python_error();

// The result of a function in a module of bringup's. `format` and `arguments` are those of Python's Py_BuildValue. Raises
// the function's error as a c10::Error. The caller holds the GIL.
template <class... Arguments>
Ref call_python(const char* module, const char* function, const char* format, Arguments... arguments) {
  Ref imported(PyImport_ImportModule(module));
  Ref result(imported ? PyObject_CallMethod(imported.get(), function, format, arguments...) : nullptr);
  if (!result) throw_python_error();
  return result;
}

}  // namespace bringup
