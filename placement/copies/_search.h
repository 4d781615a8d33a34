/* The search of one layer: `search_reference.py` is the same in Python, and explains it.
 *
 * Slot r lies on device r / per. All loads are scaled so that 1 is the least possible largest load.
 * Arrays over loads have the load as their last axis. One thread, nothing is allocated here.
 */
#include <stdint.h>
#include <string.h>

#define NONE -1
#define LEAST_GAIN 1e-12 /* as search_reference.py */
#define TAKERS 4         /* as search_reference.py: how many emptiest devices take a new copy */

typedef struct {
    int32_t experts, slots, devices, per, loads;
    int32_t level;               /* 1: copies of an expert are poured, 0: they share equally */
    int32_t budget;              /* copies that may move; -1: any number */
    int32_t stuck_max;           /* devices that may fail before the search ends; -1: swaps only */
    double near;                 /* a largest load below 1 + near is good enough */
    double local;                /* price of work done away from an expert's home node */
    const double *work, *weight; /* [experts, loads], [loads] */
    const int32_t *home, *node;  /* [experts] node or -1, [devices] */
    const uint8_t *was;          /* [devices, experts] 1: the copy is there already */
    int32_t *expert;             /* [slots] in and out */
    int32_t *head, *next, *count; /* [experts], [slots], [experts]: copies of an expert */
    double *flow, *load, *cost;   /* [slots, loads], [devices, loads], [devices] */
    double *kept_flow, *kept_load, *floor; /* for taking a trial back, and for pouring */
    int32_t *kept_slot, *kept_device, *around; /* [2 devices + 2] each */
    uint8_t *stuck, *here;        /* [devices], [experts] */
    int32_t moved, taker[TAKERS];
} Search;

typedef struct {
    double gain; /* of the potential, per moved copy where moves are charged */
    int32_t slot, other, expert; /* swap of two slots, or `slot` takes `expert` (other = NONE) */
} Move;

static double power8(double x) {
    x *= x;
    x *= x;
    return x * x;
}

static double cost_of(const Search *s, int32_t d) {
    double sum = 0;
    for (int32_t k = 0; k < s->loads; k++) sum += s->weight[k] * power8(s->load[d * s->loads + k]);
    return sum;
}

static int has_copy(const Search *s, int32_t expert, int32_t device) {
    for (int32_t r = s->head[expert]; r != NONE; r = s->next[r])
        if (r / s->per == device) return 1;
    return 0;
}

static void link_slot(Search *s, int32_t slot, int32_t expert) {
    s->expert[slot] = expert;
    int32_t *at = &s->head[expert]; /* ascending slots: sums are always added in one order */
    while (*at != NONE && *at < slot) at = &s->next[*at];
    s->next[slot] = *at, *at = slot;
    s->count[expert]++;
}

static void unlink_slot(Search *s, int32_t slot) {
    int32_t expert = s->expert[slot], *at = &s->head[expert];
    while (*at != slot) at = &s->next[*at];
    *at = s->next[slot];
    s->count[expert]--;
}

/* Work away from home counts once per unit, averaged over the loads. */
static double away(const Search *s, int32_t slot, int32_t expert, int32_t device) {
    if (s->local <= 0 || s->home[expert] == NONE || s->home[expert] == s->node[device]) return 0;
    double sum = 0;
    for (int32_t k = 0; k < s->loads; k++) sum += s->flow[slot * s->loads + k];
    return s->local * sum / s->loads;
}

static void share_equally(Search *s, int32_t e) {
    for (int32_t r = s->head[e]; r != NONE; r = s->next[r])
        for (int32_t k = 0; k < s->loads; k++) {
            double *flow = &s->flow[r * s->loads + k], *load = &s->load[r / s->per * s->loads + k];
            *load -= *flow;
            *flow = s->work[e * s->loads + k] / s->count[e];
            *load += *flow;
        }
}

/* Whether the copy before this one in the list, `last`, is on the same device: EPLB does that. */
static int is_twin(const Search *s, int32_t last, int32_t slot) {
    return last != NONE && last / s->per == slot / s->per;
}

