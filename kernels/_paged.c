/* Attention over paged keys and values, and expert MLPs, for a ragged batch on a CPU.
 *
 * Answers: out of a batch of rows of many requests, what does each row attend to, and what do its
 * experts say, in a few calls per layer and without Python per request. Works on raw addresses that
 * the Python side has checked; releases the GIL; one thread.
 *
 * A row's result never depends on its neighbours: every sum has one order, fixed by the row's own
 * position and the shapes. Dot products run in 8 lanes over the whole depth and are folded as
 * ((0+1)+(2+3))+((4+5)+(6+7)); attention goes over tiles of 64 positions from position 0; blocking
 * over rows or outputs only chooses which of these independent sums run side by side. `exp` is our
 * own polynomial, so its bits do not depend on a library or on a loop's tail.
 *
 * Vectors are the compiler's generic ones: this compiles for any machine; on x86-64 the loops
 * are compiled for AVX2+FMA too, and chosen by what the CPU can do.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>

#include "_attend.h"
#include "_dense.h"
#include "_experts.h"

#define INTERFACE 4 /* raised when a signature changes; native.py refuses any other */

static PyObject *py_attend(PyObject *self, PyObject *args) {
    Attend a;
    long long q, k, v, out, cache, table, lane, position, sinks;
    if (!PyArg_ParseTuple(args, "(LLL)(LLL)(LLL)L(LLL)(LL)(LL)L(LLLLLL)d", &q, &a.q_row, &a.q_head,
                          &k, &a.k_row, &a.k_head, &v, &a.v_row, &a.v_head, &out, &cache,
                          &a.block_stride, &a.value_offset, &table, &a.table_width, &lane,
                          &position, &sinks, &a.rows, &a.heads, &a.kv_heads, &a.depth,
                          &a.block_tokens, &a.window, &a.scale))
        return NULL;
    if (a.depth % LANES || a.heads % a.kv_heads || a.heads / a.kv_heads > MAX_GROUP) {
        PyErr_SetString(PyExc_ValueError, "depth must be a multiple of 8, heads of kv heads");
        return NULL;
    }
    a.q = (const float *)(intptr_t)q, a.k = (const float *)(intptr_t)k;
    a.v = (const float *)(intptr_t)v, a.out = (float *)(intptr_t)out;
    a.cache = (float *)(intptr_t)cache, a.table = (const int64_t *)(intptr_t)table;
    a.lane = (const int64_t *)(intptr_t)lane, a.position = (const int64_t *)(intptr_t)position;
    a.sinks = (const float *)(intptr_t)sinks;
    Py_BEGIN_ALLOW_THREADS
    write_rows(&a);
    attend(&a);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_experts(PyObject *self, PyObject *args) {
    Experts e;
    long long x, row, slot, order, gate_up, down, gate_up_bias, down_bias, y;
    if (!PyArg_ParseTuple(args, "L(LLL)(LL)(LL)(LL)(LL)pL(LLL)(dd)", &x, &row, &slot, &order,
                          &gate_up, &e.gate_up_stride, &down, &e.down_stride, &gate_up_bias,
                          &e.gate_up_bias_stride, &down_bias, &e.down_bias_stride, &e.half, &y,
                          &e.pairs, &e.hidden, &e.inner, &e.alpha, &e.limit))
        return NULL;
    if (e.hidden % LANES || e.inner % LANES) {
        PyErr_SetString(PyExc_ValueError, "hidden and inner must be multiples of 8");
        return NULL;
    }
    e.x = (const float *)(intptr_t)x, e.row = (const int64_t *)(intptr_t)row;
    e.slot = (const int64_t *)(intptr_t)slot, e.order = (const int64_t *)(intptr_t)order;
    e.gate_up = (const void *)(intptr_t)gate_up, e.down = (const void *)(intptr_t)down;
    e.gate_up_bias = (const void *)(intptr_t)gate_up_bias;
    e.down_bias = (const void *)(intptr_t)down_bias;
    e.y = (float *)(intptr_t)y;
    e.scratch = malloc((size_t)(8 * e.inner) * sizeof(float));
    if (!e.scratch) return PyErr_NoMemory();
    Py_BEGIN_ALLOW_THREADS
    run_experts(&e);
    Py_END_ALLOW_THREADS
    free(e.scratch);
    Py_RETURN_NONE;
}

static PyObject *py_sum(PyObject *self, PyObject *args) {
    Sum s;
    long long y, weight, ids, out;
    if (!PyArg_ParseTuple(args, "LLLLLLL", &y, &ids, &weight, &out, &s.rows, &s.k, &s.hidden))
        return NULL;
    if (s.hidden % LANES) {
        PyErr_SetString(PyExc_ValueError, "hidden must be a multiple of 8");
        return NULL;
    }
    s.y = (const float *)(intptr_t)y, s.weight = (const float *)(intptr_t)weight;
    s.ids = (const int64_t *)(intptr_t)ids, s.out = (float *)(intptr_t)out;
    Py_BEGIN_ALLOW_THREADS
    sum_in_id_order(&s);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_linear(PyObject *self, PyObject *args) {
    Linear a;
    long long x, weight, bias, y;
    if (!PyArg_ParseTuple(args, "LLLLLLL", &x, &weight, &bias, &y, &a.rows, &a.outputs, &a.depth))
        return NULL;
    if (a.depth % LANES) {
        PyErr_SetString(PyExc_ValueError, "depth must be a multiple of 8");
        return NULL;
    }
    a.x = (const float *)(intptr_t)x, a.weight = (const float *)(intptr_t)weight;
    a.bias = (const float *)(intptr_t)bias, a.y = (float *)(intptr_t)y;
    Py_BEGIN_ALLOW_THREADS
    linear(&a);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_by_head(PyObject *self, PyObject *args) {
    ByHead a;
    long long x, weight, y;
    if (!PyArg_ParseTuple(args, "(LLL)(LL)L(LLLL)L", &x, &a.x_row, &a.x_head, &weight,
                          &a.weight_head, &y, &a.rows, &a.heads, &a.depth, &a.outputs,
                          &a.transposed))
        return NULL;
    if ((a.transposed ? a.outputs : a.depth) % LANES) {
        PyErr_SetString(PyExc_ValueError, "the weight's last dim must be a multiple of 8");
        return NULL;
    }
    a.x = (const float *)(intptr_t)x, a.weight = (const float *)(intptr_t)weight;
    a.y = (float *)(intptr_t)y;
    Py_BEGIN_ALLOW_THREADS
    by_head(&a);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_norm(PyObject *self, PyObject *args) {
    Norm a;
    long long x, weight, y;
    if (!PyArg_ParseTuple(args, "LLLLLd", &x, &weight, &y, &a.rows, &a.depth, &a.epsilon))
        return NULL;
    if (a.depth % LANES) {
        PyErr_SetString(PyExc_ValueError, "depth must be a multiple of 8");
        return NULL;
    }
    a.x = (const float *)(intptr_t)x, a.weight = (const float *)(intptr_t)weight;
    a.y = (float *)(intptr_t)y;
    Py_BEGIN_ALLOW_THREADS
    norm(&a);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"attend", py_attend, METH_VARARGS, "Write a batch's keys and values, then attend."},
    {"experts", py_experts, METH_VARARGS, "Run every pair's expert on its row."},
    {"sum_in_id_order", py_sum, METH_VARARGS, "Weighted sum of each row's expert results."},
    {"linear", py_linear, METH_VARARGS, "Rows through a linear layer."},
    {"by_head", py_by_head, METH_VARARGS, "Rows through a linear layer of each head's own."},
    {"norm", py_norm, METH_VARARGS, "RMS norm of rows."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_paged", NULL, 0, methods};
PyMODINIT_FUNC PyInit__paged(void) {
    PyObject *made = PyModule_Create(&module);
    if (made && PyModule_AddIntConstant(made, "INTERFACE", INTERFACE)) Py_CLEAR(made);
    return made;
}
