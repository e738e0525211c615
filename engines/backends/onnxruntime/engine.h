// The contract's engine on ONNX Runtime sessions.
#pragma once

#include <memory>
#include <string>

#include "backends/engine.h"
#include "backends/onnxruntime/vision.h"

namespace r1v::ort {

class OnnxRuntimeEngine : public Engine {
 public:
  // `bundle` must outlive the engine. `library` is a path, or empty (`Library::open`). Throws kBundle, kCapability.
  // `vision_target` and `warn` as for choose_images; throws kUsage, too.
  OnnxRuntimeEngine(const Bundle& bundle, const std::string& target, const std::string& library,
                    const DeviceOptions& device, const std::string& vision_target,
                    const std::function<void(const std::string&)>& warn);

  const std::string& name() const override { return target_; }
  std::string description() const override;
  std::string note() const override { return vision_.note(); }
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
  const GraphSession& session(LazySession& lazy, const char* graph);

  const Bundle& bundle_;
  const std::string target_;
  const Library& library_;
  const DeviceOptions device_;
  const Options options_;
  OnnxRuntimeVision vision_;
  LazySession embed_, decoder_;
};

}  // namespace r1v::ort
