#include "sampling/candidates.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

namespace r1v {
namespace {

// All tokens, or the top_k likeliest and those equal to the last of them.
std::vector<int64_t> top_k(const float* logits, size_t size, int64_t k) {
  std::vector<int64_t> tokens;
  if (k == 0 || static_cast<uint64_t>(k) >= size) {
    tokens.resize(size);
    std::iota(tokens.begin(), tokens.end(), 0);
    return tokens;
  }
  std::vector<float> sorted(logits, logits + size);
  const auto kth = sorted.begin() + static_cast<std::ptrdiff_t>(k - 1);
  std::nth_element(sorted.begin(), kth, sorted.end(), std::greater<>());
  for (size_t id = 0; id < size; ++id) {
    if (logits[id] >= *kth) tokens.push_back(static_cast<int64_t>(id));
  }
  return tokens;
}

std::vector<double> softmax(const float* logits, const std::vector<int64_t>& tokens, double temperature) {
  std::vector<double> probabilities(tokens.size());
  std::transform(tokens.begin(), tokens.end(), probabilities.begin(), [&](int64_t id) { return logits[id]; });
  const double best = *std::max_element(probabilities.begin(), probabilities.end());
  for (double& value : probabilities) value = std::exp((value - best) / temperature);
  const double sum = pairwise_sum(probabilities.data(), probabilities.size());
  for (double& value : probabilities) value /= sum;
  return probabilities;
}

Candidates take(const Candidates& from, const std::vector<size_t>& indices) {
  Candidates taken;
  for (const size_t index : indices) {
    taken.tokens.push_back(from.tokens[index]);
    taken.probabilities.push_back(from.probabilities[index]);
  }
  return taken;
}

// Indices, likeliest first, of the smallest set that holds at least `top_p`.
std::vector<size_t> nucleus(const std::vector<double>& probabilities, double top_p) {
  // All entries below this bound together hold less than 1 - top_p, so none is in the nucleus: no need to sort them.
  const double bound = (1 - top_p) / static_cast<double>(probabilities.size());
  std::vector<size_t> ordered;
  for (size_t index = 0; index < probabilities.size(); ++index) {
    if (probabilities[index] >= bound) ordered.push_back(index);
  }
  std::stable_sort(ordered.begin(), ordered.end(),
                   [&](size_t a, size_t b) { return probabilities[a] > probabilities[b]; });
  double sum = 0;
  std::vector<size_t> kept;
  for (const size_t index : ordered) {
    sum += probabilities[index];
    if (sum - probabilities[index] < top_p) kept.push_back(index);  // The likeliest always stays.
  }
  return kept;
}

std::vector<size_t> likely(const std::vector<double>& probabilities, double min_p) {
  const double least = min_p * *std::max_element(probabilities.begin(), probabilities.end());
  std::vector<size_t> kept;
  for (size_t index = 0; index < probabilities.size(); ++index) {
    if (probabilities[index] >= least) kept.push_back(index);
  }
  return kept;
}

}  // namespace

Candidates candidates(const float* logits, size_t size, const Sampling& sampling) {
  Candidates left;
  left.tokens = top_k(logits, size, sampling.top_k);
  left.probabilities = softmax(logits, left.tokens, sampling.temperature);
  if (sampling.top_p < 1) left = take(left, nucleus(left.probabilities, sampling.top_p));
  if (sampling.min_p > 0) left = take(left, likely(left.probabilities, sampling.min_p));
  return left;
}

double pairwise_sum(const double* values, size_t size) {
  constexpr size_t kBlock = 128, kUnrolled = 8;
  if (size < kUnrolled) return std::accumulate(values, values + size, -0.0);
  if (size > kBlock) {
    const size_t half = size / 2 - size / 2 % kUnrolled;
    return pairwise_sum(values, half) + pairwise_sum(values + half, size - half);
  }
  double sums[kUnrolled];
  std::copy_n(values, kUnrolled, sums);
  size_t index = kUnrolled;
  for (; index < size - size % kUnrolled; index += kUnrolled) {
    for (size_t lane = 0; lane < kUnrolled; ++lane) sums[lane] += values[index + lane];
  }
  const double sum = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
  return std::accumulate(values + index, values + size, sum);
}

}  // namespace r1v
