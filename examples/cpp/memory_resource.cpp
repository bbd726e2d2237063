// A stream-ordered memory resource in C++: buffers that free themselves, a resource put in front of another, and what is thrown.
//
//   c++ -std=c++17 memory_resource.cpp $(pkg-config --cflags --libs stratalloc) -o memory_resource && ./memory_resource
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <stratalloc.hpp>
#include <utility>
#include <vector>

// Counts what passes through, as a log or a limit would.
class counting_resource final : public stratalloc::memory_resource {
 public:
  explicit counting_resource(stratalloc::memory_resource &upstream) : upstream_(upstream) {}
  std::size_t live = 0, peak = 0;

 private:
  void *do_allocate(stratalloc_stream stream, std::size_t bytes, std::size_t alignment) override {
    void *address = upstream_.allocate(stream, bytes, alignment);
    live += bytes;
    if (live > peak) peak = live;
    return address;
  }
  void do_deallocate(stratalloc_stream stream, void *address, std::size_t bytes, std::size_t alignment) noexcept override {
    live -= bytes;
    upstream_.deallocate(stream, address, bytes, alignment);
  }
  bool do_is_equal(const stratalloc::memory_resource &other) const noexcept override {
    const auto *that = dynamic_cast<const counting_resource *>(&other);
    return that != nullptr && that->upstream_ == upstream_;
  }

  stratalloc::memory_resource &upstream_;
};

static void require(bool holds, const char *what) {
  if (!holds) {
    std::fprintf(stderr, "not so: %s\n", what);
    std::exit(1);
  }
}

int main() {
  const stratalloc_stream stream = nullptr;
  stratalloc::allocator gpu = stratalloc::allocator::software(std::uint64_t{1} << 30);
  stratalloc::device_resource device(gpu);
  counting_resource counting(device);

  {
    stratalloc::device_buffer a(1 << 20, stream, counting);
    stratalloc::device_buffer b(3 << 20, stream, counting, 1 << 20);
    require(reinterpret_cast<std::uintptr_t>(b.data()) % (1 << 20) == 0, "alignment is kept");
    require(counting.live == 4 << 20, "both are counted");
    stratalloc::device_buffer moved(std::move(a));
    require(moved.size() == 1 << 20 && moved.data() != nullptr, "a buffer moves");
    b = std::move(moved);
    require(counting.live == 1 << 20, "assigning frees what was there");
    std::vector<stratalloc::device_buffer> many;
    for (std::size_t index = 1; index <= 100; index++) many.emplace_back(index * 512, stream, counting);
    require(gpu.stats(0).live.current == counting.live, "the library counts the same");
    stratalloc::device_buffer none(0, stream, counting);
    require(none.empty() && none.data() == nullptr, "a buffer of nothing is null");
  }
  require(counting.live == 0 && gpu.stats(0).live.current == 0, "all is freed");
  std::printf("at most %zu bytes were live\n", counting.peak);

  stratalloc::device_resource same(gpu.get(), 0), other(gpu.get(), 1);
  counting_resource again(same);
  require(device == same && device != other, "resources are equal where one frees what the other allocates");
  require(counting == again && counting != device, "and so are those in front of them");
  void *address = device.allocate(stream, 512);
  same.deallocate(stream, address, 512);

  try {
    stratalloc::device_buffer much(std::size_t{2} << 30, stream, device);
    require(false, "what never fits is thrown");
  } catch (const std::bad_alloc &thrown) {
    const auto *ours = dynamic_cast<const stratalloc::bad_alloc *>(&thrown);
    require(ours != nullptr && ours->status() == STRATALLOC_NEVER_FITS, "as bad_alloc with its status");
    std::printf("bad_alloc: %s\n", thrown.what());
  }
  try {
    other.allocate(stream, 512);
    require(false, "a device that is not there is thrown");
  } catch (const stratalloc::error &thrown) {
    require(thrown.status() == STRATALLOC_INVALID_ARGUMENT, "as error with its status");
    std::printf("error: %s\n", thrown.what());
  }
  try {
    stratalloc::allocator wrong = stratalloc::allocator::software(1 << 30, "limt:0.5");
    require(false, "a configuration that is not understood is thrown");
  } catch (const stratalloc::error &thrown) {
    require(thrown.status() == STRATALLOC_INVALID_CONFIG, "as error with its status");
    std::printf("error: %s\n", thrown.what());
  }
  return 0;
}
