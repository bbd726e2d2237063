#include "allocator.h"

namespace stratalloc_torch {

namespace {

using Filter = std::function<bool(cudaStream_t)>;

bool call_filter(void* context, stratalloc_stream stream) {
  try {
    return (*static_cast<Filter*>(context))(static_cast<cudaStream_t>(stream));
  } catch (...) {
    // The stream's capture is broken, which torch reports when it ends; the request goes to the ordinary pool.
    return false;
  }
}

void drop_filter(void* context) {
  delete static_cast<Filter*>(context);
}

void check_pool(int status, const char* what) {
  check(static_cast<stratalloc_status>(status), what);
}

// For what torch calls from destructors, in a forked child too: the pools are the parent's, so nothing is to be done there.
void check_pool_unless_forked(int status, const char* what) {
  if (status != STRATALLOC_FORKED) {
    check_pool(status, what);
  }
}

// A pool's blocks as they were, for cudagraph trees: the state before a graph's second path is recorded.
struct PoolState final : AllocatorState {
  explicit PoolState(stratalloc_checkpoint* made) : checkpoint(made) {}
  ~PoolState() override {
    abi.checkpoint_destroy(checkpoint);
  }
  stratalloc_checkpoint* const checkpoint;
};

} // namespace

void StratallocAllocator::beginAllocateToPool(DeviceIndex device, MempoolId_t mempool_id, Filter filter) {
  check_device(device);
  // The library counts one user for this, which torch gives back with releasePool, and drops the filter in any case. Whether a
  // capture goes with it is said apart, since use_mem_pool has none; or it is not said, and may be.
  auto* const kept = new Filter(std::move(filter));
  const auto begin = CAPTURES_ARE_MARKED ? abi.pool_route : abi.pool_begin;
  check_pool(begin(handle(), device, to_pool(mempool_id), call_filter, kept, drop_filter), "beginAllocateToPool");
}

void StratallocAllocator::endAllocateToPool(DeviceIndex device, MempoolId_t mempool_id) {
  check_device(device);
  check_pool(abi.pool_end(handle(), device, to_pool(mempool_id)), "endAllocateToPool");
}

// In between, the library records and asks for no event: that would break the capture.
void StratallocAllocator::markCaptureBegin(DeviceIndex device) {
  check_device(device);
  check_pool(abi.capture_begin(handle(), device), "capture_begin");
}

void StratallocAllocator::markCaptureEnd(DeviceIndex device) {
  check_device(device);
  check_pool(abi.capture_end(handle(), device), "capture_end");
}

void StratallocAllocator::releasePool(DeviceIndex device, MempoolId_t mempool_id) {
  try {
    check_device(device);
    check_pool_unless_forked(abi.pool_release(handle(), device, to_pool(mempool_id)), "releasePool");
  } catch (const std::exception& error) {
    // The destructor of a graph or of a MemPool is running: an exception would end the process.
    warn_from_destructor("stratalloc could not release a pool: ", error.what());
  }
}

int StratallocAllocator::getPoolUseCount(DeviceIndex device, MempoolId_t mempool_id) {
  check_device(device);
  // What the destructor of a MemPool wants to see, if this is a forked child.
  size_t users = 1;
  check_pool_unless_forked(abi.pool_users(handle(), device, to_pool(mempool_id), &users), "MemPool.use_count");
  return static_cast<int>(users);
}

void StratallocAllocator::createOrIncrefPool(
    DeviceIndex device,
    MempoolId_t mempool_id,
    std::shared_ptr<CUDAAllocator> allocator) {
  check_device(device);
  TORCH_CHECK_NOT_IMPLEMENTED(
      allocator == nullptr,
      "stratalloc does not support a MemPool with an allocator of its own (torch.cuda.MemPool(allocator)); "
      "leave the allocator out, or use PyTorch's native allocator");
  check_pool(abi.pool_retain(handle(), device, to_pool(mempool_id)), "MemPool");
}

void StratallocAllocator::setUseOnOOM(DeviceIndex device, MempoolId_t mempool_id, bool use_on_oom) {
  check_device(device);
  check_pool_unless_forked(
      abi.pool_set_use_on_oom(handle(), device, to_pool(mempool_id), use_on_oom), "MemPool(use_on_oom=...)");
}

void StratallocAllocator::setNoSplit(DeviceIndex device, MempoolId_t mempool_id) {
  // The constructor of a MemPool calls this after it has become a user, and its destructor does not run if this throws.
  releasePool(device, mempool_id);
  TORCH_CHECK_NOT_IMPLEMENTED(
      false,
      "stratalloc does not support MemPool(no_split=True): its segments grow and shrink in place, so there is "
      "nothing for the option to keep whole");
}

namespace {

struct LiveInPool {
  MempoolId_t wanted;
  const std::unordered_set<void*>& expected;
  size_t live = 0;
  bool unexpected = false;
};

bool count_live(void* context, const stratalloc_segment* segment) {
  auto& pool = *static_cast<LiveInPool*>(context);
  for (size_t i = 0; i < segment->block_count; i++) {
    const stratalloc_block& block = *abi.segment_block(segment, i);
    if (block.state == 1 && from_pool(block.pool) == pool.wanted) {
      pool.live += 1;
      pool.unexpected = pool.unexpected || pool.expected.count(block.address) == 0;
    }
  }
  return !pool.unexpected;
}

} // namespace

bool StratallocAllocator::checkPoolLiveAllocations(
    DeviceIndex device,
    MempoolId_t mempool_id,
    const std::unordered_set<void*>& expected_live_allocations) {
  check_device(device);
  TORCH_CHECK(getPoolUseCount(device, mempool_id) > 0, "Could not find pool of id");
  LiveInPool pool{mempool_id, expected_live_allocations};
  check_pool(abi.visit_segments(handle(), device, count_live, &pool), "checkPoolLiveAllocations");
  return !pool.unexpected && pool.live == expected_live_allocations.size();
}

std::shared_ptr<AllocatorState> StratallocAllocator::getCheckpointState(DeviceIndex device, MempoolId_t id) {
  check_device(device);
  stratalloc_checkpoint* made = nullptr;
  check_pool(abi.pool_checkpoint(handle(), device, to_pool(id), &made), "getCheckpointState");
  return std::make_shared<PoolState>(made);
}

namespace {

struct Restoring {
  DeviceIndex device;
  CheckpointDelta delta;
  std::vector<size_t> sizes;
};

void note_freed(void* context, void* address) {
  static_cast<Restoring*>(context)->delta.ptrs_freed.push_back(address);
}

void note_allocated(void* context, void* address, size_t bytes) {
  auto& restoring = *static_cast<Restoring*>(context);
  // torch frees through these what no storage takes over.
  restoring.delta.dataptrs_allocd.emplace_back(
      address, address, &delete_block, c10::Device(c10::kCUDA, restoring.device));
  restoring.sizes.push_back(bytes);
}

} // namespace

CheckpointDelta StratallocAllocator::setCheckpointPoolState(
    DeviceIndex device,
    std::shared_ptr<AllocatorState> pps) {
  check_device(device);
  const auto* const state = dynamic_cast<const PoolState*>(pps.get());
  TORCH_CHECK(state != nullptr, "setCheckpointPoolState: the state is not one of stratalloc's");
  const Caller caller(history_, RecordContext::STATE);
  Restoring restoring{device, {}, {}};
  check_pool(
      abi.pool_restore(handle(), device, state->checkpoint, note_freed, note_allocated, &restoring),
      "setCheckpointPoolState");
  if (history_.watching()) {
    for (void* ptr : restoring.delta.ptrs_freed) {
      history_.freed(ptr, 0, device, nullptr, {0, 0});
    }
    for (size_t i = 0; i < restoring.sizes.size(); i++) {
      history_.allocated(restoring.delta.dataptrs_allocd[i].get(), restoring.sizes[i], device, nullptr, {0, 0},
          caller.context());
    }
  }
  return std::move(restoring.delta);
}

} // namespace stratalloc_torch
