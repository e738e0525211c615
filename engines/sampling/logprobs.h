// How likely the model itself held a token to be, before any setting of the sampling.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace r1v {

struct TokenLogprobs {
  double logprob;                               // of the chosen token
  std::vector<std::pair<int64_t, double>> top;  // ids and log probabilities of the likeliest tokens, these first
};

// Of a chosen token, and of the `count` likeliest ones, by the logits [size] it was chosen from. Tokens that are
// equally likely come in the order of their ids.
TokenLogprobs token_logprobs(const float* logits, size_t size, int64_t token, int64_t count);

}  // namespace r1v
