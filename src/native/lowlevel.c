/* SPDX-License-Identifier: MIT
 *
 * clone and clone3 for Python, one to one: integers in, the kernel's answer out.
 */
#include <linux/sched.h>

#include "module.h"
#include "ramet.h"

#define CLONE_PARAMETERS 7

/* Without CLONE_VM the child is a copy of this thread alone, so nobody may change
 * Python's memory while it is made; with it the child may take its time, and with
 * CLONE_VFORK this thread with it. */
static PyThreadState *let_go(uint64_t flags) {
    return (flags & CLONE_VM) ? PyEval_SaveThread() : NULL;
}

static PyObject *take_back(PyThreadState *state, long result) {
    if (state != NULL) {
        PyEval_RestoreThread(state);
    }
    return PyLong_FromLong(result);
}

static PyObject *lowlevel_clone(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    uint64_t p[CLONE_PARAMETERS];
    if (count != CLONE_PARAMETERS) {
        return PyErr_Format(PyExc_TypeError, "clone takes %d arguments, got %zd", CLONE_PARAMETERS,
                            count);
    }
    for (Py_ssize_t i = 0; i < CLONE_PARAMETERS; i++) {
        if (ramet_as_u64(args[i], &p[i]) < 0) {
            return NULL;
        }
    }
    PyThreadState *state = let_go(p[2]);
    long result = ramet_clone((long (*)(void *))p[0], (void *)p[1], p[2], (void *)p[3], (int *)p[4],
                              (void *)p[5], (int *)p[6]);
    return take_back(state, result);
}

/* clone3(fn, arg, size, *words): as many words as the struct has. */
#define CLONE3_WORDS ((Py_ssize_t)(sizeof(struct clone_args) / sizeof(uint64_t)))
#define CLONE3_PARAMETERS (3 + CLONE3_WORDS)

static PyObject *lowlevel_clone3(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    uint64_t p[CLONE3_PARAMETERS];
    if (count != CLONE3_PARAMETERS) {
        return PyErr_Format(PyExc_TypeError, "clone3 takes %zd arguments, got %zd",
                            CLONE3_PARAMETERS, count);
    }
    for (Py_ssize_t i = 0; i < CLONE3_PARAMETERS; i++) {
        if (ramet_as_u64(args[i], &p[i]) < 0) {
            return NULL;
        }
    }
    if (p[2] > sizeof(struct clone_args)) {
        PyErr_SetString(PyExc_ValueError, "size is larger than struct clone_args");
        return NULL;
    }
    struct clone_args *request = (struct clone_args *)&p[3];
    PyThreadState *state = let_go(request->flags);
    long result = ramet_clone3(request, p[2], (long (*)(void *))p[0], (void *)p[1]);
    return take_back(state, result);
}

PyMethodDef ramet_lowlevel_methods[] = {
    {"clone", (PyCFunction)(void (*)(void))lowlevel_clone, METH_FASTCALL, NULL},
    {"clone3", (PyCFunction)(void (*)(void))lowlevel_clone3, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};
