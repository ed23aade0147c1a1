/* SPDX-License-Identifier: MIT
 *
 * Stacks for tasks, as a Python object that outlives their use.
 */
#ifndef RAMET_POOL_H
#define RAMET_POOL_H

#include "module.h"
#include "stack.h"

/* 0 if the object is a Pool, else -1 with TypeError set. */
int ramet_pool_check(PyObject *object);

/* A stack that is the caller's alone, or NULL with OSError set. */
struct ramet_stack *ramet_pool_take(PyObject *object);

/* Takes back a stack that no task is on. */
void ramet_pool_give(PyObject *object, struct ramet_stack *stack);

#endif
