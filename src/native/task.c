/* SPDX-License-Identifier: MIT
 *
 * The life of a task's handle: it is made with the task and, when it is dropped first, leaves what
 * remains to be done to others. Waiting is in wait.c; all else is Python.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "dumpable.h"
#include "fork.h"
#include "pool.h"
#include "task.h"

#include <structmember.h> /* part of Python.h from 3.12 on */

static void task_dealloc(PyObject *object);

static int is_base(PyTypeObject *type) {
    return PyType_GetSlot(type, Py_tp_dealloc) == (void *)task_dealloc;
}

/* Task itself, of which a type is made; NULL if it is not. */
static PyTypeObject *base_of(PyTypeObject *type) {
    while (type != NULL && !is_base(type)) {
        type = PyType_GetSlot(type, Py_tp_base);
    }
    return type;
}

static Task *new_task(PyTypeObject *type) {
    Task *self = (Task *)PyType_GenericAlloc(type, 0);
    if (self != NULL) {
        self->pidfd = -1;
        self->work = -1;
    }
    return self;
}

/* --- its end ------------------------------------------------------------------------------- */

/* Whether the task has let go of our memory. If not, at the end of the interpreter, what
 * it may touch must stay. */
static int is_over(Task *self) {
    return self->stack == NULL || ramet_stack_released(self->stack) || !ramet_task_is_ours(self);
}

int ramet_task_is_ours(const Task *self) {
    return self->generation == ramet_generation() && self->owner == getpid();
}

static void take_report(Task *self, const struct ramet_record *record) {
    self->failed = (char)__atomic_load_n(&record->failed, __ATOMIC_ACQUIRE);
    self->step = record->step;
    self->result = record->result;
}

void ramet_task_release(Task *self) {
    struct ramet_stack *stack = self->stack;
    self->stack = NULL;
    if (stack != NULL) {
        take_report(self, stack->record);
        ramet_pool_give(self->pool, stack);
    }
    Py_CLEAR(self->keep);
}

void ramet_task_close_work(Task *self) {
    int work = self->work;
    self->work = -1;
    if (work >= 0) {
        close(work);
    }
}

static void close_pidfd(Task *self) {
    int pidfd = self->pidfd;
    self->pidfd = -1;
    if (pidfd >= 0) {
        close(pidfd);
    }
}

static int task_traverse(PyObject *object, visitproc visit, void *arg) {
    Task *self = (Task *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->status);
    Py_VISIT(self->pool);
    if (is_over(self)) {
        Py_VISIT(self->keep);
    }
    return 0;
}

static int task_clear(PyObject *object) {
    Task *self = (Task *)object;
    if (is_over(self)) {
        Py_CLEAR(self->keep);
    }
    Py_CLEAR(self->status);
    return 0;
}

static void move(Task *from, Task *to) {
    to->pidfd = from->pidfd;
    to->stack = from->stack;
    to->keep = from->keep;
    from->pidfd = -1;
    from->stack = NULL;
    from->keep = NULL;
}

static void kill_unfinished(const Task *self) {
    if (self->kill && self->pidfd >= 0 && self->status == NULL) {
        syscall(SYS_pidfd_send_signal, self->pidfd, SIGKILL, NULL, 0);
    }
}

