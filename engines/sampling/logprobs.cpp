#include "sampling/logprobs.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "sampling/candidates.h"

namespace r1v {

TokenLogprobs token_logprobs(const float* logits, size_t size, int64_t token, int64_t count) {
  std::vector<double> scores(logits, logits + size), odds(size);
  const double best = *std::max_element(scores.begin(), scores.end());
  for (double& score : scores) score -= best;
  std::transform(scores.begin(), scores.end(), odds.begin(), [](double score) { return std::exp(score); });
  const double sum = std::log(pairwise_sum(odds.data(), size));
  for (double& score : scores) score -= sum;

  std::vector<int64_t> ids(size);
  std::iota(ids.begin(), ids.end(), 0);
  const auto end = ids.begin() + std::min(count, static_cast<int64_t>(size));
  const auto score = [&](int64_t id) { return scores[static_cast<size_t>(id)]; };
  std::partial_sort(ids.begin(), end, ids.end(),
                    [&](int64_t a, int64_t b) { return score(a) != score(b) ? score(a) > score(b) : a < b; });
  TokenLogprobs logprobs{score(token), {}};
  std::for_each(ids.begin(), end, [&](int64_t id) { logprobs.top.emplace_back(id, score(id)); });
  return logprobs;
}

}  // namespace r1v
