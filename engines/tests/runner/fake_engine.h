// An engine of arithmetic, for tests of what runs engines: no library, no files.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backends/engine.h"
#include "base/error.h"

namespace r1v {

// Logits after the token in a slot: a hash of all that it sees, spread over the vocabulary, so that one wrong slot
// changes the tokens that follow.
inline void write_logits(const std::vector<float>& slots, int64_t last, int64_t vocab, float* logits) {
  uint64_t hash = 1469598103934665603ull;
  for (int64_t slot = 0; slot <= last; ++slot) {
    hash =
        (hash ^ static_cast<uint64_t>(static_cast<int64_t>(slots[static_cast<size_t>(slot)] * 64))) * 1099511628211ull;
  }
  for (int64_t token = 0; token < vocab; ++token) {
    logits[token] = static_cast<float>((hash >> (token % 48)) & 0xff) / 16;
  }
}

// Every slot of the cache holds the first number of an embedding.
class FakeDecoder : public Decoder {
 public:
  FakeDecoder(const Sizes& sizes, int64_t batch, int64_t capacity, bool movable, std::mutex& stepping)
      : sizes_(sizes), stepping_(stepping) {
    resize(batch, capacity, {});
    movable_ = movable;
  }

  int64_t batch() const override { return static_cast<int64_t>(rows_.size()); }
  int64_t capacity() const override { return capacity_; }

  void step(const DecoderStep& step, float* logits) override {
    const std::lock_guard<std::mutex> lock(stepping_);
    for (int64_t row = 0; row < step.rows; ++row) {
      std::vector<float>& slots = rows_.at(static_cast<size_t>(step.first_row + row));
      for (int64_t token = 0; token < step.seq; ++token) {
        slots.at(static_cast<size_t>(step.cache_write_index[row] + token)) =
            step.inputs_embeds[(row * step.seq + token) * sizes_.hidden];
      }
      for (int64_t position = 0; position < step.positions; ++position) {
        const int64_t last = step.cache_write_index[row] + step.logits_index[row * step.positions + position];
        write_logits(slots, last, sizes_.vocab, logits + (row * step.positions + position) * sizes_.vocab);
      }
    }
  }

  void copy_row(int64_t source, int64_t target, int64_t length) override {
    require_movable();
    std::copy_n(rows_.at(static_cast<size_t>(source)).begin(), length, rows_.at(static_cast<size_t>(target)).begin());
  }
  void swap_rows(int64_t a, int64_t b, int64_t length) override {
    require_movable();
    auto& first = rows_.at(static_cast<size_t>(a));
    std::swap_ranges(first.begin(), first.begin() + length, rows_.at(static_cast<size_t>(b)).begin());
  }
  void resize(int64_t batch, int64_t capacity, const std::vector<int64_t>& lengths) override {
    require_movable();
    capacity_ = capacity;
    rows_.resize(static_cast<size_t>(batch));
    for (size_t row = 0; row < rows_.size(); ++row) {
      const int64_t kept = row < lengths.size() ? std::min(lengths[row], capacity) : 0;
      // What was not kept is filled with what no test expects.
      rows_[row].resize(static_cast<size_t>(kept), 0.0f);
      rows_[row].resize(static_cast<size_t>(capacity), -1000.0f);
    }
  }

 private:
  void require_movable() const {
    if (!movable_) throw Error(Code::kCapability, "The rows of this cache stay where they are.");
  }

  Sizes sizes_;
  std::mutex& stepping_;
  bool movable_ = true;
  int64_t capacity_ = 0;
  std::vector<std::vector<float>> rows_;
};

class FakeEngine : public Engine {
 public:
  explicit FakeEngine(const Sizes& sizes = {4, 2, 3, 2, 40, 1, 1, 1}) : sizes_(sizes) {}

  const std::string& name() const override { return name_; }
  std::string description() const override { return name_; }
  const Sizes& sizes() const override { return sizes_; }

  std::vector<float> vision(const float* pixel_values, int64_t tiles) override {
    const std::lock_guard<std::mutex> lock(encoding);
    runs.push_back(tiles);
    const int64_t pixels = 3 * sizes_.tile_size * sizes_.tile_size,
                  features = sizes_.tokens_per_tile * sizes_.vision_features;
    std::vector<float> result;
    for (int64_t tile = 0; tile < tiles; ++tile)
      result.insert(result.end(), static_cast<size_t>(features), pixel_values[tile * pixels]);
    return result;
  }
  std::vector<float> projector(const std::vector<float>& vision_features, int64_t tiles) override {
    const int64_t features = sizes_.tokens_per_tile * sizes_.vision_features,
                  embeds = sizes_.tokens_per_tile * sizes_.hidden;
    std::vector<float> result;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const float value = vision_features[static_cast<size_t>(tile * features)];
      result.insert(result.end(), static_cast<size_t>(embeds), value > broken_above ? std::nanf("") : value);
    }
    return result;
  }
  // The image token is 0; a token's own embedding is its id.
  void embed(const int64_t* input_ids, int64_t rows, int64_t seq, const float* image_embeds, int64_t image_tokens,
             float* inputs_embeds) override {
    if (failing) throw Error(Code::kGraph, "No memory.");
    if (image_tokens > 0 && image_tokens != std::count(input_ids, input_ids + rows * seq, 0)) {
      throw Error(Code::kGraph, "There are more image tokens than embeddings.");
    }
    int64_t used = 0;
    for (int64_t token = 0; token < rows * seq; ++token) {
      const bool is_image = input_ids[token] == 0 && used < image_tokens;
      const float value = is_image ? image_embeds[used++ * sizes_.hidden] : static_cast<float>(input_ids[token]);
      std::fill_n(inputs_embeds + token * sizes_.hidden, sizes_.hidden, value);
    }
  }
  std::unique_ptr<Decoder> decoder(int64_t batch, int64_t capacity) override {
    return std::make_unique<FakeDecoder>(sizes_, batch, capacity, limits.movable, stepping);
  }
  CacheLimits cache_limits() override { return limits; }

  std::vector<int64_t> runs;  // tiles of each run of the vision graph
  float broken_above = 2;     // image embeddings above it are NaN; those of the brightest image are 1
  bool failing = false;       // the embed graph fails
  CacheLimits limits{2, std::nullopt, std::nullopt, true};
  std::mutex stepping;  // held by a step of the decoder
  std::mutex encoding;  // held by a run of the vision graph

 private:
  std::string name_ = "fake";
  Sizes sizes_;
};

}  // namespace r1v
