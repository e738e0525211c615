#include "text/documents.h"

#include <algorithm>

namespace r1v {
namespace {

constexpr int64_t kMaxTokensPerTile = 1 << 20;

// Calls `read(item, where)` for each item of a list.
template <typename Read>
void each(const Json& list, const std::string& where, Read read) {
  if (!list.is_array()) throw_field(where, "a list", list);
  size_t index = 0;
  for (const Json& item : list) read(item, where + "." + std::to_string(index++));
}

std::string text_that_is_not_empty(const Fields& fields, const std::string& name) {
  std::string text = fields.text(name);
  if (text.empty()) throw_field(fields.where() + "." + name, "a text that is not empty", text);
  return text;
}

TokenPiece token_piece(const Json& json, const std::string& where) {
  const Fields fields(json, where);
  return {text_that_is_not_empty(fields, "token"), fields.integer("id", 0, kMaxTokenId)};
}

Pieces pieces(const Fields& parent, const std::string& name) {
  Pieces read;
  each(parent.at(name), parent.where() + "." + name, [&](const Json& item, const std::string& where) {
    const Fields fields(item, where);
    if (fields.has("text")) {
      read.push_back({false, fields.text("text"), 0});
    } else {
      const TokenPiece token = token_piece(item, where);
      read.push_back({true, token.token, token.id});
    }
  });
  return read;
}

Frame frame(const Fields& prompt, const std::string& name) {
  const Fields fields = prompt.object(name);
  return {pieces(fields, "before"), pieces(fields, "after")};
}

ImageTokens image_tokens(const Fields& prompt) {
  const Fields fields = prompt.object("images");
  const auto token = [&](const std::string& name) { return token_piece(fields.at(name), fields.where() + "." + name); };
  const std::string placeholder = text_that_is_not_empty(fields, "placeholder");
  const std::string position = fields.text("default_position");
  if (position.find(placeholder) == std::string::npos || position.find(placeholder) != position.rfind(placeholder)) {
    throw_field(fields.where() + ".default_position", "a text with one placeholder", position);
  }
  return {placeholder,      position,     token("start"),
          token("context"), token("end"), fields.integer("tokens_per_tile", 1, kMaxTokensPerTile)};
}

}  // namespace

TokenizerDocument tokenizer_from_json(const Json& json, const std::string& where) {
  const Fields fields(json, where);
  TokenizerDocument document{fields.text("definition"), {}};
  each(fields.at("added_tokens"), where + ".added_tokens", [&](const Json& item, const std::string& place) {
    const TokenPiece token = token_piece(item, place);
    document.added_tokens.push_back({token.token, token.id, Fields(item, place).flag("hidden")});
  });
  return document;
}

PromptDocument prompt_from_json(const Json& json, const std::string& where) {
  const Fields fields(json, where);
  const Fields past = fields.object("past_answer");
  PromptDocument document{pieces(fields, "begin"),
                          frame(fields, "system"),
                          frame(fields, "user"),
                          frame(fields, "assistant"),
                          fields.text("default_system"),
                          pieces(fields, "thinking"),
                          {past.text("starts_after"), past.text("strip_leading")},
                          image_tokens(fields),
                          {}};
  each(fields.at("grounding_tokens"), where + ".grounding_tokens", [&](const Json& item, const std::string& place) {
    document.grounding_tokens.push_back(token_piece(item, place));
  });
  return document;
}

ReasoningTags reasoning_from_json(const Json& json, const std::string& where) {
  const Fields fields(json, where);
  return {text_that_is_not_empty(fields, "start"), text_that_is_not_empty(fields, "end")};
}

std::vector<int64_t> stop_ids_from_json(const Json& json, const std::string& where) {
  std::vector<int64_t> ids;
  each(json, where, [&](const Json& item, const std::string& place) {
    ids.push_back(Fields(item, place).integer("id", 0, kMaxTokenId));
  });
  std::sort(ids.begin(), ids.end());
  return ids;
}

}  // namespace r1v
