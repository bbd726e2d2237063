// A decoded trace: the file that `peer-floor decode` writes.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace peers {

enum class Kind : uint8_t { Alloc = 0, Free = 1, Record = 2, EmptyCache = 3, Marker = 4 };

struct Op {
  uint64_t bytes;
  uint32_t id;
  uint16_t stream;
  Kind kind;
  uint8_t unused;
};
static_assert(sizeof(Op) == 16, "as the file has it");

struct Trace {
  std::vector<Op> ops;
  unsigned streams = 0;
  size_t allocs = 0;
  /// Markers and calls of the allocator.
  size_t markers = 0, calls = 0;
  /// Where the program is taken to have settled, as an index into `ops`: at the second half of its steps, which markers begin; where there are none,
  /// after the first third.
  size_t steady_from = 0;
  uint64_t peak_live = 0;
  std::vector<uint32_t> live_at_end;

  static Trace load(const char *path) {
    struct Header {
      char magic[8];
      uint64_t ops, first_third, streams;
    } header;
    std::FILE *file = std::fopen(path, "rb");
    if (file == nullptr) {
      throw std::runtime_error(std::string("cannot open ") + path);
    }
    Trace trace;
    bool read = std::fread(&header, sizeof header, 1, file) == 1 && std::memcmp(header.magic, "stratops", 8) == 0;
    if (read && header.ops < (uint64_t{1} << 27)) {
      trace.ops.resize(header.ops);
      read = std::fread(trace.ops.data(), sizeof(Op), header.ops, file) == header.ops;
    }
    std::fclose(file);
    if (!read) {
      throw std::runtime_error(std::string("not a decoded trace: ") + path);
    }
    trace.streams = static_cast<unsigned>(header.streams);
    trace.steady_from = header.first_third;
    trace.count();
    return trace;
  }

private:
  void count() {
    std::vector<uint64_t> sizes;
    std::vector<char> is_live;
    uint64_t live = 0;
    for (const Op &op : ops) {
      calls += op.kind != Kind::Marker;
      switch (op.kind) {
      case Kind::Alloc:
        sizes.push_back(op.bytes);
        is_live.push_back(1);
        live += op.bytes;
        peak_live = live > peak_live ? live : peak_live;
        break;
      case Kind::Free:
        is_live[op.id] = 0;
        live -= sizes[op.id];
        break;
      case Kind::Marker:
        markers += 1;
        break;
      default:
        break;
      }
    }
    size_t seen = 0;
    for (size_t op = 0; markers > 0 && op < ops.size(); op++) {
      if (ops[op].kind == Kind::Marker && seen++ == markers / 2) {
        steady_from = op;
      }
    }
    allocs = sizes.size();
    for (uint32_t id = 0; id < allocs; id++) {
      if (is_live[id]) {
        live_at_end.push_back(id);
      }
    }
  }
};

} // namespace peers
