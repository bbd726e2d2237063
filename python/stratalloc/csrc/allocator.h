// The allocator that torch is given: every virtual function of c10's CUDAAllocator, forwarded to the C ABI.
//
// | file | functions |
// |---|---|
// | allocator.cpp | allocate, free, streams, limits, copies |
// | errors.cpp | statuses as exceptions, the text of an out-of-memory error |
// | statistics.cpp | DeviceStats |
// | history.cpp | recorded traces, contexts, annotations, trackers |
// | snapshot.cpp | segments and blocks |
// | pools.cpp | MemPool, graph pools, checkpoints |
// | sharing.cpp | memory that other processes open |
// | peers.cpp | access of one device to another's memory |
// | install.cpp | what Python calls |
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <c10/core/impl/GPUTrace.h>

#include "abi.h"
#include "compat.h"
#include "history.h"
#include "statistics.h"

namespace stratalloc_torch {

// The deleter of every tensor's memory. It has no `this`, and torch compares its address: there is one.
void delete_block(void* ptr);
// The deleter of memory taken while caching is disabled.
void delete_uncached(void* ptr);

class StratallocAllocator final : public CUDAAllocator {
 public:
  // Leaked: tensors are freed until the process ends.
  static StratallocAllocator& instance();

  // ---- allocator.cpp
  c10::DataPtr allocate(size_t size) override;
  c10::DeleterFnPtr raw_deleter() const override;
  void copy_data(void* dest, const void* src, std::size_t count) const override;
  void* raw_alloc(size_t nbytes) override;
  void* raw_alloc_with_stream(size_t nbytes, cudaStream_t stream) override;
  void raw_delete(void* ptr) override;
  void init(int device_count) override;
  bool initialized() override;
  double getMemoryFraction(DeviceIndex device) override;
  void setMemoryFraction(double fraction, DeviceIndex device) override;
  void emptyCache(MempoolId_t mempool_id) override;
  void enable(bool value) override;
  bool isEnabled() const override;
  void cacheInfo(DeviceIndex device, size_t* largestBlock) override;
  void* getBaseAllocation(void* ptr, size_t* size) override;
  using CUDAAllocator::recordStream;
  void recordStream(const c10::DataPtr& ptr, c10::cuda::CUDAStream stream) override;
  cudaError_t memcpyAsync(
      void* dst,
      int dstDevice,
      const void* src,
      int srcDevice,
      size_t count,
      cudaStream_t stream,
      bool p2p_enabled) override;
  c10::DataPtr allocateWithAddress(size_t size, void* addr) SINCE_2_15;
  std::string name() override;

  // ---- statistics.cpp
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(DeviceIndex device) override;
  void resetAccumulatedStats(DeviceIndex device) override;
  void resetPeakStats(DeviceIndex device) override;

  // ---- history.cpp
  void recordHistory(
      bool enabled,
      CreateContextFn context_recorder,
      size_t alloc_trace_max_entries,
      RecordContext when,
      bool clearHistory,
      const std::vector<std::string>& skip_actions) override;
  bool isHistoryEnabled() override;
  std::shared_ptr<c10::GatheredContext> getContextForPointer(const void* ptr) SINCE_2_15;
  void recordAnnotation(const std::vector<std::pair<std::string, std::string>>& md) override;
  void pushCompileContext(std::string& md) override;
  void popCompileContext() override;
  bool supportsUserMetadata() SINCE_2_15;
  void setUserMetadata(const std::string& metadata) override;
  std::string getUserMetadata() override;
  void annotateMemory(const void* ptr, const std::string& metadata) SINCE_2_15;
  void attachOutOfMemoryObserver(OutOfMemoryObserver observer) override;
  void attachOomRejectionObserver(OomRejectionObserver observer) SINCE_2_15;
  void attachAllocatorTraceTracker(AllocatorTraceTracker tracker) override;

  // ---- snapshot.cpp
  SnapshotInfo snapshot(MempoolId_t mempool_id, bool include_traces) override;
  std::vector<StreamSegmentSize> getExpandableSegmentSizes(DeviceIndex device) override;

