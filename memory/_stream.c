/* Copies of megabytes that leave the caches to others.
 *
 * A plain copy reads every line of its target before it writes it, and drives out what serving
 * threads had in the caches; stores that go past them do neither. The widest that this CPU has are
 * chosen at run time. The interpreter lock is let go of, and only then is the thread's level lowered,
 * if that is asked for: at idle priority it may stop for long, and must hold nothing.
 */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>

#define INTERFACE 1 /* as in stream.py */
#define LINE 64

#if defined(__x86_64__)
#include <immintrin.h>

__attribute__((target("avx512f"))) static void lines_avx512(char *to, const char *from, size_t n) {
    for (size_t i = 0; i < n; i += 4 * LINE) {
        __m512i a = _mm512_loadu_si512(from + i), b = _mm512_loadu_si512(from + i + LINE);
        __m512i c = _mm512_loadu_si512(from + i + 2 * LINE);
        __m512i d = _mm512_loadu_si512(from + i + 3 * LINE);
        _mm512_stream_si512((void *)(to + i), a);
        _mm512_stream_si512((void *)(to + i + LINE), b);
        _mm512_stream_si512((void *)(to + i + 2 * LINE), c);
        _mm512_stream_si512((void *)(to + i + 3 * LINE), d);
    }
    _mm_sfence();
}

__attribute__((target("avx"))) static void lines_avx(char *to, const char *from, size_t n) {
    for (size_t i = 0; i < n; i += 4 * LINE) {
        for (size_t j = i; j < i + 4 * LINE; j += 2 * 32) {
            __m256i a = _mm256_loadu_si256((const void *)(from + j));
            __m256i b = _mm256_loadu_si256((const void *)(from + j + 32));
            _mm256_stream_si256((void *)(to + j), a);
            _mm256_stream_si256((void *)(to + j + 32), b);
        }
    }
    _mm_sfence();
}

static const char *kind(void) {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) return "avx512";
    return __builtin_cpu_supports("avx") ? "avx" : "plain";
}

/* `to` on a line, n whole groups of four lines. */
static void lines(char *to, const char *from, size_t n) {
    const char *have = kind();
    if (!strcmp(have, "avx512")) lines_avx512(to, from, n);
    else if (!strcmp(have, "avx")) lines_avx(to, from, n);
    else memcpy(to, from, n);
}
#else
static const char *kind(void) { return "plain"; }
static void lines(char *to, const char *from, size_t n) { memcpy(to, from, n); }
#endif

static void stream(char *to, const char *from, size_t bytes) {
    size_t head = (LINE - (uintptr_t)to % LINE) % LINE;
    if (head > bytes) head = bytes;
    size_t body = (bytes - head) / (4 * LINE) * (4 * LINE);
    memcpy(to, from, head);
    lines(to + head, from + head, body);
    memcpy(to + head + body, from + head + body, bytes - head - body);
}

static void set_policy(int policy) {
    struct sched_param none = {0};
    (void)sched_setscheduler(0, policy, &none); /* advice: whoever may not goes on as it is */
}

/* copy(target, source, bytes, at_idle): addresses that do not overlap. `at_idle` is for threads of
 * the normal policy that are allowed to return to it. */
static PyObject *copy(PyObject *self, PyObject *arguments) {
    unsigned long long to, from, bytes;
    int at_idle;
    if (!PyArg_ParseTuple(arguments, "KKKp", &to, &from, &bytes, &at_idle)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    if (at_idle) set_policy(SCHED_IDLE);
    stream((char *)(uintptr_t)to, (const char *)(uintptr_t)from, (size_t)bytes);
    if (at_idle) set_policy(SCHED_OTHER);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"copy", copy, METH_VARARGS, "copy(target, source, bytes, at_idle) past the caches"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_stream", NULL, -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__stream(void) {
    PyObject *made = PyModule_Create(&module);
    if (made == NULL) return NULL;
    if (PyModule_AddIntConstant(made, "INTERFACE", INTERFACE) < 0 ||
        PyModule_AddStringConstant(made, "KIND", kind()) < 0) {
        Py_DECREF(made);
        return NULL;
    }
    return made;
}
