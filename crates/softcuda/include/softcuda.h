/* Functions of softcuda's libcuda.so.1 for tests, beside CUDA's own. Find them with dlsym: the real driver has none of them. */
#ifndef SOFTCUDA_H
#define SOFTCUDA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What a device holds, in bytes and in allocations. Set `size` to sizeof(struct softcuda_account); later versions add fields
 * at the end. */
struct softcuda_account {
    size_t size;
    uint64_t plain_bytes, plain_count;               /* cuMemAlloc, cuMemAllocPitch, variables of modules */
    uint64_t chunk_bytes, chunk_count;               /* cuMemCreate: chunks with a handle or a mapping */
    uint64_t mapped_bytes, mapped_count;             /* cuMemMap */
    uint64_t reserved_bytes, reserved_count;         /* cuMemAddressReserve: addresses, not memory */
    uint64_t pool_used_bytes, pool_used_count;       /* cuMemAllocAsync, cuMemAllocFromPoolAsync */
    uint64_t pool_reserved_bytes, pool_reserved_count; /* what pools hold, used or not */
    uint64_t managed_bytes, managed_count;           /* cuMemAllocManaged */
    uint64_t array_bytes, array_count;               /* cuArrayCreate, cuMipmappedArrayCreate */
    uint64_t host_bytes, host_count;                 /* cuMemHostAlloc, cuMemAllocHost */
    uint64_t registered_bytes, registered_count;     /* cuMemHostRegister */
    uint64_t graph_bytes, graph_count;               /* memory nodes of graphs */
    uint64_t shared_bytes, shared_count;             /* cuIpcOpenMemHandle: another process's memory */
    uint64_t free_bytes, total_bytes;                /* as cuMemGetInfo says */
};

/* Writes the account of a device, by ordinal. 0, or a CUresult. */
int softcudaAccount(int device, struct softcuda_account *out);

/* How often a function was called: cuMemAlloc_v2 by its name, or cuMemAlloc, which means the newest version. */
unsigned long long softcudaCallCount(const char *name);
void softcudaResetCallCounts(void);

/* The names of all functions of CUDA that are exported, numbered from 0: as softcudaReport, 0 after the last. */
size_t softcudaFunctionName(unsigned long long index, char *text, size_t length);

/* What the checker (SOFTCUDA_CHECKER=1) has found. softcudaReport writes one report's words, cut to `length` with their end,
 * and gives their whole length; 0 where there is no such report. */
unsigned long long softcudaReportCount(void);
size_t softcudaReport(unsigned long long index, char *text, size_t length);

/* For replays, in virtual time (SOFTCUDA_CLOCK=virtual): the clock moves by what calls cost (SOFTCUDA_LATENCY), by what
 * softcuda_advance says, and by waiting for work. Times are in nanoseconds since cuInit. */
struct CUstream_st;

/* Submits work that takes `ns` to a stream, and costs the host nothing. Work of one stream runs one after another; streams run
 * side by side, each at full speed. 0, or a CUresult; a stream that is being captured is refused. */
int softcuda_busy(struct CUstream_st *stream, unsigned long long ns);
/* Lets `ns` of the host's own time pass, on all devices. 0, or a CUresult. */
int softcuda_advance(unsigned long long ns);

/* A device's time; how much of it the host was blocked in waits (cuCtxSynchronize, cuStreamSynchronize, cuEventSynchronize,
 * cuMemFree, ...); how much the calls have cost by the latency model, waits not counted. 0 for a device that is not there. */
unsigned long long softcuda_clock_ns(int device);
unsigned long long softcuda_stall_ns(int device);
unsigned long long softcuda_driver_ns(int device);

/* How often a function was called: "cuMemFree" means all its versions, with either default stream, "cuMemFree_v2" that one.
 * Entry points belong to the process: devices are not told apart. 0 for a device that is not there. */
unsigned long long softcuda_calls(int device, const char *name);

#ifdef __cplusplus
}
#endif

#endif
