/* Debug aids through the C library: the configuration is the environment's, the reports are lines on stderr. */
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

int main(void) {
  stratalloc_allocator *gpu = NULL;
  stratalloc_options options = {.struct_size = sizeof options, .software_bytes = 64 << 20};
  REQUIRE(stratalloc_create(&options, &gpu) == STRATALLOC_OK);
  unsigned char *block = NULL, *kept = NULL;
  size_t usable = 0;
  REQUIRE(stratalloc_malloc(gpu, 1000, 0, NULL, (void **)&block) == STRATALLOC_OK);
  REQUIRE(stratalloc_usable_size(gpu, block, &usable) == STRATALLOC_OK);
  REQUIRE(usable == (getenv("STRATALLOC_CONF") != NULL ? 1000 : 1024));
  /* The software device's memory is the program's own. */
  memset(block, 1, 1001);
  REQUIRE(stratalloc_free(gpu, block) == STRATALLOC_OK);
  block[10] = 2;
  REQUIRE(stratalloc_malloc(gpu, 70000, 0, NULL, (void **)&kept) == STRATALLOC_OK);
  size_t faults = 7, expected = getenv("STRATALLOC_CONF") != NULL;
  /* What was done to the freed block. What was done behind it was told on the way. */
  REQUIRE(stratalloc_check_memory(gpu, 0, &faults) == STRATALLOC_OK && faults == expected);
  kept[70001] = 9;
  REQUIRE(stratalloc_check_memory(gpu, 0, &faults) == STRATALLOC_OK && faults == expected);
  REQUIRE(stratalloc_check_memory(gpu, 0, &faults) == STRATALLOC_OK && faults == 0);
  stratalloc_destroy(gpu);
  return 0;
}
