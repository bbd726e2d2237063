#include "allocator.h"

#include <algorithm>
#include <exception>

#include <c10/cuda/CUDAGuard.h>
#include <c10/util/Registry.h>

namespace stratalloc_torch {

using c10::CachingAllocator::format_size;

namespace {

[[noreturn]] void fail(stratalloc_status status, const char* what, const std::string& why) {
  switch (status) {
    case STRATALLOC_OUT_OF_MEMORY:
    case STRATALLOC_NEVER_FITS:
    case STRATALLOC_OVER_LIMIT:
      TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory in ", what, ". ", why);
    case STRATALLOC_INVALID_POINTER:
      TORCH_CHECK(false, "invalid device pointer in ", what, ": ", why);
    case STRATALLOC_DOUBLE_FREE:
      TORCH_CHECK(false, "device pointer freed twice in ", what, ": ", why);
    case STRATALLOC_FORKED:
      TORCH_CHECK(
          false,
          "stratalloc: ", what, " in a forked process. CUDA cannot be used in a child of the process that "
          "initialised it; use the 'spawn' start method.");
    case STRATALLOC_LIBRARY_MISSING:
      TORCH_CHECK(false, "stratalloc finds no CUDA driver or no device: ", why);
    default:
      TORCH_CHECK(false, "stratalloc: ", what, " failed (", abi.status_name(status), "): ", why);
  }
}

} // namespace

void check(stratalloc_status status, const char* what) {
  if (C10_UNLIKELY(status != STRATALLOC_OK)) {
    fail(status, what, abi.last_error());
  }
}

void warn_from_destructor(const char* what, const char* why) noexcept {
  try {
    TORCH_WARN(what, why);
  } catch (...) {
    // Warnings are errors here, and there is nobody to raise one to.
  }
}

// Runs what has registered to free memory, such as torch's collector of memory that was shared between processes.
bool StratallocAllocator::on_shortage(void* context, const stratalloc_shortage* shortage) {
  auto* self = static_cast<StratallocAllocator*>(context);
  try {
    self->statistics_.count_retry(static_cast<DeviceIndex>(shortage->device));
    bool freed = false;
    for (const std::string& name : c10::FreeCudaMemoryCallbacksRegistry()->Keys()) {
      freed |= c10::FreeCudaMemoryCallbacksRegistry()->Create(name)->Execute();
    }
    return freed;
  } catch (...) {
    // The request fails with its own error, which says more than a callback's.
    return false;
  }
}

// What is where, and what to do: a page.
static std::string explain(stratalloc_allocator* allocator, DeviceIndex device) {
  std::string text(abi.explain_oom(allocator, device, nullptr, 0), '\0');
  // Another thread's shortage may have come between: then the text ends sooner, or is cut.
  const size_t length = text.empty() ? 0 : abi.explain_oom(allocator, device, text.data(), text.size());
  text.resize(length == 0 ? 0 : std::min<size_t>(length, text.size()) - 1);
  return text;
}

void StratallocAllocator::alloc_failed(
    stratalloc_status status,
    size_t nbytes,
    DeviceIndex device,
    cudaStream_t stream) {
  // Copied first: the next failing call of this thread replaces it.
  const std::string explanation = abi.last_error();
  handle();
  check_device(device);
  const stratalloc_stats stats = read_stats(device);
  const bool no_room = status == STRATALLOC_OUT_OF_MEMORY || status == STRATALLOC_NEVER_FITS ||
      status == STRATALLOC_OVER_LIMIT || nbytes > stats.capacity;
  if (!no_room) {
    fail(status, "allocation", explanation);
  }
  size_t free = 0;
  size_t total = 0;
  {
    c10::cuda::CUDAGuard guard(device);
    if (cudaMemGetInfo(&free, &total) != cudaSuccess) {
      // Only a text depends on it.
      (void)cudaGetLastError();
    }
  }
  statistics_.count_oom(device);
  const size_t allocated = stats.active.current - stats.pending;
  const size_t limit = stats.limit < total ? stats.limit : total;
  c10::reportOutOfMemoryToProfiler(
      static_cast<int64_t>(nbytes), allocated, stats.reserved.current, c10::Device(c10::kCUDA, device));
  history_.out_of_memory(device, nbytes, free, limit, stream);
  std::string allowed;
  if (stats.limit < stats.capacity) {
    allowed = format_size(stats.limit) + " allowed; ";
  }
  TORCH_CHECK_WITH(
      OutOfMemoryError,
      false,
      "CUDA out of memory. Tried to allocate ", format_size(nbytes), ". GPU ", static_cast<int>(device),
      " has a total capacity of ", format_size(total), " of which ", format_size(free), " is free. ", allowed,
      "Of the allocated memory ", format_size(allocated), " is allocated by PyTorch, and ",
      format_size(stats.reserved.current > stats.active.current ? stats.reserved.current - stats.active.current : 0),
      " is reserved by PyTorch but unallocated. stratalloc: ", explanation, "\n", explain(handle(), device));
}

} // namespace stratalloc_torch
