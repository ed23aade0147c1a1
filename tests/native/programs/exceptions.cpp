// Throws an exception in a function in the child, which shares nothing with this program.
#include <ramet.h>

#include <csignal>
#include <cstdio>
#include <cstring>
#include <sys/resource.h>
#include <sys/wait.h>

namespace {

alignas(16) char stack[1 << 20];

long caught(void *arg) {
    try {
        throw *static_cast<int *>(arg);
    } catch (int value) {
        return value;
    }
}

long uncaught(void *arg) {
    throw *static_cast<int *>(arg);
}

} // namespace

int main(int argc, char **argv) {
    const rlimit no_core = {0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    int value = 42;
    bool is_caught = argc > 1 && std::strcmp(argv[1], "caught") == 0;
    long pid;
    try {
        pid = ramet_clone(is_caught ? caught : uncaught, &value, SIGCHLD, stack + sizeof stack - 3,
                          nullptr, nullptr, nullptr);
    } catch (...) {
        return 1; // in the child: it has unwound into this frame
    }
    int status;
    if (pid < 0 || waitpid(static_cast<pid_t>(pid), &status, 0) != pid) {
        return 2;
    }
    if (WIFSIGNALED(status)) {
        std::printf("signal %d\n", WTERMSIG(status));
    } else {
        std::printf("exit status %d\n", WEXITSTATUS(status));
    }
    return 0;
}
