// What libraries ask of the allocator in C++, and Python does not: NCCL, cuDNN, torch's own internals. test_probe.py calls it.
// Each function returns an empty text, or what is wrong.

#include <functional>
#include <string>

#include <torch/headeronly/version.h>

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Registry.h>

namespace {

using namespace c10::cuda::CUDACachingAllocator;

std::string text;

const char* guarded(const std::function<std::string()>& probe) {
  try {
    text = probe();
  } catch (const std::exception& error) {
    text = std::string("threw: ") + error.what();
  }
  return text.c_str();
}

#define EXPECT(condition)                                              \
  do {                                                                 \
    if (!(condition)) {                                                \
      return std::string(#condition) + " at line " + std::to_string(__LINE__); \
    }                                                                  \
  } while (0)

std::vector<TraceEntry> tracked;

// Frees what a test has put aside, when memory is short.
std::vector<void*> aside;
int collections = 0;

struct Collector : c10::FreeMemoryCallback {
  bool Execute() override {
    collections += 1;
    for (void* ptr : aside) {
      raw_delete(ptr);
    }
    const bool any = !aside.empty();
    aside.clear();
    return any;
  }
};

} // namespace

namespace c10 {
REGISTER_FREE_MEMORY_CALLBACK("stratalloc_probe", Collector)
} // namespace c10

extern "C" {

const char* probe_deleters() {
  return guarded([]() -> std::string {
    c10::DataPtr ptr = get()->allocate(1000);
    EXPECT(ptr.get() == ptr.get_context());
    EXPECT(ptr.get_deleter() == get()->raw_deleter());
    EXPECT(get()->is_simple_data_ptr(ptr));
    EXPECT(c10::GetAllocator(c10::kCUDA) == get());
    EXPECT(c10::getDeviceAllocator(c10::kCUDA)->initialized());
    void* raw = get()->raw_allocate(5000);
    EXPECT(raw != nullptr);
    get()->raw_deallocate(raw);
    c10::DataPtr copy = get()->clone(ptr.get(), 1000);
    EXPECT(copy.get() != ptr.get());
    c10::DataPtr none = get()->allocate(0);
    EXPECT(none.get() == nullptr && none.device().is_cuda());
    return "";
  });
}

const char* probe_cache_info() {
  return guarded([]() -> std::string {
    void* ptr = raw_alloc(64 << 20);
    raw_delete(ptr);
    size_t guess = 0;
    get()->cacheInfo(0, &guess);
    EXPECT(guess >= (64 << 20));
    size_t small = 1;
    get()->cacheInfo(0, &small);
    EXPECT(small >= 1);
    return "";
  });
}

const char* probe_base_allocation() {
  return guarded([]() -> std::string {
    auto* ptr = static_cast<char*>(raw_alloc(3 << 20));
    size_t size = 0;
    auto* base = static_cast<char*>(get()->getBaseAllocation(ptr + 100, &size));
    EXPECT(base <= ptr && ptr + (3 << 20) <= base + size);
    EXPECT(get()->getBaseAllocation(ptr, nullptr) == base);
    raw_delete(ptr);
    bool refused = false;
    try {
      get()->getBaseAllocation(reinterpret_cast<void*>(0x1000), &size);
    } catch (const c10::Error&) {
      refused = true;
    }
    EXPECT(refused);
    return "";
  });
}

const char* probe_expandable_sizes() {
  return guarded([]() -> std::string {
    void* ptr = raw_alloc(30 << 20);
    size_t total = 0;
    for (const StreamSegmentSize& segment : get()->getExpandableSegmentSizes(0)) {
      total += segment.total_size;
    }
    raw_delete(ptr);
    EXPECT(total >= (30 << 20));
    return "";
  });
}

#if TORCH_VERSION_MINOR >= 15
const char* probe_at_an_address() {
  return guarded([]() -> std::string {
    try {
      get()->allocateWithAddress(1000, reinterpret_cast<void*>(0x7f0000000000));
    } catch (const c10::NotImplementedError&) {
      return "";
    }
    return "it did not raise";
  });
}
#endif

// Also with no history recorded, as NCCL's hook has it.
const char* probe_trackers() {
  return guarded([]() -> std::string {
    get()->emptyCache({0, 0});
    get()->attachAllocatorTraceTracker([](const TraceEntry& entry) { tracked.push_back(entry); });
    void* ptr = raw_alloc(200 << 20);
    raw_delete(ptr);
    get()->emptyCache({0, 0});
    bool seen[4] = {};
    for (const TraceEntry& entry : tracked) {
      const auto at = reinterpret_cast<size_t>(ptr);
      seen[0] |= entry.action_ == TraceEntry::ALLOC && entry.addr_ == at && entry.size_ == (200 << 20);
      seen[1] |= entry.action_ == TraceEntry::FREE_COMPLETED && entry.addr_ == at;
      seen[2] |= entry.action_ == TraceEntry::SEGMENT_MAP && entry.addr_ <= at && at < entry.addr_ + entry.size_;
      seen[3] |= entry.action_ == TraceEntry::SEGMENT_UNMAP;
    }
    EXPECT(seen[0]);
    EXPECT(seen[1]);
    EXPECT(seen[2]);
    EXPECT(seen[3]);
    return "";
  });
}

const char* probe_free_memory_callbacks(size_t most) {
  return guarded([&]() -> std::string {
    get()->emptyCache({0, 0});
    const int before = collections;
    aside.push_back(raw_alloc(most / 10 * 7));
    void* ptr = raw_alloc(most / 10 * 6);
    EXPECT(ptr != nullptr);
    EXPECT(collections == before + 1);
    EXPECT(aside.empty());
    raw_delete(ptr);
    return "";
  });
}

const char* probe_streams() {
  return guarded([]() -> std::string {
    c10::cuda::CUDAStream stream = c10::cuda::getStreamFromPool(false, 0);
    c10::DataPtr ptr = get()->allocate(1 << 20);
    get()->recordStream(ptr, stream);
    get()->recordStream(ptr, stream.unwrap());
    c10::DataPtr empty;
    get()->recordStream(empty, stream);
    int foreign = 0;
    c10::DataPtr other(&foreign, &foreign, [](void*) {}, c10::Device(c10::kCUDA, 0));
    get()->recordStream(other, stream);
    void* raw = get()->raw_alloc_with_stream(4096, stream);
    EXPECT(raw != nullptr && get()->raw_alloc_with_stream(0, stream) == nullptr);
    raw_delete(raw);
    return "";
  });
}

} // extern "C"
