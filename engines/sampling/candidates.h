// The tokens that may be drawn.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "sampling/sampling.h"

namespace r1v {

// Tokens, and their probabilities, which are not renormalized.
struct Candidates {
  std::vector<int64_t> tokens;
  std::vector<double> probabilities;
};

// What temperature, top-k, top-p and min-p leave of logits [size].
Candidates candidates(const float* logits, size_t size, const Sampling& sampling);

// The sum as numpy adds it up, in the same order: in blocks of 128, eight at a time.
double pairwise_sum(const double* values, size_t size);

}  // namespace r1v
