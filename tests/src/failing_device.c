// Preloaded into a program: while the file JANUS_FAILING_SWITCH is there, JANUS_FAILING_CALL (read or sync) on a file whose
// path has JANUS_FAILING_FILE in it ends with EIO, as on a device that fails.
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int fails(const char *call, int fd) {
    const char *wanted = getenv("JANUS_FAILING_CALL");
    const char *file = getenv("JANUS_FAILING_FILE");
    const char *on = getenv("JANUS_FAILING_SWITCH");
    char link[64], path[4096];
    int kept = errno, hit = 0;
    if (wanted && file && on && strcmp(wanted, call) == 0 && access(on, F_OK) == 0) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(link, path, sizeof path - 1);
        if (length > 0) {
            path[length] = 0;
            hit = strstr(path, file) != NULL;
        }
    }
    errno = hit ? EIO : kept;
    return hit;
}

ssize_t read(int fd, void *buffer, size_t count) {
    return fails("read", fd) ? -1 : syscall(SYS_read, fd, buffer, count);
}

ssize_t pread64(int fd, void *buffer, size_t count, off64_t offset) {
    return fails("read", fd) ? -1 : syscall(SYS_pread64, fd, buffer, count, offset);
}

int fsync(int fd) {
    return fails("sync", fd) ? -1 : (int)syscall(SYS_fsync, fd);
}

int fdatasync(int fd) {
    return fails("sync", fd) ? -1 : (int)syscall(SYS_fdatasync, fd);
}
