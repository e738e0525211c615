// Embeddings of images that may be shown again, by their digest, up to a number of bytes.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <mutex>
#include <optional>

#include "backends/embedded_image.h"
#include "image/pixels.h"

namespace r1v {

ImageDigest digest_of(const Pixels& image);

// The least recently used make room. Any number of threads may use it.
class ImageCache {
 public:
  explicit ImageCache(int64_t limit_bytes) : limit_bytes_(limit_bytes) {}

  std::optional<EmbeddedImage> get(const ImageDigest& digest);
  void put(const EmbeddedImage& image);

  int64_t bytes() const;

 private:
  using Order = std::list<EmbeddedImage>;

  const int64_t limit_bytes_;
  mutable std::mutex mutex_;
  Order order_;  // the most recently used first
  std::map<ImageDigest, Order::iterator> places_;
  int64_t bytes_ = 0;
};

}  // namespace r1v
