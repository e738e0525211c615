// tokenizer.json of a byte-level BPE, checked.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"
#include "text/bpe.h"
#include "text/documents.h"
#include "text/pre_tokenizer.h"

namespace r1v {

struct TokenizerDefinition {
  bool normalizes;  // to NFC
  PreTokenizer pre_tokenizer;
  Bpe bpe;
  std::vector<std::pair<int64_t, std::string>> tokens;  // ids and their bytes, added tokens included, by id
};

// The definition without its added tokens: they are left out of the vocabulary, so that no merge can make one.
// Throws kBundle: it is damaged, contradicts `document`, or needs what is not supported, which is named.
TokenizerDefinition read_definition(const Json& definition, const TokenizerDocument& document);

}  // namespace r1v
