/* SPDX-License-Identifier: MIT
 *
 * A program: a straight list of system calls for a child. Compiled in Python
 * (src/ramet/_program.py), which lays out these structures.
 */
#ifndef RAMET_PROGRAM_H
#define RAMET_PROGRAM_H

#include <stdint.h>

#define RAMET_MOST_STEPS 65536
#define RAMET_MOST_RESULTS 256
#define RAMET_ARGUMENTS 6

/* Where the caller's signal mask is restored: before the first attempt to exec. */
#define RAMET_STEP_UNBLOCKS 1
/* A result other than the expected one is a failure. */
#define RAMET_STEP_EXPECTS 2
/* If it fails the next step is tried instead. When the last of them fails, the first failure counts
 * that was not for want of a file (ENOENT, ENOTDIR): as execvp(3) has it. */
#define RAMET_STEP_OR_NEXT 4

struct ramet_step {
    int64_t number;
    uint64_t args[RAMET_ARGUMENTS];
    uint32_t from_results; /* bit i: args[i] is the slot of an earlier result, which is meant */
    uint32_t to_results;   /* bit i: args[i] is such a slot, whose address is meant */
    uint32_t flags;
    uint32_t slot; /* where the result is kept for later steps; 0: nowhere */
    int64_t expected;
    uint64_t tolerated[3]; /* bit n: errno n is no failure */
};

/* The memory has to be held undumpable: see dumpable.h. */
#define RAMET_PROGRAM_CHANGES_CREDENTIALS 1

struct ramet_program {
    uint64_t count;
    uint64_t flags;
    struct ramet_step steps[];
};

struct ramet_record;

/* For fn of a launch record: runs the record's program. The value is the exit status,
 * RAMET_FAILED if a step failed, which the record then tells of. */
long ramet_run_program(void *argument);

#define RAMET_FAILED 127

#endif
