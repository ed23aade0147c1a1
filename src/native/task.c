/* SPDX-License-Identifier: MIT
 *
 * Task: what ramet.Child and ramet.Thread are made of. It is started here, into an
 * object that is there already, and its exit status is collected here, once,
 * whichever thread asks. All else is Python.
 */
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <stdbool.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "module.h"
#include "stack.h"
#include "status.h"

#include <structmember.h> /* part of Python.h from 3.12 on */

#ifndef P_PIDFD
#define P_PIDFD 3 /* Linux 5.4, <linux/wait.h> */
#endif

typedef struct {
    PyObject_HEAD
    int lock;         /* held by whoever is in waitid: see lock() */
    long pid;         /* 0: not started yet */
    int pidfd;        /* -1: none yet, or closed */
    char waitable;    /* the kernel will give us its exit status */
    pid_t owner;      /* the process whose child it is */
    PyObject *status; /* ExitStatus, once it is known */
    PyObject *stack;  /* what it runs on in our memory, if it does */
    PyObject *keep;   /* what else it may touch there */
    unsigned long long flags;
} Task;

static void task_dealloc(PyObject *object);

static PyObject *task_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)args;
    (void)kwargs;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Task *self = (Task *)allocate(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->pidfd = -1;
    return (PyObject *)self;
}

/* Whether the task has let go of our memory. If not, at the end of the interpreter,
 * what it may touch must stay. */
static int is_over(Task *self) {
    return self->stack == NULL || ramet_stack_released(self->stack);
}

static int task_traverse(PyObject *object, visitproc visit, void *arg) {
    Task *self = (Task *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->status);
    Py_VISIT(self->stack);
    if (is_over(self)) {
        Py_VISIT(self->keep);
    }
    return 0;
}

static int task_clear(PyObject *object) {
    Task *self = (Task *)object;
    if (!is_over(self)) {
        self->keep = NULL; /* leaked, as its stack is: the task goes on */
    }
    Py_CLEAR(self->status);
    Py_CLEAR(self->stack);
    Py_CLEAR(self->keep);
    return 0;
}

static void close_pidfd(Task *self) {
    int pidfd = __atomic_exchange_n(&self->pidfd, -1, __ATOMIC_ACQ_REL);
    if (pidfd >= 0) {
        close(pidfd);
    }
}

/* Moves what is left of a task to a new object in `waiting`, a deque, or lets go of
 * it if nothing has to be done. All in one: between two steps of Python a signal
 * handler might raise. */
