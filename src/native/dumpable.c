/* SPDX-License-Identifier: MIT */
#include "dumpable.h"

#include <linux/capability.h>
#include <pthread.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The kernel has one such flag for a process, whatever interpreters and threads are in it; so
 * there is one count of those who hold it. */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static int holders;
static int before;

/* What the process may do, as far as commit_creds looks at it. */
struct credentials {
    uid_t euid;
    gid_t egid;
    long fsuid;
    long fsgid;
    struct __user_cap_data_struct capabilities[_LINUX_CAPABILITY_U32S_3];
};
static struct credentials before_credentials;

static struct credentials credentials(void) {
    struct credentials now;
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    memset(&now, 0, sizeof now); /* it is compared whole */
    now.euid = geteuid();
    now.egid = getegid();
    now.fsuid = syscall(SYS_setfsuid, -1); /* changes nothing, and tells (setfsuid(2)) */
    now.fsgid = syscall(SYS_setfsgid, -1);
    syscall(SYS_capget, &header, now.capabilities);
    return now;
}

void ramet_dumpable_hold(void) {
    pthread_mutex_lock(&mutex);
    if (holders++ == 0) {
        before = prctl(PR_GET_DUMPABLE);
        before_credentials = credentials();
    }
    pthread_mutex_unlock(&mutex);
}

/* 2 (readable by root only) cannot be set by prctl; it needs not be, since from there credentials
 * lead to 0 or 2 only. And if the process has changed its own meanwhile, that was what has made it
 * undumpable, which is to stay. */
static void restore(void) {
    struct credentials now = credentials();
    if (before == 1 && prctl(PR_GET_DUMPABLE) != 1 &&
        memcmp(&now, &before_credentials, sizeof now) == 0) {
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
