#include "backends/tensorrt/vision.h"

#include <algorithm>

#include "bundle/contract.h"

namespace r1v::trt {
namespace {

// A GPU, after all that can be found wrong without one.
Cuda checked_gpu(const std::vector<const Plan*>& plans, const Library& library, int gpu) {
  for (const Plan* plan : plans) require_library(*plan, library.description());
  Cuda cuda(gpu);
  for (const Plan* plan : plans) require_gpu(*plan, cuda.compute_capability());
  return cuda;
}

std::vector<const Plan*> with(std::vector<const Plan*> plans, const std::vector<const Plan*>& others) {
  plans.insert(plans.end(), others.begin(), others.end());
  return plans;
}

}  // namespace

std::vector<float> TilePlan::run(const float* numbers, int64_t tiles) {
  const std::lock_guard<std::mutex> lock(mutex_);
  cuda_.select();
  if (session_ == nullptr) session_ = std::make_unique<Session>(bundle_, library_, cuda_, plan_);
  std::vector<float> result(static_cast<size_t>(tiles * output_.numbers));
  const int64_t most = plan_.max(kTiles);
  for (int64_t start = 0; start < tiles; start += most) {
    const int64_t count = std::min(most, tiles - start);
    BoundRun run(*session_, {{kTiles, count}});
    run.write(input_.name, numbers + start * input_.numbers, static_cast<size_t>(count * input_.numbers));
    run.run();
    run.read(output_.name, result.data() + start * output_.numbers, static_cast<size_t>(count * output_.numbers));
  }
  return result;
}

TensorRtVision::TensorRtVision(const Bundle& bundle, const std::string& library, int gpu,
                               const std::vector<const Plan*>& others)
    : bundle_(bundle),
      vision_plan_(read_plan(bundle, kTarget, contract::kVision)),
      projector_plan_(read_plan(bundle, kTarget, contract::kProjector)),
      library_(library),
      cuda_(checked_gpu(with({&vision_plan_, &projector_plan_}, others), library_, gpu)),
      vision_(bundle, library_, cuda_, vision_plan_,
              {contract::kPixelValues, 3 * sizes().tile_size * sizes().tile_size},
              {contract::kVisionFeatures, sizes().tokens_per_tile * sizes().vision_features}),
      projector_(bundle, library_, cuda_, projector_plan_,
                 {contract::kVisionFeatures, sizes().tokens_per_tile * sizes().vision_features},
                 {contract::kImageEmbeds, sizes().tokens_per_tile * sizes().hidden}) {}

std::vector<float> TensorRtVision::vision(const float* pixel_values, int64_t tiles) {
  return vision_.run(pixel_values, tiles);
}

// The vision plan gives image embeddings too; computing them once more costs less than finding out whose they are.
std::vector<float> TensorRtVision::projector(const std::vector<float>& vision_features, int64_t tiles) {
  return projector_.run(vision_features.data(), tiles);
}

}  // namespace r1v::trt