static int detach(Task *self, PyObject *waiting) {
    int ours = self->owner == getpid(); /* and not a copy of it in a fork */
    int unreaped = self->status == NULL && self->waitable && self->pidfd >= 0;
    if (!ours || (!unreaped && self->stack == NULL)) {
        close_pidfd(self);
        Py_CLEAR(self->stack);
        Py_CLEAR(self->keep);
        return 0;
    }
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    while (PyType_GetSlot(type, Py_tp_dealloc) != (void *)task_dealloc) {
        type = PyType_GetSlot(type, Py_tp_base);
    }
    Task *rest = (Task *)task_new(type, NULL, NULL);
    if (rest == NULL) {
        return -1;
    }
    rest->pid = self->pid;
    rest->owner = self->owner;
    rest->flags = self->flags;
    rest->waitable = self->waitable;
    rest->status = Py_XNewRef(self->status);
    rest->pidfd = __atomic_exchange_n(&self->pidfd, -1, __ATOMIC_ACQ_REL);
    rest->stack = self->stack;
    rest->keep = self->keep;
    self->stack = NULL;
    self->keep = NULL;
    PyObject *result = PyObject_CallMethod(waiting, "append", "O", rest);
    Py_DECREF(rest);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* The types made of this one have the deque as _waiting, and see in _dropped to what
 * can be done at once. */
static void task_finalize(PyObject *object) {
    Task *self = (Task *)object;
    if (self->pidfd < 0 && self->stack == NULL) {
        return;
    }
    if (self->status != NULL && self->stack == NULL) {
        close_pidfd(self);
        return;
    }
    PyObject *type = NULL;
    PyObject *value = NULL;
    PyObject *traceback = NULL;
    PyErr_Fetch(&type, &value, &traceback);
    int unreaped = self->status == NULL && self->waitable && self->owner == getpid();
    PyObject *waiting = PyObject_GetAttrString(object, "_waiting");
    int result = waiting == NULL ? -1 : detach(self, waiting);
    Py_XDECREF(waiting);
    if (result == 0) {
        PyObject *done = PyObject_CallMethod(object, "_dropped", "i", unreaped);
        result = done == NULL ? -1 : 0;
        Py_XDECREF(done);
    }
    if (result < 0) {
        PyErr_WriteUnraisable(object);
    }
    PyErr_Restore(type, value, traceback);
}

static void task_dealloc(PyObject *object) {
    Task *self = (Task *)object;
    PyObject_GC_UnTrack(object);
    PyTypeObject *type = Py_TYPE(object);
    task_clear(object);
    close_pidfd(self); /* a subclass has been finalized, and has none */
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(object);
    Py_DECREF(type);
}

/* start(stack, fn, arg, flags, exit_signal, ptid, tls, ctid, cgroup, set_tid, use_clone)
 *     -> thread id or -errno
 *
 * cgroup is -1 for none, set_tid a bytes object of pid_t. The task is ours before
 * this returns: after that a Python signal handler may run, and raise. */
#define START_PARAMETERS 11

/* Whose exit status the kernel does not give to us. */
#define AUTOREAP (1ULL << 34) /* CLONE_AUTOREAP, Linux 7.1 */
#define NOT_OURS (CLONE_THREAD | CLONE_PARENT | AUTOREAP)

static int parse_start(PyObject *const *args, struct ramet_launch *launch,
                       struct ramet_record *request) {
    uint64_t words[7];
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (ramet_as_u64(args[i], &words[i]) < 0) {
            return -1;
        }
    }
    long cgroup = PyLong_AsLong(args[7]);
    if (cgroup == -1 && PyErr_Occurred()) {
        return -1;
    }
    char *set_tid = NULL;
    Py_ssize_t set_tid_size = 0;
    if (PyBytes_AsStringAndSize(args[8], &set_tid, &set_tid_size) < 0) {
        return -1;
    }
    launch->use_clone = PyObject_IsTrue(args[9]);
    if (launch->use_clone < 0) {
        return -1;
    }
    request->fn = (long (*)(void *))words[0];
    request->arg = (void *)words[1];
    launch->args = (struct clone_args){
        .flags = words[2],
        .exit_signal = words[3],
        .parent_tid = words[4],
        .tls = words[5],
        .child_tid = words[6],
    };
    launch->size = CLONE_ARGS_SIZE_VER0;
    if (set_tid_size > 0) {
        launch->args.set_tid = (uint64_t)set_tid;
        launch->args.set_tid_size = (uint64_t)set_tid_size / sizeof(pid_t);
        launch->size = CLONE_ARGS_SIZE_VER1;
    }
    if (cgroup >= 0) {
        launch->args.cgroup = (__u64)cgroup;
        launch->size = CLONE_ARGS_SIZE_VER2;
    }
    return 0;
}

static PyObject *task_start(Task *self, PyObject *const *args, Py_ssize_t count) {
    struct ramet_launch launch;
    struct ramet_record request = {0};
    if (count != START_PARAMETERS) {
        return PyErr_Format(PyExc_TypeError, "start takes %d arguments, got %zd", START_PARAMETERS,
                            count);
    }
    PyObject *stack = args[0];
    if (self->pid != 0) {
        PyErr_SetString(PyExc_RuntimeError, "the task was started already");
        return NULL;
    }
    if (parse_start(args + 1, &launch, &request) < 0) {
        return NULL;
    }
    int lasting = ramet_stack_begin(stack, &launch);
    if (lasting < 0) {
        return NULL;
    }
    launch.record->fn = request.fn;
    launch.record->arg = request.arg;
    launch.args.pidfd = (uint64_t)&self->pidfd;
    self->flags = launch.args.flags;
    self->waitable = (self->flags & NOT_OURS) ? 0 : 1;
    self->owner = getpid();
    /* clone(2) has one place for both; a pidfd that comes later may be another's. */
    int *ptid = NULL;
    if (launch.use_clone && (launch.args.flags & CLONE_PIDFD) &&
        (launch.args.flags & CLONE_PARENT_SETTID)) {
        launch.args.flags &= ~(__u64)CLONE_PARENT_SETTID;
        ptid = (int *)launch.args.parent_tid;
    }

    long result = 0;
    if (launch.args.flags & CLONE_VM) {
        Py_BEGIN_ALLOW_THREADS
            result = ramet_launch(&launch);
        Py_END_ALLOW_THREADS
    } else {
        result = ramet_launch(&launch);
    }
    if (result < 0) {
        self->pidfd = -1;
    } else {
        self->pid = result;
    }
    if (result > 0 && ptid != NULL) {
        *ptid = (int)result;
    }
    /* A thread's stack has what it returned. */
    if (result > 0 && (lasting || (launch.args.flags & CLONE_THREAD))) {
        self->stack = Py_NewRef(stack);
    } else {
        ramet_stack_end(stack);
    }
    return PyLong_FromLong(result);
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

/* With the lock held. 1: collected into status; 0: it runs, or is not ours to wait
 * for (any more); -1: errno is set. */
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
        Py_BEGIN_ALLOW_THREADS
            result = syscall(SYS_waitid, P_PIDFD, self->pidfd, &info, flags, &usage);
            error = errno;
        Py_END_ALLOW_THREADS
        errno = error;
    }
    if (result == 0 && info.si_pid != 0) {
        self->waitable = 0;
        self->status = ramet_status(status_type, &info, &usage);
        return self->status != NULL;
    }
    if (result < 0 && errno == ECHILD) {
        self->waitable = 0;
        return 0;
    }
    return (int)result;
}

