// An image after the encoder.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

namespace r1v {

// SHA-256 of an image's size and pixels.
using ImageDigest = std::array<uint8_t, 32>;

// Image embeddings [N, E].
using ImageEmbeds = std::shared_ptr<const std::vector<float>>;

struct EmbeddedImage {
  ImageEmbeds embeds;
  ImageDigest digest;
};

}  // namespace r1v
