#include "allocator.h"

#include <algorithm>

#include <c10/core/AllocatorConfig.h>
#include <c10/cuda/CUDAAllocatorConfig.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>

namespace stratalloc_torch {

namespace {

// Above this, torch says that the request cannot be meant.
constexpr size_t ONE_EXABYTE = 1152921504606846976ULL;

// c10's check captures the driver's log before it looks at the result: that is for failures only.
inline DeviceIndex current_device() {
  DeviceIndex device = 0;
  const cudaError_t error = c10::cuda::GetDevice(&device);
  if (C10_UNLIKELY(error != cudaSuccess)) {
    C10_CUDA_CHECK(error);
  }
  return device;
}

} // namespace

StratallocAllocator& StratallocAllocator::instance() {
  static StratallocAllocator* const the_one = new StratallocAllocator();
  return *the_one;
}

void delete_block(void* ptr) {
  if (ptr == nullptr) {
    return;
  }
  try {
    StratallocAllocator::instance().free_block(ptr);
  } catch (const std::exception& error) {
    // A destructor is running: an exception would end the process. The block stays as it was.
    warn_from_destructor("stratalloc could not free a tensor's memory: ", error.what());
  }
}

void delete_uncached(void* ptr) {
  if (C10_UNLIKELY(ptr != nullptr)) {
    C10_CUDA_CHECK_WARN(cudaFree(ptr));
  }
}

// ---- creation

std::string StratallocAllocator::configure(const char* conf) {
  if (conf == nullptr || abi.configure_default(conf) == STRATALLOC_OK) {
    return "";
  }
  const std::string why = abi.last_error();
  return why.empty() ? "the configuration was refused" : why;
}

void StratallocAllocator::init(int device_count) {
  std::call_once(created_, [&] {
    stratalloc_allocator* made = nullptr;
    check(abi.default_allocator(&made), "CUDA initialisation");
    const int devices = abi.device_count(made);
    TORCH_CHECK(
        devices >= device_count,
        "stratalloc sees ", devices, " CUDA devices and torch sees ", device_count,
        "; both follow CUDA_VISIBLE_DEVICES as it was when each was loaded");
    handle_ = made;
    device_count_ = device_count;
    uint64_t number = 0;
    check(abi.add_oom_observer(made, &StratallocAllocator::on_shortage, this, &number), "CUDA initialisation");
    check(abi.set_segment_observer(made, &StratallocAllocator::on_segment_event, this), "CUDA initialisation");
    for (int device = 0; device < device_count; device++) {
      const stratalloc_stats stats = read_stats(static_cast<DeviceIndex>(device));
      fractions_[device] = stats.capacity == 0
          ? 1.0
          : static_cast<double>(stats.limit) / static_cast<double>(stats.capacity);
    }
    initialized_.store(true, std::memory_order_release);
    const double fraction = CUDAAllocatorConfig::per_process_memory_fraction();
    for (int device = 0; fraction < 1.0 && device < device_count; device++) {
      setMemoryFraction(fraction, static_cast<DeviceIndex>(device));
    }
  });
}

bool StratallocAllocator::initialized() {
  return initialized_.load(std::memory_order_acquire);
}

stratalloc_allocator* StratallocAllocator::handle() const {
  TORCH_CHECK(handle_ != nullptr, "stratalloc: CUDA is not initialised yet; call torch.cuda.init()");
  return handle_;
}

void StratallocAllocator::check_device(DeviceIndex device) const {
  TORCH_CHECK(
      0 <= device && device < device_count_,
      "Invalid device argument ", static_cast<int>(device), ": did you call init?");
}

// ---- allocation

void* StratallocAllocator::alloc(size_t nbytes, DeviceIndex device, cudaStream_t stream) {
  if (watched()) {
    return watched_alloc(nbytes, device, stream);
  }
  void* ptr = nullptr;
  const auto status = abi.malloc(handle_, nbytes, device, stream, &ptr);
  if (C10_UNLIKELY(status != STRATALLOC_OK)) {
    alloc_failed(static_cast<stratalloc_status>(status), nbytes, device, stream);
  }
  return ptr;
}

void* StratallocAllocator::watched_alloc(size_t nbytes, DeviceIndex device, cudaStream_t stream) {
  // Taken now, for what the library may report from under its lock.
  const Caller caller(history_, RecordContext::STATE);
  void* ptr = nullptr;
  const auto status = C10_UNLIKELY(shareable_in_this_thread()) ? alloc_shareable(nbytes, device, stream, &ptr)
                                                               : abi.malloc(handle_, nbytes, device, stream, &ptr);
  if (C10_UNLIKELY(status != STRATALLOC_OK)) {
    alloc_failed(static_cast<stratalloc_status>(status), nbytes, device, stream);
  }
  if (history_.watching()) {
    stratalloc_block block{};
    block.struct_size = sizeof(block);
    const bool found = abi.find(handle_, ptr, &block) == STRATALLOC_OK;
    history_.allocated(
        ptr, nbytes, device, stream, found ? from_pool(block.pool) : MempoolId_t(0, 0), caller.context());
  }
  const c10::impl::PyInterpreter* interpreter = c10::impl::GPUTrace::get_trace();
  if (C10_UNLIKELY(interpreter != nullptr)) {
    (*interpreter)->trace_gpu_memory_allocation(c10::kCUDA, reinterpret_cast<uintptr_t>(ptr));
  }
  report_usage(ptr, static_cast<int64_t>(nbytes), device);
  return ptr;
}

void StratallocAllocator::report_usage(void* ptr, int64_t change, DeviceIndex device) {
  if (!c10::memoryProfilingEnabled()) {
    return;
  }
  const stratalloc_stats stats = read_stats(device);
  c10::reportMemoryUsageToProfiler(
      ptr, change, stats.active.current - stats.pending, stats.reserved.current, c10::Device(c10::kCUDA, device));
}

StratallocAllocator::Freed StratallocAllocator::watched_free(void* ptr) {
  Freed freed;
  stratalloc_block block{};
  block.struct_size = sizeof(block);
  // A pointer inside a block is not one to free: the library refuses it.
  if (abi.find(handle_, ptr, &block) != STRATALLOC_OK || block.address != ptr) {
    return freed;
  }
  freed = Freed{true, block.requested, static_cast<DeviceIndex>(block.device)};
  if (history_.watching()) {
    history_.freed(ptr, block.requested, freed.device, block.stream, from_pool(block.pool));
  }
  const c10::impl::PyInterpreter* interpreter = c10::impl::GPUTrace::get_trace();
  if (C10_UNLIKELY(interpreter != nullptr)) {
    (*interpreter)->trace_gpu_memory_deallocation(c10::kCUDA, reinterpret_cast<uintptr_t>(ptr));
  }
  return freed;
}

void StratallocAllocator::free_block(void* ptr) {
  Freed freed;
  if (watched()) {
    freed = watched_free(ptr);
  }
  const auto status = abi.free(handle_, ptr);
  if (C10_UNLIKELY(status != STRATALLOC_OK)) {
    if (status == STRATALLOC_FORKED) {
      // A child that frees its parent's tensors as it ends. They are the parent's.
      return;
    }
    check(static_cast<stratalloc_status>(status), "free");
  }
  if (C10_UNLIKELY(freed.known)) {
    report_usage(ptr, -static_cast<int64_t>(freed.requested), freed.device);
  }
}

c10::DataPtr StratallocAllocator::allocate(size_t size) {
  TORCH_CHECK_WITH(
      OutOfMemoryError, size < ONE_EXABYTE, "CUDA out of memory. Tried to allocate more than 1EB memory.");
  const DeviceIndex device = current_device();
  void* ptr = nullptr;
  c10::DeleterFnPtr deleter = &delete_block;
  if (C10_UNLIKELY(!enabled_.load(std::memory_order_relaxed))) {
    deleter = &delete_uncached;
    if (size != 0) {
      C10_CUDA_CHECK(cudaMalloc(&ptr, size));
    }
  } else if (size != 0) {
    ptr = alloc(size, device, c10::cuda::getCurrentCUDAStream(device).stream());
  }
  return c10::DataPtr(ptr, ptr, deleter, c10::Device(c10::kCUDA, device));
}

c10::DeleterFnPtr StratallocAllocator::raw_deleter() const {
  return enabled_.load(std::memory_order_relaxed) ? &delete_block : &delete_uncached;
}

c10::DataPtr StratallocAllocator::allocateWithAddress(size_t size, void* addr) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      false,
      "stratalloc does not place memory at a given address (", size, " bytes at ", addr,
      "); torch.cuda functions that want it need PyTorch's native allocator");
}

