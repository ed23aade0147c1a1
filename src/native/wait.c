/* SPDX-License-Identifier: MIT
 *
 * waitid(2) as the kernel has it: with the rusage, which the C library's leaves out.
 */
#include <errno.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "module.h"

static PyObject *wait_waitid(PyObject *module, PyObject *args) {
    (void)module;
    int idtype = 0;
    int id = 0;
    int options = 0;
    if (!PyArg_ParseTuple(args, "iii:waitid", &idtype, &id, &options)) {
        return NULL;
    }
    for (;;) {
        siginfo_t info = {.si_pid = 0}; /* stays 0 when WNOHANG finds nothing */
        struct rusage usage;
        long result = 0;
        if (options & WNOHANG) {
            result = syscall(SYS_waitid, idtype, id, &info, options, &usage);
        } else {
            Py_BEGIN_ALLOW_THREADS
            result = syscall(SYS_waitid, idtype, id, &info, options, &usage);
            Py_END_ALLOW_THREADS
        }
        if (result == 0 && info.si_pid == 0) {
            Py_RETURN_NONE;
        }
        if (result == 0) {
            return Py_BuildValue("iiiy#", info.si_pid, info.si_code, info.si_status, &usage,
                                 (Py_ssize_t)sizeof usage);
        }
        if (errno != EINTR) {
            return PyErr_SetFromErrno(PyExc_OSError);
        }
        if (PyErr_CheckSignals() < 0) {
            return NULL;
        }
    }
}

PyMethodDef ramet_wait_methods[] = {
    {"waitid", wait_waitid, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};
