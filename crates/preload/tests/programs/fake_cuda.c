/* A driver of a few functions, to look them up in: what each returns tells which one it is. */
#include <stddef.h>
#include <string.h>

int cuInit(unsigned flags) { return 0; }
int cuMemAlloc_v2(unsigned long long *ptr, size_t size) { return 701; }
int cuMemFree_v2(unsigned long long ptr) { return 702; }
int cuMemFreeAsync(unsigned long long ptr, void *stream) { return 703; }
int cuMemFreeAsync_ptsz(unsigned long long ptr, void *stream) { return 704; }
/* Versions that no list knows, and names that only begin like ours. */
int cuMemFree_v9(unsigned long long ptr) { return 705; }
int cudnnCreate(void) { return 706; }
int cuCtxGetCurrent(void **context) { *context = NULL; return 0; }
int cuCtxGetDevice(int *device) { return 201; }

int cuGetProcAddress_v2(const char *name, void **found, int version, unsigned long long flags, int *status);
int cuGetProcAddress(const char *name, void **found, int version, unsigned long long flags)
{
    return cuGetProcAddress_v2(name, found, version, flags, NULL);
}

int cuGetProcAddress_v2(const char *name, void **found, int version, unsigned long long flags, int *status)
{
    int per_thread = flags == 2;
    *found = NULL;
    if (!strcmp(name, "cuMemAlloc")) *found = (void *)cuMemAlloc_v2;
    if (!strcmp(name, "cuMemFree")) *found = version >= 90000 ? (void *)cuMemFree_v9 : (void *)cuMemFree_v2;
    if (!strcmp(name, "cuMemFreeAsync")) *found = per_thread ? (void *)cuMemFreeAsync_ptsz : (void *)cuMemFreeAsync;
    if (!strcmp(name, "cuGetProcAddress")) *found = version >= 12000 ? (void *)cuGetProcAddress_v2 : (void *)cuGetProcAddress;
    if (status) *status = *found ? 0 : 1;
    return *found ? 0 : 500;
}
