// The contract's engine on TensorRT plans.
#pragma once

#include <memory>
#include <string>

#include "backends/engine.h"
#include "backends/tensorrt/embedding_table.h"
#include "backends/tensorrt/session.h"
#include "backends/tensorrt/vision.h"

namespace r1v::trt {

class TensorRtEngine : public Engine {
 public:
  // All that can be known without a GPU is checked first. `bundle` must outlive the engine; `library` is a path, or
  // empty (`Library`). Throws kBundle, kCapability.
  TensorRtEngine(const Bundle& bundle, const std::string& library, int gpu);

  const std::string& name() const override { return target_; }
  std::string description() const override { return vision_.description(); }
  const Sizes& sizes() const override { return bundle_.contract.sizes; }
  std::vector<float> vision(const float* pixel_values, int64_t tiles) override {
    return vision_.vision(pixel_values, tiles);
  }
  std::vector<float> projector(const std::vector<float>& vision_features, int64_t tiles) override {
    return vision_.projector(vision_features, tiles);
  }
  void embed(const int64_t* input_ids, int64_t rows, int64_t seq, const float* image_embeds, int64_t image_tokens,
             float* inputs_embeds) override;
  std::unique_ptr<Decoder> decoder(int64_t batch, int64_t capacity) override;
  CacheLimits cache_limits() override;

 private:
  const Bundle& bundle_;
  const std::string target_ = kTarget;
  const Plan decoder_plan_;
  const int64_t slots_;  // of a row of the cache
  const EmbeddingTable table_;
  TensorRtVision vision_;  // with the library and the GPU
  Session decoder_;
};

}  // namespace r1v::trt