/* reap(options, ExitStatus) -> ExitStatus or None
 *
 * options: 0 blocks, WNOHANG does not. None: it runs, or is not ours to wait for, or
 * (without WNOHANG) another thread waits already. */
static PyObject *task_reap(Task *self, PyObject *const *args, Py_ssize_t count) {
    if (count != 2) {
        return PyErr_Format(PyExc_TypeError, "reap takes 2 arguments, got %zd", count);
    }
    int options = (int)PyLong_AsLong(args[0]);
    PyObject *status_type = args[1];
    if (options == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (self->status != NULL) {
        return Py_NewRef(self->status);
    }
    int result = 0;
    do {
        if (self->pidfd < 0) { /* closed, perhaps by the handler of a signal */
            Py_RETURN_NONE;
        }
        if (!try_lock(&self->lock)) {
            /* Whoever holds it is in waitid, and done with it when the child is; but
             * in a fork of the process, where there is no such thread. */
            if (!(options & WNOHANG) || !has_exited(self->pidfd) || self->owner != getpid()) {
                Py_RETURN_NONE;
            }
            Py_BEGIN_ALLOW_THREADS
                lock(&self->lock);
            Py_END_ALLOW_THREADS
        }
        result = self->status != NULL ? 1 : collect(self, options, status_type);
        int error = errno;
        unlock(&self->lock);
        /* Without the lock: the handler may ask for the same child. */
        if (result < 0 && error != EINTR) {
            errno = error;
            return PyErr_SetFromErrno(PyExc_OSError);
        }
        if (PyErr_Occurred() || (result < 0 && PyErr_CheckSignals() < 0)) {
            return NULL;
        }
    } while (result < 0);
    return Py_NewRef(self->status != NULL ? self->status : Py_None);
}

#define METHOD(function) ((PyCFunction)(void (*)(void))(function))

static PyObject *task_detach(Task *self, PyObject *waiting) {
    if (detach(self, waiting) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *task_close_pidfd(Task *self, PyObject *unused) {
    (void)unused;
    close_pidfd(self);
    Py_RETURN_NONE;
}

/* Gives the stack to one caller, once. */
static PyObject *task_take_stack(Task *self, PyObject *unused) {
    (void)unused;
    PyObject *stack = __atomic_exchange_n(&self->stack, NULL, __ATOMIC_ACQ_REL);
    if (stack == NULL) {
        Py_RETURN_NONE;
    }
    return stack;
}

static PyMethodDef task_methods[] = {
    {"start", METHOD(task_start), METH_FASTCALL, NULL},
    {"detach", METHOD(task_detach), METH_O, NULL},
    {"close_pidfd", METHOD(task_close_pidfd), METH_NOARGS, NULL},
    {"take_stack", METHOD(task_take_stack), METH_NOARGS, NULL},
    {"reap", METHOD(task_reap), METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef task_members[] = {
    {"_pid", T_LONG, offsetof(Task, pid), READONLY, NULL},
    {"_pidfd", T_INT, offsetof(Task, pidfd), READONLY, NULL},
    {"_waitable", T_BOOL, offsetof(Task, waitable), READONLY, NULL},
    {"_owner", T_INT, offsetof(Task, owner), READONLY, NULL},
    {"_flags", T_ULONGLONG, offsetof(Task, flags), READONLY, NULL},
    {"_status", T_OBJECT, offsetof(Task, status), 0, NULL},
    {"_stack", T_OBJECT, offsetof(Task, stack), READONLY, NULL},
    {"_keep", T_OBJECT, offsetof(Task, keep), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot task_slots[] = {
    {Py_tp_new, task_new},           {Py_tp_dealloc, task_dealloc},
    {Py_tp_finalize, task_finalize}, {Py_tp_traverse, task_traverse},
    {Py_tp_clear, task_clear},       {Py_tp_methods, task_methods},
    {Py_tp_members, task_members},   {0, NULL},
};

PyType_Spec ramet_task_spec = {
    .name = "ramet._native.Task",
    .basicsize = sizeof(Task),
    .flags =
        Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = task_slots,
};
