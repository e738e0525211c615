// From logits to a token: greedy or drawn, reproducible by seed whatever else is in the batch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "sampling/logprobs.h"
#include "sampling/pcg64.h"
#include "sampling/sampling.h"

namespace r1v {

// Chooses the tokens of one sequence, which has its own random stream and draws one number per token. The processors
// and their order: bias, repetition penalty, presence and frequency penalties, temperature, top-k, top-p, min-p.
class Sampler {
 public:
  // Throws kUsage: a setting is out of its range, or a bias is for a token that there is not. Throws kBundle: the
  // prompt has a token beyond the vocabulary.
  Sampler(const Sampling& sampling, const std::vector<int64_t>& prompt_ids, size_t vocab_size);

  // The next token, given the logits [vocab_size] after all tokens so far, which are not changed.
  // `forced`: the token that is to come, whatever the logits say.
  // Throws kGraph: they hold NaN or infinity. Throws kBundle: the model has no such token.
  int64_t next(const float* logits, std::optional<int64_t> forced = std::nullopt);
  // Of a token chosen by these logits, where the sampling asks for them.
  std::optional<TokenLogprobs> logprobs(const float* logits, int64_t token) const;

 private:
  void see(int64_t token);
  // The logits with bias and penalties; `logits` itself where there are none.
  const float* penalize(const float* logits);
  void penalize_repetition();
  int64_t choose(const float* logits);
  int64_t draw(const float* logits);

  Sampling sampling_;
  Pcg64 random_;
  std::vector<bool> seen_;
  std::map<int64_t, int64_t> counts_;  // of the answer's tokens
  std::vector<float> penalized_;
};

}  // namespace r1v
