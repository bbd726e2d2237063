/* A stand-in for libcuda with one device and no memory, for the tests of loading and of error codes.
 * NO_VMM leaves virtual memory management out, NO_MEM_ALLOC one required function.
 * WHOLE_ONLY maps chunks from offset 0 only.
 * FAIL=n makes cuMemAlloc, cuMemCreate and cuEventQuery return n; NO_DEVICE makes cuInit find nothing. */
#include <stddef.h>
#include <string.h>

#ifndef FAIL
#define FAIL 0
#endif

typedef unsigned long long address;

static void *stack[8];
static int depth = 1; /* below: no context */
static int mode = 0, retained = 0, batches = 0, singles = 0;
static int context;

int stub_retained(void) { return retained; }
int stub_batches(void) { return batches; }
int stub_singles(void) { return singles; }
int stub_capture_mode(void) { return mode; }
int stub_depth(void) { return depth; }

int cuGetErrorName(int code, const char **text) {
    if (code == 2) *text = "CUDA_ERROR_OUT_OF_MEMORY";
    else if (code == 700) *text = "CUDA_ERROR_ILLEGAL_ADDRESS";
    else return 1;
    return 0;
}
int cuGetErrorString(int code, const char **text) {
    if (code != 2) return 1;
    *text = "out of memory";
    return 0;
}
#ifdef NO_DEVICE
int cuInit(unsigned flags) { return 100; }
#else
int cuInit(unsigned flags) { return 0; }
#endif
int cuDriverGetVersion(int *version) { *version = 12080; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "Stub", length); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)1 << 30; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 102; return 0; }
int cuDevicePrimaryCtxRetain(void **out, int device) { __sync_fetch_and_add(&retained, 1); *out = &context; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { __sync_fetch_and_sub(&retained, 1); return 0; }
int cuCtxGetCurrent(void **out) { *out = stack[depth - 1]; return 0; }
int cuCtxPushCurrent_v2(void *in) { if (depth == 8) return 1; stack[depth++] = in; return 0; }
int cuCtxPopCurrent_v2(void **out) { if (depth == 1) return 201; *out = stack[--depth]; return 0; }
int cuCtxSynchronize(void) { return 0; }
int cuMemGetInfo_v2(size_t *free, size_t *total) {
    if (stack[depth - 1] != &context) return 201;
    *free = 1 << 20; *total = 1 << 30;
    return 0;
}
#ifndef NO_MEM_ALLOC
int cuMemAlloc_v2(address *ptr, size_t size) { *ptr = 0x1000; return mode == 2 ? FAIL : 900; }
#endif
int cuMemFree_v2(address ptr) { return ptr == 0x1000 ? 0 : 1; }
int cuMemHostAlloc(void **ptr, size_t size, unsigned flags) { *ptr = &context; return 0; }
int cuMemFreeHost(void *ptr) { return 0; }
int cuStreamCreate(void **stream, unsigned flags) { *stream = &depth; return 0; }
int cuStreamDestroy_v2(void *stream) { return 0; }
int cuStreamSynchronize(void *stream) { return 0; }
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) { return 0; }
int cuStreamIsCapturing(void *stream, int *status) { *status = stream == (void *)16; return 0; }
int cuEventCreate(void **event, unsigned flags) { *event = &mode; return 0; }
int cuEventDestroy_v2(void *event) { return 0; }
int cuEventRecord(void *event, void *stream) { return 0; }
int cuEventSynchronize(void *event) { return 0; }
int cuEventQuery(void *event) { return mode == 2 ? FAIL : 900; }
int cuThreadExchangeStreamCaptureMode(int *in) { int old = mode; mode = *in; *in = old; return 0; }
int cuMemsetD8Async(address ptr, unsigned char byte, size_t size, void *stream) { return 0; }
int cuMemcpyAsync(address dst, address src, size_t size, void *stream) { singles++; return 0; }
int cuMemcpyHtoDAsync_v2(address dst, const void *src, size_t size, void *stream) { return 0; }
int cuMemcpyDtoHAsync_v2(void *dst, address src, size_t size, void *stream) { memset(dst, 7, size); return 0; }
int cuMemcpyBatchAsync(address *dsts, address *srcs, size_t *sizes, size_t count, void *attributes, size_t *first,
                       size_t attribute_count, size_t *failed, void *stream) {
    for (size_t i = 0; i < count; i++) if (sizes[i] == 0) return 1;
    if (attribute_count != 1 || first[0] != 0 || stream == NULL) return 1;
    batches++;
    return 0;
}
#ifndef NO_VMM
int cuMemGetAllocationGranularity(size_t *bytes, const void *prop, int option) { *bytes = 2 << 20; return 0; }
int cuMemAddressReserve(address *ptr, size_t size, size_t alignment, address hint, address flags) {
    *ptr = 0x200000;
    return size % (2 << 20) ? 1 : 0;
}
int cuMemAddressFree(address ptr, size_t size) { return 0; }
int cuMemCreate(address *handle, size_t size, const void *prop, address flags) { *handle = 1; return FAIL; }
int cuMemRelease(address handle) { return handle == 1 ? 0 : 1; }
int cuMemMap(address ptr, size_t size, size_t offset, address handle, address flags) {
#ifdef WHOLE_ONLY
    if (offset != 0) return 1;
#endif
    return 0;
}
int cuMemUnmap(address ptr, size_t size) { return 0; }
int cuMemSetAccess(address ptr, size_t size, const void *access, size_t count) { return 0; }
#endif
