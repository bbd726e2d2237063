/* What a C program can do wrong. The first argument says which case; a case that is not as it should be ends the program with 1. */
#include <dlfcn.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <stratalloc.h>
#include <sys/wait.h>
#include <unistd.h>

#define REQUIRE(holds)                                                                       \
  do {                                                                                       \
    if (!(holds)) {                                                                          \
      fprintf(stderr, "line %d: not so: %s (%s)\n", __LINE__, #holds, stratalloc_last_error()); \
      _exit(1);                                                                              \
    }                                                                                        \
  } while (0)

/* The call returns this, and its text has these words. */
#define FAILS(call, wanted, words)                                                                        \
  do {                                                                                                    \
    stratalloc_status status = (call);                                                                    \
    if (status != (wanted) || strstr(stratalloc_last_error(), (words)) == NULL) {                         \
      fprintf(stderr, "line %d: %s is %s: %s\n", __LINE__, #call, stratalloc_status_name(status), stratalloc_last_error()); \
      _exit(1);                                                                                           \
    }                                                                                                     \
  } while (0)

#define INVALID(call, words) FAILS(call, STRATALLOC_INVALID_ARGUMENT, words)
#define OK(call) REQUIRE((call) == STRATALLOC_OK)
#define MIB ((size_t)1 << 20)

static const stratalloc_pool_id POOL = {0, 7};

static stratalloc_allocator *make(uint64_t bytes, const char *config) {
  stratalloc_options options = {.struct_size = sizeof options, .config = config, .software_bytes = bytes};
  stratalloc_allocator *made = NULL;
  OK(stratalloc_create(&options, &made));
  REQUIRE(made != NULL);
  return made;
}

static stratalloc_stats stats_of(stratalloc_allocator *gpu) {
  stratalloc_stats stats = {.struct_size = sizeof stats};
  OK(stratalloc_get_stats(gpu, 0, &stats));
  return stats;
}

static void handles(void) {
  void *block = &block;
  size_t number = 0;
  uint32_t tag = 0;
  stratalloc_stats stats = {.struct_size = sizeof stats};
  stratalloc_block found = {.struct_size = sizeof found};
  stratalloc_request request = {.struct_size = sizeof request, .bytes = 512};
  stratalloc_checkpoint *checkpoint = NULL;
  stratalloc_evictable evictable = {.struct_size = sizeof evictable};
  stratalloc_sleep_plan plan = {.struct_size = sizeof plan};
  stratalloc_tier_stats tier_stats = {.struct_size = sizeof tier_stats};
  stratalloc_tier tier = {.struct_size = sizeof tier};
  stratalloc_pinned *pinned = NULL;
  stratalloc_stashed *stashed = NULL;
  stratalloc_movable *movable = NULL;
  size_t size = 0;
  static uint64_t garbage[64];
  stratalloc_allocator *wrong[] = {NULL, (stratalloc_allocator *)garbage, (stratalloc_allocator *)((char *)garbage + 1)};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    stratalloc_allocator *gpu = wrong[i];
    const char *words = i == 0 ? "handle is null" : "handle is not one";
    INVALID(stratalloc_malloc(gpu, 512, 0, NULL, &block), words);
    REQUIRE(block == NULL);
    INVALID(stratalloc_alloc(gpu, &request, &block), words);
    INVALID(stratalloc_free(gpu, garbage), words);
    INVALID(stratalloc_free(gpu, NULL), words);
    INVALID(stratalloc_free_on(gpu, garbage, 0), words);
    INVALID(stratalloc_record_stream(gpu, garbage, NULL), words);
    INVALID(stratalloc_usable_size(gpu, garbage, &number), words);
    INVALID(stratalloc_find(gpu, garbage, &found), words);
    INVALID(stratalloc_empty_cache(gpu, 0, NULL), words);
    INVALID(stratalloc_check_memory(gpu, 0, &number), words);
    INVALID(stratalloc_set_limit(gpu, 0, 1), words);
    INVALID(stratalloc_set_limit_fraction(gpu, 0, 0.5), words);
    INVALID(stratalloc_tag(gpu, "x", &tag), words);
    INVALID(stratalloc_set_tag_limit(gpu, 0, 0, 1), words);
    INVALID(stratalloc_get_stats(gpu, 0, &stats), words);
    INVALID(stratalloc_reset_peaks(gpu, 0), words);
    INVALID(stratalloc_visit_segments(gpu, 0, NULL, NULL), words);
    INVALID(stratalloc_write_snapshot(gpu, "x"), words);
    INVALID(stratalloc_set_segment_observer(gpu, NULL, NULL), words);
    INVALID(stratalloc_add_oom_observer(gpu, NULL, NULL, NULL), words);
    INVALID(stratalloc_remove_oom_observer(gpu, 1), words);
    INVALID(stratalloc_trace_start(gpu, "x"), words);
    INVALID(stratalloc_trace_stop(gpu, NULL), words);
    INVALID(stratalloc_pool_begin(gpu, 0, POOL, NULL, NULL, NULL), words);
    INVALID(stratalloc_pool_route(gpu, 0, POOL, NULL, NULL, NULL), words);
    INVALID(stratalloc_pool_end(gpu, 0, POOL), words);
    INVALID(stratalloc_pool_retain(gpu, 0, POOL), words);
    INVALID(stratalloc_pool_release(gpu, 0, POOL), words);
    INVALID(stratalloc_pool_users(gpu, 0, POOL, &number), words);
    INVALID(stratalloc_pool_empty(gpu, 0, POOL, NULL), words);
    INVALID(stratalloc_pool_set_use_on_oom(gpu, 0, POOL, true), words);
    INVALID(stratalloc_capture_begin(gpu, 0), words);
    INVALID(stratalloc_capture_end(gpu, 0), words);
    INVALID(stratalloc_alloc_evictable(gpu, &request, &evictable, &block), words);
    INVALID(stratalloc_pin(gpu, garbage, NULL, &pinned), words);
    INVALID(stratalloc_prefetch(gpu, garbage, NULL), words);
    INVALID(stratalloc_offload(gpu, STRATALLOC_SELECT_ALL, 0), words);
    INVALID(stratalloc_restore(gpu, STRATALLOC_SELECT_ALL, 0), words);
    INVALID(stratalloc_sleep(gpu, &plan), words);
    INVALID(stratalloc_wake(gpu, NULL, 0), words);
    INVALID(stratalloc_follow_restores(gpu, 0, NULL), words);
    INVALID(stratalloc_residency(gpu, garbage, &tag), words);
    INVALID(stratalloc_get_tier_stats(gpu, 0, &tier_stats), words);
    INVALID(stratalloc_get_tier(gpu, 0, 0, &tier), words);
    INVALID(stratalloc_add_residency_observer(gpu, NULL, NULL, NULL), words);
    INVALID(stratalloc_remove_residency_observer(gpu, 1), words);
    INVALID(stratalloc_push_tag(gpu, 0, NULL), words);
    INVALID(stratalloc_pop_tag(gpu), words);
    INVALID(stratalloc_stash(gpu, garbage, 8, NULL, NULL, &stashed), words);
    INVALID(stratalloc_pool_checkpoint(gpu, 0, POOL, &checkpoint), words);
    INVALID(stratalloc_defragment(gpu, 0, NULL, NULL), words);
    INVALID(stratalloc_compact(gpu, 0, NULL, NULL), words);
    INVALID(stratalloc_alloc_movable(gpu, &request, &movable), words);
    INVALID(stratalloc_export_plan(gpu, 0, NULL, 0, &size), words);
    INVALID(stratalloc_import_plan(gpu, 0, "", 1, NULL), words);
    REQUIRE(stratalloc_device_count(gpu) == 0);
    stratalloc_destroy(gpu);
  }
  INVALID(stratalloc_movable_pin(NULL, &block), "handle is null");
  INVALID(stratalloc_movable_pin((stratalloc_movable *)garbage, &block), "is not one");
  INVALID(stratalloc_movable_pin((stratalloc_movable *)garbage, NULL), "`out` is null");
  INVALID(stratalloc_movable_unpin((stratalloc_movable *)((char *)garbage + 1)), "not one");
  INVALID(stratalloc_movable_free((stratalloc_movable *)garbage), "is not one");
  OK(stratalloc_movable_free(NULL));
  stratalloc_checkpoint_destroy(NULL);
  REQUIRE(stratalloc_segment_block(NULL, 0) == NULL);
  INVALID(stratalloc_create(NULL, NULL), "`out` is null");
  stratalloc_allocator *out = NULL;
  INVALID(stratalloc_create(NULL, &out), "stratalloc_options is null");
  INVALID(stratalloc_default(NULL), "`out` is null");
}

static void pointers(void) {
  stratalloc_allocator *gpu = make(256 * MIB, "");
  stratalloc_allocator *other = make(256 * MIB, "");
  char *block = NULL;
  void *foreign = NULL;
  size_t usable = 0;
  OK(stratalloc_malloc(gpu, 4096, 0, NULL, (void **)&block));
  OK(stratalloc_malloc(other, 4096, 0, NULL, &foreign));
  int local = 0;
  void *heap = malloc(64);
  void *wrong[] = {&local, heap, (void *)1, (void *)UINTPTR_MAX, block + 512, block + 1, block - 512, foreign};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    FAILS(stratalloc_free(gpu, wrong[i]), STRATALLOC_INVALID_POINTER, "not the start of a block");
    FAILS(stratalloc_free_on(gpu, wrong[i], 0), STRATALLOC_INVALID_POINTER, "not the start of a block");
    FAILS(stratalloc_record_stream(gpu, wrong[i], NULL), STRATALLOC_INVALID_POINTER, "not the start of a block");
    FAILS(stratalloc_usable_size(gpu, wrong[i], &usable), STRATALLOC_INVALID_POINTER, "not the start of a block");
  }
  /* Null is no block; only frees have a use for that. */
  OK(stratalloc_free(gpu, NULL));
  OK(stratalloc_free_on(gpu, NULL, 0));
  FAILS(stratalloc_record_stream(gpu, NULL, NULL), STRATALLOC_INVALID_POINTER, "0x0");
  FAILS(stratalloc_usable_size(gpu, NULL, &usable), STRATALLOC_INVALID_POINTER, "0x0");
  INVALID(stratalloc_malloc(gpu, 512, 0, NULL, NULL), "`out` is null");
  INVALID(stratalloc_usable_size(gpu, block, NULL), "`out` is null");
  INVALID(stratalloc_check_memory(gpu, 0, NULL), "`faults` is null");

  stratalloc_block found = {.struct_size = sizeof found};
  OK(stratalloc_find(gpu, block + 4095, &found));
  REQUIRE(found.address == block && found.bytes >= 4096 && found.requested == 4096 && found.state == STRATALLOC_BLOCK_LIVE);
  FAILS(stratalloc_find(gpu, heap, &found), STRATALLOC_INVALID_POINTER, "in no block");
  FAILS(stratalloc_find(gpu, NULL, &found), STRATALLOC_INVALID_POINTER, "in no block");

  OK(stratalloc_free(gpu, block));
  FAILS(stratalloc_free(gpu, block), STRATALLOC_DOUBLE_FREE, "was freed already");
  FAILS(stratalloc_free_on(gpu, block, 0), STRATALLOC_DOUBLE_FREE, "was freed already");
  FAILS(stratalloc_record_stream(gpu, block, NULL), STRATALLOC_DOUBLE_FREE, "was freed already");
  FAILS(stratalloc_usable_size(gpu, block, &usable), STRATALLOC_DOUBLE_FREE, "was freed already");
  FAILS(stratalloc_find(gpu, block, &found), STRATALLOC_INVALID_POINTER, "in no block");
  OK(stratalloc_free(other, foreign));
  REQUIRE(stats_of(gpu).live.current == 0 && stats_of(gpu).frees == 1);
  free(heap);
  stratalloc_destroy(gpu);
  stratalloc_destroy(other);
}

