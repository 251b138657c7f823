"""What stands before the kernels of a Metal source: integers that wrap, conversions, walks along neighbours.

Nothing is left to what is undefined in C++: integers wrap by way of `uint`, halves are made and read in integer
arithmetic. Fusing is forbidden by the pragma.
"""

PRELUDE = """\
#include <metal_stdlib>
using namespace metal;
#pragma METAL fp contract(off)

inline int iadd(int a, int b) { return as_type<int>(as_type<uint>(a) + as_type<uint>(b)); }
inline int isub(int a, int b) { return as_type<int>(as_type<uint>(a) - as_type<uint>(b)); }
inline int imul(int a, int b) { return as_type<int>(as_type<uint>(a) * as_type<uint>(b)); }
inline int ishl(int a, int b) { return as_type<int>(as_type<uint>(a) << as_type<uint>(b)); }
inline ulong offset(int i, ulong apart) { return ulong(as_type<uint>(i)) * apart; }

inline int nearest_int(float v) {
    return v == v ? (as_type<int>(v + 12582912.0f) & 0x7fffff) - 0x400000 : 0;
}

inline int nearest_half(float v) {
    return v == v ? (as_type<int>(v + 25165824.0f) & 0x7fffff) - 0x400000 : 0;
}

inline int trunc_to_int(float v) {
    const bool fits = fabs(v) < 2147483648.0f;
    return fits ? int(v) : as_type<int>(0x80000000u);
}

inline int float_to_half(float v) {
    const uint u = as_type<uint>(v);
    const uint sign = (u >> 16u) & 0x8000u;
    const uint a = u & 0x7fffffffu;
    if (a > 0x7f800000u) { return as_type<int>(sign | 0x7e00u); }
    if (a >= 0x477ff000u) { return as_type<int>(sign | 0x7c00u); }
    if (a <= 0x33000000u) { return as_type<int>(sign); }
    if (a < 0x38800000u) {
        const uint shift = 126u - (a >> 23u);
        const uint mantissa = (a & 0x7fffffu) | 0x800000u;
        const uint whole = mantissa >> shift;
        const uint rest = mantissa & ((1u << shift) - 1u);
        const uint middle = 1u << (shift - 1u);
        const bool up = (rest > middle) || ((rest == middle) && ((whole & 1u) != 0u));
        return as_type<int>(sign | (whole + (up ? 1u : 0u)));
    }
    const uint b = a - 0x38000000u;
    return as_type<int>(sign | ((b + 0xfffu + ((b >> 13u) & 1u)) >> 13u));
}

inline float half_to_float(int h) {
    const uint u = as_type<uint>(h);
    const uint sign = (u & 0x8000u) << 16u;
    const uint exponent = (u >> 10u) & 31u;
    const uint mantissa = u & 0x3ffu;
    if (exponent == 0u) {
        const float small = float(mantissa) * 5.9604645e-08f;
        return as_type<float>(as_type<uint>(small) | sign);
    }
    const uint high = (exponent == 31u) ? 0x7f800000u : ((exponent + 112u) << 23u);
    return as_type<float>(sign | high | (mantissa << 13u));
}

inline int float_to_brain(float v) {
    const uint u = as_type<uint>(v);
    if ((u & 0x7fffffffu) > 0x7f800000u) { return 0x7fc0; }
    return as_type<int>((u + 0x7fffu + ((u >> 16u) & 1u)) >> 16u);
}

template <int DIM, int BITS, bool SHIFTED>
inline int walk(
    int u, device const float* v, ulong v_apart, device const float* w, ulong w_apart, int place,
    float scale, float low, device const int* lists, device const int* near
) {
    const int listed = lists[u];
    const int count = listed & 1023;
    if (count == 0) { return u; }
    device const int* codes = near + (listed >> 10) * 16;
    float x[8];
    float weight[8];
    for (int k = 0; k < DIM; ++k) {
        x[k] = v[offset(place + k, v_apart)];
        weight[k] = w[offset(place + k, w_apart)];
    }
    float best = 3.4028235e+38f;
    int found = u;
    for (int i = 0; i < count; ++i) {
        const int code = codes[i];
        float distance = 0.0f;
        for (int k = 0; k < DIM; ++k) {
            const int digit = (code >> (BITS * k)) & ((1 << BITS) - 1);
            const float value = SHIFTED ? (float(digit) + low) : float(digit * 2 + 1);
            const float d = scale * value - x[k];
            distance = distance + weight[k] * d * d;
        }
        if (distance < best) {
            best = distance;
            found = code;
        }
    }
    return found;
}
"""
