// Whose code a frame runs: the user's, a library's, or that of compilers and the import system.
#pragma once
#include <torch/csrc/utils/python_stub.h>

#include <cstdint>

namespace bringup {

enum class Whose : uint8_t { Library, Machinery, User };  // Machinery: what it waits for is not the program's

// Of a code object, which is kept alive. Needs no GIL, and takes it for a code object that was never seen before.
Whose whose(PyObject* code);

}  // namespace bringup
