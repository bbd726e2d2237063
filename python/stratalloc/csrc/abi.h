// The functions of libstratalloc, resolved once from the library that Python found. The extension does not link to it, so
// that one compiled copy serves wherever the library lies.
#pragma once

#include <string>

#include "stratalloc.h"

namespace stratalloc_torch {

#define STRATALLOC_TORCH_FUNCTIONS(X) \
  X(last_error)                       \
  X(abi_version)                      \
  X(status_name)                      \
  X(configure_default)                \
  X(device_count)                     \
  X(malloc)                           \
  X(alloc)                            \
  X(free)                             \
  X(record_stream)                    \
  X(find)                             \
  X(empty_cache)                      \
  X(set_limit)                        \
  X(set_limit_fraction)               \
  X(get_stats)                        \
  X(reset_peaks)                      \
  X(visit_segments)                   \
  X(segment_block)                    \
  X(set_segment_observer)             \
  X(add_oom_observer)                 \
  X(explain_oom)                      \
  X(pool_begin)                       \
  X(pool_route)                       \
  X(capture_begin)                    \
  X(capture_end)                      \
  X(pool_end)                         \
  X(pool_retain)                      \
  X(pool_release)                     \
  X(pool_users)                       \
  X(pool_empty)                       \
  X(pool_set_use_on_oom)              \
  X(pool_checkpoint)                  \
  X(pool_restore)                     \
  X(checkpoint_destroy)

struct Abi {
#define X(name) decltype(&::stratalloc_##name) name = nullptr;
  STRATALLOC_TORCH_FUNCTIONS(X)
#undef X
  // `default` is a word of C++.
  decltype(&::stratalloc_default) default_allocator = nullptr;
};

// Set by `load_abi`, before the allocator is installed; read without a lock.
extern Abi abi;

// Loads the library and resolves every function. Returns an empty text, or what is wrong.
std::string load_abi(const char* path);

} // namespace stratalloc_torch
