/* Attention of ragged rows over paged keys and values: write what is new, then attend.
 *
 * Goes over tiles of TILE positions from position 0 with an online softmax; the order of every sum
 * follows from the row's position alone. Nothing past a row's own position is read.
 */
#ifndef MOECTL_ATTEND_H
#define MOECTL_ATTEND_H
#include <math.h>
#include <string.h>

#include "_lanes.h"

#define TILE 64      /* positions per softmax tile; the reference uses the same number */
#define MAX_GROUP 128 /* query heads per KV head; as many as latent attention has in one group */

typedef struct {
    const float *q; /* [row][head][depth] by strides */
    long long q_row, q_head;
    const float *k, *v; /* new keys and values, [row][kv head][depth] by strides */
    long long k_row, k_head, v_row, v_head;
    float *out; /* [row][head * depth], contiguous */
    float *cache; /* first block, at this layer: [block_tokens][kv heads][depth] of keys */
    long long block_stride, value_offset; /* elements between blocks; from keys to values */
    const int64_t *table; /* [lane][table_width] block numbers */
    long long table_width;
    const int64_t *lane, *position; /* per row; lane < 0 is a pad row */
    const float *sinks; /* [head] or NULL */
    long long rows, heads, kv_heads, depth, block_tokens, window;
    double scale;
} Attend;

INLINE float *token_at(const Attend *a, const int64_t *blocks, long long position) {
    long long block = blocks[position / a->block_tokens];
    long long within = position % a->block_tokens;
    return a->cache + block * a->block_stride + within * a->kv_heads * a->depth;
}

static void write_rows(const Attend *a) {
    size_t bytes = (size_t)a->depth * sizeof(float);
    for (long long t = 0; t < a->rows; t++) {
        if (a->lane[t] < 0) continue;
        float *key = token_at(a, a->table + a->lane[t] * a->table_width, a->position[t]);
        float *value = key + a->value_offset;
        for (long long g = 0; g < a->kv_heads; g++) {
            memcpy(key + g * a->depth, a->k + t * a->k_row + g * a->k_head, bytes);
            memcpy(value + g * a->depth, a->v + t * a->v_row + g * a->v_head, bytes);
        }
    }
}

/* Scores of one head against the positions of a tile; eight dot products at a time. */
INLINE void tile_scores(const float *q, float *const *keys, long long depth, float scale,
                        float *scores) {
    for (int j = 0; j < TILE; j += LANES) {
        if (!keys[j]) { /* nothing of this eight is visible */
            store(scores + j, splat(-INFINITY));
            continue;
        }
        v8 sum[LANES];
        for (int i = 0; i < LANES; i++) sum[i] = splat(0.0f);
        for (long long d = 0; d < depth; d += LANES) {
            v8 x = load(q + d);
            for (int i = 0; i < LANES; i++) sum[i] += x * load(keys[j + i] + d);
        }
        store(scores + j, fold(sum) * splat(scale));
    }
}

/* acc[depth] += p[j] * value[j], j ascending, 32 columns at a time in registers. */
INLINE void tile_values(const float *p, float *const *keys, const Attend *a, int from, int to,
                        float *acc) {
    long long d = 0;
    for (; d + 32 <= a->depth; d += 32) {
        v8 s0 = load(acc + d), s1 = load(acc + d + 8), s2 = load(acc + d + 16),
           s3 = load(acc + d + 24);
        for (int j = from; j < to; j++) {
            const float *value = keys[j] + a->value_offset + d;
            v8 w = splat(p[j]);
            s0 += w * load(value);
            s1 += w * load(value + 8);
            s2 += w * load(value + 16);
            s3 += w * load(value + 24);
        }
        store(acc + d, s0), store(acc + d + 8, s1);
        store(acc + d + 16, s2), store(acc + d + 24, s3);
    }
    for (; d < a->depth; d += LANES) {
        v8 s = load(acc + d);
        for (int j = from; j < to; j++) s += splat(p[j]) * load(keys[j] + a->value_offset + d);
        store(acc + d, s);
    }
}

