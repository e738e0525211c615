#include "runner/image_encoder.h"

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "bundle/contract.h"
#include "image/tiles.h"
#include "runner/finite.h"

namespace r1v {
namespace {

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

std::vector<EmbeddedImage> ImageEncoder::encode(const std::vector<Pixels>& images, Timings* timings,
                                                const std::function<bool()>& stopped) {
  std::vector<EmbeddedImage> encoded(images.size());
  std::map<ImageDigest, size_t> firsts;            // index of the first image with these pixels
  std::vector<std::pair<size_t, size_t>> missing;  // index, and end of its embeddings
  TileQueue queue(engine_, timings);
  for (size_t i = 0; i < images.size(); ++i) {
    const ImageDigest digest = digest_of(images[i]);
    encoded[i].digest = digest;
    if (!firsts.emplace(digest, i).second) continue;
    if (const std::optional<EmbeddedImage> kept = cache_.get(digest)) {
      encoded[i] = *kept;
      continue;
    }
    missing.emplace_back(i, queue.add(images[i], tiling_, threads_));
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
  size_t start = 0;
  for (const auto& [image, end] : missing) {
    encoded[image].embeds = queue.embeds(start, end);
    cache_.put(encoded[image]);
    start = end;
  }
  for (EmbeddedImage& image : encoded) image.embeds = encoded[firsts.at(image.digest)].embeds;
  return encoded;
}

}  // namespace r1v
