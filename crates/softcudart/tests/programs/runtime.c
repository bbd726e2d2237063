/* A program of the runtime API, linked against libcudart.so.13: memory, copies, streams, events, graphs, launches. */
#include "check.h"
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* What cuda_runtime_api.h declares, as far as it is used here. */
typedef void *cudaStream_t, *cudaEvent_t, *cudaGraph_t, *cudaGraphExec_t, *cudaMemPool_t, *cudaGraphNode_t;
typedef struct { unsigned x, y, z; } dim3;
typedef struct { int type, device; void *devicePointer, *hostPointer; long reserved[8]; } cudaPointerAttributes;
typedef struct { size_t width, height, depth; } cudaExtent;
typedef struct { void *ptr; size_t pitch, xsize, ysize; } cudaPitchedPtr;
typedef struct { int magic, version; const void *data; void *unused; } FatBinary;
enum { HostToDevice = 1, DeviceToHost = 2, DeviceToDevice = 3, Default = 4 };
enum { InvalidValue = 1, OutOfMemory = 2, InvalidDirection = 21, InvalidFunction = 98, InvalidDevice = 101, NotReady = 600 };

int cudaGetDeviceCount(int *), cudaGetDevice(int *), cudaSetDevice(int), cudaDeviceSynchronize(void);
int cudaDeviceReset(void), cudaRuntimeGetVersion(int *), cudaDriverGetVersion(int *);
int cudaGetDeviceProperties(void *, int), cudaGetLastError(void), cudaPeekAtLastError(void);
const char *cudaGetErrorName(int), *cudaGetErrorString(int);
int cudaMalloc(void **, size_t), cudaFree(void *), cudaMallocHost(void **, size_t), cudaFreeHost(void *);
int cudaMallocPitch(void **, size_t *, size_t, size_t), cudaMalloc3D(cudaPitchedPtr *, cudaExtent);
int cudaMallocManaged(void **, size_t, unsigned), cudaMemGetInfo(size_t *, size_t *);
int cudaMallocAsync(void **, size_t, cudaStream_t), cudaFreeAsync(void *, cudaStream_t);
int cudaDeviceGetDefaultMemPool(cudaMemPool_t *, int), cudaMemPoolGetAttribute(cudaMemPool_t, int, void *);
int cudaMemcpy(void *, const void *, size_t, int), cudaMemcpyAsync(void *, const void *, size_t, int, cudaStream_t);
int cudaMemcpy2D(void *, size_t, const void *, size_t, size_t, size_t, int);
int cudaMemset(void *, int, size_t), cudaMemsetAsync(void *, int, size_t, cudaStream_t);
int cudaPointerGetAttributes(cudaPointerAttributes *, const void *);
int cudaStreamCreateWithFlags(cudaStream_t *, unsigned), cudaStreamDestroy(cudaStream_t);
int cudaStreamSynchronize(cudaStream_t), cudaStreamQuery(cudaStream_t), cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned);
int cudaLaunchHostFunc(cudaStream_t, void (*)(void *), void *);
int cudaEventCreateWithFlags(cudaEvent_t *, unsigned), cudaEventRecord(cudaEvent_t, cudaStream_t), cudaEventQuery(cudaEvent_t);
int cudaEventSynchronize(cudaEvent_t), cudaEventDestroy(cudaEvent_t), cudaEventElapsedTime(float *, cudaEvent_t, cudaEvent_t);
int cudaStreamBeginCapture(cudaStream_t, int), cudaStreamEndCapture(cudaStream_t, cudaGraph_t *);
int cudaStreamIsCapturing(cudaStream_t, int *);
int cudaStreamGetCaptureInfo(cudaStream_t, int *, unsigned long long *, cudaGraph_t *, const cudaGraphNode_t **, const void **, size_t *);
int cudaGraphInstantiate(cudaGraphExec_t *, cudaGraph_t, unsigned long long), cudaGraphLaunch(cudaGraphExec_t, cudaStream_t);
int cudaGraphDestroy(cudaGraph_t), cudaGraphExecDestroy(cudaGraphExec_t), cudaGraphGetNodes(cudaGraph_t, cudaGraphNode_t *, size_t *);
int cudaGetDriverEntryPointByVersion(const char *, void **, unsigned, unsigned long long, int *);
int cudaLaunchKernel(const void *, dim3, dim3, void **, size_t, cudaStream_t);
int cudaFuncGetAttributes(void *, const void *), cudaGetSymbolAddress(void **, const void *);
int cudaMemcpyToSymbol(const void *, const void *, size_t, size_t, int), cudaMemcpyFromSymbol(void *, const void *, size_t, size_t, int);
int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *, const void *, int, size_t);
void **__cudaRegisterFatBinary(const void *);
void __cudaRegisterFatBinaryEnd(void **), __cudaUnregisterFatBinary(void **);
void __cudaRegisterFunction(void **, const char *, char *, const char *, int, void *, void *, void *, void *, int *);
void __cudaRegisterVar(void **, char *, char *, const char *, int, size_t, int, int);
unsigned __cudaPushCallConfiguration(dim3, dim3, size_t, cudaStream_t);
int __cudaPopCallConfiguration(dim3 *, dim3 *, size_t *, void *);