static void sizes_and_alignments(void) {
  stratalloc_allocator *gpu = make(256 * MIB, "");
  void *block = &block;
  INVALID(stratalloc_malloc(gpu, 0, 0, NULL, &block), "invalid size 0");
  REQUIRE(block == NULL);
  size_t sizes[] = {SIZE_MAX, SIZE_MAX - 511, SIZE_MAX / 2, 256 * MIB + 1};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    block = &block;
    stratalloc_status status = stratalloc_malloc(gpu, sizes[i], 0, NULL, &block);
    REQUIRE(status == STRATALLOC_INVALID_ARGUMENT || status == STRATALLOC_NEVER_FITS);
    REQUIRE(block == NULL && strlen(stratalloc_last_error()) > 10);
  }
  stratalloc_request request = {.struct_size = sizeof request, .bytes = 512};
  size_t wrong[] = {3, 511, 513, 4 * MIB, SIZE_MAX, (size_t)1 << 63};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    request.alignment = wrong[i];
    INVALID(stratalloc_alloc(gpu, &request, &block), "invalid alignment");
  }
  for (request.alignment = 1; request.alignment <= 2 * MIB; request.alignment *= 2) {
    OK(stratalloc_alloc(gpu, &request, &block));
    REQUIRE((uintptr_t)block % request.alignment == 0 && (uintptr_t)block % 512 == 0);
    OK(stratalloc_free(gpu, block));
  }
  request.alignment = 0;
  OK(stratalloc_alloc(gpu, &request, &block));
  OK(stratalloc_free(gpu, block));
  stratalloc_destroy(gpu);
}

