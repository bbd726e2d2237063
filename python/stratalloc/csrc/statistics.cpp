#include "statistics.h"

#include <algorithm>

#include <c10/core/AllocatorConfig.h>

#include "allocator.h"

// Where each number comes from:
//
// - allocation, allocated_bytes: the library's counts by block size, split at 1 MiB as torch splits its pools. Current and
//   totals are exact. The peak of bytes is that of blocks not free: exact, but for blocks that wait for recorded streams, which
//   it includes.
// - requested_bytes: the library's; the split by pool is an estimate, since requests are not counted by size apart from blocks.
// - active_bytes, reserved_bytes: the library's own gauges, exact in `all`.
// - segment, reserved_bytes by pool, inactive_split: from a walk over the segments, done again after any of them changed.
//   inactive_split_bytes counts free memory in mapped segments, an upper bound of what empty_cache cannot give back.
// - peaks of counts and of the parts by pool are sampled when statistics are read: lower bounds.

namespace stratalloc_torch {

namespace {

constexpr size_t ALL = static_cast<size_t>(StatType::AGGREGATE);
constexpr size_t SMALL = static_cast<size_t>(StatType::SMALL_POOL);
constexpr size_t LARGE = static_cast<size_t>(StatType::LARGE_POOL);

// Calls `f` with each of the arrays that have a peak, in one order for both arguments.
template <typename F>
void for_each_array(c10::CachingDeviceAllocator::DeviceStats& a, c10::CachingDeviceAllocator::DeviceStats& b, F f) {
  f(a.allocation, b.allocation);
  f(a.segment, b.segment);
  f(a.active, b.active);
  f(a.inactive_split, b.inactive_split);
  f(a.allocated_bytes, b.allocated_bytes);
  f(a.reserved_bytes, b.reserved_bytes);
  f(a.active_bytes, b.active_bytes);
  f(a.inactive_split_bytes, b.inactive_split_bytes);
  f(a.requested_bytes, b.requested_bytes);
  if (auto* const pools = pools_in(a)) {
    for (auto& [id, array] : *pools) {
      f(array, (*pools_in(b))[id]);
    }
  }
}

void set(Stat& stat, int64_t current, int64_t allocated, int64_t freed) {
  stat.current = current;
  stat.peak = current;
  stat.allocated = allocated;
  stat.freed = freed;
}

void add_up(StatArray& array) {
  array[ALL].current = array[SMALL].current + array[LARGE].current;
  array[ALL].peak = array[ALL].current;
  array[ALL].allocated = array[SMALL].allocated + array[LARGE].allocated;
  array[ALL].freed = array[SMALL].freed + array[LARGE].freed;
}

// `all` of what the gauge counts exactly; the parts keep their share.
void set_gauge(StatArray& array, const stratalloc_gauge& gauge) {
  array[ALL].current = static_cast<int64_t>(gauge.current);
  array[ALL].peak = static_cast<int64_t>(gauge.peak);
}

} // namespace

Statistics::DeviceStats Statistics::totals(
    DeviceIndex device,
    const stratalloc_stats& stats,
    const Segments& segments) const {
  DeviceStats out;
  int64_t blocks[3][2] = {}, bytes[3][2] = {};
  for (const stratalloc_size_range& range : stats.sizes) {
    const size_t pool = range.up_to <= c10::CachingAllocator::kSmallSize ? SMALL : LARGE;
    blocks[pool][0] += static_cast<int64_t>(range.allocs);
    blocks[pool][1] += static_cast<int64_t>(range.frees);
    bytes[pool][0] += static_cast<int64_t>(range.bytes_allocated);
    bytes[pool][1] += static_cast<int64_t>(range.bytes_freed);
  }
  for (size_t pool : {SMALL, LARGE}) {
    set(out.allocation[pool], blocks[pool][0] - blocks[pool][1], blocks[pool][0], blocks[pool][1]);
    set(out.allocated_bytes[pool], bytes[pool][0] - bytes[pool][1], bytes[pool][0], bytes[pool][1]);
  }
  add_up(out.allocation);
  add_up(out.allocated_bytes);
  out.active = out.allocation;
  out.active_bytes = out.allocated_bytes;
  out.requested_bytes = out.allocated_bytes;

  // Blocks that wait for streams are active and no longer allocated; they are counted with the larger ones.
  const auto pending = static_cast<int64_t>(stats.pending);
  out.active_bytes[LARGE].current += pending;
  out.active_bytes[LARGE].freed -= pending;
  out.active_bytes[ALL].freed -= pending;
  set_gauge(out.active_bytes, stats.active);
  out.allocated_bytes[ALL].peak = static_cast<int64_t>(stats.active.peak);

  // Rounding is nearly all in the smaller ones.
  const auto live = static_cast<int64_t>(stats.live.current);
  const auto large = std::min(live, out.allocated_bytes[LARGE].current);
  set_gauge(out.requested_bytes, stats.live);
  out.requested_bytes[LARGE].current = out.requested_bytes[LARGE].peak = large;
  out.requested_bytes[SMALL].current = out.requested_bytes[SMALL].peak = live - large;

  for (size_t pool : {ALL, SMALL, LARGE}) {
    set(out.segment[pool], segments.count[pool], segments.count[pool], 0);
    set(out.inactive_split[pool], segments.inactive[pool], segments.inactive[pool], 0);
    set(out.reserved_bytes[pool], segments.bytes[pool], segments.bytes[pool], 0);
    const int64_t free = std::max<int64_t>(0, segments.bytes[pool] - out.active_bytes[pool].current);
    set(out.inactive_split_bytes[pool], free, free, 0);
  }
  // Chunks that are mapped nowhere for now belong to no segment.
  const auto reserved = static_cast<int64_t>(stats.reserved.current);
  out.reserved_bytes[LARGE].current = out.reserved_bytes[LARGE].peak =
      std::max<int64_t>(0, reserved - segments.bytes[SMALL]);
  set_gauge(out.reserved_bytes, stats.reserved);
  const auto mapped_free = static_cast<int64_t>(stats.cached) - static_cast<int64_t>(stats.reserve);
  set(out.inactive_split_bytes[ALL], std::max<int64_t>(0, mapped_free), std::max<int64_t>(0, mapped_free), 0);

  // The driver's own calls are what torch counts as segments allocated and freed.
  const auto chunk = stats.chunks == 0 ? 0 : static_cast<int64_t>(stats.chunk_bytes);
  for (size_t pool : {ALL, LARGE}) {
    out.segment[pool].allocated = static_cast<int64_t>(stats.device_allocs);
    out.segment[pool].freed = static_cast<int64_t>(stats.device_frees);
    out.reserved_bytes[pool].freed = static_cast<int64_t>(stats.device_frees) * chunk;
    out.reserved_bytes[pool].allocated = out.reserved_bytes[pool].freed + out.reserved_bytes[pool].current;
  }
  if (auto* const pools = pools_in(out)) {
    for (const auto& [id, pool_bytes] : segments.pools) {
      auto& array = (*pools)[id];
      for (size_t pool : {ALL, SMALL, LARGE}) {
        set(array[pool], pool_bytes[pool], pool_bytes[pool], 0);
      }
    }
  }

  out.num_ooms = ooms_[device].load(std::memory_order_relaxed);
  out.num_alloc_retries = retries_[device].load(std::memory_order_relaxed);
  out.num_sync_all_streams = static_cast<int64_t>(stats.synchronizations);
  out.num_device_alloc = static_cast<int64_t>(stats.device_allocs);
  out.num_device_free = static_cast<int64_t>(stats.device_frees);
  out.max_split_size = static_cast<int64_t>(c10::CachingAllocator::AcceleratorAllocatorConfig::max_split_size());
  return out;
}

Statistics::DeviceStats Statistics::read(
    DeviceIndex device,
    const stratalloc_stats& stats,
    const Segments& segments) {
  DeviceStats now = totals(device, stats, segments);
  std::lock_guard<std::mutex> lock(mutex_);
  PerDevice& own = devices_[device];
  // A pool that is gone keeps its peak, as in torch.
  if (auto* const pools = pools_in(own.sampled)) {
    for (const auto& entry : *pools) {
      (void)(*pools_in(now))[entry.first];
    }
  }
  for_each_array(now, own.sampled, [](StatArray& array, StatArray& sampled) {
    for (size_t pool : {ALL, SMALL, LARGE}) {
      sampled[pool].peak = std::max(sampled[pool].peak, array[pool].peak);
      array[pool].peak = sampled[pool].peak;
    }
  });
  for_each_array(now, own.baseline, [](StatArray& array, StatArray& baseline) {
    for (size_t pool : {ALL, SMALL, LARGE}) {
      array[pool].allocated -= baseline[pool].allocated;
      array[pool].freed -= baseline[pool].freed;
    }
  });
  now.num_ooms -= own.baseline.num_ooms;
  now.num_alloc_retries -= own.baseline.num_alloc_retries;
  now.num_sync_all_streams -= own.baseline.num_sync_all_streams;
  now.num_device_alloc -= own.baseline.num_device_alloc;
  now.num_device_free -= own.baseline.num_device_free;
  return now;
}

void Statistics::reset_accumulated(DeviceIndex device, const stratalloc_stats& stats, const Segments& segments) {
  DeviceStats now = totals(device, stats, segments);
  std::lock_guard<std::mutex> lock(mutex_);
  devices_[device].baseline = std::move(now);
}

void Statistics::reset_peaks(DeviceIndex device, const stratalloc_stats& stats, const Segments& segments) {
  DeviceStats now = totals(device, stats, segments);
  std::lock_guard<std::mutex> lock(mutex_);
  devices_[device].sampled = std::move(now);
}

bool Statistics::cached(DeviceIndex device, Segments& out) {
  const uint64_t now = version(device);
  std::lock_guard<std::mutex> lock(mutex_);
  const PerDevice& own = devices_[device];
  if (!own.walked || own.segments.version != now) {
    return false;
  }
  out = own.segments;
  return true;
}

void Statistics::remember(DeviceIndex device, const Segments& segments) {
  std::lock_guard<std::mutex> lock(mutex_);
  devices_[device].segments = segments;
  devices_[device].walked = true;
}

// ---- the allocator's functions

namespace {

bool add_segment(void* context, const stratalloc_segment* segment) {
  auto& found = *static_cast<Statistics::Segments*>(context);
  const size_t pool = segment->is_large ? LARGE : SMALL;
  for (size_t index : {ALL, pool}) {
    found.count[index] += 1;
    found.bytes[index] += static_cast<int64_t>(segment->bytes);
  }
  for (size_t i = 0; i < segment->block_count; i++) {
    const stratalloc_block& block = *abi.segment_block(segment, i);
    const bool inactive = block.state == 0 && block.bytes != segment->bytes;
    for (size_t index : {ALL, pool}) {
      found.inactive[index] += inactive ? 1 : 0;
      if (from_pool(block.pool) != MempoolId_t(0, 0)) {
        found.pools[from_pool(block.pool)][index] += static_cast<int64_t>(block.bytes);
      }
    }
  }
  return true;
}

Statistics::Segments walk(Statistics& statistics, stratalloc_allocator* handle, DeviceIndex device) {
  Statistics::Segments found;
  if (statistics.cached(device, found)) {
    return found;
  }
  // Read first: a change during the walk makes the next read walk again.
  found.version = statistics.version(device);
  check(abi.visit_segments(handle, device, add_segment, &found), "memory_stats");
  statistics.remember(device, found);
  return found;
}

} // namespace

stratalloc_stats StratallocAllocator::read_stats(DeviceIndex device) const {
  stratalloc_stats stats{};
  stats.struct_size = sizeof(stats);
  check(abi.get_stats(handle(), device, &stats), "memory_stats");
  return stats;
}

c10::CachingDeviceAllocator::DeviceStats StratallocAllocator::getDeviceStats(DeviceIndex device) {
  check_device(device);
  return statistics_.read(device, read_stats(device), walk(statistics_, handle(), device));
}

void StratallocAllocator::resetAccumulatedStats(DeviceIndex device) {
  check_device(device);
  statistics_.reset_accumulated(device, read_stats(device), walk(statistics_, handle(), device));
}

void StratallocAllocator::resetPeakStats(DeviceIndex device) {
  check_device(device);
  check(abi.reset_peaks(handle(), device), "reset_peak_memory_stats");
  statistics_.reset_peaks(device, read_stats(device), walk(statistics_, handle(), device));
}

} // namespace stratalloc_torch
