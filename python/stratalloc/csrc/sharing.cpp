// Memory that other processes open, as torch.multiprocessing sends it.
//
// CUDA exports whole allocations. So what is to be shared has one of its own, which has to be known when it is allocated: inside of
// `stratalloc.torch.shareable()`. A handle has the shape of torch's own for memory of cudaMalloc, so that either side may run on
// torch's native allocator.

#include <cstring>
#include <unordered_map>

#include <c10/cuda/CUDAGuard.h>

#include "allocator.h"

namespace stratalloc_torch {

namespace {

// torch's letter for memory of cudaMalloc.
constexpr char PLAIN_MEMORY = 'c';
constexpr size_t HANDLE_BYTES = 2 + sizeof(cudaIpcMemHandle_t);

thread_local int shareable_depth = 0;

// What this process has opened, by handle: the driver opens an allocation once. Leaked, since storages close theirs at exit.
struct Opened {
  std::mutex mutex;
  std::unordered_map<std::string, std::weak_ptr<void>> by_handle;
};

Opened& opened() {
  static Opened* const all = new Opened();
  return *all;
}

} // namespace

void StratallocAllocator::enter_shareable() {
  shareable_depth += 1;
  sharers_.fetch_add(1, std::memory_order_relaxed);
}

void StratallocAllocator::leave_shareable() {
  if (shareable_depth > 0) {
    shareable_depth -= 1;
    sharers_.fetch_sub(1, std::memory_order_relaxed);
  }
}

bool StratallocAllocator::shareable_in_this_thread() {
  return shareable_depth > 0;
}

stratalloc_status StratallocAllocator::alloc_shareable(
    size_t nbytes,
    DeviceIndex device,
    cudaStream_t stream,
    void** out) {
  stratalloc_request request{};
  request.struct_size = sizeof(request);
  request.bytes = nbytes;
  request.device = device;
  request.stream = stream;
  request.flags = STRATALLOC_DEDICATED;
  return static_cast<stratalloc_status>(abi.alloc(handle_, &request, out));
}

ShareableHandle StratallocAllocator::shareIpcHandle(void* ptr) {
  stratalloc_block block{};
  block.struct_size = sizeof(block);
  check(static_cast<stratalloc_status>(abi.find(handle(), ptr, &block)), "sharing CUDA memory between processes");
  TORCH_CHECK_NOT_IMPLEMENTED(
      block.is_dedicated,
      "stratalloc shares CUDA memory between processes only if it was allocated to be shared: make the tensor inside of "
      "`with stratalloc.torch.shareable():`, or send a copy made there");
  c10::cuda::CUDAGuard guard(static_cast<DeviceIndex>(block.device));
  cudaIpcMemHandle_t exported;
  C10_CUDA_CHECK(cudaIpcGetMemHandle(&exported, block.address));
  std::string handle;
  handle.push_back(SHARED_FORMAT);
  handle.push_back(PLAIN_MEMORY);
  handle.append(reinterpret_cast<const char*>(&exported), sizeof(exported));
  const auto offset = static_cast<const char*>(ptr) - static_cast<const char*>(block.address);
  return ShareableHandle{offset, std::move(handle)};
}

std::shared_ptr<void> StratallocAllocator::getIpcDevPtr(std::string handle) {
  TORCH_CHECK(
      handle.size() == HANDLE_BYTES && handle[0] <= SHARED_FORMAT && handle[1] == PLAIN_MEMORY,
      "stratalloc opens memory of cudaMalloc only. The sending process may use expandable segments, or another version of torch.");
  Opened& all = opened();
  std::lock_guard<std::mutex> lock(all.mutex);
  if (auto found = all.by_handle[handle].lock()) {
    return found;
  }
  cudaIpcMemHandle_t exported;
  std::memcpy(&exported, handle.data() + 2, sizeof(exported));
  DeviceIndex device = 0;
  C10_CUDA_CHECK(c10::cuda::GetDevice(&device));
  void* base = nullptr;
  C10_CUDA_CHECK(cudaIpcOpenMemHandle(&base, exported, cudaIpcMemLazyEnablePeerAccess));
  std::shared_ptr<void> memory(base, [handle, device](void* opened_at) {
    Opened& open = opened();
    std::lock_guard<std::mutex> closing(open.mutex);
    c10::cuda::CUDAGuard guard(device);
    C10_CUDA_CHECK_WARN(cudaIpcCloseMemHandle(opened_at));
    open.by_handle.erase(handle);
  });
  all.by_handle[handle] = memory;
  return memory;
}

} // namespace stratalloc_torch
