// What Python calls, through ctypes: plain C, no interpreter needed, and nothing is thrown.

#include <cstring>

#include <torch/csrc/cuda/CUDAPluggableAllocator.h>

#include "allocator.h"

namespace {

// As `Failure` in ../_extension.py.
enum Result : int { INSTALLED = 0, TOO_LATE = 1, NO_LIBRARY = 2, BAD_CONFIG = 3, REFUSED = 4 };

int fail(Result result, const std::string& why, char* text, size_t capacity) {
  if (text != nullptr && capacity > 0) {
    const size_t length = std::min(why.size(), capacity - 1);
    std::memcpy(text, why.data(), length);
    text[length] = 0;
  }
  return result;
}

} // namespace

extern "C" {

__attribute__((visibility("default"))) const char* stratalloc_torch_compiled_for() {
  return TORCH_VERSION;
}

__attribute__((visibility("default"))) int stratalloc_torch_install(
    const char* library,
    const char* conf,
    char* text,
    size_t capacity) {
  using namespace stratalloc_torch;
  try {
    if (c10::cuda::CUDACachingAllocator::get()->initialized()) {
      return fail(TOO_LATE, "CUDA is initialised already in this process", text, capacity);
    }
    const std::string missing = load_abi(library);
    if (!missing.empty()) {
      return fail(NO_LIBRARY, missing, text, capacity);
    }
    StratallocAllocator& ours = StratallocAllocator::instance();
    const std::string refused = ours.configure(conf);
    if (!refused.empty()) {
      return fail(BAD_CONFIG, refused, text, capacity);
    }
    // Never destroyed, so the pointer owns nothing.
    torch::cuda::CUDAPluggableAllocator::changeCurrentAllocator(
        std::shared_ptr<CUDAAllocator>(&ours, [](CUDAAllocator*) {}));
    // torch.accelerator reads this registry, where the native allocator stands with priority 0.
    c10::SetAllocator(c10::kCUDA, &ours, 1);
    return INSTALLED;
  } catch (const std::exception& error) {
    return fail(REFUSED, error.what(), text, capacity);
  } catch (...) {
    return fail(REFUSED, "an unknown exception", text, capacity);
  }
}

// Begins and ends what `stratalloc.torch.shareable()` is about, for the calling thread.
__attribute__((visibility("default"))) void stratalloc_torch_shareable(int begins) {
  auto& ours = stratalloc_torch::StratallocAllocator::instance();
  if (begins != 0) {
    ours.enter_shareable();
  } else {
    ours.leave_shareable();
  }
}

} // extern "C"
