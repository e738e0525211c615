#include "backends/onnxruntime/vision.h"

#include <algorithm>

#include "bundle/contract.h"

namespace r1v::ort {

const GraphSession& LazySession::get(const Library& library, const Bundle& bundle, const Options& options,
                                     const char* graph, const DeviceOptions& device) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (session_ == nullptr) {
    session_ = std::make_unique<const GraphSession>(library, bundle, bundle.contract.graph(graph),
                                                    options.graphs.at(graph), device);
  }
  return *session_;
}

std::string describe(const Library& library, Device device) {
  const char* provider = device == Device::kCpu    ? "CPUExecutionProvider"
                         : device == Device::kCuda ? "CUDAExecutionProvider"
                                                   : "TensorrtExecutionProvider";
  return "onnxruntime " + library.version() + ", " + provider;
}

std::vector<float> OnnxRuntimeVision::vision(const float* pixel_values, int64_t tiles) {
  const GraphSession& session = vision_.get(library_, bundle_, graphs_.options, contract::kVision, graphs_.device);
  const Sizes& size = sizes();
  const int64_t tile = 3 * size.tile_size * size.tile_size;
  // Activations of more tiles do not fit into a CPU's caches.
  const int64_t most = graphs_.device.device == Device::kCpu
                           ? std::max<int64_t>(1, graphs_.options.image_tokens_per_run / size.tokens_per_tile)
                           : std::max<int64_t>(1, tiles);
  std::vector<float> features;
  for (int64_t start = 0; start < tiles; start += most) {
    const int64_t count = std::min(most, tiles - start);
    const Array pixels{pixel_values + start * tile, {count, 3, size.tile_size, size.tile_size}, ElementType::kFloat32};
    const std::vector<float> part = session.run({pixels}, {count, size.tokens_per_tile, size.vision_features});
    features.insert(features.end(), part.begin(), part.end());
  }
  return features;
}

std::vector<float> OnnxRuntimeVision::projector(const std::vector<float>& vision_features, int64_t tiles) {
  const Sizes& size = sizes();
  const Array features{
      vision_features.data(), {tiles, size.tokens_per_tile, size.vision_features}, ElementType::kFloat32};
  return projector_.get(library_, bundle_, graphs_.options, contract::kProjector, graphs_.device)
      .run({features}, {tiles, size.tokens_per_tile, size.hidden});
}

}  // namespace r1v::ort
