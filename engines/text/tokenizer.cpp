#include "text/tokenizer.h"

#include <algorithm>
#include <utility>

#include "text/nfc.h"
#include "text/tokenizer_definition.h"
#include "text/unicode.h"

namespace r1v {

Tokenizer::Tokenizer(const Json& definition, const TokenizerDocument& document) {
  TokenizerDefinition read = read_definition(definition, document);
  normalizes_ = read.normalizes;
  pre_tokenizer_ = std::move(read.pre_tokenizer);
  bpe_ = std::move(read.bpe);
  starts_.reserve(static_cast<size_t>(read.tokens.back().first) + 2);
  for (const auto& [id, bytes] : read.tokens) {
    starts_.resize(static_cast<size_t>(id) + 1, static_cast<uint32_t>(bytes_.size()));
    bytes_ += bytes;
  }
  starts_.push_back(static_cast<uint32_t>(bytes_.size()));
  for (const AddedToken& added : document.added_tokens) {
    if (added.hidden) hidden_.push_back(added.id);
  }
  std::sort(hidden_.begin(), hidden_.end());
}

std::vector<int64_t> Tokenizer::encode_text(std::string_view text) const {
  require_utf8(text);
  std::vector<int64_t> ids;
  const std::string normalized = normalizes_ ? nfc(text) : std::string(text);
  for (const std::string& word : pre_tokenizer_.split(normalized)) bpe_.encode(word, &ids);
  return ids;
}

std::string_view Tokenizer::token_bytes(int64_t id) const {
  if (id < 0 || id >= vocab_size()) return {};
  const auto at = static_cast<size_t>(id);
  return std::string_view(bytes_).substr(starts_[at], starts_[at + 1] - starts_[at]);
}

bool Tokenizer::hides(int64_t id) const { return std::binary_search(hidden_.begin(), hidden_.end(), id); }

}  // namespace r1v
