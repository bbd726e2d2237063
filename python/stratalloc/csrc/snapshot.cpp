#include <algorithm>

#include <c10/core/AllocatorConfig.h>
#include <c10/cuda/CUDAAllocatorConfig.h>

#include "allocator.h"

namespace stratalloc_torch {

using c10::CachingAllocator::AcceleratorAllocatorConfig;

namespace {

struct Walk {
  MempoolId_t wanted;
  const std::unordered_map<const void*, std::shared_ptr<c10::GatheredContext>>& contexts;
  std::vector<SegmentInfo>& segments;
  std::exception_ptr failure = nullptr;
};

// The blocks from `first` to before `end`, which lie in one pool, as a segment.
void add_part(Walk& walk, const stratalloc_segment& from, size_t first, size_t end, stratalloc_pool_id pool) {
  SegmentInfo to;
  to.device = static_cast<DeviceIndex>(from.device);
  to.address = reinterpret_cast<size_t>(abi.segment_block(&from, first)->address);
  to.stream = from.stream;
  to.is_large = from.is_large;
  to.is_expandable = from.is_expandable;
  to.owner_private_pool_id = from_pool(pool);
  to.blocks.reserve(end - first);
  for (size_t i = first; i < end; i++) {
    const stratalloc_block& block = *abi.segment_block(&from, i);
    BlockInfo info;
    info.size = block.bytes;
    info.requested_size = block.requested;
    info.allocated = block.state == 1;
    info.active = block.state != 0;
    to.total_size += info.size;
    if (info.active) {
      const auto context = walk.contexts.find(block.address);
      info.context_when_allocated = context == walk.contexts.end() ? nullptr : context->second;
      to.active_size += info.size;
    }
    if (info.allocated) {
      to.allocated_size += info.size;
      to.requested_size += info.requested_size;
    }
    to.blocks.push_back(std::move(info));
  }
  walk.segments.push_back(std::move(to));
}

// A private pool may have memory that was the ordinary pool's, so a stretch of memory may belong to several. torch's segments
// belong to one: the stretch is cut where the pool changes.
void add_segment(Walk& walk, const stratalloc_segment& from) {
  size_t first = 0;
  while (first < from.block_count) {
    const stratalloc_pool_id pool = abi.segment_block(&from, first)->pool;
    size_t end = first + 1;
    while (end < from.block_count && from_pool(abi.segment_block(&from, end)->pool) == from_pool(pool)) {
      end += 1;
    }
    if (walk.wanted == MempoolId_t(0, 0) || walk.wanted == from_pool(pool)) {
      add_part(walk, from, first, end, pool);
    }
    first = end;
  }
}

bool visit(void* context, const stratalloc_segment* segment) {
  auto& walk = *static_cast<Walk*>(context);
  // The library is not C++: nothing may be thrown through it.
  try {
    add_segment(walk, *segment);
    return true;
  } catch (...) {
    walk.failure = std::current_exception();
    return false;
  }
}

AllocatorConfigInfo config_metadata() {
  AllocatorConfigInfo config{};
  config.garbage_collection_threshold = AcceleratorAllocatorConfig::garbage_collection_threshold();
  config.max_split_size = AcceleratorAllocatorConfig::max_split_size();
  config.pinned_num_register_threads = CUDAAllocatorConfig::pinned_num_register_threads();
  // Ours are always mapped piece by piece, whatever torch's option says.
  config.expandable_segments = true;
  config.release_lock_on_malloc = CUDAAllocatorConfig::release_lock_on_cudamalloc();
  config.pinned_use_host_register = CUDAAllocatorConfig::pinned_use_cuda_host_register();
  config.graph_capture_record_stream_reuse = CUDAAllocatorConfig::graph_capture_record_stream_reuse();
  config.last_allocator_settings = c10::CachingAllocator::getAllocatorSettings();
  config.roundup_power2_divisions = AcceleratorAllocatorConfig::roundup_power2_divisions();
  return config;
}

} // namespace

SnapshotInfo StratallocAllocator::snapshot(MempoolId_t mempool_id, bool include_traces) {
  SnapshotInfo result;
  const auto contexts = history_.contexts();
  for (int device = 0; device < device_count_; device++) {
    const size_t first = result.segments.size();
    Walk walk{mempool_id, contexts, result.segments};
    const auto status = abi.visit_segments(handle(), device, visit, &walk);
    if (walk.failure) {
      std::rethrow_exception(walk.failure);
    }
    check(static_cast<stratalloc_status>(status), "memory_snapshot");
    const auto begin = result.segments.begin() + static_cast<ptrdiff_t>(first);
    std::sort(begin, result.segments.end(), [](const SegmentInfo& a, const SegmentInfo& b) {
      return a.address < b.address;
    });
    size_t active = 0;
    for (auto segment = begin; segment != result.segments.end(); ++segment) {
      active += segment->active_size;
    }
    if (history_.watching()) {
      history_.snapshot_taken(static_cast<DeviceIndex>(device), active);
    }
  }
  const auto devices = static_cast<size_t>(device_count_);
  result.device_traces = include_traces ? history_.traces(devices) : std::vector<std::vector<TraceEntry>>(devices);
  if (include_traces) {
    result.external_annotations = history_.annotations();
  }
  result.config_metadata = config_metadata();
  return result;
}

std::vector<StreamSegmentSize> StratallocAllocator::getExpandableSegmentSizes(DeviceIndex device) {
  check_device(device);
  std::vector<SegmentInfo> segments;
  const std::unordered_map<const void*, std::shared_ptr<c10::GatheredContext>> no_contexts;
  Walk walk{{0, 0}, no_contexts, segments};
  const auto status = abi.visit_segments(handle(), device, visit, &walk);
  if (walk.failure) {
    std::rethrow_exception(walk.failure);
  }
  check(static_cast<stratalloc_status>(status), "getExpandableSegmentSizes");
  std::vector<StreamSegmentSize> sizes;
  for (const SegmentInfo& segment : segments) {
    if (segment.is_expandable) {
      sizes.emplace_back(static_cast<cudaStream_t>(segment.stream), !segment.is_large, segment.total_size);
    }
  }
  return sizes;
}

// ---- what the library reports while it works: called under its lock, so it is not called back

void StratallocAllocator::on_segment_event(void* context, const stratalloc_event* event) {
  try {
    static_cast<StratallocAllocator*>(context)->segment_event(*event);
  } catch (...) {
    // Out of host memory, or a tracker that throws. The allocation goes on; the trace lacks an entry.
  }
}

void StratallocAllocator::segment_event(const stratalloc_event& event) {
  const auto device = static_cast<DeviceIndex>(event.device);
  void* const ptr = reinterpret_cast<void*>(event.address);
  switch (event.kind) {
    case STRATALLOC_EVENT_MAP:
      grant_peers(device, event.address, event.bytes);
      statistics_.segment_changed(device);
      break;
    case STRATALLOC_EVENT_UNMAP:
      statistics_.segment_changed(device);
      break;
    case STRATALLOC_EVENT_FREE_COMPLETED:
      if (history_.watching()) {
        history_.free_completed(ptr, event.bytes, device, event.stream, from_pool(event.pool));
      }
      return;
    default:
      return;
  }
  if (history_.watching()) {
    const auto action = event.kind == STRATALLOC_EVENT_MAP ? TraceEntry::SEGMENT_MAP : TraceEntry::SEGMENT_UNMAP;
    history_.segment(action, ptr, event.bytes, device, event.stream, from_pool(event.pool));
  }
}

} // namespace stratalloc_torch
