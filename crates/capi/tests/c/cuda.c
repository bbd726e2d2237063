/* The C library over CUDA's driver, where two devices of 256 MiB stand in for GPUs: the first argument says which case, STRATALLOC_LIBCUDA
 * which library. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <stratalloc.h>
#include <sys/wait.h>
#include <unistd.h>

#include "softcuda.h"

#define REQUIRE(holds)                                                                          \
  do {                                                                                          \
    if (!(holds)) {                                                                             \
      fprintf(stderr, "line %d: not so: %s (%s)\n", __LINE__, #holds, stratalloc_last_error()); \
      _exit(1);                                                                                 \
    }                                                                                           \
  } while (0)
#define OK(call) REQUIRE((call) == STRATALLOC_OK)
#define MIB ((size_t)1 << 20)

static void *driver;

/* A function of the driver, called as CUDA's headers have it. */
static int call(const char *name, void *a, uintptr_t b, uintptr_t c, uintptr_t d) {
  int (*function)(void *, uintptr_t, uintptr_t, uintptr_t);
  *(void **)&function = dlsym(driver, name);
  REQUIRE(function != NULL);
  return function(a, b, c, d);
}

/* Everything that a device holds, mapped or not. */
static uint64_t held(int device) {
  struct softcuda_account account = {.size = sizeof account};
  int (*tell)(int, struct softcuda_account *);
  *(void **)&tell = dlsym(driver, "softcudaAccount");
  REQUIRE(tell != NULL && tell(device, &account) == 0);
  return account.plain_bytes + account.chunk_bytes;
}

static stratalloc_stats stats_of(stratalloc_allocator *gpu, int device) {
  stratalloc_stats stats = {.struct_size = sizeof stats};
  OK(stratalloc_get_stats(gpu, device, &stats));
  return stats;
}

/* What the library says it holds is what the driver says. */
static void agrees(stratalloc_allocator *gpu) {
  for (int device = 0; device < stratalloc_device_count(gpu); device++) {
    REQUIRE(stats_of(gpu, device).reserved.current == held(device));
  }
}

static void *same(void *out) {
  OK(stratalloc_default(out));
  return NULL;
}

static void the_default(void) {
  pthread_t threads[8];
  stratalloc_allocator *found[8];
  OK(stratalloc_configure_default("limit:1.0"));
  OK(stratalloc_configure_default("limit:0.5"));
  for (int i = 0; i < 8; i++) REQUIRE(pthread_create(&threads[i], NULL, same, &found[i]) == 0);
  for (int i = 0; i < 8; i++) REQUIRE(pthread_join(threads[i], NULL) == 0 && found[i] == found[0]);
  stratalloc_allocator *gpu = found[0];
  REQUIRE(stratalloc_configure_default("limit:0.9") == STRATALLOC_INVALID_ARGUMENT);
  stratalloc_destroy(gpu);
  REQUIRE(stratalloc_device_count(gpu) == 2 && stats_of(gpu, 1).limit == 128 * MIB);
  void *blocks[2], *none = NULL;
  for (int device = 0; device < 2; device++) OK(stratalloc_malloc(gpu, 10 * MIB, device, NULL, &blocks[device]));
  agrees(gpu);
  REQUIRE(stratalloc_free_on(gpu, blocks[0], 1) == STRATALLOC_WRONG_DEVICE);
  REQUIRE(strstr(stratalloc_last_error(), "belongs to device 0, not to device 1") != NULL);
  REQUIRE(stratalloc_malloc(gpu, 200 * MIB, 1, NULL, &none) == STRATALLOC_NEVER_FITS);
  for (int device = 0; device < 2; device++) {
    OK(stratalloc_free_on(gpu, blocks[device], device));
    OK(stratalloc_empty_cache(gpu, device, NULL));
    REQUIRE(held(device) == 0);
  }
}

/* What is wrong has been said on stderr. */
static void defaults_after_an_error(void) {
  stratalloc_allocator *gpu = NULL;
  OK(stratalloc_default(&gpu));
  REQUIRE(stats_of(gpu, 0).limit == 256 * MIB);
}

