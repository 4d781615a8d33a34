/* The token split of one layer: `token_split.py` is the same in plain Python, and explains it.
 *
 * Copies of an expert stand one after the other: those of expert e are start[e] .. start[e + 1],
 * on devices rank[]; an expert has at most one copy on a device. flow[] is what each copy carries.
 * One thread; `level_bytes` says how much scratch is needed, nothing is allocated here.
 */
#ifndef MOECTL_LEVEL_H
#define MOECTL_LEVEL_H

#include <stddef.h>
#include <stdint.h>

#define LEVEL_NEAR 1e-10 /* as token_split.py: NEAR */

typedef struct {
    int32_t experts, width;
    const double *load;          /* [experts] */
    const int32_t *start, *rank; /* [experts + 1], [copies] */
    double *flow, *device;       /* [copies], [width] */
    /* scratch */
    int32_t *many;             /* [experts] those with several copies */
    int32_t *owner;            /* [copies] expert of a copy */
    int32_t *first, *incident; /* [width + 1], [copies] copies of `many` on each device */
    int32_t *queue, *from, *to; /* [width] x3 */
    int32_t many_count;
} Level;

static size_t level_bytes(int64_t experts, int64_t copies, int64_t width) {
    return (size_t)(experts + 2 * copies + 4 * width + 8) * sizeof(int32_t);
}

static void level_scratch(Level *l, void *scratch, int64_t copies) {
    int32_t *at = scratch;
    l->many = at, at += l->experts;
    l->owner = at, at += copies;
    l->incident = at, at += copies;
    l->first = at, at += l->width + 1;
    l->queue = at, at += l->width;
    l->from = at, at += l->width;
    l->to = at;
}

/* Equal shares, and the lists that the rest walks over. */
static void level_begin(Level *l) {
    for (int32_t d = 0; d < l->width; d++) l->device[d] = 0, l->first[d] = 0;
    l->first[l->width] = 0;
    l->many_count = 0;
    for (int32_t e = 0; e < l->experts; e++) {
        int32_t from = l->start[e], to = l->start[e + 1];
        if (to - from > 1) l->many[l->many_count++] = e;
        for (int32_t i = from; i < to; i++) {
            l->flow[i] = l->load[e] / (to - from);
            l->device[l->rank[i]] += l->flow[i];
            l->owner[i] = e;
            if (to - from > 1) l->first[l->rank[i] + 1]++;
        }
    }
    for (int32_t d = 0; d < l->width; d++) l->first[d + 1] += l->first[d];
    for (int32_t d = 0; d < l->width; d++) l->queue[d] = l->first[d];
    for (int32_t m = 0; m < l->many_count; m++)
        for (int32_t i = l->start[l->many[m]]; i < l->start[l->many[m] + 1]; i++)
            l->incident[l->queue[l->rank[i]]++] = i;
}

/* Pour one expert anew over its devices, as water over a floor. */
static void level_pour(Level *l, int32_t e) {
    int32_t from = l->start[e], to = l->start[e + 1];
    double load = l->load[e];
    for (int32_t i = from; i < to; i++) l->device[l->rank[i]] -= l->flow[i];
    double surface = 0;
    if (to - from == 2) {
        double a = l->device[l->rank[from]], b = l->device[l->rank[from + 1]];
        double low = a < b ? a : b, high = a < b ? b : a;
        surface = low + load <= high ? low + load : (low + high + load) / 2;
    } else { /* raise the surface floor by floor: few copies, so no sorting */
        double sum = load;
        int32_t under = 0;
        for (double last = -1;;) {
            double next = -1;
            for (int32_t i = from; i < to; i++) {
                double floor = l->device[l->rank[i]] < 0 ? 0 : l->device[l->rank[i]];
                if (floor > last && (next < 0 || floor < next)) next = floor;
            }
            if (next < 0 || (under && sum <= next * under)) break;
            for (int32_t i = from; i < to; i++) {
                double floor = l->device[l->rank[i]] < 0 ? 0 : l->device[l->rank[i]];
                if (floor == next) sum += floor, under++;
            }
            last = next;
        }
        surface = sum / under;
    }
    double sum = 0;
    for (int32_t i = from; i < to; i++) {
        double room = surface - l->device[l->rank[i]];
        l->flow[i] = room > 0 ? room : 0;
        sum += l->flow[i];
    }
    double by = sum > 0 ? load / sum : 0; /* rounding: what is poured is what there is */
    for (int32_t i = from; i < to; i++) {
        l->flow[i] *= by;
        l->device[l->rank[i]] += l->flow[i];
    }
}

static int32_t level_fullest(const Level *l) {
    int32_t at = 0;
    for (int32_t d = 1; d < l->width; d++)
        if (l->device[d] > l->device[at]) at = d;
    return at;
}

/* Walk from a full device over copies that can give; returns a device below the limit or -1.
 * `queue[0 .. *seen]` are the devices reached; from/to are the copies by which each was reached. */
static int32_t level_reach(Level *l, int32_t full, double limit, double near, int32_t *seen) {
    for (int32_t d = 0; d < l->width; d++) l->to[d] = -1;
    int32_t count = 0;
    l->queue[count++] = full, l->to[full] = -2;
    for (int32_t head = 0; head < count; head++) {
        int32_t d = l->queue[head];
        for (int32_t k = l->first[d]; k < l->first[d + 1]; k++) {
            int32_t giver = l->incident[k], e = l->owner[giver];
            if (l->flow[giver] <= near) continue;
            for (int32_t i = l->start[e]; i < l->start[e + 1]; i++) {
                int32_t next = l->rank[i];
                if (l->to[next] != -1) continue;
                l->from[next] = giver, l->to[next] = i;
                l->queue[count++] = next;
                if (l->device[next] < limit - near) return *seen = count, next;
            }
        }
    }
    return *seen = count, -1;
}

static void level_push(Level *l, int32_t full, int32_t low, double limit) {
    double amount = l->device[full] - limit, room = limit - l->device[low];
    if (room < amount) amount = room;
    for (int32_t d = low; d != full; d = l->rank[l->from[d]])
        if (l->flow[l->from[d]] < amount) amount = l->flow[l->from[d]];
    for (int32_t d = low; d != full; d = l->rank[l->from[d]])
        l->flow[l->from[d]] -= amount, l->flow[l->to[d]] += amount;
    l->device[full] -= amount;
    l->device[low] += amount;
}

/* Fills flow[] and device[]; returns the largest load of a device, the least possible one. */
static double level_layer(Level *l, int32_t sweeps) {
    level_begin(l);
    double limit = 0;
    for (int32_t d = 0; d < l->width; d++) limit += l->device[d] / l->width;
    double near = limit * LEVEL_NEAR;
    for (int32_t s = 0; s < sweeps; s++)
        for (int32_t m = 0; m < l->many_count; m++) level_pour(l, l->many[m]);
    /* Every push empties a copy, fills a device or frees one; the bound is a guard. */
    for (int64_t guard = 64 * ((int64_t)l->width + l->start[l->experts]); guard > 0; guard--) {
        int32_t full = level_fullest(l), seen = 0;
        if (l->device[full] <= limit + 2 * near) break;
        int32_t low = level_reach(l, full, limit, near, &seen);
        if (low >= 0) {
            level_push(l, full, low, limit);
            continue;
        }
        double sum = 0; /* these devices cannot give away: their mean is a lower bound */
        for (int32_t k = 0; k < seen; k++) sum += l->device[l->queue[k]];
        limit = sum / seen > limit ? sum / seen : limit + near;
    }
    return l->device[level_fullest(l)];
}

#endif
