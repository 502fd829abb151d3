/* A stand-in for the CUDA driver of a machine without devices, which writes down who loads it and who initialises it.
 *
 * Built as libcuda.so.1. Each line that it appends to the file STANDIN_CUDA_LOG is a process id and what that process
 * has done: `load`, or `cuInit`. The functions return what the driver's API reference has for them: CUDA_SUCCESS (0),
 * before cuInit CUDA_ERROR_NOT_INITIALIZED (3), and CUDA_ERROR_NOT_FOUND (500) for all functions that are not here.
 */

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, NOT_INITIALIZED = 3, NOT_FOUND = 500 };

static int initialised;

static void note(const char *what)
{
    const char *path = getenv("STANDIN_CUDA_LOG");
    char line[64];
    int log = path ? open(path, O_WRONLY | O_CREAT | O_APPEND, 0644) : -1;

    if (log < 0)
        return;
    int length = snprintf(line, sizeof line, "%d %s\n", getpid(), what);
    if (write(log, line, length) != length)
        abort();
    close(log);
}

__attribute__((constructor)) static void on_load(void)
{
    note("load");
}

int cuInit(unsigned flags)
{
    (void)flags;
    note("cuInit");
    initialised = 1;
    return SUCCESS;
}

int cuDriverGetVersion(int *version)
{
    *version = 13000;
    return SUCCESS;
}

int cuDeviceGetCount(int *count)
{
    if (!initialised)
        return NOT_INITIALIZED;
    *count = 0;
    return SUCCESS;
}

int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, void *status);

/* The runtime library asks by this function for all others, by their names without a suffix. */
int cuGetProcAddress(const char *name, void **function, int version, unsigned long long flags)
{
    return cuGetProcAddress_v2(name, function, version, flags, NULL);
}

int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, void *status)
{
    static const struct {
        const char *name;
        void *function;
    } all[] = {
        {"cuInit", (void *)cuInit},
        {"cuDriverGetVersion", (void *)cuDriverGetVersion},
        {"cuDeviceGetCount", (void *)cuDeviceGetCount},
        {"cuGetProcAddress", (void *)cuGetProcAddress_v2},
    };

    (void)version;
    (void)flags;
    (void)status;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (strcmp(name, all[i].name) == 0) {
            *function = all[i].function;
            return SUCCESS;
        }
    *function = NULL;
    return NOT_FOUND;
}
