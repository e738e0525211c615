// operator new that fails on purpose.
#pragma once

#include <cstdint>

namespace r1v {

// Which allocations fail: all of any thread after the first `succeeding`, or only the one behind them.
enum class Failing { kAll, kOne };

// Lets allocations of this program fail while it lives; there is one at a time.
class FailingAllocations {
 public:
  // `within`: an address of the library whose own calls of operator new are counted; null for those of all.
  FailingAllocations(int64_t succeeding, Failing failing, const void* within = nullptr);
  ~FailingAllocations();
  FailingAllocations(const FailingAllocations&) = delete;
  FailingAllocations& operator=(const FailingAllocations&) = delete;

  // How many have failed.
  int64_t failed() const;
};

}  // namespace r1v
