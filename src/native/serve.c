/* SPDX-License-Identifier: MIT
 *
 * The zygote: it copies itself for each order. No Python runs in it, since all that this
 * writes to, reference counts above all, would have to be copied anew after each child. For
 * the same reason a child gets its descriptors, and makes the system calls of its setup, in C.
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
#include <sys/uio.h>
#include <unistd.h>

#include "child.h"
#include "module.h"
#include "private.h"
#include "zygote.h"

#define FIRST_BEYOND_STANDARD 3
#define CLONE_OURS ((uint64_t)CLONE_PARENT | (uint64_t)CLONE_PIDFD)

/* Work that was received, and where its parts are. */
struct received {
    struct ramet_work *work;
    const int64_t *numbers;
    const uint64_t *relocations;
    char *image;
    const char *rest;
    size_t rest_size;
    int *own; /* numbers that the zygote has files at */
    size_t own_count;
    int descriptors[RAMET_MOST_DESCRIPTORS];
    size_t count;
};

static void set_mask(const uint64_t *mask, uint64_t *before) {
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, mask, before, sizeof *mask);
}

/* Waits for a message. 0: there will be no more. */
static size_t receive(int socket, void *data, size_t room, int *descriptors, size_t *count) {
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(RAMET_MOST_DESCRIPTORS * sizeof(int))];
    } control;
    struct iovec part = {.iov_base = data, .iov_len = room};
    struct msghdr message = {
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = &control,
    };
    ssize_t size = 0;
    do {
        message.msg_controllen = sizeof control;
        size = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    } while (size < 0 && errno == EINTR);
    *count = 0;
    const struct cmsghdr *header = size > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (header != NULL && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS) {
        *count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        memcpy(descriptors, CMSG_DATA(header), *count * sizeof(int));
    }
    return size < 0 ? 0 : (size_t)size;
}

/* --- the zygote ---------------------------------------------------------------------------- */

/* What an order comes with: the child's end of a pair of sockets, and perhaps a cgroup. */
enum { SOCKET, CGROUP, MOST_OF_ORDER };

struct order {
    struct ramet_order words;
    int descriptors[RAMET_MOST_DESCRIPTORS];
    size_t count;
};

/* 0: there will be no more. */
static int receive_order(int channel, struct order *order) {
    size_t size =
        receive(channel, &order->words, sizeof order->words, order->descriptors, &order->count);
    return size == sizeof order->words &&
           order->count == ((order->words.flags & CLONE_INTO_CGROUP) ? MOST_OF_ORDER : CGROUP);
}

static void close_descriptors(const struct order *order) {
    for (size_t i = 0; i < order->count; i++) {
        close(order->descriptors[i]);
    }
}

/* Tells the pid, with the pidfd, or -errno. Without the pidfd if that cannot go: so it is when
 * processes of this user have sent many descriptors that nobody has received (ETOOMANYREFS), and
 * the other side waits for an answer. */
static void answer(int channel, int64_t result, int pidfd) {
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof pidfd)];
    } control = {.room = {0}};
    struct iovec part = {.iov_base = &result, .iov_len = sizeof result};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (result > 0) {
        message.msg_control = &control;
        message.msg_controllen = sizeof control;
        control.header = (struct cmsghdr){
            .cmsg_len = CMSG_LEN(sizeof pidfd),
            .cmsg_level = SOL_SOCKET,
            .cmsg_type = SCM_RIGHTS,
        };
        memcpy(CMSG_DATA(&control.header), &pidfd, sizeof pidfd);
    }
    int again = 0;
    do { /* nobody there to read it: the next order will not come */
        int failed = sendmsg(channel, &message, MSG_NOSIGNAL) < 0;
        again = failed && (errno == EINTR || message.msg_control != NULL);
        if (again && errno != EINTR) {
            message.msg_control = NULL;
            message.msg_controllen = 0;
        }
    } while (again);
}

