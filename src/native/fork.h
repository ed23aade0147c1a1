/* SPDX-License-Identifier: MIT
 *
 * Which process this is. The pid alone does not say it: pid 1 of a container, and its fork that is
 * pid 1 of a nested namespace, have the same.
 */
#ifndef RAMET_FORK_H
#define RAMET_FORK_H

/* How many of Python's forks lie between the first process that had this module, and this one. */
int ramet_generation(void);

/* In the child, by os.register_at_fork. */
void ramet_next_generation(void);

#endif
