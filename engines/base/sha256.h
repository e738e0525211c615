// SHA-256 (FIPS 180-4).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace r1v {

class Sha256 {
 public:
  // `portable`: without the processor's own instructions for it, for the test.
  explicit Sha256(bool portable = false);

  void update(const void* data, size_t size);
  // The digest of all that came; the object is done then.
  std::array<uint8_t, 32> digest();
  // The same in hexadecimal, lower case.
  std::string hex();

 private:
  void (*compress_)(const uint8_t* block, uint32_t* state);
  std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<uint8_t, 64> block_{};
  size_t held_ = 0;
  uint64_t bytes_ = 0;
};

}  // namespace r1v
