#include "backends/onnxruntime/engine.h"

#include <cstring>

#include "backends/onnxruntime/decoder.h"
#include "bundle/contract.h"

namespace r1v::ort {

OnnxRuntimeEngine::OnnxRuntimeEngine(const Bundle& bundle, const std::string& target, const std::string& library,
                                     const DeviceOptions& device, const std::string& vision_target,
                                     const std::function<void(const std::string&)>& warn)
    : bundle_(bundle),
      target_(target),
      library_(Library::open(library)),
      device_(device),
      options_(parse_options(bundle, target)),
      vision_(bundle, library_, choose_images(bundle, target, options_, device, vision_target, warn)) {
  // What every answer needs is opened here, so that a bundle that cannot be run is refused at once.
  session(embed_, contract::kEmbed);
  session(decoder_, contract::kDecoder);
}

std::string OnnxRuntimeEngine::description() const {
  const std::string images = vision_.products();
  return describe(library_, device_.device) + (images.empty() ? "" : ", images in " + images);
}

const GraphSession& OnnxRuntimeEngine::session(LazySession& lazy, const char* graph) {
  return lazy.get(library_, bundle_, options_, graph, device_);
}

void OnnxRuntimeEngine::embed(const int64_t* input_ids, int64_t rows, int64_t seq, const float* image_embeds,
                              int64_t image_tokens, float* inputs_embeds) {
  const Array ids{input_ids, {rows, seq}, ElementType::kInt64};
  const Array images{image_embeds, {image_tokens, sizes().hidden}, ElementType::kFloat32};
  const std::vector<float> embeds = session(embed_, contract::kEmbed).run({ids, images}, {rows, seq, sizes().hidden});
  std::memcpy(inputs_embeds, embeds.data(), embeds.size() * sizeof(float));
}

std::unique_ptr<Decoder> OnnxRuntimeEngine::decoder(int64_t batch, int64_t capacity) {
  const int64_t most_slots = options_.attention_stops_at_length ? bundle_.pipeline.max_positions : 0;
  return std::make_unique<OnnxRuntimeDecoder>(session(decoder_, contract::kDecoder), sizes(), batch, capacity, device_,
                                              most_slots);
}

CacheLimits OnnxRuntimeEngine::cache_limits() {
  const auto bytes = static_cast<int64_t>(element_bytes(session(decoder_, contract::kDecoder).cache()));
  const Sizes& size = sizes();
  return {2 * size.layers * size.kv_heads * size.head_dim * bytes, std::nullopt, std::nullopt,
          device_.device == Device::kCpu};
}

}  // namespace r1v::ort
