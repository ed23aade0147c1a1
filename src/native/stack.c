/* SPDX-License-Identifier: MIT
 *
 * Stack: the memory that one task runs on, from its start until the kernel says
 * that the task has let go of it.
 *
 *     lowest                                                highest
 *     | guard page (no access) | the task's stack  <- | launch record |
 */
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <linux/sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "module.h"
#include "stack.h"

#define NANOSECONDS 1000000000

/* What tid holds until the kernel clears it. Any value but 0 will do. */
#define ALIVE 1

typedef struct {
    PyObject_HEAD
    char *base;   /* of the mapping, guard page included */
    size_t total; /* length of the mapping */
    size_t guard;
    struct ramet_record *record; /* at the top of the mapping */
    int *watch;                  /* what the kernel clears at the end; NULL: nothing does */
    int busy;                    /* a task may be running on it */
} Stack;

/* A task on this stack cleared the word, as its last act in this memory (mm_release,
 * kernel/fork.c), or was seen to be gone by its pidfd. */
static int is_released(Stack *self) {
    if (!__atomic_load_n(&self->busy, __ATOMIC_ACQUIRE)) {
        return 1;
    }
    if (self->watch == NULL || __atomic_load_n(self->watch, __ATOMIC_ACQUIRE) != 0) {
        return 0;
    }
    /* The word may be the caller's, who may now use it for something else. */
    __atomic_store_n(&self->busy, 0, __ATOMIC_RELEASE);
    return 1;
}

