/* A program of the driver API that finds it as CUDA's runtime does: dlopen, dlsym, cuGetProcAddress. */
#include "check.h"
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef int (*GetProc)(const char *, void **, int, uint64_t, int *);

static GetProc get;

static void *find(const char *name, int version, uint64_t flags) {
    void *function = NULL;
    int status = -1;
    OK(get(name, &function, version, flags, &status));
    CHECK(status == 0 && function != NULL);
    return function;
}

#define BYTES (1 << 20)

int main(void) {
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    CHECK(library != NULL);
    /* The other name is the same library. */
    CHECK(dlopen("libcuda.so", RTLD_NOW) == library);
    get = (GetProc)dlsym(library, "cuGetProcAddress_v2");
    CHECK(get != NULL);
    void *none = library;
    int status = 0;
    get("cuNoSuchThing", &none, 12000, 0, &status);
    CHECK(status == 1);

    OK(((int (*)(unsigned))find("cuInit", 2000, 0))(0));
    void *context = NULL;
    OK(((int (*)(void **, int))find("cuDevicePrimaryCtxRetain", 7000, 0))(&context, 0));
    OK(((int (*)(void *))find("cuCtxSetCurrent", 4000, 0))(context));

    uint64_t device = 0;
    static unsigned char from[BYTES], to[BYTES];
    for (size_t i = 0; i < BYTES; i++)
        from[i] = (unsigned char)(i * 31 + (i >> 8));
    OK(((int (*)(uint64_t *, size_t))find("cuMemAlloc", 3020, 0))(&device, BYTES));
    OK(((int (*)(uint64_t, const void *, size_t))find("cuMemcpyHtoD", 3020, 0))(device, from, BYTES));
    OK(((int (*)(void *, uint64_t, size_t))find("cuMemcpyDtoH", 3020, 0))(to, device, BYTES));
    CHECK(memcmp(from, to, BYTES) == 0);

    /* The variant for per-thread default streams is another function. */
    void *legacy = find("cuMemcpyHtoDAsync", 7000, 1), *per_thread = find("cuMemcpyHtoDAsync", 7000, 2);
    CHECK(legacy != per_thread);
    memset(to, 0, BYTES);
    OK(((int (*)(uint64_t, unsigned char, size_t))find("cuMemsetD8", 3020, 0))(device, 7, BYTES));
    OK(((int (*)(uint64_t, const void *, size_t, void *))per_thread)(device, from, 1000, NULL));
    OK(((int (*)(void *))find("cuStreamSynchronize", 7000, 2))(NULL));
    OK(((int (*)(void *, uint64_t, size_t))find("cuMemcpyDtoH", 3020, 0))(to, device, BYTES));
    CHECK(memcmp(from, to, 1000) == 0 && to[1000] == 7);
    OK(((int (*)(uint64_t))find("cuMemFree", 3020, 0))(device));
    CHECK(((int (*)(uint64_t))find("cuMemFree", 3020, 0))(device) != 0);
    printf("all held\n");
    return 0;
}
