// Access of one device to another's memory.
//
// The library maps each chunk for its own device. When torch finds that `device` may reach the memory of `owner`, every mapped
// range of `owner` is opened to it, and every range that is mapped from then on.

#include <dlfcn.h>

#include <cuda.h>

#include <c10/cuda/CUDAGuard.h>

#include "allocator.h"

namespace stratalloc_torch {

namespace {

using SetAccess = CUresult (*)(CUdeviceptr, size_t, const CUmemAccessDesc*, size_t);

SetAccess set_access() {
  // torch has the driver loaded; this finds the same one.
  static const SetAccess function = [] {
    void* const driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    return driver == nullptr ? nullptr : reinterpret_cast<SetAccess>(dlsym(driver, "cuMemSetAccess"));
  }();
  return function;
}

bool grant(uint64_t address, uint64_t bytes, int device) {
  CUmemAccessDesc access{};
  access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  access.location.id = device;
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  return set_access() != nullptr && set_access()(address, bytes, &access, 1) == CUDA_SUCCESS;
}

struct Opening {
  int device;
  bool failed = false;
};

bool open_segment(void* context, const stratalloc_segment* segment) {
  auto& opening = *static_cast<Opening*>(context);
  if (segment->is_expandable) {
    opening.failed |= !grant(segment->address, segment->bytes, opening.device);
  }
  return !opening.failed;
}

} // namespace

void StratallocAllocator::enablePeerAccess(DeviceIndex dev, DeviceIndex dev_to_access) {
  check_device(dev);
  check_device(dev_to_access);
  TORCH_CHECK(dev < 64, "stratalloc opens memory to the first 64 devices only, not to device ", static_cast<int>(dev));
  {
    // Memory that is not mapped by us: plain cudaMalloc segments, and other libraries'.
    c10::cuda::CUDAGuard guard(dev);
    const cudaError_t error = cudaDeviceEnablePeerAccess(dev_to_access, 0);
    if (error == cudaErrorPeerAccessAlreadyEnabled) {
      (void)cudaGetLastError();
    } else {
      C10_CUDA_CHECK(error);
    }
  }
  std::lock_guard<std::mutex> lock(peers_mutex_);
  const uint64_t bit = uint64_t(1) << dev;
  // First for what will be mapped, then for what is: nothing falls between.
  const uint64_t before = peers_[dev_to_access].fetch_or(bit);
  Opening opening{dev};
  const auto status = abi.visit_segments(handle(), dev_to_access, open_segment, &opening);
  if (opening.failed && (before & bit) == 0) {
    peers_[dev_to_access].fetch_and(~bit);
  }
  check(static_cast<stratalloc_status>(status), "enablePeerAccess");
  TORCH_CHECK(
      !opening.failed,
      "stratalloc: the driver did not open the memory of device ", static_cast<int>(dev_to_access), " to device ",
      static_cast<int>(dev));
}

void StratallocAllocator::grant_peers(DeviceIndex owner, uint64_t address, uint64_t bytes) {
  const uint64_t peers = peers_[owner].load(std::memory_order_relaxed);
  for (int device = 0; C10_UNLIKELY(peers != 0) && device < 64; device++) {
    if (((peers >> device) & 1) != 0 && !grant(address, bytes, device)) {
      // The mapping stands. A kernel of that device that reaches it fails, which CUDA reports there.
      TORCH_WARN_ONCE("stratalloc: new memory of device ", static_cast<int>(owner), " could not be opened to device ", device);
    }
  }
}

} // namespace stratalloc_torch
