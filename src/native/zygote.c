/* SPDX-License-Identifier: MIT
 *
 * The caller's side of a zygote: Channel, by which children are ordered, and what tells them their
 * work. Whatever is under way is in an object at any time, which ends it when it goes: a signal
 * handler may raise between any two steps of Python, and the garbage collector come in the middle.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "fork.h"
#include "task.h"
#include "zygote.h"

#include <structmember.h> /* part of Python.h from 3.12 on */

#define PATIENCE 1000 /* milliseconds that a zygote may take to end, and a child without work */
#define NANOSECONDS 1000000
#define MOST_OF_STATUS 8192
#define HEXADECIMAL 16

typedef struct {
    PyObject_HEAD
    int socket;
    int theirs; /* the other end, and the file of which the page is: until the zygote has them */
    int births;
    const volatile pid_t *born; /* that page: see zygote.h */
    int generation;             /* and the process that has made this */
    pid_t owner;
    int ordered; /* the socket of a child that was ordered and is not born yet, or -1 */
    struct ramet_order order;
    pid_t last;  /* the pid of the last birth that is known of */
    int foreign; /* the zygote is no child of ours, so its children are not; pids are of its
                    namespace */
} Channel;

struct message {
    void *data;
    size_t size;
    int descriptors[RAMET_MOST_DESCRIPTORS];
    size_t count;
};

/* One attempt each, without the GIL; the results are those of sendmsg and recvmsg. */
static ssize_t send_message(int socket, const struct message *sent, int flags) {
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(RAMET_MOST_DESCRIPTORS * sizeof(int))];
    } control = {.room = {0}};
    struct iovec part = {
        .iov_base = sent->data,
        .iov_len = sent->size,
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
    return sendmsg(socket, &message, MSG_NOSIGNAL | flags);
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
    ssize_t size = recvmsg(channel, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    const struct cmsghdr *header = size > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (header != NULL && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS) {
        memcpy(pidfd, CMSG_DATA(header), sizeof *pidfd);
        *pidfd = ramet_beyond_standard(*pidfd);
    }
    return size;
}

static int is_gone(ssize_t size) {
    return size == 0 || (size < 0 && (errno == EPIPE || errno == ECONNRESET));
}

/* Forgotten first: once it is closed another thread may get the number, and fork. */
static void close_number(int *fd) {
    int number = *fd;
    *fd = -1;
    if (number >= 0) {
        close(number);
    }
}

/* --- what goes on without Python ------------------------------------------------------------ */

static int is_readable(int fd) {
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    int ready = 0;
    do {
        ready = poll(&entry, 1, PATIENCE);
    } while (ready < 0 && errno == EINTR);
    return ready > 0;
}

/* Waits for the end of a child that has no work and no socket any more, for which there is no
 * handle. It is not killed: its pid says too little. */
static void reap(Channel *self, pid_t pid) {
    const struct timespec pause = {0, NANOSECONDS};
    self->last = pid;
    for (int i = 0; i < PATIENCE && !self->foreign; i++) {
        pid_t ended = waitpid(pid, NULL, WNOHANG | __WALL);
        if (ended > 0 || (ended < 0 && errno != EINTR)) {
            return;
        }
        nanosleep(&pause, NULL);
    }
}

/* Takes what the zygote still says, such as an answer that nobody has waited for. Returns whether
 * it has ended, too. */
static int take_answers(Channel *self, int awaits) {
    while (is_readable(self->socket)) {
        int64_t result = 0;
        int pidfd = -1;
        ssize_t size = receive(self->socket, &result, &pidfd);
        if (is_gone(size)) {
            return 1;
        }
        if (pidfd >= 0) {
            syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0); /* it may be stopped */
            close(pidfd);
        }
        if (size == sizeof result && result > 0 && awaits) {
            reap(self, (pid_t)result);
        }
    }
    return 0;
}

/* Ends the zygote, and what it has made that nobody has. */
static void wind_up(Channel *self, int zygote, int awaits) {
    shutdown(self->socket, SHUT_WR); /* it answers what was ordered, and ends */
    if (!take_answers(self, awaits) && zygote >= 0) {
        syscall(SYS_pidfd_send_signal, zygote, SIGKILL, NULL, 0);
        take_answers(self, awaits);
    }
    if (zygote >= 0) {
        is_readable(zygote);
    }
    pid_t untold = *self->born;
    if (untold > 0 && untold != self->last) {
        reap(self, untold);
    }
}

/* --- Channel --------------------------------------------------------------------------------- */

static int is_ours(const Channel *self) {
    return self->generation == ramet_generation() && self->owner == getpid();
}

static void close_all(Channel *self, int zygote) {
    if (self->socket < 0) {
        return;
    }
    int started = self->theirs < 0;
    close_number(&self->theirs);
    close_number(&self->births);
    int awaits = self->ordered >= 0;
    close_number(&self->ordered); /* what is born after this ends at once */
    if (started && is_ours(self)) {
        wind_up(self, zygote, awaits);
    }
    close_number(&self->socket);
    munmap((void *)self->born, sizeof *self->born);
}