static PyObject *stack_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)kwargs;
    Py_ssize_t size = 0;
    if (!PyArg_ParseTuple(args, "n:Stack", &size)) {
        return NULL;
    }
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (size < (Py_ssize_t)page || (size_t)size > SIZE_MAX / 4) {
        return PyErr_Format(PyExc_ValueError, "a stack has at least one page (%zu bytes), got %zd",
                            page, size);
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Stack *self = (Stack *)allocate(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->guard = page;
    self->total = (((size_t)size + page - 1) & ~(page - 1)) + self->guard;
    void *base = mmap(NULL, self->total, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
        PyErr_SetFromErrno(PyExc_OSError);
        Py_DECREF(self);
        return NULL;
    }
    self->base = base;
    if (mprotect(base, self->guard, PROT_NONE) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        Py_DECREF(self);
        return NULL;
    }
    self->record = (struct ramet_record *)(self->base + self->total) - 1;
    return (PyObject *)self;
}

static void stack_dealloc(PyObject *object) {
    Stack *self = (Stack *)object;
    PyTypeObject *type = Py_TYPE(object);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    /* A task that still runs here, as at the end of the interpreter, needs the
     * memory more than we need it back. */
    if (self->base != NULL && is_released(self)) {
        munmap(self->base, self->total);
    }
    release(object);
    Py_DECREF(type);
}

int ramet_stack_begin(PyObject *object, struct ramet_launch *launch) {
    Stack *self = (Stack *)object;
    __u64 *flags = &launch->args.flags;
    if (PyType_GetSlot(Py_TYPE(object), Py_tp_dealloc) != (void *)stack_dealloc) {
        PyErr_SetString(PyExc_TypeError, "not a Stack");
        return -1;
    }
    if (!is_released(self)) {
        PyErr_SetString(PyExc_RuntimeError, "a task is running on this stack");
        return -1;
    }
    launch->record = self->record;
    launch->args.stack = (uint64_t)(self->base + self->guard);
    launch->args.stack_size = (uint64_t)((char *)self->record - (self->base + self->guard));

    /* Without CLONE_VM the child has a copy of this stack; with CLONE_VFORK it is
     * done with the stack when the call returns. Otherwise the word tells, which is
     * ours unless the caller has one cleared. A child_tid to be stored but not
     * cleared stays the caller's alone. */
    int lasting = (*flags & CLONE_VM) && !(*flags & CLONE_VFORK);
    self->watch = NULL;
    if (*flags & CLONE_CHILD_CLEARTID) {
        self->watch = (int *)launch->args.child_tid;
    } else if (lasting && !(*flags & CLONE_CHILD_SETTID)) {
        *flags |= CLONE_CHILD_CLEARTID;
        launch->args.child_tid = (uint64_t)&self->record->tid;
        self->watch = &self->record->tid;
    }
    self->record->returned = 0;
    if (lasting && self->watch != NULL) {
        *self->watch = ALIVE;
    }
    self->busy = lasting;
    return lasting;
}

static PyObject *stack_release(Stack *self, PyObject *unused) {
    (void)unused;
    self->busy = 0;
    Py_RETURN_NONE;
}

int ramet_stack_released(PyObject *object) {
    return is_released((Stack *)object);
}

void ramet_stack_end(PyObject *object) {
    ((Stack *)object)->busy = 0;
}

static PyObject *stack_released(Stack *self, PyObject *unused) {
    (void)unused;
    return PyBool_FromLong(is_released(self));
}

static PyObject *stack_value(Stack *self, PyObject *unused) {
    (void)unused;
    if (!__atomic_load_n(&self->record->returned, __ATOMIC_ACQUIRE)) {
        Py_RETURN_NONE;
    }
    return PyLong_FromLong(self->record->value);
}

/* The kernel's wake-up is not FUTEX_PRIVATE, and wakes one waiter (mm_release,
 * kernel/fork.c): so neither is our wait, and whoever is woken wakes the others. */
static long wait_for_zero(int *word, int value, const struct timespec *deadline) {
    return syscall(SYS_futex, word, FUTEX_WAIT_BITSET, value, deadline, NULL,
                   FUTEX_BITSET_MATCH_ANY);
}

/* join(nanoseconds or -1) -> False at the timeout */
static PyObject *stack_join(Stack *self, PyObject *argument) {
    long long timeout = PyLong_AsLongLong(argument);
    if (timeout == -1 && PyErr_Occurred()) {
        return NULL;
    }
    struct timespec deadline = {0};
    if (timeout >= 0) {
        clock_gettime(CLOCK_MONOTONIC, &deadline);
        long long nanoseconds = deadline.tv_nsec + timeout % NANOSECONDS;
        deadline.tv_sec += timeout / NANOSECONDS + nanoseconds / NANOSECONDS;
        deadline.tv_nsec = nanoseconds % NANOSECONDS;
    }
    int *word = self->watch;
    while (!is_released(self)) {
        if (word == NULL) {
            PyErr_SetString(PyExc_RuntimeError, "nothing tells when the task is gone");
            return NULL;
        }
        int value = __atomic_load_n(word, __ATOMIC_ACQUIRE);
        if (value == 0) {
            break;
        }
        long result = 0;
        int error = 0;
        Py_BEGIN_ALLOW_THREADS
            result = wait_for_zero(word, value, timeout >= 0 ? &deadline : NULL);
            error = result < 0 ? errno : 0;
        Py_END_ALLOW_THREADS
        if (error == ETIMEDOUT) {
            return PyBool_FromLong(is_released(self));
        }
        if (error == EINTR) {
            if (PyErr_CheckSignals() < 0) {
                return NULL;
            }
        } else if (error != 0 && error != EAGAIN) {
            errno = error;
            return PyErr_SetFromErrno(PyExc_OSError);
        }
    }
    if (word != NULL) {
        syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    }
    Py_RETURN_TRUE;
}

static PyObject *stack_get_size(Stack *self, void *closure) {
    (void)closure;
    return PyLong_FromSize_t(self->total - self->guard);
}

static PyObject *stack_get_address(Stack *self, void *closure) {
    (void)closure;
    return PyLong_FromVoidPtr(self->base + self->guard);
}

#define METHOD(function) ((PyCFunction)(void (*)(void))(function))

static PyMethodDef stack_methods[] = {
    {"released", METHOD(stack_released), METH_NOARGS, NULL},
    {"release", METHOD(stack_release), METH_NOARGS, NULL},
    {"join", METHOD(stack_join), METH_O, NULL},
    {"value", METHOD(stack_value), METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

#define GETTER(function) ((getter)(void (*)(void))(function))

static PyGetSetDef stack_getset[] = {
    {"size", GETTER(stack_get_size), NULL, NULL, NULL},
    {"address", GETTER(stack_get_address), NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot stack_slots[] = {
    {Py_tp_new, stack_new},
    {Py_tp_dealloc, stack_dealloc},
    {Py_tp_methods, stack_methods},
    {Py_tp_getset, stack_getset},
    {0, NULL},
};

PyType_Spec ramet_stack_spec = {
    .name = "ramet._native.Stack",
    .basicsize = sizeof(Stack),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = stack_slots,
};
