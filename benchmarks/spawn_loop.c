/* The peer of ramet.spawn in C: posix_spawn of /bin/true, and wait, n times. */
#include <spawn.h>
#include <stddef.h>
#include <sys/wait.h>

extern char **environ;

int posix_spawn_loop(int n) {
    char *args[] = {"true", NULL};
    for (int i = 0; i < n; i++) {
        pid_t pid = 0;
        if (posix_spawn(&pid, "/bin/true", NULL, NULL, args, environ) != 0 ||
            waitpid(pid, NULL, 0) != pid) {
            return -1;
        }
    }
    return 0;
}
