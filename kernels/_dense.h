/* Dense rows: linear layers and RMS norms whose rows do not depend on how many there are.
 *
 * A dot product runs in 8 lanes over the whole depth and is folded in one order; rows and outputs
 * are only blocked to use registers and cache, which chooses what runs side by side, never a sum's
 * order.
 */
#ifndef MOECTL_DENSE_H
#define MOECTL_DENSE_H
#include <math.h>
#include <string.h>

#include "_lanes.h"

INLINE void store_some(float *p, v8 x, long long count) {
    if (count >= LANES) store(p, x);
    else
        for (long long i = 0; i < count; i++) p[i] = x[i];
}

/* y[r][o] for R rows and all outputs: dot products over `depth`, O outputs side by side. Outputs
 * come in eights; past the last one its weights are read again and the result is dropped. Weights
 * are of TYPE, widened by LOAD; sums are floats in the same order whatever the weights are. */
#define DOT_ROWS(NAME, R, O, TYPE, LOAD)                                                         \
    INLINE void NAME##_##R(const float *const *x, const TYPE *w, long long outputs,              \
                           long long depth, float *const *y) {                                   \
        for (long long o = 0; o < outputs; o += LANES) {                                         \
            v8 sum[R][LANES];                                                                    \
            for (int b = 0; b < LANES; b += O) {                                                 \
                v8 part[R][O];                                                                   \
                const TYPE *row[O];                                                              \
                for (int i = 0; i < O; i++)                                                      \
                    row[i] = w + (o + b + i < outputs ? o + b + i : outputs - 1) * depth;        \
                for (int r = 0; r < R; r++)                                                      \
                    for (int i = 0; i < O; i++) part[r][i] = splat(0.0f);                        \
                for (long long d = 0; d < depth; d += LANES)                                     \
                    for (int i = 0; i < O; i++) {                                                \
                        v8 weight = LOAD(row[i] + d);                                            \
                        for (int r = 0; r < R; r++) part[r][i] += weight * load(x[r] + d);       \
                    }                                                                            \
                for (int r = 0; r < R; r++)                                                      \
                    for (int i = 0; i < O; i++) sum[r][b + i] = part[r][i];                      \
            }                                                                                    \
            for (int r = 0; r < R; r++) store_some(y[r] + o, fold(sum[r]), outputs - o);         \
        }                                                                                        \
    }

/* NAME(rows, ...) for up to four rows. */
#define DOT_ROWS_OF(NAME, TYPE, LOAD)                                                            \
    DOT_ROWS(NAME, 1, 8, TYPE, LOAD)                                                             \
    DOT_ROWS(NAME, 2, 4, TYPE, LOAD)                                                             \
    DOT_ROWS(NAME, 3, 4, TYPE, LOAD)                                                             \
    DOT_ROWS(NAME, 4, 2, TYPE, LOAD)                                                             \
    INLINE void NAME(int rows, const float *const *x, const TYPE *w, long long outputs,          \
                     long long depth, float *const *y) {                                         \
        if (rows == 4) NAME##_4(x, w, outputs, depth, y);                                        \
        else if (rows == 3) NAME##_3(x, w, outputs, depth, y);                                   \
        else if (rows == 2) NAME##_2(x, w, outputs, depth, y);                                   \
        else NAME##_1(x, w, outputs, depth, y);                                                  \
    }
DOT_ROWS_OF(dot_rows, float, load)
DOT_ROWS_OF(dot_rows_half, uint16_t, load_half)

typedef struct {
    const float *x, *weight, *bias; /* [row][depth], [output][depth], [output] or NULL */
    float *y;                       /* [row][output] */
    long long rows, outputs, depth;
} Linear;

#define LINEAR_CHUNK 16 /* outputs whose weights stay in the first-level cache over all rows */

