/* SPDX-License-Identifier: MIT */
#include "child.h"
#include "module.h"

static int exec_module(PyObject *module) {
    PyMethodDef *const subjects[] = {ramet_lowlevel_methods, ramet_wait_methods,
                                     ramet_pointer_methods};
    for (size_t i = 0; i < sizeof subjects / sizeof *subjects; i++) {
        if (PyModule_AddFunctions(module, subjects[i]) < 0) {
            return -1;
        }
    }
    PyObject *stack = PyType_FromModuleAndSpec(module, &ramet_stack_spec, NULL);
    if (stack == NULL) {
        return -1;
    }
    int result = PyModule_AddObjectRef(module, "Stack", stack);
    Py_DECREF(stack);
    if (result < 0) {
        return -1;
    }
    PyObject *nothing = PyLong_FromVoidPtr((void *)ramet_nothing);
    result = PyModule_AddObjectRef(module, "nothing", nothing);
    Py_XDECREF(nothing);
    return result;
}

/* Slots that came after 3.11, by their numbers in the stable ABI: there is no
 * mutable state here, so every interpreter, and every thread without a GIL, may
 * have the module. */
#define SLOT_MULTIPLE_INTERPRETERS 3 /* Py_mod_multiple_interpreters, 3.12 */
#define PER_INTERPRETER_GIL ((void *)2)
#define SLOT_GIL 4 /* Py_mod_gil, 3.13 */
#define GIL_NOT_USED ((void *)1)

static PyModuleDef_Slot slots_3_11[] = {
    {Py_mod_exec, exec_module},
    {0, NULL},
};

static PyModuleDef_Slot slots_3_12[] = {
    {Py_mod_exec, exec_module},
    {SLOT_MULTIPLE_INTERPRETERS, PER_INTERPRETER_GIL},
    {0, NULL},
};

static PyModuleDef_Slot slots_3_13[] = {
    {Py_mod_exec, exec_module},
    {SLOT_MULTIPLE_INTERPRETERS, PER_INTERPRETER_GIL},
    {SLOT_GIL, GIL_NOT_USED},
    {0, NULL},
};

#define DEFINITION(slots)                                                                \
    {PyModuleDef_HEAD_INIT, "ramet._native", "C core of ramet.", 0, NULL, slots, NULL, NULL, NULL}

static PyModuleDef definition_3_11 = DEFINITION(slots_3_11);
static PyModuleDef definition_3_12 = DEFINITION(slots_3_12);
static PyModuleDef definition_3_13 = DEFINITION(slots_3_13);

PyMODINIT_FUNC PyInit__native(void);

PyMODINIT_FUNC PyInit__native(void) {
    if (Py_Version >= 0x030D0000) {
        return PyModuleDef_Init(&definition_3_13);
    }
    if (Py_Version >= 0x030C0000) {
        return PyModuleDef_Init(&definition_3_12);
    }
    return PyModuleDef_Init(&definition_3_11);
}
