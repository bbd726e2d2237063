#include "history.h"

#include <algorithm>

#include <c10/cuda/CUDAFunctions.h>

#include "allocator.h"

namespace stratalloc_torch {

namespace {

// torch.compile pushes the id of what it runs; a thread's own, as its user metadata is.
thread_local std::vector<std::string> compile_contexts;
thread_local std::string user_metadata;
thread_local const Caller* caller_of_thread = nullptr;

template <typename Entry>
void put_in_order(std::vector<Entry>& entries, size_t& next) {
  std::rotate(entries.begin(), entries.begin() + static_cast<ptrdiff_t>(next), entries.end());
  next = 0;
}

std::string compile_context() {
  return compile_contexts.empty() ? "" : compile_contexts.back();
}

} // namespace

Caller::Caller(const History& history, RecordContext level)
    : context_(history.gather(level)), outer_(caller_of_thread) {
  caller_of_thread = this;
}

Caller::~Caller() {
  caller_of_thread = outer_;
}

void History::configure(
    bool enabled,
    CreateContextFn recorder,
    size_t entries_max,
    RecordContext when,
    bool clear,
    const std::vector<std::string>& skip_actions) {
  TORCH_CHECK(
      !enabled || when == RecordContext::NEVER || recorder != nullptr,
      "recordHistory wants a context recorder, or RecordContext::NEVER");
  std::unordered_set<int> skipped;
  for (const std::string& action : skip_actions) {
    skipped.insert(c10::CachingDeviceAllocator::parseTraceEntryAction(action));
  }
  std::vector<Ring> rings;
  std::vector<AnnotationEntry> annotations;
  std::unordered_map<const void*, Live> live;
  std::unordered_map<const void*, std::shared_ptr<c10::GatheredContext>> pending;
  // What is cleared dies after the lock is given back.
  std::lock_guard<std::mutex> lock(mutex_);
  const size_t before = entries_max_;
  entries_max_ = std::max<size_t>(1, entries_max);
  skipped_ = std::move(skipped);
  if (!enabled || clear || entries_max_ < before) {
    rings.swap(rings_);
    annotations.swap(annotations_);
    next_annotation_ = 0;
  }
  if (!enabled) {
    // Nobody hears of frees from now on, so what is remembered of live blocks would go stale.
    live.swap(live_);
    pending.swap(pending_);
  }
  // What has wrapped is put in order before it may grow.
  for (Ring& ring : rings_) {
    put_in_order(ring.entries, ring.next);
  }
  put_in_order(annotations_, next_annotation_);
  recorder_ = enabled ? recorder : nullptr;
  when_ = static_cast<int>(enabled ? when : RecordContext::NEVER);
  if (enabled) {
    watch_ |= RECORDING;
  } else {
    watch_ &= ~uint32_t(RECORDING);
  }
}

void History::add_tracker(AllocatorTraceTracker tracker) {
  std::lock_guard<std::mutex> lock(mutex_);
  auto all = trackers_ ? *trackers_ : std::vector<AllocatorTraceTracker>();
  all.push_back(std::move(tracker));
  trackers_ = std::make_shared<const std::vector<AllocatorTraceTracker>>(std::move(all));
  watch_ |= TRACKING;
}

void History::add_oom_observer(OutOfMemoryObserver observer) {
  std::lock_guard<std::mutex> lock(mutex_);
  auto all = oom_observers_ ? *oom_observers_ : std::vector<OutOfMemoryObserver>();
  all.push_back(std::move(observer));
  oom_observers_ = std::make_shared<const std::vector<OutOfMemoryObserver>>(std::move(all));
}

std::shared_ptr<c10::GatheredContext> History::gather(RecordContext level) const {
  const CreateContextFn recorder = recorder_.load();
  return recorder != nullptr && when_.load() >= static_cast<int>(level) ? recorder() : nullptr;
}

template <typename Entry>
void History::push(std::vector<Entry>& entries, size_t& next, Entry entry) {
  if (entries.size() < entries_max_) {
    entries.push_back(std::move(entry));
    return;
  }
  std::swap(entries[next], entry);
  next = (next + 1) % entries_max_;
}

void History::record(TraceEntry entry) {
  entry.compile_context_ = compile_context();
  entry.user_metadata_ = entry.action_ == ANNOTATE ? entry.user_metadata_ : user_metadata;
  std::shared_ptr<const std::vector<AllocatorTraceTracker>> trackers;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    trackers = trackers_;
    if (recording() && skipped_.count(entry.action_) == 0) {
      const auto device = static_cast<size_t>(entry.device_);
      if (rings_.size() <= device) {
        rings_.resize(device + 1);
      }
      push(rings_[device].entries, rings_[device].next, entry);
    }
  }
  if (trackers) {
    for (const AllocatorTraceTracker& tracker : *trackers) {
      tracker(entry);
    }
  }
}

