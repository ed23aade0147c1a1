/* SPDX-License-Identifier: MIT
 *
 * What goes between a zygote, its children and the process that they are children of: messages of
 * SEQPACKET sockets, which are laid out in Python (src/ramet/_nursery.py, src/ramet/_zygote.py).
 *
 * The zygote is asked for a child by an order, with one end of a pair of sockets, and tells the pid
 * (with the pidfd) or -errno. The child waits for its work at that socket; if the other end
 * is closed instead, it ends. So it may be born before there is any work for it. The pid of the
 * last birth is also in a file that both sides have, at 0, as a pid_t: so it is known even
 * if the zygote is killed before it tells it.
 */
#ifndef RAMET_ZYGOTE_H
#define RAMET_ZYGOTE_H

#include <stdint.h>

#define RAMET_LONGEST_WORK 65536
#define RAMET_MOST_DESCRIPTORS 64

/* The socket comes along, and the directory of a cgroup if flags have INTO_CGROUP. */
struct ramet_order {
    uint64_t flags; /* of clone3, beside PARENT and PIDFD */
    uint64_t use_clone;
    uint64_t ahead; /* there is no work for it yet */
};

/* Behind it lie the numbers (int64_t), the places in the image that hold an offset in it and are to
 * hold an address (uint64_t), the image, and what is left to Python. Each has a length that
 * is a multiple of 8 bytes. Descriptors come along: first those that are kept for Python, under
 * whatever number; then one for each of the numbers, which it gets in the child. */
struct ramet_work {
    uint64_t kept;
    uint64_t numbers;
    uint64_t relocations;
    uint64_t image; /* bytes of a struct ramet_program and what it points to; 0: there is none */
};

#endif
