/* Fails the n-th call of a name about files of one folder. Preloaded (LD_PRELOAD) under a Python process, which arms it with
 * ctypes; Linux, glibc. A call counts when it names a path in the folder, or a descriptor opened there. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#define SHORT (-1) /* do half of what was asked for */
#define MAX_FD 65536
#define MAX_CALLS 65536

static char folder[4096], failing[32];
static atomic_long calls, matching, target;
static atomic_int fault;
static atomic_char watched[MAX_FD];
static const char *names[MAX_CALLS];

/* From now on, count calls about files in the folder `path`; fail the n-th call of this name (0: none). */
void fault_arm(const char *path, const char *name, long n, int kind)
{
    snprintf(failing, sizeof failing, "%s", name);
    snprintf(folder, sizeof folder, "%s", path);
    fault = kind;
    target = n;
    calls = matching = 0;
}

long fault_calls(void) { return calls; }

/* The name of call `n`, counted from 1, since the shim was armed. */
const char *fault_name(long n) { return n > 0 && n <= calls && n <= MAX_CALLS ? names[n - 1] : ""; }

/* Count a call; the errno that it is to fail with, SHORT, or 0. */
static int next(const char *name)
{
    if (!folder[0])
        return 0;
    long n = atomic_fetch_add(&calls, 1);
    if (n < MAX_CALLS)
        names[n] = name;
    return !strcmp(name, failing) && atomic_fetch_add(&matching, 1) + 1 == target ? fault : 0;
}

static int in_folder(const char *path)
{
    size_t n = strlen(folder);
    return n && path && !strncmp(path, folder, n);
}

static int of_fd(int fd) { return fd >= 0 && fd < MAX_FD && watched[fd]; }

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)
#define FAIL(which, name) do { int kind_ = (which) ? next(name) : 0; if (kind_ > 0) { errno = kind_; return -1; } } while (0)

#define OPEN(name) \
    int name(const char *path, int flags, ...) \
    { \
        REAL(name); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = va_arg(rest, mode_t); \
        va_end(rest); \
        int here = in_folder(path); \
        FAIL(here, flags & O_CREAT ? "create" : "open"); \
        int fd = real(path, flags, mode); \
        if (fd >= 0 && fd < MAX_FD) \
            watched[fd] = here; \
        return fd; \
    }
OPEN(open)
OPEN(open64)

#define TRANSFER(name, pointer) \
    ssize_t name(int fd, pointer data, size_t n) \
    { \
        REAL(name); \
        int kind = of_fd(fd) ? next(#name) : 0; \
        if (kind > 0) { errno = kind; return -1; } \
        return real(fd, data, kind == SHORT && n > 1 ? n / 2 : n); \
    }
TRANSFER(read, void *)
TRANSFER(write, const void *)

#define TRANSFER_AT(name, pointer, offset) \
    ssize_t name(int fd, pointer data, size_t n, offset at) \
    { \
        REAL(name); \
        int kind = of_fd(fd) ? next(#name) : 0; \
        if (kind > 0) { errno = kind; return -1; } \
        return real(fd, data, kind == SHORT && n > 1 ? n / 2 : n, at); \
    }
TRANSFER_AT(pread, void *, off_t)
TRANSFER_AT(pread64, void *, off64_t)
TRANSFER_AT(pwrite, const void *, off_t)
TRANSFER_AT(pwrite64, const void *, off64_t)

int close(int fd)
{
    REAL(close);
    int here = of_fd(fd);
    if (here)
        watched[fd] = 0;
    int result = real(fd); /* the descriptor is gone even where the call fails */
    FAIL(here, "close");
    return result;
}

#define ON_FD(name, parameters, ...) int name parameters { REAL(name); FAIL(of_fd(fd), #name); return real(__VA_ARGS__); }
ON_FD(fsync, (int fd), fd)
ON_FD(ftruncate, (int fd, off_t size), fd, size)
ON_FD(ftruncate64, (int fd, off64_t size), fd, size)
ON_FD(fallocate, (int fd, int mode, off_t at, off_t size), fd, mode, at, size)
ON_FD(fstat, (int fd, struct stat *into), fd, into)
ON_FD(fstat64, (int fd, struct stat64 *into), fd, into)

#define ON_PATH(name, parameters, ...) int name parameters { REAL(name); FAIL(in_folder(path), #name); return real(__VA_ARGS__); }
ON_PATH(rename, (const char *path, const char *to), path, to)
ON_PATH(unlink, (const char *path), path)
ON_PATH(stat, (const char *path, struct stat *into), path, into)
ON_PATH(stat64, (const char *path, struct stat64 *into), path, into)
ON_PATH(lstat, (const char *path, struct stat *into), path, into)
ON_PATH(lstat64, (const char *path, struct stat64 *into), path, into)