static int make_pair(int *ours, int *theirs) {
    int pair[2] = {-1, -1};
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) {
        return -1;
    }
    *ours = ramet_beyond_standard(pair[0]);
    *theirs = ramet_beyond_standard(pair[1]);
    if (*ours < 0 || *theirs < 0) {
        close_number(ours);
        close_number(theirs);
        errno = EMFILE;
        return -1;
    }
    return 0;
}

static int make_births(Channel *self) {
    self->births =
        ramet_beyond_standard((int)syscall(SYS_memfd_create, "ramet-births", MFD_CLOEXEC));
    if (self->births < 0 || ftruncate(self->births, sizeof *self->born) < 0) {
        return -1;
    }
    void *page = mmap(NULL, sizeof *self->born, PROT_READ, MAP_SHARED, self->births, 0);
    self->born = page == MAP_FAILED ? NULL : page;
    return page == MAP_FAILED ? -1 : 0;
}

/* Channel(foreign): whether the zygote is the child of another process than this */
static PyObject *channel_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)kwargs;
    int foreign = 0;
    if (!PyArg_ParseTuple(args, "p:Channel", &foreign)) {
        return NULL;
    }
    Channel *self = (Channel *)PyType_GenericAlloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->socket = self->theirs = self->births = self->ordered = -1;
    self->generation = ramet_generation();
    self->owner = getpid();
    self->foreign = foreign;
    if (make_births(self) < 0 || make_pair(&self->socket, &self->theirs) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        if (self->born != NULL) {
            munmap((void *)self->born, sizeof *self->born);
        }
        close_number(&self->births);
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

static void channel_dealloc(PyObject *object) {
    Channel *self = (Channel *)object;
    PyTypeObject *type = Py_TYPE(object);
    close_all(self, -1);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(object);
    Py_DECREF(type);
}

/* started(): the zygote has its end and the file */
static PyObject *channel_started(Channel *self, PyObject *unused) {
    (void)unused;
    close_number(&self->theirs);
    close_number(&self->births);
    Py_RETURN_NONE;
}

/* close(pidfd of the zygote, or -1): ends the zygote, which is killed if need be but not reaped,
 * and reaps what it has made that nobody has. In a fork of the process that has made this: only
 * closes. Takes 2 seconds at most; no handler of a signal is called meanwhile. */
static PyObject *channel_close(Channel *self, PyObject *pidfd) {
    long zygote = PyLong_AsLong(pidfd);
    if (PyErr_Occurred()) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        close_all(self, (int)zygote);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* order(flags, use_clone, ahead, cgroup): of which the answer is to be taken by birth()
 *
 * If the zygote has ended it is the answer that is not there. The GIL is kept, so that no fork has
 * the other end of the pair. */
static PyObject *channel_order(Channel *self, PyObject *const *args, Py_ssize_t count) {
    if (count != 4) {
        return PyErr_Format(PyExc_TypeError, "order takes 4 arguments, got %zd", count);
    }
    struct ramet_order order = {0};
    struct message message = {.count = 1};
    if (ramet_as_u64(args[0], &order.flags) < 0) {
        return NULL;
    }
    order.use_clone = PyObject_IsTrue(args[1]) == 1;
    order.ahead = PyObject_IsTrue(args[2]) == 1;
    long cgroup = PyLong_AsLong(args[3]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    if (self->ordered >= 0 || self->socket < 0) {
        return PyErr_Format(PyExc_ValueError, "one was ordered before, or the channel is closed");
    }
    if (cgroup >= 0) {
        message.descriptors[message.count++] = (int)cgroup;
    }
    int ours = -1;
    if (make_pair(&ours, &message.descriptors[0]) < 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    message.data = &order;
    message.size = sizeof order;
    ssize_t size = send_message(self->socket, &message, MSG_DONTWAIT);
    int error = errno;
    close_number(&message.descriptors[0]);
    errno = error;
    if (size < 0 && !is_gone(size)) {
        close(ours);
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    self->ordered = ours;
    self->order = order;
    Py_RETURN_NONE;
}

/* birth(handle) -> a new handle, -errno of the start, or None: the zygote has ended
 *
 * If a signal handler raises, the answer is still to come. The child has its pidfd and its socket
 * before another may. */
static PyObject *channel_birth(Channel *self, PyObject *type) {
    if (self->ordered < 0) {
        return PyErr_Format(PyExc_ValueError, "nothing was ordered");
    }
    Task *task = ramet_task_new(type);
    if (task == NULL) {
        return NULL;
    }
    int64_t result = 0;
    int gone = 0;
    ssize_t size = -1;
    while (size < 0 && !gone) {
        struct pollfd entry = {.fd = self->socket, .events = POLLIN};
        Py_BEGIN_ALLOW_THREADS
            poll(&entry, 1, -1);
        Py_END_ALLOW_THREADS
        /* With the GIL: a pidfd that comes to be at 0 is not to be seen there. */
        size = receive(self->socket, &result, &task->pidfd);
        gone = is_gone(size);
        if (size < 0 && !gone) {
            int again = errno == EINTR || errno == EAGAIN;
            if (!again) {
                PyErr_SetFromErrno(PyExc_OSError);
            }
            /* A handler may fork, and what it has of this is closed. */
            if (!again || PyErr_CheckSignals() < 0 || self->ordered < 0) {
                Py_DECREF((PyObject *)task);
                return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "closed");
            }
        }
    }
    if (gone || size != sizeof result) {
        Py_DECREF((PyObject *)task);
        Py_RETURN_NONE; /* what may have been born is seen to when this is closed */
    }
    if (result > 0 && task->pidfd >= 0) {
        self->last = (pid_t)result;
        task->work = self->ordered;
        self->ordered = -1;
        task->kill = 1; /* until it has work */
        task->quiet = 1;
        ramet_task_started(task, (pid_t)result, CLONE_PIDFD | (self->foreign ? CLONE_PARENT : 0));
        return (PyObject *)task;
    }
    Py_DECREF((PyObject *)task);
    close_number(&self->ordered);
    if (result > 0) { /* there was no room for the pidfd */
        Py_BEGIN_ALLOW_THREADS
            reap(self, (pid_t)result);
        Py_END_ALLOW_THREADS
        result = -EMFILE;
    }
    return PyLong_FromLongLong(result);
}

static PyObject *channel_get_ordered(Channel *self, void *closure) {
    (void)closure;
    if (self->ordered < 0) {
        Py_RETURN_NONE;
    }
    return Py_BuildValue("(KO)", (unsigned long long)self->order.flags,
                         self->order.use_clone ? Py_True : Py_False);
}

static PyMethodDef channel_methods[] = {
    {"started", METHOD(channel_started), METH_NOARGS, NULL},
    {"order", METHOD(channel_order), METH_FASTCALL, NULL},
    {"birth", METHOD(channel_birth), METH_O, NULL},
    {"close", METHOD(channel_close), METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef channel_members[] = {
    {"number", T_INT, offsetof(Channel, socket), READONLY, NULL},
    {"theirs", T_INT, offsetof(Channel, theirs), READONLY, NULL},
    {"births", T_INT, offsetof(Channel, births), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef channel_getset[] = {
    {"ordered", (getter)(void (*)(void))channel_get_ordered, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot channel_slots[] = {
    {Py_tp_new, channel_new},         {Py_tp_dealloc, channel_dealloc},
    {Py_tp_methods, channel_methods}, {Py_tp_members, channel_members},
    {Py_tp_getset, channel_getset},   {0, NULL},
};

PyType_Spec ramet_channel_spec = {
    .name = "ramet._native.Channel",
    .basicsize = sizeof(Channel),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = channel_slots,
};

/* --- work ------------------------------------------------------------------------------------ */

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

/* _has_signals() -> whether signals were sent to the child that it has not taken yet, as far as
 * /proc tells (proc_pid_status(5)) */
PyObject *ramet_task_has_signals(Task *self, PyObject *unused) {
    (void)unused;
    static const char *const fields[] = {"\nSigPnd:\t", "\nShdPnd:\t"};
    char path[sizeof "/proc//status" + 3 * sizeof self->pid];
    char text[MOST_OF_STATUS];
    PyOS_snprintf(path, sizeof path, "/proc/%ld/status", self->pid);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size = file < 0 ? 0 : read(file, text, sizeof text - 1);
    if (file >= 0) {
        close(file);
    }
    text[size > 0 ? size : 0] = 0;
    int pending = 0;
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        const char *field = strstr(text, fields[i]);
        pending |= field != NULL && strtoull(field + strlen(fields[i]), NULL, HEXADECIMAL) != 0;
    }
    return PyBool_FromLong(pending);
}

/* _tell(message, list of descriptors) -> whether the child is there to read it; it can be told once
 */
PyObject *ramet_task_tell(Task *self, PyObject *const *args, Py_ssize_t count) {
    struct message message = {.count = 0};
    Py_buffer data;
    if (count != 2) {
        return PyErr_Format(PyExc_TypeError, "_tell takes 2 arguments, got %zd", count);
    }
    if (take_descriptors(args[1], &message) < 0 ||
        PyObject_GetBuffer(args[0], &data, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    message.data = data.buf;
    message.size = (size_t)data.len;
    int gone = 0;
    int failed = 0;
    ssize_t size = -1;
    while (size < 0 && !gone && !failed) {
        int error = 0;
        Py_BEGIN_ALLOW_THREADS
            size = send_message(self->work, &message, 0);
            error = errno;
        Py_END_ALLOW_THREADS
        errno = error;
        gone = is_gone(size);
        if (size < 0 && !gone && errno != EINTR) {
            PyErr_SetFromErrno(PyExc_OSError);
            failed = 1;
        } else if (size < 0 && !gone) {
            failed = PyErr_CheckSignals() < 0;
        }
    }
    PyBuffer_Release(&data);
    if (failed) {
        return NULL;
    }
    ramet_task_close_work(self);
    return PyBool_FromLong(!gone);
}
