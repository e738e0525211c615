// Which slots of a decoder's cache hold which tokens, and how large a cache to ask for.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "backends/engine.h"

namespace r1v {

// Capacities are rounded up to a multiple of this, so that engines meet few different shapes.
inline constexpr int64_t kCapacityStep = 64;

// Prompt tokens per decoder step: bounds the memory that attention takes on long prompts.
inline constexpr int64_t kPrefillChunk = 512;

// A decoder and, for each row of its batch, how many tokens its cache holds. In one step every row is given S new
// tokens, of which the first new_tokens[b] are valid and the rest padding, which the tokens that come next overwrite.
class KVCache {
 public:
  explicit KVCache(std::unique_ptr<Decoder> decoder, int64_t vocab);

  Decoder& decoder() { return *decoder_; }
  int64_t length(int64_t row) const { return lengths_[static_cast<size_t>(row)]; }

  // Runs the decoder over inputs_embeds [B, seq, E] and keeps the tokens; logits [B, V] after each row's last valid
  // one, in a buffer that the next call overwrites. B is the size of `new_tokens`; the rows are the cache's from
  // `first_row` on. Throws kInput: the tokens do not fit; kGraph: the engine fails.
  const std::vector<float>& append(const float* inputs_embeds, int64_t seq, const std::vector<int64_t>& new_tokens,
                                   int64_t first_row = 0);

  // Forgets a row's tokens from `length` on.
  void truncate(int64_t row, int64_t length);
  // Lets `target` hold the first `length` tokens of `source`, and no others.
  void copy_row(int64_t source, int64_t target, int64_t length);
  void swap_rows(int64_t a, int64_t b);
  // Changes the number of rows, and of slots of each; tokens that still have a slot stay.
  void resize(int64_t rows, int64_t capacity);

 private:
  std::unique_ptr<Decoder> decoder_;
  int64_t vocab_;
  std::vector<int64_t> lengths_;
  std::vector<float> logits_;
};

// Cache slots to ask for to hold `tokens` tokens, of which there are at most `max_positions`.
int64_t plan_capacity(int64_t tokens, int64_t max_positions);

// How many tokens may follow a prompt: what is asked for, as far as the model has positions.
// Throws kInput: the prompt has no tokens, or takes all positions.
int64_t new_token_budget(int64_t prompt_tokens, int64_t max_new_tokens, int64_t max_positions);

}  // namespace r1v
