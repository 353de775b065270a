#include "python/whose.h"

#include <array>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "python/python.h"

namespace bringup {
namespace {

bool starts_with_any(const std::string& text, const std::vector<std::string>& prefixes) {
  for (const auto& prefix : prefixes)
    if (text.compare(0, prefix.size(), prefix) == 0) return true;
  return false;
}

// Where an importable package lies, with the slash; empty if it is not there.
std::string folder_of(const char* package) {
  Ref module(PyImport_ImportModule(package));
  std::string file = module ? text_of(module.get(), "__file__") : "";
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

}  // namespace

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

}  // namespace bringup
