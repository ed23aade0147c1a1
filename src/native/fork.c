/* SPDX-License-Identifier: MIT */
#include "fork.h"

/* Of the process, whatever interpreters are in it. */
static int generation;

int ramet_generation(void) {
    return __atomic_load_n(&generation, __ATOMIC_RELAXED);
}

void ramet_next_generation(void) {
    __atomic_add_fetch(&generation, 1, __ATOMIC_RELAXED);
}
