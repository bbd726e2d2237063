/* Recordings that end in other ways than by stratalloc_trace_stop. The first argument says which case, the second where the trace goes. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <stratalloc.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define REQUIRE(holds)                                                                       \
  do {                                                                                       \
    if (!(holds)) {                                                                          \
      fprintf(stderr, "line %d: not so: %s (%s)\n", __LINE__, #holds, stratalloc_last_error()); \
      _exit(1);                                                                              \
    }                                                                                        \
  } while (0)

/* Never destroyed, as the process's own allocator is not. */
static stratalloc_allocator *gpu;

static void pair(void) {
  void *block = NULL;
  REQUIRE(stratalloc_malloc(gpu, 1000, 0, NULL, &block) == STRATALLOC_OK);
  REQUIRE(stratalloc_free(gpu, block) == STRATALLOC_OK);
}

/* The disk is full after 16 KiB, in the middle of a line. Prints how many calls are said to be in the file. */
static void disk_full(int pairs) {
  for (int i = 0; i < pairs; i++) pair();
  uint64_t calls = 0;
  REQUIRE(stratalloc_trace_stop(gpu, &calls) == STRATALLOC_IO);
  REQUIRE(strstr(stratalloc_last_error(), "File too large") != NULL);
  REQUIRE(strstr(stratalloc_last_error(), "the trace ends after") != NULL);
  REQUIRE(stratalloc_trace_stop(gpu, NULL) == STRATALLOC_INVALID_ARGUMENT);
  pair();
  stratalloc_destroy(gpu);
  gpu = NULL;
  printf("%llu\n", (unsigned long long)calls);
}

/* Registered before the recording's own handler, so that it runs later. In the child there is no allocator. */
static void late(void) {
  if (gpu != NULL) pair();
}

/* Three pairs, one of them told when the process is on its way out already. A child that exits meanwhile adds nothing. */
static void exits(void) {
  pair();
  pair();
  pid_t child = fork();
  if (child == 0) {
    gpu = NULL;
    exit(0);
  }
  int status = 1;
  REQUIRE(child > 0 && waitpid(child, &status, 0) == child && status == 0);
  exit(0);
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  REQUIRE(atexit(late) == 0);
  stratalloc_options options = {.struct_size = sizeof options, .config = "", .software_bytes = 64 << 20};
  REQUIRE(stratalloc_create(&options, &gpu) == STRATALLOC_OK);
  /* The software device's memory is a file, too: it is there before files end at 16 KiB. */
  pair();
  if (strncmp(argv[1], "disk_full", 9) == 0) {
    struct rlimit small = {.rlim_cur = 16384, .rlim_max = 16384};
    signal(SIGXFSZ, SIG_IGN);
    REQUIRE(setrlimit(RLIMIT_FSIZE, &small) == 0);
  }
  REQUIRE(stratalloc_trace_start(gpu, argv[2]) == STRATALLOC_OK);
  if (strcmp(argv[1], "disk_full") == 0) return disk_full(20000), 0;
  if (strcmp(argv[1], "disk_full_at_the_end") == 0) return disk_full(1500), 0;
  if (strcmp(argv[1], "exits") == 0) exits();
  return 2;
}