#define BYTES (1 << 20)

static void fill(unsigned char *bytes, size_t len, unsigned seed) {
    for (size_t i = 0; i < len; i++)
        bytes[i] = (unsigned char)((i * 2654435761u + seed) >> 13);
}

static void devices(void) {
    int count = 0, device = -1, runtime = 0, driver = 0;
    OK(cudaGetDeviceCount(&count));
    CHECK(count >= 1);
    OK(cudaGetDevice(&device));
    CHECK(device == 0);
    OK(cudaRuntimeGetVersion(&runtime));
    OK(cudaDriverGetVersion(&driver));
    CHECK(runtime / 1000 == 13 && driver >= 12000);
    EXPECT(InvalidDevice, cudaSetDevice(count));
    EXPECT(InvalidDevice, cudaPeekAtLastError());
    EXPECT(InvalidDevice, cudaGetLastError());
    OK(cudaGetLastError());
    CHECK(strcmp(cudaGetErrorName(OutOfMemory), "cudaErrorMemoryAllocation") == 0);
    CHECK(strcmp(cudaGetErrorString(OutOfMemory), "out of memory") == 0);
    char properties[2048];
    memset(properties, 0x5a, sizeof properties);
    OK(cudaGetDeviceProperties(properties, 0));
    size_t total = 0, memory_free = 0, memory_total = 0;
    memcpy(&total, properties + 288, sizeof total);
    OK(cudaMemGetInfo(&memory_free, &memory_total));
    CHECK(total == memory_total && memory_free <= memory_total);
    CHECK(*(int *)(properties + 360) == 9);
    CHECK(properties[1008] == 0x5a);
    EXPECT(InvalidValue, cudaGetDeviceProperties(NULL, 0));
}