void* StratallocAllocator::raw_alloc(size_t nbytes) {
  if (nbytes == 0) {
    return nullptr;
  }
  const DeviceIndex device = current_device();
  return alloc(nbytes, device, c10::cuda::getCurrentCUDAStream(device).stream());
}

void* StratallocAllocator::raw_alloc_with_stream(size_t nbytes, cudaStream_t stream) {
  return nbytes == 0 ? nullptr : alloc(nbytes, current_device(), stream);
}

void StratallocAllocator::raw_delete(void* ptr) {
  if (ptr != nullptr) {
    free_block(ptr);
  }
}

void StratallocAllocator::enable(bool value) {
  enabled_.store(value, std::memory_order_relaxed);
}

bool StratallocAllocator::isEnabled() const {
  return enabled_.load(std::memory_order_relaxed);
}

std::string StratallocAllocator::name() {
  return "stratalloc";
}

// ---- streams and copies

void StratallocAllocator::recordStream(const c10::DataPtr& ptr, c10::cuda::CUDAStream stream) {
  void* const address = ptr.get();
  // Memory of another process or of another allocator has a deleter of its own, and a lifetime that is not ours.
  if (address == nullptr || ptr.get_deleter() != &delete_block) {
    return;
  }
  const auto status = abi.record_stream(handle(), address, stream.stream());
  check(static_cast<stratalloc_status>(status), "record_stream");
  if (!history_.watching()) {
    return;
  }
  stratalloc_block block{};
  block.struct_size = sizeof(block);
  // Its own stream is nothing to wait for: such a free completes at once.
  if (abi.find(handle(), address, &block) == STRATALLOC_OK && block.stream != stream.stream()) {
    history_.stream_recorded(address);
  }
}

