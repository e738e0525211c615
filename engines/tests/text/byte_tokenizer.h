// A small byte-level tokenizer: id = byte, then the tokens that merges make, then added tokens.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "text/tokenizer.h"
#include "text/unicode.h"

namespace r1v {

using TokenPairs = std::vector<std::pair<std::string, std::string>>;

inline Json byte_definition(const TokenPairs& merges, int64_t first_merged = 1000) {
  Json vocab = Json::object(), pairs = Json::array();
  char32_t other = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte != 0xad);
    std::string token;
    append_utf8(printable ? static_cast<char32_t>(byte) : other++, &token);
    vocab[token] = byte;
  }
  for (const auto& [left, right] : merges) {
    vocab.emplace(left + right, first_merged++);
    pairs.push_back({left, right});
  }
  Json definition = Json::parse(R"({"added_tokens": [], "normalizer": {"type": "NFC"}, "decoder": {"type": "ByteLevel"},
      "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
          {"type": "Split", "behavior": "Isolated", "invert": false, "pattern": {"Regex":
              "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"}},
          {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]}})");
  definition["model"] = {{"type", "BPE"}, {"vocab", vocab}, {"merges", pairs}};
  return definition;
}

inline Tokenizer byte_tokenizer(const TokenPairs& merges = {}, const std::vector<AddedToken>& added = {}) {
  return Tokenizer(byte_definition(merges), {"tokenizer.json", added});
}

}  // namespace r1v
