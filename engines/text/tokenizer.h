// The bundle's byte-level BPE: text to ids, and ids to the bytes of text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "text/bpe.h"
#include "text/documents.h"
#include "text/pre_tokenizer.h"

namespace r1v {

// No text becomes an added token. Does not change, and may be shared between threads.
class Tokenizer {
 public:
  // Args:
  //   definition: the content of tokenizer.json.
  //   document: the bundle's `tokenizer`, with all added tokens.
  // Throws kBundle: the two are damaged, contradict each other, or need what is not supported, which is named.
  Tokenizer(const Json& definition, const TokenizerDocument& document);

  // Ids of a text; never that of an added token. Throws kInput: it is not UTF-8, or takes too long.
  std::vector<int64_t> encode_text(std::string_view text) const;

  // What a token stands for in decoded text, hidden or not; nothing for an id without a token.
  std::string_view token_bytes(int64_t id) const;

  // Whether an added token is omitted from decoded text, as `Detokenizer` does.
  bool hides(int64_t id) const;

  // One more than the highest id; a model's embedding may have further, unused rows.
  int64_t vocab_size() const { return static_cast<int64_t>(starts_.size()) - 1; }

 private:
  bool normalizes_;
  PreTokenizer pre_tokenizer_;
  Bpe bpe_;
  std::string bytes_;             // of all tokens, in the order of their ids
  std::vector<uint32_t> starts_;  // in `bytes_`, by id, and the end
  std::vector<int64_t> hidden_;   // sorted
};

}  // namespace r1v
