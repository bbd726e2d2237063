// Replays a decoded trace on one allocator, in a process of its own, and prints what was measured as lines of `key value`.
//
// A peer is a class with
//   Peer(const std::string &setting, uint64_t capacity)      makes the allocator; `setting` is one of its names
//   void *alloc(size_t bytes, cudaStream_t stream)           throws NoRoom where there is none
//   void free(void *ptr, size_t bytes, cudaStream_t home)
//   void record(void *ptr, cudaStream_t home, cudaStream_t user)
//   void empty_cache()
//   Own own()                                                what it counts itself
//   void watch(Log *log)                                     from now on tell of segments, where it can
// It is a template argument, so that nothing stands between the loop and the calls that are timed.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "device.h"
#include "trace.h"

namespace peers {

/// The allocator has no room. Anything else that is thrown is a fault, of the peer or of this program.
struct NoRoom : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// What an allocator says of itself.
struct Own {
  /// Physical memory that it holds, and has held at most.
  uint64_t reserved = 0, reserved_peak = 0;
  /// Requests for which it gave its cache back and tried again; 0 where it does not count.
  uint64_t retries = 0;
};

/// Where changes of reserved memory are written: `op_index reserved_bytes` lines, and `op_index what bytes` for segments.
struct Log {
  std::FILE *reserved = nullptr, *segments = nullptr;
  size_t op = 0;
  uint64_t last = 0, hash = 0xcbf29ce484222325, changes = 0;

  void change(uint64_t now) {
    if (now == last) {
      return;
    }
    last = now;
    changes += 1;
    mix(op);
    mix(now);
    if (reserved != nullptr) {
      std::fprintf(reserved, "%zu %llu\n", op, static_cast<unsigned long long>(now));
    }
  }

  void segment(const char *what, uint64_t bytes) {
    if (segments != nullptr) {
      std::fprintf(segments, "%zu %s %llu\n", op, what, static_cast<unsigned long long>(bytes));
    }
  }

private:
  /// FNV-1a over little-endian bytes.
  void mix(uint64_t value) {
    for (int byte = 0; byte < 8; byte++) {
      hash = (hash ^ ((value >> (8 * byte)) & 0xff)) * 0x100000001b3;
    }
  }
};

/// What the command line says.
struct Options {
  std::string setting, trace, dump;
  int passes = 1, threads = 1;
  /// Time each allocation of the last pass.
  bool each = false;
  /// Count calls and virtual time, and look at what is reserved after each operation.
  bool watch = false;
  /// Virtual time of the host for each operation, and how far a kernel goes in a nanosecond through a block; 0 is no kernels.
  uint64_t op_ns = 0, kernel_bytes_per_ns = 0;

  static Options parse(int count, char **words) {
    Options options;
    for (int at = 1; at < count; at++) {
      const std::string word = words[at];
      const auto value = [&] {
        if (at + 1 == count) {
          throw std::runtime_error(word + " wants a value");
        }
        return std::string(words[++at]);
      };
      if (word == "--setting") {
        options.setting = value();
      } else if (word == "--trace") {
        options.trace = value();
      } else if (word == "--dump") {
        options.dump = value();
      } else if (word == "--passes") {
        options.passes = std::stoi(value());
      } else if (word == "--threads") {
        options.threads = std::stoi(value());
      } else if (word == "--each") {
        options.each = true;
      } else if (word == "--watch") {
        options.watch = true;
      } else if (word == "--op-ns") {
        options.op_ns = std::stoull(value());
      } else if (word == "--kernel-bytes-per-ns") {
        options.kernel_bytes_per_ns = std::stoull(value());
      } else {
        throw std::runtime_error("unknown option " + word);
      }
    }
    if (options.trace.empty() || options.passes < 1 || options.threads < 1) {
      throw std::runtime_error("--trace FILE is wanted; --passes and --threads are at least 1");
    }
    return options;
  }
};

using Clock = std::chrono::steady_clock;

/// One program's run through the trace: its streams, and the addresses it was given.
template <class Peer> class Follower {
public:
  Follower(Peer &peer, const Trace &trace, int thread) : peer(peer), trace(trace) {
    ptrs.resize(trace.allocs);
    homes.resize(trace.allocs);
    sizes.resize(trace.allocs);
    for (unsigned index = 0; index < std::max(1u, trace.streams); index++) {
      cudaStream_t stream = nullptr;
      // As PyTorch does: the first is the legacy stream, the others do not wait for it.
      if (index > 0 || thread > 0) {
        check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "no stream");
      }
      streams.push_back(stream);
    }
  }

