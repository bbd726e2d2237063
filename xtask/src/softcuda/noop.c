/* What the libraries that do nothing have in common. Functions that begin with NOOP replace "return 0"; in a library that
 * does not want them, the version script hides them and the linker drops them. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define NOOP

static int make_handle(void **out) {
    static char object[64];
    if (out)
        *out = object;
    return 0;
}

/* Handles that are not written through the first argument, or are not pointers. */
NOOP int cufftCreate(int *plan) { if (plan) *plan = 1; return 0; }
NOOP int cudnnBackendCreateDescriptor(int type, void **out) { (void)type; return make_handle(out); }
NOOP int cublasLtMatmulAlgoInit(void) { return 0; }

/* One algorithm, which needs no workspace. A result has 96 bytes. */
NOOP int cublasLtMatmulAlgoGetHeuristic(void *handle, void *operation, void *a, void *b, void *c, void *d,
                                        void *preference, int wanted, void *results, int *found) {
    int count = wanted > 0 ? 1 : 0;
    if (results && count)
        memset(results, 0, 96);
    if (found)
        *found = count;
    return 0;
}

/* Versions. */
NOOP size_t cudnnGetVersion(void) { return 91900; }
NOOP size_t cudnnGetCudartVersion(void) { return 13020; }
NOOP int cudnnGetProperty(int which, int *value) {
    static const int parts[3] = {9, 19, 0};
    if (value) *value = which >= 0 && which < 3 ? parts[which] : 0;
    return 0;
}
NOOP int cublasGetVersion_v2(void *handle, int *version) { if (version) *version = 130200; return 0; }
NOOP size_t cublasLtGetVersion(void) { return 130200; }
NOOP size_t cublasLtGetCudartVersion(void) { return 13020; }
NOOP int cusparseGetVersion(void *handle, int *version) { if (version) *version = 12700; return 0; }
NOOP int cusparseLtGetVersion(void *handle, int *version) { if (version) *version = 801; return 0; }
NOOP int cusolverGetVersion(int *version) { if (version) *version = 12000; return 0; }
NOOP int cufftGetVersion(int *version) { if (version) *version = 12200; return 0; }
NOOP int ncclGetVersion(int *version) { if (version) *version = 22900; return 0; }
NOOP int nvrtcVersion(int *major, int *minor) {
    if (major) *major = 13;
    if (minor) *minor = 2;
    return 0;
}
NOOP int cuptiGetVersion(uint32_t *version) { if (version) *version = 130200; return 0; }

/* Texts. */
NOOP int cuptiGetResultString(int result, const char **text) { if (text) *text = "success"; return 0; }
NOOP const char *ncclGetLastError(void *communicator) { return ""; }

/* Sizes that callers allocate by. */
NOOP int cufftMakePlanMany(int plan, int rank, void *n, void *inembed, int istride, int idist, void *onembed, int ostride,
                           int odist, int type, int batch, size_t *bytes) {
    if (bytes) *bytes = 0;
    return 0;
}
NOOP int cufftXtMakePlanMany(int plan, int rank, void *n, void *inembed, long long istride, long long idist, int intype,
                             void *onembed, long long ostride, long long odist, int outtype, long long batch,
                             size_t *bytes, int type) {
    if (bytes) *bytes = 0;
    return 0;
}
NOOP int nvrtcGetProgramLogSize(void *program, size_t *bytes) { if (bytes) *bytes = 1; return 0; }
NOOP int nvrtcGetPTXSize(void *program, size_t *bytes) { if (bytes) *bytes = 1; return 0; }
NOOP int nvrtcGetCUBINSize(void *program, size_t *bytes) { if (bytes) *bytes = 1; return 0; }
NOOP int nvrtcGetProgramLog(void *program, char *text) { if (text) *text = 0; return 0; }
NOOP int nvrtcGetPTX(void *program, char *text) { if (text) *text = 0; return 0; }
NOOP int nvrtcGetCUBIN(void *program, char *text) { if (text) *text = 0; return 0; }
NOOP int nvrtcGetLoweredName(void *program, const char *name, const char **lowered) {
    if (lowered) *lowered = name;
    return 0;
}
