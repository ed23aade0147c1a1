/* SPDX-License-Identifier: MIT
 *
 * What ramet-init tells: records that it writes to the descriptor of its first argument.
 */
#ifndef RAMET_INIT_H
#define RAMET_INIT_H

#include <stdint.h>

enum {
    RAMET_INIT_ENDED = 1,  /* the program: value is its wait status */
    RAMET_INIT_FAILED = 2, /* it could not be started: value is an errno */
    RAMET_INIT_REAPED = 3, /* another process that was its child: value is a wait status */
};

struct ramet_init_record {
    int64_t kind;
    int64_t value;
    int64_t pid;        /* in its pid namespace */
    int64_t rusage[18]; /* struct rusage, of the process and of what it has waited for */
};

#endif
