#include "runner/generation.h"

#include <algorithm>

#include "base/error.h"
#include "bundle/contract.h"
#include "runner/finite.h"

namespace r1v {
namespace {

int64_t image_tokens(const std::vector<int64_t>& ids, int64_t start, int64_t stop, int64_t image_token_id) {
  return std::count(ids.begin() + start, ids.begin() + stop, image_token_id);
}

}  // namespace

Generation::Generation(Shared shared, Prompt prompt, const Sampling& sampling, AnswerStream stream)
    : shared_(shared),
      prompt_(std::move(prompt)),
      sampler_(sampling, prompt_.token_ids, static_cast<size_t>(shared.engine.sizes().vocab)),
      stream_(std::move(stream)),
      max_new_tokens_(new_token_budget(prompt_tokens(), sampling.max_new_tokens, shared.max_positions)) {}

std::optional<AnswerEvent> Generation::next() {
  if (ended_) return std::nullopt;
  ended_ = true;  // unless this step ends well
  AnswerEvent event = step();
  ended_ = event.answer.has_value();
  if (ended_) {
    prompt_.timings.decode_steps = std::max<int64_t>(stream_.tokens() - 1, 0);
    cache_.reset();
  }
  return event;
}

AnswerEvent Generation::step() {
  if (cancelled_) return cancelled_event();
  const bool first = !last_token_.has_value();
  if (first && !encode_images()) return cancelled_event();
  const double embed_ms = prompt_.timings.embed_ms;
  double step_ms = 0;
  int64_t token_id = 0;
  {
    const Measure measure(&step_ms);
    const std::vector<float>* logits = first ? prefill() : &decode(*last_token_);
    if (logits == nullptr) return cancelled_event();
    token_id = sampler_.next(logits->data());
  }
  // Embedding the prompt is a stage of its own.
  (first ? prompt_.timings.prefill_ms : prompt_.timings.decode_ms) += step_ms - (prompt_.timings.embed_ms - embed_ms);
  last_token_ = token_id;
  std::optional<FinishReason> reason;
  if (stream_.is_stop(token_id)) {
    reason = FinishReason::kStop;
  } else if (stream_.tokens() + 1 >= max_new_tokens_) {
    reason = FinishReason::kLength;
  }
  return stream_.push(token_id, reason);
}

AnswerEvent Generation::cancelled_event() { return stream_.push(std::nullopt, FinishReason::kCancelled); }

bool Generation::encode_images() {
  const std::vector<ImageEmbeds> images =
      shared_.encoder.encode(prompt_.images, &prompt_.timings, [this] { return cancelled_.load(); });
  if (images.size() != prompt_.images.size()) return false;
  for (const ImageEmbeds& image : images) image_rows_.insert(image_rows_.end(), image->begin(), image->end());
  prompt_.images.clear();
  const auto rows = static_cast<int64_t>(image_rows_.size()) / shared_.engine.sizes().hidden;
  const int64_t tokens = image_tokens(prompt_.token_ids, 0, prompt_tokens(), prompt_.image_token_id);
  if (rows == tokens) return true;
  throw Error(
      Code::kInput, "The prompt's image tokens do not match the images.",
      {"embed", std::to_string(rows) + " image tokens, one for each image embedding", std::to_string(tokens), ""});
}

const std::vector<float>* Generation::prefill() {
  const int64_t hidden = shared_.engine.sizes().hidden;
  const int64_t capacity = plan_capacity(prompt_tokens() + max_new_tokens_, shared_.max_positions);
  cache_ = std::make_unique<KVCache>(shared_.engine.decoder(1, capacity), shared_.engine.sizes().vocab);
  const std::vector<float>* logits = nullptr;
  int64_t rows_before = 0;
  for (int64_t start = 0; start < prompt_tokens(); start += kPrefillChunk) {
    if (cancelled_) return nullptr;
    const int64_t stop = std::min(start + kPrefillChunk, prompt_tokens());
    const int64_t rows = image_tokens(prompt_.token_ids, start, stop, prompt_.image_token_id);
    const std::lock_guard<std::mutex> lock(shared_.decoding);
    inputs_embeds_.resize(static_cast<size_t>((stop - start) * hidden));
    {
      const Measure measure(&prompt_.timings.embed_ms);
      shared_.engine.embed(prompt_.token_ids.data() + start, 1, stop - start, image_rows_.data() + rows_before * hidden,
                           rows, inputs_embeds_.data());
    }
    require_finite(inputs_embeds_, contract::kEmbed);
    logits = &cache_->append(inputs_embeds_.data(), stop - start, {stop - start});
    rows_before += rows;
  }
  image_rows_ = {};
  return logits;
}

const std::vector<float>& Generation::decode(int64_t token_id) {
  const std::lock_guard<std::mutex> lock(shared_.decoding);
  inputs_embeds_.resize(static_cast<size_t>(shared_.engine.sizes().hidden));
  // Without rows of images, an image token that the model chose has the embedding of the table.
  shared_.engine.embed(&token_id, 1, 1, nullptr, 0, inputs_embeds_.data());
  return cache_->append(inputs_embeds_.data(), 1, {1});
}

}  // namespace r1v
