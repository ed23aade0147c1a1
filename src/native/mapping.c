/* SPDX-License-Identifier: MIT
 *
 * Mapping: a private, writable view of a file, as a buffer. Before Python 3.13 each mmap.mmap keeps
 * a descriptor of its own.
 */
#include <errno.h>
#include <sys/mman.h>

#include "module.h"

typedef struct {
    PyObject_HEAD
    void *start;
    Py_ssize_t size;
} Mapping;

static PyObject *mapping_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)kwargs;
    int fd = -1;
    Py_ssize_t size = 0;
    if (!PyArg_ParseTuple(args, "in:Mapping", &fd, &size)) {
        return NULL;
    }
    if (size <= 0) {
        return PyErr_Format(PyExc_ValueError, "%zd bytes can't be mapped", size);
    }
    void *start = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    if (start == MAP_FAILED) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Mapping *self = (Mapping *)PyType_GenericAlloc(type, 0);
    if (self == NULL) {
        munmap(start, (size_t)size);
        return NULL;
    }
    self->start = start;
    self->size = size;
    return (PyObject *)self;
}

static int mapping_get_buffer(PyObject *object, Py_buffer *view, int flags) {
    const Mapping *self = (Mapping *)object;
    return PyBuffer_FillInfo(view, object, self->start, self->size, 0, flags);
}

static void mapping_dealloc(PyObject *object) {
    Mapping *self = (Mapping *)object;
    PyTypeObject *type = Py_TYPE(object);
    munmap(self->start, (size_t)self->size);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(object);
    Py_DECREF(type);
}

static PyType_Slot mapping_slots[] = {
    {Py_tp_new, mapping_new},
    {Py_tp_dealloc, mapping_dealloc},
    {Py_bf_getbuffer, mapping_get_buffer},
    {0, NULL},
};

PyType_Spec ramet_mapping_spec = {
    .name = "ramet._native.Mapping",
    .basicsize = sizeof(Mapping),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = mapping_slots,
};
