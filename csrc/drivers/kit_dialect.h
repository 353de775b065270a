// The common subset of OpenCL C and CUDA C in which the kernels are written. Each pointer comes with an offset in elements, since
// OpenCL has no addresses within a buffer. Memory holds elements of a storage type such as `bf16`; LOAD and STORE convert between
// it and the type that kernels compute in: float for float16 and bfloat16, long for integers. Kernels over rows have a group of
// LANES threads per row.
#pragma once

namespace kit {

inline const char* const kDialect = R"(
#ifdef __CUDACC_RTC__
typedef unsigned long ulong;
typedef unsigned int uint;
typedef unsigned char uchar;
typedef unsigned short f16;
#define KERNEL extern "C" __global__ void
#define DEVICE __device__ inline
#define GLOBAL
#define LOCAL __shared__
#define BARRIER __syncthreads()
#define LANE ((int)threadIdx.x)
#define LANE_Y ((int)threadIdx.y)
#define GROUP ((long)blockIdx.x)
#define GROUP_Y ((long)blockIdx.y)
#define GROUP_Z ((long)blockIdx.z)
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fc00000)
DEVICE float as_float(uint bits) { return __uint_as_float(bits); }
DEVICE uint as_uint(float value) { return __float_as_uint(value); }
DEVICE float load_f16(f16* p, long i) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(p[i]));
  return value;
}
DEVICE void store_f16(f16* p, long i, float value) {
  f16 bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  p[i] = bits;
}
#define DOUBLES
#else
typedef half f16;
#define KERNEL __kernel void
#define DEVICE
#define GLOBAL __global
#define LOCAL __local
#define BARRIER barrier(CLK_LOCAL_MEM_FENCE)
#define LANE ((int)get_local_id(0))
#define LANE_Y ((int)get_local_id(1))
#define GROUP ((long)get_group_id(0))
#define GROUP_Y ((long)get_group_id(1))
#define GROUP_Z ((long)get_group_id(2))
float load_f16(GLOBAL f16* p, long i) { return vload_half(i, p); }
void store_f16(GLOBAL f16* p, long i, float value) { vstore_half_rte(value, i, p); }
#ifdef cl_khr_fp64
#define DOUBLES
#endif
#endif
#define LANES 256
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define LOAD(T, p, i) JOIN(load_, T)(p, i)
#define STORE(T, p, i, v) JOIN(store_, T)(p, i, v)
#define WIDE(T) JOIN(wide_, T)
#define STORED_AS(T, V) \
  typedef V wide_##T; \
  DEVICE V load_##T(GLOBAL T* p, long i) { return (V)p[i]; } \
  DEVICE void store_##T(GLOBAL T* p, long i, V value) { p[i] = (T)value; }
typedef signed char schar;
typedef unsigned short bf16;
typedef float wide_f16;
typedef float wide_bf16;
STORED_AS(float, float)
STORED_AS(long, long)
STORED_AS(int, long)
STORED_AS(short, long)
STORED_AS(schar, long)
STORED_AS(uchar, long)
#ifdef DOUBLES
STORED_AS(double, double)
#endif
DEVICE float load_bf16(GLOBAL bf16* p, long i) { return as_float((uint)p[i] << 16); }
DEVICE void store_bf16(GLOBAL bf16* p, long i, float value) {
  uint bits = as_uint(value);
  p[i] = value != value ? 0x7fc0 : (bf16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
#define ARG(T, x) GLOBAL T* x##_base, ulong x##_offset
#define USE(T, x) GLOBAL T* x = x##_base + x##_offset
// Combines `v` of all threads of a group; `red` is local memory.
#define COMBINE(v, combined) \
  { red[LANE] = v; BARRIER; \
    for (int w = LANES / 2; w > 0; w /= 2) { if (LANE < w) red[LANE] = combined(red[LANE], red[LANE + w]); BARRIER; } \
    v = red[0]; BARRIER; }
#define PLUS(x, y) ((x) + (y))
#define LARGER(x, y) ((x) != (x) ? (x) : (y) != (y) ? (y) : (x) > (y) ? (x) : (y))
#define SUM(v) COMBINE(v, PLUS)
#define MAXIMUM(v) COMBINE(v, LARGER)
typedef struct { long dims; long size[6]; long o[6], a[6], b[6], c[6]; } Map;
)";

}  // namespace kit
