#include "runner/image_cache.h"

#include <vector>

#include "base/sha256.h"

namespace r1v {
namespace {

int64_t bytes_of(const EmbeddedImage& image) { return static_cast<int64_t>(image.embeds->size() * sizeof(float)); }

}  // namespace

ImageDigest digest_of(const Pixels& image) {
  Sha256 hash;
  const int32_t size[] = {image.width(), image.height()};
  hash.update(size, sizeof size);
  // The fourth byte of a pixel says nothing.
  std::vector<uint8_t> rgb(static_cast<size_t>(image.width()) * 3);
  for (int y = 0; y < image.height(); ++y) {
    const uint8_t* pixel = image.row(y);
    for (size_t i = 0; i < rgb.size(); i += 3, pixel += Pixels::kBytes) {
      rgb[i] = pixel[0];
      rgb[i + 1] = pixel[1];
      rgb[i + 2] = pixel[2];
    }
    hash.update(rgb.data(), rgb.size());
  }
  return hash.digest();
}

std::optional<EmbeddedImage> ImageCache::get(const ImageDigest& digest) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = places_.find(digest);
  if (found == places_.end()) return std::nullopt;
  order_.splice(order_.begin(), order_, found->second);
  return *found->second;
}

void ImageCache::put(const EmbeddedImage& image) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (bytes_of(image) > limit_bytes_ || places_.count(image.digest) > 0) return;
  Order newest{image};
  places_[image.digest] = newest.begin();  // Where there is no memory, neither list has it.
  order_.splice(order_.begin(), newest);
  bytes_ += bytes_of(image);
  while (bytes_ > limit_bytes_) {
    bytes_ -= bytes_of(order_.back());
    places_.erase(order_.back().digest);
    order_.pop_back();
  }
}

int64_t ImageCache::bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return bytes_;
}

}  // namespace r1v
