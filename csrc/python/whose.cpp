#include "python/whose.h"

#include <array>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "python/python.h"
#include "record/waits.h"

namespace bringup {
namespace {

bool starts_with_any(const std::string& text, const std::vector<std::string>& prefixes) {
  for (const auto& prefix : prefixes)
    if (text.compare(0, prefix.size(), prefix) == 0) return true;
  return false;
}

// The file of an importable module, which is not imported here; empty if it is missing.
std::string file_of(const char* module_name) {
  Ref importing(PyImport_ImportModule("importlib.util"));
  Ref spec(importing ? PyObject_CallMethod(importing.get(), "find_spec", "s", module_name) : nullptr);
  std::string file = spec ? text_of(spec.get(), "origin") : "";
  PyErr_Clear();
  return file;
}

// The folder of an importable package, with a trailing slash; empty if the package is missing.
std::string folder_of(const char* package) {
  std::string file = file_of(package);
  return file.substr(0, file.rfind('/') + 1);
}

struct Folders {
  std::vector<std::string> libraries;
  std::vector<std::string> machinery;  // compilers and the import system
};

Folders find_folders() {
  WaitsAside aside;  // an import may wait for another thread's; recording that wait would ask for the folders again
  Folders folders{{"<frozen", "<__array_function__", "<@beartype"}, {"<frozen importlib"}};
  for (const char* package : {"torch", "bringup", "numpy", "triton"})
    if (std::string folder = folder_of(package); !folder.empty()) folders.libraries.push_back(folder);
  // Its decorator `deprecated` calls functions of torch.distributed.
  if (std::string file = file_of("typing_extensions"); !file.empty()) folders.libraries.push_back(file);
  if (std::string torch = folder_of("torch"); !torch.empty())
    for (const char* part : {"_inductor/", "_dynamo/", "_functorch/"}) folders.machinery.push_back(torch + part);
  if (std::string triton = folder_of("triton"); !triton.empty()) folders.machinery.push_back(triton);
  return folders;
}

// Called with the GIL. Imports release it, so no lock may be held during the search, and two threads may both search.
const Folders& folders() {
  static std::atomic<const Folders*> cached{nullptr};
  if (const Folders* ready = cached.load()) return *ready;
  auto* mine = new Folders(find_folders());
  const Folders* earlier = nullptr;
  if (cached.compare_exchange_strong(earlier, mine)) return *mine;
  delete mine;
  return *earlier;
}

// True for code that Inductor generated: a module in its cache, or the function that launches a kernel.
bool is_inductors(const std::string& file, PyObject* code) {
  const char* cache = std::getenv("TORCHINDUCTOR_CACHE_DIR");
  if (file.find("/torchinductor_") != std::string::npos || (cache && *cache && file.rfind(cache, 0) == 0)) return true;
  return file == "<string>" && text_of(code, "co_name") == "launcher";
}

// The class of a code object is decided once. The object is kept alive, so that no other object gets its address.
Whose classify(PyObject* code) {
  static std::mutex mutex;
  static auto* classified = new std::unordered_map<PyObject*, Whose>();
  {
    std::lock_guard<std::mutex> lock(mutex);
    auto entry = classified->find(code);
    if (entry != classified->end()) return entry->second;
  }
  Gil gil;
  std::string file = text_of(code, "co_filename");
  // The items of the scorecard count as user programs, although their files belong to bringup.
  bool is_item = file.find("/bringup/scorecard/") != std::string::npos;
  bool user = !file.empty() && (is_item || !starts_with_any(file, folders().libraries)) && !is_inductors(file, code);
  Whose whose = starts_with_any(file, folders().machinery) ? Whose::Machinery : user ? Whose::User : Whose::Library;
  Py_IncRef(code);
  std::lock_guard<std::mutex> lock(mutex);
  (*classified)[code] = whose;
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
