// One answer while it is made.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "runner/image_encoder.h"
#include "runner/kv_cache.h"
#include "runner/timings.h"
#include "sampling/sampler.h"
#include "text/answer.h"

namespace r1v {

// What decoding begins with.
struct Prompt {
  std::vector<int64_t> token_ids;  // an image token for each row of an image
  std::vector<Pixels> images;
  int64_t image_token_id;
  Timings timings;
};

// What all answers of a runner share.
struct Shared {
  Engine& engine;
  const ImageEncoder& encoder;
  std::mutex& decoding;  // held for a step
  int64_t max_positions;
};

// The steps of one request, each when the caller asks for it. `next` is for one thread at a time, `cancel` for any.
class Generation {
 public:
  // Throws kInput: the prompt leaves no room; kUsage: the sampling cannot be used.
  Generation(Shared shared, Prompt prompt, const Sampling& sampling, AnswerStream stream);

  // The next token's event, nothing after the last. Throws kInput, kGraph; the answer has ended then.
  std::optional<AnswerEvent> next();

  // Ends the answer with what it has, before its next step.
  void cancel() { cancelled_ = true; }

  int64_t prompt_tokens() const { return static_cast<int64_t>(prompt_.token_ids.size()); }
  // Of the answer so far.
  const Timings& timings() const { return prompt_.timings; }

 private:
  AnswerEvent step();
  AnswerEvent cancelled_event();
  // Puts the prompt into the cache; the logits after it, nothing if it was cancelled meanwhile.
  const std::vector<float>* prefill();
  const std::vector<float>& decode(int64_t token_id);
  // The embeddings of all image tokens, one row after the other.
  bool encode_images();

  Shared shared_;
  Prompt prompt_;
  Sampler sampler_;
  AnswerStream stream_;
  int64_t max_new_tokens_;
  std::unique_ptr<KVCache> cache_;
  std::vector<float> image_rows_, inputs_embeds_;
  std::optional<int64_t> last_token_;
  bool ended_ = false;
  std::atomic<bool> cancelled_{false};
};

}  // namespace r1v
