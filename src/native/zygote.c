/* SPDX-License-Identifier: MIT
 *
 * The caller's side of a zygote: it asks for a child, and receives it together with what owns it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "task.h"
#include "zygote.h"

#define PATIENCE 1000 /* milliseconds that an answer may take which nobody waits for */

struct question {
    Py_buffer message;
    int descriptors[RAMET_MOST_DESCRIPTORS];
    size_t count;
};

/* One attempt each, without the GIL; the results are those of sendmsg and recvmsg. */
static ssize_t ask(int channel, const struct question *question) {
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(RAMET_MOST_DESCRIPTORS * sizeof(int))];
    } control = {.room = {0}};
    struct iovec part = {
        .iov_base = question->message.buf,
        .iov_len = (size_t)question->message.len,
    };
    struct msghdr message = {
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = &control,
        .msg_controllen = CMSG_SPACE(question->count * sizeof(int)),
    };
    control.header = (struct cmsghdr){
        .cmsg_len = CMSG_LEN(question->count * sizeof(int)),
        .cmsg_level = SOL_SOCKET,
        .cmsg_type = SCM_RIGHTS,
    };
    memcpy(CMSG_DATA(&control.header), question->descriptors, question->count * sizeof(int));
    return sendmsg(channel, &message, MSG_NOSIGNAL);
}

static ssize_t receive(int channel, int64_t *result, int *pidfd) {
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof *pidfd)];
    } control;
    struct iovec part = {.iov_base = result, .iov_len = sizeof *result};
    struct msghdr message = {
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = &control,
        .msg_controllen = sizeof control,
    };
    ssize_t size = recvmsg(channel, &message, MSG_CMSG_CLOEXEC);
    const struct cmsghdr *header = size > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (header != NULL && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS) {
        memcpy(pidfd, CMSG_DATA(header), sizeof *pidfd);
    }
    return size;
}

/* Nobody will have this child: it ends, and is forgotten. */
static void disown(int64_t pid) {
    kill((pid_t)pid, SIGKILL);
    while (waitpid((pid_t)pid, NULL, __WALL) < 0 && errno == EINTR) {
    }
}

/* A signal handler has raised: the answer is still to come, and the child in it is not wanted. */
static void throw_away(int channel) {
    PyObject *type = NULL;
    PyObject *value = NULL;
    PyObject *traceback = NULL;
    PyErr_Fetch(&type, &value, &traceback);
    struct pollfd entry = {.fd = channel, .events = POLLIN};
    Py_BEGIN_ALLOW_THREADS
        if (poll(&entry, 1, PATIENCE) > 0) {
            int64_t result = 0;
            int pidfd = -1;
            if (receive(channel, &result, &pidfd) > 0 && result > 0) {
                disown(result);
            }
            if (pidfd >= 0) {
                close(pidfd);
            }
        }
    Py_END_ALLOW_THREADS
    PyErr_Restore(type, value, traceback);
}

/* Returns the pid, -errno of what the zygote has tried, 0 if it is gone, or INT64_MIN with an
 * exception set. The pidfd is in the handle before a signal handler of Python may raise. */
static int64_t converse(int channel, const struct question *question, int *pidfd) {
    int64_t result = 0;
    for (int asked = 0; asked < 2; asked++) {
        ssize_t size = 0;
        do {
            int error = 0;
            Py_BEGIN_ALLOW_THREADS
                size = asked ? receive(channel, &result, pidfd) : ask(channel, question);
                error = errno;
            Py_END_ALLOW_THREADS
            errno = error;
            if (size < 0 && errno == EINTR && PyErr_CheckSignals() < 0) {
                if (asked) {
                    throw_away(channel);
                }
                return INT64_MIN;
            }
        } while (size < 0 && errno == EINTR);
        if (size == 0 || (size < 0 && (errno == EPIPE || errno == ECONNRESET))) {
            return 0;
        }
        if (size < 0) {
            PyErr_SetFromErrno(PyExc_OSError);
            return INT64_MIN;
        }
    }
    return result;
}

static int take_descriptors(PyObject *list, struct question *question) {
    Py_ssize_t count = PyList_Size(list);
    if (count < 0) {
        return -1;
    }
    if (count == 0 || count > RAMET_MOST_DESCRIPTORS) {
        PyErr_Format(PyExc_ValueError, "1 to %d descriptors can be passed, not %zd",
                     RAMET_MOST_DESCRIPTORS, count);
        return -1;
    }
    question->count = (size_t)count;
    for (Py_ssize_t i = 0; i < count; i++) {
        long fd = PyLong_AsLong(PyList_GetItem(list, i));
        if (fd == -1 && PyErr_Occurred()) {
            return -1;
        }
        question->descriptors[i] = (int)fd;
    }
    return 0;
}

/* request(handle, socket, message, list of descriptors)
 *     -> a new handle, -errno of the start, or None: the zygote is gone */
static PyObject *zygote_request(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    struct question question;
    if (count != 4) {
        return PyErr_Format(PyExc_TypeError, "request takes 4 arguments, got %zd", count);
    }
    long channel = PyLong_AsLong(args[1]);
    if (channel < 0) {
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "no descriptor");
    }
    if (take_descriptors(args[3], &question) < 0) {
        return NULL;
    }
    Task *self = ramet_task_new(args[0]);
    if (self == NULL || PyObject_GetBuffer(args[2], &question.message, PyBUF_SIMPLE) < 0) {
        Py_XDECREF((PyObject *)self);
        return NULL;
    }
    int64_t result = converse((int)channel, &question, &self->pidfd);
    PyBuffer_Release(&question.message);
    if (result > 0 && self->pidfd >= 0) {
        ramet_task_started(self, (pid_t)result, CLONE_PIDFD);
        return (PyObject *)self;
    }
    Py_DECREF((PyObject *)self);
    if (result > 0) { /* there was no room for the pidfd */
        disown(result);
        result = -EMFILE;
    }
    if (result == INT64_MIN) {
        return NULL;
    }
    return result < 0 ? PyLong_FromLongLong(result) : Py_NewRef(Py_None);
}

PyMethodDef ramet_zygote_functions[] = {
    {"request", METHOD(zygote_request), METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};
