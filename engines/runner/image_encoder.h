// From images to their embeddings: tiles of several images together, and each image once.
#pragma once

#include <atomic>
#include <exception>
#include <memory>
#include <vector>

#include "backends/engine.h"
#include "image/pixels.h"
#include "image/tiling.h"
#include "runner/image_cache.h"
#include "runner/timings.h"

namespace r1v {

// Tiles that go through the vision graph together: bounds the memory its activations take.
inline constexpr int64_t kTilesPerRun = 4;

// An image on its way through the encoder.
struct ImageJob {
  EmbeddedImage image;       // its embeddings once it is encoded
  std::exception_ptr error;  // why it cannot be
  Pixels pixels;             // until it is cut
  int64_t tiles = 0;         // that it is cut into,
  int64_t encoded = 0;       // and how many of them are encoded
  std::vector<float> pixel_values, embeds;
  Timings timings;  // what cutting it took, and the runs that its tiles were part of
  int users = 1;    // how often it was opened

  bool done() const { return image.embeds != nullptr || error != nullptr; }
};

using ImageJobPointer = std::shared_ptr<ImageJob>;

// Encodes images, a few tiles at a time: those of several images together, and no image twice. For one thread, but the
// counters and the cache may be read by any.
class ImageEncoder {
 public:
  // `engine` must outlive the encoder; `threads` as for write_pixel_values; `cache_bytes` of embeddings that are kept
  // for images shown again.
  ImageEncoder(VisionEngine& engine, Tiling tiling, int threads, int64_t cache_bytes = 0)
      : engine_(engine), tiling_(std::move(tiling)), threads_(threads), cache_(cache_bytes) {}

  const Tiling& tiling() const { return tiling_; }
  const ImageCache& cache() const { return cache_; }

  // Begins to encode an image; done already if it is kept, the same job as before if it is under way.
  ImageJobPointer open(Pixels image);
  // Gives up jobs that somebody opened; one that others opened too goes on for them.
  void abandon(const std::vector<ImageJobPointer>& jobs);
  // Gives up all.
  void clear() { pending_.clear(); }
  // Tiles that wait to be encoded.
  int64_t waiting() const;
  // Encodes the next tiles of the images that wait, the oldest first. Errors are the images' own.
  void run_batch();

  int64_t hits() const { return hits_; }      // images that were kept or under way
  int64_t misses() const { return misses_; }  // images that were not
  int64_t runs() const { return runs_; }      // of the vision graph,
  int64_t tiles() const { return tiles_; }    // and tiles of all these together

 private:
  struct Share {
    ImageJob* job;
    int64_t tiles;
  };

  void cut(ImageJob* job);
  std::vector<Share> next_shares();
  void encode(const std::vector<Share>& shares);
  void finish(ImageJob* job);

  VisionEngine& engine_;
  const Tiling tiling_;
  const int threads_;
  ImageCache cache_;
  std::vector<ImageJobPointer> pending_;  // the oldest first
  std::atomic<int64_t> hits_{0}, misses_{0}, runs_{0}, tiles_{0};
};

}  // namespace r1v