void History::allocated(
    void* ptr,
    size_t size,
    DeviceIndex device,
    void* stream,
    MempoolId_t pool,
    std::shared_ptr<c10::GatheredContext> context) {
  if (recording()) {
    std::lock_guard<std::mutex> lock(mutex_);
    live_[ptr] = Live{context, false};
  }
  const bool in_trace = when_.load() >= static_cast<int>(RecordContext::ALLOC);
  record(TraceEntry(
      TraceEntry::ALLOC, device, reinterpret_cast<size_t>(ptr), size, stream, pool, c10::getApproximateTime(),
      in_trace ? context : nullptr));
}

void History::freed(void* ptr, size_t size, DeviceIndex device, void* stream, MempoolId_t pool) {
  auto context = gather(RecordContext::ALL);
  bool completed = true;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = live_.find(ptr);
    if (found != live_.end()) {
      context = context ? context : found->second.context;
      completed = !found->second.streams_recorded;
      if (!completed) {
        pending_[ptr] = context;
      }
      live_.erase(found);
    }
  }
  if (when_.load() < static_cast<int>(RecordContext::ALLOC)) {
    context = nullptr;
  }
  const auto addr = reinterpret_cast<size_t>(ptr);
  record(TraceEntry(TraceEntry::FREE_REQUESTED, device, addr, size, stream, pool, c10::getApproximateTime(), context));
  if (completed) {
    record(TraceEntry(TraceEntry::FREE_COMPLETED, device, addr, size, stream, pool, c10::getApproximateTime(), context));
  }
}

void History::stream_recorded(void* ptr) {
  std::lock_guard<std::mutex> lock(mutex_);
  auto found = live_.find(ptr);
  if (found != live_.end()) {
    found->second.streams_recorded = true;
  }
}

void History::free_completed(void* ptr, size_t size, DeviceIndex device, void* stream, MempoolId_t pool) {
  std::shared_ptr<c10::GatheredContext> context;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = pending_.find(ptr);
    if (found == pending_.end()) {
      // Freed before the recording began: its request is not in the trace either.
      return;
    }
    context = std::move(found->second);
    pending_.erase(found);
  }
  record(TraceEntry(
      TraceEntry::FREE_COMPLETED, device, reinterpret_cast<size_t>(ptr), size, stream, pool, c10::getApproximateTime(),
      context));
}

void History::segment(
    TraceEntry::Action action,
    const void* ptr,
    size_t size,
    DeviceIndex device,
    void* stream,
    MempoolId_t pool) {
  const bool in_trace = caller_of_thread != nullptr && when_.load() >= static_cast<int>(RecordContext::ALLOC);
  record(TraceEntry(
      action, device, reinterpret_cast<size_t>(ptr), size, stream, pool, c10::getApproximateTime(),
      in_trace ? caller_of_thread->context() : nullptr));
}

void History::out_of_memory(
    DeviceIndex device,
    size_t requested,
    size_t device_free,
    size_t device_total,
    void* stream) {
  if (watching()) {
    record(TraceEntry(
        TraceEntry::OOM, device, device_free, requested, stream, {0, 0}, c10::getApproximateTime(),
        gather(RecordContext::STATE)));
  }
  std::shared_ptr<const std::vector<OutOfMemoryObserver>> observers;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    observers = oom_observers_;
  }
  if (observers) {
    for (const OutOfMemoryObserver& observer : *observers) {
      observer(device, requested, device_total, device_free);
    }
  }
}

void History::snapshot_taken(DeviceIndex device, size_t active) {
  record(TraceEntry(
      TraceEntry::SNAPSHOT, device, 0, active, nullptr, {0, 0}, c10::getApproximateTime(), gather(RecordContext::ALL)));
}

void History::annotate(
    const void* ptr,
    size_t size,
    DeviceIndex device,
    void* stream,
    MempoolId_t pool,
    const std::string& text) {
  TraceEntry entry(
      ANNOTATE, device, reinterpret_cast<size_t>(ptr), size, stream, pool, c10::getApproximateTime(),
      gather(RecordContext::ALLOC));
  entry.user_metadata_ = text;
  record(std::move(entry));
}

void History::annotate_region(DeviceIndex device, const std::vector<std::pair<std::string, std::string>>& words) {
  AnnotationEntry entry(device, c10::getApproximateTime());
  for (const auto& [name, value] : words) {
    entry.recordUserMetadata(name, value);
  }
  std::lock_guard<std::mutex> lock(mutex_);
  push(annotations_, next_annotation_, std::move(entry));
}