static void copies(void) {
    static unsigned char from[BYTES], to[BYTES];
    fill(from, BYTES, 1);
    void *a = NULL, *b = NULL, *pinned = NULL;
    size_t free_before = 0, free_with = 0, free_after = 0, total = 0;
    OK(cudaMemGetInfo(&free_before, &total));
    OK(cudaMalloc(&a, BYTES));
    OK(cudaMalloc(&b, BYTES));
    OK(cudaMemGetInfo(&free_with, &total));
    CHECK(free_before - free_with >= 2 * BYTES);
    OK(cudaMallocHost(&pinned, BYTES));
    OK(cudaMemcpy(a, from, BYTES, HostToDevice));
    OK(cudaMemcpy(b, a, BYTES, DeviceToDevice));
    OK(cudaMemcpy(pinned, b, BYTES, DeviceToHost));
    CHECK(memcmp(pinned, from, BYTES) == 0);
    OK(cudaMemset(b, 0x17, BYTES / 2));
    OK(cudaMemcpy(to, b, BYTES, Default));
    CHECK(to[0] == 0x17 && to[BYTES / 2 - 1] == 0x17 && to[BYTES / 2] == from[BYTES / 2]);
    OK(cudaMemcpy(a, from, 0, HostToDevice));
    EXPECT(InvalidDirection, cudaMemcpy(a, from, 1, 9));

    /* Rows: every second 64 bytes of the source. */
    OK(cudaMemcpy2D(b, 64, from, 128, 64, 100, HostToDevice));
    OK(cudaMemcpy(to, b, 6400, DeviceToHost));
    for (int row = 0; row < 100; row++)
        CHECK(memcmp(to + row * 64, from + row * 128, 64) == 0);

    cudaPointerAttributes attributes;
    OK(cudaPointerGetAttributes(&attributes, (char *)a + 100));
    CHECK(attributes.type == 2 && attributes.device == 0 && attributes.devicePointer == (char *)a + 100);
    OK(cudaPointerGetAttributes(&attributes, pinned));
    CHECK(attributes.type == 1 && attributes.hostPointer == pinned);
    OK(cudaPointerGetAttributes(&attributes, to));
    CHECK(attributes.type == 0 && attributes.reserved[7] == 0);

    OK(cudaFree(a));
    OK(cudaFree(b));
    OK(cudaFree(NULL));
    CHECK(cudaFree(a) != 0);
    cudaGetLastError();
    OK(cudaFreeHost(pinned));
    OK(cudaMemGetInfo(&free_after, &total));
    CHECK(free_after == free_before);

    void *none = from;
    OK(cudaMalloc(&none, 0));
    CHECK(none == NULL);
    EXPECT(OutOfMemory, cudaMalloc(&none, total * 2));
    EXPECT(OutOfMemory, cudaGetLastError());
    EXPECT(InvalidValue, cudaMalloc(NULL, 16));
    cudaGetLastError();

    size_t pitch = 0;
    OK(cudaMallocPitch(&a, &pitch, 100, 7));
    CHECK(pitch >= 100 && pitch % 16 == 0);
    OK(cudaFree(a));
    cudaPitchedPtr box;
    OK(cudaMalloc3D(&box, (cudaExtent){100, 7, 3}));
    CHECK(box.pitch >= 100 && box.xsize == 100 && box.ysize == 7);
    OK(cudaFree(box.ptr));
    OK(cudaMallocManaged(&a, BYTES, 1));
    memcpy(a, from, BYTES);
    OK(cudaMemcpy(to, a, BYTES, Default));
    CHECK(memcmp(to, from, BYTES) == 0);
    OK(cudaFree(a));
}

static void add_one(void *number) { ++*(int *)number; }

static void streams(void) {
    unsigned char *from, *to;
    void *device;
    cudaStream_t first, second;
    cudaEvent_t start, end;
    int calls = 0;
    float ms = -1;
    OK(cudaMallocHost((void **)&from, BYTES));
    OK(cudaMallocHost((void **)&to, BYTES));
    OK(cudaMalloc(&device, BYTES));
    OK(cudaStreamCreateWithFlags(&first, 1));
    OK(cudaStreamCreateWithFlags(&second, 1));
    OK(cudaEventCreateWithFlags(&start, 0));
    OK(cudaEventCreateWithFlags(&end, 0));
    for (unsigned round = 0; round < 20; round++) {
        fill(from, BYTES, round);
        memset(to, 0, BYTES);
        OK(cudaEventRecord(start, first));
        OK(cudaMemcpyAsync(device, from, BYTES, HostToDevice, first));
        OK(cudaEventRecord(end, first));
        OK(cudaStreamWaitEvent(second, end, 0));
        OK(cudaMemcpyAsync(to, device, BYTES, DeviceToHost, second));
        OK(cudaLaunchHostFunc(second, add_one, &calls));
        OK(cudaStreamSynchronize(second));
        CHECK(memcmp(from, to, BYTES) == 0);
        CHECK(calls == (int)round + 1);
        OK(cudaEventSynchronize(end));
        OK(cudaEventQuery(end));
        OK(cudaEventElapsedTime(&ms, start, end));
        CHECK(ms >= 0);
    }
    OK(cudaStreamQuery(first));

    /* Stream-ordered memory, and what its pool says of it. */
    void *ordered;
    cudaMemPool_t pool;
    uint64_t used = 0;
    OK(cudaDeviceGetDefaultMemPool(&pool, 0));
    OK(cudaMallocAsync(&ordered, BYTES, first));
    OK(cudaMemsetAsync(ordered, 0x33, BYTES, first));
    OK(cudaMemcpyAsync(to, ordered, BYTES, DeviceToHost, first));
    OK(cudaMemPoolGetAttribute(pool, 7, &used));
    CHECK(used >= BYTES);
    OK(cudaFreeAsync(ordered, first));
    OK(cudaStreamSynchronize(first));
    CHECK(to[0] == 0x33 && to[BYTES - 1] == 0x33);
    OK(cudaMemPoolGetAttribute(pool, 7, &used));
    CHECK(used == 0);

    OK(cudaEventDestroy(start));
    OK(cudaEventDestroy(end));
    OK(cudaStreamDestroy(first));
    OK(cudaStreamDestroy(second));
    OK(cudaFree(device));
    OK(cudaFreeHost(from));
    OK(cudaFreeHost(to));
}

