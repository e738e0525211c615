#include "runner/image_encoder.h"

#include <algorithm>
#include <cstring>

#include "bundle/contract.h"
#include "image/tiles.h"
#include "runner/finite.h"

namespace r1v {
namespace {

// The fourth byte of a pixel says nothing.
bool same_pixels(const Pixels& a, const Pixels& b) {
  if (a.width() != b.width() || a.height() != b.height()) return false;
  for (size_t i = 0; i < a.count() * Pixels::kBytes; i += Pixels::kBytes) {
    if (std::memcmp(a.row(0) + i, b.row(0) + i, 3) != 0) return false;
  }
  return true;
}

// For each image, the index of the first one that is equal.
std::vector<size_t> first_equals(const std::vector<Pixels>& images) {
  std::vector<size_t> firsts;
  for (size_t i = 0; i < images.size(); ++i) {
    size_t first = 0;
    while (first < i && !(firsts[first] == first && same_pixels(images[first], images[i]))) ++first;
    firsts.push_back(first);
  }
  return firsts;
}

// Tiles that wait, and the embeddings of those that went through the graphs.
class TileQueue {
 public:
  TileQueue(Engine& engine, Timings* timings)
      : engine_(engine),
        timings_(timings),
        tile_floats_(static_cast<size_t>(3 * engine.sizes().tile_size * engine.sizes().tile_size)),
        tile_embeds_(static_cast<size_t>(engine.sizes().tokens_per_tile * engine.sizes().hidden)) {}

  // Cuts an image; the place of its last number among the embeddings.
  size_t add(const Pixels& image, const Tiling& tiling, int threads) {
    const Measure measure(&timings_->preprocess_ms);
    const size_t tiles = tile_count(image.width(), image.height(), tiling);
    pixels_.resize((waiting_ + tiles) * tile_floats_);
    write_pixel_values(image, tiling, pixels_.data() + waiting_ * tile_floats_, threads);
    waiting_ += tiles;
    return embeds_.size() + waiting_ * tile_embeds_;
  }

  size_t waiting() const { return waiting_; }

  // Encodes the next tiles.
  void run() {
    const size_t tiles = std::min(waiting_, static_cast<size_t>(kTilesPerRun));
    const std::vector<float> features = vision(static_cast<int64_t>(tiles));
    const Measure measure(&timings_->projector_ms);
    const std::vector<float> part = engine_.projector(features, static_cast<int64_t>(tiles));
    require_finite(part, contract::kProjector);
    embeds_.insert(embeds_.end(), part.begin(), part.end());
    pixels_.erase(pixels_.begin(), pixels_.begin() + static_cast<ptrdiff_t>(tiles * tile_floats_));
    waiting_ -= tiles;
  }

  ImageEmbeds embeds(size_t start, size_t end) const {
    return std::make_shared<const std::vector<float>>(embeds_.begin() + static_cast<ptrdiff_t>(start),
                                                      embeds_.begin() + static_cast<ptrdiff_t>(end));
  }

 private:
  std::vector<float> vision(int64_t tiles) {
    const Measure measure(&timings_->vision_ms);
    std::vector<float> features = engine_.vision(pixels_.data(), tiles);
    require_finite(features, contract::kVision);
    return features;
  }

  Engine& engine_;
  Timings* timings_;
  size_t tile_floats_, tile_embeds_, waiting_ = 0;
  std::vector<float> pixels_, embeds_;
};

}  // namespace

std::vector<ImageEmbeds> ImageEncoder::encode(const std::vector<Pixels>& images, Timings* timings,
                                              const std::function<bool()>& stopped) const {
  const std::vector<size_t> firsts = first_equals(images);
  TileQueue queue(engine_, timings);
  std::vector<size_t> ends(images.size());
  for (size_t i = 0; i < images.size(); ++i) {
    if (firsts[i] != i) continue;
    ends[i] = queue.add(images[i], tiling_, threads_);
    // The last tiles wait for those of the next image.
    while (queue.waiting() >= static_cast<size_t>(kTilesPerRun)) {
      if (stopped()) return {};
      queue.run();
    }
  }
  while (queue.waiting() > 0) {
    if (stopped()) return {};
    queue.run();
  }
  std::vector<ImageEmbeds> encoded;
  size_t start = 0;
  for (size_t i = 0; i < images.size(); ++i) {
    if (firsts[i] != i) {
      encoded.push_back(encoded[firsts[i]]);
      continue;
    }
    encoded.push_back(queue.embeds(start, ends[i]));
    start = ends[i];
  }
  return encoded;
}

}  // namespace r1v
