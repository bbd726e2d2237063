// What torch's CUDAPluggableAllocator calls where there was no compiler to build the extension. Needs no header of torch: its
// C ABI, one std::function, and exceptions.

#include <dlfcn.h>

#include <cstdio>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>

#include "stratalloc.h"

namespace {

// c10::MempoolId_t.
using PoolId = std::pair<unsigned long long, unsigned long long>;
using Filter = std::function<bool(void*)>;

struct Functions {
#define X(name) decltype(&::stratalloc_##name) name = nullptr;
#define SHIM_FUNCTIONS(X)                                                                                          \
  X(last_error) X(malloc) X(free) X(record_stream) X(find) X(device_count) X(empty_cache) X(set_limit_fraction) \
      X(pool_begin) X(pool_end) X(pool_release)
  SHIM_FUNCTIONS(X)
#undef X
  decltype(&::stratalloc_default) default_allocator = nullptr;
};

Functions library;
stratalloc_allocator* allocator = nullptr;

// A plain C++ exception: torch turns it into a RuntimeError. Its own OutOfMemoryError cannot be made without its headers.
[[noreturn]] void fail(const std::string& what) {
  throw std::runtime_error(what + ": " + library.last_error());
}

void check(int status, const char* what) {
  if (status != STRATALLOC_OK) {
    fail(std::string("stratalloc: ") + what);
  }
}

stratalloc_allocator* ready() {
  if (allocator == nullptr) {
    check(library.default_allocator(&allocator), "CUDA initialisation");
  }
  return allocator;
}

stratalloc_pool_id to_pool(PoolId id) {
  return {id.first, id.second};
}

bool call_filter(void* context, void* stream) {
  try {
    return (*static_cast<Filter*>(context))(stream);
  } catch (...) {
    // The capture is broken, which torch reports when it ends.
    return false;
  }
}

void drop_filter(void* context) {
  delete static_cast<Filter*>(context);
}

} // namespace

extern "C" {

#define EXPORT __attribute__((visibility("default")))

// Null, or what is wrong.
EXPORT const char* stratalloc_shim_load(const char* path) {
  void* const handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    return dlerror();
  }
#define X(name)                                                                                        \
  library.name = reinterpret_cast<decltype(library.name)>(dlsym(handle, "stratalloc_" #name));         \
  if (library.name == nullptr) {                                                                       \
    return "the library has no function stratalloc_" #name;                                            \
  }
  SHIM_FUNCTIONS(X)
#undef X
  library.default_allocator =
      reinterpret_cast<decltype(library.default_allocator)>(dlsym(handle, "stratalloc_default"));
  return library.default_allocator == nullptr ? "the library has no function stratalloc_default" : nullptr;
}

EXPORT void stratalloc_shim_init(int) {
  ready();
}

EXPORT void* stratalloc_shim_alloc(size_t size, int device, void* stream) {
  void* ptr = nullptr;
  if (size == 0) {
    return ptr;
  }
  const auto status = library.malloc(ready(), size, device, stream, &ptr);
  if (status != STRATALLOC_OK) {
    fail("CUDA out of memory. Tried to allocate " + std::to_string(size) + " bytes. stratalloc");
  }
  return ptr;
}

EXPORT void stratalloc_shim_free(void* ptr, size_t, int, void*) {
  // Called from destructors. The library refuses what is not a live block, and nobody could be told.
  (void)library.free(allocator, ptr);
}

EXPORT void stratalloc_shim_empty_cache() {
  for (int device = 0; device < library.device_count(ready()); device++) {
    const int status = library.empty_cache(allocator, device, nullptr);
    if (status != STRATALLOC_CAPTURING) {
      check(status, "empty_cache");
    }
  }
}

EXPORT void stratalloc_shim_memory_fraction(double fraction, int device) {
  check(library.set_limit_fraction(ready(), device, fraction), "set_per_process_memory_fraction");
}

EXPORT void* stratalloc_shim_base_alloc(void* ptr, size_t* size) {
  stratalloc_block block{};
  block.struct_size = sizeof(block);
  check(library.find(ready(), ptr, &block), "getBaseAllocation");
  if (size != nullptr) {
    *size = block.bytes;
  }
  return block.address;
}

EXPORT void stratalloc_shim_record_stream(void* ptr, void* stream) {
  const int status = library.record_stream(ready(), ptr, stream);
  // Empty tensors, and memory of other processes, whose lifetime is not ours.
  if (status != STRATALLOC_INVALID_POINTER) {
    check(status, "record_stream");
  }
}

EXPORT void stratalloc_shim_begin_allocate_to_pool(int device, PoolId id, Filter filter) {
  auto* const kept = new Filter(std::move(filter));
  check(library.pool_begin(ready(), device, to_pool(id), call_filter, kept, drop_filter), "beginAllocateToPool");
}

EXPORT void stratalloc_shim_end_allocate_to_pool(int device, PoolId id) {
  check(library.pool_end(ready(), device, to_pool(id)), "endAllocateToPool");
}

EXPORT void stratalloc_shim_release_pool(int device, PoolId id) {
  // Called from destructors, in forked children too, where the pools are the parent's. An exception would end the process.
  const int status = library.pool_release(allocator, device, to_pool(id));
  if (status != STRATALLOC_OK && status != STRATALLOC_FORKED) {
    std::fprintf(stderr, "stratalloc: releasePool: %s\n", library.last_error());
  }
}

} // extern "C"