static void graphs(void) {
    unsigned char *from, *to;
    void *device;
    cudaStream_t stream;
    cudaGraph_t graph, seen = NULL;
    cudaGraphExec_t exec;
    int status = -1;
    unsigned long long id = 0;
    size_t nodes = 0;
    OK(cudaMallocHost((void **)&from, BYTES));
    OK(cudaMallocHost((void **)&to, BYTES));
    OK(cudaMalloc(&device, BYTES));
    OK(cudaStreamCreateWithFlags(&stream, 1));
    OK(cudaStreamIsCapturing(stream, &status));
    CHECK(status == 0);
    OK(cudaStreamBeginCapture(stream, 0));
    OK(cudaStreamIsCapturing(stream, &status));
    CHECK(status == 1);
    OK(cudaMemcpyAsync(device, from, BYTES, HostToDevice, stream));
    OK(cudaMemsetAsync(device, 0x44, 256, stream));
    OK(cudaMemcpyAsync(to, device, BYTES, DeviceToHost, stream));
    OK(cudaStreamGetCaptureInfo(stream, &status, &id, &seen, NULL, NULL, NULL));
    CHECK(status == 1 && id != 0 && seen != NULL);
    OK(cudaStreamEndCapture(stream, &graph));
    OK(cudaGraphGetNodes(graph, NULL, &nodes));
    CHECK(nodes == 3);
    OK(cudaGraphInstantiate(&exec, graph, 0));
    OK(cudaGraphDestroy(graph));
    for (unsigned round = 0; round < 5; round++) {
        fill(from, BYTES, 100 + round);
        memset(to, 0, BYTES);
        OK(cudaGraphLaunch(exec, stream));
        OK(cudaStreamSynchronize(stream));
        CHECK(to[0] == 0x44 && to[255] == 0x44);
        CHECK(memcmp(from + 256, to + 256, BYTES - 256) == 0);
    }
    OK(cudaGraphExecDestroy(exec));
    OK(cudaStreamDestroy(stream));
    OK(cudaFree(device));
    OK(cudaFreeHost(from));
    OK(cudaFreeHost(to));
}

/* What a compiler generates for a program with one kernel and one variable. */
static void kernel_stub(void) {}
static char variable_shadow[16];
static const char image[64] = "an image of device code";
static const FatBinary binary = {0x466243b1, 1, image, NULL};

