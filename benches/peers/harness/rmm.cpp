// RMM's resources, from the headers of the librmm wheel, over cudaMalloc.

#include "harness.h"

#include <rmm/mr/device/arena_memory_resource.hpp>
#include <rmm/mr/device/cuda_memory_resource.hpp>
#include <rmm/mr/device/pool_memory_resource.hpp>
#include <rmm/mr/device/statistics_resource_adaptor.hpp>

#include <memory>
#include <unordered_map>

// librmm.so has a CUDA runtime of its own inside, which wants NVIDIA's driver: what would reach it is defined here instead.
namespace rmm {

cuda_device_id get_current_cuda_device() {
  int device = 0;
  peers::check(cudaGetDevice(&device), "cudaGetDevice");
  return cuda_device_id(device);
}

int get_num_cuda_devices() {
  int count = 0;
  peers::check(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  return count;
}

std::pair<std::size_t, std::size_t> available_device_memory() {
  std::size_t free = 0, total = 0;
  peers::check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return {free, total};
}

void cuda_stream_view::synchronize_no_throw() const noexcept { cudaStreamSynchronize(value()); }

} // namespace rmm

namespace {

class Rmm {
  /// Asked only where a pool grows.
  using Counted = rmm::mr::statistics_resource_adaptor<rmm::mr::cuda_memory_resource>;

public:
  Rmm(const std::string &setting, uint64_t capacity) {
    using Pool = rmm::mr::pool_memory_resource<Counted>;
    using Arena = rmm::mr::arena_memory_resource<Counted>;
    const size_t whole = capacity / 256 * 256;
    try {
      if (setting == "pool-grow") {
        resource_ = std::make_unique<Pool>(&counted_, size_t{64} << 20);
      } else if (setting == "pool-one") {
        resource_ = std::make_unique<Pool>(&counted_, whole, whole);
      } else if (setting == "arena") {
        resource_ = std::make_unique<Arena>(&counted_, whole);
      } else {
        throw std::runtime_error("there is no setting '" + setting + "': pool-grow, pool-one, arena");
      }
    } catch (const rmm::bad_alloc &error) {
      throw peers::NoRoom(error.what());
    }
  }

  void *alloc(size_t bytes, cudaStream_t stream) {
    try {
      return resource_->allocate(bytes, rmm::cuda_stream_view(stream));
    } catch (const rmm::bad_alloc &error) {
      throw peers::NoRoom(error.what());
    }
  }

  void free(void *ptr, size_t bytes, cudaStream_t home) {
    if (__builtin_expect(!recorded.empty(), 0)) {
      join(ptr, home);
    }
    resource_->deallocate(ptr, bytes, rmm::cuda_stream_view(home));
  }

  /// RMM has no record_stream: its users have the home stream wait for the others before they free.
  void record(void *ptr, cudaStream_t home, cudaStream_t user) {
    if (home != user) {
      recorded.emplace(ptr, user);
    }
  }

  /// Nor a way to give memory back.
  void empty_cache() {}

  peers::Own own() {
    const auto bytes = counted_.get_bytes_counter();
    peers::Own own;
    own.reserved = static_cast<uint64_t>(bytes.value);
    own.reserved_peak = static_cast<uint64_t>(bytes.peak);
    return own;
  }

  void watch(peers::Log *) {}

private:
  void join(void *ptr, cudaStream_t home) {
    const auto [first, last] = recorded.equal_range(ptr);
    for (auto found = first; found != last; ++found) {
      static thread_local cudaEvent_t event = [] {
        cudaEvent_t made = nullptr;
        peers::check(cudaEventCreateWithFlags(&made, cudaEventDisableTiming), "no event");
        return made;
      }();
      peers::check(cudaEventRecord(event, found->second), "cudaEventRecord");
      peers::check(cudaStreamWaitEvent(home, event, 0), "cudaStreamWaitEvent");
    }
    recorded.erase(first, last);
  }

  /// Streams that use a live block of another stream. By thread: in a replay, a block is its thread's.
  static thread_local std::unordered_multimap<void *, cudaStream_t> recorded;

  rmm::mr::cuda_memory_resource upstream_;
  Counted counted_{&upstream_};
  std::unique_ptr<rmm::mr::device_memory_resource> resource_;
};

thread_local std::unordered_multimap<void *, cudaStream_t> Rmm::recorded;

} // namespace

int main(int count, char **words) { return peers::run<Rmm>(count, words); }
