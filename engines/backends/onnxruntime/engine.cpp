#include "backends/onnxruntime/engine.h"

#include <algorithm>
#include <cstring>

#include "backends/onnxruntime/decoder.h"
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

OnnxRuntimeEngine::OnnxRuntimeEngine(const Bundle& bundle, const std::string& target, const std::string& library,
                                     const DeviceOptions& device)
    : bundle_(bundle),
      target_(target),
      library_(Library::open(library)),
      device_(device),
      options_(parse_options(bundle, target)) {
  // What every answer needs is opened here, so that a bundle that cannot be run is refused at once.
  session(embed_, contract::kEmbed);
  session(decoder_, contract::kDecoder);
}

std::string OnnxRuntimeEngine::description() const {
  const char* provider = device_.device == Device::kCpu    ? "CPUExecutionProvider"
                         : device_.device == Device::kCuda ? "CUDAExecutionProvider"
                                                           : "TensorrtExecutionProvider";
  return "onnxruntime " + library_.version() + ", " + provider;
}

const GraphSession& OnnxRuntimeEngine::session(LazySession& lazy, const char* graph) {
  return lazy.get(library_, bundle_, options_, graph, device_);
}

std::vector<float> OnnxRuntimeEngine::vision(const float* pixel_values, int64_t tiles) {
  const GraphSession& session = this->session(vision_, contract::kVision);
  const Sizes& size = sizes();
  const int64_t tile = 3 * size.tile_size * size.tile_size;
  // Activations of more tiles do not fit into a CPU's caches.
  const int64_t most = device_.device == Device::kCpu
                           ? std::max<int64_t>(1, options_.image_tokens_per_run / size.tokens_per_tile)
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

std::vector<float> OnnxRuntimeEngine::projector(const std::vector<float>& vision_features, int64_t tiles) {
  const Sizes& size = sizes();
  const Array features{
      vision_features.data(), {tiles, size.tokens_per_tile, size.vision_features}, ElementType::kFloat32};
  return session(projector_, contract::kProjector).run({features}, {tiles, size.tokens_per_tile, size.hidden});
}

void OnnxRuntimeEngine::embed(const int64_t* input_ids, int64_t rows, int64_t seq, const float* image_embeds,
                              int64_t image_tokens, float* inputs_embeds) {
  const Array ids{input_ids, {rows, seq}, ElementType::kInt64};
  const Array images{image_embeds, {image_tokens, sizes().hidden}, ElementType::kFloat32};
  const std::vector<float> embeds = session(embed_, contract::kEmbed).run({ids, images}, {rows, seq, sizes().hidden});
  std::memcpy(inputs_embeds, embeds.data(), embeds.size() * sizeof(float));
}

std::unique_ptr<Decoder> OnnxRuntimeEngine::decoder(int64_t batch, int64_t capacity) {
  return std::make_unique<OnnxRuntimeDecoder>(session(decoder_, contract::kDecoder), sizes(), batch, capacity, device_);
}

CacheLimits OnnxRuntimeEngine::cache_limits() {
  const auto bytes = static_cast<int64_t>(element_bytes(session(decoder_, contract::kDecoder).compute()));
  const Sizes& size = sizes();
  return {2 * size.layers * size.kv_heads * size.head_dim * bytes, std::nullopt, std::nullopt,
          device_.device == Device::kCpu};
}

}  // namespace r1v::ort
