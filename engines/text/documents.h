// What pipeline.json says of text: r1v_export/serialized/pipeline.py, field by field.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"

namespace r1v {

// Bound of token ids (r1v_export/processing/tokenizer_files.py).
inline constexpr int64_t kMaxTokenId = (int64_t{1} << 24) - 1;

// A token that text never becomes: only the prompt's pieces and the model make it.
struct AddedToken {
  std::string token;
  int64_t id;
  bool hidden;  // omitted from decoded text
};

struct TokenizerDocument {
  std::string definition;  // the file in the bundle
  std::vector<AddedToken> added_tokens;
};

// One token, by its id.
struct TokenPiece {
  std::string token;
  int64_t id;
};

// Text, or a token where `is_token`.
struct PromptPiece {
  bool is_token;
  std::string text;  // of a token: its name
  int64_t id;        // of text: none
};
using Pieces = std::vector<PromptPiece>;

// What stands before and after the text of a turn.
struct Frame {
  Pieces before, after;
};

struct PastAnswer {
  std::string starts_after, strip_leading;
};

struct ImageTokens {
  std::string placeholder, default_position;
  TokenPiece start, context, end;
  int64_t tokens_per_tile;
};

struct PromptDocument {
  Pieces begin;
  Frame system, user, assistant;
  std::string default_system;
  Pieces thinking;
  PastAnswer past_answer;
  ImageTokens images;
  std::vector<TokenPiece> grounding_tokens;
};

struct ReasoningTags {
  std::string start, end;
};

// `where` names the object, such as "pipeline.json: prompt". All throw kBundle, naming the field that is wrong.
TokenizerDocument tokenizer_from_json(const Json& json, const std::string& where);
PromptDocument prompt_from_json(const Json& json, const std::string& where);
ReasoningTags reasoning_from_json(const Json& json, const std::string& where);
// The ids of `stop_tokens`, sorted.
std::vector<int64_t> stop_ids_from_json(const Json& json, const std::string& where);

}  // namespace r1v
