#include "sampling/sampling.h"

#include <cmath>
#include <set>

#include "base/utf8.h"

namespace r1v {
namespace {

// The OpenAI API's limits.
constexpr double kMaxPenalty = 2, kMaxBias = 100;
constexpr int64_t kMaxLogprobs = 20;

template <typename Value>
void require(bool holds, const std::string& field, const std::string& expected, const Value& found) {
  if (holds) return;
  throw Error(Code::kUsage, field + " is out of range.", {"sampling." + field, expected, Json(found).dump(), ""});
}

}  // namespace

void Sampling::validate() const {
  require(max_new_tokens >= 1, "max_new_tokens", "at least 1", max_new_tokens);
  require(temperature >= 0 && std::isfinite(temperature), "temperature", "0 (greedy) or more", temperature);
  require(top_p > 0 && top_p <= 1, "top_p", "above 0 and at most 1", top_p);
  require(top_k >= 0, "top_k", "0 (off) or more", top_k);
  require(min_p >= 0 && min_p <= 1, "min_p", "0 (off) to 1", min_p);
  require(repetition_penalty > 0 && std::isfinite(repetition_penalty), "repetition_penalty", "above 0",
          repetition_penalty);
  require(std::abs(presence_penalty) <= kMaxPenalty, "presence_penalty", "-2 to 2", presence_penalty);
  require(std::abs(frequency_penalty) <= kMaxPenalty, "frequency_penalty", "-2 to 2", frequency_penalty);
  std::set<int64_t> biased;
  for (const auto& [id, bias] : logit_bias) {
    require(id >= 0 && std::abs(bias) <= kMaxBias, "logit_bias", "ids -> -100 to 100", bias);
    require(biased.insert(id).second, "logit_bias", "each id once", id);
  }
  const int64_t most_reasoning = max_reasoning_tokens.value_or(0), most_likely = logprobs.value_or(0);
  require(most_reasoning >= 0, "max_reasoning_tokens", "0 or more", most_reasoning);
  require(most_likely >= 0 && most_likely <= kMaxLogprobs, "logprobs", "0 to 20", most_likely);
  for (const std::string& text : stop) {
    require(!text.empty() && is_utf8(text), "stop", "strings in UTF-8 that are not empty", text.size());
  }
}

Sampling sampling_from_json(const Json& json, const std::string& where) {
  const Fields fields(json, where);
  Sampling sampling;
  sampling.temperature = fields.number("temperature");
  sampling.top_p = fields.number("top_p");
  sampling.top_k = fields.integer("top_k", 0, INT64_MAX);
  sampling.repetition_penalty = fields.number("repetition_penalty");
  sampling.max_new_tokens = fields.integer("max_new_tokens", 1, INT64_MAX);
  if (sampling.temperature < 0) throw_field(where + ".temperature", "0 or more", json);
  if (sampling.top_p <= 0 || sampling.top_p > 1) throw_field(where + ".top_p", "above 0 and at most 1", json);
  if (sampling.repetition_penalty <= 0) throw_field(where + ".repetition_penalty", "above 0", json);
  return sampling;
}

}  // namespace r1v
