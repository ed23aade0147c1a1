/* SPDX-License-Identifier: MIT
 *
 * Strings for execve, laid out in one bytes object together with the pointers to them: a bytes
 * object never moves.
 */
#define _GNU_SOURCE /* environ */
#include <asm/unistd.h>
#include <string.h>
#include <unistd.h>

#include "module.h"
#include "program.h"

/* What becomes one NULL-terminated array of pointers. */
struct strings {
    PyObject *tuple; /* of bytes; NULL: what the C library has as environ */
    size_t count;
    size_t size; /* of all strings, with their NULs */
};

static void drop(struct strings *strings) {
    Py_CLEAR(strings->tuple);
}

/* Takes a sequence of str, bytes and paths; None is environ, which os.environ changes with
 * the GIL, as it is read here. */
static int take(struct strings *strings, PyObject *sequence) {
    *strings = (struct strings){0};
    if (sequence == Py_None) {
        while (environ != NULL && environ[strings->count] != NULL) {
            strings->size += strlen(environ[strings->count++]) + 1;
        }
        return 0;
    }
    /* Tuples, since an item may run Python code, which finds lists and changes them. */
    PyObject *items = PySequence_Tuple(sequence);
    Py_ssize_t count = items == NULL ? 0 : PyTuple_Size(items);
    PyObject *encoded = items == NULL ? NULL : PyTuple_New(count);
    for (Py_ssize_t i = 0; encoded != NULL && i < count; i++) {
        PyObject *item = NULL;
        if (!PyUnicode_FSConverter(PyTuple_GetItem(items, i), (void *)&item)) {
            Py_CLEAR(encoded);
            break;
        }
        strings->size += (size_t)PyBytes_Size(item) + 1;
        PyTuple_SetItem(encoded, i, item);
    }
    Py_XDECREF(items);
    strings->tuple = encoded;
    strings->count = (size_t)count;
    return encoded == NULL ? -1 : 0;
}

/* Where the next array and the next string go. */
struct place {
    char **array;
    char *text;
    const char *end;
};

/* Returns the array, or NULL with an exception set. */
static char **lay_out(const struct strings *strings, struct place *place) {
    char **array = place->array;
    for (size_t i = 0; i < strings->count; i++) {
        const char *string = strings->tuple == NULL
                                 ? environ[i]
                                 : PyBytes_AsString(PyTuple_GetItem(strings->tuple, (Py_ssize_t)i));
        size_t size = string == NULL ? 0 : strlen(string) + 1;
        if (string == NULL || size > (size_t)(place->end - place->text)) {
            PyErr_SetString(PyExc_RuntimeError, "the environment was changed while it was copied");
            return NULL;
        }
        array[i] = memcpy(place->text, string, size);
        place->text += size;
    }
    array[strings->count] = NULL;
    place->array = &array[strings->count + 1];
    return array;
}

/* Makes a bytes object of `head` bytes and room for the strings, where `place` begins. */
static PyObject *allocate(size_t head, const struct strings *strings, int count,
                          struct place *place) {
    size_t words = 0;
    size_t text = 0;
    for (int i = 0; i < count; i++) {
        words += strings[i].count + 1;
        text += strings[i].size;
    }
    size_t size = head + words * sizeof(char *) + text;
    PyObject *arena = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (arena != NULL) {
        char *start = PyBytes_AsString(arena);
        place->array = (char **)(start + head);
        place->text = (char *)(place->array + words);
        place->end = start + size;
    }
    return arena;
}

/* strings(sequence of str, bytes and paths; or None) -> bytes: an array of char * with a NULL at
 * the end, and what they point to. None: a copy of what the C library has as environment. */
static PyObject *arena_strings(PyObject *module, PyObject *sequence) {
    (void)module;
    struct strings strings;
    struct place place;
    if (take(&strings, sequence) < 0) {
        return NULL;
    }
    PyObject *arena = allocate(0, &strings, 1, &place);
    if (arena != NULL && lay_out(&strings, &place) == NULL) {
        Py_CLEAR(arena);
    }
    drop(&strings);
    return arena;
}

enum { PATHS, ARGV, ENVP, VECTORS };

/* A program, and behind it steps that try one file after the other. */
static PyObject *add_execs(const char *base, size_t size, const struct strings *strings) {
    struct place place;
    size_t count = strings[PATHS].count;
    size_t total = size + count * sizeof(struct ramet_step);
    PyObject *arena = allocate(total, strings, VECTORS, &place);
    if (arena == NULL) {
        return NULL;
    }
    struct ramet_program *program = memcpy(PyBytes_AsString(arena), base, size);
    char **paths = lay_out(&strings[PATHS], &place);
    char **argv = paths == NULL ? NULL : lay_out(&strings[ARGV], &place);
    char **envp = argv == NULL ? NULL : lay_out(&strings[ENVP], &place);
    if (envp == NULL) {
        Py_DECREF(arena);
        return NULL;
    }
    for (size_t i = 0; i < count; i++) {
        program->steps[program->count++] = (struct ramet_step){
            .number = __NR_execve,
            .args = {(uint64_t)paths[i], (uint64_t)argv, (uint64_t)envp},
            .flags = RAMET_STEP_UNBLOCKS | (i + 1 < count ? RAMET_STEP_OR_NEXT : 0),
        };
    }
    return arena;
}

/* with_execs(program, paths, argv, envp) -> the program with an execve of each path added, each
 * tried if the one before fails; a copy with all that these point to. */
static PyObject *arena_with_execs(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (count != 1 + VECTORS) {
        return PyErr_Format(PyExc_TypeError, "with_execs takes 4 arguments, got %zd", count);
    }
    char *base = NULL;
    Py_ssize_t size = 0;
    if (PyBytes_AsStringAndSize(args[0], &base, &size) < 0) {
        return NULL;
    }
    struct strings strings[VECTORS] = {0};
    int taken = 0;
    while (taken < VECTORS && take(&strings[taken], args[1 + taken]) == 0) {
        taken++;
    }
    PyObject *arena = NULL;
    uint64_t steps = ((const struct ramet_program *)base)->count + strings[PATHS].count;
    if (taken == VECTORS && steps > RAMET_MOST_STEPS) {
        PyErr_Format(PyExc_ValueError, "a program has at most %d steps", RAMET_MOST_STEPS);
    } else if (taken == VECTORS) {
        arena = add_execs(base, (size_t)size, strings);
    }
    while (taken > 0) {
        drop(&strings[--taken]);
    }
    return arena;
}

PyMethodDef ramet_arena_functions[] = {
    {"strings", arena_strings, METH_O, NULL},
    {"with_execs", METHOD(arena_with_execs), METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};
