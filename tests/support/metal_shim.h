// What the Metal kernels of qkernels/lanes/metal_source.py use of Metal, for a C++ compiler on x86-64.
#pragma once
#include <cmath>
#include <cstring>
#include <xmmintrin.h>

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
static_assert(sizeof(long) == 8 && sizeof(int) == 4, "Metal's widths");

#define kernel extern "C"
#define device
#define constant const

namespace metal {
template <class To, class From> inline To as_type(From from) {
    static_assert(sizeof(To) == sizeof(From), "as_type between sizes");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}
// Templates of one type, as Metal's are: operands of two types are an error and not converted.
template <class T> inline T min(T a, T b) { return b < a ? b : a; }
template <class T> inline T max(T a, T b) { return a < b ? b : a; }
template <class T> inline T clamp(T v, T low, T high) { return min(max(v, low), high); }
inline float fabs(float v) { return as_type<float>(as_type<uint>(v) & 0x7fffffffu); }
namespace precise {
inline float divide(float a, float b) { return a / b; }
inline float sqrt(float v) { return std::sqrt(v); }
}
}

// A GPU may flush sub-normal operands and results to zero; the processor does it when told.
struct Rounding {
    unsigned before;
    explicit Rounding(int flushing) : before(_mm_getcsr()) {
        if (flushing) _mm_setcsr(before | 0x8040);
    }
    ~Rounding() { _mm_setcsr(before); }
};