  // ---- pools.cpp
  void beginAllocateToPool(
      DeviceIndex device,
      MempoolId_t mempool_id,
      std::function<bool(cudaStream_t)> filter) override;
  void endAllocateToPool(DeviceIndex device, MempoolId_t mempool_id) override;
  void markCaptureBegin(DeviceIndex device) SINCE_2_15;
  void markCaptureEnd(DeviceIndex device) SINCE_2_15;
  void releasePool(DeviceIndex device, MempoolId_t mempool_id) override;
  int getPoolUseCount(DeviceIndex device, MempoolId_t mempool_id) override;
  void createOrIncrefPool(
      DeviceIndex device,
      MempoolId_t mempool_id,
      std::shared_ptr<CUDAAllocator> allocator) override;
  void setUseOnOOM(DeviceIndex device, MempoolId_t mempool_id, bool use_on_oom) override;
  void setNoSplit(DeviceIndex device, MempoolId_t mempool_id) override;
  bool checkPoolLiveAllocations(
      DeviceIndex device,
      MempoolId_t mempool_id,
      const std::unordered_set<void*>& expected_live_allocations) override;
  std::shared_ptr<AllocatorState> getCheckpointState(DeviceIndex device, MempoolId_t id) override;
  CheckpointDelta setCheckpointPoolState(DeviceIndex device, std::shared_ptr<AllocatorState> pps) override;

  // ---- sharing.cpp
  ShareableHandle shareIpcHandle(void* ptr) override;
  std::shared_ptr<void> getIpcDevPtr(std::string handle) override;
  // In between, what this thread allocates may be sent to other processes.
  void enter_shareable();
  void leave_shareable();

  // ---- peers.cpp
  void enablePeerAccess(DeviceIndex dev, DeviceIndex dev_to_access) override;

  // The deleter's way in. Throws only for a pointer that is not a live block of ours.
  void free_block(void* ptr);
  // Writes the configuration down for `init`. Returns an empty text, or what is wrong with it.
  std::string configure(const char* conf);

 private:
  StratallocAllocator() = default;

  void* alloc(size_t nbytes, DeviceIndex device, cudaStream_t stream);
  // Whether an allocation is more than the library's own: history, trackers, memory to share, torch's sanitizer, its profiler.
  bool watched() const {
    return C10_UNLIKELY(
        history_.watching() || sharers_.load(std::memory_order_relaxed) != 0 || c10::impl::GPUTrace::haveState ||
        c10::memoryProfilingEnabled());
  }
  void* watched_alloc(size_t nbytes, DeviceIndex device, cudaStream_t stream);
  // What must be known before the block is freed; whatever comes after it may be another thread's.
  struct Freed {
    bool known = false;
    size_t requested = 0;
    DeviceIndex device = 0;
  };
  Freed watched_free(void* ptr);
  void report_usage(void* ptr, int64_t change, DeviceIndex device);
  [[noreturn]] void alloc_failed(stratalloc_status status, size_t nbytes, DeviceIndex device, cudaStream_t stream);

  // The handle; fails with a clear text before `init`.
  stratalloc_allocator* handle() const;
  void check_device(DeviceIndex device) const;
  stratalloc_stats read_stats(DeviceIndex device) const;

  static void on_segment_event(void* context, const stratalloc_event* event);
  static bool on_shortage(void* context, const stratalloc_shortage* shortage);
  void segment_event(const stratalloc_event& event);
  void grant_peers(DeviceIndex owner, uint64_t address, uint64_t bytes);

  stratalloc_allocator* handle_ = nullptr;
  std::once_flag created_;
  std::atomic<bool> initialized_{false};
  std::atomic<bool> enabled_{true};
  int device_count_ = 0;
  std::array<std::atomic<double>, C10_COMPILE_TIME_MAX_GPUS> fractions_{};

  static bool shareable_in_this_thread();
  stratalloc_status alloc_shareable(size_t nbytes, DeviceIndex device, cudaStream_t stream, void** out);

  History history_;
  // Threads that allocate memory to share.
  std::atomic<int> sharers_{0};
  Statistics statistics_;

  // Which device may reach which one's memory: peers_[owner] holds a bit for each. Written under the mutex, read by the
  // segment observer.
  std::array<std::atomic<uint64_t>, C10_COMPILE_TIME_MAX_GPUS> peers_{};
  std::mutex peers_mutex_;
};

// ---- errors.cpp

// Throws what `status` means. `what` names the call as torch's users know it.
void check(stratalloc_status status, const char* what);

// Says what failed where nothing may be thrown.
void warn_from_destructor(const char* what, const char* why) noexcept;

inline stratalloc_pool_id to_pool(MempoolId_t id) {
  return stratalloc_pool_id{id.first, id.second};
}

inline MempoolId_t from_pool(stratalloc_pool_id id) {
  return MempoolId_t(id.first, id.second);
}

} // namespace stratalloc_torch
