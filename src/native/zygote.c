/* SPDX-License-Identifier: MIT
 *
 * What the two sides of a zygote need of C: the caller receives a child, together with what owns
 * it, and the child makes the system calls of its setup.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "task.h"

#define LONGEST_MESSAGE 4096

/* receive(handle, socket) -> (message, handle or None)
 *
 * A message of the zygote begins with a pid (8 bytes), and has a pidfd if there is a child. It is
 * in its handle before a signal handler of Python may raise. An empty message: the zygote is gone.
 */
static PyObject *zygote_receive(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (count != 2) {
        return PyErr_Format(PyExc_TypeError, "receive takes 2 arguments, got %zd", count);
    }
    long fd = PyLong_AsLong(args[1]);
    if (fd < 0) {
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "no descriptor: %ld", fd);
    }
    Task *self = ramet_task_new(args[0]);
    if (self == NULL) {
        return NULL;
    }
    char data[LONGEST_MESSAGE];
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec part = {.iov_base = data, .iov_len = sizeof data};
    struct msghdr message = {
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = &control,
        .msg_controllen = sizeof control,
    };
    ssize_t length = 0;
    do {
        int error = 0;
        Py_BEGIN_ALLOW_THREADS
            message.msg_controllen = sizeof control;
            length = recvmsg((int)fd, &message, MSG_CMSG_CLOEXEC);
            error = errno;
        Py_END_ALLOW_THREADS
        errno = error;
        if (length < 0 && (errno != EINTR || PyErr_CheckSignals() < 0)) {
            Py_DECREF((PyObject *)self);
            return PyErr_Occurred() ? NULL : PyErr_SetFromErrno(PyExc_OSError);
        }
    } while (length < 0);

    int64_t pid = 0;
    const struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (length >= (ssize_t)sizeof pid) {
        memcpy(&pid, data, sizeof pid);
    }
    int has_child = header != NULL && header->cmsg_level == SOL_SOCKET &&
                    header->cmsg_type == SCM_RIGHTS && pid > 0;
    if (has_child) {
        memcpy(&self->pidfd, CMSG_DATA(header), sizeof self->pidfd);
        ramet_task_started(self, (pid_t)pid, CLONE_PIDFD);
    }
    PyObject *text = PyBytes_FromStringAndSize(data, length);
    PyObject *child = has_child ? (PyObject *)self : Py_None;
    PyObject *result = text == NULL ? NULL : Py_BuildValue("(NO)", text, child);
    Py_DECREF((PyObject *)self);
    return result;
}

/* run_in_place(program) -> None, or (step, result) of the step that has failed. */
static PyObject *zygote_run_in_place(PyObject *module, PyObject *code) {
    (void)module;
    struct ramet_record record = {.program = (const void *)PyBytes_AsString(code)};
    if (record.program == NULL) {
        return NULL;
    }
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, NULL, &record.caller_mask, sizeof record.caller_mask);
    ramet_run_program(&record);
    if (record.failed) {
        return Py_BuildValue("(Kl)", (unsigned long long)record.step, record.result);
    }
    Py_RETURN_NONE;
}

PyMethodDef ramet_zygote_functions[] = {
    {"receive", METHOD(zygote_receive), METH_FASTCALL, NULL},
    {"run_in_place", METHOD(zygote_run_in_place), METH_O, NULL},
    {NULL, NULL, 0, NULL},
};
