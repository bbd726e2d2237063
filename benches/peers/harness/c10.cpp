// PyTorch's own allocator, from the libraries of its wheel. Settings are PYTORCH_ALLOC_CONF's: the caller sets the variable.

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/cuda/PeerToPeerAccess.h>

#include "harness.h"

// In no header: how libtorch_cuda tells c10 which devices have a context.
namespace c10::cuda::_internal {
C10_CUDA_API void setHasPrimaryContext(bool (*has)(DeviceIndex));
}

namespace {

using namespace c10::cuda::CUDACachingAllocator;

class C10 {
public:
  C10(const std::string &, uint64_t) {
    init(1);
    // The rest that libtorch_cuda does at its start. The context is there: `Device` has opened it.
    c10::cuda::_internal::setHasPrimaryContext([](c10::DeviceIndex) { return true; });
    c10::cuda::detail::init_p2p_access_cache(1);
    allocator_ = get();
  }

  void *alloc(size_t bytes, cudaStream_t stream) {
    try {
      return allocator_->raw_alloc_with_stream(bytes, stream);
    } catch (const c10::OutOfMemoryError &error) {
      throw peers::NoRoom(error.what_without_backtrace());
    }
  }

  void free(void *ptr, size_t, cudaStream_t) { allocator_->raw_delete(ptr); }

  void record(void *ptr, cudaStream_t, cudaStream_t user) {
    at::DataPtr data(ptr, ptr, allocator_->raw_deleter(), at::Device(at::kCUDA, 0));
    allocator_->recordStream(data, c10::cuda::getStreamFromExternal(user, 0));
    data.release_context();
  }

  void empty_cache() { allocator_->emptyCache(); }

  peers::Own own() {
    const auto stats = allocator_->getDeviceStats(0);
    peers::Own own;
    own.reserved = static_cast<uint64_t>(stats.reserved_bytes[0].current);
    own.reserved_peak = static_cast<uint64_t>(stats.reserved_bytes[0].peak);
    own.retries = static_cast<uint64_t>(stats.num_alloc_retries);
    return own;
  }

  void watch(peers::Log *log) {
    allocator_->attachAllocatorTraceTracker([log](const TraceEntry &entry) {
      const auto bytes = static_cast<uint64_t>(entry.size_);
      switch (entry.action_) {
      case TraceEntry::SEGMENT_ALLOC:
        log->segment("alloc", bytes);
        break;
      case TraceEntry::SEGMENT_FREE:
        log->segment("free", bytes);
        break;
      case TraceEntry::SEGMENT_MAP:
        log->segment("map", bytes);
        break;
      case TraceEntry::SEGMENT_UNMAP:
        log->segment("unmap", bytes);
        break;
      default:
        break;
      }
    });
  }

private:
  CUDAAllocator *allocator_ = nullptr;
};

} // namespace

int main(int count, char **words) { return peers::run<C10>(count, words); }
