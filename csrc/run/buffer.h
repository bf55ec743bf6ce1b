// Large aligned memory that is not touched before it is written.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <utility>

namespace bitsmith {

class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t size) : size_(size) {
    if (size == 0) return;
    void *p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    if (size >= (size_t{4} << 20)) madvise(p, size, MADV_HUGEPAGE);
#endif
    data_ = static_cast<uint8_t *>(p);
  }
  ~Buffer() {
    if (data_) munmap(data_, size_);
  }
  Buffer(Buffer &&other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Buffer &operator=(Buffer &&other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  Buffer(const Buffer &) = delete;
  Buffer &operator=(const Buffer &) = delete;

  uint8_t *data() { return data_; }
  const uint8_t *data() const { return data_; }
  size_t size() const { return size_; }

 private:
  uint8_t *data_ = nullptr;
  size_t size_ = 0;
};

// Memory of many matrices in few buffers, so that small ones lie in large pages too. What is taken is freed when all of
// its buffer is.
class Arena {
 public:
  struct Room {
    std::shared_ptr<Buffer> buffer;
    uint8_t *data = nullptr;
  };
  Room take(size_t size) {
    constexpr size_t kChunk = size_t{64} << 20;
    if (size > kChunk / 2) return whole(size);
    if (!chunk_ || used_ + size > kChunk) chunk_ = std::make_shared<Buffer>(kChunk), used_ = 0;
    const Room room{chunk_, chunk_->data() + used_};
    used_ += (size + 63) / 64 * 64;
    return room;
  }
  // A buffer of its own.
  static Room whole(size_t size) {
    auto buffer = std::make_shared<Buffer>(size);
    return {buffer, buffer->data()};
  }

 private:
  std::shared_ptr<Buffer> chunk_;
  size_t used_ = 0;
};

// Numbers that begin with a line of the cache, and grow on demand; growing forgets them.
template <class T>
class Aligned {
 public:
  void resize(size_t size) {
    if (size * sizeof(T) > bytes_.size()) bytes_ = Buffer(size * sizeof(T));
  }
  T *data() { return reinterpret_cast<T *>(bytes_.data()); }
  const T *data() const { return reinterpret_cast<const T *>(bytes_.data()); }

 private:
  Buffer bytes_;
};

}  // namespace bitsmith