void StratallocAllocator::copy_data(void* dest, const void* src, std::size_t count) const {
  C10_CUDA_CHECK(cudaMemcpy(dest, src, count, cudaMemcpyDeviceToDevice));
}

cudaError_t StratallocAllocator::memcpyAsync(
    void* dst,
    int dstDevice,
    const void* src,
    int srcDevice,
    size_t count,
    cudaStream_t stream,
    bool p2p_enabled) {
  if (p2p_enabled || srcDevice == dstDevice) {
    return cudaMemcpyAsync(dst, src, count, cudaMemcpyDeviceToDevice, stream);
  }
  // Mapped memory of another device is reached by the peer copy only.
  return cudaMemcpyPeerAsync(dst, dstDevice, src, srcDevice, count, stream);
}

// ---- limits and the cache

double StratallocAllocator::getMemoryFraction(DeviceIndex device) {
  check_device(device);
  return fractions_[device];
}

void StratallocAllocator::setMemoryFraction(double fraction, DeviceIndex device) {
  check_device(device);
  TORCH_CHECK(
      0 <= fraction && fraction <= 1, "invalid fraction:", fraction, ". Please set within [0, 1].");
  // Zero is a limit in torch; here a limit is at least a byte, under which nothing fits either.
  const auto status = fraction == 0 ? abi.set_limit(handle(), device, 1)
                                    : abi.set_limit_fraction(handle(), device, fraction);
  check(static_cast<stratalloc_status>(status), "set_per_process_memory_fraction");
  fractions_[device] = fraction;
}

void StratallocAllocator::emptyCache(MempoolId_t mempool_id) {
  const Caller caller(history_, RecordContext::ALL);
  for (int device = 0; handle_ != nullptr && device < device_count_; device++) {
    const auto status = mempool_id == MempoolId_t(0, 0)
        ? abi.empty_cache(handle_, device, nullptr)
        : abi.pool_empty(handle_, device, to_pool(mempool_id), nullptr);
    // While a private pool is being filled nothing is given back, as torch gives nothing back that a capture may use; and a
    // pool lives on one device, unknown to the others.
    const bool nothing_to_do = status == STRATALLOC_CAPTURING || status == STRATALLOC_FORKED ||
        (status == STRATALLOC_INVALID_ARGUMENT && mempool_id != MempoolId_t(0, 0));
    if (!nothing_to_do) {
      check(static_cast<stratalloc_status>(status), "empty_cache");
    }
  }
}

void StratallocAllocator::cacheInfo(DeviceIndex device, size_t* largestBlock) {
  check_device(device);
  const stratalloc_stats stats = read_stats(device);
  if (*largestBlock == 0) {
    // The caller asks for a first guess: what the device has left, within the limit.
    c10::cuda::CUDAGuard guard(device);
    size_t total = 0;
    C10_CUDA_CHECK(cudaMemGetInfo(largestBlock, &total));
    const uint64_t room = stats.limit > stats.reserved.current ? stats.limit - stats.reserved.current : 0;
    *largestBlock = std::min<size_t>(*largestBlock, room);
  }
  *largestBlock = std::max<size_t>(*largestBlock, stats.largest_free);
}

namespace {

struct Containing {
  uint64_t address;
  uint64_t base = 0;
  uint64_t bytes = 0;
};

bool find_containing(void* context, const stratalloc_segment* segment) {
  auto& wanted = *static_cast<Containing*>(context);
  if (wanted.address - segment->address >= segment->bytes) {
    return true;
  }
  wanted.base = segment->address;
  wanted.bytes = segment->bytes;
  return false;
}

} // namespace

// The segment: the range that is mapped as one, as torch returns the cudaMalloc that a block lies in. NCCL registers it.
void* StratallocAllocator::getBaseAllocation(void* ptr, size_t* size) {
  stratalloc_block block{};
  block.struct_size = sizeof(block);
  check(static_cast<stratalloc_status>(abi.find(handle(), ptr, &block)), "getBaseAllocation");
  Containing wanted{reinterpret_cast<uint64_t>(ptr)};
  check(
      static_cast<stratalloc_status>(abi.visit_segments(handle(), block.device, find_containing, &wanted)),
      "getBaseAllocation");
  TORCH_CHECK(wanted.bytes != 0, "stratalloc: no segment holds ", ptr);
  if (size != nullptr) {
    *size = wanted.bytes;
  }
  return reinterpret_cast<void*>(wanted.base);
}

} // namespace stratalloc_torch
