// Classifies Python code: the user's, a library's, or that of compilers and the import system.
#pragma once
#include <torch/csrc/utils/python_stub.h>

#include <cstdint>

namespace bringup {

enum class Whose : uint8_t { Library, Machinery, User };  // Machinery: compilers and imports, whose waits are not recorded

// Classifies a code object and keeps it alive. The caller need not hold the GIL; the first call for a code object acquires it.
Whose whose(PyObject* code);

}  // namespace bringup
