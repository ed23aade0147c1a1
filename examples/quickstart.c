/* What the children of quickstart.py run. */
#include <stdio.h>
#include <unistd.h>

struct count {
    long below;
    long primes;
};

/* Needs nothing but its argument: fit for a child that shares our memory, and for a thread. */
long count_primes(void *argument) {
    struct count *count = argument;
    count->primes = 0;
    for (long n = 2; n < count->below; n++) {
        long divisor = 2;
        while (divisor * divisor <= n && n % divisor != 0) {
            divisor++;
        }
        count->primes += divisor * divisor > n;
    }
    return count->primes % 100;
}

struct place {
    int pid;
    char namespaces[3][64];
};

/* Calls the C library: for a child with a copy of our memory. The argument is shared. */
long look_around(void *argument) {
    static const char *const names[] = {"user", "pid", "uts"};
    struct place *place = argument;
    place->pid = getpid();
    for (int i = 0; i < 3; i++) {
        char path[64];
        snprintf(path, sizeof path, "/proc/self/ns/%s", names[i]);
        if (readlink(path, place->namespaces[i], sizeof place->namespaces[i] - 1) < 0) {
            return 1;
        }
    }
    return 0;
}
