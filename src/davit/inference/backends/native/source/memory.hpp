// Aligned memory: what the weights live in for good, and what a forward pass works in.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace davit {

constexpr size_t LINE = 64;        // bytes; also the widest vector
constexpr size_t LARGE_PAGE = size_t{2} << 20;

inline size_t round_up(size_t x, size_t to) { return (x + to - 1) / to * to; }
inline int divide_up(int x, int by) { return (x - 1) / by + 1; }

// Floats at the start of a cache line, in large pages where there are enough of them: fewer misses in the page tables.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t floats) : floats_(floats) {
    if (floats > SIZE_MAX / 8) throw std::bad_alloc();
    const size_t bytes = floats * sizeof(float);
    const size_t page = bytes >= LARGE_PAGE ? LARGE_PAGE : LINE;
    void* memory = nullptr;
    if (posix_memalign(&memory, page, round_up(bytes + 1, page)) != 0) throw std::bad_alloc();
    memory_.reset(static_cast<float*>(memory));
#if defined(MADV_HUGEPAGE)
    if (page == LARGE_PAGE) madvise(memory, round_up(bytes + 1, page), MADV_HUGEPAGE);  // a wish; nothing depends on it
#endif
  }
  float* data() const { return memory_.get(); }
  size_t size() const { return floats_; }

 private:
  struct Free {
    void operator()(float* memory) const { free(memory); }
  };
  std::unique_ptr<float, Free> memory_;
  size_t floats_ = 0;
};

// Hands out pieces one after the other; without memory behind it, it only counts how much they come to.
class Pieces {
 public:
  explicit Pieces(float* base = nullptr) : base_(base) {}
  float* floats(size_t count) {
    float* piece = base_ ? base_ + used_ : nullptr;
    used_ += round_up(count, LINE / sizeof(float));
#if defined(__SANITIZE_ADDRESS__)  // a line behind each piece that nobody may touch
    if (piece) {
      ASAN_UNPOISON_MEMORY_REGION(piece, count * sizeof(float));
      ASAN_POISON_MEMORY_REGION(piece + count, (base_ + used_ - piece - count) * sizeof(float) + LINE);
    }
    used_ += LINE / sizeof(float);
#endif
    return piece;
  }
  template <class T>
  T* of(size_t count) {
    static_assert(alignof(T) <= LINE, "pieces are whole cache lines");
    return reinterpret_cast<T*>(floats((count * sizeof(T) + sizeof(float) - 1) / sizeof(float)));
  }
  size_t used() const { return used_; }

 private:
  float* base_;
  size_t used_ = 0;
};

// Memory of the weights, in few large allocations.
class Store {
 public:
  float* floats(size_t count) {
    count = round_up(count, LINE / sizeof(float));
    if (buffers_.empty() || used_ + count > buffers_.back().size()) {
      buffers_.emplace_back(count > CHUNK ? count : CHUNK);
      used_ = 0;
    }
    float* piece = buffers_.back().data() + used_;
    used_ += count;
    return piece;
  }
  const float* copy(const float* from, size_t count) {
    float* to = floats(count);
    for (size_t i = 0; i < count; ++i) to[i] = from[i];
    return to;
  }

 private:
  static constexpr size_t CHUNK = size_t{4} << 20;
  std::vector<Buffer> buffers_;
  size_t used_ = 0;
};

}  // namespace davit
