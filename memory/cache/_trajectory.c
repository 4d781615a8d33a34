/* The hot loops of the trajectory policy: `trajectory_reference.py` is the same in numpy.
 *
 * Answers, for one layer step: which past tokens is this one following, and so what is each
 * (layer, expert) object worth keeping. All memory belongs to the Python side, which checks shapes
 * once; this file only ever sees raw addresses in one book of numbers. One thread, no allocation,
 * no libm but expf; a call takes microseconds, so the GIL is kept.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define MAX_RANKS 1024 /* experts used longer ago than this are judged alike */
#define NONE -1e30f
#define INTERFACE 1 /* raised when the book changes; trajectory.py refuses any other */

/* The order is that of trajectory_state.py::BOOK. */
typedef struct {
    int64_t layers, experts, history, lanes, resolve, cursor;
    float *gates;      /* [objects, history] sqrt of the gate of each past token, 0 if not chosen */
    float *soon;       /* [history, objects] discounted next use as seen from that token's start */
    float *match;      /* [lanes, history] decayed agreement of this token's path so far */
    float *whole;      /* [lanes, history] agreement over all layers so far, mean over layers */
    float *context;    /* [lanes, history] agreement of the tokens before */
    float *popularity; /* [objects] */
    float *rank_use;   /* [experts] chance of use by how recently the expert was used */
    float *shares;     /* [3] trust in memory, popularity, recency */
    int32_t *follower, *leader, *position, *last_used; /* [history] x3, [lanes, objects] */
    int32_t *open_row;                                 /* [lanes], -1 none */
    int32_t *recent, *rank; /* [layers, experts] latest first; [objects] place in it */
    uint8_t *closed;                                   /* [history] 1: a whole token lies there */
    float *weight;                                     /* [history] scratch */
} Book;

typedef struct {
    double decay, sharpness, context, share_rate, popularity_rate, rank_rate, floor, cycle;
    double patience;
} Settings; /* cycle: discount of one whole cycle of layers; patience: in layer steps */

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__)
#define CLONES __attribute__((target_clones("arch=haswell", "default")))
#else
#define CLONES
#endif

CLONES static void add_scaled(float *restrict to, const float *restrict from, float by,
                              int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] += by * from[i];
}

CLONES static void scale(float *values, float by, int64_t n) {
    for (int64_t i = 0; i < n; i++) values[i] *= by;
}

/* to += by[0] * from[0] + ... + by[3] * from[3] */
CLONES static void add_scaled4(float *restrict to, const float *const *from, const float *by,
                               int64_t n) {
    const float *a = from[0], *b = from[1], *c = from[2], *d = from[3];
    float x = by[0], y = by[1], z = by[2], w = by[3];
    for (int64_t i = 0; i < n; i++) to[i] += (x * a[i] + y * b[i]) + (z * c[i] + w * d[i]);
}

/* match = decay match + agreement, whole += share agreement; agreement = sum of by x from, four
 * columns at most. */
CLONES static void follow(float *restrict match, float *restrict whole, const float *const *from,
                          const float *by, const float *decay_share, int64_t n) {
    const float *a = from[0], *b = from[1], *c = from[2], *d = from[3];
    float x = by[0], y = by[1], z = by[2], w = by[3];
    float decay = decay_share[0], share = decay_share[1];
    for (int64_t i = 0; i < n; i++) {
        float agreement = (x * a[i] + y * b[i]) + (z * c[i] + w * d[i]);
        match[i] = decay * match[i] + agreement;
        whole[i] += share * agreement;
    }
}

/* What was not used since `position` is one cycle further away. */
CLONES static void fade(float *restrict soon, const int32_t *last, int32_t position, float by,
                        int64_t n) {
    for (int64_t i = 0; i < n; i++) soon[i] *= last[i] < position ? by : 1.0f;
}

/* weight = e^(weight - top), 0 below e^-7 of the best: a polynomial, so that it runs in lanes. */
CLONES static float exponentials(float *restrict weight, float top, int64_t n) {
    float sums[8] = {0}, total = 0.0f;
    for (int64_t i = 0; i < n; i++) {
        float below = weight[i] - top, x = below < -7.0f ? -7.0f : below;
        float y = x * 1.44269504f + 16.0f; /* above 0: cutting is rounding down */
        int32_t whole = (int32_t)y;
        float f = y - (float)whole;
        float p = 1.8775767e-3f;
        p = p * f + 8.9893397e-3f;
        p = p * f + 5.5826318e-2f;
        p = p * f + 2.4015361e-1f;
        p = p * f + 6.9315308e-1f;
        p = p * f + 9.9999994e-1f;
        int32_t bits = (whole - 16 + 127) << 23;
        float power;
        memcpy(&power, &bits, sizeof power);
        weight[i] = below < -7.0f ? 0.0f : p * power;
    }
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int m = 0; m < 8; m++) sums[m] += weight[i + m];
    for (; i < n; i++) total += weight[i];
    for (int m = 0; m < 8; m++) total += sums[m];
    return total;
}