static void pour(Search *s, int32_t e) {
    int32_t K = s->loads;
    for (int32_t k = 0; k < K; k++) {
        int32_t n = 0;
        for (int32_t r = s->head[e]; r != NONE; r = s->next[r])
            s->load[r / s->per * K + k] -= s->flow[r * K + k];
        for (int32_t r = s->head[e], last = NONE; r != NONE; last = r, r = s->next[r]) {
            double v = s->load[r / s->per * K + k];
            int32_t at = n;
            if (is_twin(s, last, r)) continue;
            v = v < 0 ? 0 : v;
            for (n++; at > 0 && s->floor[at - 1] > v; at--) s->floor[at] = s->floor[at - 1];
            s->floor[at] = v; /* ascending */
        }
        double total = s->work[e * K + k], surface = 0, sum = 0;
        for (int32_t under = 0; under < n; under++) {
            if (under && total <= s->floor[under] * under) break;
            total += s->floor[under];
            surface = total / (under + 1);
        }
        for (int32_t r = s->head[e], last = NONE; r != NONE; last = r, r = s->next[r]) {
            double room = surface - s->load[r / s->per * K + k];
            s->flow[r * K + k] = room > 0 && !is_twin(s, last, r) ? room : 0;
            sum += s->flow[r * K + k];
        }
        double by = sum > 0 ? s->work[e * K + k] / sum : 0;
        for (int32_t r = s->head[e]; r != NONE; r = s->next[r]) {
            s->flow[r * K + k] *= by;
            s->load[r / s->per * K + k] += s->flow[r * K + k];
        }
    }
}

static void spread(Search *s, int32_t e) {
    if (s->level && s->count[e] > 1)
        pour(s, e);
    else
        share_equally(s, e);
}

static void pour_device(Search *s, int32_t d) {
    for (int32_t r = d * s->per; r < (d + 1) * s->per; r++)
        if (s->count[s->expert[r]] > 1) pour(s, s->expert[r]);
}

static void begin(Search *s, int32_t sweeps) {
    memset(s->flow, 0, sizeof(double) * s->slots * s->loads);
    memset(s->load, 0, sizeof(double) * s->devices * s->loads);
    for (int32_t e = 0; e < s->experts; e++) s->head[e] = NONE, s->count[e] = 0;
    for (int32_t r = s->slots - 1; r >= 0; r--) link_slot(s, r, s->expert[r]);
    for (int32_t e = 0; e < s->experts; e++) share_equally(s, e);
    for (int32_t t = 0; s->level && t < sweeps; t++)
        for (int32_t e = 0; e < s->experts; e++)
            if (s->count[e] > 1) pour(s, e);
    for (int32_t d = 0; d < s->devices; d++) s->cost[d] = cost_of(s, d);
}

/* The fullest device that is not stuck, and the load under which it is. */
static int32_t fullest(const Search *s, int32_t *load) {
    int32_t at = NONE;
    double most = 0;
    for (int32_t d = 0; d < s->devices; d++)
        for (int32_t k = 0; k < s->loads && !s->stuck[d]; k++)
            if (s->load[d * s->loads + k] > most)
                most = s->load[d * s->loads + k], at = d, *load = k;
    return at;
}

static int32_t moves_of(const Search *s, int32_t slot, int32_t expert) {
    if (s->budget < 0) return 0;
    const uint8_t *was = s->was + (size_t)(slot / s->per) * s->experts;
    return was[s->expert[slot]] - was[expert];
}

static double priced(const Search *s, double gain, int32_t moves) {
    if (s->budget < 0 || gain <= 0) return gain;
    if (s->moved + moves > s->budget) return 0;
    return gain / (moves > 0 ? moves : 0.5);
}

/* One load, equal shares, nothing else to weigh. */
static int is_plain(const Search *s) {
    return s->loads == 1 && !s->level && s->budget < 0 && s->local <= 0;
}

/* One load, nothing else to weigh: the swap after which the fuller of the two is the least full. */
static void best_plain_swap(Search *s, int32_t g, Move *best) {
    int32_t per = s->per;
    const double *flow = s->flow;
    int32_t low = 0; /* looked at first: what it offers spares most of the others */
    for (int32_t d = 1; d < s->devices; d++)
        if (s->load[d] < s->load[low]) low = d;
    for (int32_t i = g * per; i < (g + 1) * per; i++) s->here[s->expert[i]] = 1;
    for (int32_t turn = -1; turn < s->devices; turn++) {
        int32_t h = turn < 0 ? low : turn;
        double room = s->load[g] - s->load[h];
        if (turn == low || room <= 2 * best->gain) continue; /* no swap gains over half of it */
        for (int32_t i = g * per; i < (g + 1) * per; i++) {
            double mine = flow[i];
            for (int32_t j = h * per; j < (h + 1) * per; j++) {
                double less = mine - flow[j], rest = room - less;
                double gain = less < rest ? less : rest;
                if (gain <= best->gain || s->here[s->expert[j]]) continue;
                if (has_copy(s, s->expert[i], h)) continue;
                *best = (Move){gain, i, j, NONE};
            }
        }
    }
    for (int32_t i = g * per; i < (g + 1) * per; i++) s->here[s->expert[i]] = 0;
}