static void kernels(void) {
    void **handle = __cudaRegisterFatBinary(&binary);
    CHECK(handle != NULL);
    __cudaRegisterFunction(handle, (const char *)kernel_stub, "kernel", "kernel", -1, NULL, NULL, NULL, NULL, NULL);
    __cudaRegisterVar(handle, variable_shadow, "variable", "variable", 0, sizeof variable_shadow, 0, 0);
    __cudaRegisterFatBinaryEnd(handle);

    dim3 grid = {2, 3, 4}, block = {32, 1, 1}, grid_back, block_back;
    size_t shared = 0;
    cudaStream_t stream = NULL;
    CHECK(__cudaPushCallConfiguration(grid, block, 48, NULL) == 0);
    OK(__cudaPopCallConfiguration(&grid_back, &block_back, &shared, &stream));
    CHECK(grid_back.z == 4 && block_back.x == 32 && shared == 48);
    EXPECT(52, __cudaPopCallConfiguration(&grid_back, &block_back, &shared, &stream));
    cudaGetLastError();

    void *parameters[1] = {NULL};
    OK(cudaLaunchKernel(kernel_stub, grid, block, parameters, 0, NULL));
    OK(cudaDeviceSynchronize());
    EXPECT(InvalidFunction, cudaLaunchKernel(image, grid, block, parameters, 0, NULL));
    cudaGetLastError();
    char attributes[144];
    OK(cudaFuncGetAttributes(attributes, kernel_stub));
    CHECK(*(int *)(attributes + 36) == 90);
    int blocks = 0;
    OK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel_stub, 128, 0));
    CHECK(blocks > 0);

    char text[16] = "fifteen letters", back[16] = "";
    void *address = NULL;
    OK(cudaGetSymbolAddress(&address, variable_shadow));
    CHECK(address != NULL && address != variable_shadow);
    OK(cudaMemcpyToSymbol(variable_shadow, text, sizeof text, 0, HostToDevice));
    OK(cudaMemcpyFromSymbol(back, variable_shadow, sizeof back, 0, DeviceToHost));
    CHECK(strcmp(back, text) == 0);
    EXPECT(InvalidValue, cudaMemcpyToSymbol(variable_shadow, text, sizeof text, 1, HostToDevice));
    EXPECT(13, cudaGetSymbolAddress(&address, image));
    cudaGetLastError();
    __cudaUnregisterFatBinary(handle);
}

static void entry_points(void) {
    void *function = NULL;
    int status = -1;
    OK(cudaGetDriverEntryPointByVersion("cuMemCreate", &function, 12000, 0, &status));
    CHECK(function != NULL && status == 0);
    OK(cudaGetDriverEntryPointByVersion("cuNoSuchThing", &function, 12000, 0, &status));
    CHECK(function == NULL && status == 1);
    EXPECT(InvalidValue, cudaGetDriverEntryPointByVersion(NULL, &function, 12000, 0, &status));
    cudaGetLastError();
}

static void *other_thread(void *unused) {
    (void)unused;
    int device = -1;
    void *ptr;
    OK(cudaGetLastError());
    OK(cudaGetDevice(&device));
    CHECK(device == 0);
    for (int i = 0; i < 200; i++) {
        OK(cudaMalloc(&ptr, 4096));
        OK(cudaFree(ptr));
    }
    EXPECT(InvalidValue, cudaMalloc(NULL, 1));
    return NULL;
}

static void threads(void) {
    pthread_t ids[4];
    for (int i = 0; i < 4; i++)
        OK(pthread_create(&ids[i], NULL, other_thread, NULL));
    for (int i = 0; i < 4; i++)
        OK(pthread_join(ids[i], NULL));
    /* Errors are the thread's own. */
    OK(cudaGetLastError());
}

static void several_devices(void) {
    int count = 0, device = -1;
    void *ptr;
    cudaPointerAttributes attributes;
    OK(cudaGetDeviceCount(&count));
    if (count < 2)
        return;
    OK(cudaSetDevice(1));
    OK(cudaGetDevice(&device));
    CHECK(device == 1);
    OK(cudaMalloc(&ptr, BYTES));
    OK(cudaPointerGetAttributes(&attributes, ptr));
    CHECK(attributes.device == 1);
    OK(cudaSetDevice(0));
    OK(cudaFree(ptr));
    printf("two devices\n");
}

int main(void) {
    devices();
    copies();
    streams();
    graphs();
    kernels();
    entry_points();
    threads();
    several_devices();
    OK(cudaDeviceSynchronize());
    OK(cudaDeviceReset());
    void *again;
    OK(cudaMalloc(&again, BYTES));
    OK(cudaFree(again));
    printf("all held\n");
    return 0;
}
