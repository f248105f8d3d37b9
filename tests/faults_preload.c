/* What fails at a chosen call below Python: FFmpeg's writes, safetensors', and all that Python does itself. Loaded with
   LD_PRELOAD; counts the calls that touch a file below a folder, once `mav_faults_arm` has been called. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX];
static long calls, at;
static int fault; /* an errno; 0 counts alone; -1 kills; -2 writes half */

long mav_faults_arm(const char *below, int kind, long number) {
    strncpy(folder, below, sizeof folder - 1);
    calls = 0, at = number, fault = kind;
    return 0;
}

long mav_faults_calls(void) { return calls; }

static int below(int fd) {
    char link[64], path[PATH_MAX];
    if (!folder[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return !strncmp(path, folder, strlen(folder));
}

/* 0: go on; 1: fail with errno; 2: write half */
static int cut(void) {
    if (++calls != at || !fault) return 0;
    if (fault == -1) kill(getpid(), SIGKILL);
    if (fault == -2) return 2;
    errno = fault;
    return 1;
}

#define REAL(name, type) static __typeof__(type) *real; if (!real) real = (__typeof__(type) *)dlsym(RTLD_NEXT, name)

ssize_t write(int fd, const void *data, size_t size) {
    REAL("write", ssize_t (int, const void *, size_t));
    if (below(fd)) {
        int how = cut();
        if (how == 1) return -1;
        if (how == 2 && size > 1) return real(fd, data, size / 2);
    }
    return real(fd, data, size);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off_t offset) {
    REAL("pwrite64", ssize_t (int, const void *, size_t, off_t));
    if (below(fd)) {
        int how = cut();
        if (how == 1) return -1;
        if (how == 2 && size > 1) return real(fd, data, size / 2, offset);
    }
    return real(fd, data, size, offset);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return pwrite64(fd, data, size, offset); }

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL("writev", ssize_t (int, const struct iovec *, int));
    if (below(fd) && cut() == 1) return -1;
    return real(fd, parts, count);
}

int ftruncate64(int fd, off_t size) {
    REAL("ftruncate64", int (int, off_t));
    return below(fd) && cut() == 1 ? -1 : real(fd, size);
}

int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

int fallocate64(int fd, int mode, off_t offset, off_t size) {
    REAL("fallocate64", int (int, int, off_t, off_t));
    return below(fd) && cut() == 1 ? -1 : real(fd, mode, offset, size);
}

int posix_fallocate64(int fd, off_t offset, off_t size) {
    REAL("posix_fallocate64", int (int, off_t, off_t));
    return below(fd) && cut() == 1 ? errno : real(fd, offset, size);
}

int fsync(int fd) {
    REAL("fsync", int (int));
    return below(fd) && cut() == 1 ? -1 : real(fd);
}

int fdatasync(int fd) {
    REAL("fdatasync", int (int));
    return below(fd) && cut() == 1 ? -1 : real(fd);
}

int rename(const char *from, const char *to) {
    REAL("rename", int (const char *, const char *));
    return folder[0] && !strncmp(to, folder, strlen(folder)) && cut() == 1 ? -1 : real(from, to);
}

int link(const char *from, const char *to) {
    REAL("link", int (const char *, const char *));
    return folder[0] && !strncmp(to, folder, strlen(folder)) && cut() == 1 ? -1 : real(from, to);
}
