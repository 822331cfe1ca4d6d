// Counts a program's calls on files below $FAULTS_BELOW. At call number $FAULTS_AT it kills the program, or, with $FAULTS_ERRNO, fails
// that call and with $FAULTS_STAYS=1 every later one that takes room. $FAULTS_COUNT names a file that gets the number of calls.
//
// Preloaded (LD_PRELOAD) before the C library, whose functions Rust's standard library calls.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static const char *below;
static long at, code, stays;
static long calls;

static long number(const char *name) {
    const char *text = getenv(name);
    return text ? atol(text) : 0;
}

__attribute__((constructor)) static void start(void) {
    below = getenv("FAULTS_BELOW");
    at = number("FAULTS_AT");
    code = number("FAULTS_ERRNO");
    stays = number("FAULTS_STAYS");
}

__attribute__((destructor)) static void end(void) {
    const char *path = getenv("FAULTS_COUNT");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (file) {
        fprintf(file, "%ld\n", __atomic_load_n(&calls, __ATOMIC_SEQ_CST));
        fclose(file);
    }
}

static int is_below(const char *path) { return below && path && strncmp(path, below, strlen(below)) == 0; }

static int is_below_at(int dir, const char *path) {
    char from[PATH_MAX], link[64];
    if (!below || !path) return 0;
    if (path[0] == '/') return is_below(path);
    if (dir == AT_FDCWD) {
        if (!getcwd(from, sizeof from)) return 0;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
        ssize_t n = readlink(link, from, sizeof from - 1);
        if (n < 0) return 0;
        from[n] = 0;
    }
    size_t n = strlen(from);
    snprintf(from + n, sizeof from - n, "/%s", path);
    return is_below(from);
}

static int fd_is_below(int fd) {
    char path[PATH_MAX], link[64];
    if (!below || fd < 3) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return is_below(path);
}

// Whether this call fails; `grows` says that it takes room on the disk.
static int fails(int ours, int grows) {
    if (!ours) return 0;
    long n = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
    if (!at || n < at) return 0;
    if (!code) raise(SIGKILL);
    if (n == at ? (grows || code != ENOSPC) : (stays && grows)) {
        errno = (int)code;
        return 1;
    }
    return 0;
}

#define REAL(result, name, types) \
    static result(*real) types;   \
    if (!real) real = (result(*) types)dlsym(RTLD_NEXT, #name)

#define OPEN(name)                                                    \
    int name(const char *path, int flags, ...) {                      \
        REAL(int, name, (const char *, int, ...));                    \
        va_list rest;                                                 \
        va_start(rest, flags);                                        \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                 \
        if (fails(is_below_at(AT_FDCWD, path), flags & O_CREAT)) return -1; \
        return real(path, flags, mode);                               \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                  \
    int name(int dir, const char *path, int flags, ...) {             \
        REAL(int, name, (int, const char *, int, ...));               \
        va_list rest;                                                 \
        va_start(rest, flags);                                        \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                 \
        if (fails(is_below_at(dir, path), flags & O_CREAT)) return -1; \
        return real(dir, path, flags, mode);                          \
    }
OPENAT(openat)
OPENAT(openat64)

ssize_t read(int fd, void *to, size_t n) {
    REAL(ssize_t, read, (int, void *, size_t));
    return fails(fd_is_below(fd), 0) ? -1 : real(fd, to, n);
}

ssize_t write(int fd, const void *from, size_t n) {
    REAL(ssize_t, write, (int, const void *, size_t));
    return fails(fd_is_below(fd), 1) ? -1 : real(fd, from, n);
}

ssize_t writev(int fd, const struct iovec *parts, int n) {
    REAL(ssize_t, writev, (int, const struct iovec *, int));
    return fails(fd_is_below(fd), 1) ? -1 : real(fd, parts, n);
}

ssize_t copy_file_range(int from, off64_t *a, int to, off64_t *b, size_t n, unsigned flags) {
    REAL(ssize_t, copy_file_range, (int, off64_t *, int, off64_t *, size_t, unsigned));
    return fails(fd_is_below(to), 1) ? -1 : real(from, a, to, b, n, flags);
}

#define ON_FD(name, grows, types, ...)                      \
    int name types {                                        \
        REAL(int, name, types);                             \
        return fails(fd_is_below(fd), grows) ? -1 : real(__VA_ARGS__); \
    }
ON_FD(fsync, 0, (int fd), fd)
ON_FD(fdatasync, 0, (int fd), fd)
ON_FD(ftruncate, 0, (int fd, off_t n), fd, n)
ON_FD(ftruncate64, 0, (int fd, off64_t n), fd, n)
ON_FD(fallocate, 1, (int fd, int how, off_t from, off_t n), fd, how, from, n)
ON_FD(fallocate64, 1, (int fd, int how, off64_t from, off64_t n), fd, how, from, n)

// These two return the error instead of setting it.
#define RESERVE(name, type)                                 \
    int name(int fd, type from, type n) {                   \
        REAL(int, name, (int, type, type));                 \
        return fails(fd_is_below(fd), 1) ? (int)code : real(fd, from, n); \
    }
RESERVE(posix_fallocate, off_t)
RESERVE(posix_fallocate64, off64_t)

#define ON_PATH(name, grows, types, ...)                    \
    int name types {                                        \
        REAL(int, name, types);                             \
        return fails(is_below_at(AT_FDCWD, path), grows) ? -1 : real(__VA_ARGS__); \
    }
ON_PATH(rename, 0, (const char *from, const char *path), from, path)
ON_PATH(mkdir, 1, (const char *path, mode_t mode), path, mode)
ON_PATH(rmdir, 0, (const char *path), path)
ON_PATH(unlink, 0, (const char *path), path)

int unlinkat(int dir, const char *path, int flags) {
    REAL(int, unlinkat, (int, const char *, int));
    return fails(is_below_at(dir, path), 0) ? -1 : real(dir, path, flags);
}
