// Continuous batching over an engine: prompts in chunks, each on its own row, between steps that decode all others.
#pragma once

#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <optional>
#include <variant>
#include <vector>

#include "backends/engine.h"
#include "runner/batching/batch.h"
#include "runner/batching/cache_rows.h"
#include "sampling/sampler.h"

namespace r1v {

// A request that has a row, or waits for one again.
class RowState : public RequestState {
 public:
  // Throws kInput: the prompt's image tokens do not match its images; kUsage: the sampling cannot be used.
  RowState(const EncodedPrompt& prompt, const Sampling& sampling, int64_t max_new_tokens, const Sizes& sizes,
           AnswerStream* stream, Timings* timings);

 private:
  friend class EngineBatch;

  // A token that was chosen.
  struct Choice {
    int64_t token_id;
    std::optional<TokenLogprobs> logprobs;
  };

  // Tokens of its prompt and its longest answer.
  int64_t most_tokens() const { return prompt_tokens_ + max_new_tokens_; }
  // Lets `tokens_` be all that its row has to hold, prompt and answer, for it to be decoded further.
  void recall();
  // Embeddings of the image tokens among the prompt's tokens start ... stop - 1.
  std::vector<float> image_rows(int64_t start, int64_t stop, int64_t hidden) const;
  // The next token, by the logits or, where its reasoning is to end now, of the end tag. Throws kGraph.
  Choice choose(const float* logits);
  // Adds the next token to the answer.
  AnswerEvent take(const Choice& choice);
  // Counts a step's time, of which embedding the prompt is a stage of its own.
  void add_time(double step_ms);

  AnswerStream& stream_;
  Timings& timings_;
  TokenSequence tokens_;  // its prompt, to which `recall` adds its answer
  const std::vector<EmbeddedImage> images_;
  CacheRow* row_ = nullptr;
  Sampler sampler_;
  const int64_t prompt_tokens_, max_new_tokens_, image_token_id_;
  bool prefilled_ = false;  // all of `tokens_` is in the cache, so that the request is decoded
  int64_t computed_ = 0;    // prompt tokens that went through the decoder for this request
  double embed_ms_;         // counted when the step began
};

// Requests over one engine. Each step runs the decoder once: it decodes one token of every request whose prompt is in
// the cache, or prefills tokens of one prompt, so that every token is handed out as soon as it is known. One thread at
// a time.
//
// Rows take what is used of the cache, and not what answers may come to: that may be the model's whole context. Where a
// row needs more than the budget has left, the request that was admitted last gives up its row. It gets one again
// before any new request does, and its prompt and answer so far are prefilled there. The oldest request never waits,
// so each one ends.
class EngineBatch : public Batch {
 public:
  EngineBatch(Engine& engine, int64_t max_positions, const BatchingOptions& options);

  // Gives a request a row; null while there is none.
  RowState* admit(const EncodedPrompt& prompt, const Sampling& sampling, AnswerStream* stream,
                  Timings* timings) override;
  std::vector<Outcome> step() override;
  void drop(RequestState* state) override;
  void clear() override;

  bool empty() const override { return holding_.empty() && preempted_.empty(); }
  BatchingStats stats() const override;

 private:
  using States = std::deque<std::unique_ptr<RowState>>;
  // A request that took a token in a step, or failed in it.
  struct Taken {
    RowState* state;
    std::variant<RowState::Choice, std::exception_ptr> choice;
  };

  std::vector<RowState*> running() const;
  void preempt_youngest();
  void make_room();
  void resume();
  void decode(std::vector<Taken>* taken);
  RowState* next_to_prefill();
  int64_t chunk(const RowState& state) const;
  void prefill(RowState* state, std::vector<Taken>* taken);
  // Puts tokens start ... stop - 1 into the row; logits after the last of them.
  const float* append_chunk(RowState* state, int64_t start, int64_t stop);
  // Writes embeddings of tokens start ... stop - 1, with the images that the prompt has among them, to embeds_.
  void embed(const RowState& state, int64_t start, int64_t stop);
  void start(RowState* state);
  static void choose(RowState* state, const float* logits, std::vector<Taken>* taken);

  Engine& engine_;
  const int64_t max_positions_, prefill_chunk_;
  CacheRows rows_;
  States holding_;    // requests with a row, the oldest first
  States preempted_;  // gave up their row, the oldest first; all are younger than those that have one
  bool shortest_next_ = false;
  int64_t prefill_room_;  // prompt tokens that may be prefilled before others are decoded
  std::vector<float> embeds_;
  BatchingStats counted_;
};

}  // namespace r1v
