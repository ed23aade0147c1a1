/* SPDX-License-Identifier: MIT */
#include "module.h"
#include "child.h"
#include "zygote.h"

static int add(PyObject *module, const char *name, PyObject *value) {
    int result = PyModule_AddObjectRef(module, name, value); /* NULL is an error, too */
    Py_XDECREF(value);
    return result;
}

static int exec_module(PyObject *module) {
    if (PyModule_AddFunctions(module, ramet_arena_functions) < 0 ||
        PyModule_AddFunctions(module, ramet_lowlevel_methods) < 0 ||
        PyModule_AddFunctions(module, ramet_pointer_methods) < 0 ||
        PyModule_AddFunctions(module, ramet_private_functions) < 0 ||
        PyModule_AddFunctions(module, ramet_serve_functions) < 0 ||
        PyModule_AddFunctions(module, ramet_task_functions) < 0) {
        return -1;
    }
    const struct {
        const char *name;
        PyType_Spec *spec;
    } types[] = {
        {"Channel", &ramet_channel_spec}, {"Descriptor", &ramet_descriptor_spec},
        {"Mapping", &ramet_mapping_spec}, {"Pool", &ramet_pool_spec},
        {"Status", &ramet_status_spec},   {"Task", &ramet_task_spec},
    };
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (add(module, types[i].name, PyType_FromModuleAndSpec(module, types[i].spec, NULL)) < 0) {
            return -1;
        }
    }
    if (add(module, "run_program", PyLong_FromVoidPtr((void *)ramet_run_program)) < 0 ||
        add(module, "most_steps", PyLong_FromLong(RAMET_MOST_STEPS)) < 0 ||
        add(module, "longest_work", PyLong_FromLong(RAMET_LONGEST_WORK)) < 0 ||
        add(module, "most_descriptors", PyLong_FromLong(RAMET_MOST_DESCRIPTORS)) < 0 ||
        add(module, "most_results", PyLong_FromLong(RAMET_MOST_RESULTS)) < 0) {
        return -1;
    }
    return add(module, "nothing", PyLong_FromVoidPtr((void *)ramet_nothing));
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

#define DEFINITION(slots)                                                                          \
    {PyModuleDef_HEAD_INIT, "ramet._native", "C core of ramet.", 0, NULL, slots, NULL, NULL, NULL}

static PyModuleDef definition_3_11 = DEFINITION(slots_3_11);
static PyModuleDef definition_3_12 = DEFINITION(slots_3_12);
static PyModuleDef definition_3_13 = DEFINITION(slots_3_13);

PyMODINIT_FUNC PyInit__native(void);

PyMODINIT_FUNC PyInit__native(void) {
    if (Py_Version >= 0x030D00B1) { /* the first to know the slot */
        return PyModuleDef_Init(&definition_3_13);
    }
    if (Py_Version >= 0x030C0000) {
        return PyModuleDef_Init(&definition_3_12);
    }
    return PyModuleDef_Init(&definition_3_11);
}
