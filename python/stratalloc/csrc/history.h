// What torch's memory history keeps: a ring of trace entries for each device, the context of each live block, annotations.
//
// While nothing is recorded and nobody tracks, an allocation pays one relaxed load (`watching`).
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include <c10/util/ApproximateClock.h>

#include "compat.h"

namespace stratalloc_torch {

class History {
 public:
  // Anything to be told: a recording, or a tracker.
  bool watching() const {
    return watch_.load(std::memory_order_relaxed) != 0;
  }
  bool recording() const {
    return (watch_.load(std::memory_order_relaxed) & RECORDING) != 0;
  }

  void configure(
      bool enabled,
      CreateContextFn recorder,
      size_t entries_max,
      RecordContext when,
      bool clear,
      const std::vector<std::string>& skip_actions);
  void add_tracker(AllocatorTraceTracker tracker);
  void add_oom_observer(OutOfMemoryObserver observer);

  // A stack trace if `level` is asked for, else null. Takes the interpreter's lock: call it with no lock held.
  std::shared_ptr<c10::GatheredContext> gather(RecordContext level) const;

  void allocated(
      void* ptr,
      size_t size,
      DeviceIndex device,
      void* stream,
      MempoolId_t pool,
      std::shared_ptr<c10::GatheredContext> context);
  // Before the free itself, since the address may be anybody's after it.
  void freed(void* ptr, size_t size, DeviceIndex device, void* stream, MempoolId_t pool);
  // Another stream uses the block: its free completes later, which the segment observer reports.
  void stream_recorded(void* ptr);
  void free_completed(void* ptr, size_t size, DeviceIndex device, void* stream, MempoolId_t pool);
  // The context is that of the thread's `Caller`.
  void segment(TraceEntry::Action action, const void* ptr, size_t size, DeviceIndex device, void* stream, MempoolId_t pool);
  // Records the shortage and tells the observers.
  void out_of_memory(DeviceIndex device, size_t requested, size_t device_free, size_t device_total, void* stream);
  void snapshot_taken(DeviceIndex device, size_t active);
  void annotate(const void* ptr, size_t size, DeviceIndex device, void* stream, MempoolId_t pool, const std::string& text);
  void annotate_region(DeviceIndex device, const std::vector<std::pair<std::string, std::string>>& words);

  std::shared_ptr<c10::GatheredContext> context_of(const void* ptr) const;
  // The contexts of all live blocks, for a snapshot.
  std::unordered_map<const void*, std::shared_ptr<c10::GatheredContext>> contexts() const;
  // Each device's entries, oldest first, with times in microseconds since 1970.
  std::vector<std::vector<TraceEntry>> traces(size_t devices);
  std::vector<AnnotationEntry> annotations();

 private:
  enum : uint32_t { RECORDING = 1, TRACKING = 2 };

  // The last `entries_max` entries.
  struct Ring {
    std::vector<TraceEntry> entries;
    size_t next = 0;
  };

  struct Live {
    std::shared_ptr<c10::GatheredContext> context;
    bool streams_recorded = false;
  };

  void record(TraceEntry entry);
  template <typename Entry>
  void push(std::vector<Entry>& entries, size_t& next, Entry entry);

  std::atomic<uint32_t> watch_{0};
  std::atomic<CreateContextFn> recorder_{nullptr};
  std::atomic<int> when_{static_cast<int>(RecordContext::NEVER)};
  // Made when the allocator is, well before the first conversion: a clock calibrated over microseconds gives wrong times.
  c10::ApproximateClockToUnixTimeConverter clock_;

  // Leaf lock: nothing is called with it held.
  mutable std::mutex mutex_;
  size_t entries_max_ = 1;
  std::unordered_set<int> skipped_;
  std::vector<Ring> rings_;
  std::vector<AnnotationEntry> annotations_;
  size_t next_annotation_ = 0;
  std::unordered_map<const void*, Live> live_;
  // Freed blocks whose recorded streams are not done, with the context to complete them with.
  std::unordered_map<const void*, std::shared_ptr<c10::GatheredContext>> pending_;
  // Copied when it changes, so that trackers are called without the lock.
  std::shared_ptr<const std::vector<AllocatorTraceTracker>> trackers_;
  std::shared_ptr<const std::vector<OutOfMemoryObserver>> oom_observers_;
};

// The stack trace of who called the allocator, while the call lasts. Taken before the library takes its lock: taking one wants the
// interpreter's lock, which another thread may hold while it waits for the library's.
class Caller {
 public:
  Caller(const History& history, RecordContext level);
  ~Caller();
  Caller(const Caller&) = delete;
  Caller& operator=(const Caller&) = delete;

  const std::shared_ptr<c10::GatheredContext>& context() const {
    return context_;
  }

 private:
  std::shared_ptr<c10::GatheredContext> context_;
  const Caller* const outer_;
};

} // namespace stratalloc_torch
