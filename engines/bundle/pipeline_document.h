// pipeline.json: from images and a conversation to the graphs' inputs, and from tokens back to an answer.
//
// Here is what the runner needs; prompt, tokenizer and tiling parse their own parts of `document`.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"

namespace r1v {

// How tokens are chosen where the caller does not say.
struct DefaultSampling {
  double temperature, top_p;
  int64_t top_k;
  double repetition_penalty;
  int64_t max_new_tokens;
};

// What of the bundle one target runs. Paths are inside `engines/<target>`.
struct EngineDocument {
  std::map<std::string, std::string> files;  // graph -> file
  Json options;
};

struct Pipeline {
  Json document;
  std::string tokenizer_definition;  // path inside the bundle
  std::vector<int64_t> stop_ids;
  std::pair<std::string, std::string> reasoning_tags;
  int64_t tokens_per_tile, image_token_id, max_positions;
  bool thinks;  // the family's prompts can open reasoning
  std::string image_policy;
  std::optional<DefaultSampling> default_sampling;
  std::map<std::string, EngineDocument> engines;  // by target
};

// Throws kBundle: another schema version, or a wrong field.
Pipeline parse_pipeline(Json document, const std::string& where);

}  // namespace r1v
