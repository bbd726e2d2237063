// The software device beneath all peers: what it counts, and its virtual time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>

#include <dlfcn.h>

#include <cuda_runtime_api.h>
#include <softcuda.h>

namespace peers {

inline void check(cudaError_t error, const char *what) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
  }
}

class Device {
public:
  using Calls = std::map<std::string, uint64_t>;

  Device() {
    check(cudaFree(nullptr), "the device cannot be opened");
    library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    if (library == nullptr) {
      throw std::runtime_error("no libcuda.so.1 is loaded");
    }
    find(account, "softcudaAccount");
    find(call_count, "softcudaCallCount");
    find(function_name, "softcudaFunctionName");
    find(busy_for, "softcuda_busy");
    find(advance_by, "softcuda_advance");
    find(clock, "softcuda_clock_ns");
    find(stalled, "softcuda_stall_ns");
    find(charged, "softcuda_driver_ns");
    for (unsigned long long index = 0;; index++) {
      char name[128];
      if (function_name(index, name, sizeof name) == 0) {
        break;
      }
      names.insert(name);
    }
  }

  /// Physical memory that is taken, in bytes.
  uint64_t used() const {
    softcuda_account found = read();
    return found.total_bytes - found.free_bytes;
  }

  uint64_t total() const { return read().total_bytes; }

  /// How often each function of the driver was called, those that were called.
  Calls calls() const {
    Calls found;
    for (const std::string &name : names) {
      // Asked for without its version, a function answers for the newest one, which is in the list as well.
      if (names.count(name + "_v2") > 0) {
        continue;
      }
      if (uint64_t count = call_count(name.c_str())) {
        found[name] = count;
      }
    }
    return found;
  }

  void busy(cudaStream_t stream, uint64_t ns) const { busy_for(stream, ns); }
  void advance(uint64_t ns) const { advance_by(ns); }
  uint64_t clock_ns() const { return clock(0); }
  uint64_t stall_ns() const { return stalled(0); }
  uint64_t driver_ns() const { return charged(0); }

private:
  template <class Function> void find(Function &into, const char *name) {
    into = reinterpret_cast<Function>(dlsym(library, name));
    if (into == nullptr) {
      throw std::runtime_error(std::string("libcuda.so.1 is not the stand-in: it lacks ") + name);
    }
  }

  softcuda_account read() const {
    softcuda_account found{};
    found.size = sizeof found;
    if (account(0, &found) != 0) {
      throw std::runtime_error("the device gives no account of itself");
    }
    return found;
  }

  void *library = nullptr;
  std::set<std::string> names;
  decltype(&softcudaAccount) account = nullptr;
  decltype(&softcudaCallCount) call_count = nullptr;
  decltype(&softcudaFunctionName) function_name = nullptr;
  decltype(&softcuda_busy) busy_for = nullptr;
  decltype(&softcuda_advance) advance_by = nullptr;
  decltype(&softcuda_clock_ns) clock = nullptr;
  decltype(&softcuda_stall_ns) stalled = nullptr;
  decltype(&softcuda_driver_ns) charged = nullptr;
};

} // namespace peers
