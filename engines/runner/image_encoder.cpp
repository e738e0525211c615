#include "runner/image_encoder.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "bundle/contract.h"
#include "image/tiles.h"
#include "runner/finite.h"

namespace r1v {
namespace {

// Keeps what is wrong with a job's part of a stage's numbers.
void check(ImageJob* job, const float* numbers, size_t count, const char* stage) {
  try {
    require_finite(numbers, count, stage);
  } catch (...) {
    if (!job->error) job->error = std::current_exception();
  }
}

}  // namespace

ImageJobPointer ImageEncoder::open(Pixels image) {
  const ImageDigest digest = digest_of(image);
  const auto pending = std::find_if(pending_.begin(), pending_.end(),
                                    [&](const ImageJobPointer& job) { return job->image.digest == digest; });
  if (pending != pending_.end()) {
    ++hits_;
    ++(*pending)->users;
    return *pending;
  }
  auto job = std::make_shared<ImageJob>();
  if (std::optional<EmbeddedImage> kept = cache_.get(digest)) {
    ++hits_;
    job->image = std::move(*kept);
    return job;
  }
  ++misses_;
  job->image.digest = digest;
  job->tiles = static_cast<int64_t>(tile_count(image.width(), image.height(), tiling_));
  job->pixels = std::move(image);
  pending_.push_back(job);
  return job;
}

void ImageEncoder::abandon(const std::vector<ImageJobPointer>& jobs) {
  for (const ImageJobPointer& job : jobs) {
    if (--job->users == 0) pending_.erase(std::remove(pending_.begin(), pending_.end(), job), pending_.end());
  }
}

int64_t ImageEncoder::waiting() const {
  int64_t tiles = 0;
  for (const ImageJobPointer& job : pending_) tiles += job->tiles - job->encoded;
  return tiles;
}

void ImageEncoder::run_batch() {
  const std::vector<Share> shares = next_shares();
  try {
    if (!shares.empty()) encode(shares);
  } catch (...) {
    for (const Share& share : shares) {
      if (!share.job->error) share.job->error = std::current_exception();
    }
  }
  for (const Share& share : shares) finish(share.job);
  pending_.erase(std::remove_if(pending_.begin(), pending_.end(), [](const auto& job) { return job->done(); }),
                 pending_.end());
}

// Cuts an image, whose tiles take more memory than it does, when the first of them are to be encoded.
void ImageEncoder::cut(ImageJob* job) {
  const Measure measure(&job->timings.preprocess_ms);
  const int64_t size = tiling_.tile_size;
  job->pixel_values.resize(static_cast<size_t>(job->tiles * 3 * size * size));
  write_pixel_values(job->pixels, tiling_, job->pixel_values.data(), threads_);
  job->pixels = {};
}

// The images whose tiles are encoded next, and how many of each.
std::vector<ImageEncoder::Share> ImageEncoder::next_shares() {
  std::vector<Share> shares;
  int64_t room = kTilesPerRun;
  for (const ImageJobPointer& job : pending_) {
    if (room == 0) break;
    try {
      if (job->encoded == 0) cut(job.get());
    } catch (...) {
      job->error = std::current_exception();
      continue;
    }
    shares.push_back({job.get(), std::min(room, job->tiles - job->encoded)});
    room -= shares.back().tiles;
  }
  return shares;
}

void ImageEncoder::encode(const std::vector<Share>& shares) {
  const Sizes& sizes = engine_.sizes();
  const int64_t of_tile = 3 * sizes.tile_size * sizes.tile_size;
  std::vector<float> pixel_values;
  int64_t tiles = 0;
  for (const auto& [job, count] : shares) {
    const auto first = job->pixel_values.begin() + job->encoded * of_tile;
    pixel_values.insert(pixel_values.end(), first, first + count * of_tile);
    tiles += count;
  }
  ++runs_;
  tiles_ += tiles;

  Timings timings;
  std::vector<float> features, embeds;
  {
    const Measure measure(&timings.vision_ms);
    features = engine_.vision(pixel_values.data(), tiles);
  }
  {
    const Measure measure(&timings.projector_ms);
    embeds = engine_.projector(features, tiles);
  }
  const float *next_features = features.data(), *next_embeds = embeds.data();
  for (const auto& [job, count] : shares) {
    const int64_t feature_count = count * sizes.tokens_per_tile * sizes.vision_features;
    const int64_t embed_count = count * sizes.tokens_per_tile * sizes.hidden;
    check(job, next_features, static_cast<size_t>(feature_count), contract::kVision);
    check(job, next_embeds, static_cast<size_t>(embed_count), contract::kProjector);
    job->embeds.insert(job->embeds.end(), next_embeds, next_embeds + embed_count);
    job->encoded += count;
    job->timings.vision_ms += timings.vision_ms;
    job->timings.projector_ms += timings.projector_ms;
    next_features += feature_count;
    next_embeds += embed_count;
  }
}

// Lets a job be done if its last tile is encoded.
void ImageEncoder::finish(ImageJob* job) {
  if (job->error || job->encoded < job->tiles) return;
  try {
    job->image.embeds = std::make_shared<const std::vector<float>>(std::move(job->embeds));
    job->pixel_values = {};
    cache_.put(job->image);
  } catch (...) {
    job->error = std::current_exception();
  }
}

}  // namespace r1v
