// stratalloc for C++17: the C interface with owners and exceptions. Nothing here but this header; link with libstratalloc.
//
//   stratalloc::allocator gpu;                                   // all CUDA devices, STRATALLOC_CONF
//   stratalloc::device_resource memory(gpu, 0);                  // device 0, as a stream-ordered memory resource
//   stratalloc::device_buffer buffer(1 << 20, stream, memory);   // frees itself, in the order of its stream
//
// For memory beyond the device: a `device_resource` with a `stratalloc_evictable`, `pin`, `stash`, `tag_scope`. For memory that moves: `movable_buffer`.
//
// `memory_resource` is shaped like std::pmr::memory_resource with a stream first, as CUDA's and RMM's resource concepts have it: allocate,
// deallocate, and equality, which says whether one may free what the other allocated.

#ifndef STRATALLOC_HPP
#define STRATALLOC_HPP

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include "stratalloc.h"

namespace stratalloc {

// Any failure that is not a want of memory. `what()` is the library's text.
class error : public std::runtime_error {
 public:
  explicit error(stratalloc_status status) : std::runtime_error(stratalloc_last_error()), status_(status) {}
  stratalloc_status status() const noexcept { return status_; }

 private:
  stratalloc_status status_;
};

// There is no room: `status()` is STRATALLOC_OUT_OF_MEMORY, _NEVER_FITS or _OVER_LIMIT. `what()` is the library's text, with numbers.
class bad_alloc : public std::bad_alloc {
 public:
  explicit bad_alloc(stratalloc_status status)
      : status_(status), text_(std::make_shared<const std::string>(stratalloc_last_error())) {}
  const char *what() const noexcept override { return text_->c_str(); }
  stratalloc_status status() const noexcept { return status_; }

 private:
  stratalloc_status status_;
  // Shared, since copying an exception must not throw.
  std::shared_ptr<const std::string> text_;
};

// Throws unless a call succeeded.
inline void check(stratalloc_status status) {
  switch (status) {
    case STRATALLOC_OK:
      return;
    case STRATALLOC_OUT_OF_MEMORY:
    case STRATALLOC_NEVER_FITS:
    case STRATALLOC_OVER_LIMIT:
      throw bad_alloc(status);
    default:
      throw error(status);
  }
}

// An allocator, destroyed with this: after all resources and buffers over it.
class allocator {
 public:
  // All CUDA devices, configured by `config` ("key:value,key:value") or else by STRATALLOC_CONF.
  explicit allocator(const char *config = nullptr) : allocator(make_options(config, 0)) {}

  explicit allocator(const stratalloc_options &options) {
    stratalloc_allocator *made = nullptr;
    check(stratalloc_create(&options, &made));
    handle_.reset(made);
  }

  // One software device in host memory: for tests, where there is no GPU.
  static allocator software(std::uint64_t bytes, const char *config = "") {
    return allocator(make_options(config, bytes));
  }

  stratalloc_allocator *get() const noexcept { return handle_.get(); }
  int device_count() const noexcept { return stratalloc_device_count(get()); }

  // The number of the tag with this name.
  std::uint32_t tag(const char *name) const {
    std::uint32_t number = 0;
    check(stratalloc_tag(get(), name, &number));
    return number;
  }

  stratalloc_stats stats(int device) const {
    stratalloc_stats stats{};
    stats.struct_size = sizeof stats;
    check(stratalloc_get_stats(get(), device, &stats));
    return stats;
  }

 private:
  struct destroyer {
    void operator()(stratalloc_allocator *handle) const noexcept { stratalloc_destroy(handle); }
  };

  static stratalloc_options make_options(const char *config, std::uint64_t software_bytes) {
    stratalloc_options options{};
    options.struct_size = sizeof options;
    options.config = config;
    options.software_bytes = software_bytes;
    return options;
  }

  std::unique_ptr<stratalloc_allocator, destroyer> handle_;
};

// Where stream-ordered memory comes from. Derive from it to put something in between, such as a log.
class memory_resource {
 public:
  virtual ~memory_resource() = default;

  // Memory that work on `stream` may use at once. Throws `bad_alloc` where there is no room.
  void *allocate(stratalloc_stream stream, std::size_t bytes, std::size_t alignment = 512) {
    return do_allocate(stream, bytes, alignment);
  }

  // Takes effect in the order of `stream`: work submitted to it before may still use the memory. Never waits. `bytes` and `alignment` are as
  // they were given to `allocate`.
  void deallocate(stratalloc_stream stream, void *address, std::size_t bytes, std::size_t alignment = 512) noexcept {
    do_deallocate(stream, address, bytes, alignment);
  }

