// NVIDIA's libraries, opened by name when they are first used: building a driver with them needs neither CUDA nor its headers.
#pragma once
#include <dirent.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "../driver.h"

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

// ---- the run-time compiler

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
inline std::string compile(const std::string& source, const std::string& architecture, std::string* log) {
  const Nvrtc& rtc = nvrtc();
  std::string target = "--gpu-architecture=" + architecture;
  const char* options[] = {target.c_str(), "--std=c++17"};
  Nvrtc::Program program = nullptr;
  rtc.nvrtcCreateProgram(&program, source.c_str(), "kit.cu", 0, nullptr, nullptr);
  bool compiles = rtc.nvrtcCompileProgram(program, 2, options) == 0;
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

// ---- the driver, with declarations as in cuda.h

using Handle = void*;
using Address = unsigned long long;
constexpr int kNotReady = 600, kNonBlocking = 1, kPortableMapped = 3;
constexpr int kMajor = 75, kMinor = 76;              // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
constexpr int kMultiprocessors = 16, kThreads = 39;  // CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, _MAX_THREADS_PER_MULTIPROCESSOR

struct Cuda {
  int (*cuInit)(unsigned);
  int (*cuDeviceGet)(int*, int);
  int (*cuDeviceGetAttribute)(int*, int, int);
  int (*cuDeviceGetName)(char*, int, int);
  int (*cuDevicePrimaryCtxRetain)(Handle*, int);
  int (*cuCtxSetCurrent)(Handle);
  int (*cuGetErrorString)(int, const char**);
  int (*cuMemAlloc_v2)(Address*, size_t);
  int (*cuMemFree_v2)(Address);
  int (*cuMemHostAlloc)(void**, size_t, unsigned);
  int (*cuMemFreeHost)(void*);
  int (*cuStreamCreateWithPriority)(Handle*, unsigned, int);
  int (*cuStreamDestroy_v2)(Handle);
  int (*cuStreamSynchronize)(Handle);
  int (*cuStreamQuery)(Handle);
  int (*cuMemcpyHtoDAsync_v2)(Address, const void*, size_t, Handle);
  int (*cuMemcpyDtoHAsync_v2)(void*, Address, size_t, Handle);
  int (*cuMemcpyAsync)(Address, Address, size_t, Handle);
  int (*cuLaunchHostFunc)(Handle, void (*)(void*), void*);
  int (*cuEventCreate)(Handle*, unsigned);
  int (*cuEventDestroy_v2)(Handle);
  int (*cuEventRecord)(Handle, Handle);
  int (*cuStreamWaitEvent)(Handle, Handle, unsigned);
  int (*cuEventQuery)(Handle);
  int (*cuEventSynchronize)(Handle);
  int (*cuEventElapsedTime)(float*, Handle, Handle);
  int (*cuModuleLoadData)(Handle*, const void*);
  int (*cuModuleGetFunction)(Handle*, Handle, const char*);
  int (*cuLaunchKernel)(Handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Handle, void**, void**);
  std::string problem;

  Cuda() {
    void* library = dlopen("libcuda.so.1", RTLD_NOW);
    if (!library) problem = "libcuda.so.1 is missing: this machine has no NVIDIA driver";
#define BRINGUP_LOAD(name)                                                                  \
  if (problem.empty() && !(name = reinterpret_cast<decltype(name)>(dlsym(library, #name)))) \
  problem = "libcuda.so.1 has no " #name ": the NVIDIA driver is too old"
    BRINGUP_LOAD(cuInit);
    BRINGUP_LOAD(cuDeviceGet);
    BRINGUP_LOAD(cuDeviceGetAttribute);
    BRINGUP_LOAD(cuDeviceGetName);
    BRINGUP_LOAD(cuDevicePrimaryCtxRetain);
    BRINGUP_LOAD(cuCtxSetCurrent);
    BRINGUP_LOAD(cuGetErrorString);
    BRINGUP_LOAD(cuMemAlloc_v2);
    BRINGUP_LOAD(cuMemFree_v2);
    BRINGUP_LOAD(cuMemHostAlloc);
    BRINGUP_LOAD(cuMemFreeHost);
    BRINGUP_LOAD(cuStreamCreateWithPriority);
    BRINGUP_LOAD(cuStreamDestroy_v2);
    BRINGUP_LOAD(cuStreamSynchronize);
    BRINGUP_LOAD(cuStreamQuery);
    BRINGUP_LOAD(cuMemcpyHtoDAsync_v2);
    BRINGUP_LOAD(cuMemcpyDtoHAsync_v2);
    BRINGUP_LOAD(cuMemcpyAsync);
    BRINGUP_LOAD(cuLaunchHostFunc);
    BRINGUP_LOAD(cuEventCreate);
    BRINGUP_LOAD(cuEventDestroy_v2);
    BRINGUP_LOAD(cuEventRecord);
    BRINGUP_LOAD(cuStreamWaitEvent);
    BRINGUP_LOAD(cuEventQuery);
    BRINGUP_LOAD(cuEventSynchronize);
    BRINGUP_LOAD(cuEventElapsedTime);
    BRINGUP_LOAD(cuModuleLoadData);
    BRINGUP_LOAD(cuModuleGetFunction);
    BRINGUP_LOAD(cuLaunchKernel);
#undef BRINGUP_LOAD
  }
};

inline const Cuda& cu() {
  static const auto* functions = new Cuda();
  return *functions;
}

// ---- products, with declarations as in cublas_api.h

struct Cublas {
  int (*cublasCreate_v2)(Handle*);
  int (*cublasSetStream_v2)(Handle, Handle);
  int (*cublasGemmStridedBatchedEx)(Handle, int, int, int, int, int, const void*, const void*, int, int, long long, const void*,
                                    int, int, long long, const void*, void*, int, int, long long, int, int, int);
  bool usable = false;

  Cublas() {
    open_library("libcublasLt.so.");
    void* library = open_library("libcublas.so.");
    usable = library != nullptr;
#define BRINGUP_LOAD(name) usable = usable && (name = reinterpret_cast<decltype(name)>(dlsym(library, #name)))
    BRINGUP_LOAD(cublasCreate_v2);
    BRINGUP_LOAD(cublasSetStream_v2);
    BRINGUP_LOAD(cublasGemmStridedBatchedEx);
#undef BRINGUP_LOAD
  }
};

inline const Cublas& blas() {
  static const auto* functions = new Cublas();
  return *functions;
}

// The leading dimension of a row-major matrix (rows, columns) with these strides, for cuBLAS; 0 if it has none. `transposed` is
// set if the columns are contiguous instead.
inline int leading(long rows, long columns, const long* strides, bool* transposed) {
  constexpr long kMost = std::numeric_limits<int>::max();
  *transposed = false;
  if ((strides[2] == 1 || columns == 1) && (rows == 1 || strides[1] >= columns)) {
    long value = rows == 1 ? columns : strides[1];
    if (columns == 1 && rows > 1 && strides[1] < 1) return 0;
    return value <= kMost ? int(std::max(value, 1l)) : 0;
  }
  *transposed = true;
  if ((strides[1] == 1 || rows == 1) && (columns == 1 || strides[2] >= rows)) {
    long value = columns == 1 ? rows : strides[2];
    return value <= kMost ? int(std::max(value, 1l)) : 0;
  }
  return 0;
}

// A product of row-major matrices. cuBLAS takes columns first: it computes the transposed product, with the factors exchanged.
struct Gemm {
  bool possible, a_transposed, b_transposed;
  int batch, m, n, k, lda, ldb, data, compute;
  long long a_stride, b_stride;

  Gemm(int dtype, long batches, long rows, long columns, long inner, const long* a, const long* b) {
    constexpr long kMost = std::numeric_limits<int>::max();
    lda = leading(rows, inner, a, &a_transposed), ldb = leading(inner, columns, b, &b_transposed);
    data = dtype == BRINGUP_FLOAT32    ? 0   // CUDA_R_32F
           : dtype == BRINGUP_FLOAT64  ? 1   // CUDA_R_64F
           : dtype == BRINGUP_FLOAT16  ? 2   // CUDA_R_16F
           : dtype == BRINGUP_BFLOAT16 ? 14  // CUDA_R_16BF
                                       : -1;
    compute = dtype == BRINGUP_FLOAT64 ? 70 : 68;  // CUBLAS_COMPUTE_64F, CUBLAS_COMPUTE_32F
    possible = lda && ldb && data >= 0 && std::max({batches, rows, columns, inner}) <= kMost;
    batch = int(batches), m = int(rows), n = int(columns), k = int(inner), a_stride = a[0], b_stride = b[0];
  }

  int run(Handle handle, void* c, const void* a, const void* b, double alpha, double beta) const {
    float small[] = {float(alpha), float(beta)};
    double large[] = {alpha, beta};
    const void* by = compute == 70 ? static_cast<const void*>(large) : small;
    const void* plus = compute == 70 ? static_cast<const void*>(large + 1) : small + 1;
    constexpr int kDefault = -1;  // CUBLAS_GEMM_DEFAULT
    return blas().cublasGemmStridedBatchedEx(handle, b_transposed, a_transposed, n, m, k, by, b, data, ldb, b_stride, a, data,
                                             lda, a_stride, plus, c, data, n, (long long)m * n, batch, compute, kDefault);
  }
};

}  // namespace nvidia