static void chosen_devices(void) {
  const int32_t second[] = {1}, swapped[] = {1, 0}, absent[] = {0, 7};
  stratalloc_options options = {.struct_size = sizeof options, .config = "", .devices = second, .device_count = 1};
  stratalloc_allocator *gpu = NULL;
  void *block = NULL;
  OK(stratalloc_create(&options, &gpu));
  OK(stratalloc_malloc(gpu, MIB, 0, NULL, &block));
  REQUIRE(stratalloc_device_count(gpu) == 1 && held(0) == 0 && held(1) > 0);
  /* A block that was not freed goes with its allocator. */
  stratalloc_destroy(gpu);
  REQUIRE(held(1) == 0);
  options.devices = swapped;
  options.device_count = 2;
  OK(stratalloc_create(&options, &gpu));
  OK(stratalloc_malloc(gpu, MIB, 1, NULL, &block));
  REQUIRE(held(0) > 0 && held(1) == 0);
  stratalloc_destroy(gpu);
  options.devices = absent;
  gpu = NULL;
  REQUIRE(stratalloc_create(&options, &gpu) == STRATALLOC_LIBRARY_MISSING && gpu == NULL);
  REQUIRE(strstr(stratalloc_last_error(), "7") != NULL && held(0) == 0);
}

static void streams(void) {
  stratalloc_options options = {.struct_size = sizeof options, .config = ""};
  stratalloc_allocator *gpu = NULL;
  OK(stratalloc_create(&options, &gpu));
  void *context = NULL, *home = NULL, *other = NULL;
  REQUIRE(call("cuDevicePrimaryCtxRetain", &context, 0, 0, 0) == 0);
  REQUIRE(call("cuCtxSetCurrent", context, 0, 0, 0) == 0);
  REQUIRE(call("cuStreamCreate", &home, 1, 0, 0) == 0 && call("cuStreamCreate", &other, 1, 0, 0) == 0);
  void *block = NULL;
  stratalloc_request request = {
      .struct_size = sizeof request, .bytes = 8 * MIB, .stream = home, .flags = STRATALLOC_ZEROED};
  OK(stratalloc_alloc(gpu, &request, &block));
  stratalloc_block found = {.struct_size = sizeof found};
  OK(stratalloc_find(gpu, block, &found));
  REQUIRE(found.stream == home && found.state == STRATALLOC_BLOCK_LIVE);
  OK(stratalloc_record_stream(gpu, block, other));
  REQUIRE(call("cuMemsetD8Async", block, 7, 8 * MIB, (uintptr_t)other) == 0);
  OK(stratalloc_free(gpu, block));
  REQUIRE(stratalloc_free(gpu, block) == STRATALLOC_DOUBLE_FREE);
  REQUIRE(call("cuStreamSynchronize", home, 0, 0, 0) == 0 && call("cuStreamSynchronize", other, 0, 0, 0) == 0);
  request.flags = STRATALLOC_DEDICATED;
  OK(stratalloc_alloc(gpu, &request, &block));
  agrees(gpu);
  OK(stratalloc_free(gpu, block));
  OK(stratalloc_empty_cache(gpu, 0, NULL));
  REQUIRE(held(0) == 0 && stats_of(gpu, 0).pending == 0);
  stratalloc_destroy(gpu);
}

static void torch(void) {
  stratalloc_torch_init(2);
  char *block = stratalloc_torch_alloc(3 * MIB, 1, NULL);
  REQUIRE(block != NULL && stratalloc_torch_alloc(0, 0, NULL) == NULL);
  size_t size = 0;
  REQUIRE(stratalloc_torch_base_alloc(block + MIB, &size) == block && size >= 3 * MIB);
  stratalloc_torch_record_stream(block, NULL);
  stratalloc_torch_memory_fraction(0.25, 1);
  stratalloc_allocator *gpu = NULL;
  OK(stratalloc_default(&gpu));
  REQUIRE(stats_of(gpu, 1).limit == 64 * MIB && stats_of(gpu, 1).live.current == 3 * MIB);
  REQUIRE(stratalloc_torch_alloc(100 * MIB, 1, NULL) == NULL);
  REQUIRE(strstr(stratalloc_last_error(), "limited to 64 MiB") != NULL);
  stratalloc_torch_free(block, 3 * MIB, 1, NULL);
  stratalloc_torch_free(NULL, 0, 1, NULL);
  const stratalloc_pool_id pool = {0, 5};
  OK(stratalloc_pool_route(gpu, 0, pool, NULL, NULL, NULL));
  block = stratalloc_torch_alloc(MIB, 0, NULL);
  stratalloc_torch_end_allocate_to_pool(0, pool);
  stratalloc_torch_free(block, MIB, 0, NULL);
  stratalloc_torch_release_pool(0, pool);
  size_t users = 1;
  OK(stratalloc_pool_users(gpu, 0, pool, &users));
  stratalloc_torch_reset();
  REQUIRE(users == 0 && held(0) == 0 && held(1) == 0);
}