  /// Operations `from` to `to`: `before(op)`, the operation, `after(op)`. `at` is where it got to.
  template <class Before, class After> void follow(size_t from, size_t to, Before &&before, After &&after) {
    for (at = from; at < to; at++) {
      const Op &op = trace.ops[at];
      before(op);
      call(op);
      after(op);
    }
  }

  void follow(size_t from, size_t to) {
    const auto nothing = [](const Op &) {};
    follow(from, to, nothing, nothing);
  }

  void call(const Op &op) {
    switch (op.kind) {
    case Kind::Alloc: {
      const cudaStream_t stream = streams[op.stream];
      ptrs[op.id] = peer.alloc(op.bytes, stream);
      homes[op.id] = stream;
      sizes[op.id] = op.bytes;
      break;
    }
    case Kind::Free:
      peer.free(ptrs[op.id], sizes[op.id], homes[op.id]);
      break;
    case Kind::Record:
      peer.record(ptrs[op.id], homes[op.id], streams[op.stream]);
      break;
    case Kind::EmptyCache:
      peer.empty_cache();
      break;
    case Kind::Marker:
      break;
    }
  }

  /// Frees what the trace leaves live, so that the next pass can begin.
  void free_rest() {
    for (uint32_t id : trace.live_at_end) {
      peer.free(ptrs[id], sizes[id], homes[id]);
    }
  }

  cudaStream_t stream(unsigned index) const { return streams[index]; }

  size_t size(uint32_t id) const { return sizes[id]; }

  size_t at = 0;

private:
  Peer &peer;
  const Trace &trace;
  std::vector<cudaStream_t> streams;
  std::vector<void *> ptrs;
  std::vector<cudaStream_t> homes;
  std::vector<size_t> sizes;
};

inline void print_calls(const char *when, const Device::Calls &now, const Device::Calls &before) {
  for (const auto &[name, count] : now) {
    const auto found = before.find(name);
    const uint64_t since = count - (found == before.end() ? 0 : found->second);
    if (since > 0) {
      std::printf("calls.%s.%s %llu\n", when, name.c_str(), static_cast<unsigned long long>(since));
    }
  }
}

/// Replays with threads, and prints the wall time of each pass: from the first thread's start to the last one's end.
template <class Peer> void timed(Peer &peer, const Trace &trace, const Options &options) {
  const auto count = static_cast<size_t>(options.threads);
  std::vector<std::vector<Clock::time_point>> begins(count), ends(count);
  std::vector<std::string> faults(count);
  std::atomic<int> arrived{0};
  std::atomic<bool> failed{false};
  const auto meet = [&, round = 0]() mutable {
    round += 1;
    arrived.fetch_add(1);
    while (arrived.load() < round * options.threads) {
    }
  };
  const auto work = [&](size_t thread) {
    auto gate = meet;
    try {
      check(cudaSetDevice(0), "cudaSetDevice");
      Follower<Peer> follower(peer, trace, static_cast<int>(thread));
      for (int pass = 0; pass < options.passes; pass++) {
        gate();
        if (failed.load()) {
          return;
        }
        begins[thread].push_back(Clock::now());
        follower.follow(0, trace.ops.size());
        ends[thread].push_back(Clock::now());
        follower.free_rest();
        gate();
      }
    } catch (const std::exception &error) {
      faults[thread] = error.what();
      failed.store(true);
      // Nobody is to wait for this thread any more.
      arrived.fetch_add(2 * options.passes * options.threads);
    }
  };
  std::vector<std::thread> others;
  for (size_t thread = 1; thread < count; thread++) {
    others.emplace_back(work, thread);
  }
  work(0);
  for (std::thread &other : others) {
    other.join();
  }
  for (const std::string &fault : faults) {
    if (!fault.empty()) {
      throw NoRoom(fault);
    }
  }
  for (int pass = 0; pass < options.passes; pass++) {
    Clock::time_point begin = begins[0][pass], end = ends[0][pass];
    for (size_t thread = 1; thread < count; thread++) {
      begin = std::min(begin, begins[thread][pass]);
      end = std::max(end, ends[thread][pass]);
    }
    const std::chrono::duration<double, std::nano> time = end - begin;
    std::printf("pass_ns %.1f\n", time.count());
  }
}