static void best_swap(Search *s, int32_t g, int32_t k, Move *best) {
    int32_t K = s->loads, per = s->per;
    if (is_plain(s)) {
        best_plain_swap(s, g, best);
        return;
    }
    for (int32_t i = g * per; i < (g + 1) * per; i++) s->here[s->expert[i]] = 1;
    double full = s->load[g * K + k];
    for (int32_t i = g * per; i < (g + 1) * per; i++)
        for (int32_t h = 0; h < s->devices; h++) {
            double room = full - s->load[h * K + k], mine = s->flow[i * K + k];
            if (room <= LEAST_GAIN || has_copy(s, s->expert[i], h)) continue;
            for (int32_t j = h * per; j < (h + 1) * per; j++) {
                double less = mine - s->flow[j * K + k];
                if (less <= LEAST_GAIN || less >= room || s->here[s->expert[j]]) continue;
                double after = 0;
                for (int32_t q = 0; q < K; q++) {
                    double d = s->flow[i * K + q] - s->flow[j * K + q];
                    after += s->weight[q] * (power8(s->load[g * K + q] - d) +
                                             power8(s->load[h * K + q] + d));
                }
                double gain = s->cost[g] + s->cost[h] - after;
                if (s->local > 0)
                    gain += away(s, i, s->expert[i], g) + away(s, j, s->expert[j], h) -
                            away(s, i, s->expert[i], h) - away(s, j, s->expert[j], g);
                if (s->budget >= 0) {
                    int32_t moves = moves_of(s, i, s->expert[j]) + moves_of(s, j, s->expert[i]);
                    gain = priced(s, gain, moves);
                }
                if (gain > best->gain) *best = (Move){gain, i, j, NONE};
            }
        }
    for (int32_t i = g * per; i < (g + 1) * per; i++) s->here[s->expert[i]] = 0;
}

/* Every device that a copy of e or f is on, once, in `around`; returns how many. */
static int32_t touched(Search *s, int32_t e, int32_t f) {
    int32_t n = 0, both[2] = {e, f};
    for (int32_t b = 0; b < 2; b++)
        for (int32_t r = s->head[both[b]]; r != NONE; r = s->next[r]) {
            int32_t d = r / s->per, at = 0;
            while (at < n && s->around[at] != d) at++;
            if (at == n) s->around[n++] = d;
        }
    return n;
}

static void take(Search *s, int32_t slot, int32_t f) {
    int32_t e = s->expert[slot], K = s->loads;
    for (int32_t k = 0; k < K; k++) {
        s->load[slot / s->per * K + k] -= s->flow[slot * K + k];
        s->flow[slot * K + k] = 0;
    }
    unlink_slot(s, slot);
    link_slot(s, slot, f);
    spread(s, e);
    spread(s, f);
}

/* What it would gain if `slot`, now a spare copy, held f; everything is as before afterwards. */
static double try_take(Search *s, int32_t slot, int32_t f, double full, int32_t k) {
    int32_t e = s->expert[slot], K = s->loads, n = touched(s, e, f), m = 0, both[2] = {e, f};
    for (int32_t b = 0; b < 2; b++)
        for (int32_t r = s->head[both[b]]; r != NONE; r = s->next[r], m++) {
            s->kept_slot[m] = r;
            memcpy(s->kept_flow + (size_t)m * K, s->flow + (size_t)r * K, sizeof(double) * K);
        }
    double gain = 0, most = 0;
    for (int32_t a = 0; a < n; a++) {
        memcpy(s->kept_load + (size_t)a * K, s->load + (size_t)s->around[a] * K,
               sizeof(double) * K);
        gain += s->cost[s->around[a]];
    }
    double home = away(s, slot, e, slot / s->per);
    take(s, slot, f);
    for (int32_t a = 0; a < n; a++) {
        gain -= cost_of(s, s->around[a]);
        double load = s->load[s->around[a] * K + k];
        most = load > most ? load : most;
    }
    gain += home - away(s, slot, f, slot / s->per);
    unlink_slot(s, slot);
    link_slot(s, slot, e);
    for (int32_t a = 0; a < m; a++)
        memcpy(s->flow + (size_t)s->kept_slot[a] * K, s->kept_flow + (size_t)a * K,
               sizeof(double) * K);
    for (int32_t a = 0; a < n; a++)
        memcpy(s->load + (size_t)s->around[a] * K, s->kept_load + (size_t)a * K,
               sizeof(double) * K);
    return most < full ? gain : 0;
}

