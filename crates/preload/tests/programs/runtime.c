/* A program that is linked with the CUDA runtime and NVML. It never names the driver: all that it does reaches the driver through
   what the runtime looks up. The argument is 1 if half of the device is the limit. */
#include "cuda.h"

int cudaMalloc(void **, size_t);
int cudaMallocPitch(void **, size_t *, size_t, size_t);
int cudaFree(void *);
int cudaMallocAsync(void **, size_t, void *);
int cudaFreeAsync(void *, void *);
int cudaMallocManaged(void **, size_t, unsigned);
int cudaMallocHost(void **, size_t);
int cudaFreeHost(void *);
int cudaMemcpy(void *, const void *, size_t, int);
int cudaMemGetInfo(size_t *, size_t *);
int cudaStreamCreate(void **);
int cudaStreamSynchronize(void *);
int cudaStreamDestroy(void *);
int cudaDeviceSynchronize(void);
int cudaDeviceReset(void);
int cudaGetLastError(void);

struct nvml { unsigned long long total, free, used; };
int nvmlInit_v2(void);
int nvmlDeviceGetHandleByIndex_v2(unsigned, void **);
int nvmlDeviceGetMemoryInfo(void *, struct nvml *);

#define RUNTIME_OOM 2

int main(int argc, char **argv)
{
    int limited = atoi(argv[1]);
    u64 device = limited ? 512 * MIB : 1024 * MIB;
    void *a = NULL, *b = NULL, *stream = NULL, *handle = NULL;
    size_t free_now = 0, total = 0, pitch = 0;
    struct nvml memory = {0};
    char out[32] = "through the runtime", in[32] = "";

    /* Monitoring before any use of CUDA, linked and looked up. */
    IS(nvmlInit_v2(), 0);
    IS(nvmlDeviceGetHandleByIndex_v2(0, &handle), 0);
    IS(nvmlDeviceGetMemoryInfo(handle, &memory), 0);

    IS(cudaMemGetInfo(&free_now, &total), 0);
    SAME(total, device, "info");
    open_driver();
    IS(cudaMalloc(&a, 100 * MIB), 0);
    if (shimmed()) SAME(ledger(0).live_bytes, 100 * MIB, "cudaMalloc");
    IS(cudaMemcpy(a, out, 32, 1), 0);
    IS(cudaMemcpy(in, a, 32, 2), 0);
    CHECK(!strcmp(in, out));
    agree(0, "cudaMalloc");
    IS(cudaMemGetInfo(&free_now, &total), 0);
    IS(nvmlDeviceGetMemoryInfo(handle, &memory), 0);
    SAME(memory.total, total, "nvml");
    SAME(memory.free, free_now, "nvml");
    SAME(memory.used, total - free_now, "nvml");
    void *library = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    int (*looked_up)(void *, struct nvml *) = (int (*)(void *, struct nvml *))dlsym(library, "nvmlDeviceGetMemoryInfo");
    memset(&memory, 0, sizeof memory);
    IS(looked_up(handle, &memory), 0);
    SAME(memory.total, total, "nvml, looked up");

    IS(cudaStreamCreate(&stream), 0);
    IS(cudaMallocAsync(&b, 10 * MIB, stream), 0);
    if (shimmed()) SAME(ledger(0).live_bytes, 110 * MIB, "cudaMallocAsync");
    agree(0, "cudaMallocAsync");
    IS(cudaFreeAsync(b, stream), 0);
    IS(cudaStreamSynchronize(stream), 0);
    IS(cudaMallocPitch(&b, &pitch, 1000, 1000), 0);
    CHECK(pitch >= 1000);
    IS(cudaFree(b), 0);
    IS(cudaMallocManaged(&b, 2 * MIB, 1), 0);
    agree(0, "cudaMallocManaged");
    IS(cudaFree(b), 0);
    IS(cudaMallocHost(&b, 2 * MIB), 0);
    agree(0, "cudaMallocHost");
    IS(cudaFreeHost(b), 0);
    IS(cudaFree(NULL), 0);
    CHECK(cudaFree((char *)a + 512) != 0);
    cudaGetLastError();
    IS(cudaMalloc(&b, limited ? 500 * MIB : 1000 * MIB), RUNTIME_OOM);
    cudaGetLastError();
    IS(cudaMalloc(&b, 300 * MIB), 0);
    IS(cudaFree(b), 0);
    IS(cudaStreamDestroy(stream), 0);
    IS(cudaDeviceSynchronize(), 0);
    agree(0, "before the reset");
    IS(cudaDeviceReset(), 0);
    if (shimmed()) SAME(ledger(0).live_bytes + ledger(0).live_count, 0, "after the reset");
    agree(0, "after the reset");
    IS(cudaMalloc(&a, MIB), 0);
    IS(cudaFree(a), 0);
    agree(0, "once more");
    return failures ? 1 : 0;
}
