/* SPDX-License-Identifier: MIT
 *
 * Task: what ramet.Child and ramet.Thread are made of.
 */
#ifndef RAMET_TASK_H
#define RAMET_TASK_H

#include "module.h"
#include "stack.h"

/* Fields change with the GIL held or, where there is none, in a critical section of the object. */
typedef struct {
    PyObject_HEAD
    int lock;     /* held by whoever is in waitid: see wait.c */
    int pidfd;    /* -1: none, or closed */
    int work;     /* a socket by which the child of a zygote is told what to do; then -1 */
    int users;    /* calls that block on the pidfd */
    char closing; /* to be closed when the last of them is done */
    long pid;     /* as the caller's pid namespace has it */
    pid_t owner;  /* the process whose child it is, and its generation: see fork.c */
    int generation;
    char waitable;             /* the kernel will give us its exit status */
    PyObject *status;          /* ExitStatus; set once, when it is known */
    struct ramet_stack *stack; /* what it runs on in our memory, while it does */
    PyObject *pool;            /* where that comes from; stays */
    PyObject *keep;            /* what else it may touch there */
    unsigned long long flags;

    /* Of a program, once the task has let go of the stack: see struct ramet_record. */
    unsigned long long step;
    long result;
    char failed;
    char quiet; /* no warning when it is dropped before it was waited for */
    char kill;  /* it is killed when the handle is dropped: its start is not finished */
} Task;

/* A handle of a type made of Task, for a task that is about to be started; NULL with an exception
 * set if it is no such type. */
Task *ramet_task_new(PyObject *type);

/* Fills in what three arguments say: cgroup (-1 for none), set_tid (a bytes object of pid_t) and
 * whether clone is used for clone3. size becomes that of the smallest struct that has the fields.
 * -1: an exception is set. */
int ramet_task_parse_rest(PyObject *const *rest, struct clone_args *args, size_t *size,
                          int *use_clone);

/* The task was started by this process. */
void ramet_task_started(Task *self, pid_t pid, unsigned long long flags);

/* Whether the process that asks is the one that has started it, and not a fork of that. */
int ramet_task_is_ours(const Task *self);

/* The socket is no longer needed: if it was told nothing, the child ends. */
void ramet_task_close_work(Task *self);

/* Lets go of what the task ran on: it is known to be done with it. */
void ramet_task_release(Task *self);

/* Moves what is left of a task to a new object in _waiting, a deque of its type, or lets go of
 * it if nothing has to be done; once nobody uses the pidfd any more. -1: an exception is
 * set, nothing is moved. */
int ramet_task_detach(Task *self);

/* The methods that use the pidfd, or wait (wait.c). */
PyObject *ramet_task_reap(Task *self, PyObject *const *args, Py_ssize_t count);
PyObject *ramet_task_readable(Task *self, PyObject *const *args, Py_ssize_t count);
PyObject *ramet_task_send_signal(Task *self, PyObject *signal);
PyObject *ramet_task_ioctl(Task *self, PyObject *const *args, Py_ssize_t count);
PyObject *ramet_task_has_execed(Task *self, PyObject *unused);
PyObject *ramet_task_settle(Task *self, PyObject *status);
PyObject *ramet_task_join(Task *self, PyObject *timeout);

/* Of a zygote's child without work (zygote.c). */
PyObject *ramet_task_has_signals(Task *self, PyObject *unused);

/* Tells a child what to do (zygote.c). */
PyObject *ramet_task_tell(Task *self, PyObject *const *args, Py_ssize_t count);

#endif
