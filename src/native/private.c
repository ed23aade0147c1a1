/* SPDX-License-Identifier: MIT
 *
 * The private regime: a copy of this process that goes on in Python, as after os.fork, but with
 * what clone3 can do.
 *
 * The C library's fork is not called, since it has no flags; what it does for a process of one
 * thread is done here (sysdeps/nptl/_Fork.c of glibc): the thread knows its new id, and has its
 * robust list.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/sched.h>
#include <pthread.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "private.h"
#include "task.h"

/* The C library has a copy of each thread's id in what pthread_self points to. glibc 2.36 tells
 * the kernel where by set_tid_address; with 2.43 the kernel knows another word of that structure
 * (the state for joining). So the id is looked for, where memory is in any case. */
#define LOOKED_THROUGH 2048

/* thread_id_offsets() -> where in the structure of the calling thread its id is, or seems to be. */
static PyObject *thread_id_offsets(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    const char *self = (const char *)pthread_self();
    int id = (int)syscall(SYS_gettid);
    PyObject *list = PyList_New(0);
    for (Py_ssize_t i = 0; list != NULL && i < LOOKED_THROUGH; i += (Py_ssize_t)sizeof id) {
        int word = 0;
        memcpy(&word, self + i, sizeof word);
        if (word != id) {
            continue;
        }
        PyObject *offset = PyLong_FromSsize_t(i);
        if (offset == NULL || PyList_Append(list, offset) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(offset);
    }
    return list;
}

/* What the kernel clears at the end of this thread. */
static int *clear_child_tid(void) {
    int *address = NULL;
    return prctl(PR_GET_TID_ADDRESS, &address, 0, 0, 0) < 0 ? NULL : address;
}

static long copy_process(struct clone_args *args, size_t size, int use_clone) {
    if (!use_clone) {
        return syscall(SYS_clone3, args, size);
    }
    /* One pointer for parent_tid and pidfd. */
    unsigned long flags = args->flags | args->exit_signal;
    return syscall(SYS_clone, flags, NULL, args->pidfd, NULL, NULL);
}

long ramet_copy_process(struct clone_args *args, size_t size, int use_clone, long tid_offset) {
    int *clears = clear_child_tid();
    void *robust_list = NULL;
    size_t robust_size = 0;
    syscall(SYS_get_robust_list, 0, &robust_list, &robust_size);
    long result = copy_process(args, size, use_clone);
    if (result < 0) {
        return -errno;
    }
    if (result == 0) {
        int id = (int)syscall(SYS_gettid);
        memcpy((char *)pthread_self() + tid_offset, &id, sizeof id);
        /* The kernel has forgotten these. */
        syscall(SYS_set_robust_list, robust_list, robust_size);
        if (clears != NULL) {
            syscall(SYS_set_tid_address, clears);
        }
    }
    return result;
}

enum { HANDLE, FLAGS, EXIT_SIGNAL, CGROUP, SET_TID, USE_CLONE, TID_OFFSET, ALL };

static int parse(PyObject *const *args, struct clone_args *request, size_t *size, int *use_clone) {
    uint64_t flags = 0;
    uint64_t exit_signal = 0;
    if (ramet_as_u64(args[FLAGS], &flags) < 0 ||
        ramet_as_u64(args[EXIT_SIGNAL], &exit_signal) < 0) {
        return -1;
    }
    *request = (struct clone_args){.flags = flags, .exit_signal = exit_signal};
    *size = CLONE_ARGS_SIZE_VER0;
    return ramet_task_parse_rest(&args[CGROUP], request, size, use_clone);
}

/* fork(handle, flags, exit_signal, cgroup, set_tid, use_clone, tid_offset)
 *     -> a new handle in the parent, None in the child, or -errno
 *
 * The caller has seen to it that this is the main interpreter of a process of one thread. */
static PyObject *private_fork(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    struct clone_args request;
    size_t size = 0;
    int use_clone = 0;
    if (count != ALL) {
        return PyErr_Format(PyExc_TypeError, "fork takes %d arguments, got %zd", ALL, count);
    }
    if (parse(args, &request, &size, &use_clone) < 0) {
        return NULL;
    }
    long offset = PyLong_AsLong(args[TID_OFFSET]);
    if (offset == -1 && PyErr_Occurred()) {
        return NULL;
    }
    Task *self = ramet_task_new(args[HANDLE]);
    if (self == NULL) {
        return NULL;
    }
    request.pidfd = (uint64_t)&self->pidfd;
    request.flags |= CLONE_PIDFD;

    PyOS_BeforeFork();
    long result = ramet_copy_process(&request, size, use_clone, offset);
    if (result == 0) {
        PyOS_AfterFork_Child();
        Py_DECREF((PyObject *)self); /* it was never started, here */
        Py_RETURN_NONE;
    }
    if (result > 0) {
        ramet_task_started(self, (pid_t)result, request.flags);
    } else {
        self->pidfd = -1;
    }
    PyOS_AfterFork_Parent();
    if (result < 0) {
        Py_DECREF((PyObject *)self);
        return PyLong_FromLong(result);
    }
    return (PyObject *)self;
}

static PyObject *interpreter_id(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    return PyLong_FromLongLong(PyInterpreterState_GetID(PyInterpreterState_Get()));
}

PyMethodDef ramet_private_functions[] = {
    {"fork", METHOD(private_fork), METH_FASTCALL, NULL},
    {"thread_id_offsets", METHOD(thread_id_offsets), METH_NOARGS, NULL},
    {"interpreter_id", METHOD(interpreter_id), METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
