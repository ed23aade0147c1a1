/* SPDX-License-Identifier: MIT
 *
 * Pool: stacks of one size, of which some are kept for the next task.
 */
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "pool.h"

#include <structmember.h> /* part of Python.h from 3.12 on */

/* Each start needs one stack for the time of the call, so this is the number of threads that
 * start children at the same moment and of running tasks that share memory, within reason. */
#define MOST_KEPT 16

typedef struct {
    PyObject_HEAD
    Py_ssize_t size;
    Py_ssize_t kept;
    struct ramet_stack *idle[MOST_KEPT]; /* or NULL; exchanged atomically */
} Pool;

static PyObject *pool_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)kwargs;
    Py_ssize_t size = 0;
    Py_ssize_t kept = 0;
    if (!PyArg_ParseTuple(args, "nn:Pool", &size, &kept)) {
        return NULL;
    }
    Py_ssize_t page = (Py_ssize_t)sysconf(_SC_PAGESIZE);
    if (size < page) {
        return PyErr_Format(PyExc_ValueError, "a stack has at least one page (%zd bytes), got %zd",
                            page, size);
    }
    if (kept < 0 || kept > MOST_KEPT) {
        return PyErr_Format(PyExc_ValueError, "0 to %d stacks can be kept, not %zd", MOST_KEPT,
                            kept);
    }
    Pool *self = (Pool *)PyType_GenericAlloc(type, 0);
    if (self != NULL) {
        self->size = size;
        self->kept = kept;
    }
    return (PyObject *)self;
}

int ramet_pool_check(PyObject *object) {
    if (PyType_GetSlot(Py_TYPE(object), Py_tp_new) == (void *)pool_new) {
        return 0;
    }
    PyErr_SetString(PyExc_TypeError, "not a Pool");
    return -1;
}

struct ramet_stack *ramet_pool_take(PyObject *object) {
    Pool *self = (Pool *)object;
    for (Py_ssize_t i = 0; i < self->kept; i++) {
        struct ramet_stack *stack = __atomic_exchange_n(&self->idle[i], NULL, __ATOMIC_ACQ_REL);
        if (stack != NULL) {
            return stack;
        }
    }
    struct ramet_stack *stack = ramet_stack_map((size_t)self->size);
    if (stack == NULL) {
        int error = errno;
        PyObject *words = PyUnicode_FromFormat("%s: mmap of a stack of %zd bytes failed",
                                               strerror(error), self->size);
        PyObject *arguments = words == NULL ? NULL : Py_BuildValue("(iN)", error, words);
        if (arguments != NULL) {
            PyErr_SetObject(PyExc_OSError, arguments);
            Py_DECREF(arguments);
        }
    }
    return stack;
}

void ramet_pool_give(PyObject *object, struct ramet_stack *stack) {
    Pool *self = (Pool *)object;
    ramet_stack_take_back(stack);
    for (Py_ssize_t i = 0; i < self->kept; i++) {
        struct ramet_stack *none = NULL;
        if (__atomic_compare_exchange_n(&self->idle[i], &none, stack, false, __ATOMIC_ACQ_REL,
                                        __ATOMIC_RELAXED)) {
            return;
        }
    }
    ramet_stack_unmap(stack);
}

static void pool_dealloc(PyObject *object) {
    Pool *self = (Pool *)object;
    PyTypeObject *type = Py_TYPE(object);
    for (Py_ssize_t i = 0; i < self->kept; i++) {
        if (self->idle[i] != NULL) {
            ramet_stack_unmap(self->idle[i]);
        }
    }
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(object);
    Py_DECREF(type);
}

/* clear(): unmap what is idle. */
static PyObject *pool_clear(Pool *self, PyObject *unused) {
    (void)unused;
    for (Py_ssize_t i = 0; i < self->kept; i++) {
        struct ramet_stack *stack = __atomic_exchange_n(&self->idle[i], NULL, __ATOMIC_ACQ_REL);
        if (stack != NULL) {
            ramet_stack_unmap(stack);
        }
    }
    Py_RETURN_NONE;
}

/* idle: the lowest addresses of the stacks that are kept now. */
static PyObject *pool_get_idle(Pool *self, void *closure) {
    (void)closure;
    PyObject *list = PyList_New(0);
    for (Py_ssize_t i = 0; list != NULL && i < self->kept; i++) {
        struct ramet_stack *stack = __atomic_exchange_n(&self->idle[i], NULL, __ATOMIC_ACQ_REL);
        if (stack == NULL) {
            continue;
        }
        PyObject *address = PyLong_FromVoidPtr(stack->base + stack->guard);
        ramet_pool_give((PyObject *)self, stack);
        if (address == NULL || PyList_Append(list, address) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(address);
    }
    return list;
}

static PyMethodDef pool_methods[] = {
    {"clear", METHOD(pool_clear), METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef pool_members[] = {
    {"size", T_PYSSIZET, offsetof(Pool, size), READONLY, NULL},
    {"kept", T_PYSSIZET, offsetof(Pool, kept), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef pool_getset[] = {
    {"idle", (getter)(void (*)(void))pool_get_idle, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot pool_slots[] = {
    {Py_tp_new, pool_new},         {Py_tp_dealloc, pool_dealloc}, {Py_tp_methods, pool_methods},
    {Py_tp_members, pool_members}, {Py_tp_getset, pool_getset},   {0, NULL},
};

PyType_Spec ramet_pool_spec = {
    .name = "ramet._native.Pool",
    .basicsize = sizeof(Pool),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = pool_slots,
};
