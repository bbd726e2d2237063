/* Every way to look a function up, and which one is found. The argument is 1 if the shim is preloaded. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef __x86_64__
extern void *old_dlsym(void *, const char *);
__asm__(".symver old_dlsym,dlsym@GLIBC_2.2.5");
#else
#define old_dlsym dlsym
#endif

static int failures;
#define CHECK(what) do { if (!(what)) { failures++; fprintf(stderr, "line %d: %s\n", __LINE__, #what); } } while (0)

/* Whether a function is the shim's. */
static int hooked(void *function)
{
    Dl_info info;
    return function && dladdr(function, &info) && strstr(info.dli_fname, "libstratalloc_preload") != NULL;
}

typedef int (*proc_v2)(const char *, void **, int, unsigned long long, int *);
typedef int (*proc_v1)(const char *, void **, int, unsigned long long);

int main(int argc, char **argv)
{
    int shim = atoi(argv[1]);
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    if (!driver) { fprintf(stderr, "%s\n", dlerror()); return 2; }

    /* dlsym of either version, on a handle. */
    CHECK(hooked(dlsym(driver, "cuMemAlloc_v2")) == shim);
    CHECK(hooked(old_dlsym(driver, "cuMemAlloc_v2")) == shim);
    CHECK(dlsym(driver, "cuMemAlloc_v2") == old_dlsym(driver, "cuMemAlloc_v2"));
    CHECK(dlsym(driver, "cudnnCreate") && !hooked(dlsym(driver, "cudnnCreate")));
    CHECK(dlsym(driver, "cuMemFree_v9") && !hooked(dlsym(driver, "cuMemFree_v9")));
    /* What is not there is not there, although the shim has a function of the name; and dlerror says so. */
    dlerror();
    CHECK(dlsym(driver, "cuMemCreate") == NULL);
    CHECK(dlerror() != NULL);
    CHECK(dlsym(driver, "no_such_function") == NULL);
    CHECK(dlerror() != NULL);
    void *libc = dlopen("libc.so.6", RTLD_NOW);
    CHECK(dlsym(libc, "malloc") != NULL && !hooked(dlsym(libc, "malloc")));

    /* cuGetProcAddress: the pointer is mapped, so that version and variant are what was asked for. */
    void *found = NULL;
    int status = -1;
    proc_v2 get = (proc_v2)dlsym(driver, "cuGetProcAddress_v2");
    proc_v1 get_old = (proc_v1)dlsym(driver, "cuGetProcAddress");
    CHECK(hooked((void *)get) == shim && hooked((void *)get_old) == shim);
    CHECK(get("cuMemAlloc", &found, 12080, 0, &status) == 0 && status == 0);
    CHECK(hooked(found) == shim && found == dlsym(driver, "cuMemAlloc_v2"));
    CHECK(get_old("cuMemAlloc", &found, 11030, 0) == 0 && found == dlsym(driver, "cuMemAlloc_v2"));
    CHECK(get("cuMemFreeAsync", &found, 12080, 0, &status) == 0 && found == dlsym(driver, "cuMemFreeAsync"));
    CHECK(get("cuMemFreeAsync", &found, 12080, 2, &status) == 0 && found == dlsym(driver, "cuMemFreeAsync_ptsz"));
    CHECK(((int (*)(unsigned long long, void *))found)(0, NULL) == 704);
    CHECK(get("cuGetProcAddress", &found, 12000, 0, &status) == 0 && found == (void *)get);
    CHECK(get("cuGetProcAddress", &found, 11030, 0, &status) == 0 && found == (void *)get_old);
    CHECK(get("cuNothing", &found, 12000, 0, &status) == 500 && found == NULL);
    CHECK(get("cuNothing", &found, 12000, 0, NULL) == 500);
    /* A version that nobody knows is the driver's own, and is said on stderr. */
    CHECK(get("cuMemFree", &found, 99000, 0, &status) == 0 && !hooked(found));
    CHECK(((int (*)(unsigned long long))found)(0) == 705);

    /* A null pointer to write to is the driver's to refuse, and what it says comes back. */
    int (*alloc)(unsigned long long *, size_t) = (int (*)(unsigned long long *, size_t))dlsym(driver, "cuMemAlloc_v2");
    unsigned long long ptr;
    CHECK(alloc(NULL, 512) == 701 && alloc(&ptr, 0) == 701 && alloc(&ptr, 512) == 701);

    /* RTLD_NEXT and RTLD_DEFAULT mean the place of the library that calls, not of the one that forwards. */
    void *library = dlopen("libnext.so", RTLD_NOW | RTLD_LOCAL);
    if (!library) { fprintf(stderr, "%s\n", dlerror()); return 2; }
    int (*ask)(int) = (int (*)(int))dlsym(library, "ask");
    CHECK(ask && ask(0) == 42 && ask(1) == 42);
    CHECK(dlsym(RTLD_DEFAULT, "only_behind") == NULL);
    CHECK(dlsym(RTLD_DEFAULT, "getpid") == (void *)getpid);

    if (shim) {
        /* The shim stays when it is closed, and so does the driver. */
        void *own = dlopen(getenv("LD_PRELOAD"), RTLD_NOW | RTLD_NOLOAD);
        CHECK(own != NULL);
        for (int i = 0; own && i < 5; i++) dlclose(own);
        dlclose(driver);
        CHECK(get("cuMemAlloc", &found, 12080, 0, &status) == 0 && hooked(found));
        CHECK(alloc(&ptr, 512) == 701);
    }
    return failures ? 1 : 0;
}