INLINE void linear_body(const Linear *a) {
    for (long long o = 0; o < a->outputs; o += LINEAR_CHUNK) {
        long long count = a->outputs - o < LINEAR_CHUNK ? a->outputs - o : LINEAR_CHUNK;
        for (long long n = 0; n < a->rows; n += 4) {
            const float *x[4] = {0};
            float *y[4] = {0};
            int rows = a->rows - n < 4 ? (int)(a->rows - n) : 4;
            for (int r = 0; r < rows; r++) {
                x[r] = a->x + (n + r) * a->depth;
                y[r] = a->y + (n + r) * a->outputs + o;
            }
            dot_rows(rows, x, a->weight + o * a->depth, count, a->depth, y);
            for (int r = 0; r < rows && a->bias; r++)
                for (long long i = 0; i < count; i++) y[r][i] += a->bias[o + i];
        }
    }
}
DISPATCH(linear, Linear)

typedef struct {
    const float *x, *weight; /* [row][depth], [depth] */
    float *y;                /* [row][depth] */
    long long rows, depth;
    double epsilon;
} Norm;

INLINE void norm_body(const Norm *a) {
    for (long long n = 0; n < a->rows; n++) {
        const float *x = a->x + n * a->depth;
        float *y = a->y + n * a->depth;
        v8 sum = splat(0.0f);
        for (long long d = 0; d < a->depth; d += LANES) sum += load(x + d) * load(x + d);
        float total =
            ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
        v8 scale = splat(1.0f / sqrtf(total / (float)a->depth + (float)a->epsilon));
        for (long long d = 0; d < a->depth; d += LANES)
            store(y + d, load(a->weight + d) * (load(x + d) * scale));
    }
}
DISPATCH(norm, Norm)

/* A weight of its own for every head: y[row][head] = w[head] x[row][head]. */
typedef struct {
    const float *x; /* [row][head][depth] by strides */
    long long x_row, x_head;
    const float *weight; /* [head][output][depth], or [head][depth][output] when transposed */
    long long weight_head;
    float *y; /* [row][head][output], contiguous */
    long long rows, heads, depth, outputs, transposed;
} ByHead;

/* Outputs side by side, depth ascending, 32 outputs at a time in registers. */
INLINE void down_columns(const float *x, const float *w, long long depth, long long outputs,
                         float *y) {
    long long o = 0;
    for (; o + 32 <= outputs; o += 32) {
        v8 s0 = splat(0.0f), s1 = s0, s2 = s0, s3 = s0;
        for (long long d = 0; d < depth; d++) {
            const float *row = w + d * outputs + o;
            v8 factor = splat(x[d]);
            s0 += factor * load(row);
            s1 += factor * load(row + 8);
            s2 += factor * load(row + 16);
            s3 += factor * load(row + 24);
        }
        store(y + o, s0), store(y + o + 8, s1), store(y + o + 16, s2), store(y + o + 24, s3);
    }
    for (; o < outputs; o += LANES) {
        v8 s = splat(0.0f);
        for (long long d = 0; d < depth; d++) s += splat(x[d]) * load(w + d * outputs + o);
        store(y + o, s);
    }
}

INLINE void by_head_body(const ByHead *a) {
    for (long long h = 0; h < a->heads; h++) {
        const float *w = a->weight + h * a->weight_head;
        for (long long n = 0; n < a->rows; n += 4) {
            const float *x[4] = {0};
            float *y[4] = {0};
            int rows = a->rows - n < 4 ? (int)(a->rows - n) : 4;
            for (int r = 0; r < rows; r++) {
                x[r] = a->x + (n + r) * a->x_row + h * a->x_head;
                y[r] = a->y + ((n + r) * a->heads + h) * a->outputs;
                if (a->transposed) down_columns(x[r], w, a->depth, a->outputs, y[r]);
            }
            if (!a->transposed) dot_rows(rows, x, w, a->outputs, a->depth, y);
        }
    }
}
DISPATCH(by_head, ByHead)

#endif
