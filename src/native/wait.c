/* SPDX-License-Identifier: MIT
 *
 * Waiting for tasks. The exit status of a process is collected once, whichever thread
 * asks; a thread is joined by its stack.
 */
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "status.h"
#include "task.h"

#ifndef P_PIDFD
#define P_PIDFD 3 /* Linux 5.4, <linux/wait.h> */
#endif

#define NANOSECONDS 1000000000
#define MILLISECOND 1000000
#define MOST_SIGNALS 64

/* While a call blocks on a pidfd, without the GIL, nobody closes it: its number might become
 * another's before the kernel has looked at it. */
static int borrow_pidfd(Task *self) {
    self->users++;
    return self->pidfd;
}

static void give_back_pidfd(Task *self) {
    self->users--;
    if (self->closing && self->users == 0) {
        self->closing = 0;
        if (ramet_task_detach(self) < 0) {
            PyErr_WriteUnraisable((PyObject *)self);
        }
    }
}

/* A lock of one word (U. Drepper, "Futexes Are Tricky", mutex 2): cheaper than the
 * interpreter's, which every child would have to allocate. */
enum { FREE, HELD, WAITED_FOR };

static bool try_lock(int *word) { /* NOLINT(readability-non-const-parameter): it is written */
    int expected = FREE;
    return __atomic_compare_exchange_n(word, &expected, HELD, false, __ATOMIC_ACQUIRE,
                                       __ATOMIC_RELAXED);
}

static void lock(int *word) {
    while (__atomic_exchange_n(word, WAITED_FOR, __ATOMIC_ACQUIRE) != FREE) {
        syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, WAITED_FOR, NULL);
    }
}

static void unlock(int *word) {
    if (__atomic_exchange_n(word, FREE, __ATOMIC_RELEASE) == WAITED_FOR) {
        syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1);
    }
}

static int has_exited(int pidfd) {
    struct pollfd entry = {.fd = pidfd, .events = POLLIN};
    return poll(&entry, 1, 0) > 0;
}

/* With the lock held. 1: collected; 0: it runs, or is not ours to wait for (any more); -1: errno is
 * set, or an exception. */
static int collect(Task *self, int options, PyObject *status_type) {
    siginfo_t info;
    struct rusage usage; /* the C library's waitid leaves it out */
    info.si_pid = 0;     /* stays 0 when WNOHANG finds nothing */
    long result = 0;
    int flags = WEXITED | __WALL | options;
    if (!self->waitable) {
        return 0;
    }
    if (options & WNOHANG) {
        result = syscall(SYS_waitid, P_PIDFD, self->pidfd, &info, flags, &usage);
    } else {
        int error = 0;
        int pidfd = borrow_pidfd(self);
        Py_BEGIN_ALLOW_THREADS
            result = syscall(SYS_waitid, P_PIDFD, pidfd, &info, flags, &usage);
            error = errno;
        Py_END_ALLOW_THREADS
        errno = error;
    }
    if (result == 0 && info.si_pid != 0) {
        self->status = ramet_status(status_type, &info, &usage);
        self->waitable = 0;
        ramet_task_release(self);
        result = self->status != NULL ? 1 : -1;
    } else if (result < 0 && errno == ECHILD) {
        self->waitable = 0;
        result = 0;
    }
    if (!(options & WNOHANG)) {
        int error = errno;
        give_back_pidfd(self);
        errno = error;
    }
    return (int)result;
}

static PyObject *reap(Task *self, int options, PyObject *status_type) {
    int result = 0;
    do {
        if (self->status != NULL) {
            return Py_NewRef(self->status);
        }
        if (self->pidfd < 0 || self->closing) { /* perhaps by the handler of a signal */
            Py_RETURN_NONE;
        }
        if (!try_lock(&self->lock)) {
            /* Whoever holds it is in waitid, and done with it when the child is; but
             * in a fork of the process, where there is no such thread. */
            if (!(options & WNOHANG) || !has_exited(self->pidfd) || !ramet_task_is_ours(self)) {
                Py_RETURN_NONE;
            }
            Py_BEGIN_ALLOW_THREADS
                lock(&self->lock);
            Py_END_ALLOW_THREADS
        }
        result = self->status != NULL ? 1 : collect(self, options, status_type);
        int error = errno;
        unlock(&self->lock);
        if (PyErr_Occurred()) {
            return NULL;
        }
        /* Without the lock: the handler may ask for the same child. */
        if (result < 0 && error != EINTR) {
            errno = error;
            return PyErr_SetFromErrno(PyExc_OSError);
        }
        if (result < 0 && PyErr_CheckSignals() < 0) {
            return NULL;
        }
    } while (result < 0);
    return Py_NewRef(self->status != NULL ? self->status : Py_None);
}

