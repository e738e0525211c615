// The contract's engine on TensorRT plans.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "backends/engine.h"
#include "backends/tensorrt/embedding_table.h"
#include "backends/tensorrt/session.h"

namespace r1v::trt {

// A tensor of a plan over tiles.
struct TileTensor {
  const char* name;
  int64_t numbers;  // of a tile
};

// A plan over tiles; loaded when it is first needed. Any number of threads may run it.
class TilePlan {
 public:
  TilePlan(const Bundle& bundle, const Library& library, const Cuda& cuda, const Plan& plan, TileTensor input,
           TileTensor output)
      : bundle_(bundle), library_(library), cuda_(cuda), plan_(plan), input_(input), output_(output) {}

  // The output of the input's numbers; more tiles than the plan takes run in several calls.
  std::vector<float> run(const float* numbers, int64_t tiles);

 private:
  const Bundle& bundle_;
  const Library& library_;
  const Cuda& cuda_;
  const Plan& plan_;
  const TileTensor input_, output_;
  std::mutex mutex_;
  std::unique_ptr<Session> session_;
};

class TensorRtEngine : public Engine {
 public:
  // All that can be known without a GPU is checked first. `bundle` must outlive the engine; `library` is a path, or
  // empty (`Library`). Throws kBundle, kCapability.
  TensorRtEngine(const Bundle& bundle, const std::string& library, int gpu);

  const std::string& name() const override { return target_; }
  std::string description() const override { return library_.description() + ", CUDA"; }
  const Sizes& sizes() const override { return bundle_.contract.sizes; }
  std::vector<float> vision(const float* pixel_values, int64_t tiles) override;
  std::vector<float> projector(const std::vector<float>& vision_features, int64_t tiles) override;
  void embed(const int64_t* input_ids, int64_t rows, int64_t seq, const float* image_embeds, int64_t image_tokens,
             float* inputs_embeds) override;
  std::unique_ptr<Decoder> decoder(int64_t batch, int64_t capacity) override;
  CacheLimits cache_limits() override;

 private:
  const Bundle& bundle_;
  const std::string target_ = kTarget;
  const Plan vision_plan_, projector_plan_, decoder_plan_;
  const int64_t slots_;  // of a row of the cache
  const EmbeddingTable table_;
  const Library library_;
  const Cuda cuda_;
  TilePlan vision_, projector_;
  Session decoder_;
};

}  // namespace r1v::trt
