/* SPDX-License-Identifier: MIT
 *
 * The caller's side of a zygote: it tells it and its children what to do, and receives a child
 * together with what owns it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/sched.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "task.h"
#include "zygote.h"

struct message {
    Py_buffer data;
    int descriptors[RAMET_MOST_DESCRIPTORS];
    size_t count;
};

/* One attempt each, without the GIL; the results are those of sendmsg and recvmsg. */
static ssize_t send_message(int socket, const struct message *sent) {
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(RAMET_MOST_DESCRIPTORS * sizeof(int))];
    } control = {.room = {0}};
    struct iovec part = {
        .iov_base = sent->data.buf,
        .iov_len = (size_t)sent->data.len,
    };
    struct msghdr message = {
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = sent->count > 0 ? &control : NULL,
        .msg_controllen = sent->count > 0 ? CMSG_SPACE(sent->count * sizeof(int)) : 0,
    };
    control.header = (struct cmsghdr){
        .cmsg_len = CMSG_LEN(sent->count * sizeof(int)),
        .cmsg_level = SOL_SOCKET,
        .cmsg_type = SCM_RIGHTS,
    };
    memcpy(CMSG_DATA(&control.header), sent->descriptors, sent->count * sizeof(int));
    return sendmsg(socket, &message, MSG_NOSIGNAL);
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

static int is_gone(ssize_t size) {
    return size == 0 || (size < 0 && (errno == EPIPE || errno == ECONNRESET));
}

static int take_descriptors(PyObject *list, struct message *message) {
    Py_ssize_t count = PyList_Size(list);
    if (count > RAMET_MOST_DESCRIPTORS) {
        PyErr_Format(PyExc_ValueError, "at most %d descriptors can be passed, not %zd",
                     RAMET_MOST_DESCRIPTORS, count);
    }
    for (Py_ssize_t i = 0; i < count && !PyErr_Occurred(); i++) {
        message->descriptors[i] = (int)PyLong_AsLong(PyList_GetItem(list, i));
    }
    message->count = (size_t)count;
    return PyErr_Occurred() ? -1 : 0;
}

/* tell(socket, message, list of descriptors) -> whether somebody is there to read it */
static PyObject *tell(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    struct message message;
    if (count != 3) {
        return PyErr_Format(PyExc_TypeError, "tell takes 3 arguments, got %zd", count);
    }
    long socket = PyLong_AsLong(args[0]);
    if (PyErr_Occurred() || take_descriptors(args[2], &message) < 0 ||
        PyObject_GetBuffer(args[1], &message.data, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    ssize_t size = 0;
    do {
        int error = 0;
        Py_BEGIN_ALLOW_THREADS
            size = send_message((int)socket, &message);
            error = errno;
        Py_END_ALLOW_THREADS
        errno = error;
    } while (size < 0 && errno == EINTR && PyErr_CheckSignals() == 0);
    int gone = is_gone(size);
    PyBuffer_Release(&message.data);
    if (size < 0 && !gone) {
        return PyErr_Occurred() ? NULL : PyErr_SetFromErrno(PyExc_OSError);
    }
    return PyBool_FromLong(!gone);
}

/* birth(handle, socket) -> a new handle, -errno of the start, or None: the zygote is gone
 *
 * The child is in the handle before a signal handler of Python may raise. */
static PyObject *birth(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (count != 2) {
        return PyErr_Format(PyExc_TypeError, "birth takes 2 arguments, got %zd", count);
    }
    long channel = PyLong_AsLong(args[1]);
    Task *self = PyErr_Occurred() ? NULL : ramet_task_new(args[0]);
    if (self == NULL) {
        return NULL;
    }
    int64_t result = 0;
    ssize_t size = 0;
    do {
        int error = 0;
        Py_BEGIN_ALLOW_THREADS
            size = receive((int)channel, &result, &self->pidfd);
            error = errno;
        Py_END_ALLOW_THREADS
        errno = error;
    } while (size < 0 && errno == EINTR && PyErr_CheckSignals() == 0);
    if (size > 0 && result > 0 && self->pidfd >= 0) {
        self->kill = 1; /* until it has work */
        self->quiet = 1;
        ramet_task_started(self, (pid_t)result, CLONE_PIDFD);
        return (PyObject *)self;
    }
    int gone = is_gone(size);
    Py_DECREF((PyObject *)self);
    if (size < 0 && !gone) {
        return PyErr_Occurred() ? NULL : PyErr_SetFromErrno(PyExc_OSError);
    }
    if (gone) {
        return Py_NewRef(Py_None);
    }
    if (result > 0) { /* there was no room for the pidfd */
        disown(result);
        result = -EMFILE;
    }
    return PyLong_FromLongLong(result);
}

PyMethodDef ramet_zygote_functions[] = {
    {"birth", METHOD(birth), METH_FASTCALL, NULL},
    {"tell", METHOD(tell), METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};
