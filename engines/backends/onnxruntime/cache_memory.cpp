#include "backends/onnxruntime/cache_memory.h"

#include <algorithm>
#include <cstdlib>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace r1v::ort {

CacheMemory::CacheMemory(size_t bytes) : bytes_(std::max<size_t>(bytes, 1)) {
#if defined(__linux__)
  void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  madvise(memory, bytes_, MADV_NOHUGEPAGE);  // A refusal does no harm.
  data_ = static_cast<char*>(memory);
#else
  data_ = static_cast<char*>(std::calloc(bytes_, 1));
  if (data_ == nullptr) throw std::bad_alloc();
#endif
}

CacheMemory::~CacheMemory() {
#if defined(__linux__)
  if (data_ != nullptr) munmap(data_, bytes_);
#else
  std::free(data_);
#endif
}

CacheMemory::CacheMemory(CacheMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

CacheMemory& CacheMemory::operator=(CacheMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

bool CacheMemory::resize(size_t bytes) {
  bytes = std::max<size_t>(bytes, 1);
  if (bytes == bytes_) return true;
#if defined(__linux__)
  void* memory = mremap(data_, bytes_, bytes, MREMAP_MAYMOVE);
  if (memory == MAP_FAILED) return false;
  data_ = static_cast<char*>(memory);
  bytes_ = bytes;
  return true;
#else
  return false;
#endif
}

void CacheMemory::release(size_t begin, size_t end) {
#if defined(__linux__)
  static const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t first = (begin + page - 1) / page * page, last = end / page * page;
  if (first < last) madvise(data_ + first, last - first, MADV_DONTNEED);
#else
  static_cast<void>(begin);
  static_cast<void>(end);
#endif
}

}  // namespace r1v::ort
