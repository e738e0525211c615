// From images to their embeddings: tiles of several images together, and each image once.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "backends/engine.h"
#include "image/pixels.h"
#include "image/tiling.h"
#include "runner/timings.h"

namespace r1v {

// Tiles that go through the vision graph at once: bounds the memory its activations take.
inline constexpr int64_t kTilesPerRun = 4;

// An image's embeddings [N, E].
using ImageEmbeds = std::shared_ptr<const std::vector<float>>;

// Encodes the images of a request. May be shared between threads.
class ImageEncoder {
 public:
  // `engine` must outlive the encoder; `threads` as for write_pixel_values.
  ImageEncoder(Engine& engine, Tiling tiling, int threads)
      : engine_(engine), tiling_(std::move(tiling)), threads_(threads) {}

  const Tiling& tiling() const { return tiling_; }

  // Embeddings of each image, in order; images with equal pixels share theirs. `stopped` is asked between runs: the
  // result is empty once it is true. Throws kInput, kGraph.
  std::vector<ImageEmbeds> encode(const std::vector<Pixels>& images, Timings* timings,
                                  const std::function<bool()>& stopped) const;

 private:
  Engine& engine_;
  const Tiling tiling_;
  const int threads_;
};

}  // namespace r1v