/// Every allocation of a warm pass on its own, in nanoseconds, without what looking at the clock takes.
template <class Peer> void each(Peer &peer, const Trace &trace, const Options &options) {
  Follower<Peer> follower(peer, trace, 0);
  for (int pass = 1; pass < options.passes; pass++) {
    follower.follow(0, trace.ops.size());
    follower.free_rest();
  }
  const auto ns = [](Clock::duration time) { return std::chrono::duration<double, std::nano>(time).count(); };
  double looking = 1e9;
  for (int look = 0; look < 1000; look++) {
    const auto start = Clock::now();
    looking = std::min(looking, ns(Clock::now() - start));
  }
  std::vector<double> times;
  times.reserve(trace.allocs);
  for (const Op &op : trace.ops) {
    if (op.kind == Kind::Alloc) {
      const auto start = Clock::now();
      follower.call(op);
      times.push_back(std::max(0.0, ns(Clock::now() - start) - looking));
    } else {
      follower.call(op);
    }
  }
  std::sort(times.begin(), times.end());
  const auto quantile = [&](double part) { return times[static_cast<size_t>(part * static_cast<double>(times.size() - 1))]; };
  std::printf("alloc_ns.p50 %.0f\nalloc_ns.p99 %.0f\nalloc_ns.p999 %.0f\nalloc_ns.max %.0f\n", quantile(0.5), quantile(0.99),
              quantile(0.999), times.back());
}

/// What a peer says of itself is not simply believed. The device rounds each allocation up, a little.
inline void compare(uint64_t said, uint64_t used) {
  if (said > used || used - said > (1 << 16)) {
    throw std::runtime_error("the allocator says that it holds " + std::to_string(said) + " bytes, the device says " +
                             std::to_string(used));
  }
}

