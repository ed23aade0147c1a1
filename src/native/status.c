/* SPDX-License-Identifier: MIT */
#include "status.h"

#include <string.h>

#include <structmember.h> /* part of Python.h from 3.12 on */

typedef struct {
    PyObject_HEAD
    int code;   /* si_code: CLD_EXITED, CLD_KILLED or CLD_DUMPED */
    int status; /* si_status: the exit code, or the signal */
    char has_usage;
    struct rusage usage;
} Status;

static Status *allocate(PyTypeObject *type) {
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    return (Status *)alloc(type, 0);
}

/* Status(code, status, rusage=None), rusage as bytes: for statuses that come from
 * elsewhere, and for pickle. */
static PyObject *status_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)kwargs;
    int code = 0;
    int status = 0;
    const char *usage = NULL;
    Py_ssize_t size = 0;
    if (!PyArg_ParseTuple(args, "ii|z#:ExitStatus", &code, &status, &usage, &size)) {
        return NULL;
    }
    if (usage != NULL && size != (Py_ssize_t)sizeof(struct rusage)) {
        return PyErr_Format(PyExc_ValueError, "struct rusage has %zu bytes, not %zd",
                            sizeof(struct rusage), size);
    }
    Status *self = allocate(type);
    if (self != NULL) {
        self->code = code;
        self->status = status;
        if (usage != NULL) {
            self->has_usage = 1;
            memcpy(&self->usage, usage, sizeof self->usage);
        }
    }
    return (PyObject *)self;
}

PyObject *ramet_status(PyObject *type, const siginfo_t *info, const struct rusage *usage) {
    if (!PyType_Check(type) ||
        PyType_GetSlot((PyTypeObject *)type, Py_tp_new) != (void *)status_new) {
        PyErr_SetString(PyExc_TypeError, "not a type of Status");
        return NULL;
    }
    Status *self = allocate((PyTypeObject *)type);
    if (self != NULL) {
        self->code = info->si_code;
        self->status = info->si_status;
        self->has_usage = 1;
        self->usage = *usage;
    }
    return (PyObject *)self;
}

static void status_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(object);
    Py_DECREF(type);
}

static PyObject *status_get_usage(Status *self, void *closure) {
    (void)closure;
    if (!self->has_usage) {
        Py_RETURN_NONE;
    }
    return PyBytes_FromStringAndSize((const char *)&self->usage, sizeof self->usage);
}

static PyObject *status_get_returncode(Status *self, void *closure) {
    (void)closure;
    return PyLong_FromLong(self->code == CLD_EXITED ? self->status : -self->status);
}

static PyMemberDef status_members[] = {
    {"_code", T_INT, offsetof(Status, code), READONLY, NULL},
    {"_status", T_INT, offsetof(Status, status), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static const char returncode_words[] =
    "The exit code, or the signal's number negated: what subprocess calls returncode.";

static PyGetSetDef status_getset[] = {
    {"_rusage", (getter)(void (*)(void))status_get_usage, NULL, NULL, NULL},
    {"returncode", (getter)(void (*)(void))status_get_returncode, NULL, returncode_words, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot status_slots[] = {
    {Py_tp_new, status_new},
    {Py_tp_dealloc, status_dealloc},
    {Py_tp_members, status_members},
    {Py_tp_getset, status_getset},
    {0, NULL},
};

PyType_Spec ramet_status_spec = {
    .name = "ramet._native.Status",
    .basicsize = sizeof(Status),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = status_slots,
};
