// The contract's engine on ONNX Runtime sessions.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "backends/engine.h"
#include "backends/onnxruntime/session.h"

namespace r1v::ort {

// A graph's session, opened when it is first needed.
class LazySession {
 public:
  const GraphSession& get(const Library& library, const Bundle& bundle, const Options& options, const char* graph,
                          const DeviceOptions& device);

 private:
  std::mutex mutex_;
  std::unique_ptr<const GraphSession> session_;
};

class OnnxRuntimeEngine : public Engine {
 public:
  // `bundle` must outlive the engine. `library` is a path, or empty (`Library::open`). Throws kBundle, kCapability.
  OnnxRuntimeEngine(const Bundle& bundle, const std::string& target, const std::string& library,
                    const DeviceOptions& device);

  const std::string& name() const override { return target_; }
  std::string description() const override;
  const Sizes& sizes() const override { return bundle_.contract.sizes; }
  std::vector<float> vision(const float* pixel_values, int64_t tiles) override;
  std::vector<float> projector(const std::vector<float>& vision_features, int64_t tiles) override;
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
  LazySession vision_, projector_, embed_, decoder_;
};

}  // namespace r1v::ort
