/* `moectl.placement.copies._copies`: planning and scoring of whole models, for Python, on buffers.
 *
 * The Python side (`native.py`) checks shapes and values; sizes are checked here once more.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "_greedy.h"
#include "_search.h"

#define INTERFACE 1 /* raised when a signature changes; native.py refuses any other */

/* Room for both searches of a layer, taken once and cut into arrays. */
typedef struct {
    char *all, *at;
} Arena;

static void *cut(Arena *a, size_t bytes) {
    void *piece = a->at;
    a->at += (bytes + 15) / 16 * 16;
    return piece;
}

#define CUT(arena, type, n) ((type *)cut(arena, sizeof(type) * (size_t)(n)))

static size_t search_bytes(size_t E, size_t R, size_t G, size_t K) {
    return 8 * (2 * R * K + 2 * G * K + G + E * K + R + K) + 4 * (4 * R + 3 * E + 2 * G) + G + E +
           4 * R + 16 * 24;
}

static void search_arrays(Search *s, Arena *a) {
    size_t E = s->experts, R = s->slots, G = s->devices, K = s->loads;
    s->flow = CUT(a, double, R * K), s->kept_flow = CUT(a, double, R * K);
    s->load = CUT(a, double, G * K), s->kept_load = CUT(a, double, G * K);
    s->cost = CUT(a, double, G), s->floor = CUT(a, double, R);
    s->next = CUT(a, int32_t, R), s->kept_slot = CUT(a, int32_t, R);
    s->around = CUT(a, int32_t, R);
    s->head = CUT(a, int32_t, E), s->count = CUT(a, int32_t, E);
    s->stuck = CUT(a, uint8_t, G), s->here = CUT(a, uint8_t, E);
}

static size_t greedy_bytes(size_t E, size_t R, size_t G) {
    return 8 * (2 * (R + E) + E + G) + 4 * (4 * (R + E) + 2 * E + R + G) + 16 * 14;
}

static Greedy greedy_arrays(Arena *a, size_t E, size_t R, size_t G) {
    Greedy g;
    g.value = CUT(a, double, R + E), g.each = CUT(a, double, E), g.pack = CUT(a, double, E + G);
    g.order = CUT(a, int32_t, R + E), g.spare = CUT(a, int32_t, R + E);
    g.fill = CUT(a, int32_t, R + E), g.item = CUT(a, int32_t, R);
    g.heap = CUT(a, int32_t, R + E), g.count = CUT(a, int32_t, E), g.mine = CUT(a, int32_t, E);
    return g;
}

static double largest_equal(const double *load, const int32_t *slot, const int32_t *sizes,
                            int32_t *count, double *device) {
    int32_t E = sizes[0], R = sizes[1], G = sizes[2];
    for (int32_t e = 0; e < E; e++) count[e] = 0;
    for (int32_t d = 0; d < G; d++) device[d] = 0;
    for (int32_t r = 0; r < R; r++) count[slot[r]]++;
    for (int32_t r = 0; r < R; r++) device[r / (R / G)] += load[slot[r]] / count[slot[r]];
    double most = 0;
    for (int32_t d = 0; d < G; d++) most = device[d] > most ? device[d] : most;
    return most;
}

static int holds(const char *what, int fits) {
    if (!fits) PyErr_Format(PyExc_ValueError, "%s: sizes do not fit together", what);
    return fits;
}

/* A layer: EPLB's answer, and from there `steps` of search; never worse under equal shares. */
static void plan_layer(Greedy *g, Search *s, const double *load, const int32_t *sizes,
                       const int32_t *steps, int32_t *slot, double *figures, double *work) {
    eplb_layer(g, load, sizes, slot);
    double bound = bound_layer(load, sizes[0], sizes[1], sizes[2]);
    double first = largest_equal(load, slot, sizes, s->head, s->cost);
    figures[0] = first, figures[1] = first, figures[2] = bound, figures[3] = 0;
    if (steps[0] < 1 || bound <= 0 || first <= bound * (1 + s->near)) return;
    for (int32_t e = 0; e < sizes[0]; e++) work[e] = load[e] / bound;
    int32_t *kept = g->item;
    for (int32_t r = 0; r < sizes[1]; r++) kept[r] = slot[r];
    s->work = work, s->expert = slot, s->moved = 0;
    s->level = 0;
    figures[3] = search(s, steps[0], 0);
    if (steps[2] > 0) {
        s->level = 1;
        figures[3] += search(s, steps[2], steps[1]);
    }
    figures[1] = largest_equal(load, slot, sizes, s->head, s->cost);
    if (steps[2] < 1 && figures[1] > first) {
        for (int32_t r = 0; r < sizes[1]; r++) slot[r] = kept[r];
        figures[1] = first;
    }
}