/* The emptiest devices under load k, in `around`; how many there are. */
static int32_t emptiest(Search *s, int32_t k) {
    int32_t n = 0;
    for (int32_t d = 0; d < s->devices; d++) {
        double load = s->load[d * s->loads + k];
        int32_t at = n < TAKERS ? n++ : n;
        for (; at > 0 && s->load[s->taker[at - 1] * s->loads + k] > load; at--)
            if (at < TAKERS) s->taker[at] = s->taker[at - 1];
        if (at < TAKERS) s->taker[at] = d;
    }
    return n;
}

/* A spare copy on one of the emptiest devices becomes a copy of an expert of the fullest. */
static void best_take(Search *s, int32_t g, int32_t k, Move *best) {
    double full = s->load[g * s->loads + k];
    int32_t takers = emptiest(s, k);
    for (int32_t q = 0; q < takers * s->per; q++) {
        int32_t h = s->taker[q / s->per], r = h * s->per + q % s->per;
        if (s->count[s->expert[r]] < 2 || h == g || s->load[h * s->loads + k] >= full) continue;
        for (int32_t i = g * s->per; i < (g + 1) * s->per; i++) {
            int32_t f = s->expert[i];
            if (f == s->expert[r] || has_copy(s, f, h)) continue;
            int32_t moves = moves_of(s, r, f);
            double gain = priced(s, try_take(s, r, f, full, k), moves);
            if (gain > best->gain) *best = (Move){gain, r, NONE, f};
        }
    }
}

static void swap(Search *s, int32_t i, int32_t j) {
    int32_t K = s->loads, g = i / s->per, h = j / s->per, a = s->expert[i], b = s->expert[j];
    unlink_slot(s, i), unlink_slot(s, j);
    link_slot(s, i, b), link_slot(s, j, a);
    for (int32_t k = 0; k < K; k++) {
        double *x = &s->flow[i * K + k], *y = &s->flow[j * K + k], kept = *x;
        s->load[g * K + k] += *y - *x;
        s->load[h * K + k] += *x - *y;
        *x = *y, *y = kept;
    }
    if (s->level) pour_device(s, g), pour_device(s, h);
}

static void carry_out(Search *s, Move move) {
    if (move.other == NONE) {
        s->moved += moves_of(s, move.slot, move.expert);
        take(s, move.slot, move.expert);
    } else {
        s->moved += moves_of(s, move.slot, s->expert[move.other]) +
                    moves_of(s, move.other, s->expert[move.slot]);
        swap(s, move.slot, move.other);
    }
    for (int32_t d = 0; d < s->devices; d++) s->cost[d] = cost_of(s, d);
}

/* At most `steps` looks at a fullest device; returns how many there were. */
static int32_t search(Search *s, int32_t steps, int32_t sweeps) {
    begin(s, sweeps);
    memset(s->stuck, 0, s->devices);
    memset(s->here, 0, s->experts);
    int32_t step = 0, stuck = 0;
    for (; step < steps; step++) {
        int32_t k = 0, g = fullest(s, &k);
        if (g == NONE || s->load[g * s->loads + k] <= 1 + s->near) break;
        Move best = {LEAST_GAIN, NONE, NONE, NONE};
        best_swap(s, g, k, &best);
        if (best.slot == NONE && s->stuck_max < 0) break;
        if (best.slot == NONE || s->budget >= 0) best_take(s, g, k, &best);
        if (best.slot == NONE) {
            s->stuck[g] = 1;
            if (++stuck > s->stuck_max) break;
            continue;
        }
        carry_out(s, best);
        memset(s->stuck, 0, s->devices), stuck = 0;
    }
    return step;
}