static void struct_sizes(void) {
  stratalloc_allocator *gpu = make(256 * MIB, "");
  void *block = NULL;
  size_t wrong[] = {0, 1, 7, 8, 15, 70000, SIZE_MAX};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    stratalloc_request request = {.struct_size = wrong[i], .bytes = 512};
    stratalloc_stats stats = {.struct_size = wrong[i]};
    stratalloc_block found = {.struct_size = wrong[i]};
    stratalloc_options options = {.struct_size = wrong[i], .software_bytes = MIB};
    stratalloc_allocator *made = NULL;
    INVALID(stratalloc_alloc(gpu, &request, &block), "struct_size of stratalloc_request");
    INVALID(stratalloc_get_stats(gpu, 0, &stats), "struct_size of stratalloc_stats");
    INVALID(stratalloc_find(gpu, gpu, &found), "struct_size of stratalloc_block");
    INVALID(stratalloc_create(&options, &made), "struct_size of stratalloc_options");
  }
  /* A program that is older than the library: it knows sizes only, and the rest is as if it were 0. */
  stratalloc_request older = {.struct_size = offsetof(stratalloc_request, alignment), .bytes = 512, .alignment = 3, .flags = 99};
  OK(stratalloc_alloc(gpu, &older, &block));
  stratalloc_stats known = {.struct_size = offsetof(stratalloc_stats, cached), .cached = 12345};
  OK(stratalloc_get_stats(gpu, 0, &known));
  REQUIRE(known.live.current == 512 && known.cached == 12345 && known.struct_size == offsetof(stratalloc_stats, cached));
  /* A program that is newer: what the library does not know must be 0, and is told as 0. */
  struct {
    stratalloc_request request;
    uint64_t novelty;
  } newer = {.request = {.struct_size = sizeof newer, .bytes = 512}};
  OK(stratalloc_free(gpu, block));
  OK(stratalloc_alloc(gpu, &newer.request, &block));
  newer.novelty = 1;
  void *none = NULL;
  INVALID(stratalloc_alloc(gpu, &newer.request, &none), "for what it cannot do");
  struct {
    stratalloc_stats stats;
    uint64_t novelty[4];
  } told = {.stats = {.struct_size = sizeof told}, .novelty = {1, 2, 3, 4}};
  OK(stratalloc_get_stats(gpu, 0, &told.stats));
  REQUIRE(told.stats.live.current == 512 && told.novelty[0] == 0 && told.novelty[3] == 0);
  OK(stratalloc_free(gpu, block));
  stratalloc_destroy(gpu);
}

static void requests(void) {
  stratalloc_allocator *gpu = make(256 * MIB, "");
  void *block = NULL;
  INVALID(stratalloc_alloc(gpu, NULL, &block), "stratalloc_request is null");
  stratalloc_request request = {.struct_size = sizeof request, .bytes = 512};
  INVALID(stratalloc_alloc(gpu, &request, NULL), "`out` is null");
  request.flags = 8;
  INVALID(stratalloc_alloc(gpu, &request, &block), "flags 0x8");
  request.flags = 256 + STRATALLOC_ZEROED;
  INVALID(stratalloc_alloc(gpu, &request, &block), "flags 0x101");
  request.flags = 0;
  request.lifetime = 3;
  INVALID(stratalloc_alloc(gpu, &request, &block), "lifetime 3");
  request.lifetime = 0;
  request.tag = 1;
  INVALID(stratalloc_alloc(gpu, &request, &block), "no tag 1");
  request.tag = 257;
  INVALID(stratalloc_alloc(gpu, &request, &block), "no tag 257");
  uint32_t tag = 0, again = 0;
  OK(stratalloc_tag(gpu, "activations", &tag));
  OK(stratalloc_tag(gpu, "activations", &again));
  REQUIRE(tag == 1 && again == 1);
  INVALID(stratalloc_tag(gpu, NULL, &tag), "`name` is null");
  INVALID(stratalloc_tag(gpu, "\xff\xfe", &tag), "not UTF-8");
  INVALID(stratalloc_tag(gpu, "x", NULL), "`out` is null");
  request.tag = 1;
  OK(stratalloc_alloc(gpu, &request, &block));
  FAILS(stratalloc_set_tag_limit(gpu, 0, 1, 100), STRATALLOC_OVER_LIMIT, "below what is in use");
  OK(stratalloc_set_tag_limit(gpu, 0, 1, 600));
  void *second = NULL;
  FAILS(stratalloc_alloc(gpu, &request, &second), STRATALLOC_OVER_LIMIT, "over its limit");
  OK(stratalloc_set_tag_limit(gpu, 0, 1, UINT64_MAX));
  OK(stratalloc_alloc(gpu, &request, &second));
  OK(stratalloc_free(gpu, second));
  INVALID(stratalloc_set_tag_limit(gpu, 0, 2, 100), "no tag 2");
  OK(stratalloc_free(gpu, block));
  request.flags = STRATALLOC_DEDICATED;
  OK(stratalloc_alloc(gpu, &request, &block));
  size_t usable = 0;
  OK(stratalloc_usable_size(gpu, block, &usable));
  stratalloc_block found = {.struct_size = sizeof found};
  OK(stratalloc_find(gpu, block, &found));
  REQUIRE(usable == 2 * MIB && found.is_dedicated);
  OK(stratalloc_free(gpu, block));
  request.flags = STRATALLOC_NO_GROW;
  request.bytes = 100 * MIB;
  FAILS(stratalloc_alloc(gpu, &request, &block), STRATALLOC_OUT_OF_MEMORY, "no room for 100 MiB");
  for (int i = 2; i < 64; i++) {
    char name[16];
    snprintf(name, sizeof name, "tag %d", i);
    OK(stratalloc_tag(gpu, name, &tag));
  }
  INVALID(stratalloc_tag(gpu, "one too many", &tag), "63");
  stratalloc_destroy(gpu);
}

