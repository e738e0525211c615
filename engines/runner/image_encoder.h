// From images to their embeddings: tiles of several images together, and each image once.
#pragma once

#include <functional>
#include <vector>

#include "backends/engine.h"
#include "image/pixels.h"
#include "image/tiling.h"
#include "runner/image_cache.h"
#include "runner/timings.h"

namespace r1v {

// Tiles that go through the vision graph at once: bounds the memory its activations take.
inline constexpr int64_t kTilesPerRun = 4;

// Encodes the images of a request, and keeps what it encoded for requests that show the same. Any number of threads may
// use it.
class ImageEncoder {
 public:
  // `engine` must outlive the encoder; `threads` as for write_pixel_values; `cache_bytes` of kept embeddings.
  ImageEncoder(Engine& engine, Tiling tiling, int threads, int64_t cache_bytes = 0)
      : engine_(engine), tiling_(std::move(tiling)), threads_(threads), cache_(cache_bytes) {}

  const Tiling& tiling() const { return tiling_; }
  const ImageCache& cache() const { return cache_; }

  // Each image encoded, in order; images with equal pixels share their embeddings. `stopped` is asked between runs: the
  // result is empty once it is true. Throws kInput, kGraph.
  std::vector<EmbeddedImage> encode(const std::vector<Pixels>& images, Timings* timings,
                                    const std::function<bool()>& stopped);

 private:
  Engine& engine_;
  const Tiling tiling_;
  const int threads_;
  ImageCache cache_;
};

}  // namespace r1v
