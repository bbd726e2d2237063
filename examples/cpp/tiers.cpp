// Memory beyond the device in C++: blocks that leave it and come back, bytes stashed in between, and memory that moves.
//
//   c++ -std=c++17 tiers.cpp $(pkg-config --cflags --libs stratalloc) -o tiers && ./tiers
//
// It runs on the software device, whose memory is the program's own: on a GPU, kernels would stand where this reads and writes.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stratalloc.hpp>

static void require(bool holds, const char *what) {
  if (!holds) {
    std::fprintf(stderr, "not so: %s\n", what);
    std::exit(1);
  }
}

static std::uint32_t state_of(const stratalloc::allocator &gpu, void *block) {
  std::uint32_t state = 0;
  stratalloc::check(stratalloc_residency(gpu.get(), block, &state));
  return state;
}

int main() {
  const stratalloc_stream stream = nullptr;
  const std::size_t mib = std::size_t{1} << 20;
  stratalloc::allocator gpu = stratalloc::allocator::software(64 * mib, "tiers:host=256MiB,tier_workers:0");
  stratalloc::device_resource evictable(gpu, 0, stratalloc_evictable{});

  // Three times 40 MiB on a device of 64: what nobody has pinned makes room.
  stratalloc::device_buffer layers[] = {
      {40 * mib, stream, evictable}, {40 * mib, stream, evictable}, {40 * mib, stream, evictable}};
  for (int pass = 0; pass < 3; pass++) {
    for (int layer = 0; layer < 3; layer++) {
      stratalloc::pin here(gpu, layers[layer].data(), stream);
      auto *bytes = static_cast<unsigned char *>(layers[layer].data());
      require(pass == 0 || bytes[40 * mib - 1] == pass * 3 + layer, "a layer comes back as it was");
      std::memset(bytes, (pass + 1) * 3 + layer, 40 * mib);
    }
  }
  require(state_of(gpu, layers[0].data()) == STRATALLOC_ON_HOST, "what was used first has gone");

  // All go away by name, and their memory with them.
  stratalloc::check(stratalloc_offload(gpu.get(), STRATALLOC_SELECT_ALL, 0));
  stratalloc::check(stratalloc_empty_cache(gpu.get(), 0, nullptr));
  require(gpu.stats(0).reserved.current == 0, "nothing is left on the device");

  // An activation between the passes: its memory is free meanwhile.
  stratalloc::device_resource memory(gpu);
  std::size_t length = 8 * mib;
  auto *activation = static_cast<unsigned char *>(memory.allocate(stream, length));
  std::memset(activation, 7, length);
  stratalloc::stash kept(gpu, activation, length, stream);
  require(kept.may_free(true), "with it, the block may go");
  memory.deallocate(stream, activation, length);
  stratalloc::device_buffer again(length, stream, memory);
  kept.fetch(again.data(), stream);
  kept.order(stream);
  require(static_cast<unsigned char *>(again.data())[length - 1] == 7, "what was stashed is there again");

  // Tags by scope, and memory that may be moved while nobody looks.
  {
    stratalloc_evictable how{};
    how.struct_size = sizeof how;
    stratalloc::tag_scope weights(gpu, gpu.tag("weights"), &how);
    stratalloc::device_buffer tagged(mib, stream, memory);
    require(state_of(gpu, tagged.data()) == STRATALLOC_RESIDENT, "in its scope, memory is evictable");
  }
  stratalloc::movable_buffer movable(gpu, mib, stream);
  {
    stratalloc::movable_buffer::pinned here(movable);
    std::memset(here.data(), 9, movable.size());
  }
  stratalloc::check(stratalloc_compact(gpu.get(), 0, nullptr, nullptr));
  stratalloc::movable_buffer::pinned there(movable);
  require(static_cast<unsigned char *>(there.data())[mib - 1] == 9, "what moves keeps its bytes");

  try {
    stratalloc::pin wrong(gpu, again.data(), stream);
    require(false, "a block that cannot leave is thrown");
  } catch (const stratalloc::error &thrown) {
    std::printf("error: %s\n", thrown.what());
  }
  std::printf("120 MiB were used on a device of 64\n");
  return 0;
}
