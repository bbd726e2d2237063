/* Evictable memory through the C library: what leaves the device comes back as it was, and what cannot be done is told. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <stratalloc.h>

#define REQUIRE(holds)                                                                          \
  do {                                                                                          \
    if (!(holds)) {                                                                             \
      fprintf(stderr, "line %d: not so: %s (%s)\n", __LINE__, #holds, stratalloc_last_error()); \
      exit(1);                                                                                  \
    }                                                                                           \
  } while (0)

/* The call returns this, and its text has these words. */
#define FAILS(call, wanted, words)                                                                        \
  do {                                                                                                    \
    stratalloc_status status = (call);                                                                    \
    if (status != (wanted) || strstr(stratalloc_last_error(), (words)) == NULL) {                         \
      fprintf(stderr, "line %d: %s is %s: %s\n", __LINE__, #call, stratalloc_status_name(status), stratalloc_last_error()); \
      exit(1);                                                                                            \
    }                                                                                                     \
  } while (0)

#define OK(call) REQUIRE((call) == STRATALLOC_OK)
#define MIB ((size_t)1 << 20)

static stratalloc_allocator *make(const char *config) {
  stratalloc_options options = {.struct_size = sizeof options, .config = config, .software_bytes = 256 * MIB};
  stratalloc_allocator *made = NULL;
  OK(stratalloc_create(&options, &made));
  return made;
}

static unsigned char *evictable(stratalloc_allocator *gpu, size_t bytes, uint32_t tag) {
  stratalloc_request request = {.struct_size = sizeof request, .bytes = bytes, .tag = tag};
  stratalloc_evictable how = {.struct_size = sizeof how};
  void *block = NULL;
  OK(stratalloc_alloc_evictable(gpu, &request, &how, &block));
  return block;
}

static uint32_t state_of(stratalloc_allocator *gpu, void *block) {
  uint32_t state = 99;
  OK(stratalloc_residency(gpu, block, &state));
  return state;
}

static stratalloc_tier_stats stats_of(stratalloc_allocator *gpu) {
  stratalloc_tier_stats stats = {.struct_size = sizeof stats};
  OK(stratalloc_get_tier_stats(gpu, 0, &stats));
  return stats;
}

/* The software device's memory is the program's own. Bytes that come back are there when what they came through has been waited for: going again
 * does that. */
static bool holds(stratalloc_allocator *gpu, unsigned char *block, size_t bytes, unsigned char value) {
  OK(stratalloc_empty_cache(gpu, 0, NULL));
  for (size_t i = 0; i < bytes; i += 511) {
    if (block[i] != value) return false;
  }
  return block[bytes - 1] == value;
}

static void tell(void *context, uint32_t change, void *address, uint64_t bytes) {
  (void)address;
  (void)bytes;
  ((int *)context)[change] += 1;
}

static void moving(void) {
  stratalloc_allocator *gpu = make("tiers:host=128MiB,tier_workers:0");
  unsigned char *large = evictable(gpu, 8 * MIB, 0), *small = evictable(gpu, 1000, 0);
  memset(large, 7, 8 * MIB);
  memset(small, 9, 1000);
  stratalloc_block found = {.struct_size = sizeof found};
  OK(stratalloc_find(gpu, large + 4096, &found));
  REQUIRE(found.address == large && found.requested == 8 * MIB && found.state == STRATALLOC_BLOCK_LIVE);
  int changes[2] = {0, 0};
  uint64_t observer = 0;
  OK(stratalloc_add_residency_observer(gpu, tell, changes, &observer));
  REQUIRE(state_of(gpu, large) == STRATALLOC_RESIDENT);
  OK(stratalloc_offload(gpu, STRATALLOC_SELECT_BLOCK, (uint64_t)(uintptr_t)large));
  REQUIRE(state_of(gpu, large) == STRATALLOC_ON_HOST && state_of(gpu, small) == STRATALLOC_RESIDENT);
  REQUIRE(changes[STRATALLOC_UNMAPPING] == 1 && changes[STRATALLOC_REMAPPED] == 0);
  stratalloc_tier_stats stats = stats_of(gpu);
  REQUIRE(stats.tiers == 1 && stats.blocks == 2 && stats.away == 8 * MIB && stats.evictions == 1);
  stratalloc_tier tier = {.struct_size = sizeof tier};
  OK(stratalloc_get_tier(gpu, 0, 0, &tier));
  REQUIRE(strcmp(tier.name, "host") == 0 && tier.state == STRATALLOC_ON_HOST && tier.capacity == 128 * MIB);
  REQUIRE(tier.used >= 8 * MIB && tier.bytes_in == 8 * MIB);
  FAILS(stratalloc_get_tier(gpu, 0, 1, &tier), STRATALLOC_INVALID_ARGUMENT, "no tier 1: device 0 has 1");
  OK(stratalloc_prefetch(gpu, large, NULL));
  stratalloc_pinned *pinned = NULL;
  OK(stratalloc_pin(gpu, large, NULL, &pinned));
  REQUIRE(state_of(gpu, large) == STRATALLOC_RESIDENT || state_of(gpu, large) == STRATALLOC_RESTORING);
  FAILS(stratalloc_offload(gpu, STRATALLOC_SELECT_BLOCK, (uint64_t)(uintptr_t)large), STRATALLOC_RESIDENCY, "is pinned");
  FAILS(stratalloc_free(gpu, large), STRATALLOC_RESIDENCY, "is pinned");
  stratalloc_unpin(pinned);
  stratalloc_unpin(NULL);
  OK(stratalloc_offload(gpu, STRATALLOC_SELECT_ALL, 0));
  REQUIRE(state_of(gpu, large) == STRATALLOC_ON_HOST && state_of(gpu, small) == STRATALLOC_ON_HOST);
  OK(stratalloc_restore(gpu, STRATALLOC_SELECT_ALL, 0));
  OK(stratalloc_follow_restores(gpu, 0, NULL));
  REQUIRE(holds(gpu, large, 8 * MIB, 7) && holds(gpu, small, 1000, 9));
  REQUIRE(changes[STRATALLOC_REMAPPED] >= 2);
  OK(stratalloc_remove_residency_observer(gpu, observer));
  FAILS(stratalloc_remove_residency_observer(gpu, observer), STRATALLOC_INVALID_ARGUMENT, "no observer");
  OK(stratalloc_offload(gpu, STRATALLOC_SELECT_ALL, 0));
  OK(stratalloc_free(gpu, large));
  OK(stratalloc_free_on(gpu, small, 0));
  FAILS(stratalloc_offload(gpu, STRATALLOC_SELECT_BLOCK, (uint64_t)(uintptr_t)large), STRATALLOC_INVALID_POINTER, "evictable block");
  REQUIRE(stats_of(gpu).blocks == 0);
  stratalloc_destroy(gpu);
}

static void sleeping(void) {
  stratalloc_allocator *gpu = make("tiers:host=64MiB,tier_workers:0");
  uint32_t weights = 0, cache = 0;
  OK(stratalloc_tag(gpu, "weights", &weights));
  OK(stratalloc_tag(gpu, "cache", &cache));
  unsigned char *saved = evictable(gpu, 4 * MIB, weights), *dropped = evictable(gpu, 4 * MIB, cache), *kept = evictable(gpu, 4 * MIB, 0);
  memset(saved, 3, 4 * MIB);
  memset(kept, 4, 4 * MIB);
  stratalloc_sleep_tag tags[] = {{weights, STRATALLOC_SLEEP_SAVE}, {cache, STRATALLOC_SLEEP_DROP}};
  stratalloc_sleep_plan plan = {
      .struct_size = sizeof plan, .otherwise = STRATALLOC_SLEEP_KEEP, .tag_count = 2, .tags = tags};
  FAILS(stratalloc_wake(gpu, NULL, 0), STRATALLOC_RESIDENCY, "does not sleep");
  OK(stratalloc_sleep(gpu, &plan));
  REQUIRE(state_of(gpu, saved) == STRATALLOC_ON_HOST && state_of(gpu, dropped) == STRATALLOC_DROPPED);
  REQUIRE(state_of(gpu, kept) == STRATALLOC_RESIDENT && stats_of(gpu).asleep);
  FAILS(stratalloc_sleep(gpu, &plan), STRATALLOC_RESIDENCY, "sleeps: wake it first");
  stratalloc_pinned *pinned = NULL;
  FAILS(stratalloc_pin(gpu, saved, NULL, &pinned), STRATALLOC_RESIDENCY, "sleeps");
  REQUIRE(pinned == NULL);
  OK(stratalloc_wake(gpu, &cache, 1));
  REQUIRE(state_of(gpu, saved) == STRATALLOC_ON_HOST && state_of(gpu, dropped) == STRATALLOC_RESIDENT);
  OK(stratalloc_wake(gpu, NULL, 0));
  REQUIRE(holds(gpu, saved, 4 * MIB, 3) && holds(gpu, kept, 4 * MIB, 4) && !stats_of(gpu).asleep);
  /* More than the tier has room for: all stays where it was. */
  unsigned char *more[16];
  for (int i = 0; i < 16; i++) more[i] = evictable(gpu, 8 * MIB, weights);
  FAILS(stratalloc_sleep(gpu, &plan), STRATALLOC_TIER_FULL, "tier host is full");
  REQUIRE(state_of(gpu, saved) == STRATALLOC_RESIDENT || state_of(gpu, saved) == STRATALLOC_RESTORING);
  REQUIRE(holds(gpu, saved, 4 * MIB, 3) && !stats_of(gpu).asleep);
  for (int i = 0; i < 16; i++) OK(stratalloc_free(gpu, more[i]));
  tags[0].tag = 60;
  FAILS(stratalloc_sleep(gpu, &plan), STRATALLOC_INVALID_ARGUMENT, "no tag 60");
  tags[0] = (stratalloc_sleep_tag){weights, 9};
  FAILS(stratalloc_sleep(gpu, &plan), STRATALLOC_INVALID_ARGUMENT, "sleep action 9");
  plan.tags = NULL;
  FAILS(stratalloc_sleep(gpu, &plan), STRATALLOC_INVALID_ARGUMENT, "`tags` is null");
  FAILS(stratalloc_wake(gpu, NULL, 3), STRATALLOC_INVALID_ARGUMENT, "`tags` is null");
  FAILS(stratalloc_sleep(gpu, NULL), STRATALLOC_INVALID_ARGUMENT, "stratalloc_sleep_plan is null");
  stratalloc_destroy(gpu);
}

static void *elsewhere(void *gpu) {
  uint32_t state = 0;
  void *block = NULL;
  OK(stratalloc_malloc(gpu, MIB, 0, NULL, &block));
  FAILS(stratalloc_residency(gpu, block, &state), STRATALLOC_INVALID_POINTER, "evictable");
  FAILS(stratalloc_pop_tag(gpu), STRATALLOC_INVALID_ARGUMENT, "pushed no tag");
  uint32_t tag = 0;
  OK(stratalloc_tag(gpu, "weights", &tag));
  /* A thread takes along what it has pushed. */
  OK(stratalloc_push_tag(gpu, tag, NULL));
  return block;
}

static void tags_of_threads(void) {
  stratalloc_allocator *gpu = make("tiers:host=64MiB,tier_workers:0");
  stratalloc_allocator *other = make("tiers:host=64MiB,tier_workers:0");
  stratalloc_evictable how = {.struct_size = sizeof how, .only_when_asked = true};
  stratalloc_block found = {.struct_size = sizeof found};
  uint32_t tag = 0, state = 0;
  void *inside = NULL, *named = NULL, *plain = NULL, *foreign = NULL, *pooled = NULL, *alone = NULL;
  OK(stratalloc_tag(gpu, "weights", &tag));
  OK(stratalloc_push_tag(gpu, tag, &how));
  OK(stratalloc_malloc(gpu, 3 * MIB, 0, NULL, &inside));
  REQUIRE(state_of(gpu, inside) == STRATALLOC_RESIDENT);
  OK(stratalloc_find(gpu, inside, &found));
  REQUIRE(found.tag == tag);
  OK(stratalloc_malloc(other, 3 * MIB, 0, NULL, &foreign));
  FAILS(stratalloc_residency(other, foreign, &state), STRATALLOC_INVALID_POINTER, "evictable");
  pthread_t thread;
  void *theirs = NULL;
  REQUIRE(pthread_create(&thread, NULL, elsewhere, gpu) == 0 && pthread_join(thread, &theirs) == 0);
  OK(stratalloc_push_tag(gpu, tag, NULL));
  OK(stratalloc_malloc(gpu, MIB, 0, NULL, &named));
  FAILS(stratalloc_residency(gpu, named, &state), STRATALLOC_INVALID_POINTER, "evictable");
  OK(stratalloc_find(gpu, named, &found));
  REQUIRE(found.tag == tag);
  OK(stratalloc_pop_tag(gpu));
  stratalloc_request request = {.struct_size = sizeof request, .bytes = MIB, .flags = STRATALLOC_DEDICATED};
  OK(stratalloc_alloc(gpu, &request, &alone));
  FAILS(stratalloc_residency(gpu, alone, &state), STRATALLOC_INVALID_POINTER, "evictable");
  /* What a graph replays with does not move. */
  const stratalloc_pool_id pool = {0, 7};
  OK(stratalloc_pool_begin(gpu, 0, pool, NULL, NULL, NULL));
  OK(stratalloc_malloc(gpu, MIB, 0, NULL, &pooled));
  OK(stratalloc_pool_end(gpu, 0, pool));
  FAILS(stratalloc_residency(gpu, pooled, &state), STRATALLOC_INVALID_POINTER, "evictable");
  OK(stratalloc_pop_tag(gpu));
  OK(stratalloc_malloc(gpu, MIB, 0, NULL, &plain));
  FAILS(stratalloc_residency(gpu, plain, &state), STRATALLOC_INVALID_POINTER, "evictable");
  FAILS(stratalloc_pop_tag(gpu), STRATALLOC_INVALID_ARGUMENT, "pushed no tag");
  FAILS(stratalloc_push_tag(gpu, 60, &how), STRATALLOC_INVALID_ARGUMENT, "no tag 60");
  how.codec = "zip";
  FAILS(stratalloc_push_tag(gpu, tag, &how), STRATALLOC_INVALID_ARGUMENT, "zip");
  stratalloc_destroy(other);
  stratalloc_destroy(gpu);
  gpu = make("");
  how.codec = NULL;
  FAILS(stratalloc_push_tag(gpu, 0, &how), STRATALLOC_TIER_UNUSABLE, "tiers:host=");
  FAILS(stratalloc_alloc_evictable(gpu, &request, &how, &plain), STRATALLOC_TIER_UNUSABLE, "tiers:host=");
  REQUIRE(plain == NULL && stats_of(gpu).tiers == 0);
  stratalloc_destroy(gpu);
}

static void stashing(void) {
  stratalloc_allocator *gpu = make("tiers:host=64MiB,tier_workers:0");
  unsigned char *block = NULL, *back = NULL;
  OK(stratalloc_malloc(gpu, 4 * MIB, 0, NULL, (void **)&block));
  memset(block, 5, 4 * MIB);
  stratalloc_stashed *stashed = NULL;
  FAILS(stratalloc_stash(gpu, block, MIB, NULL, "tape", &stashed), STRATALLOC_TIER_UNUSABLE, "there are host");
  FAILS(stratalloc_stash(gpu, block, 128 * MIB, NULL, NULL, &stashed), STRATALLOC_INVALID_ARGUMENT, "size");
  FAILS(stratalloc_stash(gpu, &stashed, 8, NULL, NULL, &stashed), STRATALLOC_INVALID_POINTER, "");
  REQUIRE(stashed == NULL);
  OK(stratalloc_stash(gpu, block + MIB, MIB, NULL, "host", &stashed));
  bool may_free = false;
  OK(stratalloc_stash_may_free(stashed, true, &may_free));
  REQUIRE(may_free);
  OK(stratalloc_free(gpu, block));
  OK(stratalloc_malloc(gpu, MIB, 0, NULL, (void **)&back));
  for (int round = 0; round < 2; round++) {
    OK(stratalloc_stash_fetch(stashed, back, NULL));
    OK(stratalloc_stash_order(stashed, NULL));
    REQUIRE(holds(gpu, back, MIB, 5));
  }
  stratalloc_tier tier = {.struct_size = sizeof tier};
  OK(stratalloc_get_tier(gpu, 0, 0, &tier));
  REQUIRE(tier.used >= MIB);
  stratalloc_stash_drop(stashed);
  stratalloc_stash_drop(NULL);
  OK(stratalloc_get_tier(gpu, 0, 0, &tier));
  REQUIRE(tier.used == 0);
  FAILS(stratalloc_stash_fetch(NULL, back, NULL), STRATALLOC_INVALID_ARGUMENT, "`stashed` is null");
  FAILS(stratalloc_stash_order(NULL, NULL), STRATALLOC_INVALID_ARGUMENT, "`stashed` is null");
  stratalloc_destroy(gpu);
}

static int computed, forgotten;

static bool compute(void *context, void *address, size_t bytes, stratalloc_stream stream) {
  (void)stream;
  computed += 1;
  if (*(int *)context == 0) return false;
  memset(address, *(int *)context, bytes);
  return true;
}

static void forget(void *context) {
  (void)context;
  forgotten += 1;
}

static void recomputing(void) {
  stratalloc_allocator *gpu = make("tiers:host=64MiB,tier_workers:0");
  int value = 6;
  stratalloc_request request = {.struct_size = sizeof request, .bytes = 4 * MIB};
  stratalloc_evictable how = {
      .struct_size = sizeof how, .recompute = compute, .context = &value, .drop_context = forget};
  unsigned char *block = NULL;
  OK(stratalloc_alloc_evictable(gpu, &request, &how, (void **)&block));
  FAILS(stratalloc_push_tag(gpu, 0, &how), STRATALLOC_INVALID_ARGUMENT, "stratalloc_alloc_evictable");
  OK(stratalloc_offload(gpu, STRATALLOC_SELECT_ALL, 0));
  REQUIRE(state_of(gpu, block) == STRATALLOC_DROPPED && computed == 0);
  value = 0;
  FAILS(stratalloc_restore(gpu, STRATALLOC_SELECT_ALL, 0), STRATALLOC_RESIDENCY, "computed again");
  REQUIRE(state_of(gpu, block) == STRATALLOC_DROPPED && computed == 1);
  value = 8;
  OK(stratalloc_restore(gpu, STRATALLOC_SELECT_ALL, 0));
  REQUIRE(computed == 2 && block[0] == 8 && block[4 * MIB - 1] == 8);
  OK(stratalloc_free(gpu, block));
  stratalloc_destroy(gpu);
  REQUIRE(forgotten == 1);
}

int main(void) {
  moving();
  sleeping();
  tags_of_threads();
  stashing();
  recomputing();
  return 0;
}