std::shared_ptr<c10::GatheredContext> History::context_of(const void* ptr) const {
  std::lock_guard<std::mutex> lock(mutex_);
  auto found = live_.find(ptr);
  return found == live_.end() ? nullptr : found->second.context;
}

std::unordered_map<const void*, std::shared_ptr<c10::GatheredContext>> History::contexts() const {
  std::unordered_map<const void*, std::shared_ptr<c10::GatheredContext>> found;
  std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& [ptr, live] : live_) {
    if (live.context) {
      found.emplace(ptr, live.context);
    }
  }
  for (const auto& [ptr, context] : pending_) {
    if (context) {
      found.emplace(ptr, context);
    }
  }
  return found;
}

std::vector<std::vector<TraceEntry>> History::traces(size_t devices) {
  std::vector<std::vector<TraceEntry>> traces(devices);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (size_t device = 0; device < std::min(devices, rings_.size()); device++) {
      const Ring& ring = rings_[device];
      const auto oldest = ring.entries.begin() + static_cast<ptrdiff_t>(ring.next);
      traces[device].assign(oldest, ring.entries.end());
      traces[device].insert(traces[device].end(), ring.entries.begin(), oldest);
    }
  }
  auto to_unix_ns = clock_.makeConverter();
  for (auto& trace : traces) {
    for (TraceEntry& entry : trace) {
      entry.time_.t_ = to_unix_ns(entry.time_.approx_t_) / 1000;
    }
  }
  return traces;
}

std::vector<AnnotationEntry> History::annotations() {
  std::vector<AnnotationEntry> found;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto oldest = annotations_.begin() + static_cast<ptrdiff_t>(next_annotation_);
    found.assign(oldest, annotations_.end());
    found.insert(found.end(), annotations_.begin(), oldest);
  }
  auto to_unix_ns = clock_.makeConverter();
  for (AnnotationEntry& entry : found) {
    entry.time_.t_ = to_unix_ns(entry.time_.approx_t_) / 1000;
  }
  return found;
}

// ---- the allocator's functions

void StratallocAllocator::recordHistory(
    bool enabled,
    CreateContextFn context_recorder,
    size_t alloc_trace_max_entries,
    RecordContext when,
    bool clearHistory,
    const std::vector<std::string>& skip_actions) {
  history_.configure(enabled, context_recorder, alloc_trace_max_entries, when, clearHistory, skip_actions);
}

bool StratallocAllocator::isHistoryEnabled() {
  return history_.recording();
}

std::shared_ptr<c10::GatheredContext> StratallocAllocator::getContextForPointer(const void* ptr) {
  return history_.context_of(ptr);
}

void StratallocAllocator::recordAnnotation(const std::vector<std::pair<std::string, std::string>>& md) {
  if (!history_.recording()) {
    return;
  }
  DeviceIndex device = 0;
  C10_CUDA_CHECK(c10::cuda::GetDevice(&device));
  history_.annotate_region(device, md);
}

void StratallocAllocator::pushCompileContext(std::string& md) {
  compile_contexts.push_back(md);
}

void StratallocAllocator::popCompileContext() {
  if (!compile_contexts.empty()) {
    compile_contexts.pop_back();
  }
}

bool StratallocAllocator::supportsUserMetadata() {
  return true;
}

void StratallocAllocator::setUserMetadata(const std::string& metadata) {
  user_metadata = metadata;
}

std::string StratallocAllocator::getUserMetadata() {
  return user_metadata;
}

void StratallocAllocator::annotateMemory(const void* ptr, const std::string& metadata) {
  if (!history_.recording() || ptr == nullptr) {
    return;
  }
  stratalloc_block block{};
  block.struct_size = sizeof(block);
  if (abi.find(handle(), ptr, &block) != STRATALLOC_OK) {
    // Not our memory, such as another process's: there is no allocation to annotate.
    return;
  }
  history_.annotate(
      block.address, block.requested, static_cast<DeviceIndex>(block.device), block.stream, from_pool(block.pool),
      metadata);
}

void StratallocAllocator::attachOutOfMemoryObserver(OutOfMemoryObserver observer) {
  history_.add_oom_observer(std::move(observer));
}

void StratallocAllocator::attachOomRejectionObserver(OomRejectionObserver /*observer*/) {
  // torch's option throw_on_cudamalloc_oom rejects requests before it asks the driver. There is nothing of the kind here: a
  // request is refused when there is no room, which attachOutOfMemoryObserver reports. So this one is never called.
}

void StratallocAllocator::attachAllocatorTraceTracker(AllocatorTraceTracker tracker) {
  history_.add_tracker(std::move(tracker));
}

} // namespace stratalloc_torch
