/* SPDX-License-Identifier: MIT
 *
 * Addresses of buffers, for arguments that the child may write to.
 */
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

PyMethodDef ramet_pointer_methods[] = {
    {"address", pointer_address, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};