  // Whether memory from one may be given back to the other.
  bool is_equal(const memory_resource &other) const noexcept { return this == &other || do_is_equal(other); }
  friend bool operator==(const memory_resource &a, const memory_resource &b) noexcept { return a.is_equal(b); }
  friend bool operator!=(const memory_resource &a, const memory_resource &b) noexcept { return !a.is_equal(b); }

 protected:
  memory_resource() = default;
  memory_resource(const memory_resource &) = default;
  memory_resource &operator=(const memory_resource &) = default;

 private:
  virtual void *do_allocate(stratalloc_stream stream, std::size_t bytes, std::size_t alignment) = 0;
  virtual void do_deallocate(stratalloc_stream stream, void *address, std::size_t bytes,
                             std::size_t alignment) noexcept = 0;
  virtual bool do_is_equal(const memory_resource &other) const noexcept = 0;
};

// One device of an allocator. Costs nothing to make and to copy; the allocator is not its own.
class device_resource final : public memory_resource {
 public:
  explicit device_resource(const allocator &owner, int device = 0) noexcept : device_resource(owner.get(), device) {}
  explicit device_resource(stratalloc_allocator *handle, int device = 0) noexcept : handle_(handle), device_(device) {}

  // One whose blocks can leave the device and come back, at the same address: `how` says how, and what it points to is not its own.
  device_resource(const allocator &owner, int device, const stratalloc_evictable &how) noexcept
      : handle_(owner.get()), device_(device), evictable_(true), how_(how) {
    how_.struct_size = sizeof how_;
  }

  stratalloc_allocator *handle() const noexcept { return handle_; }
  int device() const noexcept { return device_; }

 private:
  void *do_allocate(stratalloc_stream stream, std::size_t bytes, std::size_t alignment) override {
    void *address = nullptr;
    if (bytes == 0) return address;
    if (alignment <= 512 && !evictable_) {
      check(stratalloc_malloc(handle_, bytes, device_, stream, &address));
      return address;
    }
    stratalloc_request request{};
    request.struct_size = sizeof request;
    request.bytes = bytes;
    request.alignment = alignment;
    request.device = device_;
    request.stream = stream;
    check(evictable_ ? stratalloc_alloc_evictable(handle_, &request, &how_, &address)
                     : stratalloc_alloc(handle_, &request, &address));
    return address;
  }

  void do_deallocate(stratalloc_stream stream, void *address, std::size_t, std::size_t) noexcept override {
    if (address == nullptr) return;
    // The home stream is the one it was allocated for: recording that one changes nothing.
    stratalloc_status status = stratalloc_record_stream(handle_, address, stream);
    if (status == STRATALLOC_OK) status = stratalloc_free_on(handle_, address, device_);
    // Nothing can be thrown here, and a lost error would be worse than a line.
    if (status != STRATALLOC_OK && status != STRATALLOC_FORKED) {
      std::fprintf(stderr, "stratalloc: deallocate: %s\n", stratalloc_last_error());
    }
  }

  bool do_is_equal(const memory_resource &other) const noexcept override {
    const auto *that = dynamic_cast<const device_resource *>(&other);
    return that != nullptr && that->handle_ == handle_ && that->device_ == device_;
  }

  stratalloc_allocator *handle_;
  int device_;
  bool evictable_ = false;
  stratalloc_evictable how_{};
};

// Bytes of device memory, not initialised, freed in the order of their stream when this goes.
class device_buffer {
 public:
  device_buffer() noexcept = default;

  device_buffer(std::size_t bytes, stratalloc_stream stream, memory_resource &resource, std::size_t alignment = 512)
      : resource_(&resource),
        data_(resource.allocate(stream, bytes, alignment)),
        size_(bytes),
        alignment_(alignment),
        stream_(stream) {}

  device_buffer(device_buffer &&other) noexcept { swap(other); }

  device_buffer &operator=(device_buffer &&other) noexcept {
    device_buffer taken(std::move(other));
    swap(taken);
    return *this;
  }

  device_buffer(const device_buffer &) = delete;
  device_buffer &operator=(const device_buffer &) = delete;

  ~device_buffer() {
    if (resource_ != nullptr) resource_->deallocate(stream_, data_, size_, alignment_);
  }

  void *data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  bool empty() const noexcept { return size_ == 0; }
  stratalloc_stream stream() const noexcept { return stream_; }
  memory_resource *resource() const noexcept { return resource_; }

