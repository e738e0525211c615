// pipeline.json: from images and a conversation to the graphs' inputs, and from tokens back to an answer.
//
// Here is what the runner needs; prompt, tokenizer and tiling parse their own parts of `document`.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "base/json.h"

namespace r1v {

// What of the bundle one target runs. Paths are inside `engines/<target>`.
struct EngineDocument {
  std::map<std::string, std::string> files;  // graph -> file
  Json options;
};

struct Pipeline {
  Json document;
  std::string tokenizer_definition;  // path inside the bundle
  int64_t tokens_per_tile, image_token_id, max_positions;
  std::map<std::string, EngineDocument> engines;  // by target
};

// Throws kBundle: another schema version, or a wrong field.
Pipeline parse_pipeline(Json document, const std::string& where);

}  // namespace r1v
