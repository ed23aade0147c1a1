/* SPDX-License-Identifier: MIT
 *
 * Addresses that the child may write to.
 */
#include <errno.h>
#include <linux/futex.h>
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
    {"bytes_address", pointer_bytes_address, METH_O, NULL},
    {"word_error", pointer_word_error, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};