static void devices_and_limits(void) {
  stratalloc_allocator *gpu = make(256 * MIB, "");
  void *block = NULL;
  stratalloc_stats stats = {.struct_size = sizeof stats};
  int32_t wrong[] = {1, -1, INT32_MAX, INT32_MIN};
  size_t number = 0;
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    int32_t device = wrong[i];
    stratalloc_request request = {.struct_size = sizeof request, .bytes = 512, .device = device};
    INVALID(stratalloc_malloc(gpu, 512, device, NULL, &block), "no device");
    INVALID(stratalloc_alloc(gpu, &request, &block), "no device");
    INVALID(stratalloc_free_on(gpu, &block, device), "no device");
    INVALID(stratalloc_empty_cache(gpu, device, NULL), "no device");
    INVALID(stratalloc_check_memory(gpu, device, &number), "no device");
    INVALID(stratalloc_set_limit(gpu, device, MIB), "no device");
    INVALID(stratalloc_set_tag_limit(gpu, device, 0, MIB), "no device");
    INVALID(stratalloc_get_stats(gpu, device, &stats), "no device");
    INVALID(stratalloc_reset_peaks(gpu, device), "no device");
    INVALID(stratalloc_pool_retain(gpu, device, POOL), "no device");
    INVALID(stratalloc_capture_begin(gpu, device), "no device");
  }
  double parts[] = {0, -0.5, 1.5, NAN, INFINITY};
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
    INVALID(stratalloc_set_limit_fraction(gpu, 0, parts[i]), "above 0 and at most 1");
  }
  OK(stratalloc_malloc(gpu, 64 * MIB, 0, NULL, &block));
  FAILS(stratalloc_set_limit(gpu, 0, 32 * MIB), STRATALLOC_OVER_LIMIT, "below what is in use");
  FAILS(stratalloc_set_limit_fraction(gpu, 0, 0.01), STRATALLOC_OVER_LIMIT, "below what is in use");
  OK(stratalloc_set_limit_fraction(gpu, 0, 0.5));
  REQUIRE(stats_of(gpu).limit == 128 * MIB);
  void *second = NULL;
  FAILS(stratalloc_malloc(gpu, 200 * MIB, 0, NULL, &second), STRATALLOC_NEVER_FITS, "limited to 128 MiB");
  OK(stratalloc_set_limit(gpu, 0, UINT64_MAX));
  REQUIRE(stats_of(gpu).limit == 256 * MIB);
  OK(stratalloc_free(gpu, block));
  stratalloc_destroy(gpu);
}

static int dropped;
static void drop(void *context) {
  REQUIRE(context == &dropped);
  dropped++;
}
static bool none(void *context, stratalloc_stream stream) {
  (void)context;
  (void)stream;
  return false;
}

static void pools(void) {
  stratalloc_allocator *gpu = make(256 * MIB, "");
  const stratalloc_pool_id nowhere = {0, 0}, unknown = {1, 2};
  size_t users = 9;
  INVALID(stratalloc_pool_begin(gpu, 0, nowhere, NULL, NULL, NULL), "{0, 0} is not a private pool");
  INVALID(stratalloc_pool_retain(gpu, 0, nowhere), "{0, 0} is not a private pool");
  INVALID(stratalloc_pool_end(gpu, 0, unknown), "is not being filled");
  INVALID(stratalloc_pool_release(gpu, 0, unknown), "does not exist");
  INVALID(stratalloc_pool_set_use_on_oom(gpu, 0, unknown, true), "does not exist");
  INVALID(stratalloc_pool_users(gpu, 0, POOL, NULL), "`out` is null");
  OK(stratalloc_pool_users(gpu, 0, unknown, &users));
  REQUIRE(users == 0);
  /* The context goes exactly once, whether the call fails or not. */
  INVALID(stratalloc_pool_begin(gpu, 3, POOL, none, &dropped, drop), "no device 3");
  REQUIRE(dropped == 1);
  OK(stratalloc_pool_begin(gpu, 0, POOL, NULL, &dropped, drop));
  REQUIRE(dropped == 1);
  INVALID(stratalloc_pool_begin(gpu, 0, POOL, none, &dropped, drop), "is being filled already");
  REQUIRE(dropped == 2);
  FAILS(stratalloc_pool_release(gpu, 0, POOL), STRATALLOC_CAPTURING, "capture");
  FAILS(stratalloc_empty_cache(gpu, 0, NULL), STRATALLOC_CAPTURING, "capture");
  void *block = NULL;
  OK(stratalloc_malloc(gpu, MIB, 0, NULL, &block));
  stratalloc_block found = {.struct_size = sizeof found};
  OK(stratalloc_find(gpu, block, &found));
  REQUIRE(found.pool.first == POOL.first && found.pool.second == POOL.second);
  OK(stratalloc_pool_end(gpu, 0, POOL));
  REQUIRE(dropped == 3);
  INVALID(stratalloc_pool_end(gpu, 0, POOL), "is not being filled");
  OK(stratalloc_pool_retain(gpu, 0, POOL));
  OK(stratalloc_pool_users(gpu, 0, POOL, &users));
  REQUIRE(users == 2);
  OK(stratalloc_free(gpu, block));
  OK(stratalloc_pool_set_use_on_oom(gpu, 0, POOL, true));
  OK(stratalloc_pool_release(gpu, 0, POOL));
  OK(stratalloc_pool_release(gpu, 0, POOL));
  INVALID(stratalloc_pool_release(gpu, 0, POOL), "does not exist");
  OK(stratalloc_pool_empty(gpu, 0, POOL, &users));
  /* A filter still in use goes with the allocator. */
  OK(stratalloc_pool_route(gpu, 0, POOL, none, &dropped, drop));
  stratalloc_destroy(gpu);
  REQUIRE(dropped == 4);
}

