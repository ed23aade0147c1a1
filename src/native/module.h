/* SPDX-License-Identifier: MIT
 *
 * ramet._native: what its files share. Only these files know Python.
 */
#ifndef RAMET_MODULE_H
#define RAMET_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#ifdef Py_LIMITED_API
/* Those of some versions give away a reference that they do not take, since their None, True and
 * False are immortal (3.12.1, 3.13.0: object.h, boolobject.h). What is built with such headers is
 * also for 3.11, where they are not. */
#undef Py_RETURN_NONE
#undef Py_RETURN_TRUE
#undef Py_RETURN_FALSE
#define Py_RETURN_NONE return Py_NewRef(Py_None)
#define Py_RETURN_TRUE return Py_NewRef(Py_True)
#define Py_RETURN_FALSE return Py_NewRef(Py_False)
#endif
#include <stdint.h>

/* What the GIL is to the methods of one object, where there is none. */
#ifndef Py_BEGIN_CRITICAL_SECTION
#define Py_BEGIN_CRITICAL_SECTION(object) {
#define Py_END_CRITICAL_SECTION() }
#endif

#define METHOD(function) ((PyCFunction)(void (*)(void))(function))

/* The functions and types of each subject; module.c only collects them. */
extern PyMethodDef ramet_arena_functions[];
extern PyMethodDef ramet_lowlevel_methods[];
extern PyMethodDef ramet_pointer_methods[];
extern PyMethodDef ramet_private_functions[];
extern PyMethodDef ramet_serve_functions[];
extern PyMethodDef ramet_task_functions[];
extern PyType_Spec ramet_channel_spec;
extern PyType_Spec ramet_descriptor_spec;
extern PyType_Spec ramet_mapping_spec;
extern PyType_Spec ramet_pool_spec;
extern PyType_Spec ramet_status_spec;
extern PyType_Spec ramet_task_spec;

/* Converts an int to a 64-bit word, address or flag. Returns -1 with TypeError or
 * OverflowError set; a negative int is an OverflowError. */
static inline int ramet_as_u64(PyObject *object, uint64_t *value) {
    *value = PyLong_AsUnsignedLongLong(object);
    return (*value == (uint64_t)-1 && PyErr_Occurred()) ? -1 : 0;
}

/* Moves a new descriptor, close-on-exec, if somebody might take it for a standard stream that is
 * closed. Returns -1, with errno and the descriptor closed, if there is no room. */
int ramet_beyond_standard(int fd);

#endif
