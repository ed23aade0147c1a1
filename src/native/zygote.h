/* SPDX-License-Identifier: MIT
 *
 * What a zygote is asked for, in one message of a SEQPACKET socket. It is laid out in Python
 * (src/ramet/_zygote.py).
 */
#ifndef RAMET_ZYGOTE_H
#define RAMET_ZYGOTE_H

#include <stdint.h>

#define RAMET_LONGEST_REQUEST 65536
#define RAMET_MOST_DESCRIPTORS 64

/* Behind it lie the numbers (int64_t), the places in the image that hold an offset in it and are to
 * hold an address (uint64_t), the image, and what is left to Python. Each has a length that
 * is a multiple of 8 bytes. Descriptors come along: first those that are kept for Python, under
 * whatever number; then one for each of the numbers, which it gets in the child; then
 * the directory of the cgroup. */
struct ramet_request {
    uint64_t flags; /* of clone3, beside PARENT and PIDFD */
    uint64_t use_clone;
    uint64_t has_cgroup;
    uint64_t kept;
    uint64_t numbers;
    uint64_t relocations;
    uint64_t image; /* bytes of a struct ramet_program and what it points to; 0: there is none */
};

#endif
