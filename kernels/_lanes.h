/* Eight floats side by side, in the compiler's generic vectors: the words of `_paged.c`.
 *
 * Everything here is inlined into the two compilations that DISPATCH makes of a loop (for any
 * machine, and for AVX2+FMA on x86-64). Nothing here may depend on which.
 */
#ifndef MOECTL_LANES_H
#define MOECTL_LANES_H
#include <stdint.h>
#include <stdlib.h>

#define LANES 8

typedef float v8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t i8v __attribute__((vector_size(32), aligned(4), may_alias));

/* DISPATCH(name, Type) makes `name(const Type *)` out of the inlined `name_body`: compiled for any
 * machine and, on x86-64, for AVX2+FMA, chosen by what the CPU says it can do. */
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define DISPATCH(name, Type)                                                                     \
    __attribute__((target("avx2,fma"))) static void name##_wide(const Type *a) { name##_body(a); } \
    static void name##_plain(const Type *a) { name##_body(a); }                                  \
    static void name(const Type *a) {                                                            \
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) name##_wide(a);     \
        else name##_plain(a);                                                                    \
    }
#else
#define DISPATCH(name, Type)                                                                     \
    static void name(const Type *a) { name##_body(a); }
#endif
#define INLINE static inline __attribute__((always_inline))

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (i8v){__VA_ARGS__})
#endif

#pragma GCC diagnostic ignored "-Wpsabi"

INLINE v8 splat(float x) { return (v8){x, x, x, x, x, x, x, x}; }
INLINE v8 load(const float *p) { return *(const v8 *)p; }
INLINE void store(float *p, v8 x) { *(v8 *)p = x; }

/* A bfloat16 is the upper half of a float: widening is exact. */
typedef uint16_t u8h __attribute__((vector_size(16), aligned(2), may_alias));
typedef uint32_t u8v __attribute__((vector_size(32)));
INLINE v8 load_half(const uint16_t *p) {
    return (v8)(__builtin_convertvector(*(const u8h *)p, u8v) << 16);
}

/* Fold eight accumulators into their eight sums, each as ((0+1)+(2+3))+((4+5)+(6+7)). */
INLINE v8 fold(const v8 *a) {
    v8 pair[4], quad[2];
    for (int i = 0; i < 4; i++)
        pair[i] = SHUFFLE(a[2 * i], a[2 * i + 1], 0, 8, 2, 10, 4, 12, 6, 14) +
                  SHUFFLE(a[2 * i], a[2 * i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
    for (int i = 0; i < 2; i++)
        quad[i] = SHUFFLE(pair[2 * i], pair[2 * i + 1], 0, 1, 8, 9, 4, 5, 12, 13) +
                  SHUFFLE(pair[2 * i], pair[2 * i + 1], 2, 3, 10, 11, 6, 7, 14, 15);
    return SHUFFLE(quad[0], quad[1], 0, 1, 2, 3, 8, 9, 10, 11) +
           SHUFFLE(quad[0], quad[1], 4, 5, 6, 7, 12, 13, 14, 15);
}

/* exp by range reduction to |r| <= ln2/2 and a polynomial of degree 6; relative error about 1e-7.
 * Arguments are clamped to +-87, so the result is always a normal number. */
INLINE v8 exp8(v8 x) {
    const v8 low = splat(-87.0f), high = splat(87.0f), magic = splat(12582912.0f);
    i8v under = x < low, over = x > high;
    x = (v8)(((i8v)x & ~under) | ((i8v)low & under));
    x = (v8)(((i8v)x & ~over) | ((i8v)high & over));
    v8 shifted = x * splat(1.44269504088896341f) + magic;
    v8 n = shifted - magic;
    v8 r = x - n * splat(0.693359375f);
    r = r - n * splat(-2.12194440e-4f);
    v8 p = splat(1.0f / 720.0f);
    p = p * r + splat(1.0f / 120.0f);
    p = p * r + splat(1.0f / 24.0f);
    p = p * r + splat(1.0f / 6.0f);
    p = p * r + splat(0.5f);
    p = p * r + splat(1.0f);
    p = p * r + splat(1.0f);
    i8v exponent = (((i8v)shifted - (i8v)magic) + 127) << 23;
    return p * (v8)exponent;
}

INLINE float exp1(float x) { return exp8(splat(x))[0]; }

#endif
