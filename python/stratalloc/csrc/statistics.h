// torch's statistics from the allocator's: what to subtract since the last reset, and peaks that are sampled.
#pragma once

#include <array>
#include <atomic>
#include <mutex>

#include "abi.h"
#include "compat.h"

namespace stratalloc_torch {

class Statistics {
 public:
  using DeviceStats = c10::CachingDeviceAllocator::DeviceStats;

  // What segments are made of; found by walking them, which is done again only after they have changed.
  struct Segments {
    uint64_t version = 0;
    // By StatType: all, small, large.
    std::array<int64_t, 3> count{};
    std::array<int64_t, 3> bytes{};
    std::array<int64_t, 3> inactive{};
    ska::flat_hash_map<MempoolId_t, std::array<int64_t, 3>, c10::MempoolIdHash> pools;
  };

  DeviceStats read(DeviceIndex device, const stratalloc_stats& stats, const Segments& segments);
  void reset_accumulated(DeviceIndex device, const stratalloc_stats& stats, const Segments& segments);
  // After the library's own peaks were reset.
  void reset_peaks(DeviceIndex device, const stratalloc_stats& stats, const Segments& segments);

  // A segment was mapped or unmapped. Called under the allocator's lock.
  void segment_changed(DeviceIndex device) {
    versions_[device].fetch_add(1, std::memory_order_relaxed);
  }
  uint64_t version(DeviceIndex device) const {
    return versions_[device].load(std::memory_order_relaxed);
  }
  // The last walk, if no segment has changed since.
  bool cached(DeviceIndex device, Segments& out);
  void remember(DeviceIndex device, const Segments& segments);

  void count_oom(DeviceIndex device) {
    ooms_[device].fetch_add(1, std::memory_order_relaxed);
  }
  void count_retry(DeviceIndex device) {
    retries_[device].fetch_add(1, std::memory_order_relaxed);
  }

 private:
  struct PerDevice {
    // Peaks as of the calls that asked; `all` of bytes is the library's own, which is exact.
    DeviceStats sampled;
    // Totals at the last reset of what accumulates.
    DeviceStats baseline;
    Segments segments;
    bool walked = false;
  };

  DeviceStats totals(DeviceIndex device, const stratalloc_stats& stats, const Segments& segments) const;

  std::array<std::atomic<uint64_t>, C10_COMPILE_TIME_MAX_GPUS> versions_{};
  std::array<std::atomic<int64_t>, C10_COMPILE_TIME_MAX_GPUS> ooms_{};
  std::array<std::atomic<int64_t>, C10_COMPILE_TIME_MAX_GPUS> retries_{};
  std::mutex mutex_;
  std::array<PerDevice, C10_COMPILE_TIME_MAX_GPUS> devices_;
};

} // namespace stratalloc_torch
