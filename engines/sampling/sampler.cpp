#include "sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "sampling/candidates.h"

namespace r1v {
namespace {

uint64_t fresh_entropy() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

size_t argmax(const float* logits, size_t size) {
  return static_cast<size_t>(std::max_element(logits, logits + size) - logits);
}

void check_finite(const float* logits, size_t size) {
  const auto is_bad = [](float logit) { return std::isnan(logit) || logit == std::numeric_limits<float>::infinity(); };
  const auto bad = std::count_if(logits, logits + size, is_bad);
  if (bad == 0 && std::isfinite(logits[argmax(logits, size)])) return;
  const auto found = std::count_if(logits, logits + size, [](float logit) { return !std::isfinite(logit); });
  throw Error(
      Code::kGraph, "The decoder's logits are not finite.",
      {"decoder", "finite numbers", std::to_string(found) + " of " + std::to_string(size) + " are NaN or infinite",
       "run r1v-export check to find the first bad boundary, or build with --precision fp32"});
}

}  // namespace

Sampler::Sampler(const Sampling& sampling, const std::vector<int64_t>& prompt_ids, size_t vocab_size)
    : sampling_(sampling), random_(sampling.seed ? *sampling.seed : fresh_entropy()), seen_(vocab_size, false) {
  sampling_.validate();
  if (vocab_size == 0) throw Error(Code::kInternal, "A model has no vocabulary.");
  for (const auto& [id, bias] : sampling_.logit_bias) {
    if (static_cast<uint64_t>(id) < vocab_size) continue;
    throw Error(Code::kUsage, "logit_bias names a token that the model does not have.",
                {"sampling.logit_bias", "ids below " + std::to_string(vocab_size), std::to_string(id), ""});
  }
  for (const int64_t id : prompt_ids) see(id);
}

int64_t Sampler::next(const float* logits, std::optional<int64_t> forced) {
  check_finite(logits, seen_.size());
  const int64_t token = forced ? *forced : choose(penalize(logits));
  see(token);
  ++counts_[token];
  return token;
}

std::optional<TokenLogprobs> Sampler::logprobs(const float* logits, int64_t token) const {
  if (!sampling_.logprobs) return std::nullopt;
  return token_logprobs(logits, seen_.size(), token, *sampling_.logprobs);
}

void Sampler::see(int64_t token) {
  if (token >= 0 && static_cast<uint64_t>(token) < seen_.size()) {
    seen_[static_cast<size_t>(token)] = true;
    return;
  }
  throw Error(
      Code::kBundle, "The tokenizer has a token that the model does not have.",
      {"tokenizer", "ids below " + std::to_string(seen_.size()), std::to_string(token), "fetch the bundle again"});
}

const float* Sampler::penalize(const float* logits) {
  const bool counted = !counts_.empty() && (sampling_.presence_penalty != 0 || sampling_.frequency_penalty != 0);
  if (sampling_.logit_bias.empty() && sampling_.repetition_penalty == 1 && !counted) return logits;
  penalized_.assign(logits, logits + seen_.size());
  for (const auto& [id, bias] : sampling_.logit_bias) penalized_[static_cast<size_t>(id)] += static_cast<float>(bias);
  if (sampling_.repetition_penalty != 1) penalize_repetition();
  if (counted) {
    for (const auto& [id, count] : counts_) {
      const double penalty = sampling_.presence_penalty + sampling_.frequency_penalty * static_cast<double>(count);
      penalized_[static_cast<size_t>(id)] -= static_cast<float>(penalty);
    }
  }
  return penalized_.data();
}

void Sampler::penalize_repetition() {
  constexpr float kMax = std::numeric_limits<float>::max();
  constexpr float kMin = std::numeric_limits<float>::min();
  const auto penalty = static_cast<float>(std::clamp<double>(sampling_.repetition_penalty, kMin, kMax));
  for (size_t id = 0; id < penalized_.size(); ++id) {
    if (!seen_[id]) continue;
    const float logit = penalized_[id];
    // Beyond the type's range a penalized logit stays at its end.
    penalized_[id] = std::clamp(logit < 0 ? logit * penalty : logit / penalty, -kMax, kMax);
  }
}

int64_t Sampler::choose(const float* logits) {
  return sampling_.greedy() ? static_cast<int64_t>(argmax(logits, seen_.size())) : draw(logits);
}

int64_t Sampler::draw(const float* logits) {
  const Candidates left = candidates(logits, seen_.size(), sampling_);
  std::vector<double> cumulative(left.probabilities.size());
  double sum = 0;
  for (size_t index = 0; index < cumulative.size(); ++index) cumulative[index] = sum += left.probabilities[index];
  const double drawn = random_.random() * cumulative.back();
  const auto index = std::upper_bound(cumulative.begin(), cumulative.end(), drawn) - cumulative.begin();
  return left.tokens[std::min(static_cast<size_t>(index), left.tokens.size() - 1)];
}

}  // namespace r1v