/* Sum of the weights of the tokens that used an expert. */
CLONES static float named_by(const float *gates, const float *weight, int64_t n) {
    float sums[8] = {0}, total = 0.0f;
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int m = 0; m < 8; m++) sums[m] += gates[i + m] > 0.0f ? weight[i + m] : 0.0f;
    for (; i < n; i++) total += gates[i] > 0.0f ? weight[i] : 0.0f;
    for (int m = 0; m < 8; m++) total += sums[m];
    return total;
}

static float tail(float popularity, const Settings *s) {
    float p = popularity < (float)s->floor ? (float)s->floor : popularity;
    return p / (1.0f - (1.0f - p) * (float)s->cycle);
}

static void unlink_row(Book *b, int64_t row) {
    int64_t objects = b->layers * b->experts;
    for (int64_t o = 0; o < objects; o++) b->gates[o * b->history + row] = 0.0f;
    for (int64_t lane = 0; lane < b->lanes; lane++) {
        int64_t at = lane * b->history + row;
        b->match[at] = b->whole[at] = b->context[at] = 0.0f;
    }
    if (b->leader[row] >= 0) b->follower[b->leader[row]] = -1;
    if (b->follower[row] >= 0) b->leader[b->follower[row]] = -1;
    b->closed[row] = 0;
}

static int64_t free_row(Book *b) {
    for (;;) {
        int64_t row = b->cursor;
        b->cursor = (b->cursor + 1) % b->history;
        int open = 0;
        for (int64_t lane = 0; lane < b->lanes; lane++) open |= b->open_row[lane] == row;
        if (!open) return row;
    }
}

static void end_token(Book *b, const Settings *s, int64_t lane) {
    int64_t old = b->open_row[lane], objects = b->layers * b->experts;
    float *match = b->match + lane * b->history, *whole = b->whole + lane * b->history;
    float *context = b->context + lane * b->history;
    for (int64_t i = 0; i < b->history; i++) context[i] = 0.0f;
    if (old >= 0) {
        b->closed[old] = 1;
        for (int64_t i = 0; i < b->history; i++)
            if (b->closed[i] && b->follower[i] >= 0)
                context[b->follower[i]] = (float)s->context * whole[i];
        const int32_t *last = b->last_used + lane * objects;
        int64_t row = old;
        for (int64_t step = 0; step < b->resolve && row >= 0; step++, row = b->leader[row])
            fade(b->soon + row * objects, last, b->position[row], (float)s->cycle, objects);
    }
    for (int64_t i = 0; i < b->history; i++) match[i] = whole[i] = 0.0f;
}

static void begin(Book *b, const Settings *s, int64_t lane) {
    int64_t old = b->open_row[lane], objects = b->layers * b->experts;
    end_token(b, s, lane);
    int64_t row = free_row(b);
    unlink_row(b, row);
    b->leader[row] = (int32_t)old, b->follower[row] = -1;
    b->position[row] = old >= 0 ? b->position[old] + 1 : 0;
    if (old >= 0) b->follower[old] = (int32_t)row;
    else
        for (int64_t o = 0; o < objects; o++) b->last_used[lane * objects + o] = -1;
    b->open_row[lane] = (int32_t)row;
    for (int64_t o = 0; o < objects; o++) b->soon[row * objects + o] = tail(b->popularity[o], s);
}

/* Scores of all past tokens for a lane into b->weight; the best score. Eight lanes of maxima. */
CLONES static float score_rows(Book *b, float sharpness, int64_t lane) {
    const float *match = b->match + lane * b->history, *context = b->context + lane * b->history;
    const uint8_t *closed = b->closed;
    float *weight = b->weight, tops[8], top = NONE;
    int64_t i = 0;
    for (int n = 0; n < 8; n++) tops[n] = NONE;
    for (; i + 8 <= b->history; i += 8)
        for (int n = 0; n < 8; n++) {
            float y = closed[i + n] ? sharpness * match[i + n] + context[i + n] : NONE;
            weight[i + n] = y;
            tops[n] = y > tops[n] ? y : tops[n];
        }
    for (; i < b->history; i++) {
        weight[i] = closed[i] ? sharpness * match[i] + context[i] : NONE;
        tops[0] = weight[i] > tops[0] ? weight[i] : tops[0];
    }
    for (int n = 0; n < 8; n++) top = tops[n] > top ? tops[n] : top;
    return top;
}

