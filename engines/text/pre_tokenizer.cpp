#include "text/pre_tokenizer.h"

#include <utility>

#include "text/unsupported.h"

namespace r1v {
namespace {

// GPT-2's words. Source: tokenizers, pre_tokenizers/byte_level.rs.
constexpr char kByteLevelPattern[] = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

}  // namespace

PreTokenizer PreTokenizer::from_json(const Json& pre_tokenizer, const std::string& where) {
  PreTokenizer made;
  if (pre_tokenizer.is_object() && pre_tokenizer.value("type", Json()) == "Sequence") {
    size_t index = 0;
    for (const Json& part : Fields(pre_tokenizer, where).array("pretokenizers")) {
      made.read(part, where + ".pretokenizers." + std::to_string(index++));
    }
  } else {
    made.read(pre_tokenizer, where);
  }
  if (!made.has_byte_level_) throw_unsupported(where, "ByteLevel", "none");
  return made;
}

void PreTokenizer::read(const Json& part, const std::string& where) {
  if (has_byte_level_) throw_unsupported(where, "nothing behind ByteLevel", part.dump(-1, ' ', true));
  const std::string type = Fields(part, where).text("type");
  if (type == "Split") return read_split(part, where);
  if (type == "ByteLevel") return read_byte_level(part, where);
  throw_unsupported(where + ".type", "Split or ByteLevel", type);
}

void PreTokenizer::read_split(const Json& split, const std::string& where) {
  const Fields fields(split, where);
  const std::string behavior = fields.text("behavior");
  const bool invert = fields.flag("invert");
  // Removed and inverted: the matches are what stays.
  if (behavior != "Isolated" && !(behavior == "Removed" && invert))
    throw_unsupported(where + ".behavior", "Isolated", behavior);
  const Fields pattern = fields.object("pattern");
  if (!pattern.has("Regex")) throw_unsupported(where + ".pattern", "Regex", fields.at("pattern").dump(-1, ' ', true));
  steps_.push_back({SplitPattern(pattern.text("Regex"), where + ".pattern"), behavior == "Isolated"});
}

void PreTokenizer::read_byte_level(const Json& byte_level, const std::string& where) {
  const Fields fields(byte_level, where);
  has_byte_level_ = true;
  add_prefix_space_ = fields.flag("add_prefix_space");
  if (!fields.has("use_regex") || fields.flag("use_regex")) words_.emplace(kByteLevelPattern, where);
}

std::vector<std::string> PreTokenizer::split(std::string_view text) const {
  std::vector<std::string_view> pieces;
  if (!text.empty()) pieces.push_back(text);
  for (const Step& step : steps_) {
    std::vector<std::string_view> parts;
    for (const std::string_view piece : pieces) step.pattern.split(piece, step.gaps, &parts);
    pieces = std::move(parts);
  }
  std::vector<std::string> words;
  words.reserve(pieces.size());
  for (const std::string_view piece : pieces) {
    std::string word(piece);
    if (add_prefix_space_ && word.front() != ' ') word.insert(word.begin(), ' ');
    if (words_) {
      std::vector<std::string_view> parts;
      words_->split(word, true, &parts);
      words.insert(words.end(), parts.begin(), parts.end());
    } else {
      words.push_back(std::move(word));
    }
  }
  return words;
}

}  // namespace r1v