/* plan(load[L,E], slot[L,R] out, figures[L,4] out, (E, R, G, groups, nodes),
 *      (steps, sweeps, steps with poured shares, stuck_max), near)
 * figures: largest load by EPLB, of the answer (equal shares), the bound, steps taken. */
static PyObject *py_plan(PyObject *self, PyObject *args) {
    Py_buffer load, slot, figures;
    int z[5], o[4];
    double near;
    if (!PyArg_ParseTuple(args, "y*w*w*(iiiii)(iiii)d", &load, &slot, &figures, z, z + 1, z + 2,
                          z + 3, z + 4, o, o + 1, o + 2, o + 3, &near))
        return NULL;
    Py_ssize_t L = z[0] > 0 ? load.len / 8 / z[0] : 0, E = z[0], R = z[1], G = z[2];
    int fits = E > 0 && G > 0 && R >= E && R % G == 0 && z[3] > 0 && z[4] > 0 &&
               load.len == L * E * 8 && slot.len == L * R * 4 && figures.len == L * 32 &&
               (z[3] % z[4] || (E % z[3] == 0 && G % z[4] == 0 && R % z[4] == 0));
    char *room = fits ? PyMem_Malloc(search_bytes(E, R, G, 1) + greedy_bytes(E, R, G)) : NULL;
    if (fits && !room) PyErr_NoMemory();
    if (room) {
        Arena arena = {room, room};
        double one = 1, *work = CUT(&arena, double, E);
        Greedy g = greedy_arrays(&arena, E, R, G);
        Search s = {.experts = (int32_t)E, .slots = (int32_t)R, .devices = (int32_t)G, .loads = 1};
        s.per = s.slots / s.devices, s.budget = -1, s.stuck_max = o[3];
        s.near = near, s.weight = &one;
        search_arrays(&s, &arena);
        for (Py_ssize_t l = 0; l < L; l++)
            plan_layer(&g, &s, (double *)load.buf + l * E, z, o, (int32_t *)slot.buf + l * R,
                       (double *)figures.buf + l * 4, work);
        PyMem_Free(room);
    }
    holds("plan", fits);
    PyBuffer_Release(&load), PyBuffer_Release(&slot), PyBuffer_Release(&figures);
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}

/* refine(work[E,K], weight[K], slot[R] in and out, was[G,E] or empty, home[E] or empty, node[G],
 *        (devices, level, budget, stuck_max, steps, sweeps), near, local) -> (steps, moved) */