/* Fills b->weight with what each past token counts for this lane (0: not at all); their sum. */
static float attend(Book *b, const Settings *s, int64_t lane) {
    float top = score_rows(b, (float)s->sharpness, lane);
    if (top == NONE) {
        memset(b->weight, 0, (size_t)b->history * sizeof(float));
        return 0.0f;
    }
    return exponentials(b->weight, top, b->history);
}

/* Trust follows the share of each source in what was said of the experts that are now used. */
static void judge(Book *b, const Settings *s, int64_t lane, int64_t first, int64_t k,
                  const int32_t *experts) {
    float total = attend(b, s, lane), rate = (float)s->share_rate / (float)k;
    if (total <= 0.0f) return;
    float w[3] = {b->shares[0], b->shares[1], b->shares[2]};
    for (int64_t n = 0; n < k; n++) {
        int64_t o = first + experts[n];
        float named = named_by(b->gates + o * b->history, b->weight, b->history);
        float said[3] = {w[0] * (named / total + 1e-3f), w[1] * (b->popularity[o] + 1e-3f),
                         w[2] * (b->rank_use[b->rank[o]] + 1e-3f)};
        float all = said[0] + said[1] + said[2];
        for (int m = 0; m < 3; m++) b->shares[m] += rate * (said[m] / all - w[m]);
    }
}

/* The experts move to the front of their layer's list; the chances by rank follow. */
static void renew(Book *b, const Settings *s, int64_t first, int64_t k, const int32_t *experts) {
    int32_t *recent = b->recent + first, *rank = b->rank + first;
    scale(b->rank_use, 1.0f - (float)s->rank_rate, b->experts);
    for (int64_t n = 0; n < k; n++) b->rank_use[rank[experts[n]]] += (float)s->rank_rate;
    for (int64_t n = k - 1; n >= 0; n--) {
        for (int64_t at = rank[experts[n]]; at > 0; at--) {
            recent[at] = recent[at - 1];
            rank[recent[at]] = (int32_t)at;
        }
        recent[0] = experts[n];
        rank[experts[n]] = 0;
    }
}

static void observe(Book *b, const Settings *s, const int64_t *a, const int32_t *experts,
                    const float *weights) {
    int64_t lane = a[0], layer = a[1], k = a[2], objects = b->layers * b->experts, h = b->history;
    int64_t row = b->open_row[lane], first = layer * b->experts;
    float *match = b->match + lane * h, *whole = b->whole + lane * h;
    float *popularity = b->popularity + first;
    judge(b, s, lane, first, k, experts);
    renew(b, s, first, k, experts);
    for (int64_t i = 0; i < k; i += 4) {
        const float *from[4];
        float by[4], decay_share[2] = {i ? 1.0f : (float)s->decay, 1.0f / (float)b->layers};
        for (int64_t n = 0; n < 4; n++) {
            by[n] = i + n < k ? sqrtf(weights[i + n]) : 0.0f;
            from[n] = b->gates + (first + experts[i + n < k ? i + n : i]) * h;
        }
        follow(match, whole, from, by, decay_share, h);
    }
    scale(popularity, 1.0f - (float)s->popularity_rate, b->experts);
    for (int64_t i = 0; i < k; i++) {
        b->gates[(first + experts[i]) * h + row] = sqrtf(weights[i]);
        popularity[experts[i]] += (float)s->popularity_rate;
        int32_t *last = b->last_used + lane * objects + first + experts[i];
        float worth = 1.0f;
        int64_t back = row;
        for (int64_t step = 0; step <= b->resolve && back >= 0; step++, back = b->leader[back]) {
            if (b->position[back] <= *last) break;
            b->soon[back * objects + first + experts[i]] = worth;
            worth *= (float)s->cycle;
        }
        *last = b->position[row];
    }
}

typedef struct {
    const float *from[4];
    float by[4];
    int count;
} Group; /* up to four rows that are added in one pass */

static void flush(Group *g, float *to, int64_t n) {
    for (int i = 0; i < g->count; i++) add_scaled(to, g->from[i], g->by[i], n);
    g->count = 0;
}

static void join(Group *g, const float *from, float by, float *to, int64_t n) {
    g->from[g->count] = from, g->by[g->count] = by;
    if (++g->count < 4) return;
    add_scaled4(to, g->from, g->by, n);
    g->count = 0;
}