/// What the first pass and the later ones take of the device: memory, calls, virtual time.
template <class Peer>
void watched(Peer &peer, const Trace &trace, const Options &options, const Device &device, uint64_t base) {
  Follower<Peer> follower(peer, trace, 0);
  Log log;
  if (!options.dump.empty()) {
    log.reserved = std::fopen((options.dump + ".reserved").c_str(), "w");
    log.segments = std::fopen((options.dump + ".segments").c_str(), "w");
    if (log.reserved == nullptr || log.segments == nullptr) {
      throw std::runtime_error("cannot write " + options.dump);
    }
    peer.watch(&log);
  }
  // As `stratalloc replay --gpu-bandwidth` has it: the host takes its time before an operation, markers take none; a block that is
  // recorded is used on that stream just before, a block that is new is written on its own just after.
  const auto kernel = [&](uint16_t stream, uint64_t bytes) {
    if (options.kernel_bytes_per_ns > 0) {
      device.busy(follower.stream(stream), (bytes + options.kernel_bytes_per_ns - 1) / options.kernel_bytes_per_ns);
    }
  };
  uint64_t charged = 0, stall_before = 0, empty_cache_stall = 0;
  const auto before = [&](const Op &op) {
    if (options.op_ns > 0 && op.kind != Kind::Marker) {
      device.advance(options.op_ns);
    }
    if (op.kind == Kind::Record) {
      kernel(op.stream, follower.size(op.id));
    } else if (op.kind == Kind::EmptyCache) {
      stall_before = device.stall_ns();
    }
  };
  const auto after = [&](const Op &op) {
    if (op.kind == Kind::Alloc) {
      kernel(op.stream, op.bytes);
    } else if (op.kind == Kind::EmptyCache) {
      empty_cache_stall += device.stall_ns() - stall_before;
    }
    // Where calls take virtual time, what is reserved is the same as long as none was made.
    const uint64_t charged_before = charged;
    charged = device.driver_ns();
    if (options.watch && (charged == 0 || charged != charged_before)) {
      const uint64_t reserved = peer.own().reserved;
      if (reserved != log.last) {
        compare(reserved, device.used() - base);
      }
      log.change(reserved);
    }
    // What happens inside the next operation is the next operation's.
    log.op = follower.at + 1;
  };
  const auto say = [](const char *name, uint64_t value) {
    std::printf("%s %llu\n", name, static_cast<unsigned long long>(value));
  };
  const auto close = [&] {
    if (log.reserved != nullptr) {
      std::fclose(log.reserved);
      std::fclose(log.segments);
      log.reserved = log.segments = nullptr;
    }
  };
  const Device::Calls start = device.calls();
  const uint64_t start_driver = device.driver_ns(), start_stall = device.stall_ns(), start_clock = device.clock_ns();
  try {
    follower.follow(0, trace.steady_from, before, after);
  } catch (const NoRoom &) {
    say("failed_op", follower.at);
    close();
    throw;
  }
  const Device::Calls settled = device.calls();
  const uint64_t steady_driver = device.driver_ns();
  size_t steps_after = 0;
  for (size_t op = trace.steady_from; op < trace.ops.size(); op++) {
    steps_after += trace.ops[op].kind == Kind::Marker;
  }
  try {
    follower.follow(trace.steady_from, trace.ops.size(), before, after);
  } catch (const NoRoom &) {
    say("failed_op", follower.at);
    close();
    throw;
  }
  close();
  const Device::Calls first = device.calls();
  const Own own = peer.own();
  say("peak_reserved", own.reserved_peak);
  say("retries", own.retries);
  say("driver_ns.first", device.driver_ns() - start_driver);
  say("driver_ns.steady", device.driver_ns() - steady_driver);
  say("steady_steps", steps_after);
  say("stall_ns", device.stall_ns() - start_stall);
  say("stall_ns.empty_cache", empty_cache_stall);
  say("clock_ns", device.clock_ns() - start_clock);
  say("changes", log.changes);
  std::printf("change_hash %016llx\n", static_cast<unsigned long long>(log.hash));
  print_calls("first", first, start);
  print_calls("steady", first, settled);
  const uint64_t first_driver = device.driver_ns(), first_stall = device.stall_ns();
  for (int pass = 1; pass < options.passes; pass++) {
    follower.free_rest();
    follower.follow(0, trace.ops.size(), before, after);
  }
  if (options.passes > 1) {
    say("driver_ns.later", (device.driver_ns() - first_driver) / (options.passes - 1));
    say("stall_ns.later", (device.stall_ns() - first_stall) / (options.passes - 1));
    say("peak_reserved.all", peer.own().reserved_peak);
    print_calls("later", device.calls(), first);
  }
}

/// The program: 0 if the trace completed, 3 if there was no room, 1 for anything else.
template <class Peer> int run(int count, char **words) {
  try {
    const Options options = Options::parse(count, words);
    const Trace trace = Trace::load(options.trace.c_str());
    const Device device;
    std::printf("peak_live %llu\nops %zu\nsteps %zu\n", static_cast<unsigned long long>(trace.peak_live), trace.calls, trace.markers);
    int status = 0;
    try {
      const uint64_t base = device.used();
      // Leaked: peers differ in what they do when they end, and none of it is measured.
      Peer &peer = *new Peer(options.setting, device.total());
      if (options.each) {
        each(peer, trace, options);
      } else if (options.watch || options.op_ns > 0 || options.kernel_bytes_per_ns > 0 || !options.dump.empty()) {
        watched(peer, trace, options, device, base);
      } else {
        timed(peer, trace, options);
      }
    } catch (const NoRoom &error) {
      std::printf("no_room 1\n");
      std::fprintf(stderr, "%s\n", error.what());
      status = 3;
    }
    std::fflush(stdout);
    // Not `exit`: what the libraries do in their destructors is not measured either.
    std::_Exit(status);
  } catch (const std::exception &error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}

} // namespace peers
