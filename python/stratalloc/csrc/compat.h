// What differs between versions of torch. Only versions that were compiled and tested are accepted; see
// `TESTED` in ../_build.py for the list that Python checks first.
//
// The rest is written for 2.15. What 2.11 lacks:
//
// | what | on 2.11 |
// |---|---|
// | seven virtual functions, marked SINCE_2_15 | functions that nothing calls |
// | a word on when captures begin and end | each route to a private pool counts as one, as in torch's own allocator there |
// | statistics of private pools | left out |
// | format 3 of handles for other processes | format 2, the same for plain memory |
//
// Neither version has a pure virtual function that the other lacks, but for `attachOomRejectionObserver`.
#pragma once

#include <functional>

#include <torch/headeronly/version.h>

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/util/flat_hash_map.h>

#if TORCH_VERSION_MAJOR != 2 || (TORCH_VERSION_MINOR < 15 && TORCH_VERSION_MINOR != 11)
#error "stratalloc's extension is written for torch 2.15 and 2.11; other versions have other virtual functions"
#endif

#if TORCH_VERSION_MINOR >= 15
#define SINCE_2_15 override
#else
#define SINCE_2_15
#endif

namespace stratalloc_torch {

using namespace c10::cuda::CUDACachingAllocator;
using c10::CachingDeviceAllocator::AnnotationEntry;
using c10::CachingDeviceAllocator::Stat;
using c10::CachingDeviceAllocator::StatArray;
using c10::CachingDeviceAllocator::StatType;
using c10::DeviceIndex;
using c10::MempoolId_t;

#if TORCH_VERSION_MINOR >= 15
// Whether torch says when a capture begins and ends.
constexpr bool CAPTURES_ARE_MARKED = true;
constexpr TraceEntry::Action ANNOTATE = TraceEntry::ANNOTATE;
// torch's version of the handles that other processes open; it refuses those of later versions.
constexpr char SHARED_FORMAT = 3;
#else
constexpr bool CAPTURES_ARE_MARKED = false;
constexpr char SHARED_FORMAT = 2;
// Never recorded, since nothing calls `annotateMemory`: different from all others, which is enough.
constexpr auto ANNOTATE = static_cast<TraceEntry::Action>(TraceEntry::OOM + 1);
using OomRejectionObserver = std::function<void(int64_t, size_t, size_t, size_t)>;
#endif

// The reserved bytes of each private pool in `stats`, or null where torch has no such statistics.
template <typename Stats>
auto* pools_in(Stats& stats) {
  if constexpr (requires { stats.reserved_bytes_by_private_pools; }) {
    return &stats.reserved_bytes_by_private_pools;
  } else {
    return static_cast<ska::flat_hash_map<MempoolId_t, StatArray, c10::MempoolIdHash>*>(nullptr);
  }
}

} // namespace stratalloc_torch