/* All in one: between two steps of Python a signal handler might raise. */
int ramet_task_detach(Task *self) {
    ramet_task_close_work(self);
    int ours = ramet_task_is_ours(self);
    if (ours && self->users > 0) {
        self->closing = 1;
        return 0;
    }
    int unreaped = self->status == NULL && self->waitable && self->pidfd >= 0;
    if (!ours || (!unreaped && self->stack == NULL)) {
        close_pidfd(self);
        ramet_task_release(self);
        return 0;
    }
    PyObject *waiting = PyObject_GetAttrString((PyObject *)self, "_waiting");
    kill_unfinished(self);
    Task *rest = waiting == NULL ? NULL : new_task(base_of(Py_TYPE((PyObject *)self)));
    if (rest == NULL) {
        Py_XDECREF(waiting);
        return -1;
    }
    rest->pid = self->pid;
    rest->owner = self->owner;
    rest->generation = self->generation;
    rest->flags = self->flags;
    rest->waitable = self->waitable;
    rest->status = Py_XNewRef(self->status);
    rest->pool = Py_XNewRef(self->pool);
    move(self, rest);
    PyObject *result = PyObject_CallMethod(waiting, "append", "O", rest);
    if (result == NULL) {
        move(rest, self);
    }
    Py_DECREF(waiting);
    Py_DECREF(rest);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* The types made of this one see in _dropped to what can be done at once. */
static void task_finalize(PyObject *object) {
    Task *self = (Task *)object;
    if (is_base(Py_TYPE(object)) || (self->pidfd < 0 && self->stack == NULL)) {
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
    int unreaped = self->status == NULL && self->waitable && ramet_task_is_ours(self);
    int result = ramet_task_detach(self);
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
    ramet_task_close_work(self);
    close_pidfd(self); /* a subclass has been finalized, and has none */
    if (is_over(self)) {
        ramet_task_release(self);
    } /* else both are leaked: the task goes on */
    Py_CLEAR(self->status);
    Py_CLEAR(self->pool);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(object);
    Py_DECREF(type);
}

/* --- its start ----------------------------------------------------------------------------- */

/* Whose exit status the kernel does not give to us. */
#define AUTOREAP (1ULL << 34) /* CLONE_AUTOREAP, Linux 7.1 */
#define FIRST_BEYOND_STANDARD 3
#define NOT_OURS (CLONE_THREAD | CLONE_PARENT | AUTOREAP)

Task *ramet_task_new(PyObject *type) {
    if (!PyType_Check(type) || base_of((PyTypeObject *)type) == NULL) {
        PyErr_SetString(PyExc_TypeError, "not a type of Task");
        return NULL;
    }
    return new_task((PyTypeObject *)type);
}

void ramet_task_started(Task *self, pid_t pid, unsigned long long flags) {
    self->pid = pid;
    self->flags = flags;
    self->waitable = (flags & NOT_OURS) ? 0 : 1;
    self->owner = getpid();
    self->generation = ramet_generation();
    /* Where a standard stream is closed, its number is not for this: it would be taken for one. */
    if (self->pidfd >= 0 && self->pidfd < FIRST_BEYOND_STANDARD) {
        int higher = fcntl(self->pidfd, F_DUPFD_CLOEXEC, FIRST_BEYOND_STANDARD);
        if (higher >= 0) {
            close(self->pidfd);
            self->pidfd = higher;
        }
    }
}

int ramet_task_parse_rest(PyObject *const *rest, struct clone_args *args, size_t *size,
                          int *use_clone) {
    long cgroup = PyLong_AsLong(rest[0]);
    if (cgroup == -1 && PyErr_Occurred()) {
        return -1;
    }
    char *set_tid = NULL;
    Py_ssize_t set_tid_size = 0;
    if (PyBytes_AsStringAndSize(rest[1], &set_tid, &set_tid_size) < 0) {
        return -1;
    }
    *use_clone = PyObject_IsTrue(rest[2]);
    if (*use_clone < 0) {
        return -1;
    }
    if (set_tid_size > 0) {
        args->set_tid = (uint64_t)set_tid;
        args->set_tid_size = (uint64_t)set_tid_size / sizeof(pid_t);
        *size = CLONE_ARGS_SIZE_VER1;
    }
    if (cgroup >= 0) {
        args->cgroup = (__u64)cgroup;
        *size = CLONE_ARGS_SIZE_VER2;
    }
    return 0;
}

enum { HANDLE, POOL, KEEP, FN, ARG, FLAGS, EXIT_SIGNAL, NEEDED };
enum { PTID = NEEDED, TLS, CTID, CGROUP, SET_TID, USE_CLONE, ALL };

static int parse_start(PyObject *const *args, Py_ssize_t count, struct ramet_launch *launch,
                       struct ramet_record *request) {
    uint64_t words[ALL] = {0};
    Py_ssize_t numbers = count == NEEDED ? NEEDED : CGROUP;
    for (Py_ssize_t i = FN; i < numbers; i++) {
        if (ramet_as_u64(args[i], &words[i]) < 0) {
            return -1;
        }
    }
    request->fn = (long (*)(void *))words[FN];
    request->arg = (void *)words[ARG];
    *launch = (struct ramet_launch){
        .args =
            {
                .flags = words[FLAGS],
                .exit_signal = words[EXIT_SIGNAL],
                .parent_tid = words[PTID],
                .tls = words[TLS],
                .child_tid = words[CTID],
            },
        .size = CLONE_ARGS_SIZE_VER0,
    };
    if (count == NEEDED) {
        return 0;
    }
    return ramet_task_parse_rest(&args[CGROUP], &launch->args, &launch->size, &launch->use_clone);
}

/* Starts the task of a handle that is there already, so that each has an owner at any
 * moment. Returns its id, or -errno. */
static long start(Task *self, struct ramet_launch *launch) {
    launch->args.pidfd = (uint64_t)&self->pidfd;
    /* clone(2) has one place for both; a pidfd that comes later may be another's. */
    int *ptid = NULL;
    if (launch->use_clone && (launch->args.flags & CLONE_PIDFD) &&
        (launch->args.flags & CLONE_PARENT_SETTID)) {
        launch->args.flags &= ~(__u64)CLONE_PARENT_SETTID;
        ptid = (int *)launch->args.parent_tid;
    }
    long result = 0;
    if (launch->args.flags & CLONE_VM) {
        Py_BEGIN_ALLOW_THREADS
            result = ramet_launch(launch);
        Py_END_ALLOW_THREADS
    } else {
        result = ramet_launch(launch);
    }
    if (result < 0) {
        self->pidfd = -1;
        return result;
    }
    ramet_task_started(self, (pid_t)result, launch->args.flags);
    if (ptid != NULL) {
        *ptid = (int)result;
    }
    return result;
}

/* start(handle, pool, keep, fn, arg, flags, exit_signal[, ptid, tls, ctid, cgroup, set_tid,
 *       use_clone]) -> a new handle, or -errno
 *
 * handle is a type made of Task; cgroup is -1 for none, set_tid a bytes object of
 * pid_t. */
static PyObject *start_task(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    struct ramet_launch launch;
    struct ramet_record request = {0};
    if (count != NEEDED && count != ALL) {
        return PyErr_Format(PyExc_TypeError, "start takes %d or %d arguments, got %zd", NEEDED, ALL,
                            count);
    }
    PyObject *pool = args[POOL];
    if (ramet_pool_check(pool) < 0 || parse_start(args, count, &launch, &request) < 0) {
        return NULL;
    }
    Task *self = ramet_task_new(args[HANDLE]);
    if (self == NULL) {
        return NULL;
    }
    struct ramet_stack *stack = ramet_pool_take(pool);
    if (stack == NULL) {
        Py_DECREF(self);
        return NULL;
    }
    int is_program = request.fn == ramet_run_program;
    stack->record->fn = request.fn;
    stack->record->arg = is_program ? stack->record : request.arg;
    stack->record->program = is_program ? request.arg : NULL;
    int lasting = ramet_stack_lend(stack, &launch);
    long result = start(self, &launch);
    if (result > 0 && lasting) {
        ramet_stack_started(stack, &launch, (int)result);
        self->pool = Py_NewRef(pool);
        self->keep = Py_NewRef(args[KEEP]);
        self->stack = stack;
        self->kill = (char)is_program;
    } else if (result > 0) {
        take_report(self, stack->record);
        ramet_pool_give(pool, stack);
    }
    if (result < 0) {
        ramet_stack_not_started(stack);
        ramet_pool_give(pool, stack);
        Py_DECREF(self);
        return PyLong_FromLong(result);
    }
    return (PyObject *)self;
}

static PyObject *after_fork(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    ramet_next_generation();
    ramet_dumpable_after_fork();
    Py_RETURN_NONE;
}

PyMethodDef ramet_task_functions[] = {
    {"after_fork", METHOD(after_fork), METH_NOARGS, NULL},
    {"start", METHOD(start_task), METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

/* --- methods ------------------------------------------------------------------------------- */

static PyObject *task_detach(Task *self, PyObject *unused) {
    (void)unused;
    int result = 0;
    Py_BEGIN_CRITICAL_SECTION(self);
    result = ramet_task_detach(self);
    Py_END_CRITICAL_SECTION();
    return result < 0 ? NULL : Py_NewRef(Py_None);
}

/* _dismiss(): the child of a zygote has no work, and is to end */
static PyObject *task_dismiss(Task *self, PyObject *unused) {
    (void)unused;
    ramet_task_close_work(self);
    Py_RETURN_NONE;
}

static PyObject *task_close_pidfd(Task *self, PyObject *unused) {
    (void)unused;
    Py_BEGIN_CRITICAL_SECTION(self);
    close_pidfd(self);
    Py_END_CRITICAL_SECTION();
    Py_RETURN_NONE;
}

/* The task is gone, as its pidfd says. */
static PyObject *task_release(Task *self, PyObject *unused) {
    (void)unused;
    Py_BEGIN_CRITICAL_SECTION(self);
    ramet_task_release(self);
    Py_END_CRITICAL_SECTION();
    Py_RETURN_NONE;
}

/* let_go() -> whether the task is known to have let go of our memory, which is then free. */
static PyObject *task_let_go(Task *self, PyObject *unused) {
    (void)unused;
    int over = 0;
    Py_BEGIN_CRITICAL_SECTION(self);
    over = is_over(self);
    if (over) {
        ramet_task_release(self);
    }
    Py_END_CRITICAL_SECTION();
    return PyBool_FromLong(over);
}

static PyObject *task_is_over(Task *self, PyObject *unused) {
    (void)unused;
    int over = 0;
    Py_BEGIN_CRITICAL_SECTION(self);
    over = is_over(self);
    Py_END_CRITICAL_SECTION();
    return PyBool_FromLong(over);
}

/* value() -> what fn returned, None if it did not. For threads that have ended. */
static PyObject *task_value(Task *self, PyObject *unused) {
    (void)unused;
    struct ramet_record *record = self->stack == NULL ? NULL : self->stack->record;
    if (record == NULL || !__atomic_load_n(&record->returned, __ATOMIC_ACQUIRE)) {
        Py_RETURN_NONE;
    }
    return PyLong_FromLong(record->value);
}

/* progress() -> the step of its program that a task makes now, as far as is known. */
static PyObject *task_progress(Task *self, PyObject *unused) {
    (void)unused;
    unsigned long long step = 0;
    Py_BEGIN_CRITICAL_SECTION(self);
    step = self->stack == NULL ? self->step
                               : __atomic_load_n(&self->stack->record->step, __ATOMIC_RELAXED);
    Py_END_CRITICAL_SECTION();
    return PyLong_FromUnsignedLongLong(step);
}

static PyMethodDef task_methods[] = {
    {"_reap", METHOD(ramet_task_reap), METH_FASTCALL, NULL},
    {"_readable", METHOD(ramet_task_readable), METH_FASTCALL, NULL},
    {"_send_signal", METHOD(ramet_task_send_signal), METH_O, NULL},
    {"_ioctl", METHOD(ramet_task_ioctl), METH_FASTCALL, NULL},
    {"_settle", METHOD(ramet_task_settle), METH_O, NULL},
    {"_join", METHOD(ramet_task_join), METH_O, NULL},
    {"_progress", METHOD(task_progress), METH_NOARGS, NULL},
    {"_has_execed", METHOD(ramet_task_has_execed), METH_NOARGS, NULL},
    {"_value", METHOD(task_value), METH_NOARGS, NULL},
    {"_is_over", METHOD(task_is_over), METH_NOARGS, NULL},
    {"_let_go", METHOD(task_let_go), METH_NOARGS, NULL},
    {"_release", METHOD(task_release), METH_NOARGS, NULL},
    {"_detach", METHOD(task_detach), METH_NOARGS, NULL},
    {"_dismiss", METHOD(task_dismiss), METH_NOARGS, NULL},
    {"_has_signals", METHOD(ramet_task_has_signals), METH_NOARGS, NULL},
    {"_tell", METHOD(ramet_task_tell), METH_FASTCALL, NULL},
    {"_close_pidfd", METHOD(task_close_pidfd), METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef task_members[] = {
    {"_pid", T_LONG, offsetof(Task, pid), READONLY, NULL},
    {"_waitable", T_BOOL, offsetof(Task, waitable), READONLY, NULL},
    {"_flags", T_ULONGLONG, offsetof(Task, flags), READONLY, NULL},
    {"_failed", T_BOOL, offsetof(Task, failed), READONLY, NULL},
    {"_kill", T_BOOL, offsetof(Task, kill), 0, NULL},
    {"_quiet", T_BOOL, offsetof(Task, quiet), 0, NULL},
    {"_result", T_LONG, offsetof(Task, result), READONLY, NULL},
    {"_status", T_OBJECT, offsetof(Task, status), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyObject *task_get_pidfd(Task *self, void *closure) {
    (void)closure;
    return PyLong_FromLong(self->closing ? -1 : self->pidfd);
}

static PyObject *task_is_ours(Task *self, void *closure) {
    (void)closure;
    return PyBool_FromLong(ramet_task_is_ours(self));
}

static PyGetSetDef task_getset[] = {
    {"_is_ours", (getter)(void (*)(void))task_is_ours, NULL, NULL, NULL},
    {"_pidfd", (getter)(void (*)(void))task_get_pidfd, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot task_slots[] = {
    {Py_tp_dealloc, task_dealloc},   {Py_tp_finalize, task_finalize},
    {Py_tp_traverse, task_traverse}, {Py_tp_clear, task_clear},
    {Py_tp_methods, task_methods},   {Py_tp_members, task_members},
    {Py_tp_getset, task_getset},     {0, NULL},
};

PyType_Spec ramet_task_spec = {
    .name = "ramet._native.Task",
    .basicsize = sizeof(Task),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC |
             Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = task_slots,
};
