// Memory for images and what is made of them.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

#include "base/checked.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace r1v {

struct FreeDeleter {
  void operator()(void* memory) const { std::free(memory); }
};

template <typename T>
using LargeArray = std::unique_ptr<T[], FreeDeleter>;

// Numbers that are not initialized. Many megabytes get huge pages where the system grants them: with small ones the
// first write to each takes up to a third of the time that a photograph does. Throws std::bad_alloc.
template <typename T>
LargeArray<T> large_array(size_t count) {
  constexpr size_t kHugePage = size_t{2} << 20;
  const size_t bytes = checked_product({count, sizeof(T)}, "memory");
  void* memory = nullptr;
  if (bytes < 2 * kHugePage) {
    memory = std::malloc(bytes > 0 ? bytes : 1);
  } else if (posix_memalign(&memory, kHugePage, bytes) != 0) {
    memory = nullptr;
  }
  if (memory == nullptr) throw std::bad_alloc();
#if defined(__linux__)
  // Only whole huge pages, so that the last one takes no more memory than is used. A refusal does no harm.
  if (bytes >= 2 * kHugePage) madvise(memory, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  return LargeArray<T>(static_cast<T*>(memory));
}

}  // namespace r1v