/* reap(options, ExitStatus) -> ExitStatus or None
 *
 * options: 0 blocks, WNOHANG does not. None: it runs, or is not ours to wait for, or
 * (without WNOHANG) another thread waits already. */
PyObject *ramet_task_reap(Task *self, PyObject *const *args, Py_ssize_t count) {
    if (count != 2) {
        return PyErr_Format(PyExc_TypeError, "_reap takes 2 arguments, got %zd", count);
    }
    int options = (int)PyLong_AsLong(args[0]);
    if (options == -1 && PyErr_Occurred()) {
        return NULL;
    }
    PyObject *result = NULL;
    Py_BEGIN_CRITICAL_SECTION(self);
    result = reap(self, options, args[1]);
    Py_END_CRITICAL_SECTION();
    return result;
}

/* Milliseconds until a time, -1 for ever, rounded up. */
static int left(const struct timespec *deadline) {
    struct timespec now;
    if (deadline == NULL) {
        return -1;
    }
    clock_gettime(CLOCK_MONOTONIC, &now);
    long long nanoseconds =
        (deadline->tv_sec - now.tv_sec) * (long long)NANOSECONDS + deadline->tv_nsec - now.tv_nsec;
    long long milliseconds = (nanoseconds + MILLISECOND - 1) / MILLISECOND;
    if (milliseconds > INT_MAX) {
        return INT_MAX;
    }
    return milliseconds < 0 ? 0 : (int)milliseconds;
}

static void from_now(struct timespec *deadline, long long nanoseconds) {
    clock_gettime(CLOCK_MONOTONIC, deadline);
    long long sum = deadline->tv_nsec + nanoseconds % NANOSECONDS;
    deadline->tv_sec += nanoseconds / NANOSECONDS + sum / NANOSECONDS;
    deadline->tv_nsec = sum % NANOSECONDS;
}

static PyObject *readable(Task *self, long long timeout, short events) {
    struct timespec end;
    const struct timespec *deadline = NULL;
    int result = 0;
    if (timeout >= 0) {
        from_now(&end, timeout);
        deadline = &end;
    }
    do {
        if (self->pidfd < 0 || self->closing) {
            Py_RETURN_FALSE;
        }
        struct pollfd entry = {.fd = borrow_pidfd(self), .events = events};
        int error = 0;
        Py_BEGIN_ALLOW_THREADS
            result = poll(&entry, 1, left(deadline));
            error = errno;
        Py_END_ALLOW_THREADS
        give_back_pidfd(self);
        if (result < 0 && error != EINTR) {
            errno = error;
            return PyErr_SetFromErrno(PyExc_OSError);
        }
        if (result < 0 && PyErr_CheckSignals() < 0) {
            return NULL;
        }
    } while (result < 0);
    return PyBool_FromLong(result);
}

/* readable(nanoseconds, or -1 for ever; events) -> False at the timeout, or closed
 *
 * events: POLLIN, the task has exited; 0, it was reaped, too (POLLHUP, Linux 6.9). */
PyObject *ramet_task_readable(Task *self, PyObject *const *args, Py_ssize_t count) {
    if (count != 2) {
        return PyErr_Format(PyExc_TypeError, "_readable takes 2 arguments, got %zd", count);
    }
    long long timeout = PyLong_AsLongLong(args[0]);
    if (timeout == -1 && PyErr_Occurred()) {
        return NULL;
    }
    long events = PyLong_AsLong(args[1]);
    if (events == -1 && PyErr_Occurred()) {
        return NULL;
    }
    PyObject *result = NULL;
    Py_BEGIN_CRITICAL_SECTION(self);
    result = readable(self, timeout, (short)events);
    Py_END_CRITICAL_SECTION();
    return result;
}