static size_t told_freed, told_allocated;
static void freed(void *context, void *address) {
  REQUIRE(context == &told_freed && address != NULL);
  told_freed++;
}
static void allocated(void *context, void *address, size_t bytes) {
  REQUIRE(context == &told_freed && address != NULL && bytes >= MIB);
  told_allocated++;
}

static void captures_and_checkpoints(void) {
  stratalloc_allocator *gpu = make(256 * MIB, "");
  INVALID(stratalloc_capture_end(gpu, 0), "no capture is under way");
  OK(stratalloc_capture_begin(gpu, 0));
  OK(stratalloc_capture_end(gpu, 0));
  stratalloc_checkpoint *checkpoint = NULL;
  INVALID(stratalloc_pool_checkpoint(gpu, 0, POOL, NULL), "`out` is null");
  INVALID(stratalloc_pool_restore(gpu, 0, NULL, NULL, NULL, NULL), "`checkpoint` is null");
  void *first = NULL, *second = NULL;
  OK(stratalloc_pool_begin(gpu, 0, POOL, NULL, NULL, NULL));
  OK(stratalloc_malloc(gpu, MIB, 0, NULL, &first));
  OK(stratalloc_pool_end(gpu, 0, POOL));
  OK(stratalloc_pool_checkpoint(gpu, 0, POOL, &checkpoint));
  OK(stratalloc_pool_begin(gpu, 0, POOL, NULL, NULL, NULL));
  OK(stratalloc_malloc(gpu, 2 * MIB, 0, NULL, &second));
  OK(stratalloc_pool_end(gpu, 0, POOL));
  OK(stratalloc_free(gpu, first));
  INVALID(stratalloc_pool_restore(gpu, 1, checkpoint, NULL, NULL, NULL), "no device 1");
  OK(stratalloc_pool_restore(gpu, 0, checkpoint, freed, allocated, &told_freed));
  REQUIRE(told_freed == 1 && told_allocated == 1);
  FAILS(stratalloc_free(gpu, second), STRATALLOC_DOUBLE_FREE, "was freed already");
  OK(stratalloc_free(gpu, first));
  stratalloc_checkpoint_destroy(checkpoint);
  stratalloc_destroy(gpu);
}

static void defragmentation_and_plans(void) {
  stratalloc_allocator *gpu = make(256 * MIB, "plan:inline");
  stratalloc_pass_limits limits = {.struct_size = 3};
  stratalloc_defrag_report shared = {.struct_size = sizeof shared};
  stratalloc_compact_report moved = {.struct_size = 0};
  INVALID(stratalloc_defragment(gpu, 0, &limits, &shared), "struct_size of stratalloc_pass_limits is 3");
  INVALID(stratalloc_compact(gpu, 0, NULL, &moved), "struct_size of stratalloc_compact_report is 0");
  INVALID(stratalloc_defragment(gpu, 4, NULL, &shared), "no device 4");
  INVALID(stratalloc_compact(gpu, -1, NULL, NULL), "no device -1");
  limits.struct_size = sizeof limits;
  limits.time_ns = 1;
  OK(stratalloc_defragment(gpu, 0, &limits, &shared));
  stratalloc_request request = {.struct_size = sizeof request, .bytes = 5 * MIB};
  stratalloc_movable *block = NULL;
  void *where = NULL;
  INVALID(stratalloc_alloc_movable(gpu, &request, NULL), "`out` is null");
  INVALID(stratalloc_alloc_movable(gpu, NULL, &block), "stratalloc_request is null");
  OK(stratalloc_alloc_movable(gpu, &request, &block));
  INVALID(stratalloc_movable_unpin(block), "is not pinned");
  OK(stratalloc_movable_pin(block, &where));
  memset(where, 1, 5 * MIB);
  moved.struct_size = sizeof moved;
  OK(stratalloc_compact(gpu, 0, &limits, &moved));
  REQUIRE(moved.moved == 0);
  OK(stratalloc_movable_free(block));
  request.bytes = 300 * MIB;
  REQUIRE(stratalloc_alloc_movable(gpu, &request, &block) != STRATALLOC_OK && block == NULL);
  size_t size = 0;
  char small[4];
  OK(stratalloc_step(gpu));
  INVALID(stratalloc_export_plan(gpu, 0, small, sizeof small, NULL), "`size` is null");
  INVALID(stratalloc_export_plan(gpu, 0, NULL, 9, &size), "is to have 9 bytes");
  OK(stratalloc_export_plan(gpu, 0, small, sizeof small, &size));
  INVALID(stratalloc_import_plan(gpu, 0, "no plan", 7, NULL), "plan");
  INVALID(stratalloc_import_plan(gpu, 0, NULL, 7, NULL), "null");
  stratalloc_destroy(gpu);
}