static PyObject *py_refine(PyObject *self, PyObject *args) {
    Py_buffer work, weight, slot, was, home, node;
    int o[6];
    double near, local;
    if (!PyArg_ParseTuple(args, "y*y*w*y*y*y*(iiiiii)dd", &work, &weight, &slot, &was, &home,
                          &node, o, o + 1, o + 2, o + 3, o + 4, o + 5, &near, &local))
        return NULL;
    Py_ssize_t K = weight.len / 8, E = K ? work.len / 8 / K : 0, R = slot.len / 4, G = o[0];
    int fits = K > 0 && E > 0 && G > 0 && R % G == 0 && work.len == E * K * 8;
    fits = fits && (o[2] < 0 || was.len == G * E);
    fits = fits && (local <= 0 || (home.len == E * 4 && node.len == G * 4));
    for (Py_ssize_t r = 0; fits && r < R; r++)
        fits = ((int32_t *)slot.buf)[r] >= 0 && ((int32_t *)slot.buf)[r] < E;
    char *room = fits ? PyMem_Malloc(search_bytes(E, R, G, K)) : NULL;
    if (fits && !room) PyErr_NoMemory();
    int steps = 0, moved = 0;
    if (room) {
        Arena arena = {room, room};
        Search s = {.experts = (int32_t)E, .slots = (int32_t)R, .devices = (int32_t)G};
        s.loads = (int32_t)K, s.per = s.slots / s.devices, s.level = o[1], s.budget = o[2];
        s.stuck_max = o[3], s.near = near, s.local = local, s.work = work.buf;
        s.weight = weight.buf, s.was = was.buf, s.home = home.buf, s.node = node.buf;
        s.expert = slot.buf;
        for (Py_ssize_t r = 0; s.budget >= 0 && r < R; r++)
            moved += !s.was[(r / s.per) * E + s.expert[r]];
        s.moved = moved;
        search_arrays(&s, &arena);
        steps = search(&s, o[4], o[5]), moved = s.moved;
        PyMem_Free(room);
    }
    holds("refine", fits);
    PyBuffer_Release(&work), PyBuffer_Release(&weight), PyBuffer_Release(&slot);
    PyBuffer_Release(&was), PyBuffer_Release(&home), PyBuffer_Release(&node);
    return PyErr_Occurred() ? NULL : Py_BuildValue("ii", steps, moved);
}

/* index(slot[L,R], slots_of[L,E,M] out, count[L,E] out): the slots of every expert, -1 after. */
static PyObject *py_index(PyObject *self, PyObject *args) {
    Py_buffer slot, slots_of, count;
    int L, E, M; /* layers, experts, most copies */
    if (!PyArg_ParseTuple(args, "y*w*w*(iii)", &slot, &slots_of, &count, &L, &E, &M)) return NULL;
    Py_ssize_t R = L > 0 ? slot.len / 4 / L : 0;
    int fits = L > 0 && slot.len == L * R * 4 && count.len == (Py_ssize_t)L * E * 8 &&
               slots_of.len == (Py_ssize_t)L * E * M * 8;
    int64_t *counts = count.buf, *of = slots_of.buf;
    const int32_t *slots = slot.buf;
    for (Py_ssize_t i = 0; fits && i < (Py_ssize_t)L * E; i++) counts[i] = 0;
    for (Py_ssize_t i = 0; fits && i < (Py_ssize_t)L * E * M; i++) of[i] = -1;
    for (Py_ssize_t i = 0; fits && i < L * R; i++) {
        Py_ssize_t at = i / R * E + slots[i];
        fits = slots[i] >= 0 && slots[i] < E && counts[at] < M;
        if (fits) of[at * M + counts[at]++] = i % R;
    }
    holds("index", fits);
    PyBuffer_Release(&slot), PyBuffer_Release(&slots_of), PyBuffer_Release(&count);
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}

static PyObject *py_bound(PyObject *self, PyObject *args) {
    Py_buffer load;
    int slots, devices;
    if (!PyArg_ParseTuple(args, "y*ii", &load, &slots, &devices)) return NULL;
    int fits = devices > 0 && load.len >= 8 && slots >= load.len / 8;
    double found = fits ? bound_layer(load.buf, (int32_t)(load.len / 8), slots, devices) : 0;
    PyBuffer_Release(&load);
    return holds("bound", fits) ? PyFloat_FromDouble(found) : NULL;
}

static PyMethodDef methods[] = {
    {"plan", py_plan, METH_VARARGS, "EPLB and refinement of all layers under one load."},
    {"refine", py_refine, METH_VARARGS, "Search from a given placement of one layer."},
    {"index", py_index, METH_VARARGS, "Slots of every expert."},
    {"bound", py_bound, METH_VARARGS, "Lower bound of one layer."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_copies", NULL, -1, methods};

PyMODINIT_FUNC PyInit__copies(void) {
    PyObject *made = PyModule_Create(&module);
    if (made && PyModule_AddIntConstant(made, "INTERFACE", INTERFACE)) Py_CLEAR(made);
    return made;
}
