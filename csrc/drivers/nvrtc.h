// NVIDIA's run-time compiler, opened by name: building a driver with it needs neither CUDA nor its headers.
#pragma once
#include <dirent.h>
#include <dlfcn.h>

#include <cstdlib>
#include <string>
#include <vector>

namespace nvidia {

// Opens a library by the start of its file's name ("libnvrtc.so."): in the folders of BRINGUP_CUDA_LIBRARIES, else where the
// system finds it by one of its versions.
inline void* open_library(const std::string& start) {
  const char* folders = getenv("BRINGUP_CUDA_LIBRARIES");
  std::string all = folders ? folders : "";
  for (size_t from = 0, end; from < all.size(); from = end + 1) {
    end = std::min(all.find(':', from), all.size());
    std::string folder = all.substr(from, end - from);
    DIR* list = opendir(folder.c_str());
    if (!list) continue;
    void* library = nullptr;
    while (dirent* entry = library ? nullptr : readdir(list))
      if (std::string(entry->d_name).rfind(start, 0) == 0)
        library = dlopen((folder + "/" + entry->d_name).c_str(), RTLD_NOW | RTLD_GLOBAL);
    closedir(list);
    if (library) return library;
  }
  for (const char* version : {"13", "12"})  // the releases of CUDA that torch is built for
    if (void* library = dlopen((start + version).c_str(), RTLD_NOW | RTLD_GLOBAL)) return library;
  return nullptr;
}

struct Nvrtc {  // declarations as in nvrtc.h
  using Program = void*;
  int (*nvrtcCreateProgram)(Program*, const char*, const char*, int, const char* const*, const char* const*);
  int (*nvrtcCompileProgram)(Program, int, const char* const*);
  int (*nvrtcGetCUBINSize)(Program, size_t*);
  int (*nvrtcGetCUBIN)(Program, char*);
  int (*nvrtcGetProgramLogSize)(Program, size_t*);
  int (*nvrtcGetProgramLog)(Program, char*);
  int (*nvrtcDestroyProgram)(Program*);
  bool usable = false;

  Nvrtc() {
    open_library("libnvrtc-builtins.so.");  // the compiler looks for it by name
    void* library = open_library("libnvrtc.so.");
    usable = library != nullptr;
#define BRINGUP_LOAD(name) usable = usable && (name = reinterpret_cast<decltype(name)>(dlsym(library, #name)))
    BRINGUP_LOAD(nvrtcCreateProgram);
    BRINGUP_LOAD(nvrtcCompileProgram);
    BRINGUP_LOAD(nvrtcGetCUBINSize);
    BRINGUP_LOAD(nvrtcGetCUBIN);
    BRINGUP_LOAD(nvrtcGetProgramLogSize);
    BRINGUP_LOAD(nvrtcGetProgramLog);
    BRINGUP_LOAD(nvrtcDestroyProgram);
#undef BRINGUP_LOAD
  }
};

inline const Nvrtc& nvrtc() {
  static const auto* compiler = new Nvrtc();
  return *compiler;
}

// Compiles a source for an architecture ("sm_90"). Returns the machine code; empty if it does not compile, and then `log` says
// why.
inline std::string compile(const std::string& source, const std::string& options, const std::string& architecture,
                           std::string* log) {
  const Nvrtc& rtc = nvrtc();
  std::vector<std::string> words{"--gpu-architecture=" + architecture, "--std=c++17"};
  for (size_t from = 0, end; from < options.size(); from = end + 1) {
    end = std::min(options.find(" -D", from), options.size());
    words.push_back(options.substr(from, end - from));
  }
  std::vector<const char*> list;
  for (const std::string& word : words) list.push_back(word.c_str());
  Nvrtc::Program program = nullptr;
  rtc.nvrtcCreateProgram(&program, source.c_str(), "kit.cu", 0, nullptr, nullptr);
  bool compiles = rtc.nvrtcCompileProgram(program, int(list.size()), list.data()) == 0;
  size_t bytes = 0;
  std::string code;
  if (compiles && rtc.nvrtcGetCUBINSize(program, &bytes) == 0) {
    code.resize(bytes);
    rtc.nvrtcGetCUBIN(program, code.data());
  } else if (rtc.nvrtcGetProgramLogSize(program, &bytes) == 0) {
    log->resize(bytes);
    rtc.nvrtcGetProgramLog(program, log->data());
  }
  rtc.nvrtcDestroyProgram(&program);
  return code;
}

}  // namespace nvidia