/* Maps the page that the other side has, too. */
static pid_t *map_births(int file) {
    void *page = mmap(NULL, sizeof(pid_t), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (page == MAP_FAILED) {
        PyErr_SetFromErrno(PyExc_OSError);
        return NULL;
    }
    /* Children have no part in it: they would have memory in common with one another. */
    if (madvise(page, sizeof(pid_t), MADV_DONTFORK) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return NULL;
    }
    return page;
}

/* The kernel writes the pid to `born` before the child runs, even if this process is killed
 * meanwhile (kernel_clone, kernel/fork.c); clone has no argument for it beside that of the pidfd.
 */
static long copy(const struct order *order, long tid_offset, int *pidfd, pid_t *born) {
    struct clone_args args = {
        .flags = order->words.flags | CLONE_OURS,
        .pidfd = (uint64_t)pidfd,
    };
    *born = 0;
    if (!order->words.use_clone) {
        args.flags |= CLONE_PARENT_SETTID;
        args.parent_tid = (uint64_t)born;
    }
    size_t size = CLONE_ARGS_SIZE_VER0;
    if (order->count > CGROUP) {
        args.cgroup = (__u64)order->descriptors[CGROUP];
        size = CLONE_ARGS_SIZE_VER2;
    }
    return ramet_copy_process(&args, size, order->words.use_clone != 0, tid_offset);
}

/* serve(socket, tid_offset, file for the pids of births, whether SIGINT is unblocked in children)
 *     -> in each child (the socket that its work comes from, whether it is ahead of that, the
 * signal mask that it is to have then: until then all are blocked); in the zygote None, when there
 *        will be no more orders
 *
 * This process has one thread. It is in the middle of a fork, as Python sees it, all the time. */
static PyObject *serve(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (count != 4) {
        return PyErr_Format(PyExc_TypeError, "serve takes 4 arguments, got %zd", count);
    }
    long channel = PyLong_AsLong(args[0]);
    long offset = PyErr_Occurred() ? -1 : PyLong_AsLong(args[1]);
    long births = PyErr_Occurred() ? -1 : PyLong_AsLong(args[2]);
    int interrupts = PyErr_Occurred() ? -1 : PyObject_IsTrue(args[3]);
    pid_t *born = PyErr_Occurred() ? NULL : map_births((int)births);
    if (born == NULL) {
        return NULL;
    }
    const uint64_t all = ~(uint64_t)0;
    struct order order;
    PyOS_BeforeFork();
    while (receive_order((int)channel, &order)) {
        int pidfd = -1;
        uint64_t mask = 0;
        set_mask(&all, &mask);
        long result = copy(&order, offset, &pidfd, born);
        if (result == 0) {
            /* Or nobody would see from it that the zygote has ended. */
            close((int)channel);
            PyOS_AfterFork_Child();
            if (interrupts) {
                mask &= ~((uint64_t)1 << (SIGINT - 1));
            }
            return Py_BuildValue("(iOK)", order.descriptors[SOCKET],
                                 order.words.ahead ? Py_True : Py_False, (unsigned long long)mask);
        }
        set_mask(&mask, NULL);
        answer((int)channel, result, pidfd);
        close_descriptors(&order);
        if (result > 0) {
            close(pidfd);
        }
    }
    PyOS_AfterFork_Parent();
    Py_RETURN_NONE;
}

/* --- its child ----------------------------------------------------------------------------- */

/* Finds the parts. 0: the lengths do not fit together. */
static int dissect(struct received *received, char *data, size_t size) {
    struct ramet_work *work = (struct ramet_work *)data;
    if (size < sizeof *work) {
        return 0;
    }
    size_t left = size - sizeof *work;
    if (work->numbers > left / sizeof(int64_t)) {
        return 0;
    }
    left -= work->numbers * sizeof(int64_t);
    if (work->relocations > left / sizeof(uint64_t)) {
        return 0;
    }
    left -= work->relocations * sizeof(uint64_t);
    if (work->image > left) {
        return 0;
    }
    received->work = work;
    received->numbers = (const int64_t *)(data + sizeof *work);
    received->relocations = (const uint64_t *)(received->numbers + work->numbers);
    received->image = (char *)(received->relocations + work->relocations);
    received->rest = received->image + work->image;
    received->rest_size = left - work->image;
    return 1;
}

static int is_wanted(const struct received *received, int fd) {
    for (uint64_t i = 0; i < received->work->numbers; i++) {
        if (received->numbers[i] == fd) {
            return 1;
        }
    }
    return 0;
}

/* The i-th descriptor that stays, under the number that it has then. */
static int stays(const struct received *received, uint64_t i) {
    uint64_t kept = received->work->kept;
    return i < kept ? received->descriptors[i] : (int)received->numbers[i - kept];
}

static int is_staying(const struct received *received, int fd) {
    for (uint64_t i = 0; i < received->work->kept + received->work->numbers; i++) {
        if (stays(received, i) == fd) {
            return 1;
        }
    }
    return 0;
}

/* What the zygote itself has opened is not the child's; but somebody there knows the number, which
 * must not become that of another file. Returns -errno. */
static long cover(const struct received *received) {
    int null = -1;
    for (size_t i = 0; i < received->own_count; i++) {
        int fd = received->own[i];
        if (is_staying(received, fd)) {
            continue;
        }
        if (null < 0) {
            null = open("/dev/null", O_RDWR | O_CLOEXEC);
        }
        if (null < 0 || (null != fd && dup3(null, fd, O_CLOEXEC) < 0)) {
            return -errno;
        }
    }
    int stays_open = null < 0;
    for (size_t i = 0; i < received->own_count; i++) {
        stays_open |= received->own[i] == null;
    }
    if (!stays_open) {
        close(null);
    }
    return 0;
}

/* Gives each descriptor its number, and closes all others. Returns -errno. */
static long place_descriptors(struct received *received) {
    const struct ramet_work *work = received->work;
    uint64_t kept = work->kept;
    /* Out of the way of the numbers that are wanted. */
    for (uint64_t i = 0; i < kept + work->numbers; i++) {
        int fd = received->descriptors[i];
        while (fd < FIRST_BEYOND_STANDARD || is_wanted(received, fd)) {
            int lowest = fd < FIRST_BEYOND_STANDARD ? FIRST_BEYOND_STANDARD : fd + 1;
            fd = fcntl(received->descriptors[i], F_DUPFD_CLOEXEC, lowest);
            if (fd < 0) {
                return -errno;
            }
        }
        received->descriptors[i] = fd;
    }
    for (uint64_t i = 0; i < work->numbers; i++) {
        if (dup2(received->descriptors[kept + i], (int)received->numbers[i]) < 0) {
            return -errno;
        }
    }
    /* What lies between those that stay. */
    int first = 0;
    int next = 0;
    while (next >= 0) {
        next = -1;
        for (uint64_t i = 0; i < kept + work->numbers; i++) {
            int fd = stays(received, i);
            if (fd >= first && (next < 0 || fd < next)) {
                next = fd;
            }
        }
        unsigned last = next < 0 ? ~0U : (unsigned)next - 1;
        if (next != first && syscall(SYS_close_range, first, last, 0) < 0) {
            return -errno;
        }
        first = next + 1;
    }
    return cover(received);
}

/* Makes addresses of the offsets in the image. Returns where it is. */
static char *relocate(const struct received *received) {
    char *image = received->image;
    for (uint64_t i = 0; i < received->work->relocations; i++) {
        uint64_t word = 0;
        memcpy(&word, image + received->relocations[i], sizeof word);
        word += (uint64_t)image;
        memcpy(image + received->relocations[i], &word, sizeof word);
    }
    return received->work->image > 0 ? image : NULL;
}

/* A signal that comes while this waits is not for the work: if that has a handler, there will be no
 * work. None that was told is lost by that, since what is in the queue of a socket when it is shut
 * down can still be received. Returns whether there was such a signal. */
static int wait_for_work(int socket, uint64_t mask) {
    struct pollfd entry = {.fd = socket, .events = POLLIN};
    int interrupted = syscall(SYS_ppoll, &entry, 1, NULL, &mask, sizeof mask) < 0;
    if (interrupted) {
        shutdown(socket, SHUT_RD);
    }
    return interrupted;
}

static int take_own(PyObject *list, struct received *received) {
    Py_ssize_t count = PyList_Size(list);
    received->own = PyMem_Malloc((size_t)(count > 0 ? count : 1) * sizeof(int));
    if (received->own == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < count && !PyErr_Occurred(); i++) {
        received->own[i] = (int)PyLong_AsLong(PyList_GetItem(list, i));
    }
    received->own_count = (size_t)count;
    return PyErr_Occurred() ? -1 : 0;
}

/* Gives the descriptors their places, if there was room for all. Returns -errno. */
static long take_descriptors(struct received *received) {
    const struct ramet_work *work = received->work;
    if (received->count == work->kept + work->numbers) {
        return place_descriptors(received);
    }
    return -EMFILE;
}

/* work(socket, signal mask while this waits, list of the zygote's open files)
 *     -> (what is left to Python, list of the descriptors that are kept, address of the program or
 *         0, 0 or -errno of the descriptors)
 *
 * If there will be no work this process ends. Called once: the program stays where it was
 * received. */
static PyObject *work(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    struct received received = {0};
    if (count != 3) {
        return PyErr_Format(PyExc_TypeError, "work takes 3 arguments, got %zd", count);
    }
    long socket = PyLong_AsLong(args[0]);
    uint64_t mask = 0;
    if (PyErr_Occurred() || ramet_as_u64(args[1], &mask) < 0 || take_own(args[2], &received) < 0) {
        return NULL;
    }
    char *data = aligned_alloc(sizeof(uint64_t), RAMET_LONGEST_WORK);
    if (data == NULL) {
        return PyErr_NoMemory();
    }
    int interrupted = wait_for_work((int)socket, mask);
    size_t size =
        receive((int)socket, data, RAMET_LONGEST_WORK, received.descriptors, &received.count);
    if (size == 0) { /* at once: no handler of Python is called any more */
        syscall(SYS_exit_group, 0);
    }
    if (interrupted && PyErr_CheckSignals() < 0) {
        PyErr_Clear(); /* ppoll has seen no work: so the signal is older than that */
    }
    if (!dissect(&received, data, size)) {
        return PyErr_Format(PyExc_ValueError, "bad work, of %zu bytes", size);
    }
    long error = take_descriptors(&received);
    PyObject *kept = PyList_New(0);
    for (uint64_t i = 0; kept != NULL && i < received.work->kept && i < received.count; i++) {
        PyObject *number = PyLong_FromLong(received.descriptors[i]);
        if (number == NULL || PyList_Append(kept, number) < 0) {
            Py_CLEAR(kept);
        }
        Py_XDECREF(number);
    }
    return Py_BuildValue("(y#NNl)", received.rest, (Py_ssize_t)received.rest_size, kept,
                         PyLong_FromVoidPtr(relocate(&received)), error);
}

/* set_mask(signal mask) */
static PyObject *set_signal_mask(PyObject *module, PyObject *words) {
    (void)module;
    uint64_t mask = 0;
    if (ramet_as_u64(words, &mask) < 0) {
        return NULL;
    }
    set_mask(&mask, NULL);
    Py_RETURN_NONE;
}

/* run_in_place(address of a program) -> None, or (step, result) of the step that has failed. */
static PyObject *run_in_place(PyObject *module, PyObject *address) {
    (void)module;
    struct ramet_record record = {.program = PyLong_AsVoidPtr(address)};
    if (record.program == NULL) {
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "no program");
    }
    set_mask(NULL, &record.caller_mask);
    ramet_run_program(&record);
    if (record.failed) {
        return Py_BuildValue("(Kl)", (unsigned long long)record.step, record.result);
    }
    Py_RETURN_NONE;
}

