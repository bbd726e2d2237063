/* Allocates on a device, looks at what it got, and meets every kind of error that a program should expect.
 *
 *   cc basic.c $(pkg-config --cflags --libs stratalloc) -o basic && ./basic
 *
 * Runs on the software device, so that it needs no GPU; with `software_bytes` left 0, it runs on CUDA. */
#include <stdio.h>
#include <stdlib.h>
#include <stratalloc.h>

/* Ends the program if a call fails that should not. */
static void must(stratalloc_status status, const char *what) {
  if (status != STRATALLOC_OK) {
    fprintf(stderr, "%s: %s: %s\n", what, stratalloc_status_name(status), stratalloc_last_error());
    exit(1);
  }
}

/* Ends the program if a call does not fail as it should. */
static void must_fail(stratalloc_status status, stratalloc_status wanted, const char *what) {
  printf("%-24s %s: %s\n", what, stratalloc_status_name(status), stratalloc_last_error());
  if (status != wanted) exit(1);
}

int main(void) {
  if (stratalloc_abi_version() != STRATALLOC_ABI_VERSION) {
    fprintf(stderr, "the header is of ABI %d, the library of %u\n", STRATALLOC_ABI_VERSION, stratalloc_abi_version());
    return 1;
  }
  stratalloc_options options = {.struct_size = sizeof options, .config = "", .software_bytes = (uint64_t)1 << 30};
  stratalloc_allocator *gpu = NULL;
  must(stratalloc_create(&options, &gpu), "create");
  printf("stratalloc %s, %d device(s)\n", stratalloc_version(), stratalloc_device_count(gpu));

  /* The short way: so many bytes on device 0, for the default stream. */
  void *block = NULL;
  must(stratalloc_malloc(gpu, 1000, 0, NULL, &block), "malloc");
  size_t usable = 0;
  must(stratalloc_usable_size(gpu, block, &usable), "usable_size");
  printf("1000 bytes requested, %zu usable\n", usable);

  /* The long way: everything that can be said of a request. */
  uint32_t weights = 0;
  must(stratalloc_tag(gpu, "weights", &weights), "tag");
  stratalloc_request request = {.struct_size = sizeof request,
                                .bytes = (size_t)64 << 20,
                                .alignment = 4096,
                                .tag = weights,
                                .lifetime = STRATALLOC_LIFETIME_PERSISTENT,
                                .flags = STRATALLOC_ZEROED};
  void *large = NULL;
  must(stratalloc_alloc(gpu, &request, &large), "alloc");

  /* Which block is an address in? */
  stratalloc_block found = {.struct_size = sizeof found};
  must(stratalloc_find(gpu, (char *)large + 12345, &found), "find");
  if (found.address != large || found.tag != weights || found.state != STRATALLOC_BLOCK_LIVE) return 1;

  stratalloc_stats stats = {.struct_size = sizeof stats};
  must(stratalloc_get_stats(gpu, 0, &stats), "get_stats");
  printf("%llu bytes live, %llu reserved, %llu allocations\n", (unsigned long long)stats.live.current,
         (unsigned long long)stats.reserved.current, (unsigned long long)stats.allocs);
  if (stats.live.current != 1000 + ((uint64_t)64 << 20) || stats.allocs != 2) return 1;

  /* Nothing that fails has changed anything. */
  void *none = &options;
  must_fail(stratalloc_malloc(gpu, (size_t)2 << 30, 0, NULL, &none), STRATALLOC_NEVER_FITS, "more than the device has");
  if (none != NULL) return 1;
  must_fail(stratalloc_malloc(gpu, (size_t)1000 << 20, 0, NULL, &none), STRATALLOC_OUT_OF_MEMORY, "no room now");
  must(stratalloc_malloc(gpu, 4096, 0, NULL, &none), "the next smaller one");
  must(stratalloc_free(gpu, none), "free");
  must_fail(stratalloc_free(gpu, none), STRATALLOC_DOUBLE_FREE, "freed twice");
  must_fail(stratalloc_free(gpu, &options), STRATALLOC_INVALID_POINTER, "not ours");
  must_fail(stratalloc_free_on(gpu, block, 1), STRATALLOC_INVALID_ARGUMENT, "no such device");

  must(stratalloc_free(gpu, block), "free");
  must(stratalloc_free(gpu, large), "free");
  size_t given_back = 0;
  must(stratalloc_empty_cache(gpu, 0, &given_back), "empty_cache");
  printf("%zu bytes given back\n", given_back);
  stratalloc_destroy(gpu);
  return given_back > 0 ? 0 : 1;
}
