// Pairs through torch's own entry, as its operators call it: raw_alloc and raw_delete of whatever allocator is installed.

#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

#include <c10/cuda/CUDACachingAllocator.h>

namespace {

using c10::cuda::CUDACachingAllocator::raw_alloc;
using c10::cuda::CUDACachingAllocator::raw_delete;

void pairs(size_t bytes, long count) {
  for (long i = 0; i < count; i++) {
    raw_delete(raw_alloc(bytes));
  }
}

} // namespace

// Nanoseconds a pair and thread: the time until the last thread is through its own `count` pairs.
extern "C" double stratalloc_bench_pairs(int threads, size_t bytes, long count) {
  try {
    std::atomic<int> waiting{threads};
    std::vector<std::thread> others;
    std::chrono::steady_clock::time_point start;
    const auto work = [&] {
      pairs(bytes, count / 10 + 1);
      waiting.fetch_sub(1);
      while (waiting.load() > 0) {
      }
      pairs(bytes, count);
    };
    if (threads == 1) {
      pairs(bytes, count / 10 + 1);
      start = std::chrono::steady_clock::now();
      pairs(bytes, count);
    } else {
      for (int i = 0; i < threads; i++) {
        others.emplace_back(work);
      }
      while (waiting.load() > 0) {
        std::this_thread::yield();
      }
      start = std::chrono::steady_clock::now();
      for (std::thread& other : others) {
        other.join();
      }
    }
    const std::chrono::duration<double, std::nano> time = std::chrono::steady_clock::now() - start;
    return time.count() / static_cast<double>(count);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return -1;
  }
}