static void keep_values(Book *b, const Settings *s, const int64_t *a, const int32_t *lanes,
                        float *out) {
    int64_t layer = a[0], count = a[1], objects = b->layers * b->experts;
    int64_t cut = (layer + 1) * b->experts;
    float trusted = 0.0f, *shares = b->shares, by_rank[MAX_RANKS];
    for (int64_t o = 0; o < objects; o++) out[o] = 0.0f;
    for (int64_t n = 0; n < count; n++) {
        float total = attend(b, s, lanes[n]);
        if (total <= 0.0f) continue;
        trusted += 1.0f / (float)count;
        float share = b->shares[0] / (total * (float)count);
        Group later = {.count = 0}, next = {.count = 0};
        for (int64_t i = 0; i < b->history; i++) {
            if (b->weight[i] == 0.0f) continue;
            float by = share * b->weight[i];
            int64_t row = b->follower[i];
            if (row >= 0) join(&next, b->soon + row * objects, by, out, cut);
            join(&later, b->soon + i * objects + cut, by, out + cut, objects - cut);
        }
        flush(&next, out, cut);
        flush(&later, out + cut, objects - cut);
    }
    float rest = (1.0f - trusted * shares[0]) / (1.0f - shares[0]); /* no memory yet: the others */
    int64_t ranks = b->experts < MAX_RANKS ? b->experts : MAX_RANKS;
    for (int64_t r = 0; r < ranks; r++) by_rank[r] = rest * shares[2] * tail(b->rank_use[r], s);
    for (int64_t j = 0; j < b->layers; j++) {
        int64_t away = j > layer ? j - layer : j - layer + b->layers;
        float near = expf(-(float)away / (float)s->patience);
        for (int64_t o = j * b->experts; o < (j + 1) * b->experts; o++) {
            int64_t r = b->rank[o] < ranks ? b->rank[o] : ranks - 1;
            out[o] = (out[o] + rest * shares[1] * tail(b->popularity[o], s) + by_rank[r]) * near;
        }
    }
}

/* Every call begins with the addresses of the book and the settings. */
#define AT(type, i) ((type *)(intptr_t)p[i])

static PyObject *py_begin(PyObject *self, PyObject *args) {
    long long p[2], lane;
    if (!PyArg_ParseTuple(args, "LLL", p, p + 1, &lane)) return NULL;
    begin(AT(Book, 0), AT(const Settings, 1), lane);
    Py_RETURN_NONE;
}

static PyObject *py_observe(PyObject *self, PyObject *args) {
    long long p[2], lane, layer;
    Py_buffer experts, weights;
    if (!PyArg_ParseTuple(args, "LLLLy*y*", p, p + 1, &lane, &layer, &experts, &weights))
        return NULL;
    int64_t a[3] = {lane, layer, (int64_t)(experts.len / (Py_ssize_t)sizeof(int32_t))};
    int fits = experts.len == weights.len;
    if (fits) observe(AT(Book, 0), AT(const Settings, 1), a, experts.buf, weights.buf);
    PyBuffer_Release(&experts);
    PyBuffer_Release(&weights);
    if (!fits) return PyErr_Format(PyExc_ValueError, "as many weights as experts are needed");
    Py_RETURN_NONE;
}

static PyObject *py_keep_values(PyObject *self, PyObject *args) {
    long long p[2], layer;
    Py_buffer lanes, out;
    if (!PyArg_ParseTuple(args, "LLLy*w*", p, p + 1, &layer, &lanes, &out)) return NULL;
    int64_t a[2] = {layer, (int64_t)(lanes.len / (Py_ssize_t)sizeof(int32_t))};
    keep_values(AT(Book, 0), AT(const Settings, 1), a, lanes.buf, out.buf);
    PyBuffer_Release(&lanes);
    PyBuffer_Release(&out);
    Py_RETURN_NONE;
}

static PyObject *py_attend(PyObject *self, PyObject *args) {
    long long p[2], lane;
    if (!PyArg_ParseTuple(args, "LLL", p, p + 1, &lane)) return NULL;
    return PyFloat_FromDouble(attend(AT(Book, 0), AT(const Settings, 1), lane));
}

static PyMethodDef methods[] = {
    {"begin", py_begin, METH_VARARGS, "Close a lane's token and open the next."},
    {"observe", py_observe, METH_VARARGS, "Take in a lane's route in one layer."},
    {"keep_values", py_keep_values, METH_VARARGS, "Worth of keeping every object."},
    {"attend", py_attend, METH_VARARGS, "Weights of the past tokens for a lane; their sum."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_trajectory", NULL, -1, methods};

PyMODINIT_FUNC PyInit__trajectory(void) {
    PyObject *made = PyModule_Create(&module);
    if (made && PyModule_AddIntConstant(made, "INTERFACE", INTERFACE)) Py_CLEAR(made);
    return made;
}
