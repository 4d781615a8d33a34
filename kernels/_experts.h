/* Expert MLPs for (row, expert) pairs, and the weighted sum of a row's results in id order. */
#ifndef MOECTL_EXPERTS_H
#define MOECTL_EXPERTS_H
#include "_dense.h"

typedef struct {
    const float *x; /* [row][hidden] */
    const int64_t *row, *slot, *order; /* per pair; order sorts pairs by slot */
    /* Of floats, or of bfloat16 when `half`; strides count elements. */
    const void *gate_up, *down; /* [slot][2 inner][hidden], [slot][hidden][inner] */
    const void *gate_up_bias, *down_bias; /* [slot][2 inner], [slot][hidden], or NULL */
    int half;
    long long gate_up_stride, down_stride, gate_up_bias_stride, down_bias_stride;
    long long pairs, hidden, inner;
    double alpha, limit; /* of the clamped gate; limit <= 0: the plain one */
    float *y, *scratch;  /* [pair][hidden]; [4][2 inner] */
} Experts;

INLINE v8 least(v8 a, v8 b) {
    i8v under = a < b;
    return (v8)(((i8v)a & under) | ((i8v)b & ~under));
}

INLINE void add_row(float *y, const void *bias, long long at, long long count, int half) {
    for (long long i = 0; i < count; i += LANES) {
        v8 more = half ? load_half((const uint16_t *)bias + at + i)
                       : load((const float *)bias + at + i);
        store(y + i, load(y + i) + more);
    }
}

INLINE void project(int rows, const float *const *x, const void *w, long long at, int half,
                    long long outputs, long long depth, float *const *y) {
    if (half) dot_rows_half(rows, x, (const uint16_t *)w + at, outputs, depth, y);
    else dot_rows(rows, x, (const float *)w + at, outputs, depth, y);
}

/* gate := (clamp(up) + 1) * g * sigmoid(alpha g) with g = min(gate, limit), in place. */
INLINE void clamped_gate_row(float *h, long long inner, float alpha, float limit) {
    for (long long i = 0; i < inner; i += LANES) {
        v8 gate = least(load(h + i), splat(limit));
        v8 up = -least(-least(load(h + inner + i), splat(limit)), splat(limit));
        v8 share = splat(1.0f) / (splat(1.0f) + exp8(-gate * splat(alpha)));
        store(h + i, (up + splat(1.0f)) * (gate * share));
    }
}

/* gate := silu(gate) * up, in place. */
INLINE void gate_row(float *h, long long inner) {
    for (long long i = 0; i < inner; i += LANES) {
        v8 gate = load(h + i), up = load(h + inner + i);
        store(h + i, gate / (splat(1.0f) + exp8(-gate)) * up);
    }
}

INLINE void run_experts_of(const Experts *e, int half) {
    for (long long p = 0; p < e->pairs;) {
        const float *x[4] = {0};
        float *h[4] = {0}, *y[4] = {0};
        long long slot = e->slot[e->order[p]];
        int rows = 0;
        for (; rows < 4 && p < e->pairs && e->slot[e->order[p]] == slot; rows++, p++) {
            x[rows] = e->x + e->row[e->order[p]] * e->hidden;
            h[rows] = e->scratch + rows * 2 * e->inner;
            y[rows] = e->y + e->order[p] * e->hidden;
        }
        project(rows, x, e->gate_up, slot * e->gate_up_stride, half, 2 * e->inner, e->hidden, h);
        for (int r = 0; r < rows; r++) {
            if (e->gate_up_bias)
                add_row(h[r], e->gate_up_bias, slot * e->gate_up_bias_stride, 2 * e->inner, half);
            if (e->limit > 0) clamped_gate_row(h[r], e->inner, (float)e->alpha, (float)e->limit);
            else gate_row(h[r], e->inner);
        }
        project(rows, (const float *const *)h, e->down, slot * e->down_stride, half, e->hidden,
                e->inner, y);
        for (int r = 0; r < rows && e->down_bias; r++)
            add_row(y[r], e->down_bias, slot * e->down_bias_stride, e->hidden, half);
    }
}

/* The type of the weights is a constant of each compilation. */
INLINE void run_experts_body(const Experts *e) {
    if (e->half) run_experts_of(e, 1);
    else run_experts_of(e, 0);
}
DISPATCH(run_experts, Experts)

typedef struct {
    const float *y, *weight; /* [row][k][hidden], [row][k] */
    const int64_t *ids;      /* [row][k] */
    long long rows, k, hidden;
    float *out; /* [row][hidden] */
} Sum;

INLINE void sum_in_id_order_body(const Sum *s) {
    for (long long n = 0; n < s->rows; n++) {
        float *out = s->out + n * s->hidden;
        const int64_t *ids = s->ids + n * s->k;
        memset(out, 0, (size_t)s->hidden * sizeof(float));
        /* Selection in ascending id; equal ids (never from a router) go in position order. */
        int64_t last = -1;
        long long last_at = -1;
        for (long long done = 0; done < s->k; done++) {
            long long best = -1;
            for (long long i = 0; i < s->k; i++) {
                int later = ids[i] > last || (ids[i] == last && i > last_at);
                if (later && (best < 0 || ids[i] < ids[best])) best = i;
            }
            last = ids[best], last_at = best;
            const float *y = s->y + (n * s->k + best) * s->hidden;
            v8 weight = splat(s->weight[n * s->k + best]);
            for (long long d = 0; d < s->hidden; d += LANES)
                store(out + d, load(out + d) + weight * load(y + d));
        }
    }
}
DISPATCH(sum_in_id_order, Sum)

#endif
