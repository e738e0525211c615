#include "backends/tensorrt/engine.h"

#include "backends/tensorrt/decoder.h"
#include "bundle/contract.h"

namespace r1v::trt {
namespace {

constexpr size_t kAlignmentBytes = 256;  // of a tensor's address, as TensorRT asks for

}  // namespace

TensorRtEngine::TensorRtEngine(const Bundle& bundle, const std::string& library, int gpu)
    : bundle_(bundle),
      decoder_plan_(read_plan(bundle, target_, contract::kDecoder)),
      slots_(slots_of(decoder_plan_, sizes())),
      table_(bundle),
      vision_(bundle, library, gpu, {&decoder_plan_}),
      // Loaded here, so that a bundle that cannot be run is refused at once.
      decoder_(bundle, vision_.library(), vision_.cuda(), decoder_plan_) {}

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
