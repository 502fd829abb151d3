/* A file server that does not answer, for tests: calls on files below a directory wait while a flag file is there.
 *
 * Loaded by LD_PRELOAD. SLOW_FILES_DIRECTORY is the directory and SLOW_FILES_FLAG the flag file, both by their absolute
 * paths; the flag must not lie below the directory. A flag with the name of a host after a dot ("flag.gpu001") is for
 * the processes of that host only. Each call that waits adds a line to the file with ".log" after the flag's name:
 * host, process, call and path.
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int there(const char *path) { return syscall(SYS_faccessat, AT_FDCWD, path, F_OK, 0) == 0; }

static int flagged(const char *flag, const char *host) {
    char own[PATH_MAX];
    snprintf(own, sizeof own, "%s.%s", flag, host);
    return there(flag) || there(own);
}

static void note(const char *flag, const char *host, const char *call, const char *path) {
    char log[PATH_MAX], line[2 * PATH_MAX];
    snprintf(log, sizeof log, "%s.log", flag);
    int length = snprintf(line, sizeof line, "%s %d %s %s\n", host, (int)getpid(), call, path);
    int descriptor = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
    if (descriptor >= 0) {
        syscall(SYS_write, descriptor, line, (size_t)length);
        syscall(SYS_close, descriptor);
    }
}

/* Wait while a file below the directory does not answer. */
static void await(const char *call, const char *path) {
    const char *directory = getenv("SLOW_FILES_DIRECTORY"), *flag = getenv("SLOW_FILES_FLAG");
    if (directory == NULL || flag == NULL)
        return;
    size_t length = strlen(directory);
    if (strncmp(path, directory, length) != 0 || (path[length] != '/' && path[length] != '\0'))
        return;
    int before = errno;
    char host[256] = "";
    gethostname(host, sizeof host - 1);
    host[strcspn(host, ".")] = '\0';
    if (flagged(flag, host)) {
        note(flag, host, call, path);
        while (flagged(flag, host)) {
            struct timespec pause = {0, 20 * 1000 * 1000};
            nanosleep(&pause, NULL);
        }
    }
    errno = before;
}

static void await_descriptor(const char *call, int descriptor) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    if (length > 0) {
        path[length] = '\0';
        await(call, path);
    }
}

static void await_at(const char *call, int directory, const char *path) {
    char whole[2 * PATH_MAX], base[PATH_MAX], link[64];
    if (path == NULL)
        return;
    if (path[0] == '/') {
        await(call, path);
        return;
    }
    if (directory == AT_FDCWD)
        snprintf(link, sizeof link, "/proc/self/cwd");
    else
        snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, base, sizeof base - 1);
    if (length <= 0)
        return;
    base[length] = '\0';
    snprintf(whole, sizeof whole, path[0] ? "%s/%s" : "%s", base, path);
    await(call, whole);
}

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { \
        va_list more; \
        va_start(more, flags); \
        mode = va_arg(more, mode_t); \
        va_end(more); \
    }

int open(const char *path, int flags, ...) {
    MODE(flags)
    await_at("open", AT_FDCWD, path);
    return NEXT(open)(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    MODE(flags)
    await_at("open", AT_FDCWD, path);
    return NEXT(open64)(path, flags, mode);
}

int openat(int directory, const char *path, int flags, ...) {
    MODE(flags)
    await_at("openat", directory, path);
    return NEXT(openat)(directory, path, flags, mode);
}

int openat64(int directory, const char *path, int flags, ...) {
    MODE(flags)
    await_at("openat", directory, path);
    return NEXT(openat64)(directory, path, flags, mode);
}

DIR *opendir(const char *path) {
    await_at("opendir", AT_FDCWD, path);
    return NEXT(opendir)(path);
}

int mkdir(const char *path, mode_t mode) {
    await_at("mkdir", AT_FDCWD, path);
    return NEXT(mkdir)(path, mode);
}

int mkdirat(int directory, const char *path, mode_t mode) {
    await_at("mkdirat", directory, path);
    return NEXT(mkdirat)(directory, path, mode);
}

int rename(const char *from, const char *to) {
    await_at("rename", AT_FDCWD, to);
    return NEXT(rename)(from, to);
}

int renameat(int from_directory, const char *from, int directory, const char *to) {
    await_at("renameat", directory, to);
    return NEXT(renameat)(from_directory, from, directory, to);
}

int link(const char *from, const char *to) {
    await_at("link", AT_FDCWD, to);
    return NEXT(link)(from, to);
}

int linkat(int from_directory, const char *from, int directory, const char *to, int flags) {
    await_at("linkat", directory, to);
    return NEXT(linkat)(from_directory, from, directory, to, flags);
}

int symlink(const char *target, const char *path) {
    await_at("symlink", AT_FDCWD, path);
    return NEXT(symlink)(target, path);
}

int symlinkat(const char *target, int directory, const char *path) {
    await_at("symlinkat", directory, path);
    return NEXT(symlinkat)(target, directory, path);
}

int unlink(const char *path) {
    await_at("unlink", AT_FDCWD, path);
    return NEXT(unlink)(path);
}

int unlinkat(int directory, const char *path, int flags) {
    await_at("unlinkat", directory, path);
    return NEXT(unlinkat)(directory, path, flags);
}

int stat(const char *restrict path, struct stat *restrict found) {
    await_at("stat", AT_FDCWD, path);
    return NEXT(stat)(path, found);
}

int stat64(const char *restrict path, struct stat64 *restrict found) {
    await_at("stat", AT_FDCWD, path);
    return NEXT(stat64)(path, found);
}

int lstat(const char *restrict path, struct stat *restrict found) {
    await_at("lstat", AT_FDCWD, path);
    return NEXT(lstat)(path, found);
}

int lstat64(const char *restrict path, struct stat64 *restrict found) {
    await_at("lstat", AT_FDCWD, path);
    return NEXT(lstat64)(path, found);
}

int fstatat(int directory, const char *restrict path, struct stat *restrict found, int flags) {
    await_at("fstatat", directory, path);
    return NEXT(fstatat)(directory, path, found, flags);
}

int fstatat64(int directory, const char *restrict path, struct stat64 *restrict found, int flags) {
    await_at("fstatat", directory, path);
    return NEXT(fstatat64)(directory, path, found, flags);
}

int statvfs(const char *restrict path, struct statvfs *restrict found) {
    await_at("statvfs", AT_FDCWD, path);
    return NEXT(statvfs)(path, found);
}

int access(const char *path, int mode) {
    await_at("access", AT_FDCWD, path);
    return NEXT(access)(path, mode);
}

ssize_t write(int descriptor, const void *data, size_t size) {
    await_descriptor("write", descriptor);
    return NEXT(write)(descriptor, data, size);
}

ssize_t read(int descriptor, void *data, size_t size) {
    await_descriptor("read", descriptor);
    return NEXT(read)(descriptor, data, size);
}

ssize_t pread64(int descriptor, void *data, size_t size, off64_t offset) {
    await_descriptor("pread", descriptor);
    return NEXT(pread64)(descriptor, data, size, offset);
}
