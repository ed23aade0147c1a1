/* SPDX-License-Identifier: MIT
 *
 * Descriptor: one of ours. It is opened into an object that closes it, in one call: between two of
 * Python the handler of a signal might raise.
 */
#define _GNU_SOURCE /* O_PATH */
#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "module.h"

#include <structmember.h> /* part of Python.h from 3.12 on */

typedef struct {
    PyObject_HEAD
    int number;
} Descriptor;

static Descriptor *allocate(PyObject *type) {
    Descriptor *self = (Descriptor *)PyType_GenericAlloc((PyTypeObject *)type, 0);
    if (self != NULL) {
        self->number = -1;
    }
    return self;
}

/* What was tried to open, or the exception for errno. */
static PyObject *opened(Descriptor *self) {
    if (self->number < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

static void descriptor_dealloc(PyObject *object) {
    Descriptor *self = (Descriptor *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->number >= 0) {
        close(self->number);
    }
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(object);
    Py_DECREF(type);
}

/* directory(path as bytes) -> Descriptor, close-on-exec */
static PyObject *descriptor_directory(PyObject *type, PyObject *path) {
    const char *name = PyBytes_AsString(path);
    Descriptor *self = name == NULL ? NULL : allocate(type);
    if (self == NULL) {
        return NULL;
    }
    self->number = open(name, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (self->number < 0) {
        PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, path);
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

/* this_process() -> a pidfd of ours, close-on-exec */
static PyObject *descriptor_this_process(PyObject *type, PyObject *unused) {
    (void)unused;
    Descriptor *self = allocate(type);
    if (self == NULL) {
        return NULL;
    }
    self->number = (int)syscall(SYS_pidfd_open, getpid(), 0);
    return opened(self);
}

/* gate() -> an eventfd at 0, close-on-exec */
static PyObject *descriptor_gate(PyObject *type, PyObject *unused) {
    (void)unused;
    Descriptor *self = allocate(type);
    if (self == NULL) {
        return NULL;
    }
    self->number = eventfd(0, EFD_CLOEXEC);
    return opened(self);
}

int ramet_beyond_standard(int fd) {
    if (fd < 0 || fd > STDERR_FILENO) {
        return fd;
    }
    int moved = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    int error = errno;
    close(fd);
    errno = error;
    return moved;
}

/* memory(name as bytes) -> an empty memory file, close-on-exec, beyond the standard streams */
static PyObject *descriptor_memory(PyObject *type, PyObject *name) {
    const char *text = PyBytes_AsString(name);
    Descriptor *self = text == NULL ? NULL : allocate(type);
    if (self == NULL) {
        return NULL;
    }
    self->number = ramet_beyond_standard((int)syscall(SYS_memfd_create, text, MFD_CLOEXEC));
    return opened(self);
}

/* pipe() -> both ends, for reading and for writing; as of memory */
static PyObject *descriptor_pipe(PyObject *type, PyObject *unused) {
    (void)unused;
    Descriptor *ends[2] = {allocate(type), NULL};
    int numbers[2];
    ends[1] = ends[0] == NULL ? NULL : allocate(type);
    if (ends[1] == NULL) {
        Py_XDECREF((PyObject *)ends[0]);
        return NULL;
    }
    int error = pipe2(numbers, O_CLOEXEC) == 0 ? 0 : errno;
    for (int i = 0; i < 2 && error == 0; i++) {
        ends[i]->number = ramet_beyond_standard(numbers[i]);
        if (ends[i]->number < 0) {
            error = errno;
            if (i == 0) {
                close(numbers[1]);
            }
        }
    }
    PyObject *pair = NULL;
    if (error == 0) {
        pair = PyTuple_Pack(2, ends[0], ends[1]);
    } else {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_DECREF((PyObject *)ends[0]);
    Py_DECREF((PyObject *)ends[1]);
    return pair;
}

/* close() before the object goes; again: nothing */
static PyObject *descriptor_close(PyObject *object, PyObject *unused) {
    (void)unused;
    Descriptor *self = (Descriptor *)object;
    int number = self->number;
    self->number = -1;
    if (number >= 0) {
        close(number);
    }
    Py_RETURN_NONE;
}

static PyMethodDef descriptor_methods[] = {
    {"close", METHOD(descriptor_close), METH_NOARGS, NULL},
    {"directory", METHOD(descriptor_directory), METH_O | METH_CLASS, NULL},
    {"this_process", METHOD(descriptor_this_process), METH_NOARGS | METH_CLASS, NULL},
    {"gate", METHOD(descriptor_gate), METH_NOARGS | METH_CLASS, NULL},
    {"pipe", METHOD(descriptor_pipe), METH_NOARGS | METH_CLASS, NULL},
    {"memory", METHOD(descriptor_memory), METH_O | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef descriptor_members[] = {
    {"number", T_INT, offsetof(Descriptor, number), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot descriptor_slots[] = {
    {Py_tp_dealloc, descriptor_dealloc},
    {Py_tp_methods, descriptor_methods},
    {Py_tp_members, descriptor_members},
    {0, NULL},
};

PyType_Spec ramet_descriptor_spec = {
    .name = "ramet._native.Descriptor",
    .basicsize = sizeof(Descriptor),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = descriptor_slots,
};
