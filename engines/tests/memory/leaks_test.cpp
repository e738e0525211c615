// LeakSanitizer is on, and finds what is lost: else its silence about all other tests would say nothing.
#include <gtest/gtest.h>

#include <cstdint>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define R1V_ADDRESS_SANITIZER
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define R1V_ADDRESS_SANITIZER
#endif

#ifdef R1V_ADDRESS_SANITIZER
#include <sanitizer/lsan_interface.h>

namespace {

// Blocks that nothing points to: their addresses are kept inverted.
uintptr_t lost[8];

__attribute__((noinline)) void lose_memory() {
  for (uintptr_t& each : lost) each = ~reinterpret_cast<uintptr_t>(new char[1000]);
}

TEST(LeakSanitizer, FindsMemoryThatIsLost) {
  EXPECT_EQ(__lsan_do_recoverable_leak_check(), 0);
  lose_memory();
  EXPECT_NE(__lsan_do_recoverable_leak_check(), 0);
  for (const uintptr_t each : lost) delete[] reinterpret_cast<char*>(~each);
  EXPECT_EQ(__lsan_do_recoverable_leak_check(), 0);
}

}  // namespace
#endif
