/* SPDX-License-Identifier: MIT
 *
 * Addresses that the child may write to.
 */
#define _GNU_SOURCE /* environ */
#include <errno.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "module.h"

/* The caller holds a memoryview of the object, whose export keeps the address
 * good after this view of it is released. */
static PyObject *pointer_address(PyObject *module, PyObject *object) {
    (void)module;
    Py_buffer view;
    if (PyObject_GetBuffer(object, &view, PyBUF_SIMPLE | PyBUF_WRITABLE) < 0) {
        return NULL;
    }
    PyObject *address = PyLong_FromVoidPtr(view.buf);
    PyBuffer_Release(&view);
    return address;
}

/* pointers(list of bytes) -> bytes: an array of char * with a NULL at the end, as for
 * execve. CPython's bytes end with a NUL. */
static PyObject *pointer_pointers(PyObject *module, PyObject *list) {
    (void)module;
    Py_ssize_t count = PyList_Size(list);
    if (count < 0) {
        return NULL;
    }
    PyObject *array = PyBytes_FromStringAndSize(NULL, (count + 1) * (Py_ssize_t)sizeof(char *));
    if (array == NULL) {
        return NULL;
    }
    char **words = (char **)PyBytes_AsString(array);
    for (Py_ssize_t i = 0; i < count; i++) {
        words[i] = PyBytes_AsString(PyList_GetItem(list, i));
        if (words[i] == NULL) {
            Py_DECREF(array);
            return NULL;
        }
    }
    words[count] = NULL;
    return array;
}

/* environment() -> bytes: the same for a copy of what the C library has, strings included. With
 * the GIL, under which os.environ is changed. */
static PyObject *pointer_environment(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    size_t count = 0;
    size_t size = 0;
    while (environ != NULL && environ[count] != NULL) {
        size += strlen(environ[count++]) + 1;
    }
    const size_t array = (count + 1) * sizeof(char *);
    PyObject *copy = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(array + size));
    if (copy == NULL) {
        return NULL;
    }
    char **words = (char **)PyBytes_AsString(copy);
    char *strings = (char *)words + array;
    for (size_t i = 0; i < count; i++) {
        size_t length = strlen(environ[i]) + 1;
        words[i] = memcpy(strings, environ[i], length);
        strings += length;
    }
    words[count] = NULL;
    return copy;
}

/* bytes_address(bytes) -> where they lie, as long as the object is there. */
static PyObject *pointer_bytes_address(PyObject *module, PyObject *object) {
    (void)module;
    char *address = PyBytes_AsString(object);
    return address == NULL ? NULL : PyLong_FromVoidPtr(address);
}

/* word_error(address) -> 0 if an int can be stored there, EFAULT, or EINVAL if it is not aligned.
 *
 * The kernel tries, without a change: it adds 0 (FUTEX_WAKE_OP, futex(2)). The comparison
 * of what was there with the smallest number, for less, keeps it from waking anyone. */
static PyObject *pointer_word_error(PyObject *module, PyObject *object) {
    (void)module;
    uint64_t address = 0;
    if (ramet_as_u64(object, &address) < 0) {
        return NULL;
    }
    int nobody = 0;
    long result = syscall(SYS_futex, &nobody, FUTEX_WAKE_OP_PRIVATE, 0, NULL, address,
                          FUTEX_OP(FUTEX_OP_ADD, 0, FUTEX_OP_CMP_LT, -2048));
    return PyLong_FromLong(result < 0 ? errno : 0);
}

PyMethodDef ramet_pointer_methods[] = {
    {"address", pointer_address, METH_O, NULL},
    {"pointers", pointer_pointers, METH_O, NULL},
    {"environment", pointer_environment, METH_NOARGS, NULL},
    {"bytes_address", pointer_bytes_address, METH_O, NULL},
    {"word_error", pointer_word_error, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};
