// numpy.random.default_rng(seed).random(): SeedSequence and PCG64 (XSL-RR 128/64).
#pragma once

#include <cstdint>

namespace r1v {

class Pcg64 {
 public:
  explicit Pcg64(uint64_t seed);

  // Uniform in [0, 1), with 53 bits.
  double random() { return static_cast<double>(next() >> 11) * 0x1p-53; }

 private:
  __extension__ using Uint128 = unsigned __int128;

  uint64_t next();

  Uint128 state_ = 0, increment_ = 0;
};

}  // namespace r1v
