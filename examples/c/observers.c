/* Keeps a cache of blocks that can be done without, and gives it up when memory runs out; follows what is mapped; writes a snapshot and
 * a trace.
 *
 *   cc observers.c $(pkg-config --cflags --libs stratalloc) -o observers && ./observers snapshot.pickle run.trace */
#include <stdio.h>
#include <stdlib.h>
#include <stratalloc.h>

enum { CACHED = 6 };

struct cache {
  stratalloc_allocator *gpu;
  void *blocks[CACHED];
  int count, asked;
};

static void must(stratalloc_status status, const char *what) {
  if (status != STRATALLOC_OK) {
    fprintf(stderr, "%s: %s: %s\n", what, stratalloc_status_name(status), stratalloc_last_error());
    exit(1);
  }
}

/* No lock is held here: the allocator may be called. */
static bool give_up_one(void *context, const stratalloc_shortage *shortage) {
  struct cache *cache = context;
  cache->asked++;
  printf("no room for %llu bytes: %s\n", (unsigned long long)shortage->requested, shortage->explanation);
  if (cache->count == 0) return false;
  must(stratalloc_free(cache->gpu, cache->blocks[--cache->count]), "free");
  return true;
}

/* A lock is held here: the allocator must not be called. */
static void follow(void *context, const stratalloc_event *event) {
  long long *mapped = context;
  if (event->kind == STRATALLOC_EVENT_MAP) *mapped += (long long)event->bytes;
  if (event->kind == STRATALLOC_EVENT_UNMAP) *mapped -= (long long)event->bytes;
}

static bool print(void *context, const stratalloc_segment *segment) {
  uint64_t sum = 0;
  for (size_t i = 0; i < segment->block_count; i++) sum += stratalloc_segment_block(segment, i)->bytes;
  printf("segment of %llu bytes, %zu blocks, %llu allocated\n", (unsigned long long)segment->bytes, segment->block_count,
         (unsigned long long)segment->allocated);
  *(uint64_t *)context += segment->bytes;
  /* The blocks tile it. */
  if (sum != segment->bytes) exit(1);
  return true;
}

int main(int argc, char **argv) {
  stratalloc_options options = {.struct_size = sizeof options, .config = "trace:1000", .software_bytes = 256 << 20};
  struct cache cache = {0};
  long long mapped = 0;
  must(stratalloc_create(&options, &cache.gpu), "create");
  must(stratalloc_set_segment_observer(cache.gpu, follow, &mapped), "set_segment_observer");
  uint64_t id = 0;
  must(stratalloc_add_oom_observer(cache.gpu, give_up_one, &cache, &id), "add_oom_observer");
  if (argc > 2) must(stratalloc_trace_start(cache.gpu, argv[2]), "trace_start");

  for (; cache.count < CACHED; cache.count++) {
    must(stratalloc_malloc(cache.gpu, 32 << 20, 0, NULL, &cache.blocks[cache.count]), "malloc");
  }
  /* 64 MiB are left: this has room once two blocks of the cache are given up. */
  void *block = NULL;
  must(stratalloc_malloc(cache.gpu, 128 << 20, 0, NULL, &block), "malloc");
  printf("asked %d time(s), %d blocks left in the cache\n", cache.asked, cache.count);
  if (cache.asked == 0 || cache.count == CACHED) return 1;

  uint64_t seen = 0;
  must(stratalloc_visit_segments(cache.gpu, 0, print, &seen), "visit_segments");
  if (argc > 1) must(stratalloc_write_snapshot(cache.gpu, argv[1]), "write_snapshot");

  must(stratalloc_remove_oom_observer(cache.gpu, id), "remove_oom_observer");
  must(stratalloc_free(cache.gpu, block), "free");
  while (cache.count > 0) must(stratalloc_free(cache.gpu, cache.blocks[--cache.count]), "free");
  must(stratalloc_empty_cache(cache.gpu, 0, NULL), "empty_cache");
  if (argc > 2) {
    uint64_t operations = 0;
    must(stratalloc_trace_stop(cache.gpu, &operations), "trace_stop");
    printf("%llu calls recorded\n", (unsigned long long)operations);
  }
  stratalloc_stats stats = {.struct_size = sizeof stats};
  must(stratalloc_get_stats(cache.gpu, 0, &stats), "get_stats");
  printf("%lld bytes are mapped, %llu reserved\n", mapped, (unsigned long long)stats.reserved.current);
  must(stratalloc_set_segment_observer(cache.gpu, NULL, NULL), "set_segment_observer");
  stratalloc_destroy(cache.gpu);
  return mapped == 0 && stats.reserved.current == 0 ? 0 : 1;
}
