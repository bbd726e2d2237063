/* NVML and the runtime in one process: they agree on memory. */
#include "check.h"
#include <stddef.h>
#include <string.h>

typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned pid; unsigned long long used; } Process;
int nvmlInit_v2(void), nvmlShutdown(void), nvmlDeviceGetCount_v2(unsigned *);
int nvmlDeviceGetHandleByIndex_v2(unsigned, void **), nvmlDeviceGetHandleByPciBusId_v2(const char *, void **);
int nvmlDeviceGetHandleByUUID(const char *, void **);
int nvmlDeviceGetMemoryInfo(void *, Memory *), nvmlDeviceGetComputeRunningProcesses(void *, unsigned *, Process *);
int nvmlDeviceGetName(void *, char *, unsigned), nvmlDeviceGetUUID(void *, char *, unsigned);
int cudaMalloc(void **, size_t), cudaFree(void *), cudaMemGetInfo(size_t *, size_t *), cudaDeviceGetPCIBusId(char *, int, int);

#define BYTES (64 << 20)

int main(void) {
    unsigned count = 0;
    EXPECT(1, nvmlDeviceGetCount_v2(&count));
    OK(nvmlInit_v2());
    OK(nvmlDeviceGetCount_v2(&count));
    CHECK(count >= 1);
    void *device = NULL, *by_pci = NULL, *by_uuid = NULL, *ptr = NULL;
    OK(nvmlDeviceGetHandleByIndex_v2(0, &device));
    EXPECT(2, nvmlDeviceGetHandleByIndex_v2(count, &by_pci));
    EXPECT(2, nvmlDeviceGetMemoryInfo(NULL, NULL));
    char text[96];
    OK(cudaDeviceGetPCIBusId(text, sizeof text, 0));
    OK(nvmlDeviceGetHandleByPciBusId_v2(text, &by_pci));
    CHECK(by_pci == device);
    OK(nvmlDeviceGetUUID(device, text, sizeof text));
    CHECK(strncmp(text, "GPU-", 4) == 0);
    OK(nvmlDeviceGetHandleByUUID(text, &by_uuid));
    CHECK(by_uuid == device);
    OK(nvmlDeviceGetName(device, text, sizeof text));
    CHECK(strlen(text) > 0);
    EXPECT(7, nvmlDeviceGetName(device, text, 2));

    Memory before, with;
    size_t free_bytes = 0, total = 0;
    OK(nvmlDeviceGetMemoryInfo(device, &before));
    OK(cudaMalloc(&ptr, BYTES));
    OK(nvmlDeviceGetMemoryInfo(device, &with));
    OK(cudaMemGetInfo(&free_bytes, &total));
    CHECK(with.total == total && with.free == free_bytes);
    CHECK(with.used >= BYTES && with.used + with.free == with.total && before.free - with.free >= BYTES);
    Process process;
    unsigned room = 0;
    EXPECT(7, nvmlDeviceGetComputeRunningProcesses(device, &room, NULL));
    CHECK(room == 1);
    OK(nvmlDeviceGetComputeRunningProcesses(device, &room, &process));
    CHECK(process.used == with.used);
    OK(cudaFree(ptr));
    OK(nvmlShutdown());
    EXPECT(1, nvmlShutdown());
    printf("all held\n");
    return 0;
}
