/* Preloaded into a program: records every change that it and its children make to files below a folder, in one order.

   POWER_CUT_FOLDER is that folder, POWER_CUT_LOG a file of a fixed size that all processes map into their memory: the
   offset of its end, a lock, and from LOG_START on the records. Each change is made and recorded under the lock, which
   survives the death of its holder. A flush is recorded and not made: the disk of a test is the one that is replayed.

   What is not recorded here, such as a change through a memory map, is found when the recording is compared with the
   files at its end. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define LOG_START 4096
#define REAL(name)                                                                                                     \
    ({                                                                                                                 \
        static __typeof__(&name) real;                                                                                 \
        if (!real)                                                                                                     \
            real = (__typeof__(&name))dlsym(RTLD_NEXT, #name);                                                         \
        real;                                                                                                          \
    })

enum kind { CREATE = 1, WRITE, TRUNCATE, FLUSH, FLUSH_FOLDER, RENAME, UNLINK, MAKE_FOLDER };

struct log {
    uint64_t end;
    pthread_mutex_t lock;
};

struct record {
    uint32_t kind, path_length;
    uint64_t inode, offset, data_length;
};

static struct log *shared;
static uint64_t log_size;
static char folder[PATH_MAX];

static void fail(const char *reason)
{
    dprintf(STDERR_FILENO, "power_cut: %s\n", reason);
    abort();
}

__attribute__((constructor)) static void attach(void)
{
    const char *path = getenv("POWER_CUT_LOG"), *root = getenv("POWER_CUT_FOLDER");
    if (!path || !root)
        return;
    struct stat status;
    int fd = REAL(openat)(AT_FDCWD, path, O_RDWR | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) < 0)
        fail("the log cannot be opened");
    log_size = status.st_size;
    struct log *map = mmap(NULL, log_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (map == MAP_FAILED)
        fail("the log cannot be mapped");
    close(fd);
    if (map->end == 0) { /* the first process, before it has children */
        pthread_mutexattr_t attributes;
        pthread_mutexattr_init(&attributes);
        pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
        pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
        pthread_mutex_init(&map->lock, &attributes);
        map->end = LOG_START;
    }
    snprintf(folder, sizeof folder, "%s", root);
    shared = map;
}

static void begin(void)
{
    if (pthread_mutex_lock(&shared->lock) == EOWNERDEAD)
        pthread_mutex_consistent(&shared->lock);
}

static void end(void)
{
    pthread_mutex_unlock(&shared->lock);
}

static int is_below(const char *path)
{
    size_t length = strlen(folder);
    return strncmp(path, folder, length) == 0 && (path[length] == '/' || path[length] == '\0');
}

/* Whether a change of this file is recorded; its path. */
static int is_recorded(int fd, char *path)
{
    char link[64];
    if (!shared)
        return 0;
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    errno = saved;
    if (length < 0)
        return 0;
    path[length] = '\0';
    return is_below(path);
}

static int is_recorded_name(const char *path, char *full)
{
    if (!shared)
        return 0;
    if (path[0] == '/') {
        snprintf(full, PATH_MAX, "%s", path);
    } else {
        char current[PATH_MAX];
        if (!getcwd(current, sizeof current) || strlen(current) + strlen(path) + 2 > PATH_MAX)
            return 0;
        strcat(strcat(strcpy(full, current), "/"), path);
    }
    return is_below(full);
}

static const char *relative(const char *path)
{
    path += strlen(folder);
    return *path == '/' ? path + 1 : path;
}

static void append(const void *data, uint64_t length)
{
    if (length)
        memcpy((char *)shared + shared->end, data, length);
    shared->end += length;
}

static void record(enum kind kind, const char *path, uint64_t inode, uint64_t offset, const void *data, uint64_t length)
{
    path = relative(path);
    struct record record = {kind, strlen(path), inode, offset, length};
    uint64_t start = shared->end;
    if (start + sizeof record + record.path_length + length > log_size)
        fail("the log is full");
    append(&record, sizeof record);
    append(path, record.path_length);
    append(data, length);
}

static void record_file(enum kind kind, int fd, const char *path, uint64_t offset, const void *data, uint64_t length)
{
    struct stat status;
    if (fstat(fd, &status) == 0 && (S_ISREG(status.st_mode) || kind == FLUSH_FOLDER))
        record(kind, path, status.st_ino, offset, data, length);
}

