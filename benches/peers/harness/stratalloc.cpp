// This project's allocator, through its C library. Settings are STRATALLOC_CONF's: the caller sets the variable.

#include "harness.h"

#include <stratalloc.h>

namespace {

class Stratalloc {
public:
  Stratalloc(const std::string &, uint64_t) {
    const int32_t first = 0;
    stratalloc_options options{};
    options.struct_size = sizeof options;
    options.devices = &first;
    options.device_count = 1;
    must(stratalloc_create(&options, &allocator_));
  }

  void *alloc(size_t bytes, cudaStream_t stream) {
    void *ptr = nullptr;
    const stratalloc_status status = stratalloc_malloc(allocator_, bytes, 0, stream, &ptr);
    if (__builtin_expect(status != STRATALLOC_OK, 0)) {
      if (status == STRATALLOC_OUT_OF_MEMORY || status == STRATALLOC_NEVER_FITS) {
        throw peers::NoRoom(stratalloc_last_error());
      }
      must(status);
    }
    return ptr;
  }

  void free(void *ptr, size_t, cudaStream_t) { must(stratalloc_free(allocator_, ptr)); }

  void record(void *ptr, cudaStream_t, cudaStream_t user) { must(stratalloc_record_stream(allocator_, ptr, user)); }

  void empty_cache() { must(stratalloc_empty_cache(allocator_, 0, nullptr)); }

  peers::Own own() {
    stratalloc_stats stats{};
    stats.struct_size = sizeof stats;
    must(stratalloc_get_stats(allocator_, 0, &stats));
    peers::Own own;
    own.reserved = stats.reserved.current;
    own.reserved_peak = stats.reserved.peak;
    return own;
  }

  void watch(peers::Log *log) { must(stratalloc_set_segment_observer(allocator_, tell, log)); }

private:
  static void tell(void *context, const stratalloc_event *event) {
    auto *log = static_cast<peers::Log *>(context);
    if (event->kind == STRATALLOC_EVENT_MAP) {
      log->segment("map", event->bytes);
    } else if (event->kind == STRATALLOC_EVENT_UNMAP) {
      log->segment("unmap", event->bytes);
    }
  }

  static void must(stratalloc_status status) {
    if (__builtin_expect(status != STRATALLOC_OK, 0)) {
      throw std::runtime_error(std::string(stratalloc_status_name(status)) + ": " + stratalloc_last_error());
    }
  }

  stratalloc_allocator *allocator_ = nullptr;
};

} // namespace

int main(int count, char **words) { return peers::run<Stratalloc>(count, words); }