static void configurations(void) {
  stratalloc_options options = {.struct_size = sizeof options, .software_bytes = 256 * MIB};
  stratalloc_allocator *gpu = NULL;
  const char *wrong[] = {"limt:0.5", "limit:2.0", "limit", "chunk:3MiB", ":::", "limit:0.5;trace:1"};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    options.config = wrong[i];
    FAILS(stratalloc_create(&options, &gpu), STRATALLOC_INVALID_CONFIG, "");
    FAILS(stratalloc_configure_default(wrong[i]), STRATALLOC_INVALID_CONFIG, "");
  }
  REQUIRE(gpu == NULL);
  options.config = "\xff";
  INVALID(stratalloc_create(&options, &gpu), "not UTF-8");
  options.config = NULL;
  setenv("STRATALLOC_CONF", "limt:0.5", 1);
  FAILS(stratalloc_create(&options, &gpu), STRATALLOC_INVALID_CONFIG, "STRATALLOC_CONF: unknown key 'limt'");
  setenv("STRATALLOC_CONF", "limit:0.5", 1);
  OK(stratalloc_create(&options, &gpu));
  REQUIRE(stats_of(gpu).limit == 128 * MIB);
  stratalloc_destroy(gpu);
  options.config = "";
  options.software_bytes = UINT64_MAX;
  gpu = NULL;
  REQUIRE(stratalloc_create(&options, &gpu) != STRATALLOC_OK && gpu == NULL);
  options.software_bytes = 1;
  stratalloc_status status = stratalloc_create(&options, &gpu);
  REQUIRE(status == STRATALLOC_OK || gpu == NULL);
  stratalloc_destroy(gpu);

  const int32_t ordinals[] = {0, 0, -1};
  options.devices = ordinals;
  INVALID(stratalloc_create(&options, &gpu), "device_count is 0");
  options.device_count = 1;
  INVALID(stratalloc_create(&options, &gpu), "do not go together");
  options.software_bytes = 0;
  FAILS(stratalloc_create(&options, &gpu), STRATALLOC_LIBRARY_MISSING, "");
  options.device_count = 2;
  INVALID(stratalloc_create(&options, &gpu), "given twice");
  options.devices = ordinals + 1;
  INVALID(stratalloc_create(&options, &gpu), "no device -1");
  options.device_count = SIZE_MAX;
  INVALID(stratalloc_create(&options, &gpu), "no machine");
  options.devices = NULL;
  INVALID(stratalloc_create(&options, &gpu), "`devices` is null");
}

static void default_allocator(const char *wanted) {
  stratalloc_allocator *gpu = NULL;
  stratalloc_status status = stratalloc_default(&gpu);
  REQUIRE(strcmp(stratalloc_status_name(status), wanted) == 0 && gpu == NULL);
}

static void out_of_memory(void) {
  stratalloc_allocator *gpu = make(256 * MIB, "");
  void *blocks[512];
  size_t count = 0;
  stratalloc_status status;
  while ((status = stratalloc_malloc(gpu, 6 * MIB, 0, NULL, &blocks[count])) == STRATALLOC_OK) REQUIRE(++count < 512);
  REQUIRE(status == STRATALLOC_OUT_OF_MEMORY && blocks[count] == NULL && count >= 40);
  REQUIRE(strstr(stratalloc_last_error(), "no room for 6 MiB; ") != NULL);
  char page[8192];
  size_t length = stratalloc_explain_oom(gpu, 0, page, sizeof page);
  REQUIRE(length == strlen(page) + 1 && strstr(page, "no room for 6 MiB on device 0: live blocks fill the memory; free ") == page);
  REQUIRE(strstr(page, "\n  to do ") != NULL && stratalloc_explain_oom(gpu, 0, NULL, 0) == length);
  REQUIRE(stratalloc_explain_oom(gpu, 0, page, 8) == length && strcmp(page, "no room") == 0);
  REQUIRE(stratalloc_explain_oom(gpu, 7, page, sizeof page) == 0 && strstr(stratalloc_last_error(), "7") != NULL);
  REQUIRE(stratalloc_explain_oom(NULL, 0, page, sizeof page) == 0);
  OK(stratalloc_malloc(gpu, 512, 0, NULL, &blocks[count]));
  OK(stratalloc_free(gpu, blocks[count]));
  OK(stratalloc_free(gpu, blocks[--count]));
  OK(stratalloc_malloc(gpu, 6 * MIB, 0, NULL, &blocks[count]));
  for (count++; count > 0; count--) OK(stratalloc_free(gpu, blocks[count - 1]));
  OK(stratalloc_malloc(gpu, 200 * MIB, 0, NULL, &blocks[0]));
  OK(stratalloc_free(gpu, blocks[0]));
  REQUIRE(stats_of(gpu).out_of_memory == 1);
  stratalloc_destroy(gpu);
}

static void *fails_elsewhere(void *unused) {
  (void)unused;
  REQUIRE(strlen(stratalloc_last_error()) == 0);
  INVALID(stratalloc_free(NULL, NULL), "handle is null");
  return NULL;
}

static void errors_by_thread(void) {
  REQUIRE(strcmp(stratalloc_last_error(), "") == 0 && stratalloc_last_error_copy(NULL, 0) == 1);
  stratalloc_allocator *gpu = make(256 * MIB, "");
  INVALID(stratalloc_malloc(gpu, 0, 0, NULL, &(void *){NULL}), "invalid size 0");
  pthread_t thread;
  REQUIRE(pthread_create(&thread, NULL, fails_elsewhere, NULL) == 0 && pthread_join(thread, NULL) == 0);
  OK(stratalloc_free(gpu, NULL));
  char text[15];
  size_t length = stratalloc_last_error_copy(text, sizeof text);
  REQUIRE(strcmp(text, "invalid size 0") == 0 && length == strlen(stratalloc_last_error()) + 1 && length > 15);
  REQUIRE(strcmp(stratalloc_status_name(-1), "unknown") == 0 && strcmp(stratalloc_status_name(1000), "unknown") == 0);
  stratalloc_destroy(gpu);
}