/* Whether a device has a primary context. */
static int active(int device) {
  int (*state)(int, unsigned *, int *);
  *(void **)&state = dlsym(driver, "cuDevicePrimaryCtxGetState");
  unsigned flags = 0;
  int is = -1;
  REQUIRE(state != NULL && state(device, &flags, &is) == 0);
  return is;
}

static bool none(void *context, const stratalloc_segment *segment) {
  (void)context;
  (void)segment;
  return true;
}

/* A context takes memory of its device: one that is not used gets none, whatever else is asked of it. */
static void unused_devices(void) {
  stratalloc_options options = {.struct_size = sizeof options, .config = ""};
  stratalloc_allocator *gpu = NULL;
  void *block = NULL;
  OK(stratalloc_create(&options, &gpu));
  REQUIRE(!active(0) && !active(1));
  REQUIRE(stats_of(gpu, 1).capacity == 256 * MIB && stats_of(gpu, 1).limit == 256 * MIB);
  OK(stratalloc_set_limit_fraction(gpu, 1, 0.5));
  OK(stratalloc_malloc(gpu, MIB, 0, NULL, &block));
  REQUIRE(active(0));
  OK(stratalloc_free(gpu, block));
  for (int device = 0; device < 2; device++) OK(stratalloc_empty_cache(gpu, device, NULL));
  OK(stratalloc_reset_peaks(gpu, 1));
  OK(stratalloc_visit_segments(gpu, 1, none, NULL));
  REQUIRE(stats_of(gpu, 1).limit == 128 * MIB && !active(1));
  OK(stratalloc_malloc(gpu, MIB, 1, NULL, &block));
  REQUIRE(active(1));
  stratalloc_destroy(gpu);
  REQUIRE(!active(0) && !active(1));
}

/* The driver has no room where the library's own limit allows more: somebody else has it. */
static void others_have_the_memory(void) {
  stratalloc_options options = {.struct_size = sizeof options, .config = ""};
  stratalloc_allocator *gpu = NULL;
  OK(stratalloc_create(&options, &gpu));
  void *context = NULL, *theirs = NULL, *block = NULL;
  REQUIRE(call("cuDevicePrimaryCtxRetain", &context, 0, 0, 0) == 0 && call("cuCtxSetCurrent", context, 0, 0, 0) == 0);
  REQUIRE(call("cuMemAlloc_v2", &theirs, 200 * MIB, 0, 0) == 0);
  REQUIRE(stratalloc_malloc(gpu, 100 * MIB, 0, NULL, &block) == STRATALLOC_OUT_OF_MEMORY && block == NULL);
  REQUIRE(strstr(stratalloc_last_error(), "the driver: cuMem") != NULL);
  OK(stratalloc_malloc(gpu, 20 * MIB, 0, NULL, &block));
  REQUIRE(call("cuMemFree_v2", theirs, 0, 0, 0) == 0);
  void *more = NULL;
  OK(stratalloc_malloc(gpu, 100 * MIB, 0, NULL, &more));
  agrees(gpu);
  stratalloc_destroy(gpu);
  REQUIRE(held(0) == 0);
}

static void children(void) {
  stratalloc_allocator *gpu = NULL;
  OK(stratalloc_default(&gpu));
  void *block = stratalloc_torch_alloc(MIB, 0, NULL);
  pid_t child = fork();
  if (child == 0) {
    alarm(20);
    REQUIRE(stratalloc_free(gpu, block) == STRATALLOC_FORKED && stratalloc_torch_alloc(MIB, 0, NULL) == NULL);
    REQUIRE(stratalloc_default(&gpu) == STRATALLOC_FORKED);
    stratalloc_torch_free(block, MIB, 0, NULL);
    exit(0);
  }
  int status = 1;
  REQUIRE(child > 0 && waitpid(child, &status, 0) == child && status == 0);
  OK(stratalloc_free(gpu, block));
}

#define CASE(name) \
  if (strcmp(argv[1], #name) == 0) return name(), 0

int main(int argc, char **argv) {
  const char *library = getenv("STRATALLOC_LIBCUDA");
  if (argc < 2 || library == NULL) return 2;
  driver = dlopen(library, RTLD_NOW | RTLD_LOCAL);
  REQUIRE(driver != NULL && call("cuInit", NULL, 0, 0, 0) == 0);
  CASE(the_default);
  CASE(defaults_after_an_error);
  CASE(chosen_devices);
  CASE(streams);
  CASE(torch);
  CASE(others_have_the_memory);
  CASE(children);
  CASE(unused_devices);
  fprintf(stderr, "no case %s\n", argv[1]);
  return 2;
}