/* rehearse(): what Python does after a fork is done here once, so that what it changes for good
 * (symbols that are bound, caches that are filled) need not be changed in each child. In a process
 * of one thread it changes nothing else but what the hooks of modules do, of which each child is
 * to have had the effect. */
static PyObject *rehearse(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    PyOS_BeforeFork();
    PyOS_AfterFork_Child();
    Py_RETURN_NONE;
}

/* make_private(address, size): what is in shared memory is in memory of this process from now on */
static PyObject *make_private(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    uint64_t address = 0;
    uint64_t size = 0;
    if (count != 2) {
        return PyErr_Format(PyExc_TypeError, "make_private takes 2 arguments, got %zd", count);
    }
    if (ramet_as_u64(args[0], &address) < 0 || ramet_as_u64(args[1], &size) < 0) {
        return NULL;
    }
    void *place = (void *)(uintptr_t)address;
    void *copy = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (copy == MAP_FAILED) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    /* By this call, since a file may end before its mapping does: the rest is zero. */
    struct iovec from = {.iov_base = place, .iov_len = size};
    struct iovec into = {.iov_base = copy, .iov_len = size};
    int failed = process_vm_readv(getpid(), &into, 1, &from, 1, 0) < 0 && errno != EFAULT;
    if (failed || mremap(copy, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, place) == MAP_FAILED) {
        PyErr_SetFromErrno(PyExc_OSError);
        munmap(copy, size);
        return NULL;
    }
    Py_RETURN_NONE;
}

/* leave(code): _exit, without the dynamic linker, which would have to look for that first. */
static PyObject *leave(PyObject *module, PyObject *code) {
    (void)module;
    long number = PyLong_AsLong(code);
    syscall(SYS_exit_group, number);
    Py_RETURN_NONE;
}

PyMethodDef ramet_serve_functions[] = {
    {"leave", leave, METH_O, NULL},
    {"make_private", METHOD(make_private), METH_FASTCALL, NULL},
    {"rehearse", rehearse, METH_NOARGS, NULL},
    {"run_in_place", run_in_place, METH_O, NULL},
    {"set_mask", set_signal_mask, METH_O, NULL},
    {"serve", METHOD(serve), METH_FASTCALL, NULL},
    {"work", METHOD(work), METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};
