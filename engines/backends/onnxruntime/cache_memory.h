// Memory of a key-value cache on the CPU.
#pragma once

#include <cstddef>

namespace r1v::ort {

// Zeros that take memory, a small page at a time, from the first write on: a cache may have addresses for all tokens
// that will ever come. Small pages, since a huge one is begun at the end of each head of each row, and attention is not
// faster with them. Where the system has no such memory, what calloc gives.
class CacheMemory {
 public:
  // Throws std::bad_alloc.
  explicit CacheMemory(size_t bytes);
  ~CacheMemory();
  CacheMemory(CacheMemory&& other) noexcept;
  CacheMemory& operator=(CacheMemory&& other) noexcept;

  char* data() const { return data_; }
  // Has so many bytes and keeps those that there are, without a copy; the address may change. False, and unchanged,
  // where the system cannot.
  bool resize(size_t bytes);
  // Gives back the whole pages between two bytes, which are zeros again.
  void release(size_t begin, size_t end);

 private:
  char* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace r1v::ort
