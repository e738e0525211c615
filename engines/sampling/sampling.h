// How the tokens of one answer are chosen and when it ends: r1v_export.Sampling.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"

namespace r1v {

struct Sampling {
  int64_t max_new_tokens = 512;
  double temperature = 0;  // divides the logits; 0 picks the likeliest token, and top_p, top_k, min_p, seed do nothing
  double top_p = 1;        // draw from the smallest set of likeliest tokens with this much probability; 1 is off
  int64_t top_k = 0;       // draw from this many likeliest tokens, and those equal to the last; 0 is off
  double min_p = 0;        // tokens less likely than this share of the likeliest one's are not drawn; 0 is off
  double repetition_penalty = 1;  // divides positive, multiplies negative logits of tokens in prompt or answer
  double presence_penalty = 0;    // taken off the logits of tokens in the answer
  double frequency_penalty = 0;   // the same for each time that they are in the answer
  std::vector<std::pair<int64_t, double>> logit_bias;  // token id -> what is added to its logit, before all else
  std::optional<uint64_t> seed = 0;                    // of this answer's random stream; nothing takes fresh entropy
  std::vector<std::string> stop;                       // the answer ends before the first of these strings
  bool stop_in_reasoning = false;                      // search all generated text for `stop`
  bool ignore_eos = false;                             // the model's stop tokens end no answer
  std::optional<int64_t> max_reasoning_tokens;         // the reasoning is ended, by its end tag, after so many
  std::optional<int64_t> logprobs;  // report the log probability of each token, and those of so many likeliest ones

  bool greedy() const { return temperature == 0; }
  // Throws kUsage, naming the field that is out of its range.
  void validate() const;
};

// `default_sampling` of pipeline.json, which must not be null. Throws kBundle, naming the field that is wrong.
Sampling sampling_from_json(const Json& json, const std::string& where);

}  // namespace r1v
