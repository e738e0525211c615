#include "backends/tensorrt/engine.h"

#include <algorithm>

#include "backends/tensorrt/decoder.h"
#include "bundle/contract.h"

namespace r1v::trt {
namespace {

constexpr size_t kAlignmentBytes = 256;  // of a tensor's address, as TensorRT asks for

// A GPU, after all that can be found wrong without one.
Cuda checked_gpu(const std::vector<const Plan*>& plans, const Library& library, int gpu) {
  for (const Plan* plan : plans) require_library(*plan, library.description());
  Cuda cuda(gpu);
  for (const Plan* plan : plans) require_gpu(*plan, cuda.compute_capability());
  return cuda;
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

TensorRtEngine::TensorRtEngine(const Bundle& bundle, const std::string& library, int gpu)
    : bundle_(bundle),
      vision_plan_(read_plan(bundle, target_, contract::kVision)),
      projector_plan_(read_plan(bundle, target_, contract::kProjector)),
      decoder_plan_(read_plan(bundle, target_, contract::kDecoder)),
      slots_(slots_of(decoder_plan_, sizes())),
      table_(bundle),
      library_(library),
      cuda_(checked_gpu({&vision_plan_, &projector_plan_, &decoder_plan_}, library_, gpu)),
      vision_(bundle, library_, cuda_, vision_plan_,
              {contract::kPixelValues, 3 * sizes().tile_size * sizes().tile_size},
              {contract::kVisionFeatures, sizes().tokens_per_tile * sizes().vision_features}),
      projector_(bundle, library_, cuda_, projector_plan_,
                 {contract::kVisionFeatures, sizes().tokens_per_tile * sizes().vision_features},
                 {contract::kImageEmbeds, sizes().tokens_per_tile * sizes().hidden}),
      // Loaded here, so that a bundle that cannot be run is refused at once.
      decoder_(bundle, library_, cuda_, decoder_plan_) {}

std::vector<float> TensorRtEngine::vision(const float* pixel_values, int64_t tiles) {
  return vision_.run(pixel_values, tiles);
}

// The vision plan gives image embeddings too; computing them once more costs less than finding out whose they are.
std::vector<float> TensorRtEngine::projector(const std::vector<float>& vision_features, int64_t tiles) {
  return projector_.run(vision_features.data(), tiles);
}

void TensorRtEngine::embed(const int64_t* input_ids, int64_t rows, int64_t seq, const float* image_embeds,
                           int64_t image_tokens, float* inputs_embeds) {
  table_.look_up(input_ids, rows * seq, image_embeds, image_tokens, inputs_embeds);
}

std::unique_ptr<Decoder> TensorRtEngine::decoder(int64_t batch, int64_t capacity) {
  return std::make_unique<TensorRtDecoder>(decoder_, sizes(), batch, capacity);
}

CacheLimits TensorRtEngine::cache_limits() {
  const Sizes& size = sizes();
  const auto bytes =
      static_cast<int64_t>(element_bytes(decoder_plan_.binding(cache_name(contract::kPastKey, 0)).dtype));
  const int64_t row_bytes = size.kv_heads * slots_ * size.head_dim * bytes;
  // A step may begin at any row, whose memory has to be aligned.
  const int64_t rows = row_bytes % static_cast<int64_t>(kAlignmentBytes) == 0 ? decoder_plan_.max(kBatch) : 1;
  return {2 * size.layers * size.kv_heads * size.head_dim * bytes, rows, slots_};
}

}  // namespace r1v::trt
