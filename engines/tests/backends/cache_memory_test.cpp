#include "backends/onnxruntime/cache_memory.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <fstream>
#include <limits>
#include <new>

namespace r1v::ort {
namespace {

constexpr size_t kMebibyte = size_t{1} << 20;

// Memory of this process that is there; 0 where the system does not say.
size_t resident_bytes() {
  size_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages >> pages;
  return pages * 4096;
}

TEST(CacheMemory, KeepsWhatIsThereWhereItGrows) {
  CacheMemory memory(4096);
  memory.data()[0] = 1;
  memory.data()[4095] = 2;
  if (!memory.resize(64 * kMebibyte)) GTEST_SKIP() << "no memory of this system grows";
  EXPECT_EQ(memory.data()[0], 1);
  EXPECT_EQ(memory.data()[4095], 2);
  EXPECT_EQ(memory.data()[64 * kMebibyte - 1], 0);
}

TEST(CacheMemory, TakesWhatIsWrittenAndGivesItBack) {
  if (resident_bytes() == 0) GTEST_SKIP() << "this system does not count pages";
  const size_t before = resident_bytes();
  CacheMemory memory(4096 * kMebibyte);
  EXPECT_LT(resident_bytes() - before, 4 * kMebibyte);
  for (size_t byte = 0; byte < 64 * kMebibyte; byte += 4096) memory.data()[byte] = 1;
  const size_t filled = resident_bytes();
  EXPECT_GE(filled - before, 60 * kMebibyte);
  memory.release(1, 32 * kMebibyte + 1);
  EXPECT_GE(filled - resident_bytes(), 30 * kMebibyte);
  EXPECT_EQ(memory.data()[0], 1);
  EXPECT_EQ(memory.data()[4096], 0);
  EXPECT_EQ(memory.data()[32 * kMebibyte], 1);
}

TEST(CacheMemory, MoreThanThereIsIsBadAlloc) {
  EXPECT_THROW(CacheMemory(std::numeric_limits<size_t>::max() / 2), std::bad_alloc);
}

}  // namespace
}  // namespace r1v::ort
