// The fake engine with its loop, as requests meet it.
#pragma once

#include <cstring>
#include <memory>

#include "runner/generation.h"
#include "tests/runner/batching/questions.h"

namespace r1v {

inline Tiling one_tile() {
  Tiling tiling;
  tiling.tile_size = 4;
  tiling.grids = {{1, 1}};
  tiling.max_tiles_per_image = 1;
  tiling.mean = {0, 0, 0};
  tiling.std = {1, 1, 1};
  return tiling;
}

inline JobPointer job_of(const Question& question, JobOptions options = {}) {
  Prompt prompt{question.ids, {}, 0, {}};
  for (const uint8_t color : question.images) {
    Pixels image(4, 4);
    std::memset(image.row(0), color, image.count() * Pixels::kBytes);
    prompt.images.push_back(std::move(image));
  }
  return std::make_shared<Job>(std::move(prompt), question.sampling, stream_of(question), std::move(options));
}

// An engine with its loop.
struct Server {
  explicit Server(const BatchingOptions& options)
      : encoder(engine, one_tile(), 1, options.image_cache_bytes), loop(engine, encoder, kMaxPositions, options) {}

  std::unique_ptr<Generation> start(const Question& question, JobOptions options = {}) {
    return std::make_unique<Generation>(loop, job_of(question, std::move(options)));
  }

  FakeEngine engine;
  ImageEncoder encoder;
  BatchingLoop loop;
};

}  // namespace r1v
