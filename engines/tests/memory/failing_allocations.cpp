#include "tests/memory/failing_allocations.h"

#include <link.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>

namespace r1v {
namespace {

std::atomic<bool> armed{false};
std::atomic<int64_t> succeeding_allocations{0}, failed_allocations{0};
std::atomic<Failing> failing_allocations{Failing::kAll};

// Addresses of the code whose calls count.
struct Range {
  uintptr_t inside, begin, end;
};
Range counted{};

// Finds the library that holds an address.
int find_range(dl_phdr_info* library, size_t, void* range) {
  auto* found = static_cast<Range*>(range);
  uintptr_t begin = UINTPTR_MAX, end = 0;
  for (size_t i = 0; i < library->dlpi_phnum; ++i) {
    if (library->dlpi_phdr[i].p_type != PT_LOAD) continue;
    const uintptr_t start = library->dlpi_addr + library->dlpi_phdr[i].p_vaddr;
    begin = std::min(begin, start);
    end = std::max(end, start + library->dlpi_phdr[i].p_memsz);
  }
  if (found->inside < begin || found->inside >= end) return 0;
  *found = {found->inside, begin, end};
  return 1;
}

// Memory, or null where the allocation is to fail. `caller`: the address that it returns to.
void* allocated(size_t size, const void* caller) {
  const auto address = reinterpret_cast<uintptr_t>(caller);
  if (armed && (counted.inside == 0 || (address >= counted.begin && address < counted.end))) {
    const int64_t left = succeeding_allocations--;
    if (left == 0 || (left < 0 && failing_allocations == Failing::kAll)) {
      ++failed_allocations;
      return nullptr;
    }
  }
  return std::malloc(size == 0 ? 1 : size);
}

void* allocated_or_throw(size_t size, const void* caller) {
  if (void* memory = allocated(size, caller)) return memory;
  throw std::bad_alloc();
}

}  // namespace

FailingAllocations::FailingAllocations(int64_t succeeding, Failing failing, const void* within) {
  counted = {reinterpret_cast<uintptr_t>(within), 0, 0};
  if (within != nullptr) dl_iterate_phdr(find_range, &counted);
  succeeding_allocations = succeeding;
  failed_allocations = 0;
  failing_allocations = failing;
  armed = true;
}

FailingAllocations::~FailingAllocations() { armed = false; }

int64_t FailingAllocations::failed() const { return failed_allocations; }

}  // namespace r1v

void* operator new(size_t size) { return r1v::allocated_or_throw(size, __builtin_return_address(0)); }
void* operator new[](size_t size) { return r1v::allocated_or_throw(size, __builtin_return_address(0)); }
void* operator new(size_t size, const std::nothrow_t&) noexcept {
  return r1v::allocated(size, __builtin_return_address(0));
}
void* operator new[](size_t size, const std::nothrow_t&) noexcept {
  return r1v::allocated(size, __builtin_return_address(0));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
void operator delete[](void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
