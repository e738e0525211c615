// The plans that encode images.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backends/engine.h"
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

class TensorRtVision : public VisionEngine {
 public:
  // All that can be known without a GPU is checked first, of `others` too, which are to run on the same library and
  // GPU. `bundle` must outlive it; `library` is a path, or empty (`Library`). Throws kBundle, kCapability.
  TensorRtVision(const Bundle& bundle, const std::string& library, int gpu,
                 const std::vector<const Plan*>& others = {});

  const Library& library() const { return library_; }
  const Cuda& cuda() const { return cuda_; }

  std::string description() const override { return library_.description() + ", CUDA"; }
  const Sizes& sizes() const override { return bundle_.contract.sizes; }
  std::vector<float> vision(const float* pixel_values, int64_t tiles) override;
  std::vector<float> projector(const std::vector<float>& vision_features, int64_t tiles) override;

 private:
  const Bundle& bundle_;
  const Plan vision_plan_, projector_plan_;
  const Library library_;
  const Cuda cuda_;
  TilePlan vision_, projector_;
};

}  // namespace r1v::trt
