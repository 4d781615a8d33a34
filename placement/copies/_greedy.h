/* EPLB and the bound of one layer: `eplb.py` and `bound.py` are the same in Python, and explain it.
 *
 * Scratch is handed in; nothing is allocated here.
 */
#include <math.h>
#include <stdint.h>

/* Indices of `value` from large to small, ties by index; `spare` has as many places. */
static void sort_falling(const double *value, int32_t *order, int32_t *spare, int32_t n) {
    for (int32_t i = 0; i < n; i++) order[i] = i;
    int32_t *from = order, *to = spare;
    for (int32_t run = 1; run < n; run *= 2) {
        for (int32_t low = 0; low < n; low += 2 * run) {
            int32_t mid = low + run < n ? low + run : n, high = low + 2 * run < n ? low + 2 * run : n;
            int32_t a = low, b = mid, at = low;
            while (a < mid && b < high)
                to[at++] = value[from[b]] > value[from[a]] ? from[b++] : from[a++];
            while (a < mid) to[at++] = from[a++];
            while (b < high) to[at++] = from[b++];
        }
        int32_t *kept = from;
        from = to, to = kept;
    }
    if (from != order)
        for (int32_t i = 0; i < n; i++) order[i] = from[i];
}

/* The least (key, place) on top; ties go to the lower place, as everywhere here. */
static void sift(const double *key, int32_t *heap, int32_t n, int32_t at) {
    int32_t item = heap[at];
    for (int32_t child = 2 * at + 1; child < n; child = 2 * at + 1) {
        int32_t other = child + 1;
        if (other < n && (key[heap[other]] < key[heap[child]] ||
                          (key[heap[other]] == key[heap[child]] && heap[other] < heap[child])))
            child = other;
        if (key[item] < key[heap[child]] || (key[item] == key[heap[child]] && item < heap[child]))
            break;
        heap[at] = heap[child], at = child;
    }
    heap[at] = item;
}

static void make_heap(const double *key, int32_t *heap, int32_t n) {
    for (int32_t i = 0; i < n; i++) heap[i] = i;
    for (int32_t i = n / 2 - 1; i >= 0; i--) sift(key, heap, n, i);
}

typedef struct {
    double *value, *each, *pack; /* [items], [experts], [packs or experts] */
    int32_t *order, *spare, *fill, *item, *heap; /* [items] x5 */
    int32_t *count, *mine;                       /* [experts] x2 */
} Greedy;

/* Items, heaviest first, each to the lightest of `packs` that has room; pack p's i-th item is
 * placed[p * (items / packs) + i]. */
static void pack_items(Greedy *g, int32_t items, int32_t packs, int32_t *placed) {
    int32_t room = items / packs;
    sort_falling(g->value, g->order, g->spare, items);
    for (int32_t p = 0; p < packs; p++) g->pack[p] = 0, g->fill[p] = 0;
    make_heap(g->pack, g->heap, packs);
    for (int32_t i = 0, left = packs; i < items && left > 0; i++) {
        int32_t at = g->heap[0];
        placed[at * room + g->fill[at]++] = g->order[i];
        g->pack[at] += g->value[g->order[i]];
        if (g->fill[at] == room) g->heap[0] = g->heap[--left];
        if (left) sift(g->pack, g->heap, left, 0);
    }
}

/* Copies, one at a time, to the expert with the most work per copy; then packed to devices. */
static void replicate_and_pack(Greedy *g, const double *load, const int32_t *experts, int32_t n,
                               const int32_t *sizes, int32_t *slot) {
    int32_t slots = sizes[0], devices = sizes[1];
    for (int32_t i = 0; i < n; i++) g->count[i] = 1, g->each[i] = load[experts[i]], g->item[i] = i;
    for (int32_t i = 0; i < n; i++) g->pack[i] = -g->each[i];
    make_heap(g->pack, g->heap, n);
    for (int32_t more = n; more < slots; more++) {
        int32_t at = g->heap[0];
        g->item[more] = at;
        g->each[at] = load[experts[at]] / ++g->count[at];
        g->pack[at] = -g->each[at];
        sift(g->pack, g->heap, n, 0);
    }
    for (int32_t r = 0; r < slots; r++) g->value[r] = g->each[g->item[r]];
    pack_items(g, slots, devices, slot);
    for (int32_t r = 0; r < slots; r++) slot[r] = experts[g->item[slot[r]]];
}

/* sizes: experts, slots, devices, groups, nodes. slot[slots] is written. */
static void eplb_layer(Greedy *g, const double *load, const int32_t *sizes, int32_t *slot) {
    int32_t experts = sizes[0], slots = sizes[1], devices = sizes[2];
    int32_t groups = sizes[3], nodes = sizes[4];
    if (groups % nodes) groups = nodes = 1;
    int32_t size = experts / groups, per_node = groups / nodes;
    for (int32_t q = 0; q < groups; q++) {
        g->value[q] = 0;
        for (int32_t i = 0; i < size; i++) g->value[q] += load[q * size + i];
    }
    pack_items(g, groups, nodes, slot); /* lies there until the groups are read off */
    for (int32_t q = 0; q < groups; q++)
        for (int32_t i = 0; i < size; i++) g->mine[q * size + i] = slot[q] * size + i;
    int32_t inner[2] = {slots / nodes, devices / nodes};
    for (int32_t n = 0; n < nodes; n++)
        replicate_and_pack(g, load, g->mine + n * per_node * size, per_node * size, inner,
                           slot + n * inner[0]);
}

static int64_t copies_needed(const double *load, int32_t experts, double limit) {
    int64_t sum = 0;
    for (int32_t e = 0; e < experts; e++) {
        double copies = ceil(load[e] / limit - 1e-9);
        sum += copies < 1 ? 1 : copies > 1e9 ? 1000000000 : (int64_t)copies;
    }
    return sum;
}

/* The least L, at least the mean, at which every expert can be cut into pieces of at most L. */
static double bound_layer(const double *load, int32_t experts, int32_t slots, int32_t devices) {
    double low = 0, most = 0;
    for (int32_t e = 0; e < experts; e++) {
        low += load[e] / devices;
        most = load[e] > most ? load[e] : most;
    }
    if (low <= 0 || copies_needed(load, experts, low) <= slots) return low;
    double high = most > low ? most : low;
    for (int32_t i = 0; i < 60 && high - low > 1e-12 * high; i++) {
        double middle = (low + high) / 2;
        if (copies_needed(load, experts, middle) <= slots)
            high = middle;
        else
            low = middle;
    }
    return low; /* from below: still a bound */
}
