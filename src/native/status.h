/* SPDX-License-Identifier: MIT
 *
 * How a process ended: what ramet.ExitStatus is made of.
 */
#ifndef RAMET_STATUS_H
#define RAMET_STATUS_H

#include <sys/resource.h>
#include <sys/wait.h>

#include "module.h"

/* Makes a status of a type that is Status or derived from it. NULL with TypeError
 * set if it is not. */
PyObject *ramet_status(PyObject *type, const siginfo_t *info, const struct rusage *usage);

#endif
