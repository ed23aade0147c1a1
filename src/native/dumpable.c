/* SPDX-License-Identifier: MIT */
#include "dumpable.h"

#include <pthread.h>
#include <sys/prctl.h>

/* The kernel has one such flag for a process, whatever interpreters and threads are in it; so
 * there is one count of those who hold it. */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static int holders;
static int before;

void ramet_dumpable_hold(void) {
    pthread_mutex_lock(&mutex);
    if (holders++ == 0) {
        before = prctl(PR_GET_DUMPABLE);
    }
    pthread_mutex_unlock(&mutex);
}

/* 2 (readable by root only) cannot be set by prctl; it needs not be, since from there credentials
 * lead to 0 or 2 only. */
static void restore(void) {
    if (before == 1 && prctl(PR_GET_DUMPABLE) != 1) {
        prctl(PR_SET_DUMPABLE, 1);
    }
}

void ramet_dumpable_release(void) {
    pthread_mutex_lock(&mutex);
    if (--holders == 0) {
        restore();
    }
    pthread_mutex_unlock(&mutex);
}

void ramet_dumpable_after_fork(void) {
    mutex = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    if (holders > 0) {
        holders = 0;
        restore();
    }
}