  // The stream in whose order the memory is freed: the last one that uses it.
  void set_stream(stratalloc_stream stream) noexcept { stream_ = stream; }

  void swap(device_buffer &other) noexcept {
    std::swap(resource_, other.resource_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(alignment_, other.alignment_);
    std::swap(stream_, other.stream_);
  }

 private:
  memory_resource *resource_ = nullptr;
  void *data_ = nullptr;
  std::size_t size_ = 0;
  std::size_t alignment_ = 512;
  stratalloc_stream stream_ = nullptr;
};

// What this thread requests without a tag is for `tag`, as long as this lives; with `how`, it can leave the device. To be destroyed by the thread
// that made it, the last made first.
class tag_scope {
 public:
  tag_scope(const allocator &owner, std::uint32_t tag, const stratalloc_evictable *how = nullptr) : handle_(owner.get()) {
    check(stratalloc_push_tag(handle_, tag, how));
  }
  tag_scope(const tag_scope &) = delete;
  tag_scope &operator=(const tag_scope &) = delete;
  ~tag_scope() { stratalloc_pop_tag(handle_); }

 private:
  stratalloc_allocator *handle_;
};

// Keeps an evictable block on the device: work that is submitted to `stream` as long as this lives finds it there.
class pin {
 public:
  pin(const allocator &owner, void *address, stratalloc_stream stream) {
    stratalloc_pinned *made = nullptr;
    check(stratalloc_pin(owner.get(), address, stream, &made));
    handle_.reset(made);
  }

 private:
  struct unpinner {
    void operator()(stratalloc_pinned *handle) const noexcept { stratalloc_unpin(handle); }
  };

  std::unique_ptr<stratalloc_pinned, unpinner> handle_;
};

// Bytes of device memory that a tier keeps until this goes, without an address: an activation between the passes of a step.
class stash {
 public:
  // Copies them, behind what `stream` has been given to do. They must stay as they are until `may_free` says so.
  stash(const allocator &owner, const void *from, std::size_t bytes, stratalloc_stream stream, const char *tier = nullptr) {
    stratalloc_stashed *made = nullptr;
    check(stratalloc_stash(owner.get(), from, bytes, stream, tier, &made));
    handle_.reset(made);
  }

  // Whether the bytes are safe without the block that they were copied from; with `wait`, they are.
  bool may_free(bool wait = false) const {
    bool may = false;
    check(stratalloc_stash_may_free(handle_.get(), wait, &may));
    return may;
  }

  // Begins to copy them to `to`, behind what `stream` has been given to do. Streams that use them come after `order`.
  void fetch(void *to, stratalloc_stream stream) const { check(stratalloc_stash_fetch(handle_.get(), to, stream)); }

  // Has later work of `stream` come after the last `fetch`.
  void order(stratalloc_stream stream) const { check(stratalloc_stash_order(handle_.get(), stream)); }

 private:
  struct dropper {
    void operator()(stratalloc_stashed *handle) const noexcept { stratalloc_stash_drop(handle); }
  };

  std::unique_ptr<stratalloc_stashed, dropper> handle_;
};

// Bytes of device memory that `stratalloc_compact` may move while nobody has them pinned, freed in the order of their stream.
class movable_buffer {
 public:
  movable_buffer(const allocator &owner, std::size_t bytes, stratalloc_stream stream, int device = 0) : size_(bytes) {
    stratalloc_request request{};
    request.struct_size = sizeof request;
    request.bytes = bytes;
    request.device = device;
    request.stream = stream;
    stratalloc_movable *made = nullptr;
    check(stratalloc_alloc_movable(owner.get(), &request, &made));
    handle_.reset(made);
  }

  std::size_t size() const noexcept { return size_; }

  // Where the bytes lie, for as long as this lives, which must be less than the buffer does.
  class pinned {
   public:
    explicit pinned(const movable_buffer &buffer) : handle_(buffer.handle_.get()) {
      check(stratalloc_movable_pin(handle_, &data_));
    }
    pinned(const pinned &) = delete;
    pinned &operator=(const pinned &) = delete;
    ~pinned() { stratalloc_movable_unpin(handle_); }
    void *data() const noexcept { return data_; }

   private:
    stratalloc_movable *handle_;
    void *data_ = nullptr;
  };

 private:
  struct freer {
    void operator()(stratalloc_movable *handle) const noexcept { stratalloc_movable_free(handle); }
  };

  std::unique_ptr<stratalloc_movable, freer> handle_;
  std::size_t size_;
};

}  // namespace stratalloc

#endif