/* send_signal(number) -> 0 or errno; EBADF if the pidfd is closed */
PyObject *ramet_task_send_signal(Task *self, PyObject *signal) {
    long number = PyLong_AsLong(signal);
    if (number == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (number < 0 || number > MOST_SIGNALS) { /* the kernel takes an int */
        return PyLong_FromLong(EINVAL);
    }
    long result = 0;
    int error = 0;
    Py_BEGIN_CRITICAL_SECTION(self);
    result = syscall(SYS_pidfd_send_signal, self->closing ? -1 : self->pidfd, number, NULL, 0);
    error = errno;
    Py_END_CRITICAL_SECTION();
    return PyLong_FromLong(result < 0 ? error : 0);
}

/* has_execed() -> True, or False: not yet, or the kernel does not say
 *
 * The parent may not move a child to another process group once it has execed (EACCES,
 * setpgid(2)). That is looked at before whether there is such a group, which there is not. The
 * kernel lets go of the memory shortly before it notes the exec (begin_new_exec, fs/exec.c). */
#define NO_GROUP INT_MAX

PyObject *ramet_task_has_execed(Task *self, PyObject *unused) {
    (void)unused;
    return PyBool_FromLong(setpgid((pid_t)self->pid, NO_GROUP) < 0 && errno == EACCES);
}

/* ioctl(request, bytearray) -> 0 or errno */
PyObject *ramet_task_ioctl(Task *self, PyObject *const *args, Py_ssize_t count) {
    if (count != 2 || !PyByteArray_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "_ioctl takes a number and a bytearray");
        return NULL;
    }
    unsigned long request = PyLong_AsUnsignedLong(args[0]);
    if (request == (unsigned long)-1 && PyErr_Occurred()) {
        return NULL;
    }
    int result = 0;
    int error = 0;
    Py_BEGIN_CRITICAL_SECTION(self);
    result = ioctl(self->closing ? -1 : self->pidfd, request, PyByteArray_AsString(args[1]));
    error = errno;
    Py_END_CRITICAL_SECTION();
    return PyLong_FromLong(result < 0 ? error : 0);
}

/* settle(status) -> status: that of a process that has ended and was reaped by others; or
 * the one that is known already. */
PyObject *ramet_task_settle(Task *self, PyObject *status) {
    PyObject *result = NULL;
    Py_BEGIN_CRITICAL_SECTION(self);
    if (self->status == NULL) {
        self->status = Py_NewRef(status);
    }
    ramet_task_release(self);
    result = Py_NewRef(self->status);
    Py_END_CRITICAL_SECTION();
    return result;
}

/* join(nanoseconds, or -1 for ever) -> False at the timeout. For threads. */
PyObject *ramet_task_join(Task *self, PyObject *timeout) {
    long long nanoseconds = PyLong_AsLongLong(timeout);
    if (nanoseconds == -1 && PyErr_Occurred()) {
        return NULL;
    }
    struct timespec end = {0};
    const struct timespec *deadline = nanoseconds < 0 ? NULL : &end;
    if (deadline != NULL) {
        from_now(&end, nanoseconds);
    }
    /* A thread's stack stays until this object goes. */
    if (self->stack == NULL || self->stack->word == NULL) {
        PyErr_SetString(PyExc_TypeError, "only threads can be joined");
        return NULL;
    }
    while (!ramet_stack_released(self->stack)) {
        int error = 0;
        Py_BEGIN_ALLOW_THREADS
            error = ramet_stack_wait(self->stack, deadline);
        Py_END_ALLOW_THREADS
        if (error == ETIMEDOUT) {
            return PyBool_FromLong(ramet_stack_released(self->stack));
        }
        if (error == EINTR) {
            if (PyErr_CheckSignals() < 0) {
                return NULL;
            }
        } else if (error != EAGAIN) {
            errno = error;
            return PyErr_SetFromErrno(PyExc_OSError);
        }
    }
    ramet_stack_wake(self->stack);
    Py_RETURN_TRUE;
}