enum { THREADS = 8, ROUNDS = 3000, SHARED = 64 };
static stratalloc_allocator *common;
static _Atomic(void *) exchange[SHARED];

/* Every thread frees what others have allocated. */
static void *churn(void *seed) {
  uint64_t state = (uint64_t)(uintptr_t)seed * 2654435761u + 1;
  for (int i = 0; i < ROUNDS; i++) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    void *block = NULL;
    OK(stratalloc_malloc(common, 1 + (state >> 40) % 200000, 0, NULL, &block));
    block = atomic_exchange(&exchange[(state >> 33) % SHARED], block);
    OK(stratalloc_free(common, block));
    if (i % 500 == 0) OK(stratalloc_empty_cache(common, 0, NULL));
  }
  return NULL;
}

static void run_threads(void *(*work)(void *)) {
  pthread_t threads[THREADS];
  for (uintptr_t i = 0; i < THREADS; i++) REQUIRE(pthread_create(&threads[i], NULL, work, (void *)(i + 1)) == 0);
  for (int i = 0; i < THREADS; i++) REQUIRE(pthread_join(threads[i], NULL) == 0);
}

static void threads(void) {
  common = make(256 * MIB, "");
  run_threads(churn);
  for (int i = 0; i < SHARED; i++) OK(stratalloc_free(common, exchange[i]));
  stratalloc_stats stats = stats_of(common);
  REQUIRE(stats.live.current == 0 && stats.allocs == THREADS * ROUNDS && stats.frees == stats.allocs);
  stratalloc_destroy(common);
}

static atomic_int asked;
static bool refuse(void *context, const stratalloc_shortage *shortage) {
  REQUIRE(context == &asked && shortage->struct_size >= sizeof *shortage && shortage->capacity == 256 * MIB);
  asked++;
  return false;
}
static bool remove_itself(void *context, const stratalloc_shortage *shortage) {
  (void)shortage;
  OK(stratalloc_remove_oom_observer(common, *(uint64_t *)context));
  return true;
}

static void observers_removed(void) {
  common = make(256 * MIB, "");
  uint64_t id = 0, itself = 0;
  INVALID(stratalloc_add_oom_observer(common, NULL, NULL, &id), "observer is null");
  INVALID(stratalloc_remove_oom_observer(common, 77), "no observer 77");
  INVALID(stratalloc_visit_segments(common, 0, NULL, NULL), "visitor is null");
  void *block = NULL, *more = NULL;
  OK(stratalloc_malloc(common, 200 * MIB, 0, NULL, &block));
  OK(stratalloc_add_oom_observer(common, refuse, &asked, &id));
  OK(stratalloc_add_oom_observer(common, remove_itself, &itself, &itself));
  FAILS(stratalloc_malloc(common, 100 * MIB, 0, NULL, &more), STRATALLOC_OUT_OF_MEMORY, "100 MiB");
  REQUIRE(asked == 2);
  OK(stratalloc_remove_oom_observer(common, id));
  FAILS(stratalloc_malloc(common, 100 * MIB, 0, NULL, &more), STRATALLOC_OUT_OF_MEMORY, "100 MiB");
  REQUIRE(asked == 2);
  INVALID(stratalloc_remove_oom_observer(common, id), "no observer");
  stratalloc_destroy(common);
}

static void files(const char *folder) {
  stratalloc_allocator *gpu = make(256 * MIB, "");
  const char *wrong[] = {"/nonexistent/folder/file", folder, "/dev/full"};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    FAILS(stratalloc_trace_start(gpu, wrong[i]), STRATALLOC_IO, wrong[i]);
    FAILS(stratalloc_write_snapshot(gpu, wrong[i]), STRATALLOC_IO, wrong[i]);
  }
  INVALID(stratalloc_trace_start(gpu, NULL), "`path` is null");
  INVALID(stratalloc_trace_start(gpu, ""), "`path` is empty");
  INVALID(stratalloc_write_snapshot(gpu, NULL), "`path` is null");
  INVALID(stratalloc_trace_stop(gpu, NULL), "no trace is being recorded");
  char path[4096];
  snprintf(path, sizeof path, "%s/bad-input-%d.trace", folder, (int)getpid());
  OK(stratalloc_trace_start(gpu, path));
  INVALID(stratalloc_trace_start(gpu, path), "recorded already");
  void *block = NULL;
  OK(stratalloc_malloc(gpu, 1000, 0, NULL, &block));
  INVALID(stratalloc_malloc(gpu, 0, 0, NULL, &(void *){NULL}), "invalid size");
  FAILS(stratalloc_free(gpu, (char *)block + 1), STRATALLOC_INVALID_POINTER, "not the start");
  INVALID(stratalloc_free_on(gpu, block, 1), "no device 1");
  OK(stratalloc_free(gpu, block));
  FAILS(stratalloc_free(gpu, block), STRATALLOC_DOUBLE_FREE, "freed already");
  uint64_t operations = 0;
  OK(stratalloc_trace_stop(gpu, &operations));
  REQUIRE(operations == 2);
  /* A recording goes with its allocator, and leaves others as fast as they were. */
  OK(stratalloc_trace_start(gpu, path));
  stratalloc_destroy(gpu);
  remove(path);
}

