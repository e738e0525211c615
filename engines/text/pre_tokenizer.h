// From a text to the words that a byte-level BPE encodes one by one: `pre_tokenizer` of tokenizer.json.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "text/split_pattern.h"

namespace r1v {

// Split by regular expressions, then ByteLevel: Qwen2's, GPT-2's and Llama 3's. May be shared between threads.
class PreTokenizer {
 public:
  // Throws kBundle, naming what is not supported.
  static PreTokenizer from_json(const Json& pre_tokenizer, const std::string& where);

  // The words, as bytes, of a text that is UTF-8. Throws kInput: it takes too long.
  std::vector<std::string> split(std::string_view text) const;

 private:
  struct Step {
    SplitPattern pattern;
    bool gaps;
  };

  void read(const Json& part, const std::string& where);
  void read_split(const Json& split, const std::string& where);
  void read_byte_level(const Json& byte_level, const std::string& where);

  std::vector<Step> steps_;
  std::optional<SplitPattern> words_;  // ByteLevel's own pattern, which comes behind the space that it adds.
  bool has_byte_level_ = false;
  bool add_prefix_space_ = false;
};

}  // namespace r1v
