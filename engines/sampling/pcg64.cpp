#include "sampling/pcg64.h"

#include <array>
#include <cstddef>

namespace r1v {
namespace {

// Spreads a seed over all bits of a generator's state. Source: numpy, bit_generator.pyx; M. E. O'Neill's seed_seq_fe.
class SeedSequence {
 public:
  explicit SeedSequence(uint64_t seed) {
    const std::array<uint32_t, 4> entropy = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), 0, 0};
    for (size_t index = 0; index < pool_.size(); ++index) pool_[index] = hash(entropy[index]);
    for (size_t source = 0; source < pool_.size(); ++source) {
      for (size_t target = 0; target < pool_.size(); ++target) {
        if (source != target) pool_[target] = mix(pool_[target], hash(pool_[source]));
      }
    }
  }

  std::array<uint64_t, 4> state() const {
    std::array<uint64_t, 4> words{};
    uint32_t constant = 0x8b51f9dd;
    for (size_t index = 0; index < 2 * words.size(); ++index) {
      uint32_t value = pool_[index % pool_.size()] ^ constant;
      constant *= 0x58f38ded;
      value *= constant;
      value ^= value >> 16;
      words[index / 2] |= uint64_t{value} << (32 * (index % 2));
    }
    return words;
  }

 private:
  uint32_t hash(uint32_t value) {
    value ^= constant_;
    constant_ *= 0x931e8875;
    value *= constant_;
    return value ^ (value >> 16);
  }

  static uint32_t mix(uint32_t left, uint32_t right) {
    const uint32_t mixed = 0xca01f9dd * left - 0x4973f715 * right;
    return mixed ^ (mixed >> 16);
  }

  uint32_t constant_ = 0x43b0d7e5;
  std::array<uint32_t, 4> pool_{};
};

}  // namespace

Pcg64::Pcg64(uint64_t seed) {
  const std::array<uint64_t, 4> words = SeedSequence(seed).state();
  increment_ = (((Uint128{words[2]} << 64) | words[3]) << 1) | 1;
  next();
  state_ += (Uint128{words[0]} << 64) | words[1];
  next();
}

uint64_t Pcg64::next() {
  constexpr Uint128 kMultiplier = (Uint128{2549297995355413924u} << 64) | 4865540595714422341u;
  state_ = state_ * kMultiplier + increment_;
  const uint64_t folded = static_cast<uint64_t>(state_ >> 64) ^ static_cast<uint64_t>(state_);
  const auto rotation = static_cast<unsigned>(state_ >> 122);
  return (folded >> rotation) | (folded << ((64 - rotation) & 63));
}

}  // namespace r1v