INLINE void scale_row(float *acc, long long depth, float factor) {
    for (long long d = 0; d < depth; d += LANES) store(acc + d, load(acc + d) * splat(factor));
}

/* One online-softmax step of one head over positions [from, to) of a tile. */
INLINE void tile_step(const Attend *a, const float *q, float *const *keys, int from, int to,
                      float *top, float *total, float *acc) {
    float scores[TILE];
    tile_scores(q, keys, a->depth, (float)a->scale, scores);
    float peak = *top;
    for (int j = 0; j < TILE; j++) {
        if (j < from || j >= to) scores[j] = -INFINITY;
        if (scores[j] > peak) peak = scores[j];
    }
    v8 sum = splat(0.0f);
    for (int j = 0; j < TILE; j += LANES) {
        v8 s = load(scores + j);
        v8 e = exp8(s - splat(peak));
        e = (v8)((i8v)e & (s > splat(-INFINITY)));
        store(scores + j, e);
        sum += e;
    }
    float fade = *top == -INFINITY ? 0.0f : exp1(*top - peak);
    *top = peak;
    *total = *total * fade +
             (((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7])));
    scale_row(acc, a->depth, fade);
    tile_values(scores, keys, a, from, to, acc);
}

/* A sink is one more softmax column without a value. */
INLINE void finish_head(const Attend *a, long long head, float top, float total, float *acc) {
    float fade = 1.0f;
    if (a->sinks) {
        float peak = a->sinks[head] > top ? a->sinks[head] : top;
        fade = exp1(top - peak);
        total = total * fade + exp1(a->sinks[head] - peak);
    }
    scale_row(acc, a->depth, fade / total);
}

/* Where the keys of a tile's visible positions lie; whole eights outside are NULL, and a partly
 * visible eight repeats a visible position, whose score is masked afterwards. */
INLINE void tile_keys(const Attend *a, const int64_t *blocks, long long base, long long head,
                      int from, int to, float **keys) {
    for (int j = 0; j < TILE; j++) {
        int seen = j < from ? from : (j >= to ? to - 1 : j);
        if (j / LANES < from / LANES || j / LANES > (to - 1) / LANES)
            keys[j] = NULL;
        else
            keys[j] = token_at(a, blocks, base + seen) + head * a->depth;
    }
}

INLINE void attend_row(const Attend *a, long long t, long long g) {
    long long group = a->heads / a->kv_heads, position = a->position[t];
    long long first = a->window > 0 && position >= a->window ? position - a->window + 1 : 0;
    const int64_t *blocks = a->table + a->lane[t] * a->table_width;
    float top[MAX_GROUP], total[MAX_GROUP], *keys[TILE];
    float *out = a->out + (t * a->heads + g * group) * a->depth;
    for (long long h = 0; h < group; h++) top[h] = -INFINITY, total[h] = 0.0f;
    memset(out, 0, (size_t)(group * a->depth) * sizeof(float));
    for (long long base = first / TILE * TILE; base <= position; base += TILE) {
        int from = first > base ? (int)(first - base) : 0;
        int to = position - base + 1 < TILE ? (int)(position - base + 1) : TILE;
        tile_keys(a, blocks, base, g, from, to, keys);
        for (long long h = 0; h < group; h++)
            tile_step(a, a->q + t * a->q_row + (g * group + h) * a->q_head, keys, from, to,
                      top + h, total + h, out + h * a->depth);
    }
    for (long long h = 0; h < group; h++)
        finish_head(a, g * group + h, top[h], total[h], out + h * a->depth);
}

INLINE void attend_body(const Attend *a) {
    for (long long t = 0; t < a->rows; t++) {
        if (a->lane[t] < 0) {
            memset(a->out + t * a->heads * a->depth, 0,
                   (size_t)(a->heads * a->depth) * sizeof(float));
            continue;
        }
        for (long long g = 0; g < a->kv_heads; g++) attend_row(a, t, g);
    }
}
DISPATCH(attend, Attend)

#endif
