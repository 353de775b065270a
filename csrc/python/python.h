// Access to Python: its C API, the GIL, owned references, and calls of bringup's Python functions.
#pragma once
#include <torch/csrc/utils/python_stub.h>

#include <cstdint>
#include <mutex>
#include <string>
#include <utility>

// The functions of Python's C API that the core uses. Declaring them here means that a build needs no Python headers, and that
// one core serves every Python from 3.10 on. A weak function is missing in some of them.
extern "C" {
int PyGILState_Ensure();
void PyGILState_Release(int);
// The thread state that holds the GIL. Until 3.11 it may be another thread's; since 3.12 it is this thread's, or null.
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
void PyErr_Restore(PyObject*, PyObject*, PyObject*);
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

// Holds the GIL in its scope; the thread may hold it already. A Python error that is propagating through this thread is set aside
// until the end of the scope.
class Gil {
 public:
  Gil();
  ~Gil();
  Gil(const Gil&) = delete;

 private:
  bool acquired_;
  int state_;
  PyObject *type_, *value_, *trace_;
};

// Releases the GIL in its scope, so that other Python threads run while this one waits in C++. Has no effect on a thread that
// does not hold the GIL.
class ReleaseGil {
 public:
  ReleaseGil();
  ~ReleaseGil();
  ReleaseGil(const ReleaseGil&) = delete;

 private:
  void* state_;
};

// Locks a mutex whose owner may need the GIL. The calling thread releases the GIL while it waits.
std::unique_lock<std::mutex> lock_without_gil(std::mutex& mutex);

// An owned reference, or null. The GIL must be held when a reference is created, assigned or destroyed.
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

// Returns text as UTF-8. Characters that cannot be encoded, as in some file names, are escaped as in Python's tracebacks: \udcff.
std::string text_of(PyObject* string);
std::string text_of(PyObject* object, const char* attribute);

// Throws the current Python error as a PythonError (raised.h).
[[noreturn]] void throw_python_error();

// Calls a function of a Python module of bringup, and returns its result. `format` and `arguments` are those of Py_BuildValue.
// Throws the function's error as a PythonError. The caller holds the GIL.
template <class... Arguments>
Ref call_python(const char* module, const char* function, const char* format, Arguments... arguments) {
  Ref imported(PyImport_ImportModule(module));
  Ref result(imported ? PyObject_CallMethod(imported.get(), function, format, arguments...) : nullptr);
  if (!result) throw_python_error();
  return result;
}

}  // namespace bringup
