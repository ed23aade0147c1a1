/* SPDX-License-Identifier: MIT
 *
 * What a start needs of a Stack.
 */
#ifndef RAMET_STACK_H
#define RAMET_STACK_H

#include "launch.h"
#include "module.h"

/* Lends a Stack to a launch: fills in record, stack, and what tells of its end.
 * Returns 1 if the task will need the stack after the call, 0 if not, and -1 with
 * RuntimeError set if another task is on it. */
int ramet_stack_begin(PyObject *object, struct ramet_launch *launch);

/* Takes the stack back: there is no task on it. */
void ramet_stack_end(PyObject *object);

/* Whether there is no task on it. */
int ramet_stack_released(PyObject *object);

#endif
