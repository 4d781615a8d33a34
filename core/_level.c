/* `moectl.core._level`: the token split of one layer for Python, on buffers. No other library. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <string.h>

#include "_level.h"

#define INTERFACE 1 /* raised when `level` changes; token_split.py refuses any other */

static int fits(const Py_buffer *load, const Py_buffer *start, const Py_buffer *rank,
                const Py_buffer *share, long width) {
    Py_ssize_t experts = load->len / 8, copies = rank->len / 4;
    const int32_t *starts = start->buf, *ranks = rank->buf;
    if (start->len / 4 != experts + 1 || share->len / 8 != copies || width < 1) return 0;
    if (starts[0] != 0 || starts[experts] != copies || copies > INT32_MAX / 2) return 0;
    for (Py_ssize_t e = 0; e < experts; e++)
        if (starts[e] >= starts[e + 1]) return 0;
    for (Py_ssize_t i = 0; i < copies; i++)
        if (ranks[i] < 0 || ranks[i] >= width) return 0;
    return 1;
}

static double run(Level *l, int32_t copies, int32_t sweeps) {
    size_t doubles = (size_t)l->width * sizeof(double);
    char *room = PyMem_Malloc(doubles + level_bytes(l->experts, copies, l->width));
    if (!room) return -1;
    l->device = (double *)room;
    level_scratch(l, room + doubles, copies);
    double most = level_layer(l, sweeps);
    for (int32_t e = 0; e < l->experts; e++) {
        double load = l->load[e];
        int32_t from = l->start[e], to = l->start[e + 1];
        for (int32_t i = from; i < to; i++)
            l->flow[i] = load > 0 ? l->flow[i] / load : 1.0 / (to - from);
    }
    PyMem_Free(room);
    return most;
}

/* level(load, start, rank, share, width, sweeps) -> largest load; share is written. */
static PyObject *py_level(PyObject *self, PyObject *args) {
    Py_buffer load, start, rank, share;
    long width, sweeps;
    if (!PyArg_ParseTuple(args, "y*y*y*w*ll", &load, &start, &rank, &share, &width, &sweeps))
        return NULL;
    double most = -2;
    if (fits(&load, &start, &rank, &share, width)) {
        Level l = {.experts = (int32_t)(load.len / 8), .width = (int32_t)width};
        l.load = load.buf, l.start = start.buf, l.rank = rank.buf, l.flow = share.buf;
        most = run(&l, (int32_t)(rank.len / 4), (int32_t)sweeps);
    }
    PyBuffer_Release(&load), PyBuffer_Release(&start);
    PyBuffer_Release(&rank), PyBuffer_Release(&share);
    if (most == -2) return PyErr_Format(PyExc_ValueError, "loads and copies do not fit together");
    return most == -1 ? PyErr_NoMemory() : PyFloat_FromDouble(most);
}

static PyMethodDef methods[] = {
    {"level", py_level, METH_VARARGS, "The split of one layer; see token_split.py."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_level", NULL, -1, methods};

PyMODINIT_FUNC PyInit__level(void) {
    PyObject *made = PyModule_Create(&module);
    if (made && PyModule_AddIntConstant(made, "INTERFACE", INTERFACE)) Py_CLEAR(made);
    return made;
}
