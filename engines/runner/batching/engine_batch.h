// Continuous batching over an engine: prompts in chunks, each on its own row, between steps that decode all others.
#pragma once

#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <variant>
#include <vector>

#include "backends/engine.h"
#include "runner/batching/cache_rows.h"
#include "runner/batching/options.h"
#include "runner/timings.h"
#include "sampling/sampler.h"
#include "text/answer.h"

namespace r1v {

// A prompt whose images are encoded.
struct EncodedPrompt {
  std::vector<int64_t> token_ids;  // an image token for each row of an image
  std::vector<EmbeddedImage> images;
  int64_t image_token_id;
};

// A request that has a row.
class RowState {
 public:
  // Throws kUsage: the sampling cannot be used.
  RowState(const EncodedPrompt& prompt, TokenSequence tokens, CacheRow* row, const Sampling& sampling,
           int64_t max_new_tokens, int64_t vocab, AnswerStream* stream, Timings* timings);

 private:
  friend class EngineBatch;

  AnswerStream& stream_;
  Timings& timings_;
  const TokenSequence tokens_;  // of the prompt
  CacheRow* const row_;
  Sampler sampler_;
  const int64_t max_new_tokens_, image_token_id_;
  std::vector<float> image_rows_;  // embeddings of all images, until the prompt is in the cache
  int64_t computed_ = 0;           // prompt tokens that went through the decoder for this request
  int64_t last_token_ = -1;
  double embed_ms_;  // counted when the step began
};

// Requests over one engine. Each step decodes one token of every request whose prompt is in the cache, and prefills a
// chunk of the next prompt, or of several short ones; prompts take turns. One thread at a time.
class EngineBatch {
 public:
  // What a step has for a request: its next event, or its error, which ends it.
  struct Outcome {
    RowState* state;
    std::variant<AnswerEvent, std::exception_ptr> result;
  };

  EngineBatch(Engine& engine, int64_t max_positions, const BatchingOptions& options);

  // Gives a request a row; null while there is none. `stream` and `timings` are the request's and outlive its row.
  // Throws kInput: the request can never have one; kUsage: its sampling cannot be used.
  RowState* admit(const EncodedPrompt& prompt, const Sampling& sampling, AnswerStream* stream, Timings* timings);
  // Goes one token on. Requests whose outcome is their last have no row after it.
  std::vector<Outcome> step();
  // Takes a request's row.
  void drop(RowState* state);
  // Takes all rows and frees the cache.
  void clear();

  bool empty() const { return decoding_.empty() && prefilling_.empty(); }
  // What was counted, and the cache's size now.
  BatchingStats stats() const;

 private:
  using States = std::vector<std::unique_ptr<RowState>>;

  void decode(std::vector<Outcome>* outcomes);
  void prefill(std::vector<Outcome>* outcomes);
  // Puts prompt tokens start ... stop - 1 into the row; logits after the last of them.
  const float* append_chunk(RowState* state, int64_t start, int64_t stop);
  void start(RowState* state);
  // Chooses the next token by logits, or finds why there is none.
  void take(RowState* state, const float* logits, std::vector<Outcome>* outcomes);
  void add_time(double step_ms, const std::vector<RowState*>& running);

  Engine& engine_;
  const int64_t max_positions_, prefill_chunk_;
  CacheRows rows_;
  States states_;
  std::vector<RowState*> decoding_;
  std::deque<RowState*> prefilling_;
  std::vector<float> embeds_;
  BatchingStats counted_;
};

}  // namespace r1v