static void torch_without_cuda(void) {
  REQUIRE(stratalloc_torch_alloc(512, 0, NULL) == NULL && strlen(stratalloc_last_error()) > 0);
  REQUIRE(stratalloc_torch_alloc(0, 0, NULL) == NULL);
  size_t size = 7;
  REQUIRE(stratalloc_torch_base_alloc(&size, &size) == NULL && size == 7);
  stratalloc_torch_free(NULL, 0, 0, NULL);
  stratalloc_torch_init(1);
  stratalloc_torch_reset();
  stratalloc_torch_memory_fraction(0.5, 0);
  stratalloc_torch_record_stream(&size, NULL);
  stratalloc_torch_end_allocate_to_pool(0, POOL);
  stratalloc_torch_release_pool(0, POOL);
  for (int i = 0; i < 100; i++) stratalloc_torch_free(&size, 1, 0, NULL);
}

static atomic_bool enough;

/* Keeps the locks busy. */
static void *hold_locks(void *unused) {
  (void)unused;
  stratalloc_stats stats = {.struct_size = sizeof stats};
  while (!enough) {
    void *blocks[8];
    for (int i = 0; i < 8; i++) OK(stratalloc_malloc(common, (size_t)(i + 1) * MIB, 0, NULL, &blocks[i]));
    for (int i = 0; i < 8; i++) OK(stratalloc_free(common, blocks[i]));
    OK(stratalloc_get_stats(common, 0, &stats));
    OK(stratalloc_empty_cache(common, 0, NULL));
  }
  return NULL;
}

static void in_child(void *block) {
  stratalloc_stats stats = {.struct_size = sizeof stats};
  void *none = NULL;
  stratalloc_allocator *made = NULL;
  stratalloc_options options = {.struct_size = sizeof options, .config = "", .software_bytes = MIB};
  FAILS(stratalloc_malloc(common, 512, 0, NULL, &none), STRATALLOC_FORKED, "forked");
  FAILS(stratalloc_free(common, block), STRATALLOC_FORKED, "forked");
  FAILS(stratalloc_free(common, NULL), STRATALLOC_FORKED, "forked");
  FAILS(stratalloc_get_stats(common, 0, &stats), STRATALLOC_FORKED, "forked");
  FAILS(stratalloc_empty_cache(common, 0, NULL), STRATALLOC_FORKED, "forked");
  FAILS(stratalloc_write_snapshot(common, "/nonexistent"), STRATALLOC_FORKED, "forked");
  FAILS(stratalloc_trace_stop(common, NULL), STRATALLOC_FORKED, "forked");
  FAILS(stratalloc_create(&options, &made), STRATALLOC_FORKED, "forked");
  FAILS(stratalloc_default(&made), STRATALLOC_FORKED, "forked");
  FAILS(stratalloc_configure_default(NULL), STRATALLOC_FORKED, "forked");
  FAILS(stratalloc_remove_oom_observer(common, 1), STRATALLOC_FORKED, "forked");
  FAILS(stratalloc_offload(common, STRATALLOC_SELECT_ALL, 0), STRATALLOC_FORKED, "forked");
  FAILS(stratalloc_wake(common, NULL, 0), STRATALLOC_FORKED, "forked");
  FAILS(stratalloc_pop_tag(common), STRATALLOC_FORKED, "forked");
  REQUIRE(stratalloc_torch_alloc(512, 0, NULL) == NULL);
  stratalloc_torch_free(block, 512, 0, NULL);
  stratalloc_destroy(common);
}

static void forks(void) {
  common = make(256 * MIB, "");
  void *block = NULL;
  OK(stratalloc_malloc(common, MIB, 0, NULL, &block));
  pthread_t threads[3];
  for (int i = 0; i < 3; i++) REQUIRE(pthread_create(&threads[i], NULL, hold_locks, NULL) == 0);
  for (int i = 0; i < 300; i++) {
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      alarm(20);
      in_child(block);
      /* As a program ends: what threads and libraries have to do at their end is done. */
      exit(0);
    }
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
      fprintf(stderr, "child %d ended with %#x\n", i, status);
      _exit(1);
    }
  }
  enough = true;
  for (int i = 0; i < 3; i++) REQUIRE(pthread_join(threads[i], NULL) == 0);
  OK(stratalloc_free(common, block));
  REQUIRE(stats_of(common).live.current == 0);
  stratalloc_destroy(common);
}

typedef stratalloc_status create_function(const stratalloc_options *, stratalloc_allocator **);
typedef void destroy_function(stratalloc_allocator *);

static void loaded_by_name(const char *path) {
  for (int i = 0; i < 3; i++) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    REQUIRE(library != NULL);
    create_function *create;
    destroy_function *destroy;
    *(void **)&create = dlsym(library, "stratalloc_create");
    *(void **)&destroy = dlsym(library, "stratalloc_destroy");
    REQUIRE(create != NULL && destroy != NULL);
    stratalloc_options options = {.struct_size = sizeof options, .config = "", .software_bytes = 64 * MIB};
    stratalloc_allocator *made = NULL;
    OK(create(&options, &made));
    destroy(made);
    REQUIRE(dlclose(library) == 0);
    /* Whatever it has asked to be called at a fork went with it. */
    pid_t child = fork();
    if (child == 0) _exit(0);
    int status = 1;
    REQUIRE(child > 0 && waitpid(child, &status, 0) == child && status == 0);
  }
}

#define CASE(name) \
  if (strcmp(argv[1], #name) == 0) return name(), 0
#define CASE_OF(name) \
  if (argc > 2 && strcmp(argv[1], #name) == 0) return name(argv[2]), 0

int main(int argc, char **argv) {
  if (argc < 2) return 2;
  CASE(handles);
  CASE(pointers);
  CASE(sizes_and_alignments);
  CASE(struct_sizes);
  CASE(requests);
  CASE(devices_and_limits);
  CASE(pools);
  CASE(captures_and_checkpoints);
  CASE(defragmentation_and_plans);
  CASE(configurations);
  CASE(out_of_memory);
  CASE(errors_by_thread);
  CASE(threads);
  CASE(observers_removed);
  CASE(torch_without_cuda);
  CASE(forks);
  CASE_OF(default_allocator);
  CASE_OF(files);
  CASE_OF(loaded_by_name);
  fprintf(stderr, "no case %s\n", argv[1]);
  return 2;
}