static int open_recorded(int at, const char *path, int flags, mode_t mode)
{
    if (!shared || !(flags & (O_CREAT | O_TRUNC)))
        return REAL(openat)(at, path, flags, mode);
    char full[PATH_MAX];
    begin();
    int fd = REAL(openat)(at, path, flags, mode);
    if (fd >= 0 && is_recorded(fd, full))
        record_file(CREATE, fd, full, (flags & O_TRUNC) != 0, NULL, 0);
    end();
    return fd;
}

#define MODE(flags)                                                                                                    \
    ({                                                                                                                 \
        mode_t mode = 0;                                                                                               \
        if ((flags) & (O_CREAT | __O_TMPFILE)) {                                                                       \
            va_list more;                                                                                              \
            va_start(more, flags);                                                                                     \
            mode = va_arg(more, mode_t);                                                                               \
            va_end(more);                                                                                              \
        }                                                                                                              \
        mode;                                                                                                          \
    })

int open(const char *path, int flags, ...)
{
    return open_recorded(AT_FDCWD, path, flags, MODE(flags));
}

int open64(const char *path, int flags, ...)
{
    return open_recorded(AT_FDCWD, path, flags, MODE(flags));
}

int openat(int at, const char *path, int flags, ...)
{
    return open_recorded(at, path, flags, MODE(flags));
}

int openat64(int at, const char *path, int flags, ...)
{
    return open_recorded(at, path, flags, MODE(flags));
}

ssize_t write(int fd, const void *data, size_t length)
{
    char path[PATH_MAX];
    if (!is_recorded(fd, path))
        return REAL(write)(fd, data, length);
    begin();
    ssize_t written = REAL(write)(fd, data, length);
    if (written > 0)
        record_file(WRITE, fd, path, lseek(fd, 0, SEEK_CUR) - written, data, written);
    end();
    return written;
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset)
{
    char path[PATH_MAX];
    if (!is_recorded(fd, path))
        return REAL(pwrite64)(fd, data, length, offset);
    begin();
    ssize_t written = REAL(pwrite64)(fd, data, length, offset);
    if (written > 0)
        record_file(WRITE, fd, path, offset, data, written);
    end();
    return written;
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset)
{
    return pwrite64(fd, data, length, offset);
}

int ftruncate64(int fd, off64_t size)
{
    char path[PATH_MAX];
    if (!is_recorded(fd, path))
        return REAL(ftruncate64)(fd, size);
    begin();
    int result = REAL(ftruncate64)(fd, size);
    if (result == 0)
        record_file(TRUNCATE, fd, path, size, NULL, 0);
    end();
    return result;
}

int ftruncate(int fd, off_t size)
{
    return ftruncate64(fd, size);
}

static int flush_recorded(int fd, int (*real)(int))
{
    char path[PATH_MAX];
    struct stat status;
    if (!is_recorded(fd, path) || fstat(fd, &status) < 0)
        return real(fd);
    begin();
    record_file(S_ISDIR(status.st_mode) ? FLUSH_FOLDER : FLUSH, fd, path, 0, NULL, 0);
    end();
    return 0;
}

int fsync(int fd)
{
    return flush_recorded(fd, REAL(fsync));
}

int fdatasync(int fd)
{
    return flush_recorded(fd, REAL(fdatasync));
}

int rename(const char *old, const char *new)
{
    char from[PATH_MAX], to[PATH_MAX];
    if (!is_recorded_name(old, from) || !is_recorded_name(new, to))
        return REAL(rename)(old, new);
    begin();
    int result = REAL(rename)(old, new);
    if (result == 0)
        record(RENAME, from, 0, 0, relative(to), strlen(relative(to)));
    end();
    return result;
}

int unlink(const char *path)
{
    char full[PATH_MAX];
    if (!is_recorded_name(path, full))
        return REAL(unlink)(path);
    begin();
    int result = REAL(unlink)(path);
    if (result == 0)
        record(UNLINK, full, 0, 0, NULL, 0);
    end();
    return result;
}

int mkdir(const char *path, mode_t mode)
{
    char full[PATH_MAX];
    if (!is_recorded_name(path, full))
        return REAL(mkdir)(path, mode);
    begin();
    int result = REAL(mkdir)(path, mode);
    if (result == 0)
        record(MAKE_FOLDER, full, 0, 0, NULL, 0);
    end();
    return result;
}
